//! A few connections that all single-row reads share.
//!
//! tokio-postgres sends what several tasks ask of one client without waiting for
//! the answers before, so that many reads fit into one round trip, and a crowd
//! of readers needs no crowd of connections. Nothing but reads of one row may go
//! here: who asks next waits for who asked before.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

use deadpool_postgres::ClientWrapper;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::trust::Trust;
use crate::sync::lock;
use crate::telemetry::StoreTrouble;

pub(super) struct Readers {
    slots: [Slot; READERS],
    next: AtomicUsize,
}

/// One shared connection.
pub(super) struct Reader {
    pub(super) client: ClientWrapper,
    pub(super) made: Instant,
    /// Tells all who wait on it that it will not answer.
    pub(super) gone: CancellationToken,
}

#[derive(Default)]
struct Slot {
    present: Mutex<Option<Arc<Reader>>>,
    making: tokio::sync::Mutex<()>,
    /// How many times making one failed.
    failures: AtomicU64,
}

impl Readers {
    pub(super) fn new() -> Self {
        Self {
            slots: Default::default(),
            next: AtomicUsize::new(0),
        }
    }

    /// A connection that works as far as anybody knows. If there is none, one
    /// caller makes it and the others wait for that.
    pub(super) async fn get(
        &self,
        trust: &Trust,
        make: impl Future<Output = Result<Reader, Failure>>,
    ) -> Result<Arc<Reader>, Failure> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = self.slots.get(turn % READERS);
        let slot = slot.ok_or_else(|| Failure::unconnected(StoreTrouble::Connect, Untried))?;
        if let Some(reader) = slot.usable(trust) {
            return Ok(reader);
        }
        let failures = slot.failures.load(Ordering::Acquire);
        // Cancellation: a maker that is dropped lets the next one make it.
        let _maker = slot.making.lock().await;
        if let Some(reader) = slot.usable(trust) {
            return Ok(reader);
        }
        if slot.failures.load(Ordering::Acquire) != failures {
            // It was tried just now: the answer for one is the answer for all,
            // or they would all ask a server that is down, one after another.
            return Err(Failure::unconnected(StoreTrouble::Connect, Untried));
        }
        match make.await {
            Ok(reader) => {
                let reader = Arc::new(reader);
                *lock(&slot.present) = Some(Arc::clone(&reader));
                Ok(reader)
            }
            Err(failure) => {
                slot.failures.fetch_add(1, Ordering::Release);
                Err(failure)
            }
        }
    }

    /// Lets nobody use this one again, and whoever waits on it try another. Its
    /// successor, if it has one already, stays.
    pub(super) fn discard(&self, reader: &Arc<Reader>) {
        for slot in &self.slots {
            let mut present = lock(&slot.present);
            if present.as_ref().is_some_and(|it| Arc::ptr_eq(it, reader)) {
                *present = None;
            }
        }
        reader.gone.cancel();
    }
}

impl Slot {
    fn usable(&self, trust: &Trust) -> Option<Arc<Reader>> {
        let present = lock(&self.present);
        let reader = present.as_ref()?;
        let is_usable = !reader.client.is_closed() && !trust.is_retired(reader.made);
        is_usable.then(|| Arc::clone(reader))
    }
}

/// Somebody else tried in vain a moment ago.
#[derive(Debug)]
struct Untried;

impl fmt::Display for Untried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the database could not be connected to a moment ago")
    }
}

impl Error for Untried {}

/// One keeps up with thousands of reads a second; with two, losing one does not
/// stop everybody.
const READERS: usize = 2;
