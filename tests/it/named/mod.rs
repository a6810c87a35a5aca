//! Gateways that authenticate their users themselves, and name who is calling.

mod disconnect;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http_body_util::Full;
use regrant::CredentialId;
use regrant::GrantContext;
use regrant::Regrant;
use regrant::Upstream;
use regrant::error::RefreshError;
use regrant::error::RefreshErrorKind;
use regrant::provider::Expiry;
use regrant::replay::ReplayBody;
use regrant::resolve::Caller;
use regrant::resolve::FromExtensions;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::settings::Timings;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;
use tower::ServiceExt as _;

use crate::support::Answer;
use crate::support::Gateway;
use crate::support::HOUR;
use crate::support::Inner;
use crate::support::Lab;
use crate::support::flaky::FlakyStore;
use crate::support::post;
use crate::support::send;

const STALENESS: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_named_caller_is_served_with_the_credential_of_the_subject() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    link(&lab, &regrant, "ada").await;
    link(&lab, &regrant, "bob").await;
    let gateway = gateway(&lab, &regrant);

    for (name, number) in [("ada", 0), ("bob", 1)] {
        let answer = send(&gateway, of(name)).await;
        assert_eq!(
            (answer.status, &*answer.body),
            (StatusCode::OK, b"hello".as_slice())
        );
        let seen = lab.seen().pop().unwrap();
        let prefix = format!("upstream-at-{number}-");
        assert!(seen.bearer().starts_with(&prefix), "{name}");
        assert_eq!(seen.headers.get_all(AUTHORIZATION).iter().count(), 1);
    }
    // Refreshed unseen, when it expires and when the upstream refuses it.
    lab.clock.advance(HOUR);
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);
    lab.provider.revoke_access_tokens();
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);
    assert_eq!(lab.provider.counts().refreshes, 2);
}

#[tokio::test]
async fn the_clients_own_token_reaches_the_upstream_in_no_case() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    link(&lab, &regrant, "ada").await;
    let layer = regrant.layer("linear").unwrap();
    let layer = layer.credential_header(http::HeaderName::from_static("x-token"), None);
    let gateway = layer.with_resolve_grant(FromExtensions);
    let gateway = gateway.layer(lab.witness());

    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);
    lab.provider.revoke_access_tokens();
    lab.clock.advance(HOUR);
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);

    let seen = lab.seen();
    assert_eq!(seen.len(), 2);
    for seen in seen {
        assert!(!seen.headers.contains_key(AUTHORIZATION));
        let has_jwt = |value: &http::HeaderValue| value.as_bytes().starts_with(b"Bearer");
        assert!(!seen.headers.values().any(has_jwt));
    }
}

#[tokio::test]
async fn who_is_not_named_needs_a_token_of_ours_or_passes_where_configured() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let gateway = gateway(&lab, &regrant);

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.seen()[0].grant, Some((issued.grant_id, 0)));
    let mut nobody = post("", "");
    nobody.headers_mut().remove(AUTHORIZATION);
    let answer = send(&gateway, nobody.clone()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(!answer.header("www-authenticate").contains("error"));

    let layer = regrant.layer("linear").unwrap().pass_through(true);
    let layer = layer.with_resolve_grant(FromExtensions);
    let answer = send(&layer.layer(lab.witness()), nobody).await;
    assert_eq!(answer.status, StatusCode::OK);
    // The name counts, whatever bearer comes with it.
    let named = send(&layer.layer(lab.witness()), of("eve")).await;
    assert_eq!(named.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn who_is_not_connected_or_no_longer_is_told_so_without_a_challenge() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let gateway = gateway(&lab, &regrant);

    assert_not_connected(&send(&gateway, of("ada")).await);
    // At once: nothing remembers that it was not there.
    link(&lab, &regrant, "ada").await;
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);

    // The provider ends it.
    lab.provider.log_out();
    lab.clock.advance(HOUR);
    for _ in 0..3 {
        assert_not_connected(&send(&gateway, of("ada")).await);
    }
    assert_eq!(
        lab.provider.counts().calls,
        1,
        "said once, never asked again"
    );
    link(&lab, &regrant, "ada").await;
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);

    // An outer layer may know more, and say where to connect.
    let response = gateway.oneshot(of("eve")).await.unwrap();
    let error = response.extensions().get::<RefreshError>().unwrap();
    assert_eq!(error.kind(), RefreshErrorKind::Terminal);
}

#[tokio::test]
async fn an_upstream_that_goes_on_refusing_does_not_send_the_client_to_log_in_again() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    link(&lab, &regrant, "ada").await;
    let access = lab.provider.log_in("bob").access;
    let unrefreshable = Upstream::new("linear", UpstreamAccessToken::new(access));
    regrant.link("bob", unrefreshable).await.unwrap();
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let layer = regrant.layer("linear").unwrap();
        let layer = layer.with_resolve_grant(FromExtensions);
        let gateway = layer.layer(crate::support::always(status));

        for name in ["ada", "bob"] {
            let answer = send(&gateway, of(name)).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name}");
            assert_eq!(answer.body, "the upstream's words");
            assert_eq!(answer.header("www-authenticate"), "");
        }
    }
    assert_eq!(lab.provider.counts().calls, 1);
}

#[tokio::test]
async fn tenant_and_scope_name_credentials_of_their_own() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let gateway = gateway(&lab, &regrant);
    let upstream = |access| Upstream::new("linear", UpstreamAccessToken::new(access));
    let acme = upstream("acme").tenant("acme");
    let writer = upstream("writer").scope("read  write");
    for upstream in [upstream("plain"), acme, writer] {
        regrant.link("ada", upstream).await.unwrap();
    }

    let ada = Caller::new("ada");
    for (caller, token) in [
        (ada.clone(), "plain"),
        (ada.clone().tenant("acme"), "acme"),
        (ada.clone().upstream_scope("write read"), "writer"),
    ] {
        send(&gateway, by(caller)).await;
        assert_eq!(lab.seen().pop().unwrap().bearer(), token);
    }
    let other = ada.tenant("acme").upstream_scope("read write");
    assert_not_connected(&send(&gateway, by(other)).await);
}

#[tokio::test]
async fn a_named_credential_is_served_from_memory_for_as_long_as_the_staleness_bound() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let timings = Timings::default().staleness(STALENESS);
    let builder = lab.builder(store.clone()).timings(timings);
    let regrant = builder.start().await.unwrap();
    link(&lab, &regrant, "ada").await;
    let gateway = gateway(&lab, &regrant);
    let ask = async || send(&gateway, of("ada")).await;

    assert_eq!(ask().await.status, StatusCode::OK);
    let calls = store.calls();
    for _ in 0..10 {
        assert_eq!(ask().await.status, StatusCode::OK);
    }
    assert_eq!(store.calls(), calls, "asks nobody");
    lab.clock.advance(STALENESS);
    assert_eq!(ask().await.status, StatusCode::OK);
    assert_eq!(store.calls(), calls + 1, "one row, once");

    store.set_down(true);
    assert_eq!(ask().await.status, StatusCode::OK);
    lab.clock.advance(STALENESS);
    let answer = ask().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!answer.header("retry-after").is_empty());
    store.set_down(false);
    assert_eq!(ask().await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_login_without_a_refresh_token_links_the_one_that_works() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = gateway(&lab, &regrant);

    let again = Upstream::new("linear", UpstreamAccessToken::new("again"));
    let id = regrant.link("ada", again).await.unwrap();

    let row = store.credential(id).await.unwrap().unwrap();
    assert!(row.linked);
    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    assert_eq!(grant.credential("linear"), Some(id));
    lab.clock.advance(HOUR);
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);
    assert_eq!(lab.provider.counts().refreshes, 1);
}

#[tokio::test]
async fn a_handler_knows_a_named_caller_and_has_a_fresh_credential() {
    let (lab, store) = (Lab::start().await, FlakyStore::default());
    let timings = Timings::default().staleness(STALENESS);
    let builder = lab.builder(store.clone()).timings(timings);
    let regrant = builder.start().await.unwrap();
    let credential = link(&lab, &regrant, "ada").await;
    let mut grant = handle(&regrant, of("ada")).await;
    assert_eq!(grant.id().as_bytes(), credential.as_bytes());
    assert_eq!(
        (grant.subject(), grant.client_id(), grant.scope()),
        ("ada", None, None)
    );

    let calls = store.calls();
    assert_eq!(grant.fresh().await.unwrap().credential_generation(), 0);
    assert_eq!(store.calls(), calls, "from memory, within the bound");
    lab.provider.revoke_access_tokens();
    grant.report_expired();
    assert_eq!(grant.fresh().await.unwrap().credential_generation(), 1);
    lab.clock.advance(2 * HOUR);
    let fresh = grant.fresh().await.unwrap();
    assert_eq!(fresh.credential_generation(), 2);
    let live = lab.provider.introspect(fresh.access_token().expose());
    assert!(live.is_some());
    // The name does not change.
    assert_eq!(handle(&regrant, of("ada")).await.id(), fresh.id());

    regrant
        .disconnect(&Caller::new("ada"), "linear")
        .await
        .unwrap();
    let error = fresh.fresh().await.unwrap_err();
    assert_eq!(error.kind(), RefreshErrorKind::Terminal);
    assert_eq!(lab.provider.counts().calls, 2);
}

#[tokio::test]
async fn what_could_not_be_used_is_not_linked() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    for (subject, provider, access) in [
        ("", "linear", "at"),
        ("ada", "other", "at"),
        ("ada", "linear", "a t"),
    ] {
        let upstream = Upstream::new(provider, UpstreamAccessToken::new(access));
        let linked = regrant.link(subject, upstream).await;
        assert!(linked.is_err(), "{subject} {provider} {access}");
    }
}

/// The handle that the gateway's handler got for one request.
async fn handle(regrant: &Regrant, request: Request<Full<Bytes>>) -> GrantContext {
    let handle = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&handle);
    let handler = Inner::new(tower::service_fn(
        move |request: Request<ReplayBody<Full<Bytes>>>| {
            *kept.lock().unwrap() = request.extensions().get::<GrantContext>().cloned();
            async { Ok::<_, Infallible>(Response::default()) }
        },
    ));
    let layer = regrant.layer("linear").unwrap();
    let gateway = layer.with_resolve_grant(FromExtensions).layer(handler);
    assert_eq!(send(&gateway, request).await.status, StatusCode::OK);
    handle.lock().unwrap().take().unwrap()
}

fn gateway(lab: &Lab, regrant: &Regrant) -> Gateway {
    let layer = regrant.layer("linear").unwrap();
    let layer = layer.with_resolve_grant(FromExtensions);
    layer.layer(lab.upstream())
}

async fn link(lab: &Lab, regrant: &Regrant, subject: &str) -> CredentialId {
    let tokens = lab.provider.log_in(subject);
    let upstream = Upstream::new("linear", UpstreamAccessToken::new(tokens.access))
        .refresh_token(UpstreamRefreshToken::new(tokens.refresh))
        .expiry(Expiry::After(HOUR));
    regrant.link(subject, upstream).await.unwrap()
}

/// With a token of the gateway's own, which it has verified.
fn of(subject: &str) -> Request<Full<Bytes>> {
    by(Caller::new(subject))
}

fn by(caller: Caller) -> Request<Full<Bytes>> {
    let mut request = post("eyJ.the.gateways-own", "hello");
    request.extensions_mut().insert(caller);
    request
}

fn assert_not_connected(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.header("www-authenticate"), "");
    let message = answer.json()["error"]["message"].to_string();
    assert!(message.contains("please connect it"), "{message}");
}
