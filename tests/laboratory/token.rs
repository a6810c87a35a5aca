//! The token endpoint: the truth, unless a fault comes in between.

use std::io;

use axum::body::Body;
use axum::body::Bytes;
use axum::extract::ConnectInfo;
use axum::extract::RawForm;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::http::header::CONTENT_LENGTH;
use axum::http::header::CONTENT_TYPE;
use axum::http::header::RETRY_AFTER;
use axum::response::IntoResponse as _;
use axum::response::Response;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::Value;
use serde_json::json;

use crate::Laboratory;
use crate::fault::Fault;
use crate::provider::Tokens;
use crate::wire::Switch;

pub(crate) async fn token(
    State(lab): State<Laboratory>,
    ConnectInfo(switch): ConnectInfo<Switch>,
    RawForm(form): RawForm,
) -> Response {
    // What a provider has begun it finishes, also when the gateway is gone.
    let answering = tokio::spawn(answer(lab.clone(), form));
    match answering.await {
        Ok(Answer::Response(response)) => response,
        Ok(Answer::Tokens(response, tokens)) => {
            switch.on_written(move || {
                let mut state = lab.lock();
                state.provider.delivered(tokens.family, tokens.refreshes);
            });
            response
        }
        Ok(Answer::Reset) => {
            switch.cut();
            StatusCode::OK.into_response()
        }
        Err(_panicked) => StatusCode::NOT_IMPLEMENTED.into_response(),
    }
}

enum Answer {
    Response(Response),
    /// All of them, as they should be.
    Tokens(Response, Tokens),
    Reset,
}

async fn answer(lab: Laboratory, form: Bytes) -> Answer {
    let _call = Call::begin(&lab);
    let faults = lab.lock().faults.draw();
    for fault in &faults {
        if let Fault::DelayBefore(time) = fault {
            tokio::time::sleep(*time).await;
        } else if *fault == Fault::HoldBefore {
            lab.hold().await;
        }
    }
    if faults.contains(&Fault::ResetBefore) {
        return Answer::Reset;
    }
    if let Some(response) = faults.iter().find_map(|fault| instead(fault, false)) {
        return Answer::Response(response);
    }

    let tokens = match refresh(&lab, &form, !faults.contains(&Fault::OmitRefreshToken)) {
        Ok(tokens) => tokens,
        Err(code) => return Answer::Response(error(StatusCode::BAD_REQUEST, code)),
    };
    if faults.contains(&Fault::RevokeEarly) {
        lab.lock().provider.revoke(&tokens.access);
    }

    for fault in &faults {
        if let Fault::DelayAfter(time) = fault {
            tokio::time::sleep(*time).await;
        } else if *fault == Fault::HoldAfter {
            lab.hold().await;
        }
    }
    if faults.contains(&Fault::ResetAfter) {
        return Answer::Reset;
    }
    if let Some(response) = faults.iter().find_map(|fault| instead(fault, true)) {
        return Answer::Response(response);
    }
    let body = body(&tokens, &faults);
    if faults.contains(&Fault::HalfBody) {
        return Answer::Response(half(&body));
    }
    let response = oauth(StatusCode::OK, &body);
    if faults.contains(&Fault::OmitAccessToken) {
        return Answer::Response(response);
    }
    Answer::Tokens(response, tokens)
}

/// A call that has not been answered.
struct Call(Laboratory);

impl Call {
    fn begin(lab: &Laboratory) -> Self {
        let mut state = lab.lock();
        state.provider.counts.calls += 1;
        state.in_flight += 1;
        Self(lab.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
    }
}

fn refresh(lab: &Laboratory, form: &[u8], rotates: bool) -> Result<Tokens, &'static str> {
    let member = |name: &str| {
        let mut pairs = form_urlencoded::parse(form);
        pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
    };
    match member("grant_type").as_deref() {
        Some("refresh_token") => {}
        Some(_) => return Err("unsupported_grant_type"),
        None => return Err("invalid_request"),
    }
    let presented = member("refresh_token").ok_or("invalid_request")?;
    let mut state = lab.lock();
    let refreshed = state
        .provider
        .refresh(&presented, member("client_id"), rotates);
    refreshed.ok_or("invalid_grant")
}

/// What is said in the place of an answer, before or after the token is spent.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the other faults do not replace the answer"
)]
fn instead(fault: &Fault, is_spent: bool) -> Option<Response> {
    match fault {
        Fault::Status {
            status,
            retry_after,
            spent,
        } if *spent == is_spent => {
            let status = StatusCode::from_u16(*status).unwrap_or_default();
            let mut response = error(status, "temporarily_unavailable");
            if let Some(value) = retry_after {
                let value = HeaderValue::from_str(value).ok()?;
                response.headers_mut().insert(RETRY_AFTER, value);
            }
            Some(response)
        }
        Fault::Html { status, spent } if *spent == is_spent => {
            let status = StatusCode::from_u16(*status).unwrap_or_default();
            let page = "<!doctype html><title>We'll be back</title><p class=\"a=b\">soon</p>";
            Some((status, [(CONTENT_TYPE, "text/html")], page).into_response())
        }
        Fault::InvalidClient if !is_spent => {
            Some(error(StatusCode::UNAUTHORIZED, "invalid_client"))
        }
        Fault::InvalidGrant { status } if !is_spent => {
            let status = StatusCode::from_u16(*status).unwrap_or_default();
            Some(error(status, "invalid_grant"))
        }
        Fault::Error200 { code } if !is_spent => Some(error(StatusCode::OK, code)),
        Fault::EmptyBody if is_spent => Some(StatusCode::OK.into_response()),
        _ => None,
    }
}

/// RFC 6749 §5.1, as far as the faults let it.
fn body(tokens: &Tokens, faults: &[Fault]) -> Value {
    let mut expires_in = tokens.expires_in.clone();
    for fault in faults {
        if let Fault::ExpiresIn { form } = fault {
            expires_in = tokens.expires_in_as(form);
        }
    }
    let members = [
        ("token_type", Some(json!("Bearer"))),
        (
            "access_token",
            Some(json!(tokens.access)).filter(|_| !faults.contains(&Fault::OmitAccessToken)),
        ),
        (
            "expires_in",
            Some(expires_in).filter(|_| !faults.contains(&Fault::OmitExpiresIn)),
        ),
        (
            "refresh_token",
            tokens.refresh.as_ref().map(|token| json!(token)),
        ),
    ];
    let members = members.into_iter();
    members
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// RFC 6749 §5.2.
fn error(status: StatusCode, code: &str) -> Response {
    oauth(status, &json!({ "error": code }))
}

fn oauth(status: StatusCode, body: &Value) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    (status, headers, body.to_string()).into_response()
}

/// An answer that ends where its `Content-Length` says that it goes on.
fn half(body: &Value) -> Response {
    let text = body.to_string();
    let first = Bytes::copy_from_slice(text.as_bytes().get(..text.len() / 2).unwrap_or_default());
    let first = stream::iter([Ok(first)]);
    let end = stream::once(async {
        // The server writes what it has while this waits.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
    });
    let headers = [
        (CONTENT_TYPE, "application/json".to_owned()),
        (CONTENT_LENGTH, text.len().to_string()),
    ];
    (headers, Body::from_stream(first.chain(end))).into_response()
}
