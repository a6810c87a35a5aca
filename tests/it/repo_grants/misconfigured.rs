//! What an operator has got wrong ends no grant: once it is put right, they all
//! go on.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use regrant::Regrant;
use regrant::provider::github::GitHubApp;
use regrant::secret::PrivateKey;
use regrant::settings::RepoGrantPolicy;
use regrant::store::memory::MemoryStore;

use super::CLIENT_ID;
use super::GRANTED;
use super::World;
use super::redeem;
use super::web;
use crate::github::AppKey;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::github::GitHub;

#[tokio::test]
async fn an_answer_of_something_in_between_ends_no_grant() {
    for (what, fault) in in_between() {
        let world = World::start().await;
        let regrant = world.regrant().await;
        let minted = world.mint(&regrant).await;
        let token = minted.refresh_token.expose();
        world.github.fail_all(Endpoint::Mint, fault);

        let answer = redeem(&regrant, token).await;

        assert_eq!(answer.status, 503, "{what}");
        assert_eq!(answer.text("error"), "temporarily_unavailable", "{what}");
        world.github.heal();
        world.clock.advance(PAST_THE_BACK_OFF);
        assert_eq!(redeem(&regrant, token).await.status, 200, "{what}");
    }
}

#[tokio::test]
async fn an_answer_of_something_in_between_denies_nobody_a_token() {
    for endpoint in [Endpoint::UserInstallations, Endpoint::UserRepositories] {
        for (what, fault) in in_between() {
            let world = World::start().await;
            let regrant = world.regrant().await;
            world.github.fail_all(endpoint, fault);

            assert_eq!(
                refused(&world, &regrant).await,
                "upstream_error",
                "{endpoint:?}: {what}"
            );

            assert_eq!(world.mints_asked(), 0, "{endpoint:?}: {what}");
            world.github.heal();
            world.mint(&regrant).await;
        }
    }
}

/// GitHub answers 404 to the JWT of an App that it does not know, as to an
/// installation that is gone
/// (<https://github.com/octokit/authentication-strategies.js/issues/165>).
#[tokio::test]
async fn a_wrong_app_id_ends_no_grant() {
    let world = World::start().await;
    let store = MemoryStore::new();
    let right = world.builder(store.clone()).start().await.unwrap();
    let minted = world.mint(&right).await;
    let token = minted.refresh_token.expose();
    let wrong = gateway(&world, store, "654321", &world.api_url).await;

    assert_eq!(redeem(&wrong, token).await.status, 503);
    let calls = world.github.calls_of(Endpoint::Mint);
    assert_eq!(calls.last().unwrap().status, Some(StatusCode::NOT_FOUND));
    assert_eq!(refused(&world, &wrong).await, "config_error");

    world.clock.advance(PAST_THE_BACK_OFF);
    assert_eq!(redeem(&right, token).await.status, 200);
}

#[tokio::test]
async fn the_id_and_key_of_another_app_end_no_grant() {
    let world = World::start().await;
    let store = MemoryStore::new();
    let right = world.builder(store.clone()).start().await.unwrap();
    let minted = world.mint(&right).await;
    let token = minted.refresh_token.expose();
    // To the other App there is no installation but its own.
    let key = AppKey::shared().unwrap();
    let clock = Arc::new(world.clock.clone());
    let others = GitHub::new(OTHER_APP_ID, key.public_der(), clock);
    others.install(5, "acme", GRANTED);
    let url = others.start().await.unwrap();
    let wrong = gateway(&world, store, OTHER_APP_ID, &url).await;

    assert_eq!(redeem(&wrong, token).await.status, 503);
    let calls = others.calls_of(Endpoint::Mint);
    assert_eq!(calls.last().unwrap().status, Some(StatusCode::NOT_FOUND));

    world.clock.advance(PAST_THE_BACK_OFF);
    assert_eq!(redeem(&right, token).await.status, 200);
}

/// Users log in by an App too; under one name each would be sent what is the
/// other's.
#[tokio::test]
async fn the_app_of_repo_grants_shares_its_name_with_no_provider() {
    let world = World::start().await;
    let app = || world.app().build().unwrap();
    let policy = || RepoGrantPolicy::new(CLIENT_ID);
    let bare = || world.bare(MemoryStore::new());
    for builder in [
        bare()
            .repo_grants(app(), policy())
            .provider("github-app", app()),
        bare()
            .provider("github-app", app())
            .repo_grants(app(), policy()),
    ] {
        let error = builder.start().await.unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(
            told.contains("`github-app` is the App of repo grants and was added twice"),
            "{told}"
        );
    }
    let other = bare().repo_grants(app(), policy().provider("installations"));
    other.provider("github-app", app()).start().await.unwrap();
}

/// A 404 or a 422, as they are said by what is not GitHub's API.
fn in_between() -> Vec<(String, Fault)> {
    let (text, json) = ("text/plain; charset=utf-8", "application/json");
    let mut all = Vec::new();
    for status in [StatusCode::NOT_FOUND, StatusCode::UNPROCESSABLE_ENTITY] {
        for (media, body) in [
            (text, "404 page not found\n"),
            (text, "default backend - 404"),
            ("text/html", "<html><title>404</title></html>"),
            ("", ""),
            (json, r#"{"error":"no Route matched"}"#),
            (json, r#"{"error":"Not Found"}"#),
            (json, r#""Not Found""#),
        ] {
            let media = HeaderValue::from_static(media);
            let fault = Fault::answer(status, body).header(CONTENT_TYPE, media);
            all.push((format!("{status} {body}"), fault));
        }
    }
    all
}

/// One whose App has this id, and the key of the tests.
async fn gateway(world: &World, store: MemoryStore, app_id: &str, url: &str) -> Regrant {
    let key = PrivateKey::new(AppKey::shared().unwrap().pkcs1_pem());
    let app = GitHubApp::builder(app_id, key).base_url(url);
    let app = app.with_clock(world.clock.clone()).build().unwrap();
    let builder = world.bare(store);
    let builder = builder.repo_grants(app, RepoGrantPolicy::new(CLIENT_ID));
    builder.start().await.unwrap()
}

/// The code of the error with which ada is not given a token.
async fn refused(world: &World, regrant: &Regrant) -> &'static str {
    let grants = regrant.repo_grants().unwrap();
    let minted = grants.mint(&web(), Some(&world.caller)).await;
    minted.unwrap_err().code()
}

const OTHER_APP_ID: &str = "777";
const PAST_THE_BACK_OFF: Duration = Duration::from_secs(301);
