//! Users who take back what a provider gave.

use std::time::Duration;

use http::StatusCode;
use regrant::GrantId;
use regrant::clock::Clock as _;
use regrant::resolve::Caller;
use regrant::settings::Timings;
use regrant::store::Claim;
use regrant::store::Credential;
use regrant::store::DISCONNECTED;
use regrant::store::RevocationReason;
use regrant::store::Settlement;
use regrant::store::Store;
use regrant::store::StoreErrorKind;
use regrant::store::memory::MemoryStore;

use super::STALENESS;
use super::assert_not_connected;
use super::gateway;
use super::link;
use super::of;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::flaky::FlakyStore;
use crate::support::long;
use crate::support::post;
use crate::support::send;
use crate::support::short;

/// For what happens at once.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn disconnecting_ends_the_credential_for_all_who_use_it() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    disconnect_everywhere(&lab, store.clone(), store).await;
}

#[tokio::test]
async fn disconnecting_over_postgres_is_heard_by_other_replicas() {
    let (lab, database) = (Lab::start().await, Database::create().await);
    let other = database.store().await.without_listener();
    disconnect_everywhere(&lab, database.store().await, other).await;
}

async fn disconnect_everywhere(lab: &Lab, store: impl Store + Clone, other: impl Store) {
    let timings = Timings::default().staleness(STALENESS);
    let here = lab
        .builder(store.clone())
        .timings(timings)
        .lifetimes(long());
    let here = here.start().await.unwrap();
    let there = lab.builder(other).timings(timings).lifetimes(long());
    let there = there.start().await.unwrap();
    let credential = link(lab, &here, "ada").await;
    let issued = lab.issue(&here).await;
    let (here_gateway, there_gateway) = (gateway(lab, &here), gateway(lab, &there));
    let token = || post(issued.access_token.expose(), "");
    for gateway in [&here_gateway, &there_gateway] {
        assert_eq!(send(gateway, of("ada")).await.status, StatusCode::OK);
        assert_eq!(send(gateway, token()).await.status, StatusCode::OK);
    }

    let ada = Caller::new("ada");
    assert!(here.disconnect(&ada, "linear").await.unwrap());

    // Here at once, elsewhere within the bound. First those who share it:
    // nobody has read the row again for them.
    let answer = send(&here_gateway, token()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_not_connected(&send(&here_gateway, of("ada")).await);
    assert_eq!(send(&there_gateway, of("ada")).await.status, StatusCode::OK);
    lab.clock.advance(STALENESS);
    assert_not_connected(&send(&there_gateway, of("ada")).await);
    let answer = send(&there_gateway, token()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);

    let row = store.credential(credential).await.unwrap().unwrap();
    assert_eq!(row.terminal.as_deref(), Some(DISCONNECTED));
    // The provider is to be told, now.
    let now = lab.clock.now();
    let [due] = &store.due_revocations(now, 9).await.unwrap()[..] else {
        panic!()
    };
    let notice = store.grant(*due).await.unwrap().unwrap();
    let (_at, reason) = notice.revoked.unwrap();
    assert_eq!(reason, RevocationReason::Disconnected);
    assert_eq!(notice.credential("linear"), Some(credential));

    assert!(!here.disconnect(&ada, "linear").await.unwrap());
    assert!(!here.disconnect(&ada, "other").await.unwrap());
    let eve = Caller::new("eve");
    assert!(!here.disconnect(&eve, "linear").await.unwrap());
    assert_eq!(store.due_revocations(now, 9).await.unwrap().len(), 1);

    // Who connects again is connected at once, everywhere.
    assert_eq!(link(lab, &here, "ada").await, credential);
    for gateway in [&here_gateway, &there_gateway] {
        assert_eq!(send(gateway, of("ada")).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn disconnecting_waits_for_whoever_is_refreshing() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let credential = link(&lab, &regrant, "ada").await;
    let gateway = gateway(&lab, &regrant);
    lab.clock.advance(HOUR);
    lab.faults.hold();
    let waiting = tokio::spawn({
        let gateway = gateway.clone();
        async move { send(&gateway, of("ada")).await.status }
    });
    lab.faults.arrived(1).await;

    let ending = tokio::spawn({
        let regrant = regrant.clone();
        async move { regrant.disconnect(&Caller::new("ada"), "linear").await }
    });
    written_down(&lab, &store).await;
    lab.faults.release();

    assert!(ending.await.unwrap().unwrap());
    assert_eq!(waiting.await.unwrap(), StatusCode::OK);
    let row = store.credential(credential).await.unwrap().unwrap();
    assert_eq!(
        (row.generation, row.terminal.as_deref()),
        (1, Some(DISCONNECTED)),
        "what the refresh brought is what the provider is told of"
    );
    assert_not_connected(&send(&gateway, of("ada")).await);
}

#[tokio::test]
async fn who_cannot_disconnect_is_told_so_and_nothing_has_changed() {
    let (lab, store) = (Lab::start().await, FlakyStore::default());
    let builder = lab.builder(store.clone()).timings(short());
    let regrant = builder.start().await.unwrap();
    let credential = link(&lab, &regrant, "ada").await;
    let gateway = gateway(&lab, &regrant);
    let ada = Caller::new("ada");
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);

    // Somebody holds the lease for longer than anybody waits.
    let held = store.claim(credential, 0, [9; 16], HOUR).await.unwrap();
    let error = regrant.disconnect(&ada, "linear").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    let now = lab.clock.now();
    let due = store.due_revocations(now, 9).await.unwrap();
    assert!(due.is_empty(), "not before the credential has ended");
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);
    // What was written down is due when nobody is at it any more.
    let due = store.due_revocations(now + HOUR, 9).await.unwrap();
    assert_eq!(due.len(), 1);

    release(&store, held.unwrap()).await;
    store.set_read_only(true);
    assert!(regrant.disconnect(&ada, "linear").await.is_err());
    assert_eq!(send(&gateway, of("ada")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_disconnect_that_was_held_up_is_not_forgotten() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let credential = link(&lab, &regrant, "ada").await;
    let held = store.claim(credential, 0, [9; 16], HOUR).await.unwrap();
    let ending = tokio::spawn({
        let regrant = regrant.clone();
        async move { regrant.disconnect(&Caller::new("ada"), "linear").await }
    });
    let struck_off = written_down(&lab, &store).await;
    // Meanwhile it comes due, and the credential is found alive.
    lab.clock.advance(HOUR);
    let now = lab.clock.now();
    assert_eq!(store.due_revocations(now, 9).await.unwrap(), [struck_off]);
    store.finish_revocation(struck_off).await.unwrap();

    release(&store, held.unwrap()).await;

    assert!(ending.await.unwrap().unwrap());
    let due = store.due_revocations(now, 9).await.unwrap();
    assert_eq!(due.len(), 1, "written down anew");
    assert_ne!(due[0], struck_off);
}

#[tokio::test]
async fn what_was_disconnected_does_not_begin_again_for_grants_that_live() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let builder = lab.builder(store.clone()).lifetimes(long());
    let regrant = builder.start().await.unwrap();
    // Not linked: it came along with a grant.
    let (first, second) = (lab.issue(&regrant).await, lab.issue(&regrant).await);
    lab.clock.advance(HOUR / 10);
    let gateway = lab.gateway(&regrant);
    let token = || post(second.access_token.expose(), "");
    assert_eq!(send(&gateway, token()).await.status, StatusCode::OK);

    let ada = Caller::new("ada");
    assert!(regrant.disconnect(&ada, "linear").await.unwrap());
    regrant.revoke_due().await;
    assert_eq!(lab.provider.counts().revocations, 1);
    // Nor by the end of another grant.
    assert!(regrant.revoke(first.grant_id).await.unwrap());
    for _ in 0..3 {
        lab.clock.advance(HOUR / 10);
        regrant.revoke_due().await;
    }

    let answer = send(&gateway, token()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let id = second.grant_id;
    let grant = store.grant(id).await.unwrap().unwrap();
    let row = store.credential(grant.credentials[0].id).await;
    assert!(row.unwrap().unwrap().terminal.is_some());
}

/// Waits until a disconnect has begun: until it has written down what the
/// provider is to be told.
async fn written_down(lab: &Lab, store: &impl Store) -> GrantId {
    let later = lab.clock.now() + HOUR;
    let written = async {
        loop {
            if let [id] = store.due_revocations(later, 9).await.unwrap()[..] {
                return id;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.unwrap()
}

async fn release(store: &impl Store, held: Credential) {
    let claim = Claim {
        id: held.id,
        generation: held.generation,
        fence: held.fence,
    };
    let released = Settlement::Released {
        not_before: held.refreshed_at,
        unsettled: 0,
        failures: 0,
    };
    assert!(store.settle(claim, released).await.unwrap());
}
