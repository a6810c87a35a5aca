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
        while let Some(change) = changes.next().await {
            let Some(core) = Weak::upgrade(&weak) else {
                return;
            };
            heed(&core, change).await;
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
        Change::Deaf => core.listening.set(DEAF),
        Change::Grant(id) => core.cache.forget(id),
        Change::Credential(id) => read_again(core, id).await,
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

    /// Whether other processes may just be writing again what the store lost.
    pub(crate) fn is_catching_up(&self) -> bool {
        match self.hears() {
            Some(true) => lock(&self.since).is_some_and(|at| at.elapsed() < CATCHING_UP),
            Some(false) => true,
            None => false,
        }
    }

    fn set(&self, state: u8) {
        let before = self.state.swap(state, Ordering::Relaxed);
        if (before, state) == (DEAF, HEARS) {
            *lock(&self.since) = Some(Instant::now());
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
