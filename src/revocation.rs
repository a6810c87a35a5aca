//! The outbox: a provider is told that nobody here wants a login any more
//! (RFC 7009).
//!
//! 1. Ending a grant makes its upstream revocation due, in the same statement.
//!    Whoever ended it begins at once ([`begin`]); what a crash or a provider in
//!    trouble has left, a sweep finds on any replica ([`watch`]). Nobody waits
//!    for either.
//! 2. Of many replicas one takes a revocation on. It stays due, at growing
//!    intervals, until it is done or a day old: a crash loses nothing.
//! 3. A credential ends when no grant and no code refers to it any more, and
//!    never while it is being refreshed: a claim goes before.
//! 4. The end is written down before the provider is asked, and then looked at
//!    again. A login that came between is seen here, and the end undone; or it
//!    comes later, sees the end and links anew (`issue.rs`).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::BoxError;
use crate::audit::AuditKind;
use crate::background;
use crate::credential;
use crate::credential::Snapshot;
use crate::credential::Spendable;
use crate::id::GrantId;
use crate::provider::Provider;
use crate::provider::ProviderError;
use crate::provider::ProviderErrorKind;
use crate::provider::RevocationRequest;
use crate::refresh::lease;
use crate::seal::random_bytes;
use crate::state::Core;
use crate::store::Credential;
use crate::store::DISCONNECTED;
use crate::store::Grant;
use crate::store::HeldCredential;
use crate::store::REVOKED;
use crate::store::RevocationReason;
use crate::store::Settlement;
use crate::store::StoreError;
use crate::telemetry;
use crate::telemetry::Revocation;

/// Starts to tell the providers of a grant that has just ended.
pub(crate) fn begin(core: &Arc<Core>, id: GrantId) {
    // Where nothing can run, a sweep finds it.
    if Handle::try_current().is_ok() {
        core.tasks.spawn(handle(Arc::clone(core), id));
    }
}

/// Sweeps now and then, for as long as the gateway lives and is not drained.
pub(crate) fn watch(core: &Arc<Core>) {
    background::every(core, SWEEP_INTERVAL, |core| async move {
        let mut has_more = true;
        while has_more && !core.tasks.is_closed() {
            has_more = sweep(&core).await;
        }
    });
}

/// Takes on some of what is due. `true` if there is more.
pub(crate) async fn sweep(core: &Arc<Core>) -> bool {
    let due = core.store.due_revocations(core.clock.now(), BATCH).await;
    let due = due.unwrap_or_else(|error| {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot ask which logins are to be ended at their providers"
        );
        Vec::new()
    });
    // If none could be taken, the same ones would come again.
    take_on(core, &due).await > 0 && due.len() >= BATCH as usize
}

/// Tells the providers of these grants, a few at once. How many were ours to do.
pub(crate) async fn take_on(core: &Arc<Core>, due: &[GrantId]) -> usize {
    let mut taken = 0;
    for some in due.chunks(AT_ONCE) {
        let handle = |id: &GrantId| core.tasks.spawn(handle(Arc::clone(core), *id));
        let handled = join_all(some.iter().map(handle)).await;
        taken += handled.iter().filter(|it| matches!(it, Ok(true))).count();
    }
    taken
}

/// Whether it was ours to do.
async fn handle(core: Arc<Core>, id: GrantId) -> bool {
    // Also of those that many clients end at once. It is never closed.
    let _permit = core.revoking.acquire().await;
    take(&core, id).await.unwrap_or_else(|error| {
        tracing::warn!(
            grant = %id,
            error = &error as &dyn std::error::Error,
            "the end of a grant cannot be taken to its providers yet"
        );
        false
    })
}

async fn take(core: &Arc<Core>, id: GrantId) -> Result<bool, StoreError> {
    let known = core.store.grant(id).await?;
    let Some((revoked_at, _reason)) = known.and_then(|grant| grant.revoked) else {
        return Ok(false);
    };
    let now = core.clock.now();
    let age = now.duration_since(revoked_at).unwrap_or_default();
    let next = now + back_off(core, age);
    let Some(grant) = core.store.take_revocation(id, now, next).await? else {
        return Ok(false);
    };

    let whose = &grant;
    let ending = |held| async move { Ending::of(core, whose, held).run().await };
    let mut fates = Vec::new();
    if core.revoke_upstream || is_farewell(whose) {
        fates = join_all(grant.credentials.iter().map(ending)).await;
    }
    let left = grant.credentials.iter().zip(fates);
    let left: Vec<_> = left.filter(|(_, fate)| *fate != Fate::Done).collect();
    if age >= GIVE_UP_AFTER {
        for (HeldCredential { provider, .. }, _) in &left {
            let provider = provider.clone();
            telemetry::count_revocation(&provider, Revocation::GivenUp);
            core.audit(AuditKind::UpstreamRevocationGivenUp { provider }, &grant);
        }
    } else if !left.is_empty() {
        let asked = left.iter().filter_map(|(_, fate)| fate.asked_wait()).max();
        let asked = asked.map(|wait| core.clock.now() + wait.min(LONGEST_BACK_OFF));
        if let Some(asked) = asked.filter(|asked| *asked > next) {
            core.store.take_revocation(id, next, asked).await?;
        }
        return Ok(true);
    }
    core.store.finish_revocation(id).await?;
    Ok(true)
}

/// What there is left to do for a credential.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Fate {
    /// Nothing.
    Done,
    /// The same again, when it is due.
    Later,
    /// The same, and not before the time that the provider asked for.
    After(Duration),
}

impl Fate {
    fn asked_wait(self) -> Option<Duration> {
        match self {
            Self::After(wait) => Some(wait),
            Self::Done | Self::Later => None,
        }
    }
}

/// The end of one credential of a grant that has ended.
struct Ending<'a> {
    core: &'a Arc<Core>,
    grant: &'a Grant,
    held: &'a HeldCredential,
}

impl<'a> Ending<'a> {
    fn of(core: &'a Arc<Core>, grant: &'a Grant, held: &'a HeldCredential) -> Self {
        Self { core, grant, held }
    }

    async fn run(&self) -> Fate {
        self.end().await.unwrap_or_else(|error| {
            tracing::warn!(
                grant = %self.grant.id,
                credential = %self.held.id,
                provider = self.held.provider,
                error = &*error as &dyn std::error::Error,
                "a login is not ended at its provider yet"
            );
            Fate::Later
        })
    }

    async fn end(&self) -> Result<Fate, BoxError> {
        let Some(row) = self.core.store.credential(self.held.id).await? else {
            return Ok(Fate::Done);
        };
        let is_disconnected = row.terminal.as_deref() == Some(DISCONNECTED);
        let is_ended_here = row.is_taken_back();
        if row.terminal.is_some() && !is_ended_here {
            return Ok(Fate::Done);
        }
        // One that is missing here may be there on another replica.
        let provider = self.core.provider(&row.provider)?;
        let (snapshot, spendable) = credential::open(self.core, &row)?;
        let is_told = self.core.revoke_upstream && spendable.is_some();
        // Where nobody is to be told, or with what, only a row must go.
        if !is_told && !is_farewell(self.grant) {
            return Ok(Fate::Done);
        }
        if !is_ended_here && let Some(fate) = self.write_end(&row).await? {
            return Ok(fate);
        }
        // What its user has ended, nobody is to have again, whoever wants it.
        if !is_disconnected && let Some(fate) = self.fate_of_wanted().await? {
            let spendable = spendable.as_ref();
            self.undo(&row, &snapshot, spendable).await?;
            return Ok(fate);
        }
        let ended = snapshot.clone().ended();
        self.core.cache.credential(row.id, &row.provider, ended);
        match spendable {
            Some(spendable) if is_told => Ok(self.ask(&**provider, &snapshot, &spendable).await),
            Some(_) | None => Ok(Fate::Done),
        }
    }

    /// Writes down that the credential has ended. If it has not, what to do.
    async fn write_end(&self, row: &Credential) -> Result<Option<Fate>, BoxError> {
        if row.linked {
            return Ok(Some(Fate::Done));
        }
        if self.may_be_a_new_login(row) {
            return Ok(Some(Fate::Later));
        }
        if let Some(fate) = self.fate_of_wanted().await? {
            return Ok(Some(fate));
        }
        let (store, length) = (&self.core.store, self.core.timings.lease);
        let claimed = store.claim(row.id, row.generation, random_bytes()?, length);
        let Some(claimed) = claimed.await? else {
            // Somebody refreshes it, and will have other tokens.
            return Ok(Some(Fate::Later));
        };
        if claimed.unsettled > row.unsettled {
            // An attempt to refresh was cut off. Whoever made it may be on the
            // way to store what is to be ended.
            lease::give_back(self.core, &claimed).await?;
            return Ok(Some(Fate::Later));
        }
        let claim = lease::claim_of(&claimed);
        let reason = REVOKED.to_owned();
        let ended = store.settle(claim, Settlement::Terminal { reason }).await?;
        Ok((!ended).then_some(Fate::Later))
    }

    /// Whether a login may have brought these tokens that has not stored its
    /// grant yet. Those that came with our own grant are none.
    fn may_be_a_new_login(&self, row: &Credential) -> bool {
        // Nobody logs in to the credential of a direct grant: it is the grant's
        // alone.
        if self.grant.direct.is_some() {
            return false;
        }
        let (came_at, now) = (row.refreshed_at, self.core.clock.now());
        let is_within = |one: SystemTime, other: SystemTime| {
            one.duration_since(other)
                .is_ok_and(|time| time < LONGEST_LOGIN)
        };
        // Clocks differ a little: it may be of the near future.
        came_at != self.grant.created_at && (is_within(now, came_at) || is_within(came_at, now))
    }

    /// What to do if a grant or a code refers to the credential.
    async fn fate_of_wanted(&self) -> Result<Option<Fate>, StoreError> {
        let (core, id, now) = (self.core, self.held.id, self.core.clock.now());
        let before = |time| now.checked_sub(time).unwrap_or(SystemTime::UNIX_EPOCH);
        // Another replica's grants may live longer than ours.
        let deadlines = core.deadlines();
        let created_after = before(deadlines.refresh_absolute);
        let used_after = before(deadlines.refresh_idle);
        if core.store.is_held(id, created_after, used_after).await? {
            telemetry::count_revocation(&self.held.provider, Revocation::Kept);
            return Ok(Some(Fate::Done));
        }
        // One that was redeemed at the last moment may not be a grant yet.
        let awaited = core.store.is_awaited(id, before(LONGEST_LOGIN)).await?;
        Ok(awaited.then_some(Fate::Later))
    }

    /// Takes the end back: somebody wants the credential after all. If a login
    /// has put other tokens there, those count.
    async fn undo(
        &self,
        row: &Credential,
        snapshot: &Snapshot,
        spendable: Option<&Spendable>,
    ) -> Result<(), BoxError> {
        let (core, access_token) = (self.core, &snapshot.access_token);
        let tokens = credential::again(core, row, access_token, spendable, false)?;
        core.store.replace(row.id, row.generation, tokens).await?;
        Ok(())
    }

    async fn ask(
        &self,
        provider: &dyn Provider,
        snapshot: &Snapshot,
        spendable: &Spendable,
    ) -> Fate {
        let request = RevocationRequest::new(&spendable.refresh_token)
            .access_token(Some(&snapshot.access_token))
            .tenant(spendable.tenant.as_deref());
        let (begun, limit) = (Instant::now(), self.core.timings.provider_timeout);
        let asked = AssertUnwindSafe(async { provider.revoke(request).await }).catch_unwind();
        let asked = tokio::time::timeout(limit, asked).await;
        let name = &*self.held.provider;
        telemetry::provider_took(name, begun.elapsed());
        let error = match asked {
            Ok(Ok(Ok(()))) => {
                telemetry::count_revocation(name, Revocation::Revoked);
                let provider = name.to_owned();
                self.core
                    .audit(AuditKind::UpstreamRevoked { provider }, self.grant);
                return Fate::Done;
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(_panic)) => {
                ProviderError::from(ProviderErrorKind::Ambiguous).with_source("it panicked")
            }
            Err(elapsed) => ProviderError::from(ProviderErrorKind::Ambiguous).with_source(elapsed),
        };
        let (outcome, fate) = match error.kind() {
            ProviderErrorKind::Ambiguous => (Revocation::Ambiguous, Fate::Later),
            ProviderErrorKind::Misconfigured => (Revocation::ProviderMisconfigured, Fate::Done),
            ProviderErrorKind::Rejected | ProviderErrorKind::Transient => (
                Revocation::TransientProvider,
                error.retry_after().map_or(Fate::Later, Fate::After),
            ),
            ProviderErrorKind::Terminal => (Revocation::HadEnded, Fate::Done),
            ProviderErrorKind::Unsupported => (Revocation::Unsupported, Fate::Done),
        };
        telemetry::count_revocation(name, outcome);
        // That nothing can be done is known since the gateway was set up.
        if outcome == Revocation::Unsupported {
            return fate;
        }
        tracing::warn!(
            grant = %self.grant.id,
            credential = %self.held.id,
            provider = name,
            outcome = outcome.as_str(),
            error = &error as &dyn std::error::Error,
            "the provider did not end a login that has ended here"
        );
        fate
    }
}

/// Whether it was written down by a sweep, for a credential that is nobody's: it
/// ends here whether or not its provider is told.
fn is_farewell(grant: &Grant) -> bool {
    let is_expired = matches!(grant.revoked, Some((_, RevocationReason::Expired)));
    grant.direct.is_none() && is_expired
}

/// When it is due again, should it not be done by then: as long from now as it
/// has taken so far. Never while we may still be at it.
fn back_off(core: &Core, age: Duration) -> Duration {
    let shortest = SHORTEST_BACK_OFF.max(2 * core.timings.lease);
    age.clamp(shortest, LONGEST_BACK_OFF.max(shortest))
}

const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
const BATCH: u32 = 256;
/// Not more: some providers limit how often they are asked.
pub(crate) const AT_ONCE: usize = 16;
const SHORTEST_BACK_OFF: Duration = Duration::from_secs(30);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(3_600);
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// From storing its credential to storing its grant, and the difference of two
/// replicas' clocks.
const LONGEST_LOGIN: Duration = Duration::from_secs(60);
