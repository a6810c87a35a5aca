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

use self::shape::Place;
pub use self::shape::ResponseShape;
use super::super::ProviderError;
use super::super::ProviderErrorKind;
use super::super::TokenResponse;
use super::super::http::Answer;
use crate::secret::UpstreamAccessToken;
use crate::secret::UpstreamRefreshToken;

/// The secret that was spent on an answer.
#[derive(Clone, Copy)]
pub(super) enum Sent<'a> {
    Code(&'a str),
    RefreshToken(&'a str),
}

impl ResponseShape {
    /// Reads the answer of a token endpoint.
    pub(super) fn read(
        &self,
        answer: Answer,
        sent: Sent<'_>,
    ) -> Result<TokenResponse, ProviderError> {
        let Answer { status, body, .. } = answer;
        match body.broken {
            None => self.read_body(status, &body.bytes, sent),
            // Often only the end of the body is wrong, and the tokens are there.
            Some(error) => self
                .read_broken(status, &body.bytes, sent)
                .ok_or_else(|| nothing(status).with_source(error)),
        }
        .map_err(|error| error.with_retry_after(answer.retry_after))
    }

    /// The tokens of a body that did not end as it should, if it is one whole
    /// object all the same: nothing is missing from that.
    fn read_broken(
        &self,
        status: StatusCode,
        body: &[u8],
        sent: Sent<'_>,
    ) -> Option<TokenResponse> {
        if !status.is_success() {
            return None;
        }
        let members: Map<String, Value> = serde_json::from_slice(body).ok()?;
        self.tokens_of(&members, sent)
    }

    /// Reads the answer of a revocation endpoint (RFC 7009 §2.2), whose status
    /// says it all but for providers that put errors into a 200.
    pub(super) fn read_revocation(
        &self,
        answer: &Answer,
        sent: Sent<'_>,
    ) -> Result<(), ProviderError> {
        let status = answer.status;
        let body = Some(&answer.body).filter(|body| body.broken.is_none());
        let parsed = body.and_then(|body| body::parse(&body.bytes));
        let members = parsed.unwrap_or_default().members;
        let error = match self.error_of(&members).as_deref() {
            // A token that the provider does not know is a login that has ended,
            // which is what was asked for. Google says it as an error.
            Some("invalid_token") if !is_trouble(status) => return Ok(()),
            Some(code) if self.kind(status, code, &members) == ProviderErrorKind::Terminal => {
                return Ok(());
            }
            // RFC 7009 §2.2.1.
            Some(code @ "unsupported_token_type") if !is_trouble(status) => {
                ProviderError::from(ProviderErrorKind::Unsupported).with_code(code)
            }
            Some(code) => self.classified(status, code, &members, sent),
            None if status.is_success() => return Ok(()),
            None => unreadable_error(status),
        };
        Err(error.with_retry_after(answer.retry_after))
    }

    fn read_body(
        &self,
        status: StatusCode,
        body: &[u8],
        sent: Sent<'_>,
    ) -> Result<TokenResponse, ProviderError> {
        let parsed = body::parse(body).unwrap_or_default();
        let members = parsed.members;
        // What is salvaged does not show where it was: with places of its own, a
        // user's credential could become the bot's.
        let has_tokens = status.is_success() && !(parsed.is_salvaged && self.has_own_places());
        // An answer with a token is a success whatever else it says: the
        // refresh token is spent.
        if has_tokens && let Some(tokens) = self.tokens_of(&members, sent) {
            return Ok(tokens);
        }
        match self.error_of(&members) {
            Some(code) => Err(self.classified(status, &code, &members, sent)),
            None if status.is_success() => {
                Err(nothing(status).with_source("a success without an access token"))
            }
            None => Err(unreadable_error(status)),
        }
    }

    fn tokens_of(&self, members: &Map<String, Value>, sent: Sent<'_>) -> Option<TokenResponse> {
        let is_exchange = matches!(sent, Sent::Code(_));
        let (access_token, place): (String, Place<'_>) =
            self.access_token_of(members, is_exchange)?;
        let refresh_token = self.refresh_token_of(members, &place, is_exchange);
        let expiry = self.expiry_of(members, &place, &access_token);
        let mut response = TokenResponse::new(UpstreamAccessToken::new(access_token));
        response.expiry = expiry;
        response.refresh_expiry = self.refresh_expiry_of(members, &place);
        response.refresh_token = refresh_token.map(UpstreamRefreshToken::new);
        Some(response)
    }

    fn classified(
        &self,
        status: StatusCode,
        code: &str,
        members: &Map<String, Value>,
        sent: Sent<'_>,
    ) -> ProviderError {
        ProviderError::from(self.kind(status, code, members)).with_code(printable(code, sent))
    }

    /// The table of RFC 6749 §5.2, by who must act, after the provider's own.
    fn kind(
        &self,
        status: StatusCode,
        code: &str,
        members: &Map<String, Value>,
    ) -> ProviderErrorKind {
        // Servers in trouble, and limiters, say anything.
        if is_trouble(status) {
            return ProviderErrorKind::Transient;
        }
        let kind = self.own_kind(code, members).unwrap_or(match code {
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

/// What the provider wrote goes into logs, so it has to look like a code: some
/// write sentences there, with the token in them.
fn printable<'a>(code: &'a str, sent: Sent<'_>) -> &'a str {
    let (Sent::Code(secret) | Sent::RefreshToken(secret)) = sent;
    let is_code = code.len() <= 64
        && code
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte));
    if is_code && !code.contains(secret) {
        code
    } else {
        "unprintable"
    }
}

#[cfg(test)]
mod tests;
