//! Replicas share the grants: through PostgreSQL, with clocks of their own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join;
use futures_util::future::join_all;
use futures_util::poll;
use http::StatusCode;
use regrant::Regrant;
use regrant::clock::SystemClock;
use regrant::provider::github::GitHubApp;
use regrant::repo_grants::Minted;
use regrant::seal::Keyring;
use regrant::secret::PrivateKey;
use regrant::secret::UpstreamAccessToken;
use regrant::settings::RepoGrantPolicy;
use regrant::settings::Timings;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;

use super::APP_ID;
use super::CLIENT_ID;
use super::GRANTED;
use super::INSTALLATION;
use super::REPOSITORY;
use super::World;
use super::redeem;
use super::revoke;
use super::web;
use crate::github::AppKey;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::github::GitHub;
use crate::support::KEYS;
use crate::support::always;
use crate::support::database::Database;
use crate::support::flaky::FlakyStore;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;
use crate::support::short;

/// A GitHub in real time, and any number of replicas.
struct Deployment {
    github: GitHub,
    api_url: String,
    caller: UpstreamAccessToken,
}

impl Deployment {
    async fn start() -> Self {
        let key = AppKey::shared().unwrap();
        let github = GitHub::new(APP_ID, key.public_der(), Arc::new(SystemClock));
        github.install(INSTALLATION, "acme", GRANTED);
        github.add_repository(INSTALLATION, REPOSITORY, "web");
        github.give_access("ada", INSTALLATION, &[REPOSITORY]);
        Self {
            api_url: github.start().await.unwrap(),
            caller: UpstreamAccessToken::new(github.log_in("ada").unwrap()),
            github,
        }
    }

    async fn replica(&self, store: impl Store, timings: Timings) -> Regrant {
        let key = AppKey::shared().unwrap();
        let app = GitHubApp::builder(APP_ID, PrivateKey::new(key.pkcs8_pem()))
            .base_url(&self.api_url)
            .build()
            .unwrap();
        Regrant::builder(
            "https://gateway.example",
            store,
            Keyring::parse(KEYS).unwrap(),
        )
        .repo_grants(app, RepoGrantPolicy::new(CLIENT_ID))
        .timings(timings)
        .start()
        .await
        .unwrap()
    }

    async fn mint(&self, regrant: &Regrant) -> Minted {
        let grants = regrant.repo_grants().unwrap();
        grants.mint(&web(), Some(&self.caller)).await.unwrap()
    }

    fn mints_asked(&self) -> usize {
        self.github.calls_of(Endpoint::Mint).len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redemptions_on_two_replicas_at_once_mint_one_token() {
    let (deployment, database) = (Deployment::start().await, Database::create().await);
    let timings = Timings::default().wait_budget(Duration::from_secs(60));
    let one = deployment.replica(database.store().await, timings).await;
    let other = deployment.replica(database.store().await, timings).await;

    let admin = database.client().await;

    for _ in 0..5 {
        let minted = deployment.mint(&one).await;
        let asked = deployment.mints_asked();
        let gate = deployment.github.hold(Endpoint::Mint);
        // All of them come before GitHub is asked: other replicas do not know when
        // it answered. Until then a lock keeps them from claiming.
        let lock = "BEGIN; SELECT FROM credentials FOR UPDATE";
        admin.batch_execute(lock).await.unwrap();
        let redemptions = (0..50).flat_map(|_| [&one, &other]);
        let redeem = |replica| redeem(replica, minted.refresh_token.expose()).boxed();
        let mut redemptions: Vec<_> = redemptions.map(redeem).collect();
        for redemption in &mut redemptions {
            assert!(poll!(redemption).is_pending());
        }
        admin.batch_execute("COMMIT").await.unwrap();
        let release = async {
            gate.until_waiting(1).await;
            gate.release();
        };
        let (answers, ()) = join(join_all(redemptions), release).await;

        let tokens: HashSet<_> = answers
            .iter()
            .map(|answer| {
                assert_eq!(answer.status, 200, "{answer:?}");
                answer.text("access_token")
            })
            .collect();
        assert_eq!(tokens.len(), 1);
        assert_eq!(deployment.mints_asked() - asked, 1);
        deployment.github.heal();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_of_one_replica_is_redeemed_and_revoked_by_another() {
    let (deployment, database) = (Deployment::start().await, Database::create().await);
    let one = deployment
        .replica(database.store().await, Timings::default())
        .await;
    let minted = deployment.mint(&one).await;
    assert!(one.drain(Duration::from_secs(60)).await);
    drop(one);

    let other = deployment
        .replica(database.store().await, Timings::default())
        .await;
    let third = deployment
        .replica(database.store().await, Timings::default())
        .await;
    let token = minted.refresh_token.expose();
    assert_eq!(redeem(&other, token).await.status, 200);
    assert_eq!(revoke(&third, token).await.status, 200);
    assert_eq!(redeem(&other, token).await.text("error"), "invalid_grant");
}

/// What a replica leaves behind that dies while GitHub has its question.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_dies_in_the_middle_keeps_nobody_from_redeeming() {
    let deployment = Deployment::start().await;
    let shared = MemoryStore::new();
    let mortal = FlakyStore::over(shared.clone());
    let dying = deployment.replica(mortal.clone(), short()).await;
    let patient = short().wait_budget(Duration::from_secs(60));
    let other = deployment.replica(shared, patient).await;
    let minted = deployment.mint(&dying).await;
    let gate = deployment.github.hold(Endpoint::Mint);

    let (one, token) = (dying.clone(), minted.refresh_token.expose().to_owned());
    let redemption = tokio::spawn(async move { redeem(&one, &token).await });
    gate.until_waiting(1).await;
    mortal.die_after(0);
    deployment.github.heal();
    gate.release();
    redemption.abort();

    let answer = redeem(&other, minted.refresh_token.expose()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// GitHub's first word is the answer to a redemption. Whoever can wait, waits.
#[tokio::test]
async fn a_redemption_that_fails_does_not_fail_a_request_that_can_wait() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let gateway = regrant.layer("github-app").unwrap();
    let gateway = gateway.layer(always(StatusCode::OK));
    world.clock.advance(super::DAY / 24);
    let proxied = refresh(&regrant, minted.proxied.refresh_token.expose()).await;
    let down = Fault::answer(StatusCode::SERVICE_UNAVAILABLE, r#"{"message":"down"}"#);
    world.github.fail_next(Endpoint::Mint, down);
    let asked = world.mints_asked();

    // Both are in the same flight, which the redemption began.
    let redemption = async {
        let answer = redeem(&regrant, minted.refresh_token.expose()).await;
        world.clock.advance(Duration::from_secs(60));
        answer
    };
    let request = send(&gateway, post(&proxied.text("access_token"), "call"));
    let (redeemed, served) = join(redemption, request).await;

    assert_eq!(redeemed.status, 503);
    assert_eq!(served.status, 200);
    assert_eq!(world.mints_asked() - asked, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redemption_after_one_that_failed_waits_until_github_may_be_asked_again() {
    let deployment = Deployment::start().await;
    let regrant = deployment
        .replica(MemoryStore::new(), Timings::default())
        .await;
    let minted = deployment.mint(&regrant).await;
    let down = Fault::answer(StatusCode::SERVICE_UNAVAILABLE, r#"{"message":"down"}"#);
    deployment.github.fail_next(Endpoint::Mint, down);
    let asked = deployment.mints_asked();

    let answer = redeem(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(answer.status, 503);
    let answer = redeem(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(deployment.mints_asked() - asked, 2);
}

/// What an upstream refuses within a minute of its last refusal is not refreshed
/// again; that is no word on a redemption.
#[tokio::test]
async fn a_redemption_does_not_share_the_failure_of_an_upstreams_second_refusal() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let gateway = regrant.layer("github-app").unwrap();
    let gateway = gateway.layer(always(StatusCode::UNAUTHORIZED));
    let access = minted.proxied.access_token.expose();
    assert_eq!(send(&gateway, post(access, "call")).await.status, 401);
    let asked = world.mints_asked();

    // The request begins the flight, and the redemption joins it.
    let request = send(&gateway, post(access, "call"));
    let redemption = redeem(&regrant, minted.refresh_token.expose());
    let (refused, redeemed) = join(request, redemption).await;

    assert_eq!(
        (refused.status.as_u16(), redeemed.status.as_u16()),
        (401, 200)
    );
    assert_eq!(world.mints_asked() - asked, 1);
}
