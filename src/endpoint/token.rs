//! The token endpoint (RFC 6749 §3.2): which grant type, and what every answer
//! of it has in common.

use std::sync::Arc;
use std::time::SystemTime;

use http::Response;
use http::StatusCode;
use serde_json::json;

use super::code;
use super::error::OAuthError;
use super::form::Form;
use super::json;
use super::refresh;
use crate::issue::remaining;
use crate::resource;
use crate::response::OwnBody;
use crate::state::Core;
use crate::token::IssuedPair;

pub(super) async fn token(core: &Arc<Core>, form: Form) -> Result<Response<OwnBody>, OAuthError> {
    match form.text("grant_type") {
        Some("refresh_token") => refresh::refresh(core, &form).await,
        Some("authorization_code") => code::redeem(core, &form).await,
        Some(_) => Err(OAuthError::unsupported_grant_type()),
        None => Err(OAuthError::invalid_request("grant_type is missing")),
    }
}

/// RFC 8707 §2: a request may name the resource that it wants the token for.
pub(super) fn check_resource(
    core: &Core,
    form: &Form,
    bound: Option<&str>,
) -> Result<(), OAuthError> {
    let Some(wanted) = form.text("resource") else {
        return Ok(());
    };
    let is_ours = match bound {
        Some(bound) => resource::is_same(wanted, bound),
        None => resource::is_below(wanted, core.public_url.as_str()),
    };
    if is_ours {
        Ok(())
    } else {
        Err(OAuthError::invalid_target())
    }
}

/// RFC 6749 §5.1. No member is ever null: some clients take that for an error.
pub(super) fn success(
    pair: &IssuedPair,
    access_expires_at: SystemTime,
    scope: Option<&str>,
    now: SystemTime,
) -> Response<OwnBody> {
    let mut body = json!({
        "access_token": pair.access.expose(),
        "token_type": "Bearer",
        "expires_in": remaining(access_expires_at, now).as_secs(),
        "refresh_token": pair.refresh.expose(),
    });
    if let (Some(scope), Some(members)) = (scope, body.as_object_mut()) {
        members.insert("scope".to_owned(), scope.into());
    }
    json(StatusCode::OK, &body)
}
