//! What this process wrote lately, in case the database forgets it.
//!
//! With asynchronous replication a database that fails over loses its last
//! writes, acknowledged or not. Rotations and refreshes among them are logins:
//! the client has its new token, the provider has taken the old one.
//!
//! 1. Rotations, made or repeated, refreshed credentials and revocations of the
//!    last two minutes are kept here, the newest thousands of them: of tokens only
//!    hashes and what is sealed.
//! 2. They are written again when the store is heard of after it was not
//!    (`invalidation`), and as soon as a token or a row proves that it was set
//!    back. Each is a compare-and-swap: what the store has not lost stays as it is.
//! 3. A credential that was refreshed or logged in to later stays as it is,
//!    whatever its number: the count went back with the database.
//! 4. Whatever else was written then is lost, and so is what a process wrote that
//!    ended with the database. Who holds such a token is told to come again for
//!    as long as another process may still bring it.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::credential;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::state::Core;
use crate::store::Credential;
use crate::store::Grant;
use crate::store::RevocationReason;
use crate::store::Rotation;
use crate::store::StoreError;
use crate::store::StoreErrorKind;
use crate::sync::lock;

#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<VecDeque<(Instant, Entry)>>);

#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Rotated(Rotation),
    /// As it was stored.
    Refreshed(Box<Credential>),
    Revoked(GrantId, SystemTime, RevocationReason),
}

impl Entry {
    fn is_of_grant(&self, id: GrantId) -> bool {
        match self {
            Self::Rotated(rotation) => rotation.id == id,
            Self::Revoked(revoked, _, _) => *revoked == id,
            Self::Refreshed(_) => false,
        }
    }

    fn is_of_credential(&self, id: CredentialId) -> bool {
        match self {
            Self::Refreshed(row) => row.id == id,
            Self::Rotated(_) | Self::Revoked(..) => false,
        }
    }
}

impl Core {
    /// Notes what the store has just taken.
    pub(crate) fn wrote(&self, entry: Entry) {
        let mut entries = lock(&self.journal.0);
        // While the store is not heard of, what it may lose does not get old.
        if self.listening.hears() != Some(false) {
            drop_old(&mut entries);
        }
        if entries.len() >= AT_MOST {
            entries.pop_front();
        }
        entries.push_back((Instant::now(), entry));
    }

    /// Notes a rotation whose pair was handed out again: made elsewhere, or by an
    /// attempt of ours whose answer was lost. Once: a client may ask very often.
    pub(crate) fn repeated(&self, grant: &Grant) {
        if grant.replays == 0
            && let Some(rotation) = last_rotation(grant)
        {
            self.wrote(Entry::Rotated(rotation));
        }
    }

    /// The store is not heard of any more: what it has had for long is not lost.
    pub(crate) fn forget_old_writes(&self) {
        drop_old(&mut lock(&self.journal.0));
    }

    /// Writes everything again that the store may have forgotten.
    pub(crate) async fn write_again(&self) -> Result<(), StoreError> {
        self.write_those_again(|_entry| true).await.map(drop)
    }

    /// Brings back a credential whose row is older than what was stored from here.
    /// `false` if there is nothing to bring.
    pub(crate) async fn bring_back(&self, id: CredentialId) -> Result<bool, StoreError> {
        self.write_those_again(|entry| entry.is_of_credential(id))
            .await
    }

    /// The grant of a token that is genuine and says that the row was at this
    /// generation: as it is once everything was written again.
    ///
    /// # Errors
    ///
    /// If another process may still bring what is missing.
    pub(crate) async fn caught_up(
        &self,
        grant: Grant,
        generation: u64,
    ) -> Result<Grant, StoreError> {
        if generation <= grant.generation {
            return Ok(grant);
        }
        tracing::debug!(grant = %grant.id, "the database was set back: a rotation is missing");
        let id = grant.id;
        let mut caught_up = grant;
        if self
            .write_those_again(|entry| entry.is_of_grant(id))
            .await?
        {
            caught_up = self.living_grant(id).await?.unwrap_or(caught_up);
        }
        if generation > caught_up.generation && self.listening.is_catching_up() {
            return Err(StoreErrorKind::Unavailable.into());
        }
        Ok(caught_up)
    }

    /// Whether any of them had been forgotten.
    async fn write_those_again(
        &self,
        is_wanted: impl Fn(&Entry) -> bool,
    ) -> Result<bool, StoreError> {
        let entries = self.newest(is_wanted);
        let mut count = 0_u64;
        for entry in entries {
            match self.write_one_again(entry).await {
                Ok(is_back) => count += u64::from(is_back),
                // What no other try would change keeps none of the others waiting.
                Err(error) if error.kind() != StoreErrorKind::Unavailable => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "an acknowledged write cannot be made again"
                ),
                Err(error) => return Err(error),
            }
        }
        if count > 0 {
            tracing::error!(
                count,
                "the database had lost acknowledged writes: those of this process were made again"
            );
        }
        Ok(count > 0)
    }

    /// In the order in which they were written. Of one credential only the last: what
    /// was refreshed again is spent, and nobody is to find it in the store.
    fn newest(&self, is_wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let mut known = HashSet::new();
        let mut entries: Vec<Entry> = lock(&self.journal.0)
            .iter()
            .rev()
            .map(|(_, entry)| entry)
            .filter(|entry| is_wanted(entry))
            .filter(|entry| match entry {
                Entry::Refreshed(row) => known.insert(row.id),
                Entry::Rotated(_) | Entry::Revoked(..) => true,
            })
            .cloned()
            .collect();
        entries.reverse();
        entries
    }

    async fn write_one_again(&self, entry: Entry) -> Result<bool, StoreError> {
        match entry {
            Entry::Rotated(rotation) => self.store.rotate(rotation).await,
            Entry::Revoked(id, at, reason) => self.store.revoke_grant(id, at, reason).await,
            Entry::Refreshed(row) => self.store_again(&row).await,
        }
    }

    async fn store_again(&self, row: &Credential) -> Result<bool, StoreError> {
        let Some(stored) = self.store.credential(row.id).await? else {
            return Ok(false);
        };
        // The count went back with the database, and may have gone on from there: a
        // later refresh or a new login has a lower number and counts all the same.
        let is_outdated = stored.refreshed_at > row.refreshed_at;
        if stored.generation >= row.generation || is_outdated || stored.is_taken_back() {
            return Ok(false);
        }
        let Ok((snapshot, spendable)) = credential::open(self, row) else {
            return Ok(false);
        };
        // It is there already, at a lower number: somebody may be spending it.
        if credential::open(self, &stored).is_ok_and(|(there, _)| there.is_same(&snapshot)) {
            return Ok(false);
        }
        // Whoever refreshes it just now does so with a token that is spent: this
        // takes the lease away.
        let mut next = Credential {
            generation: stored.generation,
            ..row.clone()
        };
        let access_token = &snapshot.access_token;
        let mut tokens = credential::again(self, &next, access_token, spendable.as_ref(), false)
            .map_err(|error| StoreError::new(StoreErrorKind::Corrupt, error))?;
        // Its user may have taken it back since the row was read.
        tokens.unless_revoked = true;
        next.sealed.clone_from(&tokens.sealed);
        next.generation += 1;
        if !self
            .store
            .replace(row.id, stored.generation, tokens)
            .await?
        {
            return Ok(false);
        }
        if let (Some(cell), Ok((snapshot, _))) =
            (self.cache.known(row.id), credential::open(self, &next))
        {
            cell.replace(snapshot);
        }
        Ok(true)
    }
}

/// What brought a grant to where it is.
fn last_rotation(grant: &Grant) -> Option<Rotation> {
    let presented_hash = grant.previous_hash?;
    Some(Rotation {
        id: grant.id,
        generation: grant.generation.checked_sub(1)?,
        presented_hash,
        replaced_hash: grant.superseded_hash.unwrap_or(presented_hash),
        unless_used: grant.superseded_hash.is_some(),
        refresh_hash: grant.refresh_hash,
        key_id: grant.key_id.clone(),
        at: grant.rotated_at?,
        access_expires_at: grant.access_expires_at,
    })
}

fn drop_old(entries: &mut VecDeque<(Instant, Entry)>) {
    let is_old = |at: &Instant| at.elapsed() > KEPT_FOR;
    while entries.front().is_some_and(|(at, _)| is_old(at)) {
        entries.pop_front();
    }
}

/// Longer than any replica lags behind that could be promoted.
const KEPT_FOR: Duration = Duration::from_secs(120);
/// Some megabytes.
const AT_MOST: usize = 16_384;
