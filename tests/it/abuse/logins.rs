//! Logins that the provider ended: that may pass, and then it has passed.

use std::time::Duration;

use http::StatusCode;
use regrant::provider::Expiry;

use super::NOW_AND_THEN;
use super::Pair;
use super::refreshing;
use crate::support::HOUR;
use crate::support::long;
use crate::support::refresh;

#[tokio::test]
async fn a_login_that_has_ended_says_so_and_a_new_one_works_at_once() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let (token, access) = (issued.refresh_token.expose(), issued.access_token.expose());
    let gateway = &pair.gateway;

    for (replica, is_elsewhere) in [(&pair.here, false), (&pair.there, true)] {
        pair.lab.provider.log_out();
        pair.lab.clock.advance(HOUR);
        assert_eq!(pair.call(access).await.status, StatusCode::UNAUTHORIZED);
        let calls = pair.flood(&refreshing(token), "invalid_grant").await;
        assert!(calls < NOW_AND_THEN, "{calls} calls of the store");
        let calls = pair.flood_resource(gateway, access, StatusCode::UNAUTHORIZED);
        let calls = calls.await;
        assert!(calls < 2 * NOW_AND_THEN, "{calls} calls of the store");

        let login = pair.lab.login().client_id("claude").scope("read write");
        replica.issue(login).await.unwrap();
        if is_elsewhere {
            pair.lab.clock.advance(Duration::from_secs(5));
        }
        assert_eq!(pair.call(access).await.status, StatusCode::OK);
        let answer = refresh(&pair.here, token).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
}

/// The new login lives, although it has to be refreshed before it can be used.
#[tokio::test]
async fn a_new_login_that_expires_at_once_is_not_taken_for_the_old_one() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let access = issued.access_token.expose();
    pair.lab.provider.log_out();
    pair.lab.clock.advance(HOUR);
    for _ in 0..100 {
        assert_eq!(pair.call(access).await.status, StatusCode::UNAUTHORIZED);
    }

    let login = pair.lab.login().client_id("claude").scope("read write");
    let login = login.expiry(Expiry::After(Duration::from_secs(1)));
    pair.here.issue(login).await.unwrap();
    pair.lab.clock.advance(Duration::from_secs(1));

    assert_eq!(pair.call(access).await.status, StatusCode::OK);
}

/// What this process last knew of a login is no proof against it, whatever
/// others do meanwhile.
#[tokio::test]
async fn the_failures_of_others_do_not_bring_back_an_end_that_is_past() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let token = issued.refresh_token.expose();
    pair.lab.provider.log_out();
    pair.lab.clock.advance(HOUR);
    let answer = pair.call(issued.access_token.expose()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    for _ in 0..100 {
        let answer = refresh(&pair.here, token).await;
        assert_eq!(answer.text("error"), "invalid_grant");
    }

    let login = pair.lab.login().client_id("claude").scope("read write");
    pair.there.issue(login).await.unwrap();
    pair.lab.clock.advance(Duration::from_secs(5));
    for _ in 0..100 {
        let answer = pair.refresh_as("mallory", token).await;
        assert_eq!(answer.text("error"), "invalid_grant");
    }

    let answer = pair.refresh_as("claude", token).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

/// Who errs now and then is not in a loop: the store is asked.
#[tokio::test]
async fn a_new_login_elsewhere_is_found_at_once_by_who_did_not_go_on_trying() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let (token, access) = (issued.refresh_token.expose(), issued.access_token.expose());
    pair.lab.provider.log_out();
    pair.lab.clock.advance(HOUR);
    assert_eq!(pair.call(access).await.status, StatusCode::UNAUTHORIZED);
    for _ in 0..3 {
        let answer = refresh(&pair.here, token).await;
        assert_eq!(answer.text("error"), "invalid_grant");
        assert_eq!(pair.call(access).await.status, StatusCode::UNAUTHORIZED);
    }

    let login = pair.lab.login().client_id("claude").scope("read write");
    pair.there.issue(login).await.unwrap();

    assert_eq!(pair.call(access).await.status, StatusCode::OK);
    assert_eq!(refresh(&pair.here, token).await.status, StatusCode::OK);
}
