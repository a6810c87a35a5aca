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
use crate::regrant::Core;
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
    pub(super) fn on(error: &ProviderError, now: SystemTime) -> Self {
        let (least, kind) = match error.kind() {
            ProviderErrorKind::Terminal => (Duration::ZERO, RefreshErrorKind::Terminal),
            ProviderErrorKind::Misconfigured => {
                (MISCONFIGURED_PAUSE, RefreshErrorKind::Misconfigured)
            }
            ProviderErrorKind::Ambiguous => (AMBIGUOUS_PAUSE, RefreshErrorKind::Provider),
            ProviderErrorKind::Unsupported => {
                (MISCONFIGURED_PAUSE, RefreshErrorKind::NotRefreshable)
            }
            ProviderErrorKind::Transient => (Duration::ZERO, RefreshErrorKind::Provider),
        };
        let wait = error
            .retry_after()
            .map_or(least, |asked| asked.min(LONGEST_RETRY_AFTER).max(least));
        let settlement = if kind == RefreshErrorKind::Terminal {
            Settlement::Terminal {
                reason: error.code().unwrap_or("invalid_grant").to_owned(),
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

    pub(super) fn row(&self) -> &Credential {
        &self.row
    }

    /// The row that counts: ours, or a newer one if we came too late.
    pub(super) async fn once(&self) -> Result<Credential, StoreError> {
        let outcome = Settlement::Refreshed {
            sealed: self.row.sealed.clone(),
            expires_at: self.row.expires_at,
            refreshed_at: self.row.refreshed_at,
        };
        let settle = self.core.store.settle(self.claim, outcome);
        let settled = tokio::time::timeout(self.core.timings.persist_timeout, settle)
            .await
            .map_err(|elapsed| StoreError::new(StoreErrorKind::Unavailable, elapsed))??;
        if settled {
            return Ok(self.row.clone());
        }
        let stored = self
            .core
            .store
            .credential(self.claim.id)
            .await?
            .ok_or(StoreErrorKind::Corrupt)?;
        // An earlier try may have gone through unnoticed; then this is ours.
        if stored.sealed == self.row.sealed {
            return Ok(stored);
        }
        tracing::error!(
            generation = self.claim.generation,
            stored = stored.generation,
            "a refreshed credential came too late to be stored"
        );
        if stored.generation > self.claim.generation {
            return Ok(stored);
        }
        // Our lease ran out and another replica is spending the same token.
        // What we hold works, so this process goes on with it.
        Ok(self.row.clone())
    }

    pub(super) async fn until_done(&self) {
        let mut pause = FIRST_PAUSE;
        while self.once().await.is_err() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        tracing::info!("the refreshed credential is stored now");
    }
}

/// Time for another replica's answer to arrive, should it be the one that counts.
const AMBIGUOUS_PAUSE: Duration = Duration::from_secs(2);
const MISCONFIGURED_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
