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
//! 4. An older genuine token, or a predecessor whose time is up, is reuse: the
//!    whole grant ends.
//! 5. A grant that the resource path would refuse gets no tokens.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use http::Response;

use super::client;
use super::error::OAuthError;
use super::form::Form;
use super::token::check_resource;
use super::token::success;
use crate::authenticate::has_ended;
use crate::issue::remaining;
use crate::response::OwnBody;
use crate::scope;
use crate::seal::Key;
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

    if let Some(error) = refused_before(core, form, &presented).await {
        return Err(error);
    }
    let mut tried_at = None;
    for _ in 0..ROTATION_ATTEMPTS {
        let (epoch, read_at) = (core.cache.epoch(), core.clock.now());
        let grant = core.living_grant(presented.id).await?;
        let grant = grant.ok_or_else(unknown)?;
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
        let successor = Successor::of(core, &grant, &presented, form);
        match Presented::of(core, &grant, &presented, policy, tried_at) {
            Presented::Current => {
                let now = core.clock.now();
                if let Some(response) = successor.rotate(now).await? {
                    return Ok(response);
                }
                tried_at = Some(now);
            }
            Presented::Predecessor => {
                if is_worn_out(&grant, policy) {
                    core.refused(&grant, &[], read_at, epoch);
                }
                if let Some(response) = successor.repeat(policy).await? {
                    return Ok(response);
                }
            }
            Presented::Old => {
                tracing::warn!(
                    grant = %grant.id,
                    presented = presented.generation,
                    current = grant.generation,
                    "a refresh token was reused: the grant is revoked"
                );
                core.revoke_grant(grant.id, RevocationReason::Reuse).await?;
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
async fn refused_before(core: &Core, form: &Form, presented: &RefreshClaims) -> Option<OAuthError> {
    let id = presented.id;
    if core.refusals.has_idled(id, core.clock.now()) {
        return Some(unknown());
    }
    let row = core.refused_by(id)?;
    let grant = &row.grant;
    // It may have been rotated elsewhere since.
    if presented.generation > grant.generation {
        return None;
    }
    let error = match check(core, grant, form, row.read_at).await {
        Err(error) => error.is_refusal().then_some(error)?,
        Ok(_policy) if row.have_all_ended() && core.are_over(row.credentials()) => {
            OAuthError::invalid_grant("the upstream login has ended")
        }
        Ok(policy) => {
            match Presented::of(core, grant, presented, policy, None) {
                Presented::Unknown => unknown(),
                Presented::Predecessor if is_worn_out(grant, policy) => too_often(),
                // Good, or reuse, which is to be acted on.
                Presented::Current | Presented::Predecessor | Presented::Old => return None,
            }
        }
    };
    let client = grant.client_id.as_deref();
    let is_over = core.refusals.too_many(id)
        | (error.is_invalid_client() && client.is_some_and(|id| core.refusals.too_many_of(id)));
    is_over.then_some(error)
}

/// Everything that can be refused, before anything is changed. What a replay
/// of this client means.
async fn check(
    core: &Core,
    grant: &Grant,
    form: &Form,
    read_at: SystemTime,
) -> Result<RotationPolicy, OAuthError> {
    let deadline = core
        .lifetimes
        .refresh_deadline(grant.created_at, grant.last_used_at);
    if grant.revoked.is_some() || deadline <= read_at {
        return Err(unknown());
    }
    let mut policy = core.rotation;
    if let Some(bound) = &grant.client_id {
        if client::claimed(form)?.is_some_and(|given| *bound != *given) {
            return Err(unknown());
        }
        let client = core.client(bound).await?;
        client::authenticate(core, form, client.as_deref(), grant.confidential)?;
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

/// What a genuine refresh token is to its grant now.
enum Presented {
    Current,
    Predecessor,
    /// Rotated away for good.
    Old,
    /// Never stored: the store was set back, say.
    Unknown,
}

impl Presented {
    /// `tried_at` is when we tried to rotate this token ourselves: where the
    /// answer was lost, the rotation that we find may be ours.
    fn of(
        core: &Core,
        grant: &Grant,
        presented: &RefreshClaims,
        policy: RotationPolicy,
        tried_at: Option<SystemTime>,
    ) -> Self {
        if presented.generation == grant.generation {
            return if presented.is_hashed_to(&grant.refresh_hash) {
                Self::Current
            } else {
                Self::Unknown
            };
        }
        if presented.generation > grant.generation {
            return Self::Unknown;
        }
        let is_predecessor = presented.generation + 1 == grant.generation
            && grant
                .previous_hash
                .is_some_and(|hash| presented.is_hashed_to(&hash));
        let is_in_grace = grant
            .rotated_at
            .is_some_and(|at| core.clock.now() <= at + core.lifetimes.reuse_grace);
        let is_still_good = match policy {
            RotationPolicy::Default => is_in_grace || !grant.acknowledged,
            RotationPolicy::Sticky => true,
            RotationPolicy::Strict => is_same_time(grant.rotated_at, tried_at),
        };
        if is_predecessor && is_still_good {
            Self::Predecessor
        } else {
            Self::Old
        }
    }
}

/// As far as a store keeps it: microseconds.
fn is_same_time(one: Option<SystemTime>, other: Option<SystemTime>) -> bool {
    let microseconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.map(|since| since.as_micros()).ok()
    };
    one.is_some() && one.and_then(microseconds) == other.and_then(microseconds)
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

    /// `None` if somebody else was faster.
    async fn rotate(&self, now: SystemTime) -> Result<Option<Response<OwnBody>>, OAuthError> {
        let Self { core, grant, .. } = self;
        let access_expires_at = core.lifetimes.access_deadline(grant.created_at, now);
        let key = core.keyring.sealing()?;
        let pair = self.pair(key, access_expires_at)?;
        let rotated = core
            .store
            .rotate(Rotation {
                id: grant.id,
                generation: grant.generation,
                presented_hash: grant.refresh_hash,
                refresh_hash: pair.refresh_hash,
                key_id: key.id().to_owned(),
                at: now,
                access_expires_at,
            })
            .await?;
        if !rotated {
            return Ok(None);
        }
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
        let cap = replay_cap(policy);
        if !core.store.count_replay(id, generation, cap, now).await? {
            if is_worn_out(grant, policy) {
                return Err(too_often());
            }
            return Ok(None);
        }
        // When the first answer was lost long ago its access token has expired;
        // one that works takes its place.
        let access_expires_at = if remaining(grant.access_expires_at, now).as_secs() > 0 {
            grant.access_expires_at
        } else {
            core.lifetimes.access_deadline(grant.created_at, now)
        };
        let key = core
            .keyring
            .by_id(&grant.key_id)
            .ok_or_else(|| OAuthError::unavailable("tokens cannot be issued at the moment"))?;
        let pair = self.pair(key, access_expires_at)?;
        tracing::debug!(grant = %id, generation, "rotation repeated");
        Ok(Some(self.success(&pair, access_expires_at, now)))
    }

    fn pair(&self, key: &Key, access_expires_at: SystemTime) -> Result<IssuedPair, SealError> {
        token::issue_successor(
            self.presented,
            &self.core.keyring,
            key,
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
