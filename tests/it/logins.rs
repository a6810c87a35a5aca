//! New logins for credentials that are there already.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::StatusCode;
use regrant::Issued;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::secret::UpstreamAccessToken;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;

use crate::support::HOUR;
use crate::support::Lab;
use crate::support::always;
use crate::support::line::Line;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn a_new_login_revives_every_grant_of_the_subject() {
    let line = Line::start().await;
    let second_client = line.lab.issue(&line.regrant).await;
    line.lab.clock.advance(HOUR);
    line.lab.provider.log_out();
    assert_eq!(line.ask().await, StatusCode::UNAUTHORIZED);
    let builder = line.lab.builder(line.store.clone()).lifetimes(long());
    let other = builder.start().await.unwrap();
    let ask = async |regrant: &Regrant, issued: &Issued| {
        let request = post(issued.access_token.expose(), "");
        send(&line.lab.gateway(regrant), request).await.status
    };
    assert_eq!(ask(&other, &second_client).await, StatusCode::UNAUTHORIZED);

    let third_client = line.lab.issue(&line.regrant).await;

    for regrant in [&line.regrant, &other] {
        for issued in [&line.issued, &second_client, &third_client] {
            assert_eq!(ask(regrant, issued).await, StatusCode::OK);
        }
    }
    let answer = refresh(&other, line.issued.refresh_token.expose()).await;
    assert_eq!(answer.status, StatusCode::OK);
    line.lab.clock.advance(HOUR);
    assert_eq!(ask(&other, &second_client).await, StatusCode::OK);
    assert_eq!(line.lab.provider.counts().double_spends, 0);

    // Another user of the provider is another matter.
    let bob = line.regrant.issue(line.lab.login_of("bob")).await.unwrap();
    let credential = async |issued: &Issued| {
        let grant = line.store.grant(issued.grant_id).await.unwrap();
        grant.unwrap().credentials[0].id
    };
    assert_eq!(
        credential(&third_client).await,
        credential(&second_client).await
    );
    assert_ne!(credential(&bob).await, credential(&second_client).await);
}

#[tokio::test]
async fn a_new_login_without_a_refresh_token_keeps_the_one_that_works() {
    let line = Line::start().await;
    let login = Login::new("linear", "ada", UpstreamAccessToken::new("new"));
    line.regrant.issue(login.clone()).await.unwrap();
    // The upstream knows no "new": what was kept is spent.
    assert_eq!(line.ask().await, StatusCode::OK);
    assert_eq!(line.lab.provider.counts().refreshes, 1);

    line.lab.provider.log_out();
    line.lab.clock.advance(HOUR);
    assert_eq!(line.ask().await, StatusCode::UNAUTHORIZED);
    line.regrant.issue(login).await.unwrap();
    let calls = line.provider.calls();
    assert_eq!(line.ask().await, StatusCode::UNAUTHORIZED);
    assert_eq!(line.provider.calls(), calls, "the dead one is not kept");
}

#[tokio::test]
async fn a_new_login_without_a_refresh_token_takes_none_out_of_the_hands_of_a_spender() {
    let line = Line::start().await;
    line.lab.faults.hold();
    let gateway = line.lab.gateway(&line.regrant);
    let request = post(line.issued.access_token.expose(), "");
    let waiting = tokio::spawn(async move { send(&gateway, request).await.status });
    line.lab.faults.arrived(1).await;

    // A second client logs in; the provider gives a refresh token only once.
    let access = line.lab.provider.log_in("ada").access;
    let login = Login::new("linear", "ada", UpstreamAccessToken::new(access));
    line.regrant.issue(login).await.unwrap();
    line.lab.faults.release();
    assert_eq!(waiting.await.unwrap(), StatusCode::OK);

    line.lab.clock.advance(HOUR);
    assert_eq!(line.ask().await, StatusCode::OK);
    assert_eq!(line.lab.provider.counts().double_spends, 0);
}

/// Notes the tenants that it is asked for.
#[derive(Clone, Debug, Default)]
struct Tenants(Arc<Mutex<Vec<Option<String>>>>);

impl Provider for Tenants {
    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        let tenant = request.tenant.map(str::to_owned);
        self.0.lock().unwrap().push(tenant);
        let mut response = TokenResponse::new(UpstreamAccessToken::new("new"));
        response.expiry = Expiry::After(HOUR);
        async { Ok(response) }.boxed()
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }
}

#[tokio::test]
async fn the_tenant_of_a_login_is_asked_for_at_every_refresh() {
    let lab = Lab::start().await;
    let tenants = Tenants::default();
    let builder = lab.builder(MemoryStore::new()).lifetimes(long());
    let builder = builder.provider("linear", tenants.clone());
    let regrant = builder.start().await.unwrap();
    let acme = regrant.issue(lab.login().tenant("acme")).await.unwrap();
    let none = lab.issue(&regrant).await;
    let witness = regrant.layer("linear").unwrap().layer(lab.witness());
    for _ in 0..2 {
        lab.clock.advance(2 * HOUR);
        for issued in [&acme, &none] {
            let request = post(issued.access_token.expose(), "");
            assert_eq!(send(&witness, request).await.status, StatusCode::OK);
        }
    }

    let acme = Some("acme".to_owned());
    assert_eq!(*tenants.0.lock().unwrap(), [acme.clone(), None, acme, None]);
}

/// A 401 that no refresh can heal would otherwise send the client round in
/// circles: to the token endpoint, and back with another pair.
#[tokio::test]
async fn fm06_what_the_upstream_refuses_and_nobody_can_refresh_ends_after_a_while() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let token = UpstreamAccessToken::new(lab.provider.log_in("ada").access);
    let issued = regrant.issue(Login::new("linear", "ada", token)).await;
    let mut pair = issued.unwrap().refresh_token.expose().to_owned();
    let layer = || regrant.layer("linear").unwrap();
    let refusing = layer().layer(always(StatusCode::UNAUTHORIZED));
    let serving = layer().layer(lab.witness());

    // It may be wrong once, or now and then.
    for (gateway, status) in [(&refusing, 401), (&serving, 200), (&refusing, 401)] {
        let rotated = refresh(&regrant, &pair).await;
        let used = send(gateway, post(&rotated.text("access_token"), "")).await;
        assert_eq!(used.status.as_u16(), status);
        pair = rotated.text("refresh_token");
        lab.clock.advance(Duration::from_secs(9));
    }
    let rotated = refresh(&regrant, &pair).await;
    assert_eq!(rotated.status, StatusCode::OK);

    lab.clock.advance(Duration::from_secs(1));
    let used = send(&refusing, post(&rotated.text("access_token"), "")).await;
    assert_eq!(used.status, StatusCode::UNAUTHORIZED);
    let ended = refresh(&regrant, &rotated.text("refresh_token")).await;
    assert_eq!(ended.text("error"), "invalid_grant");

    // A new login is another credential, or this one anew.
    lab.issue(&regrant).await;
    let revived = refresh(&regrant, &rotated.text("refresh_token")).await;
    assert_eq!(revived.status, StatusCode::OK);
}
