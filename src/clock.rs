//! Time as a dependency, so that expiry can be tested.
//!
//! Token lifetimes and cache ages are read from a [`Clock`]. Leases are not:
//! they are compared between replicas, so the store's own time decides them.

use std::fmt;
use std::time::SystemTime;

/// Tells the wall-clock time.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> SystemTime;
}

/// The clock of the operating system.
///
/// ```
/// use regrant::clock::{Clock, SystemClock};
///
/// assert!(SystemClock.now() > std::time::UNIX_EPOCH);
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "users name the value; it will never hold anything"
)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the wall clock is read"
    )]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that moves only when told to; clones share the time.
///
/// ```
/// use std::time::Duration;
/// use regrant::clock::{Clock, ManualClock};
///
/// let clock = ManualClock::starting_now();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now(), before + Duration::from_secs(60));
/// ```
#[cfg(any(test, feature = "test-util"))]
#[derive(Clone, Debug)]
pub struct ManualClock(std::sync::Arc<std::sync::Mutex<SystemTime>>);

#[cfg(any(test, feature = "test-util"))]
impl ManualClock {
    /// A clock that stands at the present time, cut to whole seconds so that
    /// lifetimes come out even.
    pub fn starting_now() -> Self {
        let since_epoch = SystemClock
            .now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let whole = std::time::Duration::from_secs(since_epoch.as_secs());

        Self(std::sync::Arc::new(std::sync::Mutex::new(
            SystemTime::UNIX_EPOCH + whole,
        )))
    }

    /// Moves the time forward by `step`.
    pub fn advance(&self, step: std::time::Duration) {
        *crate::sync::lock(&self.0) += step;
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *crate::sync::lock(&self.0)
    }
}

/// Whole seconds since the Unix epoch; times before it count as the epoch.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
