//! Spending a refresh token, and what is made of the answer.
//!
//! From the moment the token may have been sent nothing here may get lost: a new
//! pair is sealed and stored before anything that can fail, and what could not
//! be stored is served from memory until it can.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::attempt::Attempt;
use super::attempt::Step;
use super::attempt::missing_row;
use super::breaker::Permit;
use super::flight::Outcome;
use super::lease::claim_of;
use super::settle::Settling;
use super::settle::Verdict;
use super::settle::end_for_good;
use super::settle::spacing;
use crate::credential;
use crate::credential::Secrets;
use crate::credential::Spendable;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::provider::Provider;
use crate::provider::ProviderError;
use crate::provider::ProviderErrorKind;
use crate::provider::RefreshRequest;
use crate::provider::TokenResponse;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::Settlement;
use crate::telemetry;

impl Attempt {
    /// The lease of another attempt ran out unsettled. Whoever held it may hold
    /// the answer as well, and be on its way to store it: that goes first.
    pub(super) async fn take_over(&mut self, row: &Credential) -> Result<Step, RefreshError> {
        let wait = spacing(&self.core, row.unsettled.saturating_sub(1));
        tracing::warn!(
            generation = row.generation,
            unsettled = row.unsettled,
            "an attempt to refresh was cut off: trying again in {wait:?}"
        );
        let until = self.core.clock.now() + wait;
        let not_before = row.not_before.map_or(until, |agreed| agreed.max(until));
        self.release(row, not_before).await;
        Ok(Step::Wait {
            at_least: wait,
            error: RefreshErrorKind::Provider.into(),
        })
    }

    /// Gives the lease back to do as another attempt has agreed meanwhile.
    pub(super) async fn step_back(&mut self, row: &Credential) -> Result<Step, RefreshError> {
        let not_before = row.not_before.unwrap_or(row.refreshed_at);
        self.release(row, not_before).await;
        Ok(Step::Again)
    }

    /// Nothing was sent. If this is lost the lease runs out by itself, and
    /// counts as an attempt that was cut off.
    async fn release(&mut self, row: &Credential, not_before: SystemTime) {
        let released = Settlement::Released {
            not_before,
            unsettled: row.unsettled,
            failures: row.failures,
        };
        let _lost = self.core.store.settle(claim_of(row), released).await;
        self.holder = None;
    }

    pub(super) async fn spend(
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
            self.release(&row, self.core.clock.now()).await;
            return Ok(Step::Wait {
                at_least: Duration::ZERO,
                error: RefreshError::new(RefreshErrorKind::Store, "the store is too slow"),
            });
        }
        (self.holder, self.has_asked) = (None, true);
        // The lifetime in the answer counts from when it was made (RFC 6749
        // §5.1), which may be long before it is here.
        let asked_at = self.core.clock.now();
        let request = RefreshRequest::new(&spendable.refresh_token);
        let request = request.tenant(spendable.tenant.as_deref());
        // A provider that panics has told nobody what it has done.
        let asked = AssertUnwindSafe(async { provider.refresh(request).await }).catch_unwind();
        let asked = tokio::time::timeout_at(limit, asked).await;
        telemetry::provider_took(&self.cell.provider, begun.elapsed());
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
            // It concerns one credential: whoever can have a bad one must not
            // stop the provider for others.
            ProviderErrorKind::Rejected => Duration::ZERO,
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
        if error.kind() == ProviderErrorKind::Unsupported {
            self.cell.note_unsupported(row.generation);
        }

        let settled = self.core.store.settle(claim, settlement.clone()).await;
        if !matches!(settled, Ok(false)) {
            telemetry::count(&self.cell.provider, outcome);
        }
        match settled {
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

        let answered_at = self.core.clock.now();
        let settling = Settling::new(Arc::clone(&self.core), claim, row.clone());
        let stored = match settling.once().await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Err(missing_row()),
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
        telemetry::count(&self.cell.provider, telemetry::Outcome::Refreshed);
        let (mut snapshot, _spendable) = credential::open(&self.core, &stored)?;
        if stored.generation == claim.generation + 1 {
            snapshot.answered_at = answered_at;
        }
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

const UNSENDABLE_PAUSE: Duration = Duration::from_secs(30);
