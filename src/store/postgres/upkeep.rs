//! The statements that no request waits for: pages of the primary key.
//!
//! There is no index on what makes a row expire: rotation would have to keep it
//! up. Reading everything, page by page, is cheaper, and no page takes long.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tokio_postgres::types::Type;

use super::PostgresStore;
use super::connection::Connections;
use super::orphans;
use super::page::POSITION;
use super::page::page;
use super::page::page_of;
use super::page::rows_of;
use super::page::sweep_of;
use super::page::swept;
use super::rows;
use super::rows::Uuid;
use super::rows::get;
use super::rows::to_bigint;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::CredentialFilter;
use crate::store::Deadlines;
use crate::store::Grant;
use crate::store::GrantFilter;
use crate::store::KeyUsage;
use crate::store::Outlived;
use crate::store::Page;
use crate::store::StoreError;
use crate::store::Swept;
use crate::store::Upkeep;

impl PostgresStore {
    /// The deadlines that are kept ([`Upkeep::raise_deadlines`]); `None` if no
    /// gateway has told any yet. Changes nothing.
    ///
    /// # Errors
    ///
    /// If the store cannot be reached.
    pub async fn deadlines(&self) -> Result<Option<Deadlines>, StoreError> {
        let kept = self.connections.row(
            "SELECT refresh_idle, refresh_absolute, direct, code
             FROM deadlines WHERE id = 'deployment'",
            &[],
        );
        kept.await?.as_ref().map(deadlines).transpose()
    }
}

impl Upkeep for PostgresStore {
    fn grants(
        &self,
        filter: GrantFilter,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Page<Grant, GrantId>, StoreError>> {
        grants(&self.connections, filter, after, limit).boxed()
    }

    fn credentials(
        &self,
        filter: CredentialFilter,
        after: Option<CredentialId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Page<Credential, CredentialId>, StoreError>> {
        credentials(&self.connections, filter, after, limit).boxed()
    }

    fn key_usage(&self) -> BoxFuture<'_, Result<Vec<KeyUsage>, StoreError>> {
        key_usage(&self.connections).boxed()
    }

    fn reseal(
        &self,
        id: CredentialId,
        generation: u64,
        before: Vec<u8>,
        after: Vec<u8>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        reseal(&self.connections, id, generation, before, after).boxed()
    }

    fn retire_key<'a>(
        &'a self,
        id: &'a str,
        at: SystemTime,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        retire_key(&self.connections, id, at).boxed()
    }

    fn raise_deadlines(
        &self,
        deadlines: Deadlines,
    ) -> BoxFuture<'_, Result<Deadlines, StoreError>> {
        raise_deadlines(&self.connections, deadlines).boxed()
    }

    fn sweep_grants(
        &self,
        outlived: Outlived,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Swept<GrantId>, StoreError>> {
        sweep_grants(&self.connections, outlived, after, limit).boxed()
    }

    fn sweep_codes(
        &self,
        expired_before: SystemTime,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Swept<GrantId>, StoreError>> {
        sweep_codes(&self.connections, expired_before, after, limit).boxed()
    }

    fn referred_to(
        &self,
        ids: Vec<CredentialId>,
    ) -> BoxFuture<'_, Result<Vec<CredentialId>, StoreError>> {
        orphans::referred_to(&self.connections, ids).boxed()
    }

    fn delete_credentials(&self, ended: Vec<Claim>) -> BoxFuture<'_, Result<u64, StoreError>> {
        orphans::delete_credentials(&self.connections, ended).boxed()
    }
}

async fn grants(
    connections: &Connections,
    filter: GrantFilter,
    after: Option<GrantId>,
    limit: u32,
) -> Result<Page<Grant, GrantId>, StoreError> {
    let sql = page_of(
        "grants",
        "($3 IS NULL OR subject = $3) AND ($4 IS NULL OR client_id = $4)
             AND ($5 IS NULL OR provider = $5 OR $5 = ANY (further_providers))",
    );
    let after = after.map(|id| *id.as_bytes());
    let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
        (&filter.subject, Type::TEXT),
        (&filter.client_id, Type::TEXT),
        (&filter.provider, Type::TEXT),
    ];
    let found = page(connections, &sql, after, limit, &parameters).await?;
    Ok(Page {
        rows: rows_of(&found, rows::grant)?,
        next: found.next.map(GrantId::from_bytes),
    })
}

async fn credentials(
    connections: &Connections,
    filter: CredentialFilter,
    after: Option<CredentialId>,
    limit: u32,
) -> Result<Page<Credential, CredentialId>, StoreError> {
    let sql = page_of(
        "credentials",
        &format!(
            "($3 IS NULL OR subject = $3) AND ($4 IS NULL OR provider = $4)
             AND ($5 IS NULL OR refreshed_at < $5) AND ($6 IS NULL OR {KEY_ID} <> $6)"
        ),
    );
    let after = after.map(|id| *id.as_bytes());
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&filter.subject, Type::TEXT),
        (&filter.provider, Type::TEXT),
        (&filter.refreshed_before, Type::TIMESTAMPTZ),
        (&filter.not_sealed_under, Type::TEXT),
    ];
    let found = page(connections, &sql, after, limit, &parameters).await?;
    Ok(Page {
        rows: rows_of(&found, rows::credential)?,
        next: found.next.map(CredentialId::from_bytes),
    })
}

async fn key_usage(connections: &Connections) -> Result<Vec<KeyUsage>, StoreError> {
    let sealed = format!(
        "WITH page AS (SELECT id, sealed FROM credentials WHERE id > $1 ORDER BY id LIMIT $2)
         SELECT {KEY_ID} AS key_id, count(*) AS used, NULL::timestamptz AS access_until, {POSITION}
         FROM page GROUP BY 1"
    );
    let issued = format!(
        "WITH page AS (SELECT id, key_id, revoked_at, access_expires_at
             FROM grants WHERE id > $1 ORDER BY id LIMIT $2)
         SELECT key_id, count(*) FILTER (WHERE revoked_at IS NULL) AS used,
             max(access_expires_at) FILTER (WHERE revoked_at IS NULL) AS access_until, {POSITION}
         FROM page GROUP BY 1"
    );
    let mut usage: BTreeMap<String, KeyUsage> = BTreeMap::new();
    for (sql, is_sealed) in [(sealed, true), (issued, false)] {
        let mut after = None;
        loop {
            let found = page(connections, &sql, after, LONG_PAGE, &[]).await?;
            for row in &found.rows {
                let id: String = get(row, "key_id")?;
                let used = u64::try_from(get::<i64>(row, "used")?).unwrap_or_default();
                if used == 0 {
                    continue;
                }
                let known = usage.entry(id.clone()).or_insert_with(|| KeyUsage {
                    id,
                    credentials: 0,
                    grants: 0,
                    access_until: None,
                });
                if is_sealed {
                    known.credentials += used;
                } else {
                    known.grants += used;
                    known.access_until = known.access_until.max(get(row, "access_until")?);
                }
            }
            after = found.next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(usage.into_values().collect())
}

async fn reseal(
    connections: &Connections,
    id: CredentialId,
    generation: u64,
    before: Vec<u8>,
    after: Vec<u8>,
) -> Result<bool, StoreError> {
    let resealed = connections
        .row(
            "UPDATE credentials SET sealed = $4
             WHERE id = $1 AND generation = $2 AND sealed = $3
             RETURNING id",
            &[
                (&Uuid(*id.as_bytes()), Type::UUID),
                (&to_bigint(generation)?, Type::INT8),
                (&before, Type::BYTEA),
                (&after, Type::BYTEA),
            ],
        )
        .await?;
    Ok(resealed.is_some())
}

async fn retire_key(connections: &Connections, id: &str, at: SystemTime) -> Result<(), StoreError> {
    connections
        .row(
            "UPDATE sealing_keys SET retired_at = $2 WHERE id = $1 AND retired_at IS NULL",
            &[(&id, Type::TEXT), (&at, Type::TIMESTAMPTZ)],
        )
        .await
        .map(drop)
}

async fn raise_deadlines(
    connections: &Connections,
    deadlines: Deadlines,
) -> Result<Deadlines, StoreError> {
    let seconds = |time: Duration| to_bigint(time.as_secs());
    let kept = connections
        .row(
            "INSERT INTO deadlines (id, refresh_idle, refresh_absolute, direct, code)
             VALUES ('deployment', $1, $2, $3, $4)
             ON CONFLICT (id) DO UPDATE
             SET refresh_idle = GREATEST(deadlines.refresh_idle, EXCLUDED.refresh_idle),
                 refresh_absolute = GREATEST(deadlines.refresh_absolute,
                     EXCLUDED.refresh_absolute),
                 direct = GREATEST(deadlines.direct, EXCLUDED.direct),
                 code = GREATEST(deadlines.code, EXCLUDED.code)
             RETURNING refresh_idle, refresh_absolute, direct, code",
            &[
                (&seconds(deadlines.refresh_idle)?, Type::INT8),
                (&seconds(deadlines.refresh_absolute)?, Type::INT8),
                (&seconds(deadlines.direct)?, Type::INT8),
                (&seconds(deadlines.code)?, Type::INT8),
            ],
        )
        .await?
        .ok_or_else(|| rows::corrupt("a row that was just written is not there"))?;
    self::deadlines(&kept)
}

fn deadlines(kept: &Row) -> Result<Deadlines, StoreError> {
    let time = |column| {
        let seconds: i64 = get(kept, column)?;
        let seconds = u64::try_from(seconds).map_err(rows::corrupt)?;
        Ok::<_, StoreError>(Duration::from_secs(seconds))
    };
    Ok(Deadlines {
        refresh_idle: time("refresh_idle")?,
        refresh_absolute: time("refresh_absolute")?,
        direct: time("direct")?,
        code: time("code")?,
    })
}

async fn sweep_grants(
    connections: &Connections,
    outlived: Outlived,
    after: Option<GrantId>,
    limit: u32,
) -> Result<Swept<GrantId>, StoreError> {
    // The condition is with the lock, so that it holds for what is locked: a
    // grant that was used since the page was read stays.
    let sql = sweep_of(
        "grants",
        "access_expires_at < $3 AND (last_used_at < $4 OR created_at < $5) AND created_at < $6
             AND (direct_used_at IS NULL OR direct_used_at < $7) AND upstream_due IS NULL",
    );
    let after = after.map(|id| *id.as_bytes());
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&outlived.access, Type::TIMESTAMPTZ),
        (&outlived.idle, Type::TIMESTAMPTZ),
        (&outlived.absolute, Type::TIMESTAMPTZ),
        (&outlived.code, Type::TIMESTAMPTZ),
        (&outlived.direct, Type::TIMESTAMPTZ),
    ];
    swept(&page(connections, &sql, after, limit, &parameters).await?)
}

async fn sweep_codes(
    connections: &Connections,
    expired_before: SystemTime,
    after: Option<GrantId>,
    limit: u32,
) -> Result<Swept<GrantId>, StoreError> {
    let sql = sweep_of("codes", "expires_at < $3");
    let after = after.map(|id| *id.as_bytes());
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&expired_before, Type::TIMESTAMPTZ)];
    swept(&page(connections, &sql, after, limit, &parameters).await?)
}

/// The key that a row was sealed under, as in `seal::key_id`; never fails.
const KEY_ID: &str = r"CASE WHEN substring(sealed FROM 1 FOR 1) = '\x01'::bytea
             THEN encode(substring(sealed FROM 3
                 FOR get_byte(sealed || '\x0000'::bytea, 1)), 'escape')
             ELSE '' END";
const LONG_PAGE: u32 = 20_000;
