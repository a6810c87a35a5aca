//! What a flight does: read, claim, spend, settle.
//!
//! | step | on what | may be lost |
//! |---|---|---|
//! | read | adopt what another replica refreshed meanwhile | yes |
//! | claim | generation, no running lease | yes: the lease ends by itself |
//! | spend | the refresh token, which may be single-use | **no** |
//! | settle | generation and fence | **no**: retried, served from memory meanwhile |
//!
//! Before the claim, in this order: the provider ended it; it is good enough
//! already; a newer pair is still on its way to the store; there is no refresh
//! token; somebody asked to be left alone; the upstream's word was followed a
//! moment ago; the provider itself is in trouble.
//!
//! A lease is the written intent to spend. Who finds one that ran out unsettled
//! does not know whether the token is spent: it says so in the row, leaves time
//! for the answer to turn up, and only then sends the token again.
//!
//! Nothing is locked and no connection is held while the provider is asked.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::Want;
use super::breaker::Open;
use super::breaker::Permit;
use super::flight::Outcome;
use super::settle::LONGEST_RETRY_AFTER;
use super::settle::Settling;
use super::settle::Verdict;
use super::settle::end_for_good;
use super::settle::spacing;
use crate::credential;
use crate::credential::Cell;
use crate::credential::Secrets;
use crate::credential::Snapshot;
use crate::credential::Spendable;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::provider::Provider;
use crate::provider::ProviderError;
use crate::provider::ProviderErrorKind;
use crate::provider::RefreshRequest;
use crate::provider::TokenResponse;
use crate::seal::random_bytes;
use crate::state::Core;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::LeaseHolder;
use crate::store::Settlement;
use crate::store::StoreError;
use crate::telemetry;

pub(super) struct Attempt {
    core: Arc<Core>,
    cell: Arc<Cell>,
    provider: Box<str>,
    want: Want,
    /// Claims again what it claimed without hearing so; `None` once the token
    /// may have been sent under it.
    holder: Option<LeaseHolder>,
}

impl Attempt {
    pub(super) fn new(core: Arc<Core>, cell: Arc<Cell>, provider: &str, want: Want) -> Self {
        Self {
            core,
            cell,
            provider: provider.into(),
            want,
            holder: None,
        }
    }

    #[tracing::instrument(
        name = "refresh",
        skip_all,
        fields(provider = &*self.provider, credential = %self.cell.id)
    )]
    pub(super) async fn run(mut self) -> Outcome {
        let deadline = Instant::now() + self.core.timings.wait_budget;
        let mut pause = FIRST_PAUSE;
        loop {
            let (wait, error) = match self.step().await {
                Ok(Step::Done(snapshot)) => return Ok(snapshot),
                Ok(Step::Again) => continue,
                Ok(Step::Wait { at_least, error }) => (Some(at_least.max(pause)), error),
                Err(error) => (None, error),
            };
            if error.kind() == RefreshErrorKind::Store {
                telemetry::count(&self.provider, telemetry::Outcome::TransientStore);
            }
            // Somebody is in trouble, but the old access token still works.
            let (current, now) = (self.cell.current(), self.core.clock.now());
            let is_for_good = matches!(
                error.kind(),
                RefreshErrorKind::Sealed | RefreshErrorKind::Terminal
            );
            if !is_for_good && self.want.can_do_with(&current, now) {
                let rest = wait.or(error.retry_after()).unwrap_or(pause);
                self.cell.rest(now, rest);
                return Ok(current);
            }
            let Some(wait) = wait else {
                return Err(error);
            };
            if Instant::now() + wait >= deadline {
                return Err(error.with_retry_after(Some(wait)));
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn step(&mut self) -> Result<Step, RefreshError> {
        let row = match self.core.store.credential(self.cell.id).await {
            Ok(Some(row)) => row,
            Ok(None) => return Err(missing_row()),
            Err(error) => return Ok(Step::wait(RefreshErrorKind::Store, error)),
        };
        let (snapshot, spendable) = credential::open(&self.core, &row)?;
        let known = self.cell.current().generation;
        let current = self.cell.adopt(snapshot);
        let now = self.core.clock.now();
        if current.terminal || self.cell.has_ended(current.generation) {
            return Err(RefreshErrorKind::Terminal.into());
        }
        if self.want.is_met_by(&current, now) {
            if current.generation > known {
                telemetry::count(&self.provider, telemetry::Outcome::Adopted);
            }
            return Ok(Step::Done(current));
        }
        if current.generation > row.generation {
            // A pair of ours that the store has not taken yet. Its predecessor,
            // which the store still has, is spent.
            return Ok(Step::Wait {
                at_least: Duration::ZERO,
                error: RefreshError::new(
                    RefreshErrorKind::Store,
                    "the newest tokens are not stored yet",
                ),
            });
        }
        let Some(spendable) = spendable else {
            return match self.want {
                Want::NewerThan(_) => Err(RefreshErrorKind::NotRefreshable.into()),
                Want::Early | Want::Usable if current.is_unexpired(now) => Ok(Step::Done(current)),
                Want::Early | Want::Usable => Err(RefreshErrorKind::Terminal.into()),
            };
        };
        if let Some(wait) = row
            .not_before
            .and_then(|not_before| until(not_before, now, LONGEST_RETRY_AFTER))
        {
            return Ok(Step::Wait {
                at_least: wait,
                error: RefreshErrorKind::Provider.into(),
            });
        }
        if self.want.is_forced()
            && current.is_usable(now)
            && let Some(wait) = forced_too_recently(&row, now)
        {
            // The upstream refuses what was refreshed on its word just now.
            // Asking the provider once more would only start a storm.
            return Err(if self.cell.was_refused(row.generation) {
                RefreshErrorKind::NotRefreshable.into()
            } else {
                // Nor is it its last word: nobody here saw it refuse a replay.
                RefreshError::from(RefreshErrorKind::Provider).with_retry_after(Some(wait))
            });
        }

        let core = Arc::clone(&self.core);
        let provider = Arc::clone(core.provider(&row.provider)?);
        let permit = match core.breakers.admit(&row.provider, now) {
            Ok(permit) => permit,
            Err(Open { wait, kind }) if kind == RefreshErrorKind::Misconfigured => {
                // Only the operator can help: nobody needs to wait for that.
                return Err(RefreshError::from(kind).with_retry_after(Some(wait)));
            }
            Err(Open { wait, kind }) => {
                return Ok(Step::Wait {
                    at_least: wait,
                    error: kind.into(),
                });
            }
        };
        let holder = match self.holder {
            Some(holder) => holder,
            None => *self.holder.insert(holder()?),
        };
        let lease = core.timings.lease;
        // The lease runs from when the store hears of it; before that is safe.
        let lease_ends = Instant::now() + lease;
        let claimed = core
            .store
            .claim(row.id, row.generation, holder, lease)
            .await;
        match claimed {
            Ok(Some(claimed)) if claimed.unsettled > row.unsettled => {
                self.take_over(&claimed).await
            }
            // Cancellation: from here on only the end of the process can stop
            // us; the lease then keeps others away until it runs out.
            Ok(Some(claimed)) => {
                self.spend(&*provider, permit, claimed, &spendable, lease_ends)
                    .await
            }
            // Another replica is at it: wait for what it gets.
            Ok(None) => Ok(Step::Wait {
                at_least: Duration::ZERO,
                error: RefreshErrorKind::Provider.into(),
            }),
            Err(error) => Ok(Step::wait(RefreshErrorKind::Store, error)),
        }
    }

    /// The lease of another attempt ran out unsettled. Whoever held it may hold
    /// the answer as well, and be on its way to store it: that goes first.
    async fn take_over(&mut self, row: &Credential) -> Result<Step, RefreshError> {
        let wait = spacing(&self.core, row.unsettled.saturating_sub(1));
        tracing::warn!(
            generation = row.generation,
            unsettled = row.unsettled,
            "an attempt to refresh was cut off: trying again in {wait:?}"
        );
        let released = Settlement::Released {
            not_before: self.core.clock.now() + wait,
            unsettled: row.unsettled,
            failures: row.failures,
        };
        // If this is lost the lease runs out by itself, and counts once more.
        let _lost = self.core.store.settle(claim_of(row), released).await;
        self.holder = None;
        Ok(Step::Wait {
            at_least: wait,
            error: RefreshErrorKind::Provider.into(),
        })
    }

    async fn spend(
        &mut self,
        provider: &dyn Provider,
        permit: Permit<'_>,
        row: Credential,
        spendable: &Spendable,
        lease_ends: Instant,
    ) -> Result<Step, RefreshError> {
        let claim = claim_of(&row);
        let begun = Instant::now();
        let limit = begun + self.core.timings.provider_timeout;
        if limit > lease_ends {
            // The claim took long. Past the lease another replica may ask, and
            // an answer that nobody waits for is a lost token: start afresh.
            let released = Settlement::Released {
                not_before: self.core.clock.now(),
                unsettled: row.unsettled,
                failures: row.failures,
            };
            let _lost = self.core.store.settle(claim, released).await;
            return Ok(Step::Wait {
                at_least: Duration::ZERO,
                error: RefreshError::new(RefreshErrorKind::Store, "the store is too slow"),
            });
        }
        self.holder = None;
        // The lifetime in the answer counts from when it was made (RFC 6749
        // §5.1), which may be long before it is here.
        let asked_at = self.core.clock.now();
        let request = RefreshRequest::new(&spendable.refresh_token);
        let request = request.tenant(spendable.tenant.as_deref());
        // A provider that panics has told nobody what it has done.
        let asked = AssertUnwindSafe(async { provider.refresh(request).await }).catch_unwind();
        let asked = tokio::time::timeout_at(limit, asked).await;
        telemetry::provider_took(&self.provider, begun.elapsed());
        let error = match asked {
            Ok(Ok(Ok(response))) => {
                permit.works();
                return self
                    .keep(row, claim, response, asked_at, spendable)
                    .await
                    .map(Step::Done);
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(_panic)) => {
                ProviderError::from(ProviderErrorKind::Ambiguous).with_source("it panicked")
            }
            Err(elapsed) => ProviderError::from(ProviderErrorKind::Ambiguous).with_source(elapsed),
        };
        self.give_up(permit, &row, claim, error).await
    }

    /// The provider gave no tokens: writes down what that means.
    async fn give_up(
        &self,
        permit: Permit<'_>,
        row: &Credential,
        claim: Claim,
        error: ProviderError,
    ) -> Result<Step, RefreshError> {
        let open = match error.kind() {
            ProviderErrorKind::Terminal | ProviderErrorKind::Unsupported => {
                permit.works();
                Duration::ZERO
            }
            ProviderErrorKind::Ambiguous
            | ProviderErrorKind::Misconfigured
            | ProviderErrorKind::Transient => {
                permit.fails(&error, self.core.clock.now(), &self.core.jitter)
            }
        };
        let Verdict {
            settlement,
            wait,
            kind,
            outcome,
        } = Verdict::on(&error, row, &self.core);
        tracing::warn!(
            generation = row.generation,
            outcome = outcome.as_str(),
            error = &error as &dyn std::error::Error,
            "the provider gave no access token"
        );
        telemetry::count(&self.provider, outcome);

        match self.core.store.settle(claim, settlement.clone()).await {
            Ok(true) => {}
            // Somebody was faster: what they got counts.
            Ok(false) => return Ok(Step::Again),
            Err(error) => {
                // Whoever comes next must not send what the provider ended. Of
                // anything else it hears again once the lease has run out.
                if kind == RefreshErrorKind::Terminal {
                    self.cell.end(row.generation);
                    end_for_good(&self.core, claim, settlement);
                }
                return Ok(Step::wait(RefreshErrorKind::Store, error));
            }
        }
        if kind == RefreshErrorKind::Terminal {
            // Read again: the row now says so, and all replicas hear the same.
            return Ok(Step::Again);
        }
        let wait = wait.max(open);
        let error = RefreshError::new(kind, error);
        if kind == RefreshErrorKind::Provider {
            return Ok(Step::Wait {
                at_least: wait,
                error,
            });
        }
        Err(error.with_retry_after(Some(wait)))
    }

    /// Stores a new pair, or serves it from memory until the store takes it.
    async fn keep(
        &self,
        mut row: Credential,
        claim: Claim,
        response: TokenResponse,
        asked_at: SystemTime,
        spent: &Spendable,
    ) -> Outcome {
        let secrets = Secrets {
            access_token: response.access_token,
            // RFC 6749 §6: an omitted refresh token means that the old one stays.
            refresh_token: response
                .refresh_token
                .or_else(|| Some(spent.refresh_token.clone())),
            tenant: spent.tenant.clone(),
        };
        row.generation += 1;
        row.sealed = secrets
            .seal(&self.core.keyring, row.id, &row.provider, row.generation)
            .map_err(|error| RefreshError::new(RefreshErrorKind::Sealed, error))?;
        row.refreshed_at = asked_at;
        row.expires_at = response.expiry.at(row.refreshed_at);
        // Such a token cannot be sent. What came along with it may get a better
        // one, though not at once.
        let is_sendable = credential::header("Bearer ", &secrets.access_token).is_some();
        row.not_before = (!is_sendable).then(|| row.refreshed_at + UNSENDABLE_PAUSE);
        row.forced_at = self.want.is_forced().then_some(row.refreshed_at);

        let settling = Settling::new(Arc::clone(&self.core), claim, row.clone());
        let stored = match settling.once().await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a refreshed credential could not be stored: serving it from memory, trying on"
                );
                // First of all, before anything that can fail.
                settling.until_done(&self.cell);
                row
            }
        };
        telemetry::count(&self.provider, telemetry::Outcome::Refreshed);
        let (snapshot, _spendable) = credential::open(&self.core, &stored)?;
        let outcome = self.cell.adopt(snapshot);
        if outcome.terminal {
            return Err(RefreshErrorKind::Terminal.into());
        }
        if outcome.bearer.is_none() {
            let what = "the provider's access token does not fit into a header";
            return Err(RefreshError::new(RefreshErrorKind::Misconfigured, what)
                .with_retry_after(Some(UNSENDABLE_PAUSE)));
        }
        tracing::info!(generation = outcome.generation, "credential refreshed");
        Ok(outcome)
    }
}

enum Step {
    Done(Arc<Snapshot>),
    /// The store has news.
    Again,
    /// Nothing to do for the moment; `error` if there is no time to wait.
    Wait {
        at_least: Duration,
        error: RefreshError,
    },
}

impl Step {
    fn wait(kind: RefreshErrorKind, source: StoreError) -> Self {
        Self::Wait {
            at_least: Duration::ZERO,
            error: RefreshError::new(kind, source),
        }
    }
}

/// How long until an upstream's 401 may cause the next refresh.
fn forced_too_recently(row: &Credential, now: SystemTime) -> Option<Duration> {
    let next = row.forced_at?.checked_add(FORCED_REFRESH_INTERVAL)?;
    until(next, now, FORCED_REFRESH_INTERVAL)
}

/// How long until `time`; `None` if it has come, or is further away than
/// anybody sets it: then it was written by a clock that runs ahead.
fn until(time: SystemTime, now: SystemTime, at_most: Duration) -> Option<Duration> {
    let wait = time.duration_since(now).ok()?;
    (!wait.is_zero() && wait <= at_most).then_some(wait)
}

fn claim_of(row: &Credential) -> Claim {
    Claim {
        id: row.id,
        generation: row.generation,
        fence: row.fence,
    }
}

fn holder() -> Result<LeaseHolder, RefreshError> {
    random_bytes().map_err(|error| RefreshError::new(RefreshErrorKind::Sealed, error))
}

fn missing_row() -> RefreshError {
    RefreshError::new(
        RefreshErrorKind::Store,
        "a grant refers to a credential that is not there",
    )
}

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const UNSENDABLE_PAUSE: Duration = Duration::from_secs(30);
const FORCED_REFRESH_INTERVAL: Duration = Duration::from_secs(60);
