//! Rotating the keys of a deployment, while traffic runs.
//!
//! 1. A new key is given to every replica, in second place, and then moved to the
//!    first: from then on it seals, and tags tokens.
//! 2. [`Regrant::rotate_keys`] seals anew what lies under other keys. It puts the
//!    same secrets into a row that is still at the same generation and holds the
//!    same bytes, in one statement: a refresh, a new login or a revocation that
//!    comes first wins, and one that comes later does not notice. Nothing is locked
//!    and nothing waits for it.
//! 3. [`Regrant::key_status`] says when nothing is left under a key and its access
//!    tokens have expired. Then it may be removed.
//! 4. Refresh tokens, codes and direct tokens that a removed key tagged stay good:
//!    the row's hash decides.
//!
//! A row that does not open is an alarm, and left as it is.

mod status;

use std::cmp::max;
use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::Instant;

use crate::credential;
use crate::id::CredentialId;
use crate::regrant::Regrant;
use crate::seal::SealError;
use crate::state::Core;
use crate::store::Credential;
use crate::store::CredentialFilter;
use crate::store::StoreError;
use crate::store::StoreErrorKind;

pub use self::status::KeyStatus;

impl Regrant {
    /// Seals under the first key of the keyring whatever is sealed under another
    /// one, while requests are served. Says after each row how far it has come.
    ///
    /// May be given up at any time, and run again: it goes on with what is left.
    /// More than one at once do the same work twice and no harm.
    ///
    /// What [`KeyProgress::remaining`] counts at the end is still under another
    /// key: rows that do not open, and those that a replica which seals under
    /// another key goes on refreshing.
    ///
    /// ```
    /// # use regrant::Regrant;
    /// # use regrant::seal::Keyring;
    /// # use regrant::store::memory::MemoryStore;
    /// use regrant::key_rotation::Pace;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// # let store = MemoryStore::new();
    /// # let keyring = Keyring::generate()?;
    /// # let regrant = Regrant::builder("https://gateway.example", store, keyring).start().await?;
    /// let done = regrant.rotate_keys(Pace::default(), |_progress| ()).await?;
    /// assert_eq!(done.remaining, 0);
    /// for key in regrant.key_status().await? {
    ///     println!("{}: {}", key.id, key.next_step(std::time::SystemTime::now()));
    /// }
    /// # Ok::<_, regrant::BoxError>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// If the store cannot be reached. What was re-sealed until then stays so.
    ///
    /// Cancellation: each row is one statement, which is carried out or not.
    pub async fn rotate_keys(
        &self,
        pace: Pace,
        progress: impl FnMut(KeyProgress) + Send,
    ) -> Result<KeyProgress, StoreError> {
        let sealing = self.sealing_id()?;
        let usage = self.core.store.upkeep().key_usage().await?;
        let others = usage.iter().filter(|used| used.id != sealing);
        let remaining = others.map(|used| used.credentials).sum();
        let mut rotation = Resealing {
            core: &self.core,
            filter: CredentialFilter {
                not_sealed_under: Some(sealing),
                ..CredentialFilter::default()
            },
            pace,
            next_row: Instant::now(),
            unopened: HashSet::new(),
            reached: KeyProgress {
                remaining,
                ..KeyProgress::default()
            },
            report: progress,
        };
        (rotation.report)(rotation.reached);
        let mut last = rotation.pass().await?;
        for _ in 1..PASSES {
            if last.openable > 0 {
                last = rotation.pass().await?;
            }
        }
        rotation.reached.remaining = match last.openable {
            0 => last.unopened,
            _ => rotation.count().await?,
        };
        (rotation.report)(rotation.reached);
        Ok(rotation.reached)
    }

    fn sealing_id(&self) -> Result<String, StoreError> {
        let sealing = self.core.keyring.sealing();
        let sealing = sealing.map_err(|error| StoreError::new(StoreErrorKind::Corrupt, error))?;
        Ok(sealing.id().to_owned())
    }
}

/// How fast [`Regrant::rotate_keys`] goes. The default is 500 rows a page, and as
/// fast as eight statements at once are answered.
///
/// ```
/// use std::num::NonZeroU32;
/// use regrant::key_rotation::Pace;
///
/// let pace = Pace::default().rows_per_second(NonZeroU32::new(200).unwrap());
/// # let _ = pace;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rows_per_second: Option<NonZeroU32>,
    batch: u32,
}

impl Pace {
    /// Not more than so many rows a second. The default is no limit.
    #[must_use]
    pub fn rows_per_second(mut self, rows: NonZeroU32) -> Self {
        self.rows_per_second = Some(rows);
        self
    }

    /// How many rows a page looks at. The default is 500.
    #[must_use]
    pub fn batch(mut self, rows: NonZeroU32) -> Self {
        self.batch = rows.get();
        self
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            rows_per_second: None,
            batch: 500,
        }
    }
}

/// How far [`Regrant::rotate_keys`] has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct KeyProgress {
    /// Rows under other keys that were looked at, some of them more than once.
    pub looked_at: u64,
    /// Rows that were sealed anew.
    pub resealed: u64,
    /// Rows that do not open: their key is missing, or they were changed.
    pub unopened: u64,
    /// Rows that are left under other keys: an estimate, exact at the end.
    pub remaining: u64,
}

struct Resealing<'a, P> {
    core: &'a Core,
    filter: CredentialFilter,
    pace: Pace,
    /// Not before this time.
    next_row: Instant,
    unopened: HashSet<CredentialId>,
    reached: KeyProgress,
    report: P,
}

impl<P: FnMut(KeyProgress) + Send> Resealing<'_, P> {
    /// Goes through all rows once.
    async fn pass(&mut self) -> Result<Found, StoreError> {
        let mut found = Found::default();
        let mut after = None;
        loop {
            let page =
                self.core
                    .store
                    .upkeep()
                    .credentials(self.filter.clone(), after, self.pace.batch);
            let page = page.await?;
            self.batch(page.rows, &mut found).await?;
            after = page.next;
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    async fn batch(&mut self, rows: Vec<Credential>, found: &mut Found) -> Result<(), StoreError> {
        let (core, pace) = (self.core, self.pace);
        let paced = stream::unfold(
            (rows.into_iter(), &mut self.next_row),
            move |(mut rows, next_row)| async move {
                let row = rows.next()?;
                wait(next_row, pace).await;
                Some((row, (rows, next_row)))
            },
        );
        let mut outcomes = paced
            .map(|row| reseal(core, row))
            .buffer_unordered(AT_ONCE)
            .boxed();
        while let Some(outcome) = outcomes.next().await {
            self.reached.looked_at += 1;
            match outcome? {
                Outcome::Resealed => {
                    found.openable += 1;
                    self.reached.resealed += 1;
                    self.reached.remaining = self.reached.remaining.saturating_sub(1);
                }
                Outcome::Changed => found.openable += 1,
                Outcome::Unopened(id, error) => {
                    found.unopened += 1;
                    if self.unopened.insert(id) {
                        self.reached.unopened += 1;
                        tracing::error!(
                            credential = %id,
                            error = &error as &dyn std::error::Error,
                            "a stored credential does not open and cannot be sealed anew"
                        );
                    }
                }
            }
            (self.report)(self.reached);
        }
        Ok(())
    }

    /// How many are under another key now.
    async fn count(&self) -> Result<u64, StoreError> {
        let mut count = 0;
        let mut after = None;
        loop {
            let upkeep = self.core.store.upkeep();
            let page = upkeep.credentials(self.filter.clone(), after, self.pace.batch);
            let page = page.await?;
            count += u64::try_from(page.rows.len()).unwrap_or(u64::MAX);
            after = page.next;
            if after.is_none() {
                return Ok(count);
            }
        }
    }
}

/// What a pass found under other keys.
#[derive(Default)]
struct Found {
    /// Sealed anew, or changed by somebody else who may have sealed it so.
    openable: u64,
    unopened: u64,
}

enum Outcome {
    Resealed,
    /// Somebody was faster: it is looked at again.
    Changed,
    Unopened(CredentialId, SealError),
}

async fn reseal(core: &Core, row: Credential) -> Result<Outcome, StoreError> {
    let sealed = match credential::reseal(&core.keyring, &row) {
        Ok(sealed) => sealed,
        Err(error) => return Ok(Outcome::Unopened(row.id, error)),
    };
    let upkeep = core.store.upkeep();
    let resealed = upkeep.reseal(row.id, row.generation, row.sealed, sealed);
    Ok(if resealed.await? {
        Outcome::Resealed
    } else {
        Outcome::Changed
    })
}

/// Until the next row may be looked at. What was missed while the store was slow
/// is made up for, but for a moment's worth only.
async fn wait(next_row: &mut Instant, pace: Pace) {
    let Some(rate) = pace.rows_per_second else {
        return;
    };
    let earliest = Instant::now().checked_sub(CATCHING_UP);
    let due = earliest.map_or(*next_row, |earliest| max(*next_row, earliest));
    *next_row = due + Duration::from_secs(1) / rate.get();
    tokio::time::sleep_until(due).await;
}

/// A replica that seals under another key may go on refreshing for ever.
const PASSES: usize = 3;
/// Statements under way: fewer than a pool has connections.
const AT_ONCE: usize = 8;
const CATCHING_UP: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rows_are_looked_at_at_the_pace_that_is_asked_for() {
        let pace = Pace::default().rows_per_second(NonZeroU32::MIN.saturating_add(99));
        let begun = Instant::now();
        let mut next_row = begun;
        for _ in 0..=100 {
            wait(&mut next_row, pace).await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(1));

        // After a pause there are no more than a moment's worth at once.
        tokio::time::advance(Duration::from_secs(60)).await;
        let paused = Instant::now();
        for _ in 0..=100 {
            wait(&mut next_row, pace).await;
        }
        assert!(paused.elapsed() >= Duration::from_millis(900));
    }
}
