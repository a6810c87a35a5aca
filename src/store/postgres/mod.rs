//! The durable store, on PostgreSQL through deadpool-postgres.
//!
//! 1. Every call is one statement on one primary key, sent unnamed and typed:
//!    one round trip, and safe behind a pooler in transaction mode, where named
//!    statements may run another process's SQL.
//! 2. Leases run by the database's time.
//! 3. A call takes at most the store's budget. Within it, lost connections and
//!    serialization failures are tried again: rotation is idempotent and leases
//!    are fenced, so a statement that ran unnoticed does no harm.
//! 4. After a time-out or a connection error the connection is thrown away: the
//!    next query on it would wait for the one before.
//!
//! Deployment: run PostgreSQL with synchronous replication if it fails over.
//! With asynchronous replication an acknowledged rotation can be lost.

mod connection;
mod rows;

use std::time::Duration;
use std::time::SystemTime;

use deadpool_postgres::Pool;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_postgres::types::Type;

use self::connection::Connections;
pub use self::connection::MigrateError;
use self::rows::Settled;
use self::rows::Uuid;
use self::rows::to_bigint;
use self::rows::to_integer;
use super::Claim;
use super::Credential;
use super::Grant;
use super::KeyRecord;
use super::LeaseHolder;
use super::Replacement;
use super::RevocationReason;
use super::Rotation;
use super::Settlement;
use super::Store;
use super::StoreError;
use crate::error::ConfigError;
use crate::id::CredentialId;
use crate::id::GrantId;

/// Keeps grants and credentials in PostgreSQL, shared by any number of
/// replicas. Cheap to clone.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use regrant::store::postgres::PostgresStore;
///
/// let store = PostgresStore::connect("postgres://regrant@db.internal/regrant")?;
/// store.migrate().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct PostgresStore {
    connections: Connections,
}

impl PostgresStore {
    /// A store at this connection string (URL or key-value form), with a pool
    /// of its own and without TLS. Does no I/O.
    ///
    /// For TLS, make the pool yourself and use [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If the string cannot be read; the error does not repeat it.
    pub fn connect(url: &str) -> Result<Self, ConfigError> {
        Connections::connect(url).map(|connections| Self { connections })
    }

    /// A store on a pool of the caller's. Give the pool time-outs: without them
    /// an exhausted one waits for ever.
    pub fn new(pool: Pool) -> Self {
        Self {
            connections: Connections::new(pool),
        }
    }

    /// How long one call may take, retries included. The default is 10 s.
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Self {
        self.connections.budget = budget;
        self
    }

    /// Brings the schema to this version. Safe to run by several replicas at
    /// once, and again. Needs a direct connection: not one through a pooler in
    /// transaction mode.
    ///
    /// # Errors
    ///
    /// If the database cannot be reached, or holds migrations that this version
    /// does not know or that were changed since.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        self.connections.migrate().await
    }
}

impl Store for PostgresStore {
    fn is_durable(&self) -> bool {
        true
    }

    fn register_key(&self, key: KeyRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let check_value = key.check_value.as_slice();
            self.connections
                .row(
                    "INSERT INTO sealing_keys (id, check_value) VALUES ($1, $2)
                     ON CONFLICT (id) DO NOTHING",
                    &[(&key.id, Type::TEXT), (&check_value, Type::BYTEA)],
                )
                .await
                .map(drop)
        }
        .boxed()
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>, StoreError>> {
        async move {
            self.connections
                .rows("SELECT id, check_value FROM sealing_keys", &[])
                .await?
                .iter()
                .map(rows::key)
                .collect()
        }
        .boxed()
    }

    fn insert_credential(&self, credential: Credential) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.connections
                .insert(
                    "INSERT INTO credentials (id, provider, subject, generation, sealed,
                         expires_at, refreshed_at, not_before, forced_at, fence, unsettled, failures,
                         terminal)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
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
                    ],
                )
                .await
        }
        .boxed()
    }

    fn credential(
        &self,
        id: CredentialId,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        async move {
            self.connections
                .row(
                    "SELECT * FROM credentials WHERE id = $1",
                    &[(&Uuid(*id.as_bytes()), Type::UUID)],
                )
                .await?
                .as_ref()
                .map(rows::credential)
                .transpose()
        }
        .boxed()
    }

    fn claim(
        &self,
        id: CredentialId,
        generation: u64,
        holder: LeaseHolder,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        async move {
            self.connections
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
                .transpose()
        }
        .boxed()
    }

    fn settle(&self, claim: Claim, outcome: Settlement) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let row = Settled::of(claim, outcome);
            let settled = self
                .connections
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
            Ok(settled.is_some())
        }
        .boxed()
    }

    fn replace(
        &self,
        id: CredentialId,
        generation: u64,
        tokens: Replacement,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let replaced = self
                .connections
                .row(
                    "UPDATE credentials
                     SET generation = generation + 1, fence = fence + 1, sealed = $3,
                         expires_at = $4, refreshed_at = $5, not_before = NULL,
                         forced_at = NULL, terminal = NULL, lease_until = NULL,
                         unsettled = 0, failures = 0
                     WHERE id = $1 AND generation = $2
                     RETURNING id",
                    &[
                        (&Uuid(*id.as_bytes()), Type::UUID),
                        (&to_bigint(generation)?, Type::INT8),
                        (&tokens.sealed, Type::BYTEA),
                        (&tokens.expires_at, Type::TIMESTAMPTZ),
                        (&tokens.refreshed_at, Type::TIMESTAMPTZ),
                    ],
                )
                .await?;
            Ok(replaced.is_some())
        }
        .boxed()
    }

    fn insert_grant(&self, grant: Grant) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let (revoked_at, reason) = grant
                .revoked
                .map(|(at, reason)| (at, reason.as_str()))
                .unzip();
            self.connections
                .insert(
                    "INSERT INTO grants (id, credential_id, provider, subject, client_id, scope,
                         resource, salt, key_id, generation, refresh_hash, previous_hash,
                         rotated_at, access_expires_at, replays, acknowledged, created_at,
                         last_used_at, revoked_access, revoked_at, revoked_reason)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
                         $16, $17, $18, $19, $20, $21)
                     ON CONFLICT (id) DO NOTHING RETURNING id",
                    &[
                        (&Uuid(*grant.id.as_bytes()), Type::UUID),
                        (&Uuid(*grant.credential_id.as_bytes()), Type::UUID),
                        (&grant.provider, Type::TEXT),
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
                    ],
                )
                .await
        }
        .boxed()
    }

    fn grant(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        async move {
            self.connections
                .row(
                    "SELECT * FROM grants WHERE id = $1",
                    &[(&Uuid(*id.as_bytes()), Type::UUID)],
                )
                .await?
                .as_ref()
                .map(rows::grant)
                .transpose()
        }
        .boxed()
    }

    fn rotate(&self, rotation: Rotation) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let rotated = self
                .connections
                .row(
                    "UPDATE grants
                     SET generation = generation + 1, previous_hash = $3, refresh_hash = $4,
                         key_id = $5, rotated_at = $6, last_used_at = $6,
                         access_expires_at = $7, replays = 0, acknowledged = false
                     WHERE id = $1 AND generation = $2 AND refresh_hash = $3
                         AND revoked_at IS NULL
                     RETURNING id",
                    &[
                        (&Uuid(*rotation.id.as_bytes()), Type::UUID),
                        (&to_bigint(rotation.generation)?, Type::INT8),
                        (&rotation.presented_hash.as_slice(), Type::BYTEA),
                        (&rotation.refresh_hash.as_slice(), Type::BYTEA),
                        (&rotation.key_id, Type::TEXT),
                        (&rotation.at, Type::TIMESTAMPTZ),
                        (&rotation.access_expires_at, Type::TIMESTAMPTZ),
                    ],
                )
                .await?;
            Ok(rotated.is_some())
        }
        .boxed()
    }

    fn count_replay(
        &self,
        id: GrantId,
        generation: u64,
        cap: u32,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let counted = self
                .connections
                .row(
                    "UPDATE grants SET replays = replays + 1
                     WHERE id = $1 AND generation = $2 AND replays < $3
                         AND revoked_at IS NULL
                     RETURNING id",
                    &[
                        (&Uuid(*id.as_bytes()), Type::UUID),
                        (&to_bigint(generation)?, Type::INT8),
                        (&to_integer(cap), Type::INT4),
                    ],
                )
                .await?;
            Ok(counted.is_some())
        }
        .boxed()
    }

    fn acknowledge(&self, id: GrantId, generation: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.connections
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
        .boxed()
    }

    fn revoke_grant(
        &self,
        id: GrantId,
        at: SystemTime,
        reason: RevocationReason,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let revoked = self
                .connections
                .row(
                    "UPDATE grants SET revoked_at = $2, revoked_reason = $3
                     WHERE id = $1 AND revoked_at IS NULL
                     RETURNING id",
                    &[
                        (&Uuid(*id.as_bytes()), Type::UUID),
                        (&at, Type::TIMESTAMPTZ),
                        (&reason.as_str(), Type::TEXT),
                    ],
                )
                .await?;
            Ok(revoked.is_some())
        }
        .boxed()
    }

    fn revoke_access(
        &self,
        id: GrantId,
        entry: [u8; 24],
        expired_below: [u8; 24],
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.connections
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
                .await
                .map(drop)
        }
        .boxed()
    }
}
