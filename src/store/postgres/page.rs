//! Statements on a page of rows, in the order of the primary key.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tokio_postgres::types::Type;

use super::connection::Connections;
use super::rows::Uuid;
use super::rows::get;
use super::rows::to_integer;
use crate::id::GrantId;
use crate::store::StoreError;
use crate::store::Swept;

/// Rows of a page, and after which one the next begins.
pub(super) struct Found {
    pub(super) rows: Vec<Row>,
    pub(super) next: Option<[u8; 16]>,
}

/// Runs a statement on the page of `$2` rows after `$1`.
pub(super) async fn page(
    connections: &Connections,
    sql: &str,
    after: Option<[u8; 16]>,
    limit: u32,
    further: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Found, StoreError> {
    // Ids are random: none is all zeroes.
    let (after, limit) = (
        Uuid(after.unwrap_or_default()),
        i64::from(to_integer(limit)),
    );
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        vec![(&after, Type::UUID), (&limit, Type::INT8)];
    parameters.extend_from_slice(further);
    let rows = connections.rows(sql, &parameters).await?;
    let mut next = None;
    if let Some(row) = rows.first() {
        let last: Option<Uuid> = get(row, "last")?;
        let looked_at: i64 = get(row, "looked_at")?;
        next = last.filter(|_last| looked_at >= limit).map(|last| last.0);
    }
    Ok(Found { rows, next })
}

/// The rows that were wanted. The last one of a page comes along in any case, to
/// say where the page ended.
pub(super) fn rows_of<T>(
    found: &Found,
    read: impl Fn(&Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut wanted = Vec::new();
    for row in &found.rows {
        if get(row, "is_wanted")? {
            wanted.push(read(row)?);
        }
    }
    Ok(wanted)
}

/// What a statement by [`sweep_of`] came to.
pub(super) fn swept(found: &Found) -> Result<Swept<GrantId>, StoreError> {
    let deleted: i64 = match found.rows.first() {
        Some(row) => get(row, "deleted")?,
        None => 0,
    };
    Ok(Swept {
        deleted: u64::try_from(deleted).unwrap_or_default(),
        next: found.next.map(GrantId::from_bytes),
    })
}

/// A statement that returns what of a page fulfils the condition.
pub(super) fn page_of(table: &str, condition: &str) -> String {
    format!(
        "WITH page AS (SELECT * FROM {table} WHERE id > $1 ORDER BY id LIMIT $2),
             judged AS (SELECT *, ({condition}) IS TRUE AS is_wanted FROM page)
         SELECT *, {POSITION} FROM judged
         WHERE is_wanted OR id = (SELECT id FROM page ORDER BY id DESC LIMIT 1)
         ORDER BY id"
    )
}

/// A statement that deletes what of a page fulfils the condition and nobody is at.
pub(super) fn sweep_of(table: &str, condition: &str) -> String {
    format!(
        "WITH page AS (SELECT id FROM {table} WHERE id > $1 ORDER BY id LIMIT $2),
             done AS (SELECT id FROM {table} WHERE id IN (SELECT id FROM page) AND {condition}
                 FOR UPDATE SKIP LOCKED),
             gone AS (DELETE FROM {table} WHERE id IN (SELECT id FROM done) RETURNING id)
         SELECT (SELECT count(*) FROM gone) AS deleted, {POSITION}"
    )
}

/// Where a page ended, and whether it was full.
pub(super) const POSITION: &str = "(SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last,
             (SELECT count(*) FROM page) AS looked_at";
