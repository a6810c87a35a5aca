//! Refreshing: one spend per credential and generation.
//!
//! 1. In one process there is one flight per credential; whoever needs it waits
//!    for the same outcome, good or bad (`flight.rs`).
//! 2. Across replicas the flight holds a lease in the store (`attempt.rs`).
//! 3. The flight is a task of its own. A client that goes away cancels its own
//!    waiting, never the spend.

mod attempt;
mod flight;
mod settle;

use std::sync::Arc;
use std::time::SystemTime;

use self::attempt::Attempt;
pub(crate) use self::flight::Flights;
use crate::credential::Cell;
use crate::credential::Snapshot;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::state::Core;

/// What the caller cannot go on without.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// A credential that has not expired.
    Usable,
    /// One newer than this generation, which the upstream refused.
    NewerThan(u64),
}

impl Want {
    /// Whether an upstream's word, not the clock, is the cause.
    fn is_forced(self) -> bool {
        matches!(self, Self::NewerThan(_))
    }

    fn is_met_by(self, snapshot: &Snapshot, now: SystemTime) -> bool {
        match self {
            Self::Usable => snapshot.is_usable(now),
            Self::NewerThan(generation) => {
                snapshot.generation > generation && snapshot.is_unexpired(now)
            }
        }
    }
}

/// The credential, refreshed if it has to be.
///
/// Cancellation: dropping this future leaves the flight flying.
pub(crate) async fn refreshed(
    core: &Arc<Core>,
    cell: &Arc<Cell>,
    provider: &str,
    want: Want,
) -> Result<Arc<Snapshot>, RefreshError> {
    // Another request may have done it already.
    let current = cell.current();
    if want.is_met_by(&current, core.clock.now()) {
        return Ok(current);
    }
    let waiting = async {
        loop {
            let flight = core.flights.join(cell.id, want.is_forced(), || {
                let attempt = Attempt::new(Arc::clone(core), Arc::clone(cell), provider, want);
                (&core.tasks, attempt.run())
            });
            let was_forced = flight.is_forced();
            let outcome = flight.outcome().await;
            // A flight that began for another reason may have ended short of
            // what is wanted here: then the next one is ours.
            let is_ours = match (&outcome, want) {
                (Ok(snapshot), Want::NewerThan(generation)) => snapshot.generation > generation,
                (Ok(_), Want::Usable) | (Err(_), Want::NewerThan(_)) => true,
                // That the upstream refused a token does not concern somebody
                // whose token is still good.
                (Err(error), Want::Usable) => {
                    !was_forced || error.kind() == RefreshErrorKind::Terminal
                }
            };
            if is_ours {
                return outcome;
            }
        }
    };

    tokio::time::timeout(core.timings.wait_budget, waiting)
        .await
        .unwrap_or_else(|elapsed| {
            let current = cell.current();
            if matches!(want, Want::Usable) && current.is_unexpired(core.clock.now()) {
                return Ok(current);
            }
            Err(RefreshError::new(RefreshErrorKind::Provider, elapsed))
        })
}
