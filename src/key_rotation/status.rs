//! What each key of a deployment is used for, and what is to be done about it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::regrant::Regrant;
use crate::start::access_until;
use crate::start::overlap;
use crate::store::StoreError;

impl Regrant {
    /// What each key is used for that the keyring holds, the store knows or rows
    /// name. Looks at every row, page by page.
    ///
    /// # Errors
    ///
    /// If the store cannot be reached.
    pub async fn key_status(&self) -> Result<Vec<KeyStatus>, StoreError> {
        let core = &self.core;
        let sealing = self.sealing_id()?;
        let known = core.store.keys().await?;
        let usage = core.store.upkeep().key_usage().await?;
        let (lifetimes, now) = (&core.lifetimes, core.clock.now());
        let overlap = overlap(&known, &usage, &sealing, lifetimes, now);

        let ids = core.keyring.key_ids();
        let ids = ids.chain(known.iter().map(|key| key.id.as_str()));
        let ids = ids.chain(usage.iter().map(|used| used.id.as_str()));
        let mut keys = BTreeMap::new();
        for id in ids {
            let record = known.iter().find(|key| key.id == id);
            let used = usage.iter().find(|used| used.id == id);
            let seals = id == sealing;
            // Tokens are issued under keys that are registered, and no others.
            let overlap = overlap
                .filter(|_at| !seals && record.is_some_and(|record| record.retired_at.is_none()));
            let status = KeyStatus {
                id: id.to_owned(),
                in_keyring: core.keyring.by_id(id).is_some(),
                seals,
                registered: record.is_some(),
                retired_at: record.and_then(|record| record.retired_at),
                credentials: used.map_or(0, |used| used.credentials),
                grants: used.map_or(0, |used| used.grants),
                access_until: access_until(used, overlap, lifetimes),
            };
            keys.insert(id.to_owned(), status);
        }
        Ok(keys.into_values().collect())
    }
}

/// What a key is used for.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct KeyStatus {
    /// Its id. Empty for rows that name no key.
    pub id: String,
    /// Whether this process holds it.
    pub in_keyring: bool,
    /// Whether it is the first one of this process.
    pub seals: bool,
    /// Whether a gateway was ever started with it in the first place.
    pub registered: bool,
    /// When a gateway was first started without it.
    pub retired_at: Option<SystemTime>,
    /// How many credentials are sealed under it.
    pub credentials: u64,
    /// How many living grants have a pair that was issued under it.
    pub grants: u64,
    /// Until when access tokens that were issued under it may be good, this
    /// process's leeway included. `None` if there are none.
    pub access_until: Option<SystemTime>,
}

impl KeyStatus {
    /// Whether the key may be removed from every keyring: nothing fails without
    /// it. Refresh tokens that it tagged stay good.
    pub fn is_removable(&self, now: SystemTime) -> bool {
        !self.seals && self.credentials == 0 && self.access_until.is_none_or(|until| until <= now)
    }

    /// What is to be done about it next, in a few words.
    pub fn next_step(&self, now: SystemTime) -> String {
        let Self {
            credentials,
            in_keyring,
            ..
        } = self;
        if self.id.is_empty() {
            return format!("restore {credentials} rows: they name no key");
        }
        if self.seals {
            return "sealing".to_owned();
        }
        let wait = self.access_until.and_then(|at| at.duration_since(now).ok());
        match (wait.filter(|wait| !wait.is_zero()), in_keyring) {
            (_, false) if *credentials > 0 => {
                format!("add it back: {credentials} rows are sealed under it")
            }
            (Some(_), false) => "add it back: access tokens of it may live".to_owned(),
            (None, false) => "gone".to_owned(),
            (_, true) if *credentials > 0 => format!("re-seal {credentials} rows"),
            (Some(wait), true) => {
                let seconds = wait.as_millis().div_ceil(1_000);
                format!("wait {seconds} s: access tokens of it may live")
            }
            (None, true) if self.registered => "remove it".to_owned(),
            (None, true) => "ready to be moved to the first place".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_status_says_what_to_do_next() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let old = KeyStatus {
            id: "old".to_owned(),
            in_keyring: true,
            seals: false,
            registered: true,
            retired_at: None,
            credentials: 12,
            grants: 3,
            access_until: Some(now + Duration::from_secs(9)),
        };
        let resealed = KeyStatus {
            credentials: 0,
            ..old.clone()
        };
        let expired = KeyStatus {
            access_until: Some(now),
            ..resealed.clone()
        };
        let absent = |status: &KeyStatus| KeyStatus {
            in_keyring: false,
            ..status.clone()
        };
        let sealing = KeyStatus {
            seals: true,
            ..expired.clone()
        };
        let new = KeyStatus {
            registered: false,
            ..expired.clone()
        };
        let nameless = KeyStatus {
            id: String::new(),
            ..absent(&old)
        };
        for (status, step, is_removable) in [
            (&old, "re-seal 12 rows", false),
            (&resealed, "wait 9 s: access tokens", false),
            (&expired, "remove it", true),
            (&sealing, "sealing", false),
            (&new, "ready to be moved", true),
            (&absent(&old), "add it back: 12 rows", false),
            (&absent(&resealed), "add it back: access tokens", false),
            (&absent(&expired), "gone", true),
            (&nameless, "restore 12 rows", false),
        ] {
            let next = status.next_step(now);
            assert!(next.starts_with(step), "{next}");
            assert_eq!(status.is_removable(now), is_removable, "{next}");
        }
    }
}
