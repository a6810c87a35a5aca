//! Rows to structs, and the parameter types that tokio-postgres lacks.

use std::error::Error;
use std::time::SystemTime;

use bytes::BytesMut;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;
use tokio_postgres::types::IsNull;
use tokio_postgres::types::ToSql;
use tokio_postgres::types::Type;
use tokio_postgres::types::to_sql_checked;

use crate::BoxError;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::store::Claim;
use crate::store::ClientRecord;
use crate::store::Code;
use crate::store::Credential;
use crate::store::DirectToken;
use crate::store::Grant;
use crate::store::HeldCredential;
use crate::store::KeyRecord;
use crate::store::RevocationReason;
use crate::store::RotationPolicy;
use crate::store::Settlement;
use crate::store::StoreError;
use crate::store::StoreErrorKind;

pub(super) fn grant(row: &Row) -> Result<Grant, StoreError> {
    let revoked_at: Option<SystemTime> = get(row, "revoked_at")?;
    let reason: Option<String> = get(row, "revoked_reason")?;
    // One of a later version says less than that it is revoked.
    let reason = reason.and_then(|text| RevocationReason::parse(&text));
    let mut credentials = vec![HeldCredential {
        provider: get(row, "provider")?,
        id: CredentialId::from_bytes(get::<Uuid>(row, "credential_id")?.0),
    }];
    credentials.extend(held(row, "further_providers", "further_credentials")?);

    Ok(Grant {
        id: grant_id(row)?,
        credentials,
        subject: get(row, "subject")?,
        client_id: get(row, "client_id")?,
        confidential: get(row, "confidential")?,
        scope: get(row, "scope")?,
        resource: get(row, "resource")?,
        salt: array(get(row, "salt")?)?,
        key_id: get(row, "key_id")?,
        generation: from_bigint(get(row, "generation")?)?,
        refresh_hash: array(get(row, "refresh_hash")?)?,
        previous_hash: get::<Option<&[u8]>>(row, "previous_hash")?
            .map(array)
            .transpose()?,
        superseded_hash: get::<Option<&[u8]>>(row, "superseded_hash")?
            .map(array)
            .transpose()?,
        direct: direct(row)?,
        rotated_at: get(row, "rotated_at")?,
        rotations: get(row, "rotations")?,
        access_expires_at: get(row, "access_expires_at")?,
        replays: from_integer(get(row, "replays")?)?,
        acknowledged: get(row, "acknowledged")?,
        created_at: get(row, "created_at")?,
        last_used_at: get(row, "last_used_at")?,
        revoked_access: arrays(get(row, "revoked_access")?)?,
        // A row that says only when is still revoked.
        revoked: revoked_at.map(|at| (at, reason.unwrap_or(RevocationReason::Operator))),
        upstream_due: get(row, "upstream_due")?,
    })
}

fn direct(row: &Row) -> Result<Option<DirectToken>, StoreError> {
    let hash: Option<&[u8]> = get(row, "direct_hash")?;
    let used_at: Option<SystemTime> = get(row, "direct_used_at")?;
    let of = |(hash, used_at)| {
        Ok(DirectToken {
            hash: array(hash)?,
            used_at,
        })
    };
    hash.zip(used_at).map(of).transpose()
}

pub(super) fn grant_id(row: &Row) -> Result<GrantId, StoreError> {
    Ok(GrantId::from_bytes(get::<Uuid>(row, "id")?.0))
}

pub(super) fn code(row: &Row) -> Result<Code, StoreError> {
    Ok(Code {
        id: grant_id(row)?,
        hash: array(get(row, "hash")?)?,
        challenge: array(get(row, "challenge")?)?,
        client_id: get(row, "client_id")?,
        confidential: get(row, "confidential")?,
        redirect_uri: get(row, "redirect_uri")?,
        subject: get(row, "subject")?,
        scope: get(row, "scope")?,
        resource: get(row, "resource")?,
        credentials: held(row, "providers", "credentials")?,
        expires_at: get(row, "expires_at")?,
    })
}

pub(super) fn client(row: &Row) -> Result<ClientRecord, StoreError> {
    let rotation: String = get(row, "rotation")?;
    Ok(ClientRecord {
        id: get(row, "id")?,
        secret_hashes: arrays(get(row, "secret_hashes")?)?,
        keys: get(row, "keys")?,
        rotation: RotationPolicy::parse(&rotation)
            .ok_or_else(|| corrupt(format!("unknown rotation policy `{rotation}`")))?,
        introspects: get(row, "introspects")?,
        registered_at: get(row, "registered_at")?,
    })
}

/// Credentials by their position in two columns.
fn held(row: &Row, providers: &str, ids: &str) -> Result<Vec<HeldCredential>, StoreError> {
    let providers: Vec<String> = get(row, providers)?;
    let ids: Vec<Uuid> = get(row, ids)?;
    if providers.len() != ids.len() {
        return Err(corrupt("providers and credentials do not pair"));
    }
    let pairs = providers.into_iter().zip(ids);
    Ok(pairs
        .map(|(provider, Uuid(id))| HeldCredential {
            provider,
            id: CredentialId::from_bytes(id),
        })
        .collect())
}

/// The two columns, of providers and of ids.
pub(super) fn columns(held: &[HeldCredential]) -> (Vec<&str>, Vec<Uuid>) {
    held.iter()
        .map(|held| (held.provider.as_str(), Uuid(*held.id.as_bytes())))
        .unzip()
}

pub(super) fn credential(row: &Row) -> Result<Credential, StoreError> {
    Ok(Credential {
        id: CredentialId::from_bytes(get::<Uuid>(row, "id")?.0),
        provider: get(row, "provider")?,
        subject: get(row, "subject")?,
        generation: from_bigint(get(row, "generation")?)?,
        sealed: get(row, "sealed")?,
        expires_at: get(row, "expires_at")?,
        refreshed_at: get(row, "refreshed_at")?,
        not_before: get(row, "not_before")?,
        forced_at: get(row, "forced_at")?,
        fence: from_bigint(get(row, "fence")?)?,
        unsettled: from_integer(get(row, "unsettled")?)?,
        failures: from_integer(get(row, "failures")?)?,
        terminal: get(row, "terminal")?,
        linked: get(row, "linked")?,
    })
}

pub(super) fn key(row: &Row) -> Result<KeyRecord, StoreError> {
    Ok(KeyRecord {
        id: get(row, "id")?,
        check_value: array(get(row, "check_value")?)?,
        registered_at: get(row, "registered_at")?,
        retired_at: get(row, "retired_at")?,
    })
}

/// What a settlement writes; `None` leaves a column as it is, but for
/// `not_before` and `terminal`, which it clears.
pub(super) struct Settled {
    pub(super) generation: u64,
    pub(super) sealed: Option<Vec<u8>>,
    pub(super) expires_at: Option<SystemTime>,
    pub(super) refreshed_at: Option<SystemTime>,
    pub(super) forced_at: Option<SystemTime>,
    pub(super) not_before: Option<SystemTime>,
    pub(super) terminal: Option<String>,
    pub(super) unsettled: Option<u32>,
    pub(super) failures: Option<u32>,
}

impl Settled {
    pub(super) fn of(claim: Claim, outcome: Settlement) -> Self {
        let unchanged = Self {
            generation: claim.generation,
            sealed: None,
            expires_at: None,
            refreshed_at: None,
            forced_at: None,
            not_before: None,
            terminal: None,
            unsettled: None,
            failures: None,
        };
        match outcome {
            Settlement::Refreshed {
                sealed,
                expires_at,
                refreshed_at,
                forced_at,
                not_before,
            } => Self {
                generation: claim.generation + 1,
                sealed: Some(sealed),
                expires_at,
                refreshed_at: Some(refreshed_at),
                forced_at,
                not_before,
                unsettled: Some(0),
                failures: Some(0),
                ..unchanged
            },
            Settlement::Terminal { reason } => Self {
                terminal: Some(reason),
                ..unchanged
            },
            Settlement::Released {
                not_before,
                unsettled,
                failures,
            } => Self {
                not_before: Some(not_before),
                unsettled: Some(unsettled),
                failures: Some(failures),
                ..unchanged
            },
        }
    }
}

pub(super) fn to_bigint(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(corrupt)
}

/// Counts that nobody reads beyond a handful.
pub(super) fn to_integer(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn from_integer(number: i32) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(corrupt)
}

fn from_bigint(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(corrupt)
}

pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> Result<T, StoreError> {
    row.try_get(column).map_err(|error| {
        let is_there = row.columns().iter().any(|it| it.name() == column);
        let kind = if is_there {
            StoreErrorKind::Corrupt
        } else {
            StoreErrorKind::Schema
        };
        StoreError::new(kind, error)
    })
}

fn arrays<const N: usize>(all: Vec<&[u8]>) -> Result<Vec<[u8; N]>, StoreError> {
    all.into_iter().map(array).collect()
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], StoreError> {
    bytes.try_into().map_err(corrupt)
}

/// A row that answers what was asked. A pooler that mixes statements up hands out
/// those of others, and this is where somebody would get another user's login.
pub(super) fn asked_for<T>(is_it: bool, row: T) -> Result<T, StoreError> {
    is_it
        .then_some(row)
        .ok_or_else(|| corrupt("the row of another id: a pooler mixes up statements"))
}

pub(super) fn corrupt(source: impl Into<BoxError>) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, source)
}

/// Sixteen bytes as a `uuid`; a crate for it would add nothing we use.
#[derive(Debug)]
pub(super) struct Uuid(pub(super) [u8; 16]);

impl ToSql for Uuid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(column: &Type) -> bool {
        *column == Type::UUID
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Uuid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw.try_into()?))
    }

    fn accepts(column: &Type) -> bool {
        *column == Type::UUID
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_not_asked_for_is_given_to_nobody() {
        assert_eq!(asked_for(true, 1).unwrap(), 1);
        let error = asked_for(false, 1).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    }
}
