//! Reads what token endpoints really answer (RFC 6749 §5), leniently.
//!
//! By the time there is an answer the refresh token may be spent, so whatever
//! can be understood is: a wrong-typed member costs that member, never the
//! answer. What differs by provider is data: [`ResponseShape`].

mod body;
mod expiry;
mod shape;

use reqwest::StatusCode;
use serde_json::Map;
use serde_json::Value;

pub use self::shape::ResponseShape;
use super::super::ProviderError;
use super::super::ProviderErrorKind;
use super::super::TokenResponse;
use super::http::Answer;
use crate::secret::UpstreamAccessToken;
use crate::secret::UpstreamRefreshToken;

impl ResponseShape {
    /// Reads the answer of a token endpoint.
    pub(super) fn read(&self, answer: Answer) -> Result<TokenResponse, ProviderError> {
        match answer.body {
            Ok(body) => self.read_body(answer.status, &body),
            Err(error) => Err(nothing(answer.status).with_source(error)),
        }
        .map_err(|error| error.with_retry_after(answer.retry_after))
    }

    /// Reads the answer of a revocation endpoint (RFC 7009 §2.2), whose status
    /// says it all but for providers that put errors into a 200.
    pub(super) fn read_revocation(&self, answer: &Answer) -> Result<(), ProviderError> {
        let status = answer.status;
        let body = answer.body.as_deref().ok();
        let members = body.and_then(|body| body::parse(body)).unwrap_or_default();
        let error = match self.error_of(&members).as_deref() {
            // A token that the provider does not know is a login that has ended,
            // which is what was asked for. Google says it as an error.
            Some("invalid_token") if !is_trouble(status) => return Ok(()),
            Some(code) if self.kind(status, code) == ProviderErrorKind::Terminal => return Ok(()),
            // RFC 7009 §2.2.1.
            Some(code @ "unsupported_token_type") if !is_trouble(status) => {
                ProviderError::from(ProviderErrorKind::Unsupported).with_code(code)
            }
            Some(code) => self.classified(status, code),
            None if status.is_success() => return Ok(()),
            None => unreadable_error(status),
        };
        Err(error.with_retry_after(answer.retry_after))
    }

    fn read_body(&self, status: StatusCode, body: &[u8]) -> Result<TokenResponse, ProviderError> {
        let members = body::parse(body).unwrap_or_default();
        let token = status.is_success().then(|| self.access_token_of(&members));
        // An answer with a token is a success whatever else it says: the
        // refresh token is spent.
        if let Some(access_token) = token.flatten() {
            return Ok(self.tokens(&members, access_token));
        }
        match self.error_of(&members) {
            Some(code) => Err(self.classified(status, &code)),
            None if status.is_success() => {
                Err(nothing(status).with_source("a success without an access token"))
            }
            None => Err(unreadable_error(status)),
        }
    }

    fn tokens(&self, members: &Map<String, Value>, access_token: String) -> TokenResponse {
        let expiry = self.expiry_of(members, &access_token);
        let mut response = TokenResponse::new(UpstreamAccessToken::new(access_token));
        response.expiry = expiry;
        response.refresh_expiry = self.refresh_expiry_of(members);
        response.refresh_token = self
            .refresh_token_of(members)
            .map(UpstreamRefreshToken::new);
        response
    }

    fn classified(&self, status: StatusCode, code: &str) -> ProviderError {
        ProviderError::from(self.kind(status, code)).with_code(printable(code))
    }

    /// The table of RFC 6749 §5.2, by who must act, after the provider's own.
    fn kind(&self, status: StatusCode, code: &str) -> ProviderErrorKind {
        // Servers in trouble, and limiters, say anything.
        if is_trouble(status) {
            return ProviderErrorKind::Transient;
        }
        let kind = self.own_kind(code).unwrap_or(match code {
            "invalid_grant" => ProviderErrorKind::Terminal,
            "invalid_client" | "unauthorized_client" => ProviderErrorKind::Misconfigured,
            "temporarily_unavailable" | "server_error" | "slow_down" => {
                ProviderErrorKind::Transient
            }
            // `invalid_request`, `invalid_scope` and words that nobody knows:
            // they never end a login, and often they are about one user only.
            _ => ProviderErrorKind::Rejected,
        });
        let is_refusal = matches!(status.as_u16(), 200 | 400 | 401 | 403);
        if kind == ProviderErrorKind::Terminal && !is_refusal {
            return ProviderErrorKind::Transient;
        }
        kind
    }
}

/// Whether a status is about the server's state and not about the request.
fn is_trouble(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::REQUEST_TIMEOUT
        || status == StatusCode::TOO_MANY_REQUESTS
}

/// A success that cannot be read has probably spent the refresh token; whatever
/// else the status says, it says that nothing was given.
fn nothing(status: StatusCode) -> ProviderError {
    ProviderError::from(if status.is_success() {
        ProviderErrorKind::Ambiguous
    } else {
        ProviderErrorKind::Transient
    })
}

fn unreadable_error(status: StatusCode) -> ProviderError {
    ProviderError::from(ProviderErrorKind::Transient)
        .with_source(format!("status {status} without an OAuth error"))
}

/// What the provider wrote goes into logs: RFC 6749 §5.2 allows printable ASCII.
fn printable(code: &str) -> String {
    code.chars()
        .filter(|c| matches!(c, ' '..='~'))
        .take(64)
        .collect()
}

#[cfg(test)]
mod tests;
