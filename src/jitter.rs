//! Randomness for spreading things out in time: nothing secret hangs on it.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use crate::sync::lock;

pub(crate) struct Jitter(Mutex<fastrand::Rng>);

impl Jitter {
    /// Repeatable if a seed is given.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self(Mutex::new(
            seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
        ))
    }

    /// From 0 to just below 1.
    pub(crate) fn fraction(&self) -> f64 {
        lock(&self.0).f64()
    }

    /// Between half of `wait` and all of it, so that what failed together does
    /// not come back together.
    pub(crate) fn spread(&self, wait: Duration) -> Duration {
        wait.mul_f64(0.5 + self.fraction() / 2.0)
    }
}

impl fmt::Debug for Jitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jitter").finish_non_exhaustive()
    }
}
