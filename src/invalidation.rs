//! What other replicas ended, as soon as the store tells of it.
//!
//! Hearing of an end saves waiting for the staleness bound and changes nothing
//! else: what is true is in the row, and the bound holds with nobody listening.
//!
//! 1. A grant that was revoked elsewhere is forgotten; the next request reads it.
//! 2. The row of a credential that ended elsewhere is read, if this process knows
//!    it: many grants may share it, and none of them need ask for itself.
//! 3. Between losing the listener and having it back, ends were missed: then
//!    everything is read afresh, and what the store may have lost is written again
//!    (`journal`).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::credential;
use crate::id::CredentialId;
use crate::state::Core;
use crate::store::Change;
use crate::sync::lock;

/// Listens for as long as the gateway lives.
pub(crate) fn watch(core: &Arc<Core>) {
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    let mut changes = core.store.changes();
    let weak = Arc::downgrade(core);
    let task = runtime.spawn(async move {
        let (mut again_at, mut again) = (None, None);
        loop {
            let change = match again_at {
                Some(at) => tokio::time::timeout_at(at, changes.next()).await,
                None => Ok(changes.next().await),
            };
            let Some(core) = Weak::upgrade(&weak) else {
                return;
            };
            match change {
                Ok(Some(change)) => heed(&core, change).await,
                Ok(None) => return,
                Err(_elapsed) => {
                    again_at = None;
                    // What ends meanwhile is not to wait for it.
                    if again.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
                        let task = tokio::spawn(write_again(Arc::clone(&core)));
                        again = Some(AbortOnDropHandle::new(task));
                    }
                }
            }
            if !core.listening.is_back() {
                again_at = None;
            } else if again_at.is_none() {
                again_at = Some(Instant::now() + AGAIN);
            }
        }
    });
    core.listening.task(AbortOnDropHandle::new(task));
}

async fn heed(core: &Core, change: Change) {
    match change {
        Change::Listening => {
            core.cache.read_afresh();
            // It may be another server, which lacks the last writes of the one
            // before.
            while let Err(error) = core.write_again().await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the last writes cannot be looked after yet"
                );
                tokio::time::sleep(PAUSE).await;
            }
            core.listening.set(HEARS);
        }
        Change::Deaf => {
            if core.listening.hears() != Some(false) {
                core.forget_old_writes();
            }
            core.listening.set(DEAF);
        }
        Change::Grant(id) => core.cache.forget(id),
        Change::Credential(id) => read_again(core, id).await,
    }
}

/// A rotation can be made again once the one before was, which may have been
/// another process's.
async fn write_again(core: Arc<Core>) {
    // The store may be gone again; then there will be another reconnect.
    if let Err(error) = core.write_again().await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "the last writes are not looked after once more"
        );
    }
}

/// Takes over the end of a credential that is known here.
async fn read_again(core: &Core, id: CredentialId) {
    core.cache.forget_named(id);
    let Some(cell) = core.cache.known(id) else {
        return;
    };
    let row = match core.store.credential(id).await {
        Ok(Some(row)) => row,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(
                credential = %id,
                error = &error as &dyn std::error::Error,
                "the end of a credential is noticed within the staleness bound"
            );
            return;
        }
    };
    // One that does not open has raised its alarm.
    if let Ok((snapshot, _spendable)) = credential::open(core, &row) {
        cell.adopt(snapshot);
    }
}

/// Whether ends are heard of.
#[derive(Debug, Default)]
pub(crate) struct Listening {
    state: AtomicU8,
    /// When they were heard of again.
    since: Mutex<Option<Instant>>,
    /// When something was found missing first while they were not.
    missing: Mutex<Option<Instant>>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Listening {
    /// `None` if the store never said: it has no listener, or none yet.
    pub(crate) fn hears(&self) -> Option<bool> {
        match self.state.load(Ordering::Relaxed) {
            HEARS => Some(true),
            DEAF => Some(false),
            _ => None,
        }
    }

    /// Whether other processes may just be writing again what the store lost, and
    /// what is missing now may be among it.
    pub(crate) fn is_catching_up(&self) -> bool {
        match self.hears() {
            Some(true) => self.is_back(),
            // The store answers and is not heard: that may stay so for ever, and
            // whose login is lost must be told some day.
            Some(false) => {
                let mut missing = lock(&self.missing);
                missing.get_or_insert_with(Instant::now).elapsed() < LONGEST_DEAFNESS
            }
            None => false,
        }
    }

    /// Whether ends have been heard of again for a short time.
    fn is_back(&self) -> bool {
        self.hears() == Some(true) && lock(&self.since).is_some_and(|at| at.elapsed() < CATCHING_UP)
    }

    fn set(&self, state: u8) {
        let before = self.state.swap(state, Ordering::Relaxed);
        if (before, state) == (DEAF, HEARS) {
            *lock(&self.since) = Some(Instant::now());
            *lock(&self.missing) = None;
        }
    }

    fn task(&self, task: AbortOnDropHandle<()>) {
        *lock(&self.task) = Some(task);
    }
}

const HEARS: u8 = 1;
const DEAF: u8 = 2;
const PAUSE: Duration = Duration::from_millis(100);
/// Others notice a little later, and may have much to write.
const CATCHING_UP: Duration = Duration::from_secs(30);
/// While others catch up.
const AGAIN: Duration = Duration::from_secs(5);
/// Longer than it takes to listen again to a store that answers.
const LONGEST_DEAFNESS: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_never_hears_again_waits_for_others_for_a_while_only() {
        let listening = Listening::default();
        listening.set(DEAF);
        // The outage itself does not count.
        tokio::time::advance(10 * LONGEST_DEAFNESS).await;
        assert!(listening.is_catching_up());
        tokio::time::advance(LONGEST_DEAFNESS).await;
        assert!(!listening.is_catching_up());

        listening.set(HEARS);
        assert!(listening.is_catching_up());
        tokio::time::advance(CATCHING_UP).await;
        assert!(!listening.is_catching_up());
        listening.set(DEAF);
        assert!(listening.is_catching_up());
    }
}
