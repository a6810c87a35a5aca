//! Genuine tokens in the wrong hands, at the wrong place or with the wrong
//! words: the client whose they are does not notice.

use std::time::Duration;

use http::StatusCode;
use regrant::Client;
use regrant::Upstream;
use regrant::secret::ClientSecret;
use regrant::secret::UpstreamAccessToken;
use tower::Layer as _;

use super::ATTEMPTS;
use super::NOW_AND_THEN;
use super::Pair;
use super::refreshing;
use crate::support::Lab;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn who_sends_a_strangers_token_does_not_trouble_the_client() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let mut token = issued.refresh_token.expose().to_owned();

    for replica in [&pair.here, &pair.there, &pair.here, &pair.there] {
        let mut pairs = refreshing(&token).to_vec();
        pairs.push(("client_id", "mallory"));
        let calls = pair.flood(&pairs, "invalid_grant").await;
        assert!(calls < NOW_AND_THEN, "{calls} calls of the store");

        // Rotated here or elsewhere, the client's next token is good at once.
        let rotated = refresh(replica, &token).await;
        assert_eq!(rotated.status, StatusCode::OK);
        let successor = rotated.text("refresh_token");
        let next = pair.refresh_as("claude", &successor).await;
        assert_eq!(next.status, StatusCode::OK, "{next:?}");
        let answer = pair.call(&next.text("access_token")).await;
        assert_eq!(answer.status, StatusCode::OK);
        token = next.text("refresh_token");
    }
}

#[tokio::test]
async fn requests_for_too_much_are_refused_from_memory_and_the_right_one_is_not() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let token = issued.refresh_token.expose();

    for (wrong, error) in [
        (("resource", "https://evil.example"), "invalid_target"),
        (("scope", "read admin"), "invalid_scope"),
    ] {
        let mut pairs = refreshing(token).to_vec();
        pairs.push(wrong);
        let calls = pair.flood(&pairs, error).await;
        assert!(calls < NOW_AND_THEN, "{calls} calls of the store");
        let answer = pair.refresh_as("claude", token).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn wrong_secrets_are_refused_from_memory_and_the_right_one_is_not() {
    let pair = Pair::start(long()).await;
    let secret = ClientSecret::new("0123456789abcdef0123456789abcdef");
    let worker = Client::new("worker").secret(&secret);
    pair.there.register_client(worker).await.unwrap();
    let login = pair.lab.login().client_id("worker");
    let issued = pair.there.issue(login).await.unwrap();
    let mut token = issued.refresh_token.expose().to_owned();

    for _ in 0..2 {
        let mut pairs = refreshing(&token).to_vec();
        pairs.push(("client_id", "worker"));
        pairs.push(("client_secret", "guess"));
        let calls = pair.flood(&pairs, "invalid_client").await;
        assert!(calls < NOW_AND_THEN, "{calls} calls of the store");

        pairs[3].1 = secret.expose();
        let answer = pair.token(&pairs).await;
        assert_eq!(answer.status, StatusCode::OK);
        token = answer.text("refresh_token");
    }
}

/// Guesses for one client, spread over many of its grants.
#[tokio::test]
async fn wrong_secrets_are_counted_by_client_as_well() {
    let pair = Pair::start(long()).await;
    let secret = ClientSecret::new("0123456789abcdef0123456789abcdef");
    let worker = Client::new("worker").secret(&secret);
    pair.there.register_client(worker).await.unwrap();
    let mut tokens = Vec::new();
    for _ in 0..100 {
        let login = pair.lab.login().client_id("worker");
        tokens.push(pair.there.issue(login).await.unwrap().refresh_token);
    }

    let before = pair.store.calls();
    for _ in 0..10 {
        for token in &tokens {
            let mut pairs = refreshing(token.expose()).to_vec();
            pairs.push(("client_secret", "guess"));
            let answer = pair.token(&pairs).await;
            assert_eq!(answer.text("error"), "invalid_client");
        }
    }

    let calls = pair.store.calls() - before;
    assert!(calls < 120, "each of 100 is read once: {calls}");
}

#[tokio::test]
async fn an_access_token_that_was_revoked_or_is_for_elsewhere_is_refused_from_memory() {
    let pair = Pair::start(long()).await;
    let login = pair.lab.login().client_id("claude");
    let login = login.resource("https://gateway.example/mcp");
    let issued = pair.there.issue(login).await.unwrap();
    let layer = |path| pair.here.layer("linear").unwrap().resource_path(path);
    let at = |path| layer(path).unwrap().layer(pair.lab.upstream());
    let (mcp, other) = (at("/mcp"), at("/other"));
    let access = issued.access_token.expose();

    let calls = pair.flood_resource(&other, access, StatusCode::UNAUTHORIZED);
    let calls = calls.await;
    assert!(calls < NOW_AND_THEN, "{calls} calls of the store");
    assert_eq!(send(&mcp, post(access, "")).await.status, StatusCode::OK);

    let request = form("/oauth/revoke", &[("token", access)]);
    assert_eq!(ask(&pair.there, request).await.status, StatusCode::OK);
    pair.lab.clock.advance(Duration::from_secs(5));
    let calls = pair.flood_resource(&mcp, access, StatusCode::UNAUTHORIZED);
    let calls = calls.await;
    assert!(calls < NOW_AND_THEN, "{calls} calls of the store");
    // The next one of the same grant, made elsewhere, is not concerned.
    let rotated = refresh(&pair.there, issued.refresh_token.expose()).await;
    let next = rotated.text("access_token");
    assert_eq!(send(&mcp, post(&next, "")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_provider_that_is_attached_opens_its_route_at_once() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let builder = lab.builder(store.clone()).provider("github", lab.oauth2());
    let regrant = builder.lifetimes(long()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let github = regrant.layer("github").unwrap().layer(lab.witness());
    let access = issued.access_token.expose();

    let before = store.calls();
    for _ in 0..ATTEMPTS {
        let answer = send(&github, post(access, "")).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
    assert!(store.calls() - before < NOW_AND_THEN);

    let upstream = Upstream::new("github", UpstreamAccessToken::new("at"));
    assert!(regrant.attach(issued.grant_id, upstream).await.unwrap());
    let answer = send(&github, post(access, "")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_was_repeated_too_often_costs_nothing_more_and_harms_nobody() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let token = issued.refresh_token.expose();
    let rotated = refresh(&pair.here, token).await;
    for _ in 0..10_000 {
        assert_eq!(refresh(&pair.here, token).await.status, StatusCode::OK);
    }

    let before = pair.store.calls();
    for _ in 0..ATTEMPTS {
        let answer = refresh(&pair.here, token).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.text("error"), "temporarily_unavailable");
    }
    assert!(pair.store.calls() - before < NOW_AND_THEN);

    let next = refresh(&pair.here, &rotated.text("refresh_token")).await;
    assert_eq!(next.status, StatusCode::OK);
}
