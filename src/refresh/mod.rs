//! Refreshing: one spend per credential and generation.
//!
//! | remaining life of the access token | what a request does |
//! |---|---|
//! | *fresh* | sends it |
//! | *soft*: due soon | sends it, and starts a refresh that nobody waits for ([`early`]) |
//! | *hard*: expired, or within the skew | waits for a refresh ([`refreshed`]) |
//!
//! 1. In one process there is one flight per credential; whoever needs it waits
//!    for the same outcome, good or bad (`flight.rs`).
//! 2. Across replicas the flight holds a lease in the store (`attempt.rs`), and
//!    spends the token under it (`spend.rs`).
//! 3. The flight is a task of its own. A client that goes away cancels its own
//!    waiting, never the spend.
//! 4. A provider in trouble is left alone by all (`breaker`).

mod attempt;
mod breaker;
mod flight;
pub(crate) mod lease;
mod settle;
mod spend;

use std::sync::Arc;
use std::time::SystemTime;

use tokio::runtime::Handle;

use self::attempt::Attempt;
#[cfg(feature = "reqwest")]
pub(crate) use self::attempt::turn;
pub(crate) use self::breaker::Breakers;
use self::flight::Flight;
pub(crate) use self::flight::Flights;
use self::flight::Outcome;
use crate::credential::Cell;
use crate::credential::Snapshot;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::state::Core;

/// What the caller cannot go on without.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// A new one before the present one expires; nobody waits for it.
    Early,
    /// A credential that has not expired.
    Usable,
    /// One newer than this generation, which the upstream refused.
    NewerThan(u64),
    /// One newer than this generation, whatever that is still worth; the
    /// provider is asked at most once.
    Another(u64),
}

impl Want {
    /// Whether an upstream's word, not the clock, is the cause.
    fn is_forced(self) -> bool {
        matches!(self, Self::NewerThan(_))
    }

    /// Whether the provider's first word is the answer: its client would rather
    /// ask again than wait.
    fn asks_once(self) -> bool {
        matches!(self, Self::Another(_))
    }

    /// Whether this one, which will not live long, will do if there is trouble.
    fn can_do_with(self, snapshot: &Snapshot, now: SystemTime) -> bool {
        let is_other = match self {
            Self::Early | Self::Usable => true,
            Self::NewerThan(generation) | Self::Another(generation) => {
                snapshot.generation > generation
            }
        };
        is_other && snapshot.is_unexpired(now)
    }

    /// Whether whoever wants `other` can live with what a flight for `self`
    /// ended with.
    fn concerns(self, other: Self, outcome: &Outcome) -> bool {
        match (self, other, outcome) {
            (_, _, Err(error)) if error.kind() == RefreshErrorKind::Terminal => true,
            (_, Self::NewerThan(generation) | Self::Another(generation), Ok(snapshot)) => {
                snapshot.generation > generation
            }
            // Who asks once and has failed concerns those who ask once.
            (Self::Another(_), Self::Another(_), Err(_)) => true,
            // The early one stops at the first obstacle. And that the upstream
            // refused a token does not concern somebody whose token is good.
            (Self::Early, Self::Usable, Ok(_))
            | (Self::Early | Self::Another(_), _, Err(_))
            | (Self::NewerThan(_), Self::Usable | Self::Early | Self::Another(_), Err(_)) => false,
            _ => true,
        }
    }

    fn is_met_by(self, snapshot: &Snapshot, now: SystemTime) -> bool {
        match self {
            Self::Early => snapshot.is_usable(now) && !snapshot.is_due(now),
            Self::Usable => snapshot.is_usable(now),
            Self::NewerThan(generation) | Self::Another(generation) => {
                snapshot.generation > generation && snapshot.is_usable(now)
            }
        }
    }
}

/// Starts a refresh if one is due, while the present token is still good.
pub(crate) fn early(core: &Arc<Core>, cell: &Arc<Cell>) {
    let now = core.clock.now();
    // A service may be called outside a runtime; its future may not.
    if cell.is_resting(now) || Handle::try_current().is_err() {
        return;
    }
    let _flight = join(core, cell, Want::Early);
}

/// Starts a refresh of what the upstream refused; nobody waits for it.
pub(crate) fn forced(core: &Arc<Core>, cell: &Arc<Cell>, generation: u64) {
    if cell.current().generation == generation && Handle::try_current().is_ok() {
        let _flight = join(core, cell, Want::NewerThan(generation));
    }
}

/// The credential, refreshed if it has to be.
///
/// Cancellation: dropping this future leaves the flight flying.
pub(crate) async fn refreshed(
    core: &Arc<Core>,
    cell: &Arc<Cell>,
    want: Want,
) -> Result<Arc<Snapshot>, RefreshError> {
    // Another request may have done it already, or have had no luck.
    let (current, now) = (cell.current(), core.clock.now());
    if want.is_met_by(&current, now) || (want.can_do_with(&current, now) && cell.is_resting(now)) {
        return Ok(current);
    }
    let waiting = async {
        loop {
            let flight = join(core, cell, want);
            let flown = flight.want;
            let outcome = flight.outcome().await;
            let is_met = |snapshot: &Snapshot| want.is_met_by(snapshot, core.clock.now());
            if outcome.as_deref().is_ok_and(is_met) || flown.concerns(want, &outcome) {
                return outcome;
            }
            // It flew for another reason: the next one is ours.
        }
    };

    tokio::time::timeout(core.timings.wait_budget, waiting)
        .await
        .unwrap_or_else(|elapsed| {
            let current = cell.current();
            if want.can_do_with(&current, core.clock.now()) {
                return Ok(current);
            }
            Err(RefreshError::new(RefreshErrorKind::Provider, elapsed))
        })
}

fn join(core: &Arc<Core>, cell: &Arc<Cell>, want: Want) -> Flight {
    core.flights.join(cell.id, want, || {
        let attempt = Attempt::new(Arc::clone(core), Arc::clone(cell), want);
        (&core.tasks, attempt.run())
    })
}
