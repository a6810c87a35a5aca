//! A store that fails, or a replica that dies, at every single call: nothing is
//! lost, and nothing that has ended comes back.

use std::time::Duration;

use futures_util::future::join_all;
use regrant::Regrant;
use regrant::repo_grants::Minted;
use regrant::settings::Timings;
use regrant::store::Credential;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;

use super::DAY;
use super::INSTALLATION;
use super::World;
use super::redeem;
use super::revoke;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::support::Answer;
use crate::support::flaky::FlakyStore;
use crate::support::flaky::Moment;

#[tokio::test]
async fn a_redemption_survives_a_store_that_fails_at_any_call() {
    fail_at_every_call(Deed::Redemption).await;
}

#[tokio::test]
async fn a_revocation_survives_a_store_that_fails_at_any_call() {
    fail_at_every_call(Deed::Revocation).await;
}

#[tokio::test]
async fn the_end_of_an_uninstalled_app_survives_a_store_that_fails_at_any_call() {
    fail_at_every_call(Deed::Uninstall).await;
}

#[tokio::test]
async fn the_end_of_an_expired_grant_survives_a_store_that_fails_at_any_call() {
    fail_at_every_call(Deed::Expiry).await;
}

#[tokio::test]
async fn a_redemption_survives_a_replica_that_dies_at_any_call() {
    die_at_every_call(Deed::Redemption).await;
}

#[tokio::test]
async fn a_revocation_survives_a_replica_that_dies_at_any_call() {
    die_at_every_call(Deed::Revocation).await;
}

#[tokio::test]
async fn the_end_of_an_uninstalled_app_survives_a_replica_that_dies_at_any_call() {
    die_at_every_call(Deed::Uninstall).await;
}

#[tokio::test]
async fn the_end_of_an_expired_grant_survives_a_replica_that_dies_at_any_call() {
    die_at_every_call(Deed::Expiry).await;
}

/// Whoever minted may have died while GitHub had its question. GitHub's word is
/// that the App is gone all the same: no token of ours was spent.
#[tokio::test]
async fn an_app_that_was_uninstalled_after_a_crash_is_recorded_as_uninstalled() {
    let scene = Scene::start(Deed::Uninstall).await;
    let id = scene.credential().await.id;
    let claimed = scene.store.claim(id, 0, [9; 16], Duration::ZERO).await;
    assert!(claimed.unwrap().is_some());
    scene.prepare();

    assert_eq!(scene.until_redeemed_or_ended(&scene.regrant).await, 400);

    let row = scene.credential().await;
    assert_eq!(row.terminal.as_deref(), Some("installation_gone"));
}

/// The revocation comes after each of the calls that the redemptions make of the
/// store, in turn.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_redeemed_after_a_revocation_whenever_it_comes() {
    for calls in 0.. {
        let (world, shared) = (World::start().await, MemoryStore::new());
        let store = FlakyStore::over(shared).yields(2);
        let one = world.builder(store.clone()).start().await.unwrap();
        let other = world.builder(store.clone()).start().await.unwrap();
        let minted = world.mint(&one).await;
        let token = minted.refresh_token.expose();
        let before = store.calls();

        let tasks: Vec<_> = (0..4)
            .flat_map(|_| [&one, &other])
            .map(|replica| {
                let (replica, token) = (replica.clone(), token.to_owned());
                tokio::spawn(async move { redeem(&replica, &token).await })
            })
            .collect();
        let are_done = || tasks.iter().all(tokio::task::JoinHandle::is_finished);
        while store.calls() < before + calls && !are_done() {
            tokio::task::yield_now().await;
        }
        let is_last = are_done();
        assert_eq!(revoke(&other, token).await.status, 200);

        for replica in [&one, &other] {
            assert_eq!(redeem(replica, token).await.status, 400, "{calls} calls");
        }
        for answer in join_all(tasks).await {
            let answer = answer.unwrap();
            assert!([200, 400].contains(&answer.status.as_u16()), "{answer:?}");
        }
        assert!(one.drain(DAY).await && other.drain(DAY).await);
        for _ in 0..4 {
            world.clock.advance(5 * MINUTE);
            one.revoke_due().await;
        }
        let grant = store.grant(minted.grant_id).await.unwrap().unwrap();
        assert!(grant.revoked.is_some(), "{calls} calls");
        assert_eq!(grant.upstream_due, None, "{calls} calls");
        assert_eq!(tokens_ended(&world), 1, "{calls} calls");
        if is_last {
            assert!(calls >= FEWEST_CALLS, "{calls} calls");
            break;
        }
    }
}

async fn fail_at_every_call(deed: Deed) {
    for moment in [Moment::BeforeItsCommit, Moment::AfterItsCommit] {
        let mut failing = 0;
        loop {
            let row = format!("{deed:?} {moment:?} {failing}");
            let scene = Scene::start(deed).await;
            scene.prepare();
            scene.store.fail_call(failing, moment);

            let answer = scene.act().await;
            scene.regrant.drain(DAY).await;

            let has_failed = !scene.store.spare_call();
            let status = answer.status.as_u16();
            assert!([deed.status(), 503].contains(&status), "{row}: {answer:?}");
            if status == 503 && deed == Deed::Revocation {
                assert_eq!(scene.act().await.status, 200, "{row}");
            }
            scene.assert_done(&scene.regrant, &row).await;
            if !has_failed {
                break;
            }
            failing += 1;
        }
        assert!(failing >= FEWEST_CALLS, "{deed:?}: {failing} calls");
    }
}

async fn die_at_every_call(deed: Deed) {
    let mut survived = 0;
    loop {
        let row = format!("{deed:?} {survived}");
        let scene = Scene::start(deed).await;
        let other = scene.replica(scene.shared.clone()).await;
        scene.prepare();
        scene.store.die_after(survived);

        let acting = async {
            scene.act().await;
            scene.regrant.drain(DAY).await;
        };
        let has_died = tokio::select! {
            () = acting => false,
            () = scene.store.until_dead() => true,
        };

        scene.outlive_lease().await;
        if deed == Deed::Revocation {
            let token = scene.minted.refresh_token.expose();
            assert_eq!(revoke(&other, token).await.status, 200, "{row}");
        }
        scene.assert_done(&other, &row).await;
        if !has_died {
            break;
        }
        survived += 1;
    }
    assert!(survived >= FEWEST_CALLS, "{deed:?}: {survived} calls");
}

/// What is done while there is trouble.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Deed {
    Redemption,
    Revocation,
    /// A redemption after the App was uninstalled.
    Uninstall,
    /// A redemption that comes too late, for the pair of the grant as well.
    Expiry,
}

impl Deed {
    /// Of its answer without trouble.
    fn status(self) -> u16 {
        match self {
            Self::Redemption | Self::Revocation => 200,
            Self::Uninstall | Self::Expiry => 400,
        }
    }
}

/// A grant, and a replica whose store is about to fail.
struct Scene {
    deed: Deed,
    world: World,
    shared: MemoryStore,
    store: FlakyStore,
    regrant: Regrant,
    minted: Minted,
}

impl Scene {
    async fn start(deed: Deed) -> Self {
        let (world, shared) = (World::start().await, MemoryStore::new());
        let store = FlakyStore::over(shared.clone());
        let builder = world.builder(store.clone()).timings(timings());
        let regrant = builder.start().await.unwrap();
        Self {
            deed,
            minted: world.mint(&regrant).await,
            world,
            shared,
            store,
            regrant,
        }
    }

    async fn replica(&self, store: MemoryStore) -> Regrant {
        let builder = self.world.builder(store).timings(timings());
        builder.start().await.unwrap()
    }

    fn prepare(&self) {
        match self.deed {
            Deed::Uninstall => self.world.github.uninstall(INSTALLATION),
            Deed::Expiry => self.world.clock.advance(91 * DAY),
            Deed::Redemption | Deed::Revocation => {}
        }
    }

    async fn act(&self) -> Answer {
        let token = self.minted.refresh_token.expose();
        if self.deed == Deed::Revocation {
            revoke(&self.regrant, token).await
        } else {
            redeem(&self.regrant, token).await
        }
    }

    /// What the deed was to bring about is so in the end.
    async fn assert_done(&self, replica: &Regrant, row: &str) {
        let want = if self.deed == Deed::Redemption {
            200
        } else {
            400
        };
        assert_eq!(self.until_redeemed_or_ended(replica).await, want, "{row}");
        if self.deed == Deed::Redemption {
            return;
        }
        // Within the hour that GitHub's tokens live by themselves.
        for _ in 0..5 {
            self.outlive_lease().await;
            self.world.clock.advance(5 * MINUTE);
            replica.revoke_due().await;
        }
        let grant = self.shared.grant(self.minted.grant_id).await.unwrap();
        let grant = grant.unwrap();
        assert!(grant.revoked.is_some(), "{row}");
        assert_eq!(grant.upstream_due, None, "{row}");
        if self.deed == Deed::Revocation {
            assert_eq!(tokens_ended(&self.world), 1, "{row}");
        }
    }

    /// The status of the first redemption that is no 503.
    async fn until_redeemed_or_ended(&self, replica: &Regrant) -> u16 {
        for _ in 0..6 {
            let answer = redeem(replica, self.minted.refresh_token.expose()).await;
            if answer.status != 503 {
                return answer.status.as_u16();
            }
            self.outlive_lease().await;
            self.world.clock.advance(MINUTE);
        }
        503
    }

    /// Leases end by the store's own time.
    async fn outlive_lease(&self) {
        tokio::time::pause();
        tokio::time::advance(timings().lease).await;
        tokio::time::resume();
    }

    async fn credential(&self) -> Credential {
        let grant = self.shared.grant(self.minted.grant_id).await.unwrap();
        let id = grant.unwrap().credentials[0].id;
        self.shared.credential(id).await.unwrap().unwrap()
    }
}

/// How many live tokens GitHub was told to end.
fn tokens_ended(world: &World) -> usize {
    let calls = world.github.calls_of(Endpoint::Revoke);
    calls
        .iter()
        .filter(|call| call.caller == Caller::Installation(INSTALLATION))
        .filter(|call| call.status.is_some_and(|status| status == 204))
        .count()
}

/// What waits for trouble to pass gives up soon: only the clock of the test
/// makes it pass.
fn timings() -> Timings {
    Timings::default()
        .provider_timeout(Duration::from_millis(600))
        .lease(Duration::from_millis(700))
        .wait_budget(Duration::from_millis(800))
}

const MINUTE: Duration = Duration::from_secs(60);
/// Reading the grant and its credential, and writing.
const FEWEST_CALLS: usize = 3;
