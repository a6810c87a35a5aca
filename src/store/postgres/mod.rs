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

mod clients;
mod connection;
mod credentials;
mod grants;
mod orphans;
mod revocations;
mod rows;
mod upkeep;

use std::time::Duration;
use std::time::SystemTime;

use deadpool_postgres::Pool;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use self::connection::Connections;
pub use self::connection::MigrateError;
use super::Claim;
use super::ClientRecord;
use super::Code;
use super::Credential;
use super::Grant;
use super::HeldCredential;
use super::KeyRecord;
use super::LeaseHolder;
use super::Replacement;
use super::RevocationReason;
use super::Rotation;
use super::Settlement;
use super::Store;
use super::StoreError;
use super::Upkeep;
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

    fn upkeep(&self) -> &dyn Upkeep {
        self
    }

    fn register_key(&self, key: KeyRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        credentials::register_key(&self.connections, key).boxed()
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>, StoreError>> {
        credentials::keys(&self.connections).boxed()
    }

    fn insert_credential(&self, credential: Credential) -> BoxFuture<'_, Result<(), StoreError>> {
        credentials::insert_credential(&self.connections, credential).boxed()
    }

    fn credential(
        &self,
        id: CredentialId,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        credentials::credential(&self.connections, id).boxed()
    }

    fn claim(
        &self,
        id: CredentialId,
        generation: u64,
        holder: LeaseHolder,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        credentials::claim(&self.connections, id, generation, holder, lease).boxed()
    }

    fn settle(&self, claim: Claim, outcome: Settlement) -> BoxFuture<'_, Result<bool, StoreError>> {
        credentials::settle(&self.connections, claim, outcome).boxed()
    }

    fn replace(
        &self,
        id: CredentialId,
        generation: u64,
        tokens: Replacement,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        credentials::replace(&self.connections, id, generation, tokens).boxed()
    }

    fn insert_grant(&self, grant: Grant) -> BoxFuture<'_, Result<(), StoreError>> {
        grants::insert_grant(&self.connections, grant).boxed()
    }

    fn grant(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        grants::grant(&self.connections, id).boxed()
    }

    fn rotate(&self, rotation: Rotation) -> BoxFuture<'_, Result<bool, StoreError>> {
        grants::rotate(&self.connections, rotation).boxed()
    }

    fn count_replay(
        &self,
        id: GrantId,
        generation: u64,
        cap: u32,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        grants::count_replay(&self.connections, id, generation, cap, at).boxed()
    }

    fn acknowledge(&self, id: GrantId, generation: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        grants::acknowledge(&self.connections, id, generation).boxed()
    }

    fn attach(
        &self,
        id: GrantId,
        credential: HeldCredential,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        grants::attach(&self.connections, id, credential).boxed()
    }

    fn revoke_grant(
        &self,
        id: GrantId,
        at: SystemTime,
        reason: RevocationReason,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        grants::revoke_grant(&self.connections, id, at, reason).boxed()
    }

    fn slide(&self, id: GrantId, at: SystemTime) -> BoxFuture<'_, Result<bool, StoreError>> {
        grants::slide(&self.connections, id, at).boxed()
    }

    fn expire_grant(
        &self,
        id: GrantId,
        redeemed_at: SystemTime,
        last_used_at: SystemTime,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        grants::expire_grant(&self.connections, id, redeemed_at, last_used_at, at).boxed()
    }

    fn revoke_access(
        &self,
        id: GrantId,
        entry: [u8; 24],
        expired_below: [u8; 24],
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        grants::revoke_access(&self.connections, id, entry, expired_below).boxed()
    }

    fn due_revocations(
        &self,
        now: SystemTime,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<GrantId>, StoreError>> {
        revocations::due_revocations(&self.connections, now, limit).boxed()
    }

    fn take_revocation(
        &self,
        id: GrantId,
        now: SystemTime,
        next: SystemTime,
    ) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        revocations::take_revocation(&self.connections, id, now, next).boxed()
    }

    fn finish_revocation(&self, id: GrantId) -> BoxFuture<'_, Result<(), StoreError>> {
        revocations::finish_revocation(&self.connections, id).boxed()
    }

    fn is_held(
        &self,
        id: CredentialId,
        created_after: SystemTime,
        used_after: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        revocations::is_held(&self.connections, id, created_after, used_after).boxed()
    }

    fn is_awaited(
        &self,
        id: CredentialId,
        now: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        revocations::is_awaited(&self.connections, id, now).boxed()
    }

    fn insert_code(&self, code: Code) -> BoxFuture<'_, Result<(), StoreError>> {
        clients::insert_code(&self.connections, code).boxed()
    }

    fn code(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Code>, StoreError>> {
        clients::code(&self.connections, id).boxed()
    }

    fn register_client(&self, client: ClientRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        clients::register_client(&self.connections, client).boxed()
    }

    fn client<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ClientRecord>, StoreError>> {
        clients::client(&self.connections, id).boxed()
    }
}
