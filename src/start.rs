//! What keeps a gateway from starting, above all keys that are not there.
//!
//! Each key that sealed is registered with the store. Of those,
//!
//! 1. one that the keyring holds must be the same key;
//! 2. one that it does not hold must not be in use: no credential is sealed under
//!    it, and no access token that it authenticates may live. A start that would
//!    fail users one by one is refused, and says how many;
//! 3. one that is no longer in use is retired. It stays known by its id, because
//!    refresh tokens that it tagged come back after weeks.

use std::error::Error;
use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use crate::clock::Clock;
use crate::error::ConfigError;
use crate::seal::Keyring;
use crate::settings::Lifetimes;
use crate::store::KeyRecord;
use crate::store::KeyUsage;
use crate::store::Store;
use crate::store::StoreError;

/// Refuses to start without a key that is in use, or with another key under its
/// name. The keyring, which knows of the retired ones then.
pub(crate) async fn check_keys(
    store: &dyn Store,
    keyring: Keyring,
    clock: &dyn Clock,
    lifetimes: &Lifetimes,
    is_gateway: bool,
) -> Result<Keyring, StartError> {
    let check = KeyCheck {
        store,
        keyring: &keyring,
        now: clock.now(),
        lifetimes,
    };
    // Checked before anything is written: a start that is refused must not
    // leave a key behind that then keeps everybody else from starting.
    check.known().await?;
    check.register().await.map_err(StartError::Store)?;
    // And once more: of two replicas that give one id to different keys at the
    // same time, one stops here.
    let known = check.known().await?;
    if is_gateway {
        check.retire(&known).await.map_err(StartError::Store)?;
    }

    let ids: Vec<_> = known.iter().map(|key| key.id.as_str()).collect();
    Ok(keyring.with_retired(&ids))
}

struct KeyCheck<'a> {
    store: &'a dyn Store,
    keyring: &'a Keyring,
    now: SystemTime,
    lifetimes: &'a Lifetimes,
}

impl KeyCheck<'_> {
    async fn known(&self) -> Result<Vec<KeyRecord>, StartError> {
        let known = self.store.keys().await.map_err(StartError::Store)?;
        let mut missing = Vec::new();
        for key in &known {
            match self.keyring.by_id(&key.id) {
                None if self.may_be_in_use(key) => missing.push(key),
                Some(held) if held.check_value() != key.check_value => {
                    let id = key.id.clone();
                    return Err(StartError::KeyChanged { id });
                }
                None | Some(_) => {}
            }
        }
        if missing.is_empty() {
            return Ok(known);
        }
        // Looks at every row, so it is asked for only now.
        let usage = self.store.upkeep().key_usage().await;
        let usage = usage.map_err(StartError::Store)?;
        let sealing = self.keyring.key_ids().next().unwrap_or_default();
        let overlap = overlap(&known, &usage, sealing, self.lifetimes, self.now);
        for key in missing {
            let used = usage.iter().find(|used| used.id == key.id);
            let until = access_until(used, overlap, self.lifetimes);
            let access_for = until.and_then(|until| until.duration_since(self.now).ok());
            let access_for = access_for.unwrap_or_default();
            let (credentials, grants) = used.map_or((0, 0), |used| (used.credentials, used.grants));
            if credentials > 0 || !access_for.is_zero() {
                return Err(StartError::KeyMissing {
                    id: key.id.clone(),
                    credentials,
                    grants,
                    access_for,
                });
            }
        }
        Ok(known)
    }

    /// A replica that still had the key may have gone on after it was retired.
    fn may_be_in_use(&self, key: &KeyRecord) -> bool {
        key.retired_at.is_none_or(|at| self.now < at + STRAGGLING)
    }

    /// The one that seals, and those that were retired and are back.
    async fn register(&self) -> Result<(), StoreError> {
        let known = self.store.keys().await?;
        let is_back = |id: &str| {
            let mut known = known.iter();
            known.any(|key| key.id == id && key.retired_at.is_some())
        };
        for (position, key) in self.keyring.keys().enumerate() {
            if position == 0 || is_back(key.id()) {
                let record = KeyRecord {
                    id: key.id().to_owned(),
                    check_value: key.check_value(),
                    registered_at: Some(self.now),
                    retired_at: None,
                };
                self.store.register_key(record).await?;
            }
        }
        Ok(())
    }

    async fn retire(&self, known: &[KeyRecord]) -> Result<(), StoreError> {
        for key in known {
            if key.retired_at.is_none() && self.keyring.by_id(&key.id).is_none() {
                self.store.upkeep().retire_key(&key.id, self.now).await?;
                tracing::info!(
                    key = key.id,
                    "a key is retired: nothing is sealed under it any more"
                );
            }
        }
        Ok(())
    }
}

/// Until when a grant that has been rotated to the key that seals now may still
/// have an access token of the one before: its row does not tell. `None` if no
/// grant lives.
pub(crate) fn overlap(
    known: &[KeyRecord],
    usage: &[KeyUsage],
    sealing: &str,
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Option<SystemTime> {
    if usage.iter().all(|used| used.grants == 0) {
        return None;
    }
    let sealing = known.iter().find(|key| key.id == sealing);
    // One that nobody knows yet begins to seal now.
    let since = sealing.map_or(Some(now), |key| key.registered_at)?;
    Some(lifetimes.access_deadline(since, since))
}

/// Until when access tokens that were issued under a key may be good.
pub(crate) fn access_until(
    used: Option<&KeyUsage>,
    overlap: Option<SystemTime>,
    lifetimes: &Lifetimes,
) -> Option<SystemTime> {
    let until = used.and_then(|used| used.access_until).max(overlap);
    until.map(|until| until + lifetimes.leeway)
}

/// Why a gateway does not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// A setting cannot work.
    Config(ConfigError),
    /// Another key than this one was used under the same id.
    KeyChanged {
        /// The id.
        id: String,
    },
    /// A key is in use that the keyring does not hold.
    #[non_exhaustive]
    KeyMissing {
        /// The id of that key.
        id: String,
        /// How many credentials are sealed under it.
        credentials: u64,
        /// How many living grants have a pair that was issued under it.
        grants: u64,
        /// For how long access tokens that were issued under it may still be
        /// good.
        access_for: Duration,
    },
    /// The store cannot be used.
    Store(StoreError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(_) => f.write_str("a setting cannot work"),
            Self::KeyChanged { id } => write!(
                f,
                "key `{id}` is not the key that the store was sealed with: \
                 restore it, or give the new key another id"
            ),
            Self::KeyMissing {
                id,
                credentials,
                grants,
                access_for,
            } => {
                write!(
                    f,
                    "key `{id}` is missing from the keyring and in use: \
                     {credentials} credentials are sealed under it, \
                     {grants} grants have a pair that was issued under it"
                )?;
                if !access_for.is_zero() {
                    let seconds = access_for.as_millis().div_ceil(1_000);
                    write!(f, ", access tokens of it may live for {seconds} s")?;
                }
                f.write_str(": add it back, in any place but the first")
            }
            Self::Store(_) => f.write_str("the store cannot be used"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Store(error) => Some(error),
            Self::KeyChanged { .. } | Self::KeyMissing { .. } => None,
        }
    }
}

/// Replicas are replaced within that time.
const STRAGGLING: Duration = Duration::from_secs(24 * 3_600);
