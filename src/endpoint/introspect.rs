//! The introspection endpoint (RFC 7662): for registered resource servers that
//! serve clients of this gateway elsewhere. Off by default.
//!
//! A token is active exactly if this gateway would serve it now.

use std::sync::Arc;

use http::Response;
use http::StatusCode;
use serde_json::Value;
use serde_json::json;

use super::client;
use super::error::OAuthError;
use super::form::Form;
use super::json;
use super::refresh;
use crate::authenticate::has_ended;
use crate::authenticate::is_admitted;
use crate::clock::unix_seconds;
use crate::response::OwnBody;
use crate::scope;
use crate::state::Core;
use crate::store::Grant;
use crate::token::ALL_SCOPES;
use crate::token::AccessClaims;
use crate::token::RefreshClaims;

pub(super) async fn introspect(
    core: &Arc<Core>,
    form: Form,
) -> Result<Response<OwnBody>, OAuthError> {
    // First, so that nobody else learns anything (§2.1, §4).
    let mut asking = None;
    for id in client::claimed(&form)? {
        let client = core.client(&id).await?;
        let client = client.filter(|client| client.introspects && client.is_confidential());
        asking = asking.or(client);
    }
    let asking = asking.ok_or_else(OAuthError::invalid_client)?;
    client::authenticated(core, &form, &asking.id, true).await?;
    let token = form
        .text("token")
        .ok_or(OAuthError::invalid_request("token is missing"))?;

    // §2.2: of what is not active nothing else is told.
    let answer = of_access(core, token).await?;
    let answer = match answer {
        None => of_refresh(core, token).await?,
        some => some,
    };
    let answer = answer.unwrap_or_else(|| json!({ "active": false }));
    Ok(json(StatusCode::OK, &answer))
}

async fn of_access(core: &Core, token: &str) -> Result<Option<Value>, OAuthError> {
    let Some(claims) = AccessClaims::verify(token, &core.keyring, &core.prefixes) else {
        return Ok(None);
    };
    let now = core.clock.now();
    if claims.expires_at() + core.lifetimes.leeway <= now {
        return Ok(None);
    }
    let Some(grant) = core.store.grant(claims.id).await? else {
        return Ok(None);
    };
    if !is_admitted(core, &grant, &claims, now) || has_ended(core, &grant).await? {
        return Ok(None);
    }
    let mut answer = describe(core, &grant, claims.scopes);
    if let Some(members) = answer.as_object_mut() {
        members.insert("exp".to_owned(), unix_seconds(claims.expires_at()).into());
        members.insert("token_type".to_owned(), "Bearer".into());
    }
    Ok(Some(answer))
}

async fn of_refresh(core: &Core, token: &str) -> Result<Option<Value>, OAuthError> {
    let Some(claims) = RefreshClaims::verify(token, &core.keyring, &core.prefixes) else {
        return Ok(None);
    };
    let Some(grant) = core.store.grant(claims.id).await? else {
        return Ok(None);
    };
    if !refresh::is_good(core, &grant, &claims).await? || has_ended(core, &grant).await? {
        return Ok(None);
    }
    let mut answer = describe(core, &grant, ALL_SCOPES);
    let deadline = core
        .lifetimes
        .refresh_deadline(grant.created_at, grant.last_used_at);
    if let Some(members) = answer.as_object_mut() {
        members.insert("exp".to_owned(), unix_seconds(deadline).into());
    }
    Ok(Some(answer))
}

/// §2.2, less what is not known: no member is null.
fn describe(core: &Core, grant: &Grant, scopes: u64) -> Value {
    let mut answer = json!({
        "active": true,
        "sub": grant.subject,
        "iss": core.public_url.as_str(),
        "aud": grant.resource.as_deref().unwrap_or(core.public_url.as_str()),
    });
    let narrowed = grant
        .scope
        .as_deref()
        .and_then(|granted| scope::narrowed(granted, scopes));
    let scope = narrowed.or_else(|| grant.scope.clone());
    if let Some(members) = answer.as_object_mut() {
        let further = [("scope", scope), ("client_id", grant.client_id.clone())];
        for (name, value) in further {
            if let Some(value) = value {
                members.insert(name.to_owned(), value.into());
            }
        }
    }
    answer
}
