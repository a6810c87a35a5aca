//! The schema: bringing it to this version, and saying what it lacks.
//!
//! Migrations expand before they contract: what one adds, replicas of the
//! version before neither read nor write, so that they go on while it runs and
//! afterwards.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt as _;
use refinery::Migration;
use tokio_postgres::types::Type;
use tokio_util::task::AbortOnDropHandle;

use super::PostgresStore;
use super::connection::UNLIMITED;
use super::failure::INSUFFICIENT_PRIVILEGE;
use super::rows::get;
use crate::BoxError;
use crate::store::StoreError;

impl PostgresStore {
    /// Brings the schema to this version, or leaves it at a later one, which has
    /// room for this one. Safe to run by several replicas at once, and again. If
    /// there is anything to do, it takes the connection that
    /// [`listen_at`](Self::listen_at) names: not one through a pooler in
    /// transaction mode.
    ///
    /// # Errors
    ///
    /// If the database cannot be reached, or holds other migrations under the names
    /// of these.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        match self.pending_migrations().await {
            Ok(pending) if pending.is_empty() => return Ok(()),
            // A replica of the version before starts again in the middle of an
            // upgrade.
            Err(error) if error.kind() == MigrateErrorKind::Unknown => {
                tracing::info!("the schema is that of a later version");
                return Ok(());
            }
            Err(error) if error.kind() == MigrateErrorKind::Changed => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let mut attempt = 1;
        loop {
            let error = match self.run_migrations().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // Each migration is one transaction. When replicas start at once
            // one of them wins, and the others collide with what it made; on
            // the next look it is simply there. No lock is needed, so none can
            // leak through a pooler.
            if attempt == ATTEMPTS || error.kind() == MigrateErrorKind::Denied {
                // What nobody can mend by trying again says what it is.
                self.pending_migrations().await?;
                return Err(error);
            }
            tracing::debug!(
                error = &error as &dyn Error,
                "migration failed, looking again"
            );
            tokio::time::sleep(PAUSE * attempt).await;
            attempt += 1;
        }
    }

    /// The migrations that the database lacks, by name, in the order in which
    /// they would run; none if [`migrate`](Self::migrate) has nothing to do.
    /// Changes nothing, and works through a pooler too.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use regrant::store::postgres::PostgresStore;
    ///
    /// let store = PostgresStore::connect("postgres://regrant@db.internal/regrant")?;
    /// assert!(store.pending_migrations().await?.is_empty(), "migrate first");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`MigrateErrorKind::Unknown`] if the database holds migrations that this
    /// version does not know, [`MigrateErrorKind::Changed`] if it holds others
    /// under their names, [`MigrateErrorKind::Denied`] if its role may not read
    /// them, [`MigrateErrorKind::Failed`] if it cannot be asked.
    pub async fn pending_migrations(&self) -> Result<Vec<String>, MigrateError> {
        let known = migrations::migrations::runner();
        let applied = self
            .applied()
            .await
            .map_err(|error| MigrateError::failed(error.into()))?;
        compare(known.get_migrations(), &applied)
    }

    /// Distributes the tables of a migrated schema over the workers of
    /// [Citus](https://docs.citusdata.com), by their primary key. Safe to repeat:
    /// what is distributed stays as it is. Needs a direct connection to the
    /// coordinator, and blocks writes to a table while its rows are moved: do it
    /// before there are many.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use regrant::store::postgres::PostgresStore;
    ///
    /// let store = PostgresStore::connect("postgres://regrant@coordinator.internal/regrant")?;
    /// store.migrate().await?;
    /// store.distribute().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// If the extension is missing, a table is not there or is distributed in
    /// another way, or the database cannot be reached. Then nothing has changed.
    pub async fn distribute(&self) -> Result<(), MigrateError> {
        let failed = |error| MigrateError::new(MigrateErrorKind::Undistributed, error);
        let connection = self.connections.for_migrations().await.map_err(failed)?;
        connection
            .batch_execute(DISTRIBUTE)
            .await
            .map_err(|error| failed(error.into()))
    }

    async fn run_migrations(&self) -> Result<(), MigrateError> {
        let failed = MigrateError::failed;
        let runner = migrations::migrations::runner();
        let ran = if let Some(hosts) = &self.listens_at {
            let (mut client, mut messages) = hosts.connect_raw().await.map_err(failed)?;
            let driver = tokio::spawn(async move { while messages.next().await.is_some() {} });
            let _driver = AbortOnDropHandle::new(driver);
            let unlimited = client.batch_execute(UNLIMITED).await;
            unlimited.map_err(|error| failed(error.into()))?;
            runner.run_async(&mut client).await
        } else {
            let mut connection = self.connections.for_migrations().await.map_err(failed)?;
            runner.run_async(&mut *connection).await
        };
        ran.map(drop).map_err(|error| failed(error.into()))
    }

    async fn applied(&self) -> Result<Vec<Applied>, StoreError> {
        let is_there = self
            .connections
            .row(
                "SELECT to_regclass($1) IS NOT NULL AS yes",
                &[(&HISTORY, Type::TEXT)],
            )
            .await?;
        let Some(true) = is_there.map(|row| get(&row, "yes")).transpose()? else {
            return Ok(Vec::new());
        };
        let sql = format!("SELECT version, name, checksum FROM {HISTORY} ORDER BY version");
        let rows = self.connections.rows(&sql, &[]).await?;
        let applied = |row| {
            Ok(Applied {
                version: get(row, "version")?,
                name: get(row, "name")?,
                checksum: get(row, "checksum")?,
            })
        };
        rows.iter().map(applied).collect()
    }
}

/// The schema could not be brought to this version, or compared with it.
///
/// ```
/// use regrant::store::postgres::{MigrateError, MigrateErrorKind};
///
/// /// Whether this process is older than the schema.
/// fn is_behind(error: &MigrateError) -> bool {
///     error.kind() == MigrateErrorKind::Unknown
/// }
/// ```
#[derive(Debug)]
pub struct MigrateError {
    kind: MigrateErrorKind,
    source: BoxError,
}

impl MigrateError {
    fn new(kind: MigrateErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: source.into(),
        }
    }

    /// By what the database answered, if it did.
    fn failed(error: BoxError) -> Self {
        let first: &(dyn Error + 'static) = &*error;
        let is_denied =
            std::iter::successors(Some(first), |error| (*error).source()).any(|error| {
                let error = error.downcast_ref::<tokio_postgres::Error>();
                let code = error.and_then(tokio_postgres::Error::code);
                code.is_some_and(|code| code.code() == INSUFFICIENT_PRIVILEGE)
            });
        let kind = if is_denied {
            MigrateErrorKind::Denied
        } else {
            MigrateErrorKind::Failed
        };
        Self::new(kind, error)
    }

    /// What is in the way.
    pub fn kind(&self) -> MigrateErrorKind {
        self.kind
    }
}

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            MigrateErrorKind::Denied => {
                "the database answers, but the role lacks a privilege: migrate as the owner of \
                 the tables, with CREATE on their schema, and GRANT SELECT on all of them to \
                 whom else asks what is pending"
            }
            MigrateErrorKind::Failed => "the database could not be migrated",
            MigrateErrorKind::Unknown => {
                "the database has migrations that this version does not know: use the version \
                 that made them, or a later one"
            }
            MigrateErrorKind::Changed => {
                "the database has other migrations under the names of these: it is not of this \
                 program, or its history was edited"
            }
            MigrateErrorKind::Undistributed => "the tables could not be distributed",
        })
    }
}

impl Error for MigrateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Why a schema is not of this version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum MigrateErrorKind {
    /// It holds other migrations under the names of these.
    Changed,
    /// The role may not read or change it.
    Denied,
    /// It cannot be reached, or refused.
    Failed,
    /// Its tables could not be distributed over workers.
    Undistributed,
    /// A later version was here.
    Unknown,
}

/// A migration that the database has.
struct Applied {
    version: i32,
    name: String,
    /// Of refinery's, as text.
    checksum: String,
}

impl Applied {
    fn is(&self, migration: &Migration) -> bool {
        i64::from(self.version) == i64::from(migration.version())
    }
}

fn compare(known: &[Migration], applied: &[Applied]) -> Result<Vec<String>, MigrateError> {
    let unknown: Vec<_> = applied
        .iter()
        .filter(|applied| !known.iter().any(|migration| applied.is(migration)))
        .map(|applied| format!("V{}__{}", applied.version, applied.name))
        .collect();
    if !unknown.is_empty() {
        return Err(MigrateError::new(
            MigrateErrorKind::Unknown,
            unknown.join(", "),
        ));
    }
    let mut pending = BTreeSet::new();
    for migration in known {
        match applied.iter().find(|applied| applied.is(migration)) {
            None => {
                pending.insert((migration.version(), migration.to_string()));
            }
            Some(applied) => {
                if applied.name != migration.name()
                    || applied.checksum != migration.checksum().to_string()
                {
                    return Err(MigrateError::new(
                        MigrateErrorKind::Changed,
                        migration.to_string(),
                    ));
                }
            }
        }
    }
    Ok(pending.into_iter().map(|(_version, name)| name).collect())
}

mod migrations {
    refinery::embed_migrations!("migrations");
}

const DISTRIBUTE: &str = include_str!("../../../migrations/citus/distribute.sql");
/// Where refinery notes what it has run.
const HISTORY: &str = "refinery_schema_history";
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(25);
