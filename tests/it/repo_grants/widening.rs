//! Grants that were made without `checks` get it, where the installation has it.

use regrant::settings::RepoGrantPolicy;
use regrant::store::memory::MemoryStore;
use serde_json::json;

use super::CLIENT_ID;
use super::INSTALLATION;
use super::World;
use super::redeem;
use super::web;
use crate::github::Endpoint;

#[tokio::test]
async fn a_grant_without_checks_is_widened_and_stays_so() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let grants = regrant.repo_grants().unwrap();
    let request = web().permission("contents", "read");
    let minted = grants.mint(&request, Some(&world.caller)).await.unwrap();
    let permissions =
        || world.github.calls_of(Endpoint::Mint).pop().unwrap().body["permissions"].clone();
    assert_eq!(
        permissions(),
        json!({ "contents": "read", "metadata": "read" })
    );

    for _ in 0..2 {
        assert_eq!(
            redeem(&regrant, minted.refresh_token.expose()).await.status,
            200
        );
        let wider = json!({ "contents": "read", "metadata": "read", "checks": "read" });
        assert_eq!(permissions(), wider);
    }
}

#[tokio::test]
async fn a_widening_that_github_refuses_falls_back_before_anything_is_called_terminal() {
    let world = World::start().await;
    world.github.set_permissions(
        INSTALLATION,
        &[("contents", "write"), ("pull_requests", "write")],
    );
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

#[tokio::test]
async fn a_policy_that_never_widens_asks_for_what_was_granted() {
    let world = World::start().await;
    let policy = RepoGrantPolicy::new(CLIENT_ID).never_widen();
    let app = world.app().build().unwrap();
    let builder = world.bare(MemoryStore::new()).repo_grants(app, policy);
    let regrant = builder.start().await.unwrap();
    let minted = world.mint(&regrant).await;

    assert_eq!(
        redeem(&regrant, minted.refresh_token.expose()).await.status,
        200
    );

    let call = world.github.calls_of(Endpoint::Mint).pop().unwrap();
    assert_eq!(call.body["permissions"].get("checks"), None);
}
