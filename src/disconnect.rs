//! Disconnecting: a user takes back what a provider gave the gateway.
//!
//! The provider is told through the outbox, whose worker tells of credentials
//! that ended as [`DISCONNECTED`], and strikes off what it finds alive. The order:
//!
//! | step | if this process dies before the next one |
//! |---|---|
//! | write down, due when this call has given up | the worker finds the credential alive: nothing happened |
//! | end the credential, under its lease | the worker tells the provider when that is due |
//! | make it due now | the worker tells the provider |
//!
//! Ended first, a crash would leave a refresh token that still works and that
//! nobody remembers. Written down as due at once, the worker might look before
//! the credential has ended, and strike off what was still to come. Should this
//! call be held up past the time when it was due, that has happened, and it is
//! written down anew: telling a provider twice harms nobody (RFC 7009 §2.2).

use std::time::SystemTime;

use crate::id::CredentialId;
use crate::id::GrantId;
use crate::refresh::lease;
use crate::regrant::Regrant;
use crate::resolve::Caller;
use crate::seal::random_bytes;
use crate::state::Core;
use crate::store::Credential;
use crate::store::DISCONNECTED;
use crate::store::Grant;
use crate::store::HeldCredential;
use crate::store::RevocationReason;
use crate::store::Settlement;
use crate::store::StoreError;
use crate::store::StoreErrorKind;

impl Regrant {
    /// Ends the credential of a user at a provider, because the user wants so:
    /// for everybody who uses it, the grants that refer to it included, here at
    /// once, on other replicas within the staleness bound. Waits for whoever is
    /// just refreshing it. `false` if there is none, or it had ended before.
    ///
    /// That the provider is told is written down, and does not have to happen
    /// now. Connecting anew is [`link`](Self::link), or a new login.
    ///
    /// ```
    /// use regrant::{Regrant, resolve::Caller, store::StoreError};
    ///
    /// async fn disconnect(regrant: &Regrant, user: &str) -> Result<&'static str, StoreError> {
    ///     let was_connected = regrant.disconnect(&Caller::new(user), "linear").await?;
    ///     Ok(if was_connected { "disconnected" } else { "not connected" })
    /// }
    /// # let _unused = disconnect;
    /// ```
    ///
    /// # Errors
    ///
    /// If the store cannot be reached, or somebody refreshes the credential for
    /// as long as the [wait budget](crate::settings::Timings::wait_budget):
    /// [`StoreErrorKind::Unavailable`]. It may have ended all the same; ask
    /// again.
    pub async fn disconnect(&self, caller: &Caller, provider: &str) -> Result<bool, StoreError> {
        let core = &self.core;
        let id = caller.credential_id(provider);
        let row = core.store.credential(id).await?;
        let Some(row) = row.filter(|row| row.terminal.is_none()) else {
            core.cache.forget_named(id);
            return Ok(false);
        };
        let now = core.clock.now();
        let due = now + 2 * core.timings.wait_budget;
        let notice = notice(core, &row, now, due)?;
        core.store.insert_grant(notice.clone()).await?;
        let ended = end(core, id).await;
        // Also when that failed: it may have gone through unnoticed.
        core.cache.forget_named(id);
        if !ended? {
            return Ok(false);
        }
        core.cache.revoke(id);
        tracing::info!(credential = %id, provider, "a user was disconnected");

        let now = core.clock.now();
        match core.store.take_revocation(notice.id, due, now).await {
            Ok(Some(_notice)) => {}
            // Held up for too long: it was struck off, or is under way.
            Ok(None) => {
                let notice = self::notice(core, &row, now, now)?;
                core.store.insert_grant(notice).await?;
            }
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the provider is told a little later"
            ),
        }
        Ok(true)
    }
}

/// `false` if it had ended before.
async fn end(core: &Core, id: CredentialId) -> Result<bool, StoreError> {
    let mut has_tried = false;
    while let Some(claimed) = lease::take(core, id).await? {
        let revoked = Settlement::Terminal {
            reason: DISCONNECTED.to_owned(),
        };
        if core
            .store
            .settle(lease::claim_of(&claimed), revoked)
            .await?
        {
            return Ok(true);
        }
        // A new login took its place. Or the answer to an earlier try of the
        // store's own was lost: the row then says so.
        has_tried = true;
    }
    let row = core.store.credential(id).await?;
    Ok(has_tried && row.is_some_and(|row| row.terminal.as_deref() == Some(DISCONNECTED)))
}

/// What the outbox is told by: a grant that never lived. Nobody holds its
/// tokens.
pub(crate) fn notice(
    core: &Core,
    row: &Credential,
    now: SystemTime,
    due: SystemTime,
) -> Result<Grant, StoreError> {
    let unusable = |error| StoreError::new(StoreErrorKind::Unavailable, error);
    let key = core.keyring.sealing();
    let key = key.map_err(|error| StoreError::new(StoreErrorKind::Unavailable, error))?;
    Ok(Grant {
        id: GrantId::random().map_err(unusable)?,
        credentials: vec![HeldCredential {
            provider: row.provider.clone(),
            id: row.id,
        }],
        subject: row.subject.clone(),
        client_id: None,
        confidential: false,
        scope: None,
        resource: None,
        salt: random_bytes().map_err(unusable)?,
        key_id: key.id().to_owned(),
        generation: 0,
        refresh_hash: random_bytes().map_err(unusable)?,
        previous_hash: None,
        superseded_hash: None,
        direct: None,
        rotated_at: None,
        rotations: Vec::new(),
        access_expires_at: now,
        replays: 0,
        acknowledged: false,
        created_at: now,
        last_used_at: now,
        revoked_access: Vec::new(),
        revoked: Some((now, RevocationReason::Disconnected)),
        upstream_due: Some(due),
    })
}
