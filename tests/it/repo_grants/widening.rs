//! Grants that were made without `checks` get it, where the installation has it.

use std::time::Duration;

use http::StatusCode;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::provider::github::InstallationScope;
use regrant::secret::UpstreamAccessToken;
use regrant::settings::RepoGrantPolicy;
use regrant::store::memory::MemoryStore;
use serde_json::Value;
use serde_json::json;
use tower::Layer as _;

use super::CLIENT_ID;
use super::INSTALLATION;
use super::REPOSITORY;
use super::World;
use super::redeem;
use super::web;
use crate::github::Endpoint;
use crate::support::Answer;
use crate::support::HOUR;
use crate::support::always;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn a_grant_without_checks_is_widened_and_stays_so() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let grants = regrant.repo_grants().unwrap();
    let request = web().permission("contents", "read");
    let minted = grants.mint(&request, Some(&world.caller)).await.unwrap();
    assert_eq!(
        permissions(&world),
        json!({ "contents": "read", "metadata": "read" })
    );

    for _ in 0..2 {
        assert_eq!(
            redeem(&regrant, minted.refresh_token.expose()).await.status,
            200
        );
        let wider = json!({ "contents": "read", "metadata": "read", "checks": "read" });
        assert_eq!(permissions(&world), wider);
    }
}

#[tokio::test]
async fn a_widening_that_github_refuses_falls_back_before_anything_is_called_terminal() {
    let world = World::start().await;
    world.github.set_permissions(INSTALLATION, NO_CHECKS);
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let asked = world.mints_asked();

    let answer = redeem(&regrant, minted.refresh_token.expose()).await;

    assert_eq!(answer.status, 200);
    let calls = world.github.calls_of(Endpoint::Mint).split_off(asked);
    let permissions: Vec<_> = calls.iter().map(|call| &call.body["permissions"]).collect();
    let stored = json!({ "contents": "write", "metadata": "read", "pull_requests": "write" });
    let wider = json!({
        "contents": "write", "metadata": "read", "pull_requests": "write", "checks": "read",
    });
    assert_eq!(permissions, [&wider, &stored]);

    // What it has for itself is gone too: only now has it ended.
    world
        .github
        .set_permissions(INSTALLATION, &[("issues", "read")]);
    let answer = redeem(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(answer.text("error"), "invalid_grant");
    assert_eq!(world.mints_asked(), asked + 4);
}

/// Its client never asked for `checks`: without it nothing of its own has ended.
#[tokio::test]
async fn what_was_widened_ends_nothing_when_the_widening_is_taken_back() {
    let asked: [&[(&str, &str)]; 2] = [&[], &[("contents", "read")]];
    for asked in asked {
        let world = World::start().await;
        let regrant = world.regrant().await;
        let request = asked.iter().fold(web(), |request, (name, access)| {
            request.permission(*name, *access)
        });
        let grants = regrant.repo_grants().unwrap();
        let minted = grants.mint(&request, Some(&world.caller)).await.unwrap();
        let token = minted.refresh_token.expose();
        assert_eq!(redeem(&regrant, token).await.status, 200);
        assert_eq!(permissions(&world)["checks"], "read");

        world.github.set_permissions(INSTALLATION, NO_CHECKS);

        assert_eq!(redeem(&regrant, token).await.status, 200, "{asked:?}");
        assert_eq!(permissions(&world), json!(minted.permissions), "{asked:?}");
    }
}

#[tokio::test]
async fn what_was_widened_ends_nothing_on_the_route_either() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let redeemed = redeem(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(redeemed.status, 200);
    world.github.set_permissions(INSTALLATION, NO_CHECKS);
    world.clock.advance(HOUR);
    let asked = world.mints_asked();

    let pair = refresh(&regrant, minted.proxied.refresh_token.expose()).await;
    assert_eq!(call(&regrant, &pair.text("access_token")).await.status, 200);

    assert_eq!(world.mints_asked() - asked, 2, "the wider, then its own");
    assert_eq!(permissions(&world), json!(minted.permissions));
}

#[tokio::test]
async fn a_policy_that_never_widens_asks_for_what_was_granted_whatever_else_is_said() {
    let world = World::start().await;
    let store = MemoryStore::new();
    let widening = world.builder(store.clone()).start().await.unwrap();
    let minted = world.mint(&widening).await;
    let token = minted.refresh_token.expose();
    assert_eq!(redeem(&widening, token).await.status, 200);
    assert_eq!(permissions(&world)["checks"], "read");
    let policy = RepoGrantPolicy::new(CLIENT_ID).never_widen();
    for app in [world.app(), world.app().widen("checks", "read")] {
        let app = app.build().unwrap();
        let builder = world.bare(store.clone()).repo_grants(app, policy.clone());
        let regrant = builder.start().await.unwrap();

        assert_eq!(redeem(&regrant, token).await.status, 200);
        assert_eq!(permissions(&world), json!(minted.permissions));
        let own = world.mint(&regrant).await;
        let answer = redeem(&regrant, own.refresh_token.expose()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(permissions(&world), json!(own.permissions));
    }
}

#[tokio::test]
async fn the_policy_of_repo_grants_widens_no_other_login_of_the_same_app() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let scope = InstallationScope::new(INSTALLATION)
        .repository(REPOSITORY)
        .permission("contents", "read");
    let login = Login::new("github-app", "ada", UpstreamAccessToken::new("ghs_old"))
        .refresh_token(scope.refresh_token())
        .expiry(Expiry::After(Duration::from_secs(60)));
    let issued = regrant.issue(login).await.unwrap();
    world.clock.advance(HOUR / 2);

    let answer = call(&regrant, issued.access_token.expose()).await;

    assert_eq!(answer.status, 200);
    assert_eq!(permissions(&world), json!({ "contents": "read" }));
}

#[tokio::test]
async fn a_policy_that_widens_past_the_cap_does_not_start() {
    let world = World::start().await;
    for (permission, access) in [
        ("administration", "read"),
        ("workflows", "write"),
        ("contents", "admin"),
        ("checks", ""),
    ] {
        let policy = RepoGrantPolicy::new(CLIENT_ID).widen(permission, access);
        let app = world.app().build().unwrap();
        let builder = world.bare(MemoryStore::new()).repo_grants(app, policy);

        let error = builder.start().await.unwrap_err();

        let told = format!("{error} {error:?}");
        assert!(told.contains("widening of repo grants"), "{told}");
    }
}

/// The permissions that GitHub was last asked for.
fn permissions(world: &World) -> Value {
    let call = world.github.calls_of(Endpoint::Mint).pop().unwrap();
    call.body["permissions"].clone()
}

/// A request on the route of the App.
async fn call(regrant: &Regrant, access: &str) -> Answer {
    let gateway = regrant.layer("github-app").unwrap();
    let gateway = gateway.layer(always(StatusCode::OK));
    send(&gateway, post(access, "call")).await
}

/// All that a grant is made for by default.
const NO_CHECKS: &[(&str, &str)] = &[("contents", "write"), ("pull_requests", "write")];
