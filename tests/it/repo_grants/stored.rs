//! What the row says counts, whatever a token or a replica's memory says.

use futures_util::FutureExt as _;
use regrant::Regrant;
use regrant::store::DirectToken;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;

use super::World;
use super::redeem;
use super::revoke;
use crate::support::flaky::FlakyStore;

/// Its tag is right: of the keyring, nothing is wrong with it.
#[tokio::test]
async fn a_genuine_token_with_another_secret_than_the_stored_one_is_an_invalid_grant() {
    let world = World::start().await;
    let store = MemoryStore::new();
    let regrant = world.builder(store.clone()).start().await.unwrap();
    let minted = world.mint(&regrant).await;
    let token = minted.refresh_token.expose();
    let grant = store.grant(minted.grant_id).await.unwrap().unwrap();
    let id = grant.credential("github-app").unwrap();
    let credential = store.credential(id).await.unwrap().unwrap();
    let asked = world.mints_asked();

    let direct = grant.direct.clone().unwrap();
    let with = |hash| Some(DirectToken { hash, ..direct });
    for (direct, status) in [
        (with([0; 32]), 400),
        (None, 400),
        (with(grant.refresh_hash), 400),
        (with(direct.hash), 200),
    ] {
        let (elsewhere, mut changed) = (MemoryStore::new(), grant.clone());
        changed.direct = direct;
        let stored = elsewhere.insert_credential(credential.clone()).await;
        stored.and(elsewhere.insert_grant(changed).await).unwrap();
        let regrant = world.builder(elsewhere.clone()).start().await.unwrap();

        assert_eq!(redeem(&regrant, token).await.status, status);
        revoke(&regrant, token).await;
        let grant = elsewhere.grant(minted.grant_id).await.unwrap().unwrap();
        assert_eq!(grant.revoked.is_some(), status == 200);
    }
    assert_eq!(world.mints_asked(), asked + 1);
}

#[tokio::test]
async fn a_grant_that_another_replica_revoked_is_minted_for_no_more_and_then_costs_nothing() {
    let world = World::start().await;
    let (here, there) = replicas(&world, 0).await;
    let minted = world.mint(&there.0).await;
    let token = minted.refresh_token.expose();
    assert_eq!(redeem(&here.0, token).await.status, 200);
    let asked = world.mints_asked();

    revoke(&there.0, token).await;

    assert_eq!(redeem(&here.0, token).await.text("error"), "invalid_grant");
    let calls = here.1.calls();
    assert_eq!(redeem(&here.0, token).await.text("error"), "invalid_grant");
    assert_eq!(here.1.calls(), calls, "the store is not asked again");
    assert_eq!(world.mints_asked(), asked);
}

#[tokio::test]
async fn a_redemption_gets_the_token_that_another_replica_minted_since_it_came() {
    let world = World::start().await;
    let (here, there) = replicas(&world, 1).await;
    let minted = world.mint(&there.0).await;
    let token = minted.refresh_token.expose();
    let asked = world.mints_asked();

    let mut early = Box::pin(redeem(&here.0, token));
    assert!(
        (&mut early).now_or_never().is_none(),
        "it waits for the row"
    );
    world.clock.advance(std::time::Duration::from_secs(1));
    let other = redeem(&there.0, token).await;
    let early = early.await;

    assert_eq!(early.status, 200);
    assert_eq!(early.text("access_token"), other.text("access_token"));
    assert_eq!(world.mints_asked(), asked + 1);
    // Whoever comes later gets one of its own.
    world.clock.advance(std::time::Duration::from_secs(1));
    let later = redeem(&here.0, token).await;
    assert_ne!(later.text("access_token"), other.text("access_token"));
}

type Replica = (Regrant, FlakyStore);

/// Two over one store, of which the first waits this often in each call. They
/// end nothing at GitHub, so that only the row tells what has ended.
async fn replicas(world: &World, yields: usize) -> (Replica, Replica) {
    let shared = MemoryStore::new();
    let slow = FlakyStore::over(shared.clone()).yields(yields);
    let quick = FlakyStore::over(shared);
    let start = async |store: FlakyStore| {
        let builder = world.builder(store.clone()).revoke_upstream(false);
        (builder.start().await.unwrap(), store)
    };
    (start(slow).await, start(quick).await)
}
