//! The statements on grants that clients and requests cause.

use std::time::SystemTime;

use tokio_postgres::types::ToSql;
use tokio_postgres::types::Type;

use super::connection::Connections;
use super::notify;
use super::rows;
use super::rows::Uuid;
use super::rows::corrupt;
use super::rows::to_bigint;
use super::rows::to_integer;
use crate::id::GrantId;
use crate::store::Grant;
use crate::store::HeldCredential;
use crate::store::ROTATIONS_KEPT;
use crate::store::RevocationReason;
use crate::store::Rotation;
use crate::store::StoreError;

pub(super) async fn insert_grant(
    connections: &Connections,
    grant: Grant,
) -> Result<(), StoreError> {
    let [first, further @ ..] = grant.credentials.as_slice() else {
        return Err(corrupt("a grant without a credential"));
    };
    let (providers, ids) = rows::columns(further);
    let (revoked_at, reason) = grant
        .revoked
        .map(|(at, reason)| (at, reason.as_str()))
        .unzip();
    connections
        .insert(
            "INSERT INTO grants (id, credential_id, provider, subject, client_id, scope,
             resource, salt, key_id, generation, refresh_hash, previous_hash,
             rotated_at, access_expires_at, replays, acknowledged, created_at,
             last_used_at, revoked_access, revoked_at, revoked_reason, further_credentials,
             further_providers, confidential, upstream_due, rotations, direct_hash,
             direct_used_at, superseded_hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
             $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29)
         ON CONFLICT (id) DO NOTHING RETURNING id",
            &[
                (&Uuid(*grant.id.as_bytes()), Type::UUID),
                (&Uuid(*first.id.as_bytes()), Type::UUID),
                (&first.provider, Type::TEXT),
                (&grant.subject, Type::TEXT),
                (&grant.client_id, Type::TEXT),
                (&grant.scope, Type::TEXT),
                (&grant.resource, Type::TEXT),
                (&grant.salt.as_slice(), Type::BYTEA),
                (&grant.key_id, Type::TEXT),
                (&to_bigint(grant.generation)?, Type::INT8),
                (&grant.refresh_hash.as_slice(), Type::BYTEA),
                (
                    &grant.previous_hash.as_ref().map(<[u8; 32]>::as_slice),
                    Type::BYTEA,
                ),
                (&grant.rotated_at, Type::TIMESTAMPTZ),
                (&grant.access_expires_at, Type::TIMESTAMPTZ),
                (&to_integer(grant.replays), Type::INT4),
                (&grant.acknowledged, Type::BOOL),
                (&grant.created_at, Type::TIMESTAMPTZ),
                (&grant.last_used_at, Type::TIMESTAMPTZ),
                (
                    &grant
                        .revoked_access
                        .iter()
                        .map(<[u8; 24]>::as_slice)
                        .collect::<Vec<_>>(),
                    Type::BYTEA_ARRAY,
                ),
                (&revoked_at, Type::TIMESTAMPTZ),
                (&reason, Type::TEXT),
                (&ids, Type::UUID_ARRAY),
                (&providers, Type::TEXT_ARRAY),
                (&grant.confidential, Type::BOOL),
                (&grant.upstream_due, Type::TIMESTAMPTZ),
                (&grant.rotations, Type::TIMESTAMPTZ_ARRAY),
                (
                    &grant.direct.as_ref().map(|direct| direct.hash.as_slice()),
                    Type::BYTEA,
                ),
                (
                    &grant.direct.as_ref().map(|direct| direct.used_at),
                    Type::TIMESTAMPTZ,
                ),
                (
                    &grant.superseded_hash.as_ref().map(<[u8; 32]>::as_slice),
                    Type::BYTEA,
                ),
            ],
        )
        .await
}

pub(super) async fn grant(
    connections: &Connections,
    id: GrantId,
) -> Result<Option<Grant>, StoreError> {
    connections
        .read(
            "SELECT * FROM grants WHERE id = $1",
            &[(&Uuid(*id.as_bytes()), Type::UUID)],
        )
        .await?
        .as_ref()
        .map(rows::grant)
        .transpose()?
        .map(|row| rows::asked_for(row.id == id, row))
        .transpose()
}

/// Fails if the schema is older than this version, on which every request would.
pub(super) async fn has_newest_column(connections: &Connections) -> Result<(), StoreError> {
    let asked = connections.read(
        "SELECT superseded_hash FROM grants WHERE id = $1",
        &[(&Uuid([0; 16]), Type::UUID)],
    );
    asked.await.map(drop)
}

pub(super) async fn rotate(
    connections: &Connections,
    rotation: Rotation,
) -> Result<bool, StoreError> {
    let rotated = connections
        .row(
            "UPDATE grants
         SET generation = generation + 1, previous_hash = $3, refresh_hash = $4,
             superseded_hash = CASE WHEN $9 = $3 THEN NULL ELSE $9 END,
             key_id = $5, rotated_at = $6, last_used_at = $6,
             rotations = (array_prepend($6, rotations))[1:$8],
             access_expires_at = $7, replays = 0, acknowledged = false
         WHERE id = $1 AND generation = $2 AND refresh_hash = $9
             AND NOT ($10 AND acknowledged) AND revoked_at IS NULL
         RETURNING id",
            &[
                (&Uuid(*rotation.id.as_bytes()), Type::UUID),
                (&to_bigint(rotation.generation)?, Type::INT8),
                (&rotation.presented_hash.as_slice(), Type::BYTEA),
                (&rotation.refresh_hash.as_slice(), Type::BYTEA),
                (&rotation.key_id, Type::TEXT),
                (&rotation.at, Type::TIMESTAMPTZ),
                (&rotation.access_expires_at, Type::TIMESTAMPTZ),
                (&i32::from(ROTATIONS_KEPT), Type::INT4),
                (&rotation.replaced_hash.as_slice(), Type::BYTEA),
                (&rotation.unless_used, Type::BOOL),
            ],
        )
        .await?;
    Ok(rotated.is_some())
}

pub(super) async fn count_replay(
    connections: &Connections,
    id: GrantId,
    generation: u64,
    cap: u32,
    at: SystemTime,
) -> Result<bool, StoreError> {
    let counted = connections
        .row(
            "UPDATE grants SET replays = replays + 1,
             last_used_at = GREATEST(last_used_at, $4)
         WHERE id = $1 AND generation = $2 AND replays < $3
             AND revoked_at IS NULL
         RETURNING id",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&to_bigint(generation)?, Type::INT8),
                (&to_integer(cap), Type::INT4),
                (&at, Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    Ok(counted.is_some())
}

pub(super) async fn acknowledge(
    connections: &Connections,
    id: GrantId,
    generation: u64,
) -> Result<(), StoreError> {
    connections
        .row(
            "UPDATE grants SET acknowledged = true
         WHERE id = $1 AND generation = $2 AND NOT acknowledged
             AND revoked_at IS NULL",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&to_bigint(generation)?, Type::INT8),
            ],
        )
        .await
        .map(drop)
}

pub(super) async fn attach(
    connections: &Connections,
    id: GrantId,
    credential: HeldCredential,
) -> Result<bool, StoreError> {
    let attached = connections
        .row(
            "UPDATE grants
             SET credential_id = CASE WHEN provider = $2 THEN $3 ELSE credential_id END,
                 further_credentials = ARRAY(
                     SELECT CASE WHEN name = $2 THEN $3 ELSE id END
                     FROM unnest(further_providers, further_credentials)
                         WITH ORDINALITY AS further (name, id, position)
                     ORDER BY position)
                     || CASE WHEN $2 = provider OR $2 = ANY (further_providers)
                         THEN '{}' ELSE ARRAY[$3] END,
                 further_providers = further_providers
                     || CASE WHEN $2 = provider OR $2 = ANY (further_providers)
                         THEN '{}' ELSE ARRAY[$2] END
             WHERE id = $1 AND revoked_at IS NULL
             RETURNING id",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&credential.provider, Type::TEXT),
                (&Uuid(*credential.id.as_bytes()), Type::UUID),
            ],
        )
        .await?;
    Ok(attached.is_some())
}

pub(super) async fn revoke_grant(
    connections: &Connections,
    id: GrantId,
    at: SystemTime,
    reason: RevocationReason,
) -> Result<bool, StoreError> {
    let (row, reason) = (Uuid(*id.as_bytes()), reason.as_str());
    let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
        (&row, Type::UUID),
        (&at, Type::TIMESTAMPTZ),
        (&reason, Type::TEXT),
    ];
    let (mut revoked, attempts) = connections
        .row_and_attempts(
            "UPDATE grants SET revoked_at = $2, revoked_reason = $3, upstream_due = $2
         WHERE id = $1 AND revoked_at IS NULL
         RETURNING id",
            &parameters,
        )
        .await?;
    if revoked.is_none() && attempts > 1 {
        // By the first attempt, perhaps, whose answer was lost.
        let by_us = "SELECT id FROM grants
             WHERE id = $1 AND revoked_at = $2 AND revoked_reason = $3";
        revoked = connections.row(by_us, &parameters).await?;
    }
    // Also if it had ended: whoever did may not have come to say so.
    notify::tell(connections, &notify::of_grant(id)).await;
    Ok(revoked.is_some())
}

pub(super) async fn slide(
    connections: &Connections,
    id: GrantId,
    at: SystemTime,
) -> Result<bool, StoreError> {
    let slid = connections
        .row(
            "UPDATE grants SET direct_used_at = GREATEST(direct_used_at, $2)
         WHERE id = $1 AND direct_used_at IS NOT NULL AND revoked_at IS NULL
         RETURNING id",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&at, Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    Ok(slid.is_some())
}

pub(super) async fn expire_grant(
    connections: &Connections,
    id: GrantId,
    redeemed_at: SystemTime,
    last_used_at: SystemTime,
    at: SystemTime,
) -> Result<bool, StoreError> {
    let expired = connections
        .row(
            "UPDATE grants SET revoked_at = $4, revoked_reason = $5, upstream_due = $4
         WHERE id = $1 AND direct_used_at <= $2 AND last_used_at <= $3
             AND revoked_at IS NULL
         RETURNING id",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&redeemed_at, Type::TIMESTAMPTZ),
                (&last_used_at, Type::TIMESTAMPTZ),
                (&at, Type::TIMESTAMPTZ),
                (&RevocationReason::Expired.as_str(), Type::TEXT),
            ],
        )
        .await?;
    // Also if it had ended: by an attempt whose answer was lost, perhaps.
    notify::tell(connections, &notify::of_grant(id)).await;
    Ok(expired.is_some())
}

pub(super) async fn revoke_access(
    connections: &Connections,
    id: GrantId,
    entry: [u8; 24],
    expired_below: [u8; 24],
) -> Result<(), StoreError> {
    connections
        .row(
            "UPDATE grants
         SET revoked_access = ARRAY(
             SELECT known FROM unnest(revoked_access) AS known
             WHERE known >= $3 AND known <> $2) || $2
         WHERE id = $1 AND revoked_at IS NULL",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&entry.as_slice(), Type::BYTEA),
                (&expired_below.as_slice(), Type::BYTEA),
            ],
        )
        .await?;
    notify::tell(connections, &notify::of_grant(id)).await;
    Ok(())
}
