//! One statement, within the budget, on a connection that works.

use std::error::Error;
use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use deadpool_postgres::Manager;
use deadpool_postgres::ManagerConfig;
use deadpool_postgres::Object;
use deadpool_postgres::Pool;
use deadpool_postgres::RecyclingMethod;
use deadpool_postgres::Runtime;
use tokio::time::Instant;
use tokio_postgres::Config;
use tokio_postgres::NoTls;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::types::Type;

use crate::BoxError;
use crate::error::ConfigError;
use crate::store::StoreError;
use crate::store::StoreErrorKind;

#[derive(Clone)]
pub(super) struct Connections {
    pool: Pool,
    pub(super) budget: Duration,
}

impl Connections {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            pool,
            budget: DEFAULT_BUDGET,
        }
    }

    pub(super) fn connect(url: &str) -> Result<Self, ConfigError> {
        let refuse = |reason| ConfigError::new("the connection string", reason);
        let mut config =
            Config::from_str(url).map_err(|error| refuse("cannot be read").caused_by(error))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(refuse("names no host"));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(ATTEMPT);
        }
        let manager = Manager::from_config(
            config,
            NoTls,
            ManagerConfig {
                // No query of its own on check-out: a connection that has died
                // is noticed by the statement, which is then tried again.
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let pool = Pool::builder(manager)
            .max_size(POOL_SIZE)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(DEFAULT_BUDGET))
            // The whole handshake, not only the TCP connect.
            .create_timeout(Some(ATTEMPT))
            .recycle_timeout(Some(ATTEMPT))
            .build()
            .map_err(|error| refuse("cannot be used").caused_by(error))?;
        Ok(Self::new(pool))
    }

    pub(super) async fn for_migrations(&self) -> Result<ClientWrapper, BoxError> {
        let connection = self.pool.get().await?;
        // Not given back to the pool: a migration may leave a connection in any
        // state.
        Ok(Object::take(connection))
    }

    /// The first row of a statement that returns at most one.
    pub(super) async fn row(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, parameters).await?.into_iter().next())
    }

    /// Runs an `INSERT … ON CONFLICT DO NOTHING RETURNING …` of a random id.
    pub(super) async fn insert(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(), StoreError> {
        let (rows, attempts) = self.attempts(sql, parameters).await?;
        // An id that is taken on a second attempt was taken by the first one,
        // whose answer got lost.
        if rows.is_empty() && attempts == 1 {
            return Err(StoreErrorKind::Conflict.into());
        }
        Ok(())
    }

    pub(super) async fn rows(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, StoreError> {
        self.attempts(sql, parameters).await.map(|(rows, _)| rows)
    }

    /// The rows, and how many attempts they took.
    async fn attempts(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(Vec<Row>, u32), StoreError> {
        let deadline = Instant::now() + self.budget;
        let mut pause = FIRST_PAUSE;
        let mut attempts = 1;
        loop {
            let error = match self.attempt(deadline, sql, parameters).await {
                Ok(rows) => return Ok((rows, attempts)),
                Err(error) => error,
            };
            if error.kind() != StoreErrorKind::Unavailable || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(
                error = &error as &dyn Error,
                "the store failed, trying again"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempts += 1;
        }
    }

    async fn attempt(
        &self,
        deadline: Instant,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, StoreError> {
        let unavailable = |source: BoxError| StoreError::new(StoreErrorKind::Unavailable, source);
        let connection = tokio::time::timeout_at(deadline, self.pool.get())
            .await
            .map_err(|elapsed| unavailable(elapsed.into()))?
            .map_err(|error| unavailable(error.into()))?;
        // Cancellation: a caller that gives up drops the query with the
        // connection checked out; the guard keeps it from being used again
        // while the server still works on it.
        let mut guard = DiscardUnlessDone(Some(connection));
        let Some(connection) = guard.0.as_ref() else {
            return Err(StoreErrorKind::Unavailable.into());
        };

        let query = connection.query_typed(sql, parameters);
        let limit = deadline.min(Instant::now() + ATTEMPT);
        match tokio::time::timeout_at(limit, query).await {
            Ok(Ok(rows)) => {
                guard.done();
                Ok(rows)
            }
            Ok(Err(error)) => {
                let error = classify(error);
                if error.kind() != StoreErrorKind::Unavailable {
                    guard.done();
                }
                Err(error)
            }
            Err(elapsed) => Err(unavailable(elapsed.into())),
        }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The pool's own Debug shows the connection settings.
        f.debug_struct("Connections")
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

struct DiscardUnlessDone(Option<Object>);

impl DiscardUnlessDone {
    fn done(&mut self) {
        drop(self.0.take());
    }
}

impl Drop for DiscardUnlessDone {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(Object::take(connection));
        }
    }
}

fn classify(error: tokio_postgres::Error) -> StoreError {
    let kind = match error.code() {
        // No answer of the server's: the connection broke.
        None => StoreErrorKind::Unavailable,
        Some(&SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_COLUMN) => StoreErrorKind::Schema,
        Some(state) if is_passing(state) => StoreErrorKind::Unavailable,
        Some(_) => StoreErrorKind::Corrupt,
    };
    StoreError::new(kind, error)
}

/// Whether the same statement may succeed in a moment.
fn is_passing(state: &SqlState) -> bool {
    let is_one_of = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        // A standby that has not been promoted yet.
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::QUERY_CANCELED,
    ]
    .contains(state);
    // Connection exceptions, insufficient resources, operator intervention.
    is_one_of
        || ["08", "53", "57P"]
            .iter()
            .any(|class| state.code().starts_with(class))
}

const DEFAULT_BUDGET: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const POOL_SIZE: usize = 16;
