//! Grants that have ended for good: a fact, and answered as one.

use std::time::Duration;

use http::StatusCode;
use regrant::store::memory::MemoryStore;

use super::ATTEMPTS;
use super::DAY;
use super::NOW_AND_THEN;
use super::Pair;
use super::refreshing;
use crate::support::HOUR;
use crate::support::ask;
use crate::support::form;
use crate::support::long;
use crate::support::refresh;

#[tokio::test]
async fn a_revoked_grant_is_read_once_and_never_comes_back() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let access = issued.access_token.expose();
    assert!(pair.there.revoke(issued.grant_id).await.unwrap());
    let token = issued.refresh_token.expose();

    assert_eq!(pair.flood(&refreshing(token), "invalid_grant").await, 1);
    let gateway = &pair.gateway;
    let calls = pair.flood_resource(gateway, access, StatusCode::UNAUTHORIZED);
    assert_eq!(calls.await, 0, "it was known by then");

    // A new login of the same user is another grant.
    let again = pair.issue().await;
    assert_eq!(
        pair.call(again.access_token.expose()).await.status,
        StatusCode::OK
    );
    assert_eq!(pair.call(access).await.status, StatusCode::UNAUTHORIZED);
    pair.lab.clock.advance(HOUR);
    let answer = refresh(&pair.here, token).await;
    assert_eq!(answer.text("error"), "invalid_grant");
    // Nor is there anything left to revoke.
    let before = pair.store.calls();
    for _ in 0..ATTEMPTS {
        let request = form("/oauth/revoke", &[("token", token)]);
        assert_eq!(ask(&pair.here, request).await.status, StatusCode::OK);
    }
    assert_eq!(pair.store.calls() - before, 0);
}

#[tokio::test]
async fn a_grant_that_nobody_knows_is_looked_for_once_a_minute() {
    let pair = Pair::start(long()).await;
    let elsewhere = pair.lab.builder(MemoryStore::new()).start().await.unwrap();
    let issued = pair.lab.issue(&elsewhere).await;

    let token = issued.refresh_token.expose();
    assert_eq!(pair.flood(&refreshing(token), "invalid_grant").await, 2);
    let access = issued.access_token.expose();
    let gateway = &pair.gateway;
    let calls = pair.flood_resource(gateway, access, StatusCode::UNAUTHORIZED);
    assert_eq!(calls.await, 1, "the second minute began in the first flood");
}

#[tokio::test]
async fn a_grant_past_its_deadlines_is_not_read_for_ever() {
    let lifetimes = long().refresh_idle(10 * DAY).refresh_absolute(20 * DAY);
    let pair = Pair::start(lifetimes).await;
    let (idle, old) = (pair.issue().await, pair.issue().await);

    pair.lab.clock.advance(9 * DAY);
    let rotated = refresh(&pair.there, old.refresh_token.expose()).await;
    pair.lab.clock.advance(DAY);
    let token = idle.refresh_token.expose();
    // At first another replica may still be at it, by a slower clock.
    let calls = pair.flood(&refreshing(token), "invalid_grant").await;
    assert!(calls < NOW_AND_THEN, "{calls} calls of the store");
    pair.lab.clock.advance(Duration::from_secs(300));
    assert!(pair.flood(&refreshing(token), "invalid_grant").await <= 1);

    let old = rotated.text("refresh_token");
    let rotated = refresh(&pair.here, &old).await;
    assert_eq!(rotated.status, StatusCode::OK, "used meanwhile");
    pair.lab.clock.advance(10 * DAY);
    let token = rotated.text("refresh_token");
    assert_eq!(pair.flood(&refreshing(&token), "invalid_grant").await, 1);
}

/// The last moment before the deadline is the client's.
#[tokio::test]
async fn a_refusal_before_the_deadline_says_nothing_of_who_refreshed_in_time() {
    let pair = Pair::start(long().refresh_idle(10 * DAY)).await;
    let issued = pair.issue().await;
    let token = issued.refresh_token.expose();
    pair.lab
        .clock
        .advance(9 * DAY + Duration::from_secs(86_398));
    for _ in 0..100 {
        let answer = pair.refresh_as("mallory", token).await;
        assert_eq!(answer.text("error"), "invalid_grant");
    }
    let rotated = refresh(&pair.there, token).await;
    pair.lab.clock.advance(Duration::from_secs(3));

    let repeated = pair.refresh_as("claude", token).await;

    assert_eq!(
        repeated.text("refresh_token"),
        rotated.text("refresh_token")
    );
}
