//! The statements of the outbox: which grants' ends the providers have not
//! heard of yet. Nobody waits for these.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::connection::Connections;
use super::rows;
use super::rows::Uuid;
use super::rows::to_integer;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::store::Grant;
use crate::store::StoreError;

pub(super) async fn due_revocations(
    connections: &Connections,
    now: SystemTime,
    limit: u32,
) -> Result<Vec<GrantId>, StoreError> {
    connections
        .rows(
            "SELECT id FROM grants WHERE upstream_due <= $1 ORDER BY upstream_due LIMIT $2",
            &[
                (&now, Type::TIMESTAMPTZ),
                (&i64::from(to_integer(limit)), Type::INT8),
            ],
        )
        .await?
        .iter()
        .map(rows::grant_id)
        .collect()
}

pub(super) async fn take_revocation(
    connections: &Connections,
    id: GrantId,
    now: SystemTime,
    next: SystemTime,
) -> Result<Option<Grant>, StoreError> {
    connections
        .row(
            "UPDATE grants SET upstream_due = $3
             WHERE id = $1 AND upstream_due <= $2
             RETURNING *",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&now, Type::TIMESTAMPTZ),
                (&next, Type::TIMESTAMPTZ),
            ],
        )
        .await?
        .as_ref()
        .map(rows::grant)
        .transpose()
}

pub(super) async fn finish_revocation(
    connections: &Connections,
    id: GrantId,
) -> Result<(), StoreError> {
    connections
        .row(
            "UPDATE grants SET upstream_due = NULL WHERE id = $1",
            &[(&Uuid(*id.as_bytes()), Type::UUID)],
        )
        .await
        .map(drop)
}

/// On a sharded database the one question that every shard is asked.
pub(super) async fn is_held(
    connections: &Connections,
    id: CredentialId,
    created_after: SystemTime,
    used_after: SystemTime,
) -> Result<bool, StoreError> {
    let held = connections
        .row(
            "SELECT id FROM grants
             WHERE credential_id = $1 AND revoked_at IS NULL
                 AND created_at > $2 AND last_used_at > $3
             UNION ALL
             SELECT id FROM grants
             WHERE further_credentials <> '{}' AND further_credentials @> ARRAY[$1]
                 AND revoked_at IS NULL AND created_at > $2 AND last_used_at > $3
             LIMIT 1",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&created_after, Type::TIMESTAMPTZ),
                (&used_after, Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    Ok(held.is_some())
}

pub(super) async fn is_awaited(
    connections: &Connections,
    id: CredentialId,
    now: SystemTime,
) -> Result<bool, StoreError> {
    let awaited = connections
        .row(
            "SELECT id FROM codes WHERE credentials @> ARRAY[$1] AND expires_at > $2 LIMIT 1",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&now, Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    Ok(awaited.is_some())
}
