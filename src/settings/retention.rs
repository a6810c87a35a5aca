//! How long rows stay that nobody can use any more.

use std::time::Duration;

use super::DAY;
use super::HOUR;
use super::LONGEST;
use super::SECOND;
use crate::error::ConfigError;

/// What becomes of grants, codes and credentials that are over.
///
/// Their rows stay for a while, because a late token is to be told from a
/// stranger's: an authorization code that is redeemed twice, a refresh token that
/// was rotated away. Then a sweep deletes them.
///
/// On PostgreSQL the room of deleted rows is used again after a vacuum, and no
/// table shrinks. Autovacuum begins when a fifth of a table is dead; where
/// millions of grants are kept, let it begin sooner:
/// `ALTER TABLE grants SET (autovacuum_vacuum_scale_factor = 0.05)`, and the same
/// for `credentials`.
///
/// ```
/// use std::time::Duration;
/// use regrant::settings::Retention;
///
/// let retention = Retention::default().tombstones(Duration::from_secs(7 * 24 * 3600));
/// assert_eq!(retention.sweep_every, Some(Duration::from_secs(3600)));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Retention {
    /// How long each replica waits between two sweeps of its own; `None` if only
    /// [`Regrant::sweep`](crate::Regrant::sweep) sweeps.
    pub sweep_every: Option<Duration>,
    /// How long rows stay after the last time at which anybody could have used
    /// them: more than clocks of replicas differ.
    pub tombstones: Duration,
}

impl Retention {
    /// The time between two sweeps, at least 1 s; half of it is jittered, so that
    /// replicas do not sweep together. The default is 1 h.
    #[must_use]
    pub fn sweep_every(mut self, time: Duration) -> Self {
        self.sweep_every = Some(time);
        self
    }

    /// This replica sweeps only when it is told to.
    #[must_use]
    pub fn never_sweep(mut self) -> Self {
        self.sweep_every = None;
        self
    }

    /// The time that rows stay, at least 1 min. The default is 1 d.
    #[must_use]
    pub fn tombstones(mut self, time: Duration) -> Self {
        self.tombstones = time;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if (self.sweep_every).is_some_and(|time| !(SECOND..=LONGEST).contains(&time)) {
            return Err(ConfigError::new(
                "time between sweeps",
                "must be between 1 s and 1000 years",
            ));
        }
        if !(SHORTEST_TOMBSTONES..=LONGEST).contains(&self.tombstones) {
            return Err(ConfigError::new(
                "tombstones",
                "must stay between 1 min and 1000 years",
            ));
        }
        Ok(())
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            sweep_every: Some(HOUR),
            tombstones: DAY,
        }
    }
}

/// A code that was redeemed at the last moment must be known until its grant is
/// stored.
const SHORTEST_TOMBSTONES: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_a_minute_and_sweeps_are_a_second_apart_at_least() {
        let retention = Retention::default();
        assert!(retention.check().is_ok());
        assert!(retention.never_sweep().check().is_ok());
        for (bad, setting) in [
            (retention.tombstones(Duration::from_secs(59)), "tombstones"),
            (retention.tombstones(Duration::MAX), "tombstones"),
            (retention.sweep_every(Duration::ZERO), "time between sweeps"),
            (retention.sweep_every(Duration::MAX), "time between sweeps"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(setting), "{error}");
        }
    }
}
