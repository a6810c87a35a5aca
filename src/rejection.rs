//! Our own answers on the resource path.
//!
//! | situation | status | challenge |
//! |---|---|---|
//! | no bearer token | 401 | without `error` |
//! | a token that is not, or no longer, good here | 401 | `invalid_token` |
//! | the provider ended the login | 401 | `invalid_token` |
//! | the grant lacks a scope | 403 | `insufficient_scope` |
//! | the grant has no credential of this provider | 403 | without `error` |
//! | this provider ended the login, others of the grant did not | 403 | without `error` |
//! | the gateway named a user who is not, or no longer, connected | 403 | – |
//! | provider or store in trouble, row does not open | 503 + `Retry-After` | – |
//! | refreshed, but the request cannot be replayed | 503 + `Retry-After: 0` | – |
//! | replayed, but the credential ran out on the way | 503 + `Retry-After: 0` | – |
//!
//! Where HTTP Basic is accepted, each 401 has a challenge for it as well.
//!
//! Bodies are JSON-RPC errors, because MCP clients read those. The text is
//! fixed per situation; what caused it goes to the log and into the response's
//! extensions.

use std::error::Error;

use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header::CACHE_CONTROL;
use http::header::CONTENT_TYPE;
use http::header::RETRY_AFTER;
use serde_json::json;

use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::id::CredentialId;
use crate::response::OwnBody;
use crate::route::Challenges;
use crate::store::Grant;

#[derive(Debug)]
pub(crate) enum Rejection {
    NoBearer,
    InvalidToken,
    InsufficientScope,
    OtherProvider,
    ProviderEnded,
    /// Of a caller whom the gateway named.
    NotConnected(RefreshError),
    NotReplayable,
    RanOut,
    Refresh(RefreshError),
}

impl From<RefreshError> for Rejection {
    fn from(error: RefreshError) -> Self {
        Self::Refresh(error)
    }
}

impl Rejection {
    /// Why a caller whom the gateway named is not served. Never a 401: the client's
    /// own token is good.
    pub(crate) fn of_named(error: RefreshError) -> Self {
        match error.kind() {
            RefreshErrorKind::Terminal | RefreshErrorKind::NotRefreshable => {
                Self::NotConnected(error)
            }
            RefreshErrorKind::Misconfigured
            | RefreshErrorKind::Provider
            | RefreshErrorKind::Sealed
            | RefreshErrorKind::Store => Self::Refresh(error),
        }
    }

    /// Which logins of a grant have ended according to this answer to a request
    /// for `asked`.
    pub(crate) fn ended(&self, grant: &Grant, asked: CredentialId) -> Vec<CredentialId> {
        match self {
            Self::ProviderEnded => vec![asked],
            Self::Refresh(error) if error.kind() == RefreshErrorKind::Terminal => {
                grant.credentials.iter().map(|held| held.id).collect()
            }
            Self::Refresh(error)
                if error.kind() == RefreshErrorKind::NotRefreshable
                    && grant.credentials.len() == 1 =>
            {
                vec![asked]
            }
            Self::NoBearer
            | Self::InvalidToken
            | Self::InsufficientScope
            | Self::OtherProvider
            | Self::NotConnected(_)
            | Self::NotReplayable
            | Self::RanOut
            | Self::Refresh(_) => Vec::new(),
        }
    }

    pub(crate) fn into_response(self, challenges: &Challenges) -> Response<OwnBody> {
        let (status, challenge, message) = match &self {
            Self::NoBearer => (
                StatusCode::UNAUTHORIZED,
                Some(&challenges.no_bearer),
                "authorization required",
            ),
            Self::InvalidToken => (
                StatusCode::UNAUTHORIZED,
                Some(&challenges.invalid_token),
                "the access token is invalid, expired or revoked",
            ),
            Self::InsufficientScope => (
                StatusCode::FORBIDDEN,
                Some(&challenges.insufficient_scope),
                "the access token lacks a scope that is needed here",
            ),
            Self::OtherProvider => (
                StatusCode::FORBIDDEN,
                Some(&challenges.no_bearer),
                "the login does not cover the provider of this resource",
            ),
            Self::ProviderEnded => (
                StatusCode::FORBIDDEN,
                Some(&challenges.no_bearer),
                "the login at the provider of this resource has ended: please log in there again",
            ),
            Self::NotConnected(_) => (
                StatusCode::FORBIDDEN,
                None,
                "you are not connected to the provider of this resource, or no longer: please \
                 connect it",
            ),
            Self::NotReplayable => (
                StatusCode::SERVICE_UNAVAILABLE,
                None,
                "the upstream login was renewed, but the request was too large to be sent again: \
                 please repeat it",
            ),
            Self::RanOut => (
                StatusCode::SERVICE_UNAVAILABLE,
                None,
                "the upstream login ran out on the way: please repeat the request",
            ),
            Self::Refresh(error) => match error.kind() {
                RefreshErrorKind::Terminal | RefreshErrorKind::NotRefreshable => (
                    StatusCode::UNAUTHORIZED,
                    Some(&challenges.invalid_token),
                    "the upstream login has ended: please log in again",
                ),
                RefreshErrorKind::Misconfigured
                | RefreshErrorKind::Provider
                | RefreshErrorKind::Sealed
                | RefreshErrorKind::Store => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    None,
                    "the upstream login cannot be used at the moment: please try again",
                ),
            },
        };
        let retry_after = match &self {
            Self::NotReplayable | Self::RanOut => 0,
            Self::Refresh(error) => error
                .retry_after()
                .map_or(DEFAULT_RETRY_AFTER, |wait| wait.as_secs().max(1)),
            Self::NoBearer
            | Self::InvalidToken
            | Self::InsufficientScope
            | Self::OtherProvider
            | Self::ProviderEnded
            | Self::NotConnected(_) => DEFAULT_RETRY_AFTER,
        };
        let body = json!({
            "jsonrpc": "2.0",
            "id": null,
            "error": { "code": JSON_RPC_SERVER_ERROR, "message": message },
        });

        let mut response = Response::new(OwnBody::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = challenge {
            challenges.put(challenge, status, headers);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, retry_after.into());
        }
        if let Self::Refresh(error) | Self::NotConnected(error) = self {
            // Why a login ended was said when it did; saying it again for every
            // request of it would hide everything else.
            if status == StatusCode::SERVICE_UNAVAILABLE {
                tracing::warn!(error = &error as &dyn Error, "no upstream credential");
            } else {
                tracing::debug!(error = &error as &dyn Error, "a login has ended");
            }
            response.extensions_mut().insert(error);
        }
        response
    }
}

/// The range that JSON-RPC 2.0 leaves to servers is −32099 to −32000.
const JSON_RPC_SERVER_ERROR: i32 = -32_001;
/// Seconds.
const DEFAULT_RETRY_AFTER: u64 = 1;
