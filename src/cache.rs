//! What this process remembers of grants and credentials, bounded in entries,
//! so that a hot request asks nobody.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use quick_cache::sync::Cache;

use crate::credential::Cell;
use crate::credential::Snapshot;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::store::Grant;
use crate::sync::lock;

pub(crate) struct GrantCache {
    grants: Cache<GrantId, Arc<Entry>>,
    /// Credentials that callers were named for.
    named: Cache<CredentialId, Arc<Named>>,
    cells: Cache<CredentialId, Arc<Cell>>,
    /// Those that hold what the store does not have yet: not to be forgotten.
    pinned: Arc<Mutex<HashMap<CredentialId, Arc<Cell>>>>,
    /// Counts revocations made here, or heard of.
    revocations: AtomicU64,
    /// When something was last read, in milliseconds since the Unix epoch.
    read_at: AtomicU64,
}

/// How many revocations there were when reading began.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct Epoch(u64);

impl GrantCache {
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            grants: Cache::new(entries),
            named: Cache::new(entries),
            cells: Cache::new(entries),
            pinned: Arc::default(),
            revocations: AtomicU64::new(0),
            read_at: AtomicU64::new(0),
        }
    }

    /// The grant and the scope of the token of this digest, if the former was
    /// read within `staleness` and the latter was verified against it.
    pub(crate) fn verified(
        &self,
        id: GrantId,
        digest: &[u8; 32],
        now: SystemTime,
        staleness: Duration,
    ) -> Option<(Arc<Entry>, Option<Arc<str>>)> {
        let entry = self.current(id, now, staleness)?;
        let narrowed = entry.verified(digest, now)?.narrowed.clone();
        Some((entry, narrowed))
    }

    /// The grant, if it was read within `staleness` and has not ended here
    /// since.
    pub(crate) fn current(
        &self,
        id: GrantId,
        now: SystemTime,
        staleness: Duration,
    ) -> Option<Arc<Entry>> {
        self.grants
            .get(&id)
            .filter(|entry| entry.is_current(now, staleness))
    }

    /// To be noted before a grant is read that will be kept.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.revocations.load(Ordering::Acquire))
    }

    /// Keeps a grant as it was read at `now`, with the token that was verified
    /// against it and those of before that still hold.
    pub(crate) fn keep(
        &self,
        grant: Grant,
        cell: Arc<Cell>,
        token: Verified,
        now: SystemTime,
        epoch: Epoch,
    ) -> Arc<Entry> {
        let id = grant.id;
        let known = self.grants.get(&id);
        let mut verified: Vec<Verified> = known
            .iter()
            .flat_map(|entry| entry.verified.iter().cloned())
            .filter(|known| {
                known.digest != token.digest
                    && now < known.until
                    && !grant.revoked_access.contains(&known.revocation_entry)
            })
            .collect();
        // The oldest ones make room.
        let surplus = verified.len().saturating_sub(VERIFIED_TOKENS - 1);
        verified.drain(..surplus);
        verified.push(token);
        // What other routes use of it, as far as it is still the grant's.
        let mut cells: Vec<_> = known
            .iter()
            .flat_map(|entry| entry.cells.iter().map(Arc::clone))
            .filter(|known| {
                known.provider != cell.provider
                    && grant.credential(&known.provider) == Some(known.id)
            })
            .collect();
        cells.push(cell);
        let entry = Arc::new(Entry {
            grant,
            cells: cells.into(),
            verified: verified.into(),
            read_at: now,
        });

        self.grants.insert(id, Arc::clone(&entry));
        self.note_read(now);
        // What was read before a revocation here must not outlive it. Inserted
        // first, so that of the two one always sees the other.
        if self.epoch() != epoch {
            self.grants.remove(&id);
        }
        entry
    }

    /// The credential of a named caller, if it was read within `staleness` and
    /// has not been revoked here since.
    pub(crate) fn named(
        &self,
        id: CredentialId,
        now: SystemTime,
        staleness: Duration,
    ) -> Option<Arc<Named>> {
        self.named
            .get(&id)
            .filter(|named| is_current(named.read_at, now, staleness))
    }

    /// Keeps what a caller was named for, as it was read at `read_at`.
    pub(crate) fn keep_named(&self, named: Named, epoch: Epoch) -> Arc<Named> {
        let (id, named) = (named.cell.id, Arc::new(named));
        self.named.insert(id, Arc::clone(&named));
        self.note_read(named.read_at);
        // As for grants.
        if self.epoch() != epoch {
            self.named.remove(&id);
        }
        named
    }

    /// The next request of a named caller asks the store.
    pub(crate) fn forget_named(&self, id: CredentialId) {
        self.revocations.fetch_add(1, Ordering::AcqRel);
        self.named.remove(&id);
    }

    /// The store says that this credential is revoked: nobody here sends it
    /// again.
    pub(crate) fn revoke(&self, id: CredentialId) {
        let pinned = lock(&self.pinned).get(&id).cloned();
        if let Some(cell) = pinned.or_else(|| self.cells.get(&id)) {
            cell.revoke();
        }
    }

    /// The next request asks the store.
    pub(crate) fn forget(&self, id: GrantId) {
        self.revocations.fetch_add(1, Ordering::AcqRel);
        self.grants.remove(&id);
    }

    /// The next request of everybody asks the store: who was revoked is not
    /// known.
    pub(crate) fn read_afresh(&self) {
        self.revocations.fetch_add(1, Ordering::AcqRel);
        self.grants.clear();
        self.named.clear();
    }

    /// Whether anything was read within `staleness`, and may be served.
    pub(crate) fn has_read(&self, now: SystemTime, staleness: Duration) -> bool {
        let read_at = Duration::from_millis(self.read_at.load(Ordering::Relaxed));
        is_current(SystemTime::UNIX_EPOCH + read_at, now, staleness)
            && (!self.grants.is_empty() || !self.named.is_empty())
    }

    fn note_read(&self, at: SystemTime) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let milliseconds = since.unwrap_or_default().as_millis();
        let milliseconds = u64::try_from(milliseconds).unwrap_or_default();
        self.read_at.store(milliseconds, Ordering::Relaxed);
    }

    /// What all grants of this credential share, brought up to date.
    pub(crate) fn credential(
        &self,
        id: CredentialId,
        provider: &str,
        snapshot: Snapshot,
    ) -> (Arc<Cell>, Arc<Snapshot>) {
        if let Some(cell) = self.known(id) {
            let snapshot = cell.adopt(snapshot);
            return (cell, snapshot);
        }
        let new = Arc::new(Cell::new(id, provider, snapshot));
        let Ok(cell) = self
            .cells
            .get_or_insert_with(&id, || Ok::<_, Infallible>(Arc::clone(&new)));
        // Somebody else may have inserted theirs meanwhile.
        let snapshot = cell.adopt(new.current());
        (cell, snapshot)
    }

    /// What this process knows of a credential, if anything.
    pub(crate) fn known(&self, id: CredentialId) -> Option<Arc<Cell>> {
        let pinned = lock(&self.pinned).get(&id).cloned();
        pinned.or_else(|| self.cells.get(&id))
    }

    /// Whether it holds what the store does not have yet.
    pub(crate) fn is_pinned(&self, id: CredentialId) -> bool {
        lock(&self.pinned).contains_key(&id)
    }

    /// Keeps this credential in memory for as long as the pin lives.
    pub(crate) fn pin(&self, cell: &Arc<Cell>) -> Pin {
        lock(&self.pinned).insert(cell.id, Arc::clone(cell));
        Pin {
            pinned: Arc::clone(&self.pinned),
            id: cell.id,
        }
    }
}

impl fmt::Debug for GrantCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantCache")
            .field("grants", &self.grants.len())
            .field("credentials", &self.cells.len())
            .finish_non_exhaustive()
    }
}

pub(crate) struct Pin {
    pinned: Arc<Mutex<HashMap<CredentialId, Arc<Cell>>>>,
    id: CredentialId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        lock(&self.pinned).remove(&self.id);
    }
}

/// A grant as it was read, and which of its access tokens were verified.
pub(crate) struct Entry {
    pub(crate) grant: Grant,
    /// Those of its credentials that were asked for here.
    cells: Box<[Arc<Cell>]>,
    verified: Box<[Verified]>,
    pub(crate) read_at: SystemTime,
}

impl Entry {
    fn is_current(&self, now: SystemTime, staleness: Duration) -> bool {
        is_current(self.read_at, now, staleness)
    }

    fn verified(&self, digest: &[u8; 32], now: SystemTime) -> Option<&Verified> {
        self.verified.iter().find(|token| {
            verify_slices_are_equal(&token.digest, digest).is_ok() && now < token.until
        })
    }

    /// The credential of this provider, if it was asked for here.
    pub(crate) fn cell(&self, provider: &str) -> Option<&Arc<Cell>> {
        self.cells.iter().find(|cell| *cell.provider == *provider)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("grant", &self.grant.id)
            .field("cells", &self.cells)
            .finish_non_exhaustive()
    }
}

/// What a caller was named for, as it was read.
pub(crate) struct Named {
    pub(crate) subject: Box<str>,
    pub(crate) cell: Arc<Cell>,
    pub(crate) read_at: SystemTime,
}

fn is_current(read_at: SystemTime, now: SystemTime, staleness: Duration) -> bool {
    // A clock that was set back makes an entry old, not eternal.
    now.duration_since(read_at).is_ok_and(|age| age < staleness)
}

/// An access token that was verified, by its SHA-256.
#[derive(Clone)]
pub(crate) struct Verified {
    pub(crate) digest: [u8; 32],
    /// Its expiry and the leeway.
    pub(crate) until: SystemTime,
    /// How the row would name it, were it revoked.
    pub(crate) revocation_entry: [u8; 24],
    /// Its scope, if it is less than the grant's.
    pub(crate) narrowed: Option<Arc<str>>,
}

/// Per grant: its clients refresh now and then, with requests under way.
const VERIFIED_TOKENS: usize = 8;
