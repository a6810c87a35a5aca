//! How often and how many at a time GitHub is asked to mint, by whatever way.

use std::time::Duration;

use futures_util::future::join;
use futures_util::future::join_all;
use http::HeaderValue;
use http::StatusCode;
use http::header::RETRY_AFTER;
use regrant::Regrant;
use regrant::repo_grants::MintError;
use regrant::settings::RepoGrantPolicy;
use regrant::store::memory::MemoryStore;

use super::CLIENT_ID;
use super::World;
use super::redeem;
use super::web;
use crate::github::Endpoint;
use crate::github::Fault;

#[tokio::test]
async fn no_more_are_minted_at_a_time_than_the_app_says_minting_included() {
    let world = World::start().await;
    let app = world.app().concurrency(2).build().unwrap();
    let builder = world.bare(MemoryStore::new());
    let builder = builder.repo_grants(app, RepoGrantPolicy::new(CLIENT_ID));
    let regrant = builder.start().await.unwrap();
    let minted = join_all((0..5).map(|_| world.mint(&regrant))).await;
    let tokens = minted.iter().map(|minted| minted.refresh_token.expose());
    let asked = world.mints_asked();
    let gate = world.github.hold(Endpoint::Mint);
    let mints = || world.mints_asked() - asked;

    let redemptions = join_all(tokens.map(|token| redeem(&regrant, token)));
    let mintings = join_all((0..5).map(|_| world.mint(&regrant)));
    let watching = async {
        gate.until_waiting(2).await;
        let listed = || world.github.calls_of(Endpoint::UserRepositories).len();
        while listed() < 10 {
            tokio::task::yield_now().await;
        }
        // All have come as far as to ask, and these questions are answered after
        // theirs would have been put.
        for _ in 0..3 {
            let stranger = web().repository_id(1);
            let grants = regrant.repo_grants().unwrap();
            let refused = grants.mint(&stranger, Some(&world.caller)).await;
            assert_eq!(refused.unwrap_err().code(), "invalid_input");
        }
        assert_eq!(mints(), 2);
        gate.release();
    };
    let ((answers, minted), ()) = join(join(redemptions, mintings), watching).await;

    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(minted.len(), 5);
    assert_eq!(mints(), 10);
}

#[tokio::test]
async fn who_was_told_to_wait_waits_whichever_way_it_was_told() {
    let limited = Fault::answer(StatusCode::TOO_MANY_REQUESTS, "{}");
    let limited = limited.header(RETRY_AFTER, HeaderValue::from_static("60"));
    for is_told_when_redeeming in [true, false] {
        let world = World::start().await;
        let regrant = world.regrant().await;
        let (first, second) = (world.mint(&regrant).await, world.mint(&regrant).await);
        let asked = world.mints_asked();
        world.github.fail_next(Endpoint::Mint, limited.clone());
        let told = if is_told_when_redeeming {
            redeem(&regrant, first.refresh_token.expose()).await.status == 503
        } else {
            mint(&world, &regrant).await.is_err()
        };
        assert!(told);
        assert_eq!(world.mints_asked() - asked, 1);

        for left in [60, 20].map(Duration::from_secs) {
            let error = mint(&world, &regrant).await.unwrap_err();
            assert_eq!(error.code(), "upstream_error");
            assert_eq!(error.retry_after(), Some(left));
            let answer = redeem(&regrant, second.refresh_token.expose()).await;
            assert_eq!(answer.status, 503);
            world.clock.advance(Duration::from_secs(40));
        }
        assert_eq!(world.mints_asked() - asked, 1, "nobody asked meanwhile");

        mint(&world, &regrant).await.unwrap();
        for minted in [&first, &second] {
            let answer = redeem(&regrant, minted.refresh_token.expose()).await;
            assert_eq!(answer.status, 200);
        }
        assert_eq!(world.mints_asked() - asked, 4);
    }
}

async fn mint(world: &World, regrant: &Regrant) -> Result<(), MintError> {
    let grants = regrant.repo_grants().unwrap();
    grants.mint(&web(), Some(&world.caller)).await.map(drop)
}
