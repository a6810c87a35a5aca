//! Introspection (RFC 7662): what registered resource servers are told.

use std::time::Duration;

use http::StatusCode;
use regrant::Client;
use regrant::Issued;
use regrant::Regrant;
use regrant::secret::ClientSecret;
use regrant::store::memory::MemoryStore;
use serde_json::json;

use crate::support::Answer;
use crate::support::Lab;
use crate::support::ask;
use crate::support::form;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn it_is_off_unless_switched_on() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let answer = introspect(&regrant, "token", SECRET).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_resource_server_is_told_of_what_the_gateway_would_serve() {
    let (_lab, regrant, issued) = introspected().await;

    let of_access = introspect(&regrant, issued.access_token.expose(), SECRET).await;
    assert_eq!(of_access.header("cache-control"), "no-store");
    let mut told = of_access.json();
    assert!(told["exp"].take().as_u64().is_some());
    assert_eq!(
        told,
        json!({
            "active": true, "sub": "ada", "client_id": "claude", "scope": "read write",
            "iss": "https://gateway.example", "aud": "https://gateway.example",
            "token_type": "Bearer", "exp": null,
        })
    );
    let of_refresh = introspect(&regrant, issued.refresh_token.expose(), SECRET).await;
    assert_eq!(of_refresh.json()["active"], true);
    assert!(of_refresh.json().get("token_type").is_none());

    // Of a narrowed token the narrowed scope.
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", issued.refresh_token.expose()),
        ("scope", "read"),
    ];
    let narrowed = ask(&regrant, form("/oauth/token", &pairs)).await;
    assert_eq!(narrowed.text("scope"), "read");
    let token = narrowed.text("access_token");
    let told = introspect(&regrant, &token, SECRET).await;
    assert_eq!(told.text("scope"), "read");
}

#[tokio::test]
async fn what_is_not_active_tells_nothing_else() {
    let (lab, regrant, issued) = introspected().await;
    let (access, refresh_token) = (issued.access_token.expose(), issued.refresh_token.expose());
    let inactive = async |token: &str, why: &str| {
        let answer = introspect(&regrant, token, SECRET).await;
        assert_eq!(answer.status, StatusCode::OK, "{why}");
        assert_eq!(answer.json(), json!({ "active": false }), "{why}");
    };

    inactive("nonsense", "not ours").await;
    inactive(&crate::support::forged(access), "forged").await;
    let first = refresh(&regrant, refresh_token).await;
    let second = refresh(&regrant, &first.text("refresh_token")).await;
    inactive(refresh_token, "rotated away").await;
    let told = introspect(&regrant, &second.text("refresh_token"), SECRET).await;
    assert_eq!(told.json()["active"], true);

    lab.clock.advance(Duration::from_secs(3_610));
    inactive(access, "expired").await;
    regrant.revoke(issued.grant_id).await.unwrap();
    inactive(&second.text("access_token"), "revoked").await;
    inactive(&second.text("refresh_token"), "revoked").await;

    let ended = regrant.issue(lab.login_of("bob")).await.unwrap();
    lab.provider.log_out();
    lab.provider.revoke_access_tokens();
    let answer = send(
        &lab.gateway(&regrant),
        post(ended.access_token.expose(), ""),
    )
    .await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    inactive(ended.access_token.expose(), "ended by the provider").await;
    inactive(ended.refresh_token.expose(), "ended by the provider").await;
}

#[tokio::test]
async fn nobody_else_is_told_anything() {
    let (_lab, regrant, issued) = introspected().await;
    let token = issued.access_token.expose();
    let ordinary = Client::new("ordinary").secret(&ClientSecret::new(SECRET));
    regrant.register_client(ordinary).await.unwrap();

    for pairs in [
        vec![],
        vec![("client_id", "server")],
        vec![("client_id", "server"), ("client_secret", "wrong")],
        vec![("client_id", "claude"), ("client_secret", SECRET)],
        vec![("client_id", "ordinary"), ("client_secret", SECRET)],
    ] {
        let mut sent = vec![("token", token)];
        sent.extend(&pairs);
        let answer = ask(&regrant, form("/oauth/introspect", &sent)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{pairs:?}");
        assert_eq!(answer.text("error"), "invalid_client", "{pairs:?}");
        assert!(answer.json().get("active").is_none());
    }
}

/// A gateway with the resource server `server`, and a grant.
async fn introspected() -> (Lab, Regrant, Issued) {
    let lab = Lab::start().await;
    let builder = lab.builder(MemoryStore::new()).introspection(true);
    let regrant = builder.start().await.unwrap();
    let server = Client::new("server")
        .secret(&ClientSecret::new(SECRET))
        .introspects();
    regrant.register_client(server).await.unwrap();
    let login = lab.login().client_id("claude").scope("read write");
    let issued = regrant.issue(login).await.unwrap();
    (lab, regrant, issued)
}

async fn introspect(regrant: &Regrant, token: &str, secret: &str) -> Answer {
    let pairs = [
        ("token", token),
        ("client_id", "server"),
        ("client_secret", secret),
    ];
    ask(regrant, form("/oauth/introspect", &pairs)).await
}

const SECRET: &str = "s3cr3t-0123456789-0123456789-0123456789";
