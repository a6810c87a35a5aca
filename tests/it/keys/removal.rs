//! Whoever comes back after their token's key was removed.

use http::StatusCode;
use regrant::CodeRequest;
use regrant::Regrant;
use regrant::key_rotation::Pace;
use regrant::settings::RepoGrantPolicy;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;

use super::MINUTE;
use super::keyring;
use super::leave_k1;
use super::replica;
use crate::repo_grants;
use crate::repo_grants::CLIENT_ID;
use crate::repo_grants::DAY;
use crate::repo_grants::World;
use crate::support::Lab;
use crate::support::ask;
use crate::support::database::Database;
use crate::support::form;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn fm27_idle_clients_of_a_removed_key_come_back_after_weeks() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let new_client = lab.issue(&old).await.refresh_token.expose().to_owned();
    let issued = lab.issue(&old).await;
    let rotated = refresh(&old, issued.refresh_token.expose()).await;
    let access = rotated.text("access_token");
    assert_eq!(
        send(&lab.gateway(&old), post(&access, "")).await.status,
        200
    );
    let old_client = rotated.text("refresh_token");

    leave_k1(&lab, store.clone()).await;
    lab.clock.advance(20 * DAY);
    let new = replica(&lab, store.clone(), &["k2"]).await;
    let another = replica(&lab, store, &["k2"]).await;

    for token in [&new_client, &old_client] {
        let answer = refresh(&new, token).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        // Asked again, anybody says the same.
        assert_eq!(refresh(&another, token).await.body, answer.body);
        let request = post(&answer.text("access_token"), "");
        assert_eq!(send(&lab.gateway(&another), request).await.status, 200);
        let next = refresh(&another, &answer.text("refresh_token")).await;
        assert_eq!(next.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn fm27_a_code_of_a_removed_key_is_redeemed_once() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let login = lab.login().client_id("claude");
    let code = old.issue_code(login, CodeRequest::new(CHALLENGE)).await;
    let code = code.unwrap();

    leave_k1(&lab, store.clone()).await;
    let new = replica(&lab, store, &["k2"]).await;
    let redeem = async |verifier| {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code.code.expose()),
            ("code_verifier", verifier),
            ("client_id", "claude"),
        ];
        ask(&new, form("/oauth/token", &pairs)).await
    };

    assert_eq!(redeem(CHALLENGE).await.text("error"), "invalid_grant");
    let answer = redeem(VERIFIER).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let request = post(&answer.text("access_token"), "");
    assert_eq!(send(&lab.gateway(&new), request).await.status, 200);
    assert_eq!(redeem(VERIFIER).await.text("error"), "invalid_grant");
}

#[tokio::test]
async fn fm27_a_repo_grant_of_a_removed_key_is_redeemed_and_revoked() {
    let world = World::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let start = async |ids: &[&str]| {
        let app = world.app().build().unwrap();
        Regrant::builder("https://gateway.example/", store.clone(), keyring(ids))
            .with_clock(world.clock.clone())
            .repo_grants(app, RepoGrantPolicy::new(CLIENT_ID))
            .start()
            .await
            .unwrap()
    };
    let minted = world.mint(&start(&["k1"]).await).await;
    let token = minted.refresh_token.expose();
    let both = start(&["k2", "k1"]).await;
    both.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    world.clock.advance(80 * DAY);
    let new = start(&["k2"]).await;

    for _ in 0..2 {
        let answer = repo_grants::redeem(&new, token).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.text("refresh_token"), token, "it is stable");
        world.clock.advance(80 * DAY);
    }
    assert_eq!(repo_grants::revoke(&new, token).await.status, 200);
    let grant = store.grant(minted.grant_id).await.unwrap().unwrap();
    assert!(grant.revoked.is_some());
    let answer = repo_grants::redeem(&new, token).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

#[tokio::test]
async fn a_refresh_token_of_a_removed_key_is_revoked_if_the_row_holds_it() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&old).await;
    let first = issued.refresh_token.expose();
    let second = refresh(&old, first).await.text("refresh_token");
    let third = refresh(&old, &second).await.text("refresh_token");
    leave_k1(&lab, store.clone()).await;
    let new = replica(&lab, store.clone(), &["k2"]).await;
    let is_revoked_by = async |token: &str| {
        let answer = ask(&new, form("/oauth/revoke", &[("token", token)])).await;
        assert_eq!(answer.status, StatusCode::OK);
        let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
        grant.revoked.is_some()
    };

    // Nobody can tell it from one that somebody made up.
    assert!(!is_revoked_by(first).await);
    assert!(is_revoked_by(&third).await);
}

#[tokio::test]
async fn the_predecessor_of_a_removed_key_is_reuse_when_its_time_is_up_and_older_ones_are_nothing()
{
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&old).await;
    let oldest = issued.refresh_token.expose();
    let older = refresh(&old, oldest).await.text("refresh_token");
    let present = refresh(&old, &older).await.text("refresh_token");
    leave_k1(&lab, store.clone()).await;
    let new = replica(&lab, store.clone(), &["k2"]).await;

    // Two generations old: with its key that would be reuse.
    let answer = refresh(&new, oldest).await;
    assert_eq!(answer.text("error"), "invalid_grant");
    let next = refresh(&new, &present).await;
    assert_eq!(next.status, StatusCode::OK, "nothing ended: {next:?}");
    let request = post(&next.text("access_token"), "");
    assert_eq!(send(&lab.gateway(&new), request).await.status, 200);
    assert!(new.drain(MINUTE).await, "that use is noted");
    lab.clock.advance(3 * MINUTE);

    // The row holds this one: it is genuine, and somebody else has it.
    let answer = refresh(&new, &present).await;
    assert_eq!(answer.text("error"), "invalid_grant");
    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    assert!(grant.revoked.is_some());
}

#[tokio::test]
async fn an_access_token_of_a_removed_key_is_refused_without_the_store() {
    let lab = Lab::start().await;
    let store = crate::support::flaky::FlakyStore::default();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    leave_k1(&lab, store.clone()).await;
    let new = replica(&lab, store.clone(), &["k2"]).await;
    // Of a replica that should not be there any more.
    let issued = lab.issue(&old).await;

    let calls = store.calls();
    let request = post(issued.access_token.expose(), "");
    assert_eq!(send(&lab.gateway(&new), request).await.status, 401);
    assert_eq!(store.calls(), calls);
}

/// RFC 7636, Appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
