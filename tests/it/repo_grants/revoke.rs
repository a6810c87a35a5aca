//! `/repo-grant/revoke` (RFC 7009).

use http::Request;
use http_body_util::Full;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;

use super::CLIENT_ID;
use super::REVOKE;
use super::World;
use super::post;
use super::redeem;
use super::revoke;
use crate::github::Endpoint;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::forged;

#[tokio::test]
async fn revoking_ends_the_grant_and_its_newest_token_at_github() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    // A token that is younger than the grant, by less than a minute, is no login
    // of somebody else.
    world.clock.advance(std::time::Duration::from_secs(10));
    let redeemed = redeem(&regrant, minted.refresh_token.expose()).await;
    let newest = redeemed.text("access_token");
    assert!(world.github.is_live(&newest));

    let answer = revoke(&regrant, minted.refresh_token.expose()).await;

    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("pragma"), "no-cache");
    assert!(regrant.drain(super::DAY).await);
    assert!(!world.github.is_live(&newest));
    assert_eq!(world.github.calls_of(Endpoint::Revoke).len(), 1);
    let asked = world.mints_asked();
    let answer = redeem(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(
        (answer.status.as_u16(), &*answer.text("error")),
        (400, "invalid_grant")
    );
    assert_eq!(world.mints_asked(), asked);
}

#[tokio::test]
async fn the_newest_token_lives_on_where_the_app_is_told_not_to_end_it() {
    let world = World::start().await;
    let app = world.app().revoke_tokens(false).build().unwrap();
    let policy = regrant::settings::RepoGrantPolicy::new(CLIENT_ID);
    let builder = world.bare(MemoryStore::new()).repo_grants(app, policy);
    let regrant = builder.start().await.unwrap();
    let minted = world.mint(&regrant).await;

    revoke(&regrant, minted.refresh_token.expose()).await;

    assert!(regrant.drain(super::DAY).await);
    assert!(world.github.is_live(minted.token.expose()));
    assert!(world.github.calls_of(Endpoint::Revoke).is_empty());
    let answer = redeem(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

/// Reference A revoked by the grant's id alone.
#[tokio::test]
async fn a_forged_token_with_a_known_grant_id_revokes_nothing() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let (ours, others) = (world.mint(&regrant).await, world.mint(&regrant).await);
    let good = ours.refresh_token.expose();
    let (_, payload) = others.refresh_token.expose().split_once('.').unwrap();
    let calls = world.github.calls().len();

    for forgery in [
        forged(good),
        format!("ghr_{}.", ours.grant_id),
        format!("ghr_{}", ours.grant_id),
        format!("ghr_{}.AAAA", ours.grant_id),
        // The genuine secret of another grant.
        format!("ghr_{}.{payload}", ours.grant_id),
        good.replace("ghr_", "rgrt_"),
        // Genuine tokens of the grant, but not this one.
        ours.proxied.refresh_token.expose().replace("rgrt_", "ghr_"),
        ours.proxied.access_token.expose().to_owned(),
        ours.proxied.refresh_token.expose().to_owned(),
    ] {
        let answer = revoke(&regrant, &forgery).await;
        assert_eq!(answer.status, 200, "{forgery}");
    }

    assert_eq!(world.github.calls().len(), calls);
    assert_eq!(redeem(&regrant, good).await.status, 200);
}

#[tokio::test]
async fn whatever_is_sent_gets_the_same_200() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let elsewhere = world.regrant().await;
    let (ours, unknown) = (world.mint(&regrant).await, world.mint(&elsewhere).await);
    let good = ours.refresh_token.expose();

    let pairs: [&[(&str, &str)]; 8] = [
        &[("token", "garbage")],
        &[("token", "")],
        &[("token", unknown.refresh_token.expose())],
        &[("something", "else")],
        &[],
        // What the other endpoints refuse: RFC 6749 §3.2, parameters given twice.
        &[("token", good), ("token", good)],
        &[
            ("token", good),
            ("token_type_hint", "a"),
            ("token_type_hint", "b"),
        ],
        &[
            ("token", good),
            ("client_id", CLIENT_ID),
            ("client_id", "Iv1.other"),
        ],
    ];
    for pairs in pairs {
        let answer = post(regrant.endpoints(), REVOKE, pairs).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (200, &b"{}"[..])
        );
    }
    let nothing = Request::post(REVOKE).body(Full::default()).unwrap();
    assert_eq!(ask(&regrant, nothing).await.status, 200);
    let as_json = Request::post(REVOKE)
        .header("content-type", "application/json")
        .body(Full::from(format!("{{\"token\":\"{good}\"}}")))
        .unwrap();
    assert_eq!(ask(&regrant, as_json).await.status, 200);
    let too_large = [("token", good), ("token", &*"a".repeat(8_192))];
    let answer = post(regrant.endpoints(), REVOKE, &too_large).await;
    assert_eq!(answer.status, 413);

    assert_eq!(redeem(&regrant, good).await.status, 200);
}

#[tokio::test]
async fn a_client_that_says_it_is_another_revokes_nothing() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let token = minted.refresh_token.expose();
    let as_client = |id: &'static str| {
        let endpoints = regrant.endpoints();
        async move { post(endpoints, REVOKE, &[("token", token), ("client_id", id)]).await }
    };

    assert_eq!(as_client("Iv1.other").await.status, 200);
    assert_eq!(redeem(&regrant, token).await.status, 200);
    assert_eq!(as_client(CLIENT_ID).await.status, 200);
    assert_eq!(redeem(&regrant, token).await.status, 400);
}

#[tokio::test]
async fn revoking_is_503_while_the_store_is_away_and_works_afterwards() {
    let world = World::start().await;
    let store = FlakyStore::default();
    let regrant = world.builder(store.clone()).start().await.unwrap();
    let minted = world.mint(&regrant).await;

    store.set_down(true);
    let answer = revoke(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.text("error"), "temporarily_unavailable");
    let garbage = revoke(&regrant, "garbage").await;
    assert_eq!(garbage.status, 200, "garbage never gets as far");

    store.set_down(false);
    revoke(&regrant, minted.refresh_token.expose()).await;
    let grant = store.grant(minted.grant_id).await.unwrap().unwrap();
    assert!(grant.revoked.is_some());
}
