//! A circuit breaker for each provider: when it refuses this gateway, limits it
//! or fails again and again, nobody asks until a while has passed; then one
//! attempt finds out for all.
//!
//! | what the provider does | the circuit |
//! |---|---|
//! | answers, a refusal of the refresh token included | closes |
//! | refuses the gateway itself | opens, 30 s, then longer each time |
//! | says `Retry-After` | opens at once, for that long |
//! | fails, five times in a row | opens, 1 s, then longer each time |
//!
//! Trouble with one credential alone opens nothing, whatever the provider calls
//! it, and who found the circuit still broken lets others go first next time:
//! one bad credential must not stop everybody.
//!
//! Where each tenant has a host of its own, each has a circuit of its own: one
//! that is away must not stop the others. It knows one process. Replicas find
//! out for themselves, one call each.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use super::attempt::until;
use super::settle::LONGEST_RETRY_AFTER;
use super::settle::doubled;
use crate::error::RefreshErrorKind;
use crate::id::CredentialId;
use crate::jitter::Jitter;
use crate::provider::ProviderError;
use crate::provider::ProviderErrorKind;
use crate::sync::lock;

/// The circuits of providers, and of their tenants, that fail.
#[derive(Default)]
pub(crate) struct Breakers(Mutex<BTreeMap<Key, Circuit>>);

/// A provider's name, and the tenant.
type Key = (Box<str>, Option<Box<str>>);

/// Nobody may ask the provider now.
pub(super) struct Open {
    /// Zero while an attempt of somebody else is finding out.
    pub(super) wait: Duration,
    pub(super) kind: RefreshErrorKind,
}

impl Breakers {
    /// The right to ask the provider once.
    pub(super) fn admit(
        &self,
        provider: &str,
        tenant: Option<&str>,
        credential: CredentialId,
        now: SystemTime,
    ) -> Result<Permit<'_>, Open> {
        let key = (provider.into(), tenant.map(Into::into));
        let mut circuits = lock(&self.0);
        let is_probe = match circuits.get_mut(&key) {
            Some(circuit) if circuit.is_open() => {
                circuit.probe(credential, now)?;
                true
            }
            Some(_) | None => false,
        };
        Ok(Permit {
            breakers: self,
            key,
            credential,
            is_probe,
        })
    }
}

impl fmt::Debug for Breakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                lock(&self.0)
                    .iter()
                    .map(|(key, circuit)| (key, circuit.failures)),
            )
            .finish()
    }
}

/// Asking a provider; dropped without a word, it says nothing of the provider.
pub(super) struct Permit<'a> {
    breakers: &'a Breakers,
    key: Key,
    credential: CredentialId,
    is_probe: bool,
}

impl Permit<'_> {
    /// The provider works: it gave tokens, or its verdict on a refresh token.
    pub(super) fn works(self) {
        let mut circuits = lock(&self.breakers.0);
        // What was under way when it opened says nothing of now.
        if self.is_probe || circuits.get(&self.key).is_some_and(|c| !c.is_open()) {
            circuits.remove(&self.key);
        }
    }

    /// It does not. How long the circuit is open now; zero if it is not.
    pub(super) fn fails(self, error: &ProviderError, now: SystemTime, jitter: &Jitter) -> Duration {
        let mut circuits = lock(&self.breakers.0);
        if circuits.len() >= MOST_CIRCUITS {
            circuits.retain(|_, circuit| circuit.remaining(now).is_some());
        }
        let circuit = circuits.entry(self.key.clone()).or_default();
        // What was under way when it opened says nothing new.
        if circuit.is_open() && !self.is_probe {
            return circuit.remaining(now).unwrap_or_default();
        }
        let wait = circuit.fail(self.credential, error, jitter);
        if wait > Duration::ZERO {
            circuit.open_until = Some(now + wait);
            circuit.opened_for = wait;
            tracing::error!(
                provider = &*self.key.0,
                seconds = wait.as_secs_f64(),
                error = error as &dyn std::error::Error,
                "the provider is left alone"
            );
        }
        wait
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.is_probe
            && let Some(circuit) = lock(&self.breakers.0).get_mut(&self.key)
        {
            circuit.is_probed = false;
        }
    }
}

#[derive(Default)]
struct Circuit {
    /// In a row.
    failures: u32,
    refusals: u32,
    open_until: Option<SystemTime>,
    opened_for: Duration,
    /// Whose attempt failed first, and whose failed last.
    first: Option<CredentialId>,
    last: Option<CredentialId>,
    /// It is not one credential alone that fails.
    is_common: bool,
    /// One attempt is finding out.
    is_probed: bool,
}

impl Circuit {
    fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// The right to find out, once the time is over.
    fn probe(&mut self, credential: CredentialId, now: SystemTime) -> Result<(), Open> {
        let kind = if self.refusals > 0 {
            RefreshErrorKind::Misconfigured
        } else {
            RefreshErrorKind::Provider
        };
        match self.remaining(now) {
            Some(wait) => Err(Open { wait, kind }),
            None if self.is_probed || self.goes_last(credential, now) => Err(Open {
                wait: Duration::ZERO,
                kind,
            }),
            None => {
                self.is_probed = true;
                Ok(())
            }
        }
    }

    /// For as long again as it was open, if others use this provider at all.
    fn goes_last(&self, credential: CredentialId, now: SystemTime) -> bool {
        self.is_common
            && self.last == Some(credential)
            && self
                .open_until
                .is_some_and(|until| now < until + self.opened_for)
    }

    fn remaining(&self, now: SystemTime) -> Option<Duration> {
        until(self.open_until?, now, LONGEST_RETRY_AFTER)
    }

    /// How long nobody may ask from now on.
    fn fail(
        &mut self,
        credential: CredentialId,
        error: &ProviderError,
        jitter: &Jitter,
    ) -> Duration {
        self.is_common |= *self.first.get_or_insert(credential) != credential;
        self.last = Some(credential);
        let asked = error.retry_after().unwrap_or_default();
        self.failures = self.failures.saturating_add(1);
        let own = if error.kind() == ProviderErrorKind::Misconfigured {
            self.refusals = self.refusals.saturating_add(1);
            // It takes two to open it.
            let further = self.refusals.saturating_sub(2);
            doubled(REFUSED_PAUSE, further, LONGEST_RETRY_AFTER)
        } else {
            self.refusals = 0;
            match self.failures.checked_sub(TOLERATED_FAILURES) {
                Some(beyond) => {
                    jitter.spread(doubled(FAILING_PAUSE, beyond, LONGEST_FAILING_PAUSE))
                }
                None => Duration::ZERO,
            }
        };
        let own = if self.is_common { own } else { Duration::ZERO };
        own.max(asked).min(LONGEST_RETRY_AFTER)
    }
}

/// Tenants come and go.
const MOST_CIRCUITS: usize = 1_000;
const TOLERATED_FAILURES: u32 = 5;
const FAILING_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_FAILING_PAUSE: Duration = Duration::from_secs(30);
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
