//! One statement, within the budget, on a connection that works.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use deadpool_postgres::Manager;
use deadpool_postgres::ManagerConfig;
use deadpool_postgres::Object;
use deadpool_postgres::Pool;
use deadpool_postgres::RecyclingMethod;
use deadpool_postgres::Runtime;
use tokio::time::Instant;
use tokio_postgres::Config;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::types::Type;

use super::connection_string::refuse;
use super::hosts::Hosts;
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
        let hosts = Hosts::parse(url)?;
        let limit = hosts.limit();
        let manager = Manager::from_connect(
            Config::new(),
            hosts,
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
            // Each host has a limit of its own, which says more when it is over.
            .create_timeout(Some(limit + ATTEMPT))
            .recycle_timeout(Some(ATTEMPT))
            .build()
            .map_err(|error| refuse("cannot be used").caused_by(error))?;
        Ok(Self::new(pool))
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

    pub(super) async fn migrate(&self) -> Result<(), MigrateError> {
        let mut attempt = 1;
        loop {
            let connection = self
                .pool
                .get()
                .await
                .map_err(|error| MigrateError(error.into()))?;
            // Not given back to the pool: a migration may leave a connection in
            // any state.
            let mut connection = Object::take(connection);
            let error = match migrations::migrations::runner()
                .run_async(&mut *connection)
                .await
            {
                Ok(_report) => return Ok(()),
                Err(error) => MigrateError(error.into()),
            };
            // Each migration is one transaction. When replicas start at once
            // one of them wins, and the others collide with what it made; on
            // the next look it is simply there. No lock is needed, so none can
            // leak through a pooler.
            if attempt == MIGRATE_ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(
                error = &error as &dyn Error,
                "migration failed, looking again"
            );
            tokio::time::sleep(FIRST_PAUSE * attempt).await;
            attempt += 1;
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

/// The schema could not be brought to this version.
#[derive(Debug)]
pub struct MigrateError(BoxError);

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the database could not be migrated")
    }
}

impl Error for MigrateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
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

mod migrations {
    refinery::embed_migrations!("migrations");
}

const DEFAULT_BUDGET: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const POOL_SIZE: usize = 16;
const MIGRATE_ATTEMPTS: u32 = 5;
