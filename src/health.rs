//! Whether this gateway can do its work, for readiness probes and operators.

use std::fmt;
use std::time::Duration;

use crate::regrant::Regrant;
use crate::store::StoreErrorKind;

impl Regrant {
    /// Asks the store whether it answers, for at most two seconds.
    ///
    /// | status | | a readiness probe says |
    /// |---|---|---|
    /// | [`Ready`](HealthStatus::Ready) | the store answers | 200 |
    /// | [`Degraded`](HealthStatus::Degraded) | it does not; what was read within the staleness bound is served | 200 |
    /// | [`Down`](HealthStatus::Down) | it does not, and nothing is served; or [`drain`](Self::drain) was called | 503 |
    ///
    /// ```
    /// use regrant::health::HealthStatus;
    /// use regrant::{Regrant, seal::Keyring, store::memory::MemoryStore};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let regrant = Regrant::builder("https://gateway.example", MemoryStore::new(), Keyring::generate()?)
    ///     .start()
    ///     .await?;
    /// let health = regrant.health().await;
    /// assert_eq!(health.status, HealthStatus::Ready);
    /// assert_eq!(health.to_string(), "ready");
    /// # Ok::<_, regrant::BoxError>(())
    /// # }).unwrap();
    /// ```
    pub async fn health(&self) -> Health {
        let core = &self.core;
        let asked = tokio::time::timeout(PATIENCE, core.store.ping()).await;
        let store = match asked {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.kind()),
            Err(_elapsed) => Some(StoreErrorKind::Unavailable),
        };
        let is_draining = core.tasks.is_closed();
        let serves = core
            .cache
            .has_read(core.clock.now(), core.timings.staleness);
        let status = match store {
            _ if is_draining => HealthStatus::Down,
            None => HealthStatus::Ready,
            Some(StoreErrorKind::Unavailable) if serves => HealthStatus::Degraded,
            Some(_) => HealthStatus::Down,
        };
        Health {
            status,
            store,
            listener: core.listening.hears(),
            is_draining,
        }
    }
}

/// What [`Regrant::health`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Health {
    /// The whole of it.
    pub status: HealthStatus,
    /// Why the store does not answer; `None` if it does.
    pub store: Option<StoreErrorKind>,
    /// Whether this process hears at once of what ends on other replicas. If
    /// not, it notices within the staleness bound, and is as healthy. `None`:
    /// the store has no listener.
    pub listener: Option<bool>,
    /// Whether this process is about to end.
    pub is_draining: bool,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.as_str())?;
        if self.is_draining {
            return f.write_str(": shutting down");
        }
        if let Some(kind) = self.store {
            f.write_str(match kind {
                StoreErrorKind::Schema => ": the store's schema is not of this version",
                StoreErrorKind::Unavailable => ": the store does not answer",
                StoreErrorKind::Denied => ": the store's role lacks a privilege",
                StoreErrorKind::Conflict | StoreErrorKind::Corrupt => {
                    ": the store's answer cannot be read"
                }
            })?;
        }
        if self.listener == Some(false) {
            f.write_str(": ends elsewhere are noticed within the staleness bound only")?;
        }
        Ok(())
    }
}

/// Whether requests are served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum HealthStatus {
    /// All of them.
    Ready,
    /// Those whose grant and credential are in memory.
    Degraded,
    /// None.
    Down,
}

impl HealthStatus {
    /// The word for logs and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(2);
