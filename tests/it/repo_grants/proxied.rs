//! A repo grant through the layer: its client holds a pair of the gateway's,
//! and GitHub gets the installation token.

use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::USER_AGENT;
use http_body_util::Full;
use regrant::RefreshLayer;
use regrant::Regrant;
use regrant::RegrantBuilder;
use regrant::repo_grants::Minted;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;

use super::DAY;
use super::INSTALLATION;
use super::World;
use super::redeem;
use super::revoke;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::support::Answer;
use crate::support::Gateway;
use crate::support::HOUR;
use crate::support::Inner;
use crate::support::long;
use crate::support::refresh;
use crate::support::send;
use crate::support::short;

#[tokio::test]
async fn fm30_an_installation_token_that_died_after_an_hour_is_minted_anew_by_the_coordinator() {
    let stage = Stage::start().await;
    assert_eq!(stage.read().await.status, 200);
    assert_eq!(stage.world.github.mints(), 1, "that of minting");

    stage.world.clock.advance(HOUR);
    let answer = stage.read().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text("full_name"), "acme/web");
    assert_eq!(stage.world.github.mints(), 2);

    stage.world.clock.advance(HOUR);
    let answers = join_all((0..20).map(|_| stage.read())).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(stage.world.github.mints(), 3, "one for all of them");
    assert!(
        stage
            .upstream_statuses()
            .iter()
            .all(|status| *status == 200)
    );
}

#[tokio::test]
async fn a_token_that_was_revoked_early_is_healed_by_a_replay() {
    let stage = Stage::start().await;
    stage.end_at_github(stage.minted.token.expose()).await;

    let answer = stage.read().await;

    assert_eq!(answer.status, 200);
    assert_eq!(answer.text("full_name"), "acme/web");
    assert_eq!(stage.upstream_statuses(), [401, 200]);
    assert_eq!(stage.world.github.mints(), 2);
}

#[tokio::test]
async fn the_pair_rotates_and_goes_on_working_and_the_direct_token_too() {
    let stage = Stage::start().await;
    let mut access = stage.minted.proxied.access_token.expose().to_owned();
    let mut token = stage.minted.proxied.refresh_token.expose().to_owned();
    for _ in 0..3 {
        stage.world.clock.advance(HOUR);
        assert_eq!(stage.read_with(&access).await.status, 200);
        let asked = stage.world.mints_asked();
        let pair = refresh(&stage.regrant, &token).await;
        assert_eq!(pair.status, 200);
        assert_eq!(stage.world.mints_asked(), asked, "rotating asks nobody");
        assert_ne!(pair.text("refresh_token"), token);
        access = pair.text("access_token");
        token = pair.text("refresh_token");
        assert_eq!(stage.read_with(&access).await.status, 200);
        assert_eq!(stage.redeem().await.status, 200);
    }
    assert!(token.starts_with("rgrt_"), "{token}");
}

#[tokio::test]
async fn a_request_goes_out_with_the_newest_token_whoever_had_it_minted() {
    let stage = Stage::start().await;
    stage.read().await;
    let redeemed = stage.redeem().await.text("access_token");
    stage.read().await;
    let again = stage.redeem().await.text("access_token");
    stage.read().await;

    let bearer = |token: &str| format!("Bearer {token}");
    let sent = stage.sent.lock().unwrap().clone();
    assert_eq!(
        sent,
        [
            bearer(stage.minted.token.expose()),
            bearer(&redeemed),
            bearer(&again),
        ]
    );
    assert_eq!(stage.world.github.mints(), 3);

    // And whoever redeems gets one that is newer than the layer's.
    stage.world.clock.advance(HOUR);
    stage.read().await;
    let last = stage.redeem().await.text("access_token");
    assert_ne!(stage.sent.lock().unwrap()[3], bearer(&last));
    assert!(stage.world.github.is_live(&last));
}

#[tokio::test]
async fn a_revoked_grant_is_refused_on_the_route_and_at_both_token_endpoints() {
    let stage = Stage::start().await;
    assert_eq!(stage.read().await.status, 200);

    revoke(&stage.regrant, stage.minted.refresh_token.expose()).await;

    stage.assert_ended().await;
    assert!(stage.regrant.drain(DAY).await);
    assert!(!stage.world.github.is_live(stage.minted.token.expose()));
    assert_eq!(stage.upstream_statuses(), [200], "nothing was sent");
}

#[tokio::test]
async fn the_route_is_refused_and_both_token_endpoints_say_invalid_grant_once_the_app_is_gone() {
    let stage = Stage::start().await;
    assert_eq!(stage.read().await.status, 200);

    stage.world.github.uninstall(INSTALLATION);

    stage.assert_ended().await;
    let asked = stage.world.mints_asked();
    stage.assert_ended().await;
    assert_eq!(stage.world.mints_asked(), asked, "it is asked for once");
}

#[tokio::test]
async fn what_a_redemption_learns_of_the_app_the_route_knows_too() {
    let stage = Stage::start().await;
    assert_eq!(stage.read().await.status, 200);
    stage.world.github.uninstall(INSTALLATION);
    assert_eq!(stage.redeem().await.text("error"), "invalid_grant");

    stage.assert_ended().await;
    assert_eq!(stage.upstream_statuses(), [200], "nothing was sent");
}

#[tokio::test]
async fn the_token_serves_while_it_is_good_though_github_mints_none() {
    let stage = Stage::with(|builder| builder.timings(short())).await;
    let down = Fault::answer(StatusCode::BAD_GATEWAY, "{}");
    stage.world.github.fail_all(Endpoint::Mint, down);
    // Due, and good for another minute.
    stage.world.clock.advance(59 * HOUR / 60);
    assert_eq!(stage.read().await.status, 200);
    assert_eq!(stage.read().await.status, 200);

    stage.world.clock.advance(HOUR / 60);
    let answer = stage.read().await;
    assert_eq!(answer.status, 503);
    assert!(!answer.header("retry-after").is_empty());

    stage.world.github.heal();
    stage.world.clock.advance(HOUR);
    assert_eq!(stage.read().await.status, 200);
}

#[tokio::test]
async fn the_installation_token_goes_out_as_the_password_that_git_sends() {
    let stage = Stage::start().await;
    let layer = stage.regrant.layer("github-app").unwrap();
    let layer = layer.credential_basic("x-access-token").unwrap();
    let gateway = stage.gateway(&layer.accept_basic(true));
    let access = stage.minted.proxied.access_token.expose();
    let pair = STANDARD.encode(format!("x-access-token:{access}"));

    let answer = send(&gateway, request(&format!("Basic {pair}"))).await;

    assert_eq!(answer.status, 200);
    let token = stage.minted.token.expose();
    let password = STANDARD.encode(format!("x-access-token:{token}"));
    let sent = stage.sent.lock().unwrap().clone();
    assert_eq!(sent, [format!("Basic {password}")]);
}

#[tokio::test]
async fn the_client_never_sees_an_installation_token() {
    let stage = Stage::start().await;
    let mut answers = vec![stage.read().await];
    stage.end_at_github(stage.minted.token.expose()).await;
    answers.push(stage.read().await);
    stage.world.clock.advance(HOUR);
    answers.push(stage.read().await);
    let token = stage.minted.proxied.refresh_token.expose();
    answers.push(refresh(&stage.regrant, token).await);
    stage.world.github.uninstall(INSTALLATION);
    answers.push(stage.read().await);
    answers.push(refresh(&stage.regrant, token).await);

    let statuses: Vec<_> = answers.iter().map(|it| it.status.as_u16()).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 401, 400]);
    for answer in answers {
        let told = format!("{:?} {:?}", answer.headers, answer.body);
        assert!(!told.contains("ghs_"), "{told}");
    }
    for sent in stage.sent.lock().unwrap().iter() {
        assert!(sent.starts_with("Bearer ghs_"), "{sent}");
    }
}

/// A gateway in front of GitHub, and a grant that goes through it.
struct Stage {
    world: World,
    regrant: Regrant,
    minted: Minted,
    gateway: Gateway,
    /// The `Authorization` of each request to the upstream.
    sent: Arc<Mutex<Vec<String>>>,
    http: reqwest::Client,
}

impl Stage {
    async fn start() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(change: impl FnOnce(RegrantBuilder) -> RegrantBuilder) -> Self {
        let world = World::start().await;
        // The client's tokens outlive the upstream's.
        let builder = world.builder(MemoryStore::new()).lifetimes(long());
        let regrant = change(builder).start().await.unwrap();
        let minted = world.mint(&regrant).await;
        let (sent, http) = (Arc::default(), reqwest::Client::new());
        let upstream = upstream(&world.api_url, &http, &sent);
        Self {
            gateway: regrant.layer("github-app").unwrap().layer(upstream),
            world,
            regrant,
            minted,
            sent,
            http,
        }
    }

    fn gateway(&self, layer: &RefreshLayer) -> Gateway {
        layer.layer(upstream(&self.world.api_url, &self.http, &self.sent))
    }

    async fn read(&self) -> Answer {
        let access = self.minted.proxied.access_token.expose();
        self.read_with(access).await
    }

    async fn read_with(&self, access: &str) -> Answer {
        send(&self.gateway, request(&format!("Bearer {access}"))).await
    }

    async fn redeem(&self) -> Answer {
        redeem(&self.regrant, self.minted.refresh_token.expose()).await
    }

    /// Somebody else ends it.
    async fn end_at_github(&self, token: &str) {
        let url = format!("{}/installation/token", self.world.api_url);
        let request = self.http.delete(url).header(USER_AGENT, "tests");
        let answer = request.bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }

    fn upstream_statuses(&self) -> Vec<u16> {
        let calls = self.world.github.calls_of(Endpoint::Repository);
        let statuses = calls.iter().map(|call| call.status.unwrap().as_u16());
        statuses.collect()
    }

    async fn assert_ended(&self) {
        let answer = self.read().await;
        assert_eq!(answer.status, 401);
        let challenge = answer.header("www-authenticate");
        assert!(
            challenge.contains(r#"error="invalid_token""#),
            "{challenge}"
        );
        assert!(challenge.contains("https://gateway.example"), "{challenge}");
        let pair = self.minted.proxied.refresh_token.expose();
        for answer in [refresh(&self.regrant, pair).await, self.redeem().await] {
            assert_eq!(
                (answer.status.as_u16(), &*answer.text("error")),
                (400, "invalid_grant")
            );
        }
    }
}

/// Sends requests on to GitHub.
fn upstream(url: &str, http: &reqwest::Client, sent: &Arc<Mutex<Vec<String>>>) -> Inner {
    let (url, http, sent) = (url.to_owned(), http.clone(), Arc::clone(sent));
    Inner::new(tower::service_fn(move |request: Request<_>| {
        let (head, _empty) = request.into_parts();
        let authorization = head.headers[AUTHORIZATION].clone();
        let text = authorization.to_str().unwrap().to_owned();
        sent.lock().unwrap().push(text);
        let request = http.request(head.method, format!("{url}{}", head.uri));
        let request = request.header(AUTHORIZATION, authorization);
        let request = request.header(USER_AGENT, "gateway");
        async move {
            let answer = request.send().await.unwrap();
            let mut response = Response::new(Full::default());
            *response.status_mut() = answer.status();
            *response.body_mut() = Full::new(answer.bytes().await.unwrap());
            Ok(response)
        }
    }))
}

fn request(authorization: &str) -> Request<Full<Bytes>> {
    Request::get("/repos/acme/web")
        .header(AUTHORIZATION, authorization)
        .body(Full::default())
        .unwrap()
}
