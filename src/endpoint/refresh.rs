//! Rotation of the gateway's refresh tokens (RFC 6749 §6, RFC 9700 §4.14.2).
//!
//! 1. What we did not issue is refused without the store.
//! 2. Rotation is one compare-and-swap. Whoever loses reads again and is then a
//!    replay.
//! 3. A replay of the *immediate* predecessor gets the same successor: inside
//!    the grace, and for as long as neither half of the successor has been
//!    seen, because then the answer was lost on its way.
//!    A client may be registered as strict or sticky instead
//!    ([`RotationPolicy`]).
//!    What was under way when it stopped being the predecessor's counts as a
//!    replay still.
//! 4. An older genuine token, or a predecessor whose time is up, is reuse: the
//!    whole grant ends.
//! 5. A grant that the resource path would refuse gets no tokens.
//! 6. Removing a key from the keyring ends no grant. A token that it tagged is
//!    good if the row holds its hash. A pair that was derived under it cannot be
//!    repeated: where nobody has used it, another one takes its place.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use http::Response;

use super::client;
use super::error::OAuthError;
use super::form::Form;
use super::presented::Presented;
use super::presented::Progress;
use super::token::check_resource;
use super::token::success;
use crate::audit::AuditKind;
use crate::authenticate::has_ended;
use crate::issue::remaining;
use crate::journal::Entry;
use crate::response::OwnBody;
use crate::scope;
use crate::seal::SealError;
use crate::state::Core;
use crate::store::Grant;
use crate::store::RevocationReason;
use crate::store::Rotation;
use crate::store::RotationPolicy;
use crate::token;
use crate::token::ALL_SCOPES;
use crate::token::IssuedPair;
use crate::token::RefreshClaims;
use crate::token::SuccessorKeys;

pub(super) async fn refresh(
    core: &Arc<Core>,
    form: &Form,
) -> Result<Response<OwnBody>, OAuthError> {
    let presented = form
        .text("refresh_token")
        .ok_or(OAuthError::invalid_request("refresh_token is missing"))?;
    let Some(presented) = RefreshClaims::verify(presented, &core.keyring, &core.prefixes) else {
        tracing::debug!(
            token = token::fingerprint(presented),
            "a refresh token that we did not issue"
        );
        return Err(unknown());
    };

    let mut request = Progress::begun(core);
    if let Some(error) = refused_before(core, form, &presented, &request).await {
        return Err(error);
    }
    if !core.may_ask(presented.is_proven) {
        return Err(OAuthError::too_many_strangers());
    }
    for _ in 0..ROTATION_ATTEMPTS {
        let (epoch, read_at) = (core.cache.epoch(), core.clock.now());
        let grant = core.living_grant(presented.id).await?;
        let grant = grant.ok_or_else(|| {
            core.note_stranger(presented.is_proven);
            unknown()
        })?;
        let mut grant = grant;
        if presented.is_proven {
            grant = core.caught_up(grant, presented.generation).await?;
        }
        // Before anything else is read for it.
        if !presented.is_proven && !is_held(&grant, &presented) {
            core.refused(&grant, &[], read_at, epoch);
            core.note_stranger(false);
            return Err(unknown());
        }
        let policy = check(core, &grant, form, read_at)
            .await
            .inspect_err(|error| {
                if error.is_refusal() {
                    core.refused(&grant, &[], read_at, epoch);
                }
            })?;
        if has_ended(core, &grant).await? {
            let ended: Vec<_> = grant.credentials.iter().map(|held| held.id).collect();
            core.refused(&grant, &ended, read_at, epoch);
            return Err(OAuthError::invalid_grant("the upstream login has ended"));
        }
        let found = Presented::of(core, &grant, &presented, policy, &request);
        request.was_good |= matches!(found, Presented::Current(_) | Presented::Predecessor(_));
        match found {
            Presented::Current(ref presented) | Presented::Superseded(ref presented) => {
                let unless_used = matches!(found, Presented::Superseded(_));
                let now = core.clock.now();
                let successor = Successor::of(core, &grant, presented, form);
                if let Some(response) = successor.rotate(now, unless_used).await? {
                    return Ok(response);
                }
                request.tried_at = Some(now);
            }
            Presented::Predecessor(predecessor) => {
                if is_worn_out(&grant, policy) {
                    core.refused(&grant, &[], read_at, epoch);
                }
                let successor = Successor::of(core, &grant, &predecessor, form);
                if let Some(response) = successor.repeat(policy).await? {
                    return Ok(response);
                }
            }
            Presented::Old if request.remembers_policy(core, &grant) => {}
            Presented::Old => {
                // Of many at once, the one that ended the grant tells.
                if core.revoke_grant(&grant, RevocationReason::Reuse).await? {
                    let (presented, current) = (presented.generation, grant.generation);
                    core.audit(AuditKind::TokenReused { presented, current }, &grant);
                }
                return Err(unknown());
            }
            Presented::Unknown => {
                core.refused(&grant, &[], read_at, epoch);
                return Err(unknown());
            }
        }
    }
    Err(OAuthError::unavailable("too many refreshes at once"))
}

/// What the row that an earlier request was refused by proves of this one, once
/// there were too many. `None`: ask.
async fn refused_before(
    core: &Core,
    form: &Form,
    presented: &RefreshClaims,
    request: &Progress,
) -> Option<OAuthError> {
    let id = presented.id;
    let is_over = !presented.is_proven && core.is_over(id);
    if is_over || core.refusals.has_idled(id, core.clock.now()) {
        return Some(unknown());
    }
    let row = core.refused_by(id)?;
    let grant = &row.grant;
    // It may have been rotated elsewhere since.
    if presented.is_proven && presented.generation > grant.generation {
        return None;
    }
    let error = match check(core, grant, form, row.read_at).await {
        // Not of the grant: the store would not say anything else.
        Err(error) if error.is_invalid_client() => return Some(error),
        Err(error) => error.is_refusal().then_some(error)?,
        Ok(_policy) if row.have_all_ended() && core.are_over(row.credentials()) => {
            OAuthError::invalid_grant("the upstream login has ended")
        }
        Ok(policy) => {
            match Presented::of(core, grant, presented, policy, request) {
                Presented::Unknown => unknown(),
                Presented::Predecessor(_) if is_worn_out(grant, policy) => too_often(),
                // Good, or reuse, which is to be acted on.
                Presented::Current(_)
                | Presented::Predecessor(_)
                | Presented::Superseded(_)
                | Presented::Old => return None,
            }
        }
    };
    core.refusals.too_many(id).then_some(error)
}

/// Everything that can be refused, before anything is changed. What a replay
/// of this client means.
async fn check(
    core: &Core,
    grant: &Grant,
    form: &Form,
    read_at: SystemTime,
) -> Result<RotationPolicy, OAuthError> {
    if grant.revoked.is_some() || deadline(core, grant) <= read_at {
        return Err(unknown());
    }
    let mut policy = core.rotation;
    if let Some(bound) = &grant.client_id {
        if !client::may_be(form, bound)? {
            return Err(unknown());
        }
        let client = client::authenticated(core, form, bound, grant.confidential).await?;
        policy = client.map_or(policy, |client| client.rotation);
    }
    check_resource(core, form, grant.resource.as_deref())?;
    // A grant without a scope is not limited by one.
    if let (Some(wanted), Some(granted)) = (form.text("scope"), &grant.scope)
        && !scope::covers(granted, wanted)
    {
        return Err(OAuthError::invalid_scope());
    }
    Ok(policy)
}

/// Whether this refresh token would get a pair now, were its client to send it.
pub(super) async fn is_good(
    core: &Core,
    grant: &Grant,
    presented: &RefreshClaims,
) -> Result<bool, OAuthError> {
    let policy = match &grant.client_id {
        Some(id) => core.client(id).await?.map(|client| client.rotation),
        None => None,
    };
    let policy = policy.unwrap_or(core.rotation);
    let is_over = deadline(core, grant) <= core.clock.now() || grant.revoked.is_some();
    let is_known = matches!(
        Presented::of(core, grant, presented, policy, &Progress::begun(core)),
        Presented::Current(_) | Presented::Predecessor(_) | Presented::Superseded(_)
    );
    Ok(!is_over && is_known)
}

/// Whether the row of this grant holds the hash of this token.
pub(super) fn is_held(grant: &Grant, presented: &RefreshClaims) -> bool {
    let hashes = [
        Some(grant.refresh_hash),
        grant.previous_hash,
        grant.superseded_hash,
    ];
    let mut hashes = hashes.into_iter().flatten();
    hashes.any(|hash| presented.is_hashed_to(&hash))
}

fn deadline(core: &Core, grant: &Grant) -> SystemTime {
    core.lifetimes
        .refresh_deadline(grant.created_at, grant.last_used_at)
}

/// The pair that follows the token that was presented.
struct Successor<'a> {
    core: &'a Core,
    grant: &'a Grant,
    presented: &'a RefreshClaims,
    /// RFC 6749 §6: of this access token, not of the grant.
    scopes: u64,
    scope: Option<Cow<'a, str>>,
}

impl<'a> Successor<'a> {
    fn of(core: &'a Core, grant: &'a Grant, presented: &'a RefreshClaims, form: &Form) -> Self {
        let granted = grant.scope.as_deref();
        let scopes = granted
            .zip(form.text("scope"))
            .map_or(ALL_SCOPES, |(granted, wanted)| scope::mask(granted, wanted));
        let narrowed = granted.and_then(|granted| scope::narrowed(granted, scopes));
        Self {
            core,
            grant,
            presented,
            scopes,
            scope: narrowed.map(Cow::Owned).or(granted.map(Cow::Borrowed)),
        }
    }

    /// `None` if somebody else was faster: also, with `unless_used`, who used the
    /// present pair.
    async fn rotate(
        &self,
        now: SystemTime,
        unless_used: bool,
    ) -> Result<Option<Response<OwnBody>>, OAuthError> {
        let Self { core, grant, .. } = self;
        let access_expires_at = core.lifetimes.access_deadline(grant.created_at, now);
        let issuing = core.keyring.sealing()?;
        let keys = SuccessorKeys {
            deriving: self.presented.deriving(&core.keyring)?,
            issuing,
        };
        let pair = self.pair(grant.generation + 1, &keys, access_expires_at)?;
        let rotation = Rotation {
            id: grant.id,
            generation: grant.generation,
            presented_hash: self.presented.hash(),
            replaced_hash: grant.refresh_hash,
            unless_used,
            refresh_hash: pair.refresh_hash,
            key_id: issuing.id().to_owned(),
            at: now,
            access_expires_at,
        };
        if !core.store.rotate(rotation.clone()).await? {
            return Ok(None);
        }
        core.wrote(Entry::Rotated(rotation));
        tracing::debug!(grant = %grant.id, generation = grant.generation + 1, "rotated");
        Ok(Some(self.success(&pair, access_expires_at, now)))
    }

    /// The answer that was given before, as far as it is still true. `None` if
    /// the grant moved on meanwhile.
    async fn repeat(
        &self,
        policy: RotationPolicy,
    ) -> Result<Option<Response<OwnBody>>, OAuthError> {
        let Self { core, grant, .. } = self;
        let now = core.clock.now();
        let (id, generation) = (grant.id, grant.generation);
        let Some(deriving) = self.presented.derived(&grant.refresh_hash, &core.keyring) else {
            return self.replace(policy, now).await;
        };
        let cap = replay_cap(policy);
        if !core.store.count_replay(id, generation, cap, now).await? {
            if is_worn_out(grant, policy) {
                return Err(too_often());
            }
            return Ok(None);
        }
        core.repeated(grant);
        // When the first answer was lost long ago its access token has expired;
        // one that works takes its place.
        let access_expires_at = if remaining(grant.access_expires_at, now).as_secs() > 0 {
            grant.access_expires_at
        } else {
            core.lifetimes.access_deadline(grant.created_at, now)
        };
        let issuing = match core.keyring.by_id(&grant.key_id) {
            Some(key) => key,
            // The same secrets under another tag: no row tells the difference.
            None => core.keyring.sealing()?,
        };
        let keys = SuccessorKeys { deriving, issuing };
        let pair = self.pair(generation, &keys, access_expires_at)?;
        tracing::debug!(grant = %id, generation, "rotation repeated");
        Ok(Some(self.success(&pair, access_expires_at, now)))
    }

    /// Another pair in place of one whose answer was lost and which cannot be
    /// derived again, for want of its key.
    async fn replace(
        &self,
        policy: RotationPolicy,
        now: SystemTime,
    ) -> Result<Option<Response<OwnBody>>, OAuthError> {
        // A sticky client uses what it is given, and keeps what it has.
        let unless_used = policy != RotationPolicy::Sticky;
        if unless_used && self.grant.acknowledged {
            // Another process of its client has it; that one is heard.
            return Err(OAuthError::unavailable("the token was just refreshed"));
        }
        self.rotate(now, unless_used).await
    }

    fn pair(
        &self,
        generation: u64,
        keys: &SuccessorKeys<'_>,
        access_expires_at: SystemTime,
    ) -> Result<IssuedPair, SealError> {
        token::issue_successor(
            self.presented,
            generation,
            keys,
            &self.core.prefixes,
            &self.grant.salt,
            access_expires_at,
            self.scopes,
        )
    }

    fn success(
        &self,
        pair: &IssuedPair,
        access_expires_at: SystemTime,
        now: SystemTime,
    ) -> Response<OwnBody> {
        success(pair, access_expires_at, self.scope.as_deref(), now)
    }
}

fn is_worn_out(grant: &Grant, policy: RotationPolicy) -> bool {
    grant.replays >= replay_cap(policy)
}

fn replay_cap(policy: RotationPolicy) -> u32 {
    match policy {
        RotationPolicy::Default | RotationPolicy::Strict => REPLAY_CAP,
        // It does nothing else for as long as the grant lives.
        RotationPolicy::Sticky => u32::MAX,
    }
}

fn too_often() -> OAuthError {
    OAuthError::unavailable("this refresh token was repeated too often")
}

/// One answer for every refresh token that is not good: it tells nobody which
/// grants exist.
fn unknown() -> OAuthError {
    OAuthError::invalid_grant("the refresh token is invalid, expired or revoked")
}

/// Each lost race means that somebody else won one.
const ROTATION_ATTEMPTS: usize = 8;
/// A client in a loop gets 503 from then on, and the grant stays alive.
const REPLAY_CAP: u32 = 10_000;
