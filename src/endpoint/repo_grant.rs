//! Repo grants: a refresh token that mints tokens for one repository.
//!
//! 1. What we did not issue is refused without the store, and nothing but the
//!    secret redeems or revokes: knowing a grant's id is not enough.
//! 2. The refresh token is stable. Redeeming it begins its lifetime anew, in one
//!    update that a revocation makes void. The pair of the same grant, which goes
//!    through the layer, has a lifetime of its own.
//! 3. Every redemption mints, through the coordinator that refreshes all other
//!    credentials: of those that are under way at once one asks GitHub, on
//!    whichever replica, and all get the same token.
//! 4. Only GitHub's own word that the installation or the repository is gone ends
//!    the grant. Trouble, at GitHub or of ours, is a 503.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use http::Response;
use http::StatusCode;
use serde_json::json;

use super::client;
use super::error::OAuthError;
use super::form::Form;
use super::json;
use crate::audit::AuditKind;
use crate::authenticate::read_credential;
use crate::credential::Snapshot;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::issue::remaining;
use crate::refresh;
use crate::refresh::Want;
use crate::refresh::lease;
use crate::response::OwnBody;
use crate::settings::RepoGrantPolicy;
use crate::state::Core;
use crate::store::DirectToken;
use crate::store::Grant;
use crate::store::RevocationReason;
use crate::store::StoreError;
use crate::token::Kind;
use crate::token::SecretClaims;

pub(super) async fn redeem(core: &Arc<Core>, form: Form) -> Result<Response<OwnBody>, OAuthError> {
    let arrived_at = core.clock.now();
    let (Some(grant_type), Some(token)) = (form.text("grant_type"), form.text("refresh_token"))
    else {
        return Err(OAuthError::invalid_request(
            "grant_type and refresh_token are both required",
        ));
    };
    if grant_type != "refresh_token" {
        return Err(OAuthError::not_a_refresh());
    }
    let policy = policy(core)?;
    let grant = living(core, policy, token).await?;
    if !is_of_client(&form, policy, grant.as_ref())? {
        return Err(OAuthError::wrong_client());
    }
    let grant = grant.ok_or_else(unknown)?;
    let minted = match mint(core, &grant, arrived_at).await {
        Ok(minted) => minted,
        Err(error) if error.kind() == RefreshErrorKind::Terminal => {
            // Should this fail, the credential still says so.
            let ended = core.revoke_grant(&grant, RevocationReason::Provider).await;
            if let Err(error) = ended {
                tracing::warn!(
                    grant = %grant.id,
                    error = &error as &dyn std::error::Error,
                    "the end of a repo grant could not be stored"
                );
            }
            return Err(unknown());
        }
        Err(error) => return Err(error.into()),
    };

    match core.store.slide(grant.id, core.clock.now()).await {
        Ok(true) => {}
        // Revoked meanwhile: whoever did that is not to find it in use.
        Ok(false) => return Err(unknown()),
        // The token is there, and the grant good for as long as it was.
        Err(error) => tracing::warn!(
            grant = %grant.id,
            error = &error as &dyn std::error::Error,
            "the use of a repo grant could not be noted"
        ),
    }
    core.audit(AuditKind::GrantRedeemed, &grant);
    Ok(success(&grant, token, &minted, core.clock.now()))
}

/// RFC 7009 §2.2: 200 for whatever is sent and however, but for what is too large
/// or too slow, and for the store in trouble.
pub(super) async fn revoke(
    core: &Arc<Core>,
    form: Result<Form, OAuthError>,
) -> Result<Response<OwnBody>, OAuthError> {
    let form = match form {
        Ok(form) => form,
        Err(error) if error.is_invalid_request() => return Ok(revoked()),
        Err(error) => return Err(error),
    };
    if let Some(token) = form.text("token")
        && let Some((grant, _direct)) = presented(core, token).await?
        && is_of_client(&form, policy(core)?, Some(&grant)).unwrap_or(false)
    {
        core.revoke_grant(&grant, RevocationReason::Client).await?;
    }
    Ok(revoked())
}

fn revoked() -> Response<OwnBody> {
    json(StatusCode::OK, &json!({}))
}

fn policy(core: &Core) -> Result<&RepoGrantPolicy, OAuthError> {
    let policy = core.repo_grants.as_ref();
    policy.ok_or_else(|| OAuthError::unavailable("there are no repo grants here"))
}

/// The grant that this token is good for.
async fn living(
    core: &Arc<Core>,
    policy: &RepoGrantPolicy,
    token: &str,
) -> Result<Option<Grant>, OAuthError> {
    for _ in 0..LOOKS {
        let Some((grant, direct)) = presented(core, token).await? else {
            return Ok(None);
        };
        let (now, deadline) = (core.clock.now(), policy.deadline(direct.used_at));
        if now < deadline {
            return Ok(Some(grant));
        }
        let is_in_use = if now < deadline + longest_redemption(core) {
            is_in_use(core, &grant, &direct).await?
        } else {
            // Its pair may live on.
            let rest = core
                .lifetimes
                .refresh_deadline(grant.created_at, grant.last_used_at);
            rest <= now && !core.expire_grant(&grant).await?
        };
        if !is_in_use {
            return Ok(None);
        }
        // It was redeemed in time after all, by somebody who is only now done.
    }
    Err(OAuthError::unavailable("the grant is in use"))
}

/// Whether somebody who came in time may be about to note that use: with a token
/// that was minted since the last one. Waits for whoever is minting.
async fn is_in_use(core: &Core, grant: &Grant, direct: &DirectToken) -> Result<bool, StoreError> {
    let Some(held) = grant.credentials.first() else {
        return Ok(false);
    };
    let Some(row) = lease::take(core, held.id).await? else {
        return Ok(false);
    };
    lease::give_back(core, &row).await?;
    let age = core.clock.now().duration_since(row.refreshed_at);
    let is_recent = age.is_ok_and(|age| age < longest_redemption(core));
    Ok(is_recent && row.refreshed_at > direct.used_at)
}

/// How long after the deadline somebody may be under way who came before it:
/// until then nobody ends a grant for having come too late.
fn longest_redemption(core: &Core) -> Duration {
    2 * core.timings.wait_budget
}

/// The grant that this token was issued for, if it has not ended.
async fn presented(core: &Core, token: &str) -> Result<Option<(Grant, DirectToken)>, OAuthError> {
    let claims = SecretClaims::verify(Kind::Direct, token, &core.keyring, &core.prefixes);
    let Some(claims) = claims.filter(|claims| !core.refusals.is_revoked(claims.id)) else {
        return Ok(None);
    };
    if !claims.is_proven && is_known_stranger(core, &claims) {
        return Ok(None);
    }
    if !core.may_ask(claims.is_proven) {
        return Err(OAuthError::too_many_strangers());
    }
    let (epoch, read_at) = (core.cache.epoch(), core.clock.now());
    let Some(grant) = core.store.grant(claims.id).await? else {
        core.note_stranger(claims.is_proven);
        return Ok(None);
    };
    if grant.revoked.is_some() {
        core.refusals.note_revoked(grant.id);
        return Ok(None);
    }
    let direct = held(&grant, &claims).cloned();
    if !claims.is_proven && direct.is_none() {
        core.refused(&grant, &[], read_at, epoch);
        core.note_stranger(false);
    }
    Ok(direct.map(|direct| (grant, direct)))
}

/// Whether the row that earlier ones were refused by refuses this one, whose tag
/// nobody can check, and there were too many.
fn is_known_stranger(core: &Core, claims: &SecretClaims) -> bool {
    let row = core.refused_by(claims.id);
    row.is_some_and(|row| held(&row.grant, claims).is_none()) && core.refusals.too_many(claims.id)
}

fn held<'a>(grant: &'a Grant, claims: &SecretClaims) -> Option<&'a DirectToken> {
    let direct = grant.direct.as_ref();
    direct.filter(|direct| claims.is_hashed_to(&direct.hash))
}

/// Whether the request is from the client of repo grants, or does not say: the
/// token alone is what counts. What the client was called when the grant was
/// made is good as well.
fn is_of_client(
    form: &Form,
    policy: &RepoGrantPolicy,
    grant: Option<&Grant>,
) -> Result<bool, OAuthError> {
    let of_grant = grant.and_then(|grant| grant.client_id.as_deref());
    Ok(client::may_be(form, &policy.client_id)?
        || of_grant.is_some_and(|id| client::may_be(form, id).unwrap_or(false)))
}

/// A token that was not there when the request came.
async fn mint(
    core: &Arc<Core>,
    grant: &Grant,
    arrived_at: SystemTime,
) -> Result<Arc<Snapshot>, RefreshError> {
    let held = grant.credentials.first();
    let provider = &held.ok_or(RefreshErrorKind::Sealed)?.provider;
    let (cell, known) = read_credential(core, grant, provider).await?;
    // GitHub's answer to somebody else came after this request: they were under
    // way at once. Another replica's clock may be ahead of ours.
    let now = core.clock.now();
    let is_shared = known.answered_at > arrived_at && known.answered_at <= now;
    if is_shared && known.is_usable(now) {
        return Ok(known);
    }
    refresh::refreshed(core, &cell, Want::Another(known.generation)).await
}

fn success(grant: &Grant, token: &str, minted: &Snapshot, now: SystemTime) -> Response<OwnBody> {
    let expires_in = minted.expires_at.map(|at| remaining(at, now).as_secs());
    let body = json!({
        "access_token": minted.access_token.expose(),
        "token_type": "Bearer",
        // Nobody knows: its client had better ask again.
        "expires_in": expires_in.unwrap_or(0),
        "refresh_token": token,
        "scope": grant.scope.as_deref().unwrap_or_default(),
    });
    json(StatusCode::OK, &body)
}

/// One answer for every token that is not good: it tells nobody which grants
/// exist.
fn unknown() -> OAuthError {
    OAuthError::invalid_grant("the repo grant is unknown, expired, revoked or no longer valid")
}

const LOOKS: usize = 3;
