//! The revocation endpoint (RFC 7009).
//!
//! Only a genuine token of ours revokes anything: knowing a grant's id is not
//! enough. Whatever else is sent gets the same 200 (§2.2), so that nobody learns
//! which tokens exist. Only a store in trouble is told, by a 503 (§2.2.1), and a
//! confidential client that fails to authenticate, by `invalid_client`.

use std::sync::Arc;

use http::Response;
use http::StatusCode;
use serde_json::json;

use super::client;
use super::error::OAuthError;
use super::form::Form;
use super::json;
use super::refresh::is_held;
use crate::audit::AuditKind;
use crate::clock::unix_seconds;
use crate::response::OwnBody;
use crate::state::Core;
use crate::store::Grant;
use crate::store::RevocationReason;
use crate::token::AccessClaims;
use crate::token::RefreshClaims;

pub(super) async fn revoke(core: &Arc<Core>, form: Form) -> Result<Response<OwnBody>, OAuthError> {
    let token = form
        .text("token")
        .ok_or(OAuthError::invalid_request("token is missing"))?;
    // `token_type_hint` is only a hint, and our tokens say what they are.
    if let Some(claims) = RefreshClaims::verify(token, &core.keyring, &core.prefixes) {
        revoke_grant(core, &form, &claims).await?;
    } else if let Some(claims) = AccessClaims::verify(token, &core.keyring, &core.prefixes) {
        revoke_access(core, &form, &claims).await?;
    }
    Ok(json(StatusCode::OK, &json!({})))
}

/// A refresh token ends the grant with all its access tokens (§2.1). Any
/// generation of it will do: revoking is what a thief would not ask for. If its
/// tag cannot be checked any more, it is one that the row holds.
async fn revoke_grant(
    core: &Arc<Core>,
    form: &Form,
    claims: &RefreshClaims,
) -> Result<(), OAuthError> {
    // Whoever says it again need not be heard by the store.
    if core.refusals.is_revoked(claims.id) {
        return Ok(());
    }
    if !core.may_ask(claims.is_proven) {
        return Err(OAuthError::too_many_strangers());
    }
    let Some(grant) = core.store.grant(claims.id).await? else {
        core.note_stranger(claims.is_proven);
        return Ok(());
    };
    if !claims.is_proven && !is_held(&grant, claims) {
        core.note_stranger(false);
        return Ok(());
    }
    if grant.revoked.is_some() {
        core.refusals.note_revoked(claims.id);
        core.cache.forget(claims.id);
        return Ok(());
    }
    if is_owner(core, &grant, form).await? {
        core.revoke_grant(&grant, RevocationReason::Client).await?;
    }
    Ok(())
}

async fn revoke_access(
    core: &Arc<Core>,
    form: &Form,
    claims: &AccessClaims,
) -> Result<(), OAuthError> {
    let now = core.clock.now();
    let Some(grant) = core.living_grant(claims.id).await? else {
        return Ok(());
    };
    let is_over = claims.expires_at() + core.lifetimes.leeway <= now;
    if is_over || !claims.is_of(&grant.salt, &core.keyring) || !is_owner(core, &grant, form).await?
    {
        return Ok(());
    }
    let mut expired_below = [0; 24];
    let (seconds, _nonce) = expired_below.split_at_mut(8);
    let leeway = core.lifetimes.leeway.as_secs() + 1;
    seconds.copy_from_slice(&unix_seconds(now).saturating_sub(leeway).to_be_bytes());
    let entry = claims.revocation_entry();
    let revoked = core
        .store
        .revoke_access(claims.id, entry, expired_below)
        .await;
    // Also when the write failed: it may have gone through unnoticed.
    core.cache.forget(claims.id);
    revoked?;
    if grant.revoked.is_none() && !grant.revoked_access.contains(&entry) {
        core.audit(AuditKind::AccessTokenRevoked, &grant);
    }
    Ok(())
}

/// A client may revoke its own tokens only (§2.1); a public one that does not
/// say who it is proves itself by the token.
///
/// # Errors
///
/// If a confidential client fails to authenticate: it would otherwise take its
/// token for revoked.
async fn is_owner(core: &Core, grant: &Grant, form: &Form) -> Result<bool, OAuthError> {
    let Some(bound) = &grant.client_id else {
        return Ok(true);
    };
    if !client::may_be(form, bound)? {
        return Ok(false);
    }
    client::authenticated(core, form, bound, grant.confidential).await?;
    Ok(true)
}
