//! How an attempt ends in the store: what a refusal means, and how a success is
//! kept from being lost.

use std::sync::Arc;
use std::time::Duration;

use super::attempt::FIRST_PAUSE;
use crate::credential;
use crate::credential::Cell;
use crate::error::RefreshErrorKind;
use crate::journal::Entry;
use crate::provider::ProviderError;
use crate::provider::ProviderErrorKind;
use crate::state::Core;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::LOST_IN_FLIGHT;
use crate::store::Replacement;
use crate::store::Settlement;
use crate::store::StoreError;
use crate::store::StoreErrorKind;
use crate::telemetry;
use crate::telemetry::Outcome;

/// What follows from a provider's refusal.
pub(super) struct Verdict {
    pub(super) settlement: Settlement,
    /// How long nobody should ask for this credential again.
    pub(super) wait: Duration,
    pub(super) kind: RefreshErrorKind,
    pub(super) outcome: Outcome,
}

impl Verdict {
    /// On a refresh of `row`, as it was claimed.
    pub(super) fn on(error: &ProviderError, row: &Credential, core: &Core) -> Self {
        let now = core.clock.now();
        let (own, kind, outcome) = match error.kind() {
            // The provider refuses a token that an attempt of ours had sent
            // before without hearing the answer: that one spent it.
            ProviderErrorKind::Terminal if row.unsettled > 0 && may_spend(core, row) => {
                return Self::terminal(LOST_IN_FLIGHT, Outcome::LostInFlight);
            }
            ProviderErrorKind::Terminal => {
                let reason = error.code().unwrap_or("ended");
                return Self::terminal(reason, Outcome::Terminal);
            }
            // Dead when its access token is.
            ProviderErrorKind::Unsupported if row.expires_at.is_some_and(|at| at <= now) => {
                return Self::terminal("unsupported", Outcome::Terminal);
            }
            ProviderErrorKind::Unsupported => (
                Duration::ZERO,
                RefreshErrorKind::NotRefreshable,
                Outcome::ProviderMisconfigured,
            ),
            ProviderErrorKind::Misconfigured => (
                back_off(core, row),
                RefreshErrorKind::Misconfigured,
                Outcome::ProviderMisconfigured,
            ),
            ProviderErrorKind::Ambiguous => (
                spacing(core, row.unsettled),
                RefreshErrorKind::Provider,
                Outcome::Ambiguous,
            ),
            ProviderErrorKind::Transient | ProviderErrorKind::Rejected => (
                back_off(core, row),
                RefreshErrorKind::Provider,
                Outcome::TransientProvider,
            ),
        };
        let asked = error.retry_after().unwrap_or_default();
        let wait = own.max(asked).min(LONGEST_RETRY_AFTER);
        Self {
            settlement: Settlement::Released {
                not_before: now + wait,
                unsettled: row.unsettled + u32::from(outcome == Outcome::Ambiguous),
                failures: row.failures.saturating_add(1),
            },
            wait,
            kind,
            outcome,
        }
    }

    fn terminal(reason: &str, outcome: Outcome) -> Self {
        // It is written down, and not every store takes every text.
        let is_plain = |c: &char| matches!(c, ' '..='~');
        Self {
            settlement: Settlement::Terminal {
                reason: reason.chars().filter(is_plain).take(64).collect(),
            },
            wait: Duration::ZERO,
            kind: RefreshErrorKind::Terminal,
            outcome,
        }
    }
}

fn may_spend(core: &Core, row: &Credential) -> bool {
    core.provider(&row.provider)
        .map_or(true, |provider| provider.spends())
}

/// How long a credential is left alone after its next failure in a row.
fn back_off(core: &Core, row: &Credential) -> Duration {
    let wait = doubled(TRANSIENT_PAUSE, row.failures, LONGEST_PAUSE);
    core.jitter.spread(wait)
}

/// How long to wait before a token is sent again that may be spent: time for
/// whoever holds the answer to store it. There is no last attempt: as long as
/// nobody knows, giving up would end a login that the provider may not have.
pub(super) fn spacing(core: &Core, unsettled: u32) -> Duration {
    // With leases shorter than that, nobody waits for so long.
    let first = AMBIGUOUS_PAUSE.min(core.timings.lease);
    doubled(first, unsettled, LONGEST_SPACING)
}

/// `first`, twice as long each further time.
pub(super) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 2_u32.saturating_pow(times);
    first.saturating_mul(factor).min(longest)
}

/// The last step of a refresh that succeeded: it must not be lost.
pub(super) struct Settling {
    core: Arc<Core>,
    claim: Claim,
    /// As it is to be stored, at the next generation.
    row: Credential,
}

impl Settling {
    pub(super) fn new(core: Arc<Core>, claim: Claim, row: Credential) -> Self {
        Self { core, claim, row }
    }

    /// The row that counts from now on: ours, or what somebody else stored.
    /// `None` if it is gone.
    ///
    /// # Errors
    ///
    /// If ours is not stored yet and may still be.
    pub(super) async fn once(&self) -> Result<Option<Credential>, StoreError> {
        let limit = self.core.timings.persist_timeout;
        tokio::time::timeout(limit, self.store())
            .await
            .map_err(|elapsed| StoreError::new(StoreErrorKind::Unavailable, elapsed))?
    }

    async fn store(&self) -> Result<Option<Credential>, StoreError> {
        if self.settle().await? {
            return Ok(Some(self.stored()));
        }
        let Claim { id, generation, .. } = self.claim;
        let Some(stored) = self.core.store.credential(id).await? else {
            return Ok(None);
        };
        // An earlier try may have gone through unnoticed; then this is ours.
        if self.is_ours(&stored) {
            self.core.wrote(Entry::Refreshed(Box::new(stored.clone())));
            return Ok(Some(stored));
        }
        let is_lost = stored.terminal.as_deref() == Some(LOST_IN_FLIGHT);
        if stored.generation > generation || (stored.terminal.is_some() && !is_lost) {
            tracing::error!(
                credential = %id,
                generation,
                stored = stored.generation,
                "refreshed tokens came too late to be stored"
            );
            return Ok(Some(stored));
        }
        // Our lease ran out and another replica took its turn, with the token
        // that we had spent. What we hold is what came of it, so whatever that
        // one has heard or will hear does not count.
        let tokens = Replacement {
            sealed: self.row.sealed.clone(),
            expires_at: self.row.expires_at,
            refreshed_at: self.row.refreshed_at,
            linked: false,
            unless_revoked: true,
        };
        if self.core.store.replace(id, generation, tokens).await? {
            telemetry::count(&self.row.provider, Outcome::Recovered);
            return Ok(Some(self.stored()));
        }
        Err(StoreErrorKind::Unavailable.into())
    }

    fn stored(&self) -> Credential {
        let stored = Box::new(self.row.clone());
        self.core.wrote(Entry::Refreshed(stored));
        self.row.clone()
    }

    /// Whether it holds what we have to store, be it sealed anew meanwhile.
    fn is_ours(&self, stored: &Credential) -> bool {
        credential::is_same(&self.core.keyring, stored, &self.row)
    }

    async fn settle(&self) -> Result<bool, StoreError> {
        let outcome = Settlement::Refreshed {
            sealed: self.row.sealed.clone(),
            expires_at: self.row.expires_at,
            refreshed_at: self.row.refreshed_at,
            forced_at: self.row.forced_at,
            not_before: self.row.not_before,
        };
        self.core.store.settle(self.claim, outcome).await
    }

    /// What somebody else stored counts, though it has the number of ours.
    fn give_way(&self, cell: &Cell, stored: &Credential) {
        // If it does not open, that is an alarm already.
        if let Ok((snapshot, _spendable)) = credential::open(&self.core, stored) {
            cell.replace(snapshot);
        }
    }

    /// Goes on until the pair is stored. Until then this process serves it from
    /// `cell`, which must not be forgotten.
    pub(super) fn until_done(self, cell: &Arc<Cell>) {
        let pin = self.core.cache.pin(cell);
        let cell = Arc::clone(cell);
        let tasks = self.core.tasks.clone();
        tasks.spawn(async move {
            loop {
                // Shorter than the time that others leave us when they take our
                // lease over.
                tokio::time::sleep(FIRST_PAUSE).await;
                match self.once().await {
                    Ok(Some(stored)) if self.is_ours(&stored) => {
                        break tracing::info!("the refreshed credential is stored now");
                    }
                    Ok(Some(stored)) => break self.give_way(&cell, &stored),
                    Ok(None) => {
                        break tracing::error!(
                            "refreshed tokens cannot be stored: their row is gone"
                        );
                    }
                    // Whatever it is, it may pass.
                    Err(_error) => tokio::time::sleep(SETTLE_PAUSE).await,
                }
            }
            drop(pin);
        });
    }
}

/// Goes on until the store knows that the provider ended a login, so that no
/// replica asks again.
pub(super) fn end_for_good(core: &Arc<Core>, claim: Claim, settlement: Settlement) {
    let core = Arc::clone(core);
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        while core.store.settle(claim, settlement.clone()).await.is_err() {
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    });
}

/// For one credential: no request may start a call of its own meanwhile.
const TRANSIENT_PAUSE: Duration = Duration::from_secs(1);
/// Not longer: after an outage users wait for this to pass.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Time for another replica's answer to arrive, should it be the one that counts.
const AMBIGUOUS_PAUSE: Duration = Duration::from_secs(2);
/// Not longer either, for the same reason.
const LONGEST_SPACING: Duration = Duration::from_secs(60);
/// Between two tries to store; well below the one above.
const SETTLE_PAUSE: Duration = Duration::from_millis(500);
pub(super) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
