//! The resource server: it accepts live access tokens, and nothing else.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::http::header::CONTENT_TYPE;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::IntoResponse as _;
use axum::response::Response;

use crate::Laboratory;

pub(crate) async fn serve(
    State(lab): State<Laboratory>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Err(refusal) = admit(&lab, &headers) {
        return refusal;
    }
    let media = headers.get(CONTENT_TYPE).cloned();
    let mut response = body.into_response();
    if let Some(media) = media {
        response.headers_mut().insert(CONTENT_TYPE, media);
    }
    response
}

/// The user of a live access token; without one, what to answer.
#[expect(clippy::result_large_err, reason = "a response is what it is about")]
pub(crate) fn admit(lab: &Laboratory, headers: &HeaderMap) -> Result<String, Response> {
    let bearer = headers.get(AUTHORIZATION);
    let token = bearer.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let mut state = lab.lock();
    let user = token.and_then(|token| state.provider.user_of(token).map(str::to_owned));
    if user.is_some() {
        state.served += 1;
    } else {
        state.refused += 1;
    }
    // It must never reach a client of the gateway.
    let challenge = [(WWW_AUTHENTICATE, r#"Bearer realm="the laboratory's own""#)];
    user.ok_or_else(|| (StatusCode::UNAUTHORIZED, challenge).into_response())
}
