//! OAuth errors (RFC 6749 §5.2), one place for status, code and words.

use std::time::Duration;

use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header::RETRY_AFTER;
use http::header::WWW_AUTHENTICATE;
use serde_json::json;

use super::json;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::issue::IssueError;
use crate::response::OwnBody;
use crate::seal::SealError;
use crate::store::StoreError;

/// What the client gets. The description is fixed text: never what it sent,
/// never what an inner error says.
#[derive(Debug)]
pub(super) struct OAuthError {
    status: StatusCode,
    code: &'static str,
    description: &'static str,
    /// Of a 503.
    retry_after: Duration,
}

impl OAuthError {
    pub(super) fn invalid_request(description: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", description)
    }

    pub(super) fn invalid_grant(description: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_grant", description)
    }

    pub(super) fn unsupported_grant_type() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            "grant_type must be refresh_token or authorization_code",
        )
    }

    /// At an endpoint that takes nothing else.
    pub(super) fn not_a_refresh() -> Self {
        Self {
            description: "grant_type must be refresh_token",
            ..Self::unsupported_grant_type()
        }
    }

    /// RFC 6749 §5.2.
    pub(super) fn invalid_client() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            "client authentication failed",
        )
    }

    /// Of a public client, which has nothing to authenticate with.
    pub(super) fn wrong_client() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_client",
            "the client_id is not the one that the token was issued to",
        )
    }

    pub(super) fn invalid_scope() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_scope",
            "the scope exceeds what was granted",
        )
    }

    /// RFC 8707 §2.
    pub(super) fn invalid_target() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_target",
            "the grant is not for this resource",
        )
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request",
            "method not allowed",
        )
    }

    pub(super) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request",
            "the body is larger than 8192 bytes",
        )
    }

    pub(super) fn too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request",
            "the body took too long to arrive",
        )
    }

    /// Trouble of ours. Never `invalid_grant`, never `server_error`: clients
    /// throw their tokens away on those.
    pub(super) fn unavailable(description: &'static str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "temporarily_unavailable",
            description,
        )
    }

    /// Nobody can tell without the store whether the token is ours, and too many
    /// were not.
    pub(super) fn too_many_strangers() -> Self {
        Self::unavailable("the token cannot be checked at the moment")
    }

    /// A panic of ours: a 500, but with the code that clients take for trouble
    /// and not for the end of a login.
    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "temporarily_unavailable",
            "internal error",
        )
    }

    /// Whether it is what was asked for that was refused, not trouble of ours.
    pub(super) fn is_refusal(&self) -> bool {
        self.status.is_client_error()
    }

    pub(super) fn is_invalid_request(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST && self.code == "invalid_request"
    }

    pub(super) fn is_invalid_client(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    fn new(status: StatusCode, code: &'static str, description: &'static str) -> Self {
        Self {
            status,
            code,
            description,
            retry_after: DEFAULT_RETRY_AFTER,
        }
    }

    fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait.unwrap_or(self.retry_after).max(DEFAULT_RETRY_AFTER);
        self
    }

    pub(super) fn into_response(self) -> Response<OwnBody> {
        let body = json!({ "error": self.code, "error_description": self.description });
        let mut response = json(self.status, &body);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(RETRY_AFTER, self.retry_after.as_secs().into());
        }
        // Required of a 401 (RFC 9110 §15.5.2).
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"oauth\""),
            );
        }
        response
    }
}

impl From<IssueError> for OAuthError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Store(error) => error.into(),
            IssueError::Crypto | IssueError::Invalid { .. } => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "an endpoint could not issue a pair"
                );
                Self::unavailable("tokens cannot be issued at the moment")
            }
        }
    }
}

impl From<StoreError> for OAuthError {
    fn from(error: StoreError) -> Self {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "an endpoint could not use the store"
        );
        Self::unavailable("the store cannot be reached")
    }
}

impl From<SealError> for OAuthError {
    fn from(error: SealError) -> Self {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "an endpoint could not issue a pair"
        );
        Self::unavailable("tokens cannot be issued at the moment")
    }
}

impl From<RefreshError> for OAuthError {
    fn from(error: RefreshError) -> Self {
        if error.kind() == RefreshErrorKind::Terminal {
            return Self::invalid_grant("the upstream login has ended");
        }
        Self::unavailable("the login cannot be used at the moment")
            .with_retry_after(error.retry_after())
    }
}

const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
