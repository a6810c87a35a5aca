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
//!    next query on it would wait for the one before. After a time-out, or when
//!    a host turns out to be a standby, so are all that were made to it before,
//!    and the next host is tried first.
//! 5. Reads of one row share two connections, on which many are under way at
//!    once. All else has a connection of its own, of at most sixteen.
//!
//! Deployment: run PostgreSQL with synchronous replication if it fails over.
//! With asynchronous replication an acknowledged rotation can be lost.
//!
//! # Connection strings
//!
//! [`PostgresStore::connect`] takes what libpq takes, as a URL or as `key=value`
//! pairs (PostgreSQL's manual, section 34.1.1), with these differences:
//!
//! - **Several hosts** (`postgres://user@a,b:5433/db`): the one that worked last
//!   is tried first, and each has a time of its own for the whole handshake:
//!   `connect_timeout`, or else one second (three, if there is only one host).
//!   Unless `target_session_attrs` says otherwise, only a host that takes writes
//!   is used.
//! - **`sslmode`**: `verify-full` checks the server's certificate and its name;
//!   `require` and `verify-ca` mean the same here. `disable` is no TLS. `prefer`
//!   and `allow` are refused: they send everything in clear when anybody in
//!   between says that the server has no TLS. Without `sslmode`, hosts that are
//!   this machine (`localhost`, `127.0.0.0/8`, `::1`) go without TLS and all
//!   others are `verify-full`. A Unix socket never has TLS.
//! - **`sslrootcert`**: a PEM file of the only CAs to trust; `system`, or none,
//!   are those of this machine. `sslcert` and `sslkey`: a client certificate,
//!   PEM. Each of them implies `verify-full`.

mod clients;
mod connection;
mod connection_string;
mod credentials;
mod failure;
mod grants;
mod host;
mod hosts;
mod listen;
mod migrate;
mod notify;
mod orphans;
mod page;
mod readers;
mod revocations;
mod rows;
mod tls;
mod trust;
mod upkeep;

use std::time::Duration;
use std::time::SystemTime;

use deadpool_postgres::Pool;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use futures_util::stream::BoxStream;
use futures_util::stream::StreamExt as _;

use self::connection::Connections;
use self::hosts::Hosts;
use self::listen::Listener;
pub use self::migrate::MigrateError;
pub use self::migrate::MigrateErrorKind;
use super::Change;
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
use super::StoreErrorKind;
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
    /// Where ends elsewhere are heard of, if anywhere.
    listens_at: Option<Hosts>,
}

impl PostgresStore {
    /// A store at this [connection string](self#connection-strings), with a pool
    /// of its own. Connects to nothing yet, but reads the certificates that the
    /// string names.
    ///
    /// # Errors
    ///
    /// If the string cannot be read, asks for what would weaken the connection
    /// unnoticed, needs TLS without the feature `rustls`, or names certificates
    /// that cannot be used. The error does not repeat the string.
    pub fn connect(url: &str) -> Result<Self, ConfigError> {
        let connections = Connections::connect(url)?;
        Ok(Self {
            // What is known of the hosts is known to the listener too.
            listens_at: connections.hosts(),
            connections,
        })
    }

    /// A store on a pool of the caller's, and two connections besides that are
    /// made by it but do not count towards its size. Every call ends within the
    /// [`budget`](Self::budget), whatever time-outs the pool has.
    ///
    /// Hosts, TLS and handshakes are the pool's affair: one that was made with
    /// several hosts does not get past the first if that accepts connections and
    /// says nothing. [`connect`](Self::connect) does.
    pub fn new(pool: Pool) -> Self {
        Self {
            connections: Connections::new(pool),
            listens_at: None,
        }
    }

    /// Hears at once of what ends on other replicas, on one connection of its own
    /// to this address, which must lead to the database without a pooler;
    /// [`migrate`](Self::migrate) uses it as well. The default is what
    /// [`connect`](Self::connect) was given, and none with [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If the string cannot be read; the error does not repeat it.
    pub fn listen_at(mut self, url: &str) -> Result<Self, ConfigError> {
        self.listens_at = Some(Hosts::parse(url)?);
        Ok(self)
    }

    /// Whether the database that it [listens at](Self::listen_at) can be connected
    /// to, and takes `LISTEN`; nothing if it does not listen. A pooler takes it and
    /// delivers nothing: whether anything is heard, [`Regrant::health`] says.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use regrant::store::postgres::PostgresStore;
    ///
    /// let store = PostgresStore::connect("postgres://regrant@pooler.internal/regrant")?
    ///     .listen_at("postgres://regrant@db.internal/regrant")?;
    /// store.try_listening().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Unavailable`], with the
    /// host and what it said; no password.
    ///
    /// [`Regrant::health`]: crate::Regrant::health
    pub async fn try_listening(&self) -> Result<(), StoreError> {
        let Some(hosts) = &self.listens_at else {
            return Ok(());
        };
        let listening = listen::connect(hosts).await;
        listening
            .map(drop)
            .map_err(|error| StoreError::new(StoreErrorKind::Unavailable, error))
    }

    /// Does not listen: what ends on other replicas is noticed within the
    /// staleness bound.
    #[must_use]
    pub fn without_listener(mut self) -> Self {
        self.listens_at = None;
        self
    }

    /// How long one call may take, retries included. The default is 10 s.
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Self {
        self.connections.budget = budget;
        self
    }

    /// Lets each connection prepare a statement once and then send only its name,
    /// which saves the server parsing and planning it. The default is not to.
    ///
    /// Only for a *direct* connection, or a pooler that is known to support named
    /// statements (pgbouncer from 1.21 on, with `max_prepared_statements`). Through
    /// one that does not, a name may stand for what another process prepared:
    /// with pgbouncer 1.18 rows of other statements came back, and a wrong row
    /// here is another user's credential.
    ///
    /// The server is then also told to end a statement after three seconds, as a
    /// start-up option, which poolers refuse. Otherwise a statement that was given
    /// up loses its connection, and the server ends it when it notices.
    ///
    /// ```
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use regrant::store::postgres::PostgresStore;
    ///
    /// let url = "postgres://regrant@db-a.internal,db-b.internal/regrant?sslmode=disable";
    /// let store = PostgresStore::connect(url)?.prepared_statements();
    /// # drop(store);
    /// # Ok(()) }
    /// # example().unwrap();
    /// ```
    #[must_use]
    pub fn prepared_statements(mut self) -> Self {
        self.connections = self.connections.prepared();
        self
    }
}

impl Store for PostgresStore {
    fn is_durable(&self) -> bool {
        true
    }

    fn upkeep(&self) -> &dyn Upkeep {
        self
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            grants::has_newest_column(&self.connections).await?;
            self.keys().await.map(drop)
        }
        .boxed()
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        let Some(hosts) = self.listens_at.clone() else {
            return stream::pending().boxed();
        };
        let listener = Listener {
            hosts,
            connections: self.connections.clone(),
        };
        listener.changes()
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
