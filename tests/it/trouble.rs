//! Trouble at the provider, at the store and with clients that go away. None of
//! it may end a login that the provider did not end.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::response::Redirect;
use axum::routing::post as post_route;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::StatusCode;
use regrant::Login;
use regrant::clock::SystemClock;
use regrant::error::RefreshErrorKind;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::secret::ClientSecret;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::memory::MemoryStore;
use tower::ServiceExt as _;

use crate::support::HOUR;
use crate::support::Lab;
use crate::support::impatient;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;
use crate::support::serve;
use crate::support::short;

#[tokio::test]
async fn fm05_a_login_that_the_provider_ended_is_ended_here_and_never_asked_for_again() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.provider.log_out();
    lab.clock.advance(HOUR);

    for _ in 0..3 {
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.header("www-authenticate").contains("invalid_token"));
        let answer = refresh(&regrant, issued.refresh_token.expose()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.text("error"), "invalid_grant");
    }
    assert_eq!(lab.provider.counts().calls, 1);
}

#[tokio::test]
async fn fm04_a_provider_in_trouble_is_a_503_never_a_401_and_heals() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.clock.advance(HOUR);

    for (status, body) in [
        (503, "<html>Service Unavailable</html>"),
        (429, ""),
        (429, r#"{"error":"invalid_grant"}"#),
        (500, r#"{"error":"invalid_grant"}"#),
        (400, r#"{"error":"whatever"}"#),
        (302, ""),
    ] {
        lab.faults.answer_next(status, body);
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{status}");
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=30).contains(&wait), "{wait}");
        assert_eq!(answer.json()["jsonrpc"], "2.0");
        assert_eq!(answer.header("www-authenticate"), "");
        // The token endpoint does not care about the provider.
        let answer = refresh(&regrant, issued.refresh_token.expose()).await;
        assert_eq!(answer.status, StatusCode::OK, "{status}");
        lab.clock.advance(Duration::from_secs(30));
    }

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    let counts = lab.provider.counts();
    assert_eq!((counts.refreshes, counts.double_spends), (1, 0));
}

#[tokio::test]
async fn a_moment_of_trouble_is_waited_out() {
    let lab = Lab::start().await;
    let builder = lab.builder(MemoryStore::new()).with_clock(SystemClock);
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.provider.revoke_access_tokens();
    lab.faults.answer_next(503, "");

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;

    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.faults.requests().len(), 2);
}

#[tokio::test]
async fn a_provider_in_trouble_is_not_asked_by_every_request() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    // In the skew: each of them wants a refresh, and can do without it.
    lab.clock.advance(Duration::from_secs(3_580));
    lab.faults.answer_next(503, "");

    for _ in 0..50 {
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::OK);
    }

    assert_eq!(lab.faults.requests().len(), 1);
}

#[tokio::test]
async fn a_token_that_expired_before_it_was_issued_is_not_refreshed_by_every_request() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let witness = tower::Layer::layer(&regrant.layer("linear").unwrap(), lab.witness());
    lab.clock.advance(HOUR);
    lab.faults
        .answer_next(200, r#"{"access_token":"a1","expires_at":3600}"#);

    for _ in 0..20 {
        let answer = send(&witness, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::OK);
    }

    assert_eq!(lab.faults.requests().len(), 1);
}

#[tokio::test]
async fn fm10_an_access_token_that_fits_no_header_does_not_cost_the_token_that_came_along() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.clock.advance(HOUR);
    let body = r#"{"access_token":"a\nb","expires_in":3600}"#;
    lab.faults.answer_next(200, body);

    for _ in 0..5 {
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.header("retry-after"), "30");
    }
    assert_eq!(lab.faults.requests().len(), 1, "not by every request");

    lab.clock.advance(Duration::from_secs(30));
    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.provider.counts().double_spends, 0);
}

/// What a provider without refresh tokens is.
#[derive(Clone, Debug, Default)]
struct Unsupported(Arc<AtomicUsize>);

impl Provider for Unsupported {
    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }

    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }
}

#[tokio::test]
async fn a_provider_that_cannot_refresh_ends_the_login_with_its_access_token() {
    let lab = Lab::start().await;
    let provider = Unsupported::default();
    let builder = lab.builder(MemoryStore::new()).lifetimes(long());
    let builder = builder
        .provider("linear", provider.clone())
        .timings(short());
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    let access = issued.access_token.expose();

    lab.clock.advance(Duration::from_secs(3_599));
    for _ in 0..20 {
        let answer = send(&gateway, post(access, "")).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    // The upstream's word stands, however often it is asked.
    lab.provider.revoke_access_tokens();
    for _ in 0..20 {
        let answer = send(&gateway, post(access, "")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(provider.0.load(Ordering::SeqCst), 1, "once is enough");
    lab.clock.advance(Duration::from_secs(1));
    for _ in 0..2 {
        let answer = send(&gateway, post(access, "")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        let answer = refresh(&regrant, issued.refresh_token.expose()).await;
        assert_eq!(answer.text("error"), "invalid_grant");
    }
}

#[tokio::test]
async fn a_provider_that_refuses_the_gateway_itself_harms_no_grant() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.clock.advance(HOUR);
    lab.faults.answer_next(401, r#"{"error":"invalid_client"}"#);

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        lab.faults.requests().len(),
        1,
        "it is left alone for a while"
    );

    lab.clock.advance(Duration::from_secs(31));
    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn fm29_an_access_token_that_is_still_good_is_served_while_the_provider_is_down() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    // Within the skew, yet not expired.
    lab.clock.advance(Duration::from_secs(3_590));
    lab.faults.answer_next(503, "");

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;

    assert_eq!(answer.status, StatusCode::OK);
    assert!(lab.seen()[0].bearer().starts_with("upstream-at-0-"));
    assert_eq!(lab.faults.requests().len(), 1);
}

#[tokio::test]
async fn fm12_an_omitted_refresh_token_keeps_the_old_one() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    let body = r#"{"access_token":"another","expires_in":"3600"}"#;
    lab.faults.answer_next(200, body);
    let witness = regrant.layer("linear").unwrap();
    let witness = tower::Layer::layer(&witness, lab.witness());

    lab.clock.advance(HOUR);
    let answer = send(&witness, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.seen()[0].bearer(), "another");

    lab.clock.advance(HOUR);
    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    let forms: Vec<_> = lab.faults.requests().into_iter().map(|r| r.1).collect();
    assert_eq!(forms[0], forms[1], "the same refresh token was sent twice");
}

#[tokio::test]
async fn without_a_refresh_token_the_login_lasts_as_long_as_the_access_token() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let tokens = lab.provider.log_in("ada");
    let login = Login::new("linear", "ada", UpstreamAccessToken::new(tokens.access));
    // Another scope, or it would be the same credential.
    let known = login.clone().scope("known").expiry(Expiry::After(HOUR));
    let known = regrant.issue(known).await.unwrap();
    let unknown = regrant.issue(login).await.unwrap();
    let gateway = lab.gateway(&regrant);

    lab.clock.advance(Duration::from_secs(3_599));
    let answer = send(&gateway, post(known.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);

    lab.clock.advance(Duration::from_secs(1));
    let answer = send(&gateway, post(known.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let answer = refresh(&regrant, known.refresh_token.expose()).await;
    assert_eq!(
        answer.text("error"),
        "invalid_grant",
        "no tokens for nothing"
    );

    // Where nobody knows the expiry, the upstream decides.
    let answer = send(&gateway, post(unknown.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    lab.provider.revoke_access_tokens();
    let answer = send(&gateway, post(unknown.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(!answer.header("www-authenticate").contains("upstream"));
    assert_eq!(lab.faults.requests().len(), 0);
}

#[tokio::test]
async fn a_redirect_does_not_carry_the_secrets_elsewhere() {
    let lab = Lab::start().await;
    let elsewhere = Redirect::temporary(&lab.token_url);
    let router = Router::new().route("/token", post_route(async move || elsewhere.clone()));
    let url = format!("{}/token", serve(router).await);
    let provider = OAuth2Provider::builder(url, "gateway").build().unwrap();
    let token = UpstreamRefreshToken::new(lab.provider.log_in("ada").refresh);

    let error = provider
        .refresh(RefreshRequest::new(&token))
        .await
        .unwrap_err();

    assert_eq!(error.kind(), ProviderErrorKind::Transient);
    assert!(lab.faults.requests().is_empty());
}

#[tokio::test]
async fn client_authentication_goes_into_the_header_or_the_body_never_both() {
    let lab = Lab::start().await;
    let secret = ClientSecret::new("s3cr:t");
    for (authentication, header, in_form) in [
        (
            ClientAuthentication::Basic(secret.clone()),
            "Basic Z2F0ZXdheTpzM2NyJTNBdA==",
            "",
        ),
        (
            ClientAuthentication::Post(secret),
            "",
            "&client_id=gateway&client_secret=s3cr%3At",
        ),
        (ClientAuthentication::None, "", "&client_id=gateway"),
    ] {
        let provider = OAuth2Provider::builder(&lab.token_url, "gateway")
            .client_authentication(authentication)
            .scope("read write")
            .build()
            .unwrap();
        let token = UpstreamRefreshToken::new(lab.provider.log_in("ada").refresh);

        let answer = provider.refresh(RefreshRequest::new(&token)).await.unwrap();

        assert!(answer.access_token.expose().starts_with("upstream-at-"));
        assert_eq!(answer.expiry, Expiry::After(HOUR));
        let (headers, form) = lab.faults.requests().pop().unwrap();
        let sent = headers
            .get("authorization")
            .map_or("", |v| v.to_str().unwrap());
        assert_eq!(sent, header);
        let token = token.expose();
        let want =
            format!("grant_type=refresh_token&refresh_token={token}&scope=read+write{in_form}");
        assert_eq!(form, want);
    }
}

#[tokio::test]
async fn why_a_request_was_refused_is_in_the_extensions_of_the_answer() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    lab.provider.log_out();
    lab.clock.advance(HOUR);

    let request = post(issued.access_token.expose(), "");
    let response = lab.gateway(&regrant).oneshot(request).await.unwrap();

    let reason = response.extensions().get::<regrant::error::RefreshError>();
    assert_eq!(reason.unwrap().kind(), RefreshErrorKind::Terminal);
}
