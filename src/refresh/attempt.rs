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
//! moment ago.
//!
//! Nothing is locked and no connection is held while the provider is asked.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio::time::Instant;

use super::Want;
use super::flight::Outcome;
use super::settle::LONGEST_RETRY_AFTER;
use super::settle::MISCONFIGURED_PAUSE;
use super::settle::Settling;
use super::settle::Verdict;
use crate::credential;
use crate::credential::Cell;
use crate::credential::Secrets;
use crate::credential::Snapshot;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::provider::Provider;
use crate::provider::ProviderError;
use crate::provider::ProviderErrorKind;
use crate::provider::RefreshRequest;
use crate::provider::TokenResponse;
use crate::secret::UpstreamRefreshToken;
use crate::state::Core;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::Settlement;
use crate::store::StoreError;

pub(super) struct Attempt {
    core: Arc<Core>,
    cell: Arc<Cell>,
    provider: Box<str>,
    want: Want,
}

impl Attempt {
    pub(super) fn new(core: Arc<Core>, cell: Arc<Cell>, provider: &str, want: Want) -> Self {
        Self {
            core,
            cell,
            provider: provider.into(),
            want,
        }
    }

    #[tracing::instrument(
        name = "refresh",
        skip_all,
        fields(provider = &*self.provider, credential = %self.cell.id)
    )]
    pub(super) async fn run(self) -> Outcome {
        let deadline = Instant::now() + self.core.timings.wait_budget;
        let mut pause = FIRST_PAUSE;
        loop {
            let (wait, error) = match self.step().await {
                Ok(Step::Done(snapshot)) => return Ok(snapshot),
                Ok(Step::Again) => continue,
                Ok(Step::Wait { at_least, error }) => (Some(at_least.max(pause)), error),
                Err(error) => (None, error),
            };
            // Somebody is in trouble, but the old access token still works.
            let current = self.cell.current();
            if matches!(self.want, Want::Usable)
                && error.kind() != RefreshErrorKind::Sealed
                && current.is_unexpired(self.core.clock.now())
            {
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

    async fn step(&self) -> Result<Step, RefreshError> {
        let row = match self.core.store.credential(self.cell.id).await {
            Ok(Some(row)) => row,
            Ok(None) => return Err(missing_row()),
            Err(error) => return Ok(Step::wait(RefreshErrorKind::Store, error)),
        };
        let (snapshot, refresh_token) = self.open(&row)?;
        let current = self.cell.adopt(snapshot);
        let now = self.core.clock.now();
        if current.terminal {
            return Err(RefreshErrorKind::Terminal.into());
        }
        if self.want.is_met_by(&current, now) {
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
        let Some(refresh_token) = refresh_token else {
            return match self.want {
                Want::Usable if current.is_unexpired(now) => Ok(Step::Done(current)),
                Want::Usable => Err(RefreshErrorKind::Terminal.into()),
                Want::NewerThan(_) => Err(RefreshErrorKind::NotRefreshable.into()),
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

        let provider = self.core.provider(&row.provider)?;
        let lease = self.core.timings.lease;
        // The lease runs from when the store hears of it; before that is safe.
        let lease_ends = Instant::now() + lease;
        let claimed = self.core.store.claim(row.id, row.generation, lease).await;
        match claimed {
            // Cancellation: from here on only the end of the process can stop
            // us; the lease then keeps others away until it runs out.
            Ok(Some(row)) => {
                self.spend(&**provider, row, &refresh_token, lease_ends)
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

    async fn spend(
        &self,
        provider: &dyn Provider,
        row: Credential,
        refresh_token: &UpstreamRefreshToken,
        lease_ends: Instant,
    ) -> Result<Step, RefreshError> {
        let claim = Claim {
            id: row.id,
            generation: row.generation,
            fence: row.fence,
        };
        let limit = Instant::now() + self.core.timings.provider_timeout;
        if limit > lease_ends {
            // The claim took long. Past the lease another replica may ask, and
            // an answer that nobody waits for is a lost token: start afresh.
            let not_before = self.core.clock.now();
            let released = Settlement::Released { not_before };
            let _lost = self.core.store.settle(claim, released).await;
            return Ok(Step::Wait {
                at_least: Duration::ZERO,
                error: RefreshError::new(RefreshErrorKind::Store, "the store is too slow"),
            });
        }
        let asked =
            tokio::time::timeout_at(limit, provider.refresh(RefreshRequest::new(refresh_token)));
        let error = match asked.await {
            Ok(Ok(response)) => {
                return self
                    .keep(row, claim, response, refresh_token)
                    .await
                    .map(Step::Done);
            }
            Ok(Err(error)) => error,
            Err(elapsed) => ProviderError::from(ProviderErrorKind::Ambiguous).with_source(elapsed),
        };
        tracing::warn!(
            generation = row.generation,
            outcome = ?error.kind(),
            error = &error as &dyn std::error::Error,
            "the provider gave no access token"
        );

        let Verdict {
            settlement,
            wait,
            kind,
        } = Verdict::on(&error, row.expires_at, self.core.clock.now());
        // If this write is lost the lease runs out by itself, and whoever comes
        // next hears the provider's answer again.
        match self.core.store.settle(claim, settlement).await {
            Ok(true) => {}
            // Somebody was faster: what they got counts.
            Ok(false) => return Ok(Step::Again),
            Err(error) => return Ok(Step::wait(RefreshErrorKind::Store, error)),
        }
        if kind == RefreshErrorKind::Terminal {
            // Read again: the row now says so, and all replicas hear the same.
            return Ok(Step::Again);
        }
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
        spent: &UpstreamRefreshToken,
    ) -> Outcome {
        let secrets = Secrets {
            access_token: response.access_token,
            // RFC 6749 §6: an omitted refresh token means that the old one stays.
            refresh_token: Some(response.refresh_token.unwrap_or_else(|| spent.clone())),
        };
        row.generation += 1;
        row.sealed = secrets
            .seal(&self.core.keyring, row.id, &row.provider, row.generation)
            .map_err(|error| RefreshError::new(RefreshErrorKind::Sealed, error))?;
        row.refreshed_at = self.core.clock.now();
        row.expires_at = response.expiry.at(row.refreshed_at);
        // Such a token cannot be sent. What came along with it may get a better
        // one, though not at once.
        let is_sendable = credential::header("Bearer ", &secrets.access_token).is_some();
        row.not_before = (!is_sendable).then(|| row.refreshed_at + MISCONFIGURED_PAUSE);
        row.forced_at = self.want.is_forced().then_some(row.refreshed_at);

        let mut settling = Settling::new(Arc::clone(&self.core), claim, row.clone());
        let stored = match settling.once().await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a refreshed credential could not be stored: serving it from memory, trying on"
                );
                // First of all, before anything that can fail.
                let tasks = self.core.tasks.clone();
                tasks.spawn(async move { settling.until_done().await });
                row
            }
        };
        let (snapshot, _refresh_token) = self.open(&stored)?;
        let outcome = self.cell.adopt(snapshot);
        if outcome.terminal {
            return Err(RefreshErrorKind::Terminal.into());
        }
        if outcome.bearer.is_none() {
            let what = "the provider's access token does not fit into a header";
            return Err(RefreshError::new(RefreshErrorKind::Misconfigured, what)
                .with_retry_after(Some(MISCONFIGURED_PAUSE)));
        }
        tracing::info!(generation = outcome.generation, "credential refreshed");
        Ok(outcome)
    }

    fn open(
        &self,
        row: &Credential,
    ) -> Result<(Snapshot, Option<UpstreamRefreshToken>), RefreshError> {
        credential::open(&self.core.keyring, &self.core.timings, row)
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

fn missing_row() -> RefreshError {
    RefreshError::new(
        RefreshErrorKind::Store,
        "a grant refers to a credential that is not there",
    )
}

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const FORCED_REFRESH_INTERVAL: Duration = Duration::from_secs(60);
