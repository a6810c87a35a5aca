//! A gateway that authenticates its users itself, by the JWTs of an issuer, and
//! leaves the upstream's credentials to `regrant`.
//!
//! ```sh
//! cargo run --example jwt_gateway -- demo    # goes through it by itself
//! ```
//!
//! What to copy: [`gateway`], [`authenticate`] and [`ByJwt`] from here, and
//! `jwt_gateway/jwks.rs`, which verifies the JWTs.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program speaks to its user"
)]

#[path = "jwt_gateway/demo.rs"]
mod demo;
#[path = "jwt_gateway/jwks.rs"]
mod jwks;
#[path = "gateway/provider.rs"]
mod provider;
#[path = "gateway/proxy.rs"]
mod proxy;

use std::env;
use std::process::ExitCode;

use axum::Json;
use axum::Router;
use axum::extract::Extension;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::http::header::AUTHORIZATION;
use axum::http::header::RETRY_AFTER;
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::request::Parts;
use axum::middleware;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::routing::any;
use axum::routing::delete;
use regrant::Regrant;
use regrant::error::ConfigError;
use regrant::resolve::Caller;
use regrant::resolve::ResolveGrant;
use serde_json::json;

use crate::jwks::Unverified;
use crate::jwks::Verifier;
use crate::proxy::Proxy;

/// Authentication outside, then the layer, then the proxy.
fn gateway(regrant: &Regrant, verifier: Verifier, upstream: Uri) -> Result<Router, ConfigError> {
    let refresh = regrant
        .layer(PROVIDER)?
        .with_resolve_grant(ByJwt)
        // No client has tokens of ours.
        .serve_endpoints(false);
    let mcp = Router::new()
        .route("/mcp", any(proxy::forward))
        .with_state(Proxy::new(upstream))
        .layer(refresh);

    Ok(Router::new()
        .route("/connection", delete(disconnect))
        .with_state(regrant.clone())
        .merge(mcp)
        .layer(middleware::from_fn_with_state(verifier, authenticate)))
}

/// The user that a JWT was issued to.
#[derive(Clone)]
struct User {
    subject: String,
}

/// Whoever the gateway authenticated is who is calling.
#[derive(Debug)]
struct ByJwt;

impl ResolveGrant for ByJwt {
    fn resolve(&self, request: &Parts) -> Option<Caller> {
        let user = request.extensions.get::<User>()?;
        Some(Caller::new(&user.subject))
    }
}

async fn authenticate(
    State(verifier): State<Verifier>,
    mut request: Request,
    next: Next,
) -> Response {
    let who = match bearer(request.headers()) {
        Some(token) => verifier.verify(token).await,
        None => Err(Unverified::Token),
    };
    match who {
        Ok(subject) => {
            request.extensions_mut().insert(User { subject });
            next.run(request).await
        }
        Err(Unverified::Token) => {
            let challenge = [(WWW_AUTHENTICATE, r#"Bearer realm="the gateway's own""#)];
            (StatusCode::UNAUTHORIZED, challenge, "log in, please").into_response()
        }
        // Nobody knows whether it is good: that must not log anybody out.
        Err(Unverified::NoKeys) => {
            (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response()
        }
    }
}

/// The user takes back what the provider gave us.
async fn disconnect(State(regrant): State<Regrant>, Extension(user): Extension<User>) -> Response {
    let caller = Caller::new(user.subject);
    match regrant.disconnect(&caller, PROVIDER).await {
        Ok(was_connected) => Json(json!({ "disconnected": was_connected })).into_response(),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "not disconnected");
            (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response()
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[tokio::main]
async fn main() -> ExitCode {
    if env::args().nth(1).as_deref() != Some("demo") {
        eprintln!("usage: jwt_gateway demo");
        return ExitCode::from(2);
    }
    match demo::run().await {
        Ok(true) => {
            println!("\nall as promised");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("\nNOT as promised: see the lines marked with ✗");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

const PROVIDER: &str = "linear";
