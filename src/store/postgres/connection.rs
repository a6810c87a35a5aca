//! One statement, within the budget, on a connection that works.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use deadpool_postgres::Manager;
use deadpool_postgres::ManagerConfig;
use deadpool_postgres::Object;
use deadpool_postgres::Pool;
use deadpool_postgres::PoolError;
use deadpool_postgres::RecyclingMethod;
use deadpool_postgres::Runtime;
use deadpool_postgres::TimeoutType;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Config;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::connection_string::refuse;
use super::failure::Connection;
use super::failure::Failure;
use super::hosts::Hosts;
use super::readers::Reader;
use super::readers::Readers;
use super::trust::Trust;
use crate::BoxError;
use crate::error::ConfigError;
use crate::jitter::Jitter;
use crate::store::StoreError;
use crate::store::StoreErrorKind;
use crate::telemetry;
use crate::telemetry::StoreTrouble;

/// The connections of one store. Cheap to clone; clones share them.
#[derive(Clone)]
pub(super) struct Connections {
    /// For writes and long reads, one at a time each.
    pool: Pool,
    readers: Arc<Readers>,
    /// `None` if the pool is the caller's.
    hosts: Option<Hosts>,
    trust: Arc<Trust>,
    jitter: Arc<Jitter>,
    is_prepared: bool,
    pub(super) budget: Duration,
}

/// A statement and its parameters with their types.
#[derive(Clone, Copy)]
struct Statement<'a> {
    sql: &'a str,
    parameters: &'a [(&'a (dyn ToSql + Sync), Type)],
}

#[derive(Clone, Copy)]
enum Way {
    /// On a connection that nobody else uses meanwhile.
    Alone,
    /// On one that others use at the same time.
    Shared,
}

impl Connections {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            pool,
            readers: Arc::new(Readers::new()),
            hosts: None,
            trust: Arc::new(Trust::new(1)),
            jitter: Arc::new(Jitter::new(None)),
            is_prepared: false,
            budget: DEFAULT_BUDGET,
        }
    }

    pub(super) fn connect(url: &str) -> Result<Self, ConfigError> {
        Self::to(Hosts::parse(url)?)
    }

    fn to(hosts: Hosts) -> Result<Self, ConfigError> {
        let manager = Manager::from_connect(
            Config::new(),
            hosts.clone(),
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
            // Each host has a limit of its own, and says more when it is over.
            .create_timeout(Some(hosts.limit().saturating_add(ATTEMPT)))
            .recycle_timeout(Some(ATTEMPT))
            .build()
            .map_err(|error| refuse("cannot be used").caused_by(error))?;
        Ok(Self {
            trust: Arc::clone(hosts.trust()),
            hosts: Some(hosts),
            ..Self::new(pool)
        })
    }

    /// The same, with statements that each connection prepares once.
    pub(super) fn prepared(self) -> Self {
        // A direct connection takes it; a pooler may refuse it.
        let options = format!("-c statement_timeout={}", ATTEMPT.as_millis());
        let limited = self
            .hosts
            .as_ref()
            .map(|hosts| hosts.with_options(&options));
        let connections = match limited.map(Self::to) {
            Some(Ok(limited)) => limited,
            Some(Err(_)) | None => self.clone(),
        };
        Self {
            is_prepared: true,
            budget: self.budget,
            ..connections
        }
    }

    /// The row of a `SELECT` by primary key, over a shared connection.
    pub(super) async fn read(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Option<Row>, StoreError> {
        let statement = Statement { sql, parameters };
        let (rows, _attempts) = self.attempts(Way::Shared, statement).await?;
        Ok(rows.into_iter().next())
    }

    pub(super) fn hosts(&self) -> Option<Hosts> {
        self.hosts.clone()
    }

    /// Tells when statements go to another host than before.
    pub(super) fn moves(&self) -> watch::Receiver<usize> {
        self.trust.moves()
    }

    pub(super) async fn for_migrations(&self) -> Result<ClientWrapper, BoxError> {
        let deadline = Instant::now() + self.budget;
        let connection = self.check_out(deadline).await;
        let connection = connection.map_err(|failure| failure.error)?;
        // Not given back to the pool: a migration may leave a connection in any
        // state.
        let connection = Object::take(connection);
        connection.batch_execute(UNLIMITED).await?;
        Ok(connection)
    }

    /// The first row of a statement that returns at most one.
    pub(super) async fn row(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, parameters).await?.into_iter().next())
    }

    /// The same, and how many attempts it took: what the last one does not find may
    /// have been done by one before, whose answer was lost.
    pub(super) async fn row_and_attempts(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(Option<Row>, u32), StoreError> {
        let statement = Statement { sql, parameters };
        let (rows, attempts) = self.attempts(Way::Alone, statement).await?;
        Ok((rows.into_iter().next(), attempts))
    }

    /// Runs an `INSERT … ON CONFLICT DO NOTHING RETURNING …` of a random id.
    pub(super) async fn insert(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(), StoreError> {
        let (row, attempts) = self.row_and_attempts(sql, parameters).await?;
        // An id that is taken on a second attempt was taken by the first one,
        // whose answer got lost.
        if row.is_none() && attempts == 1 {
            return Err(StoreErrorKind::Conflict.into());
        }
        Ok(())
    }

    pub(super) async fn rows(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, StoreError> {
        let statement = Statement { sql, parameters };
        let (rows, _attempts) = self.attempts(Way::Alone, statement).await?;
        Ok(rows)
    }

    /// The rows, and how many attempts they took.
    async fn attempts(
        &self,
        way: Way,
        statement: Statement<'_>,
    ) -> Result<(Vec<Row>, u32), StoreError> {
        let started = Instant::now();
        let deadline = started + self.budget;
        let mut pause = FIRST_PAUSE;
        let mut attempts = 1;
        let mut before = None;
        let answer = loop {
            let answer = match way {
                Way::Alone => self.exclusively(deadline, statement).await,
                Way::Shared => self.share(deadline, statement).await,
            };
            let Failure { error, trouble, .. } = match answer {
                Ok(rows) => break Ok((rows, attempts)),
                Err(failure) => failure,
            };
            telemetry::count_store_trouble(trouble);
            let wait = self.jitter.spread(pause);
            if error.kind() != StoreErrorKind::Unavailable {
                break Err(error);
            }
            let now = Instant::now();
            if now >= deadline {
                // That the time is over says less than what used it up.
                break Err(before.unwrap_or(error));
            }
            if now + wait >= deadline {
                break Err(error);
            }
            tracing::debug!(
                error = &error as &dyn Error,
                "the store failed, trying again"
            );
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempts += 1;
            before = Some(error);
        };
        telemetry::store_took(statement.sql.starts_with("SELECT"), started.elapsed());
        answer
    }

    /// One attempt on a connection that nobody else uses meanwhile.
    async fn exclusively(
        &self,
        deadline: Instant,
        statement: Statement<'_>,
    ) -> Result<Vec<Row>, Failure> {
        let answer = self.attempt_alone(deadline, statement).await;
        // With the connection given back: what is said last of a store that
        // nobody uses is that nobody uses it.
        let status = self.pool.status();
        telemetry::store_pool(
            status.available,
            status.size.saturating_sub(status.available),
            status.max_size,
            status.waiting,
        );
        answer
    }

    async fn attempt_alone(
        &self,
        deadline: Instant,
        statement: Statement<'_>,
    ) -> Result<Vec<Row>, Failure> {
        let connection = self.check_out(deadline).await?;
        let made = Object::metrics(&connection).created;
        // Cancellation: a caller that gives up drops the query with the
        // connection checked out; the guard keeps it from being used again
        // while the server still works on it.
        let mut guard = DiscardUnlessDone(Some(connection));
        let Some(connection) = guard.0.as_ref() else {
            return Err(Failure::unconnected(StoreTrouble::Broken, fmt::Error));
        };

        let (limit, is_fair) = self.limit(deadline);
        let query = self.query(connection, statement);
        let failure = match tokio::time::timeout_at(limit, query).await {
            Ok(Ok(rows)) => {
                guard.done();
                return Ok(rows);
            }
            Ok(Err(error)) => Failure::of(error, self.is_prepared),
            Err(elapsed) => Failure::timed_out(elapsed, is_fair),
        };
        match failure.connection {
            Connection::Keep => guard.done(),
            Connection::Discard => {}
            Connection::Lose => self.trust.lose(made),
        }
        Err(failure)
    }

    /// One attempt on a connection that others use at the same time.
    async fn share(
        &self,
        deadline: Instant,
        statement: Statement<'_>,
    ) -> Result<Vec<Row>, Failure> {
        let reader = self.readers.get(&self.trust, self.make_reader(deadline));
        let reader = tokio::time::timeout_at(deadline, reader)
            .await
            .map_err(|elapsed| Failure::unconnected(StoreTrouble::Connect, elapsed))??;

        let (limit, is_fair) = self.limit(deadline);
        // Cancellation: the answer to a read that nobody waits for is dropped
        // when it comes; the others are not disturbed.
        let query = self.query(&reader.client, statement);
        let query = reader.gone.run_until_cancelled(query);
        let failure = match tokio::time::timeout_at(limit, query).await {
            Ok(Some(Ok(rows))) => return Ok(rows),
            Ok(Some(Err(error))) => Failure::of(error, self.is_prepared),
            Ok(None) => return Err(Failure::unconnected(StoreTrouble::Broken, Given)),
            // What little was left of this caller's budget is no reason to
            // disturb the others.
            Err(elapsed) if !is_fair => {
                return Err(Failure::unconnected(StoreTrouble::Timeout, elapsed));
            }
            Err(elapsed) => Failure::timed_out(elapsed, true),
        };
        match failure.connection {
            Connection::Keep => {}
            Connection::Discard => self.readers.discard(&reader),
            Connection::Lose => {
                self.trust.lose(reader.made);
                self.readers.discard(&reader);
            }
        }
        Err(failure)
    }

    async fn query(
        &self,
        client: &ClientWrapper,
        statement: Statement<'_>,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let Statement { sql, parameters } = statement;
        if !self.is_prepared {
            return client.query_typed(sql, parameters).await;
        }
        let types: Vec<_> = parameters.iter().map(|(_, typed)| typed.clone()).collect();
        let values: Vec<_> = parameters.iter().map(|(value, _)| *value).collect();
        let prepared = client.prepare_typed_cached(sql, &types).await?;
        client.query(&prepared, &values).await
    }

    /// Until when an attempt may take, and whether that is time enough to tell
    /// whether the host answers.
    fn limit(&self, deadline: Instant) -> (Instant, bool) {
        let now = Instant::now();
        let limit = deadline.min(now + ATTEMPT);
        (limit, limit - now >= ATTEMPT.min(self.budget / 2))
    }

    async fn check_out(&self, deadline: Instant) -> Result<Object, Failure> {
        let usable = async {
            loop {
                let connection = self.pool.get().await?;
                if !self.trust.is_retired(Object::metrics(&connection).created) {
                    return Ok(connection);
                }
                drop(Object::take(connection));
            }
        };
        let late = |elapsed| Failure::unconnected(StoreTrouble::Busy, elapsed);
        tokio::time::timeout_at(deadline, usable)
            .await
            .map_err(late)?
            .map_err(|error: PoolError| {
                let trouble = match error {
                    PoolError::Timeout(TimeoutType::Wait) => StoreTrouble::Busy,
                    PoolError::Timeout(_)
                    | PoolError::Backend(_)
                    | PoolError::Closed
                    | PoolError::NoRuntimeSpecified
                    | PoolError::PostCreateHook(_) => StoreTrouble::Connect,
                };
                Failure::unconnected(trouble, error)
            })
    }

    /// One of its own: not of the pool, which may be exhausted.
    async fn make_reader(&self, deadline: Instant) -> Result<Reader, Failure> {
        let (client, made) = if let Some(hosts) = &self.hosts {
            let (client, polled) = hosts
                .connect_polled()
                .await
                .map_err(|error| Failure::unconnected(StoreTrouble::Connect, error))?;
            (
                ClientWrapper::new(client, polled),
                std::time::Instant::now(),
            )
        } else {
            let connection = self.check_out(deadline).await?;
            let made = Object::metrics(&connection).created;
            (Object::take(connection), made)
        };
        Ok(Reader {
            client,
            made,
            gone: CancellationToken::new(),
        })
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

/// Another read on the shared connection timed out.
#[derive(Debug)]
struct Given;

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shared connection was given up")
    }
}

impl Error for Given {}

/// A migration may take its time, whatever is set for statements.
pub(super) const UNLIMITED: &str = "SET statement_timeout = 0";
const DEFAULT_BUDGET: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const POOL_SIZE: usize = 16;
