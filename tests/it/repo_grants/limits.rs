//! GitHub's limits are the App's: whoever comes while one lasts is told how long,
//! and GitHub is not asked.

use std::time::Duration;
use std::time::UNIX_EPOCH;

use http::HeaderName;
use http::StatusCode;
use http::header::RETRY_AFTER;
use regrant::clock::Clock as _;
use regrant::repo_grants::MintRequest;

use super::GRANTED;
use super::World;
use super::redeem;
use crate::github::Endpoint;
use crate::github::Fault;

#[tokio::test]
async fn github_is_asked_once_until_its_quota_is_reset() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let token = minted.refresh_token.expose();
    let now = world.clock.now().duration_since(UNIX_EPOCH).unwrap();
    let used_up = Fault::answer(
        StatusCode::FORBIDDEN,
        r#"{"message":"API rate limit exceeded"}"#,
    )
    .header(HeaderName::from_static("x-ratelimit-remaining"), 0)
    .header(
        HeaderName::from_static("x-ratelimit-reset"),
        now.as_secs() + 50 * 60,
    );
    world.github.fail_all(Endpoint::Mint, used_up);
    let asked = world.mints_asked();

    for minute in 0..49 {
        assert_eq!(redeem(&regrant, token).await.status, 503, "{minute}");
        world.clock.advance(MINUTE);
    }
    assert_eq!(world.mints_asked() - asked, 1);

    world.github.heal();
    world.clock.advance(2 * MINUTE);
    assert_eq!(redeem(&regrant, token).await.status, 200);
}

#[tokio::test]
async fn a_limit_that_one_installation_met_counts_for_another() {
    let world = World::start().await;
    world.github.install(43, "other", GRANTED);
    world.github.add_repository(43, 1000, "api");
    world.github.give_access("ada", 43, &[1000]);
    let regrant = world.regrant().await;
    let one = world.mint(&regrant).await;
    let grants = regrant.repo_grants().unwrap();
    let request = MintRequest::new(43, "other", "api");
    let other = grants.mint(&request, Some(&world.caller)).await.unwrap();
    let limited = Fault::answer(StatusCode::TOO_MANY_REQUESTS, "{}").header(RETRY_AFTER, 300);
    world.github.fail_next(Endpoint::Mint, limited);
    let answer = redeem(&regrant, one.refresh_token.expose()).await;
    assert_eq!(answer.status, 503);
    let asked = world.mints_asked();

    world.clock.advance(MINUTE);
    let answer = redeem(&regrant, other.refresh_token.expose()).await;

    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), "240");
    assert_eq!(world.mints_asked(), asked);
    world.clock.advance(4 * MINUTE);
    for minted in [&one, &other] {
        let answer = redeem(&regrant, minted.refresh_token.expose()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

const MINUTE: Duration = Duration::from_secs(60);
