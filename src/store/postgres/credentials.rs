//! The statements on credentials, and on the keys that they are sealed under.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connection::Connections;
use super::notify;
use super::rows;
use super::rows::Settled;
use super::rows::Uuid;
use super::rows::to_bigint;
use super::rows::to_integer;
use crate::id::CredentialId;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::DISCONNECTED;
use crate::store::KeyRecord;
use crate::store::LeaseHolder;
use crate::store::REVOKED;
use crate::store::Replacement;
use crate::store::Settlement;
use crate::store::StoreError;

pub(super) async fn register_key(
    connections: &Connections,
    key: KeyRecord,
) -> Result<(), StoreError> {
    let check_value = key.check_value.as_slice();
    connections
        .row(
            "INSERT INTO sealing_keys (id, check_value, registered_at, retired_at)
         VALUES ($1, $2, $3, $4)
         ON CONFLICT (id) DO UPDATE
         SET registered_at = EXCLUDED.registered_at, retired_at = EXCLUDED.retired_at
         WHERE sealing_keys.retired_at IS NOT NULL
             AND sealing_keys.check_value = EXCLUDED.check_value",
            &[
                (&key.id, Type::TEXT),
                (&check_value, Type::BYTEA),
                (&key.registered_at, Type::TIMESTAMPTZ),
                (&key.retired_at, Type::TIMESTAMPTZ),
            ],
        )
        .await
        .map(drop)
}

pub(super) async fn keys(connections: &Connections) -> Result<Vec<KeyRecord>, StoreError> {
    connections
        .rows(
            "SELECT id, check_value, registered_at, retired_at FROM sealing_keys",
            &[],
        )
        .await?
        .iter()
        .map(rows::key)
        .collect()
}

pub(super) async fn insert_credential(
    connections: &Connections,
    credential: Credential,
) -> Result<(), StoreError> {
    connections
        .insert(
            "INSERT INTO credentials (id, provider, subject, generation, sealed,
             expires_at, refreshed_at, not_before, forced_at, fence, unsettled, failures,
             terminal, linked)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (id) DO NOTHING RETURNING id",
            &[
                (&Uuid(*credential.id.as_bytes()), Type::UUID),
                (&credential.provider, Type::TEXT),
                (&credential.subject, Type::TEXT),
                (&to_bigint(credential.generation)?, Type::INT8),
                (&credential.sealed, Type::BYTEA),
                (&credential.expires_at, Type::TIMESTAMPTZ),
                (&credential.refreshed_at, Type::TIMESTAMPTZ),
                (&credential.not_before, Type::TIMESTAMPTZ),
                (&credential.forced_at, Type::TIMESTAMPTZ),
                (&to_bigint(credential.fence)?, Type::INT8),
                (&to_integer(credential.unsettled), Type::INT4),
                (&to_integer(credential.failures), Type::INT4),
                (&credential.terminal, Type::TEXT),
                (&credential.linked, Type::BOOL),
            ],
        )
        .await
}

pub(super) async fn credential(
    connections: &Connections,
    id: CredentialId,
) -> Result<Option<Credential>, StoreError> {
    connections
        .read(
            "SELECT * FROM credentials WHERE id = $1",
            &[(&Uuid(*id.as_bytes()), Type::UUID)],
        )
        .await?
        .as_ref()
        .map(rows::credential)
        .transpose()?
        .map(|row| rows::asked_for(row.id == id, row))
        .transpose()
}

pub(super) async fn claim(
    connections: &Connections,
    id: CredentialId,
    generation: u64,
    holder: LeaseHolder,
    lease: Duration,
) -> Result<Option<Credential>, StoreError> {
    connections
        .row(
            // The right sides see the row as it was: a lease that is
            // still there was not settled.
            "UPDATE credentials
         SET lease_until = now() + $3 * interval '1 second', lease_holder = $4,
             fence = fence + 1,
             unsettled = unsettled + CASE WHEN lease_until IS NOT NULL
                 AND lease_holder IS DISTINCT FROM $4 THEN 1 ELSE 0 END
         WHERE id = $1 AND generation = $2 AND terminal IS NULL
             AND (lease_until IS NULL OR lease_until <= now() OR lease_holder = $4)
         RETURNING *",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&to_bigint(generation)?, Type::INT8),
                (&lease.as_secs_f64(), Type::FLOAT8),
                (&Uuid(holder), Type::UUID),
            ],
        )
        .await?
        .as_ref()
        .map(rows::credential)
        .transpose()?
        .map(|row| rows::asked_for(row.id == id, row))
        .transpose()
}

pub(super) async fn settle(
    connections: &Connections,
    claim: Claim,
    outcome: Settlement,
) -> Result<bool, StoreError> {
    let is_end = matches!(outcome, Settlement::Terminal { .. });
    let row = Settled::of(claim, outcome);
    let settled = connections
        .row(
            "UPDATE credentials
         SET generation = $4, sealed = COALESCE($5, sealed),
             expires_at = CASE WHEN $5 IS NULL THEN expires_at ELSE $6 END,
             refreshed_at = COALESCE($7, refreshed_at),
             forced_at = COALESCE($8, forced_at),
             not_before = $9, terminal = $10, lease_until = NULL,
             unsettled = COALESCE($11, unsettled), failures = COALESCE($12, failures)
         WHERE id = $1 AND generation = $2 AND fence = $3 AND terminal IS NULL
         RETURNING id",
            &[
                (&Uuid(*claim.id.as_bytes()), Type::UUID),
                (&to_bigint(claim.generation)?, Type::INT8),
                (&to_bigint(claim.fence)?, Type::INT8),
                (&to_bigint(row.generation)?, Type::INT8),
                (&row.sealed, Type::BYTEA),
                (&row.expires_at, Type::TIMESTAMPTZ),
                (&row.refreshed_at, Type::TIMESTAMPTZ),
                (&row.forced_at, Type::TIMESTAMPTZ),
                (&row.not_before, Type::TIMESTAMPTZ),
                (&row.terminal, Type::TEXT),
                (&row.unsettled.map(to_integer), Type::INT4),
                (&row.failures.map(to_integer), Type::INT4),
            ],
        )
        .await?;
    if is_end {
        // Also if it had ended, as for grants.
        notify::tell(connections, &notify::of_credential(claim.id)).await;
    }
    Ok(settled.is_some())
}

pub(super) async fn replace(
    connections: &Connections,
    id: CredentialId,
    generation: u64,
    tokens: Replacement,
) -> Result<bool, StoreError> {
    let replaced = connections
        .row(
            "UPDATE credentials
         SET generation = generation + 1, fence = fence + 1, sealed = $3,
             expires_at = $4, refreshed_at = $5, not_before = NULL,
             forced_at = NULL, terminal = NULL, lease_until = NULL,
             unsettled = 0, failures = 0, linked = linked OR $6
         WHERE id = $1 AND generation = $2
             AND (NOT $7 OR terminal IS NULL OR terminal NOT IN ($8, $9))
         RETURNING id",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&to_bigint(generation)?, Type::INT8),
                (&tokens.sealed, Type::BYTEA),
                (&tokens.expires_at, Type::TIMESTAMPTZ),
                (&tokens.refreshed_at, Type::TIMESTAMPTZ),
                (&tokens.linked, Type::BOOL),
                (&tokens.unless_revoked, Type::BOOL),
                (&REVOKED, Type::TEXT),
                (&DISCONNECTED, Type::TEXT),
            ],
        )
        .await?;
    Ok(replaced.is_some())
}
