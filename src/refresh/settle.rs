//! How an attempt ends in the store: what a refusal means, and how a success is
//! kept from being lost.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use super::attempt::FIRST_PAUSE;
use super::attempt::LONGEST_PAUSE;
use crate::error::RefreshErrorKind;
use crate::provider::ProviderError;
use crate::provider::ProviderErrorKind;
use crate::state::Core;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::Settlement;
use crate::store::StoreError;
use crate::store::StoreErrorKind;

/// What follows from a provider's refusal.
pub(super) struct Verdict {
    pub(super) settlement: Settlement,
    /// How long nobody should ask again.
    pub(super) wait: Duration,
    pub(super) kind: RefreshErrorKind,
}

impl Verdict {
    pub(super) fn on(
        error: &ProviderError,
        expires_at: Option<SystemTime>,
        now: SystemTime,
    ) -> Self {
        let has_expired = expires_at.is_some_and(|at| at <= now);
        let (least, kind) = match error.kind() {
            ProviderErrorKind::Terminal => (Duration::ZERO, RefreshErrorKind::Terminal),
            ProviderErrorKind::Misconfigured => {
                (MISCONFIGURED_PAUSE, RefreshErrorKind::Misconfigured)
            }
            ProviderErrorKind::Ambiguous => (AMBIGUOUS_PAUSE, RefreshErrorKind::Provider),
            // Dead when its access token is.
            ProviderErrorKind::Unsupported if has_expired => {
                (Duration::ZERO, RefreshErrorKind::Terminal)
            }
            ProviderErrorKind::Unsupported => (Duration::ZERO, RefreshErrorKind::NotRefreshable),
            ProviderErrorKind::Transient => (TRANSIENT_PAUSE, RefreshErrorKind::Provider),
        };
        let wait = error
            .retry_after()
            .map_or(least, |asked| asked.min(LONGEST_RETRY_AFTER).max(least));
        let settlement = if kind == RefreshErrorKind::Terminal {
            Settlement::Terminal {
                reason: error.code().unwrap_or("ended").to_owned(),
            }
        } else {
            Settlement::Released {
                not_before: now + wait,
            }
        };
        Self {
            settlement,
            wait,
            kind,
        }
    }
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
    ///
    /// # Errors
    ///
    /// If ours is not stored yet and may still be.
    pub(super) async fn once(&mut self) -> Result<Credential, StoreError> {
        let limit = self.core.timings.persist_timeout;
        tokio::time::timeout(limit, self.store())
            .await
            .map_err(|elapsed| StoreError::new(StoreErrorKind::Unavailable, elapsed))?
    }

    async fn store(&mut self) -> Result<Credential, StoreError> {
        if self.settle().await? {
            return Ok(self.row.clone());
        }
        let id = self.claim.id;
        let stored = self.core.store.credential(id).await?;
        let stored = stored.ok_or(StoreErrorKind::Corrupt)?;
        // An earlier try may have gone through unnoticed; then this is ours.
        if stored.sealed == self.row.sealed {
            return Ok(stored);
        }
        if stored.generation > self.claim.generation || stored.terminal.is_some() {
            tracing::error!(
                credential = %id,
                generation = self.claim.generation,
                stored = stored.generation,
                "refreshed tokens came too late to be stored"
            );
            return Ok(stored);
        }
        // Our lease ran out and another replica took it, with the token that we
        // have spent. What we hold is what works: once that one has given up,
        // the turn is ours again.
        let lease = self.core.timings.lease;
        let generation = self.claim.generation;
        let reclaimed = self.core.store.claim(id, generation, lease).await?;
        self.claim.fence = reclaimed.ok_or(StoreErrorKind::Unavailable)?.fence;
        if self.settle().await? {
            return Ok(self.row.clone());
        }
        Err(StoreErrorKind::Unavailable.into())
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

    pub(super) async fn until_done(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.once().await {
                Ok(_stored) => break tracing::info!("the refreshed credential is stored now"),
                Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                    break tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "refreshed tokens cannot be stored: their row is gone"
                    );
                }
                Err(_error) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// No request may start a call of its own while the provider is in trouble.
const TRANSIENT_PAUSE: Duration = Duration::from_secs(1);
/// Time for another replica's answer to arrive, should it be the one that counts.
const AMBIGUOUS_PAUSE: Duration = Duration::from_secs(2);
pub(super) const MISCONFIGURED_PAUSE: Duration = Duration::from_secs(30);
pub(super) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
