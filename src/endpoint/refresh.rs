//! The token endpoint: rotation of the gateway's refresh tokens (RFC 6749 §6,
//! RFC 9700 §4.14.2).
//!
//! 1. What we did not issue is refused without the store.
//! 2. Rotation is one compare-and-swap. Whoever loses reads again and is then a
//!    replay.
//! 3. A replay of the *immediate* predecessor gets the same successor: inside
//!    the grace, and for as long as neither half of the successor has been
//!    seen, because then the answer was lost on its way.
//! 4. An older genuine token, or a predecessor whose time is up, is reuse: the
//!    whole grant ends.
//! 5. A grant that the resource path would refuse gets no tokens.

use std::sync::Arc;
use std::time::SystemTime;

use http::Response;
use http::StatusCode;
use serde_json::json;

use super::error::OAuthError;
use super::form::Form;
use super::json;
use crate::authenticate::read_credential;
use crate::issue::remaining;
use crate::resource;
use crate::response::OwnBody;
use crate::scope;
use crate::state::Core;
use crate::store::Grant;
use crate::store::RevocationReason;
use crate::store::Rotation;
use crate::token;
use crate::token::IssuedPair;
use crate::token::RefreshClaims;

pub(super) async fn token(core: &Arc<Core>, form: Form) -> Result<Response<OwnBody>, OAuthError> {
    match form.text("grant_type") {
        Some("refresh_token") => {}
        Some(_) => return Err(OAuthError::unsupported_grant_type()),
        None => return Err(OAuthError::invalid_request("grant_type is missing")),
    }
    let presented = form
        .text("refresh_token")
        .ok_or(OAuthError::invalid_request("refresh_token is missing"))?;
    let Some(presented) = RefreshClaims::verify(presented, &core.keyring) else {
        tracing::debug!(
            token = token::fingerprint(presented),
            "a refresh token that we did not issue"
        );
        return Err(unknown());
    };

    for _ in 0..ROTATION_ATTEMPTS {
        let grant = core.store.grant(presented.id).await?.ok_or_else(unknown)?;
        check(core, &grant, &form)?;
        let (cell, snapshot) = read_credential(core, &grant).await?;
        if snapshot.is_dead(core.clock.now()) || cell.has_ended(snapshot.generation) {
            return Err(OAuthError::invalid_grant("the upstream login has ended"));
        }
        match Presented::of(core, &grant, &presented) {
            Presented::Current => {
                if let Some(response) = rotate(core, &grant, &presented).await? {
                    return Ok(response);
                }
            }
            Presented::Predecessor => {
                if let Some(response) = repeat(core, &grant, &presented).await? {
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
            Presented::Unknown => return Err(unknown()),
        }
    }
    Err(OAuthError::unavailable("too many refreshes at once"))
}

/// Everything that can be refused, before anything is changed.
fn check(core: &Core, grant: &Grant, form: &Form) -> Result<(), OAuthError> {
    let deadline = core
        .lifetimes
        .refresh_deadline(grant.created_at, grant.last_used_at);
    if grant.revoked.is_some() || deadline <= core.clock.now() {
        return Err(unknown());
    }
    if let (Some(bound), Some(given)) = (&grant.client_id, form.client_id()?)
        && bound != given
    {
        return Err(unknown());
    }
    if let Some(wanted) = form.text("resource") {
        let is_ours = match &grant.resource {
            Some(bound) => resource::is_same(wanted, bound),
            None => resource::is_below(wanted, core.public_url.as_str()),
        };
        if !is_ours {
            return Err(OAuthError::invalid_target());
        }
    }
    // A grant without a scope is not limited by one.
    if let (Some(wanted), Some(granted)) = (form.text("scope"), &grant.scope)
        && !scope::covers(granted, wanted)
    {
        return Err(OAuthError::invalid_scope());
    }
    Ok(())
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
    fn of(core: &Core, grant: &Grant, presented: &RefreshClaims) -> Self {
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
        if is_predecessor && (is_in_grace || !grant.acknowledged) {
            Self::Predecessor
        } else {
            Self::Old
        }
    }
}

/// `None` if somebody else was faster.
async fn rotate(
    core: &Core,
    grant: &Grant,
    presented: &RefreshClaims,
) -> Result<Option<Response<OwnBody>>, OAuthError> {
    let now = core.clock.now();
    let access_expires_at = core.lifetimes.access_deadline(grant.created_at, now);
    let key = core.keyring.sealing()?;
    let pair = token::issue_successor(
        presented,
        &core.keyring,
        key,
        &grant.salt,
        access_expires_at,
    )?;
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
    Ok(Some(success(grant, &pair, access_expires_at, now)))
}

/// The answer that was given before, as far as it is still true. `None` if the
/// grant moved on meanwhile.
async fn repeat(
    core: &Core,
    grant: &Grant,
    presented: &RefreshClaims,
) -> Result<Option<Response<OwnBody>>, OAuthError> {
    if !core
        .store
        .count_replay(grant.id, grant.generation, REPLAY_CAP)
        .await?
    {
        if grant.replays >= REPLAY_CAP {
            return Err(OAuthError::unavailable(
                "this refresh token was repeated too often",
            ));
        }
        return Ok(None);
    }
    let now = core.clock.now();
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
    let pair = token::issue_successor(
        presented,
        &core.keyring,
        key,
        &grant.salt,
        access_expires_at,
    )?;
    tracing::debug!(grant = %grant.id, generation = grant.generation, "rotation repeated");
    Ok(Some(success(grant, &pair, access_expires_at, now)))
}

/// RFC 6749 §5.1. No member is ever null: some clients take that for an error.
fn success(
    grant: &Grant,
    pair: &IssuedPair,
    access_expires_at: SystemTime,
    now: SystemTime,
) -> Response<OwnBody> {
    let mut body = json!({
        "access_token": pair.access.expose(),
        "token_type": "Bearer",
        "expires_in": remaining(access_expires_at, now).as_secs(),
        "refresh_token": pair.refresh.expose(),
    });
    if let (Some(scope), Some(members)) = (&grant.scope, body.as_object_mut()) {
        members.insert("scope".to_owned(), scope.as_str().into());
    }
    json(StatusCode::OK, &body)
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
