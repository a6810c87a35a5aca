//! Grants that have ended for good: a fact, and answered as one.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use http::StatusCode;
use regrant::clock::Clock;
use regrant::clock::ManualClock;
use regrant::store::memory::MemoryStore;

use super::ATTEMPTS;
use super::DAY;
use super::NOW_AND_THEN;
use super::Pair;
use super::refreshing;
use crate::support::HOUR;
use crate::support::Lab;
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
    assert!(pair.flood(&refreshing(token), "invalid_grant").await <= 2);

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

/// It runs ahead for a moment.
#[derive(Clone, Debug)]
struct Leaping {
    clock: ManualClock,
    is_ahead: Arc<AtomicBool>,
}

impl Clock for Leaping {
    fn now(&self) -> SystemTime {
        let ahead = if self.is_ahead.load(Ordering::SeqCst) {
            11 * DAY
        } else {
            Duration::ZERO
        };
        self.clock.now() + ahead
    }
}

#[tokio::test]
async fn a_clock_that_ran_ahead_once_ends_no_login_later() {
    let lab = Lab::start().await;
    let clock = Leaping {
        clock: lab.clock.clone(),
        is_ahead: Arc::default(),
    };
    let builder = lab.builder(MemoryStore::new()).with_clock(clock.clone());
    let lifetimes = long().refresh_idle(10 * DAY);
    let regrant = builder.lifetimes(lifetimes).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let mut token = issued.refresh_token.expose().to_owned();

    clock.is_ahead.store(true, Ordering::SeqCst);
    let early = refresh(&regrant, &token).await;
    assert_eq!(early.text("error"), "invalid_grant");
    clock.is_ahead.store(false, Ordering::SeqCst);

    for day in [0, 4, 8, 12, 16] {
        let rotated = refresh(&regrant, &token).await;
        assert_eq!(rotated.status, StatusCode::OK, "day {day}: {rotated:?}");
        token = rotated.text("refresh_token");
        lab.clock.advance(4 * DAY);
    }
}
