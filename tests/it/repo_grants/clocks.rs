//! Clocks that differ or are set back, redemptions that wait across a deadline,
//! and the two lifetimes of a grant: its direct token's and its pair's.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::poll;
use http::StatusCode;
use regrant::Regrant;
use regrant::clock::Clock;
use regrant::clock::ManualClock;
use regrant::settings::RepoGrantPolicy;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;

use super::CLIENT_ID;
use super::DAY;
use super::World;
use super::redeem;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::support::Answer;
use crate::support::always;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

/// What was minted before a redemption came may have been ended at GitHub since,
/// as GitHub's own action does when a job is done.
#[tokio::test]
async fn a_clock_that_is_set_back_hands_out_no_token_from_before() {
    let world = World::start().await;
    let own = OwnClock::of(&world);
    let builder = world.builder(MemoryStore::new()).with_clock(own.clone());
    let regrant = builder.start().await.unwrap();
    let minted = world.mint(&regrant).await;
    let token = minted.refresh_token.expose();
    let first = redeem(&regrant, token).await.text("access_token");
    let ended = reqwest::Client::new()
        .delete(format!("{}/installation/token", world.api_url))
        .header("user-agent", "job")
        .bearer_auth(&first)
        .send();
    assert_eq!(ended.await.unwrap().status(), 204);

    own.set_off(-5 * 60);
    let second = redeem(&regrant, token).await;

    assert_eq!(second.status, 200);
    assert_ne!(second.text("access_token"), first);
    assert!(world.github.is_live(&second.text("access_token")));
}

#[tokio::test]
async fn a_replica_whose_clock_is_ahead_makes_no_other_hand_out_an_old_token() {
    let (world, store) = (World::start().await, MemoryStore::new());
    let here = world.builder(store.clone()).start().await.unwrap();
    let own = OwnClock::of(&world);
    own.set_off(2 * 60);
    let builder = world.builder(store).with_clock(own);
    let ahead = builder.start().await.unwrap();
    let minted = world.mint(&here).await;
    let token = minted.refresh_token.expose();

    // Each time a minute after the other.
    let mut seen = vec![minted.token.expose().to_owned()];
    for replica in [&ahead, &here, &ahead, &here] {
        let answer = redeem(replica, token).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let access_token = answer.text("access_token");
        assert!(world.github.is_live(&access_token));
        assert!(!seen.contains(&access_token));
        seen.push(access_token);
        world.clock.advance(MINUTE);
    }
}

#[tokio::test]
async fn who_comes_late_does_not_end_what_waits_for_its_turn_from_before() {
    let world = World::start().await;
    let app = world.app().concurrency(1).build().unwrap();
    let store = MemoryStore::new();
    let builder = world.bare(store.clone());
    let builder = builder.repo_grants(app, RepoGrantPolicy::new(CLIENT_ID));
    let regrant = builder.start().await.unwrap();
    let (ours, others) = (world.mint(&regrant).await, world.mint(&regrant).await);
    let token = ours.refresh_token.expose();
    world.clock.advance(JUST_BEFORE);
    let gate = world.github.hold(Endpoint::Mint);
    let other = redeem(&regrant, others.refresh_token.expose());
    let waiting = async {
        gate.until_waiting(1).await;
        let in_time = in_time_and_late(&world, &regrant, token).await;
        gate.release();
        in_time.await
    };

    let (other, in_time) = tokio::join!(other, waiting);

    assert_eq!(
        (other.status, in_time.status),
        (StatusCode::OK, StatusCode::OK)
    );
    let grant = store.grant(ours.grant_id).await.unwrap().unwrap();
    assert_eq!(grant.revoked, None);
    assert_eq!(redeem(&regrant, token).await.status, 200);
}

#[tokio::test]
async fn who_comes_late_does_not_end_what_waits_out_a_back_off_from_before() {
    let (world, store) = (World::start().await, MemoryStore::new());
    let regrant = world.builder(store.clone()).start().await.unwrap();
    let minted = world.mint(&regrant).await;
    let token = minted.refresh_token.expose();
    world.clock.advance(JUST_BEFORE);
    let down = Fault::answer(StatusCode::BAD_GATEWAY, "{}");
    world.github.fail_next(Endpoint::Mint, down);
    assert_eq!(redeem(&regrant, token).await.status, 503);

    let in_time = in_time_and_late(&world, &regrant, token).await.await;

    assert_eq!(in_time.status, 200);
    let grant = store.grant(minted.grant_id).await.unwrap().unwrap();
    assert_eq!(grant.revoked, None);
    assert_eq!(redeem(&regrant, token).await.status, 200);
}

#[tokio::test]
async fn rotating_the_pair_does_not_keep_the_direct_token() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let mut pair = minted.proxied.refresh_token.expose().to_owned();
    for _ in 0..6 {
        world.clock.advance(20 * DAY);
        pair = refresh(&regrant, &pair).await.text("refresh_token");
    }

    assert_expired(&redeem(&regrant, minted.refresh_token.expose()).await);
    assert_eq!(refresh(&regrant, &pair).await.status, 200);
}

/// The policy's lifetime is that of the direct token.
#[tokio::test]
async fn the_pair_goes_on_minting_after_the_direct_token_has_expired() {
    let world = World::start().await;
    let policy = RepoGrantPolicy::new(CLIENT_ID).lifetime(DAY);
    let builder = world.bare(MemoryStore::new());
    let builder = builder.repo_grants(world.app().build().unwrap(), policy);
    let regrant = builder.start().await.unwrap();
    let minted = world.mint(&regrant).await;
    let asked = world.mints_asked();
    world.clock.advance(25 * DAY);

    assert_expired(&redeem(&regrant, minted.refresh_token.expose()).await);
    let pair = refresh(&regrant, minted.proxied.refresh_token.expose()).await;
    let gateway = regrant.layer("github-app").unwrap();
    let gateway = gateway.layer(always(StatusCode::OK));
    let served = send(&gateway, post(&pair.text("access_token"), "call")).await;

    assert_eq!(
        (pair.status, served.status),
        (StatusCode::OK, StatusCode::OK)
    );
    assert_eq!(world.mints_asked() - asked, 1);
}

#[tokio::test]
async fn a_pair_that_nobody_used_stays_expired_when_the_direct_token_is_redeemed() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let (token, pair) = (&minted.refresh_token, &minted.proxied.refresh_token);
    world.clock.advance(31 * DAY);
    for _ in 0..2 {
        assert_expired(&refresh(&regrant, pair.expose()).await);
        assert_eq!(redeem(&regrant, token.expose()).await.status, 200);
        world.clock.advance(10 * MINUTE);
    }
}

/// A redemption that came a second before its deadline and waits, while another
/// has come a second after it.
async fn in_time_and_late<'a>(
    world: &World,
    regrant: &'a Regrant,
    token: &'a str,
) -> BoxFuture<'a, Answer> {
    let mut in_time = redeem(regrant, token).boxed();
    // All that it does before it waits takes no longer.
    for _ in 0..100 {
        assert!(poll!(&mut in_time).is_pending());
        tokio::task::yield_now().await;
    }
    world.clock.advance(Duration::from_secs(2));
    let late = redeem(regrant, token).await;
    assert_ne!(late.status, 200, "{late:?}");
    in_time
}

fn assert_expired(answer: &Answer) {
    assert_eq!(
        (answer.status.as_u16(), &*answer.text("error")),
        (400, "invalid_grant")
    );
}

/// The clock of one replica, which is off the world's by some seconds.
#[derive(Clone, Debug)]
struct OwnClock {
    world: ManualClock,
    off: Arc<AtomicI64>,
}

impl OwnClock {
    fn of(world: &World) -> Self {
        Self {
            world: world.clock.clone(),
            off: Arc::default(),
        }
    }

    fn set_off(&self, seconds: i64) {
        self.off.store(seconds, Ordering::SeqCst);
    }
}

impl Clock for OwnClock {
    fn now(&self) -> SystemTime {
        let off = self.off.load(Ordering::SeqCst);
        let by = Duration::from_secs(off.unsigned_abs());
        let now = self.world.now();
        if off < 0 { now - by } else { now + by }
    }
}

const MINUTE: Duration = Duration::from_secs(60);
/// The deadline of a direct token.
const JUST_BEFORE: Duration = Duration::from_secs(90 * 24 * 3_600 - 1);
