//! One flight per credential: the first caller starts it, all share its outcome.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::Want;
use crate::credential::Snapshot;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::id::CredentialId;
use crate::sync::lock;

pub(crate) type Outcome = Result<Arc<Snapshot>, RefreshError>;

#[derive(Default)]
pub(crate) struct Flights(Arc<Mutex<HashMap<CredentialId, Flight>>>);

impl Flights {
    /// The flight of this credential; `start` makes the task if there is none.
    pub(super) fn join<'a, F>(
        &self,
        id: CredentialId,
        want: Want,
        start: impl FnOnce() -> (&'a TaskTracker, F),
    ) -> Flight
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut flights = lock(&self.0);
        if let Some(flight) = flights.get(&id) {
            return flight.clone();
        }
        let (sender, receiver) = oneshot::channel();
        let flight = Flight {
            outcome: receiver.shared(),
            want,
        };
        flights.insert(id, flight.clone());
        drop(flights);

        let landing = Landing {
            flights: Arc::clone(&self.0),
            id,
        };
        let (tasks, task) = start();
        tasks.spawn(async move {
            let outcome = task.await;
            // Off the board first: who asks after the outcome is known must not
            // be given an old one.
            drop(landing);
            // Who waited for it may all have gone away.
            let _unheard = sender.send(outcome);
        });
        flight
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.0).keys()).finish()
    }
}

#[derive(Clone)]
pub(super) struct Flight {
    outcome: Shared<oneshot::Receiver<Outcome>>,
    /// Why it began.
    pub(super) want: Want,
}

impl Flight {
    pub(super) async fn outcome(self) -> Outcome {
        self.outcome
            .await
            // The task panicked: its lease ends by itself.
            .unwrap_or_else(|closed| Err(RefreshError::new(RefreshErrorKind::Provider, closed)))
    }
}

/// Takes the flight off the board, also when its task panics.
struct Landing {
    flights: Arc<Mutex<HashMap<CredentialId, Flight>>>,
    id: CredentialId,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.id);
    }
}
