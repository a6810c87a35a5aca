//! Many grants at once: GitHub is asked once for each redemption, and for those
//! of one grant that are under way together, once for all.
//!
//! `REPO_GRANTS=10000 tests/run repo_grants::crowd` is the full length.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::poll;
use futures_util::stream;
use regrant::settings::RepoGrantPolicy;
use regrant::settings::Timings;

use super::CLIENT_ID;
use super::World;
use super::redeem;
use crate::forgeries::variable;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::support::flaky::FlakyStore;

#[tokio::test(flavor = "multi_thread")]
async fn of_each_of_many_grants_those_who_redeem_together_share_one_token() {
    let count = usize::try_from(variable("REPO_GRANTS", 500)).unwrap();
    let world = World::start().await;
    let app = world.app().build().unwrap();
    let regrant = world
        // Each waits a moment for the store: those of one grant have all come then.
        .bare(FlakyStore::default().yields(1))
        .repo_grants(app, RepoGrantPolicy::new(CLIENT_ID))
        .timings(Timings::default().wait_budget(Duration::from_secs(300)))
        .start()
        .await
        .unwrap();
    let mint = |_| async { world.mint(&regrant).await };
    let minted: Vec<_> = stream::iter(0..count)
        .map(mint)
        .buffer_unordered(32)
        .collect()
        .await;
    let asked = world.mints_asked();
    world.github.fail_all(Endpoint::Mint, Fault::Delay(LATENCY));

    let redemptions = minted.into_iter().map(|minted| {
        let regrant = regrant.clone();
        tokio::spawn(async move {
            let token = minted.refresh_token.expose();
            let answers = join_all((0..TOGETHER).map(|_| redeem(&regrant, token))).await;
            let tokens = answers.into_iter().map(|answer| {
                assert_eq!(answer.status, 200, "{answer:?}");
                assert_eq!(answer.text("refresh_token"), token);
                answer.text("access_token")
            });
            tokens.collect::<HashSet<_>>()
        })
    });
    let redemptions: Vec<_> = redemptions.collect();
    let mut tokens = HashSet::new();
    for redeemed in join_all(redemptions).await {
        let of_one_grant = redeemed.unwrap();
        assert_eq!(of_one_grant.len(), 1);
        tokens.extend(of_one_grant);
    }

    assert_eq!(tokens.len(), count, "no two grants share a token");
    assert_eq!(world.mints_asked() - asked, count);
    assert!(
        world.github.connections() <= CONNECTIONS + 64,
        "{}",
        world.github.connections()
    );
}

/// It came when GitHub had been asked, and looked when it had answered.
#[tokio::test]
async fn who_comes_before_the_answer_shares_it_however_late_they_look() {
    let world = World::start().await;
    let store = FlakyStore::default().yields(1);
    let regrant = world.builder(store).start().await.unwrap();
    let minted = world.mint(&regrant).await;
    let (asked, gate) = (world.mints_asked(), world.github.hold(Endpoint::Mint));
    let token = minted.refresh_token.expose();

    let mut first = redeem(&regrant, token).boxed();
    tokio::select! {
        _ = &mut first => panic!("GitHub has not answered"),
        () = gate.until_waiting(1) => {}
    }
    world.clock.advance(Duration::from_secs(1));
    // It has come, and waits for the store.
    let mut late = redeem(&regrant, token).boxed();
    assert!(poll!(&mut late).is_pending());
    world.clock.advance(Duration::from_secs(1));
    gate.release();
    let first = first.await;
    let late = late.await;

    assert_eq!((first.status.as_u16(), late.status.as_u16()), (200, 200));
    assert_eq!(first.text("access_token"), late.text("access_token"));
    assert_eq!(world.mints_asked() - asked, 1);
}

/// Not together: each of them is owed a token that was not there before.
#[tokio::test]
async fn who_redeems_later_gets_a_token_of_their_own() {
    let world = World::start().await;
    let regrant = Arc::new(world.regrant().await);
    let minted = world.mint(&regrant).await;
    let asked = world.mints_asked();

    let mut tokens = HashSet::from([minted.token.expose().to_owned()]);
    for _ in 0..5 {
        let answer = redeem(&regrant, minted.refresh_token.expose()).await;
        tokens.insert(answer.text("access_token"));
    }

    assert_eq!(tokens.len(), 6);
    assert_eq!(world.mints_asked() - asked, 5);
    assert!(tokens.iter().all(|token| world.github.is_live(token)));
}

const TOGETHER: usize = 3;
/// As many as the App asks at a time, by default.
const CONNECTIONS: usize = 100;
const LATENCY: Duration = Duration::from_millis(200);
