//! The end of grants and tokens: by the client, by an operator, elsewhere.

use std::time::Duration;

use http::StatusCode;
use regrant::GrantId;
use regrant::Regrant;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;

use crate::support::Answer;
use crate::support::Lab;
use crate::support::ask;
use crate::support::forged;
use crate::support::form;
use crate::support::issued;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn revoking_a_refresh_token_ends_everything_at_once() {
    let (lab, regrant, issued) = issued().await;
    let gateway = lab.gateway(&regrant);
    let rotated = refresh(&regrant, issued.refresh_token.expose()).await;
    let access = rotated.text("access_token");
    assert_eq!(
        send(&gateway, post(&access, "")).await.status,
        StatusCode::OK
    );

    let answer = revoke(&regrant, &rotated.text("refresh_token"), "").await;

    assert_eq!(answer.status, StatusCode::OK);
    for access in [&*access, issued.access_token.expose()] {
        let answer = send(&gateway, post(access, "")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    // Grace never applies to a revoked grant.
    for token in [
        &*rotated.text("refresh_token"),
        issued.refresh_token.expose(),
    ] {
        assert_eq!(
            refresh(&regrant, token).await.text("error"),
            "invalid_grant"
        );
    }
}

#[tokio::test]
async fn revoking_an_access_token_ends_that_one_only() {
    let (lab, regrant, issued) = issued().await;
    let gateway = lab.gateway(&regrant);
    let rotated = refresh(&regrant, issued.refresh_token.expose()).await;
    let other = rotated.text("access_token");
    let access = issued.access_token.expose();
    assert_eq!(
        send(&gateway, post(access, "")).await.status,
        StatusCode::OK
    );

    let answer = revoke(&regrant, access, "claude").await;

    assert_eq!(answer.status, StatusCode::OK);
    let answer = send(&gateway, post(access, "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        send(&gateway, post(&other, "")).await.status,
        StatusCode::OK
    );
    let answer = refresh(&regrant, &rotated.text("refresh_token")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn whatever_is_not_a_token_of_the_caller_revokes_nothing_and_gets_200() {
    let (lab, regrant, issued) = issued().await;
    let gateway = lab.gateway(&regrant);
    let id = issued.grant_id.to_string();
    let other = Lab::start().await;
    let elsewhere = other.builder(MemoryStore::new()).start().await.unwrap();
    let foreign = other.issue(&elsewhere).await;
    let refresh_token = issued.refresh_token.expose();
    let forged = forged(refresh_token);

    for (token, client) in [
        ("nonsense", ""),
        (&*id, ""),
        (&*format!("rgrt_{id}.AAAA"), ""),
        (&*forged, ""),
        (foreign.refresh_token.expose(), ""),
        (refresh_token, "mallory"),
        (issued.access_token.expose(), "mallory"),
    ] {
        let answer = revoke(&regrant, token, client).await;
        assert_eq!(answer.status, StatusCode::OK, "{token}");
    }
    let answer = ask(&regrant, form("/oauth/revoke", &[])).await;
    assert_eq!(answer.text("error"), "invalid_request");

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    let answer = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn an_operator_can_end_a_grant() {
    let (lab, regrant, issued) = issued().await;
    let gateway = lab.gateway(&regrant);
    let access = issued.access_token.expose();
    assert_eq!(
        send(&gateway, post(access, "")).await.status,
        StatusCode::OK
    );

    assert!(regrant.revoke(issued.grant_id).await.unwrap());

    let answer = send(&gateway, post(access, "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(!regrant.revoke(issued.grant_id).await.unwrap());
    assert!(!regrant.revoke(GrantId::random().unwrap()).await.unwrap());
}

#[tokio::test]
async fn revocation_elsewhere_is_seen_within_the_staleness_bound() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let here = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&here).await;
    let gateway = lab.gateway(&here);
    let access = issued.access_token.expose();
    assert_eq!(
        send(&gateway, post(access, "")).await.status,
        StatusCode::OK
    );

    let there = lab.builder(store.clone()).start().await.unwrap();
    assert!(there.revoke(issued.grant_id).await.unwrap());
    assert!(
        store
            .grant(issued.grant_id)
            .await
            .unwrap()
            .unwrap()
            .revoked
            .is_some()
    );

    lab.clock.advance(Duration::from_secs(5));
    let answer = send(&gateway, post(access, "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

async fn revoke(regrant: &Regrant, token: &str, client_id: &str) -> Answer {
    let pairs = [("token", token), ("client_id", client_id)];
    ask(regrant, form("/oauth/revoke", &pairs)).await
}
