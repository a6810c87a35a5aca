//! How long a repo grant lives: ninety days from its last redemption, by one
//! guarded update.

use std::time::Duration;

use regrant::Regrant;
use regrant::repo_grants::Minted;
use regrant::settings::RepoGrantPolicy;
use regrant::store::RevocationReason;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;

use super::CLIENT_ID;
use super::DAY;
use super::World;
use super::redeem;
use super::revoke;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::support::Answer;
use crate::support::HOUR;
use crate::support::flaky::FlakyStore;
use crate::support::flaky::Slides;

#[tokio::test]
async fn a_grant_that_is_redeemed_once_a_week_outlives_every_deadline() {
    let life = Life::start().await;
    // 400 days, past the 180 after which a pair of the gateway's ends.
    for week in 0..58 {
        life.world.clock.advance(7 * DAY);
        let answer = life.redeem().await;
        assert_eq!(answer.status, 200, "week {week}");
        assert!(life.world.github.is_live(&answer.text("access_token")));
    }
    assert_eq!(life.end().await, None);
}

#[tokio::test]
async fn a_grant_that_nobody_redeemed_for_ninety_days_has_expired_to_the_second() {
    let life = Life::start().await;
    let asked = life.world.mints_asked();
    life.world.clock.advance(90 * DAY);

    life.assert_ended().await;

    // Nobody who came in time can be under way any longer.
    assert_eq!(life.end().await, None);
    life.world.clock.advance(MINUTE);
    life.assert_ended().await;
    assert_eq!(life.end().await, Some(RevocationReason::Expired));
    assert_eq!(life.world.mints_asked(), asked);
    assert!(life.regrant.drain(DAY).await);
    assert!(!life.world.github.is_live(life.minted.token.expose()));
}

#[tokio::test]
async fn a_redemption_in_the_last_second_begins_another_ninety_days() {
    let life = Life::start().await;
    for _ in 0..3 {
        life.world.clock.advance(just_before(90 * DAY));
        assert_eq!(life.redeem().await.status, 200);
    }
    life.world.clock.advance(90 * DAY);
    life.assert_ended().await;
}

#[tokio::test]
async fn a_redemption_that_fails_begins_nothing() {
    let life = Life::start().await;
    life.world.clock.advance(just_before(90 * DAY));
    let fault = crate::github::Fault::answer(http::StatusCode::BAD_GATEWAY, "{}");
    life.world.github.fail_next(Endpoint::Mint, fault);
    assert_eq!(life.redeem().await.status, 503);

    life.world.clock.advance(SECOND);
    life.assert_ended().await;
}

#[tokio::test]
async fn the_lifetime_is_that_of_the_policy_and_the_newest_token_ends_with_the_pair() {
    let lifetime = HOUR / 2;
    let life = Life::of(lifetime).await;
    let now = regrant::clock::Clock::now(&life.world.clock);
    assert_eq!(life.minted.refresh_token_expires_at, now + lifetime);
    life.world.clock.advance(just_before(lifetime));
    let newest = life.redeem().await.text("access_token");
    life.world.clock.advance(lifetime);
    assert!(life.world.github.is_live(&newest));

    // The pair of the same grant, which goes through the layer, has not expired.
    life.assert_ended().await;
    life.world.clock.advance(MINUTE);
    life.assert_ended().await;
    assert_eq!(life.end().await, None);
    life.world.clock.advance(30 * DAY);
    life.assert_ended().await;

    assert!(life.regrant.drain(DAY).await);
    assert!(!life.world.github.is_live(&newest));
    assert_eq!(life.world.github.calls_of(Endpoint::Revoke).len(), 1);
    assert_eq!(life.end().await, Some(RevocationReason::Expired));
}

#[tokio::test]
async fn a_redemption_that_github_holds_across_the_deadline_is_in_time() {
    let life = Life::start().await;
    life.world.clock.advance(just_before(90 * DAY));
    let gate = life.world.github.hold(Endpoint::Mint);
    let passing = async {
        gate.until_waiting(1).await;
        life.world.clock.advance(MINUTE);
        gate.release();
    };

    let (answer, ()) = tokio::join!(life.redeem(), passing);

    assert_eq!(answer.status, 200);
    life.world.clock.advance(just_before(90 * DAY));
    assert_eq!(life.redeem().await.status, 200);
}

#[tokio::test]
async fn who_comes_after_the_deadline_does_not_end_what_github_holds_from_before_it() {
    let life = Life::start().await;
    life.world.clock.advance(just_before(90 * DAY));
    let gate = life.world.github.hold(Endpoint::Mint);
    let late = async {
        gate.until_waiting(1).await;
        life.world.clock.advance(2 * SECOND);
        let releasing = async { gate.release() };
        tokio::join!(life.redeem(), releasing).0
    };

    let (held, late) = tokio::join!(life.redeem(), late);

    assert_eq!(held.status, 200);
    assert_eq!(life.end().await, None);
    assert_ne!(late.status, 400);
    assert_eq!(life.redeem().await.status, 200);
}

#[tokio::test]
async fn who_comes_after_the_deadline_does_not_end_what_is_about_to_be_noted() {
    let life = Life::start().await;
    life.world.clock.advance(just_before(90 * DAY));
    life.store.set_slides(Slides::Hold);
    let late = async {
        life.store.until_slide_is_held().await;
        life.world.clock.advance(2 * SECOND);
        let answer = life.redeem().await;
        life.store.set_slides(Slides::Pass);
        answer
    };

    let (held, late) = tokio::join!(life.redeem(), late);

    assert_eq!(held.status, 200);
    assert_eq!(
        (late.status.as_u16(), &*late.text("error")),
        (503, "temporarily_unavailable")
    );
    assert_eq!(life.end().await, None);
    assert_eq!(life.redeem().await.status, 200);
}

#[tokio::test]
async fn a_use_that_cannot_be_noted_costs_nobody_the_token() {
    let life = Life::start().await;
    life.world.clock.advance(60 * DAY);
    life.store.set_slides(Slides::Fail);

    let answer = life.redeem().await;

    assert_eq!(answer.status, 200);
    assert!(life.world.github.is_live(&answer.text("access_token")));
    life.store.set_slides(Slides::Pass);
    // It is good for as long as it was.
    life.world.clock.advance(just_before(30 * DAY));
    let grant = life.store.grant(life.minted.grant_id).await.unwrap();
    assert_eq!(grant.unwrap().revoked, None);
    life.world.clock.advance(SECOND);
    life.assert_ended().await;
}

#[tokio::test]
async fn a_grant_that_is_revoked_while_github_is_asked_stays_revoked() {
    let life = Life::start().await;
    let gate = life.world.github.hold(Endpoint::Mint);
    let revoking = async {
        gate.until_waiting(1).await;
        let answer = revoke(&life.regrant, life.minted.refresh_token.expose()).await;
        assert_eq!(answer.status, 200);
        gate.release();
    };

    let (answer, ()) = tokio::join!(life.redeem(), revoking);

    assert_eq!(
        (answer.status.as_u16(), &*answer.text("error")),
        (400, "invalid_grant")
    );
    assert!(!answer.json().to_string().contains("ghs_"));
    life.assert_ended().await;
    assert_eq!(life.end().await, Some(RevocationReason::Client));
    assert_eq!(life.world.github.mints(), 2);

    // What was minted meanwhile is ended too, when it is due.
    life.world.clock.advance(MINUTE);
    life.regrant.revoke_due().await;
    assert!(life.regrant.drain(DAY).await);
    let by_whom: Vec<_> = life
        .world
        .github
        .calls_of(Endpoint::Revoke)
        .into_iter()
        .map(|call| (call.caller, call.status.unwrap().as_u16()))
        .collect();
    assert_eq!(by_whom, [(Caller::Installation(super::INSTALLATION), 204)]);
    assert!(
        life.world.github.is_live(life.minted.token.expose()),
        "it was handed out before, so the call was for the other"
    );
}

/// A grant, and what its store says of it.
struct Life {
    world: World,
    store: FlakyStore,
    regrant: Regrant,
    minted: Minted,
}

impl Life {
    async fn start() -> Self {
        Self::of(90 * DAY).await
    }

    async fn of(lifetime: Duration) -> Self {
        let (world, store) = (World::start().await, FlakyStore::over(MemoryStore::new()));
        let policy = RepoGrantPolicy::new(CLIENT_ID).lifetime(lifetime);
        let builder = world.bare(store.clone());
        let builder = builder.repo_grants(world.app().build().unwrap(), policy);
        let regrant = builder.start().await.unwrap();
        Self {
            minted: world.mint(&regrant).await,
            world,
            store,
            regrant,
        }
    }

    async fn redeem(&self) -> Answer {
        redeem(&self.regrant, self.minted.refresh_token.expose()).await
    }

    /// Why the grant has ended.
    async fn end(&self) -> Option<RevocationReason> {
        let grant = self.store.grant(self.minted.grant_id).await.unwrap();
        grant.unwrap().revoked.map(|(_at, reason)| reason)
    }

    async fn assert_ended(&self) {
        let answer = self.redeem().await;
        assert_eq!(
            (answer.status.as_u16(), &*answer.text("error")),
            (400, "invalid_grant")
        );
    }
}

fn just_before(time: Duration) -> Duration {
    time.checked_sub(SECOND).unwrap()
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
