//! The statements on credentials that nobody refers to. No request waits for
//! them.

use tokio_postgres::types::Type;

use super::connection::Connections;
use super::rows;
use super::rows::Uuid;
use super::rows::get;
use super::rows::to_bigint;
use crate::id::CredentialId;
use crate::store::Claim;
use crate::store::StoreError;

/// On a sharded database every shard is asked.
pub(super) async fn referred_to(
    connections: &Connections,
    ids: Vec<CredentialId>,
) -> Result<Vec<CredentialId>, StoreError> {
    let ids: Vec<_> = ids.iter().map(|id| Uuid(*id.as_bytes())).collect();
    let found = connections
        .rows(
            "SELECT credential_id AS id FROM grants WHERE credential_id = ANY ($1)
             UNION
             SELECT unnest(further_credentials) FROM grants
             WHERE further_credentials <> '{}' AND further_credentials && $1
             UNION
             SELECT unnest(credentials) FROM codes WHERE credentials && $1",
            &[(&ids, Type::UUID_ARRAY)],
        )
        .await?;
    let id = |row| get(row, "id").map(|id: Uuid| CredentialId::from_bytes(id.0));
    found.iter().map(id).collect()
}

pub(super) async fn delete_credentials(
    connections: &Connections,
    ended: Vec<Claim>,
) -> Result<u64, StoreError> {
    let ids: Vec<_> = (ended.iter().map(|row| Uuid(*row.id.as_bytes()))).collect();
    let generations = ended.iter().map(|row| to_bigint(row.generation));
    let generations = generations.collect::<Result<Vec<_>, _>>()?;
    let fences = ended.iter().map(|row| to_bigint(row.fence));
    let fences = fences.collect::<Result<Vec<_>, _>>()?;
    // As for grants: what a login is just bringing back is left alone.
    let deleted = connections
        .row(
            "WITH ended AS (SELECT * FROM unnest($1, $2, $3) AS ended (id, generation, fence)),
                 done AS (SELECT credentials.id FROM credentials JOIN ended
                     ON credentials.id = ended.id
                         AND credentials.generation = ended.generation
                         AND credentials.fence = ended.fence
                     WHERE credentials.terminal IS NOT NULL AND NOT credentials.linked
                     FOR UPDATE OF credentials SKIP LOCKED),
                 gone AS (DELETE FROM credentials WHERE id IN (SELECT id FROM done)
                     RETURNING id)
             SELECT count(*) AS deleted FROM gone",
            &[
                (&ids, Type::UUID_ARRAY),
                (&generations, Type::INT8_ARRAY),
                (&fences, Type::INT8_ARRAY),
            ],
        )
        .await?
        .ok_or_else(|| rows::corrupt("a count of nothing"))?;
    let deleted: i64 = get(&deleted, "deleted")?;
    Ok(u64::try_from(deleted).unwrap_or_default())
}
