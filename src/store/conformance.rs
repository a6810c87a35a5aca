//! The contract of [`Store`], as a suite that every store passes.
//!
//! ```
//! use std::sync::Arc;
//! use regrant::store::conformance;
//! use regrant::store::memory::MemoryStore;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! conformance::check(Arc::new(MemoryStore::new())).await;
//! # });
//! ```
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed check of the store under test"
)]

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::future::join_all;
use tokio::sync::Barrier;

use super::Claim;
use super::Credential;
use super::Grant;
use super::KeyRecord;
use super::LeaseHolder;
use super::Replacement;
use super::RevocationReason;
use super::Rotation;
use super::Settlement;
use super::Store;
use super::StoreErrorKind;
use crate::id::CredentialId;
use crate::id::GrantId;

/// Checks every rule of the contract, races included. The store may hold other
/// rows; this adds its own.
///
/// # Panics
///
/// If the store breaks a rule.
pub async fn check(store: Arc<dyn Store>) {
    keys_are_registered_once(&*store).await;
    rows_are_read_back_as_written(&*store).await;
    an_id_is_inserted_once(&*store).await;
    a_claim_needs_the_present_generation_and_no_running_lease(&*store).await;
    a_settlement_needs_generation_and_fence(&*store).await;
    a_terminal_credential_is_never_claimed_again(&*store).await;
    a_replacement_needs_the_present_generation_and_revives(&*store).await;
    of_many_claims_at_once_exactly_one_wins(&store).await;
    rotation_needs_generation_hash_and_life(&*store).await;
    of_many_rotations_at_once_exactly_one_wins(&store).await;
    replays_are_counted_up_to_the_cap(&*store).await;
    revocation_is_final(&*store).await;
    single_access_tokens_are_revoked(&*store).await;
    what_is_not_there_is_not_made_up(&*store).await;
}

async fn keys_are_registered_once(store: &dyn Store) {
    let key = |byte| KeyRecord {
        id: "conformance".to_owned(),
        check_value: [byte; 32],
    };
    store.register_key(key(1)).await.unwrap();
    store.register_key(key(2)).await.unwrap();

    let keys = store.keys().await.unwrap();
    let ours: Vec<_> = keys.iter().filter(|k| k.id == "conformance").collect();
    assert_eq!(ours, [&key(1)], "the first record of an id stays");
}

async fn rows_are_read_back_as_written(store: &dyn Store) {
    let mut credential = credential();
    credential.expires_at = Some(credential.refreshed_at + Duration::from_secs(60));
    (credential.unsettled, credential.failures) = (1, 2);
    credential.terminal = Some("invalid_grant".to_owned());
    store.insert_credential(credential.clone()).await.unwrap();
    let read = store.credential(credential.id).await.unwrap().unwrap();
    assert_eq!(format!("{read:?}"), format!("{credential:?}"));

    let mut grant = grant();
    grant.client_id = Some("client".to_owned());
    grant.revoked_access = vec![[9; 24], [8; 24]];
    grant.previous_hash = Some([3; 32]);
    grant.revoked = Some((grant.created_at, RevocationReason::Reuse));
    store.insert_grant(grant.clone()).await.unwrap();
    let read = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!(format!("{read:?}"), format!("{grant:?}"));
}

async fn an_id_is_inserted_once(store: &dyn Store) {
    let credential = credential();
    store.insert_credential(credential.clone()).await.unwrap();
    let again = store.insert_credential(credential).await;
    assert_eq!(again.unwrap_err().kind(), StoreErrorKind::Conflict);

    let grant = grant();
    store.insert_grant(grant.clone()).await.unwrap();
    let again = store.insert_grant(grant).await;
    assert_eq!(again.unwrap_err().kind(), StoreErrorKind::Conflict);
}

async fn a_claim_needs_the_present_generation_and_no_running_lease(store: &dyn Store) {
    let Credential { id, .. } = inserted(store).await;

    assert!(store.claim(id, 1, ME, MINUTE).await.unwrap().is_none());
    let claim = async |holder, lease| store.claim(id, 0, holder, lease).await.unwrap();
    let first = claim(ME, Duration::ZERO).await.unwrap();
    assert_eq!((first.generation, first.fence, first.unsettled), (0, 1, 0));

    // The first lease has run out, and nobody knows what came of it.
    let second = claim(OTHER, MINUTE).await.unwrap();
    assert_eq!((second.fence, second.unsettled), (2, 1));
    assert!(claim(ME, MINUTE).await.is_none());
    // Who asks again got no answer the first time.
    let third = claim(OTHER, MINUTE).await.unwrap();
    assert_eq!((third.fence, third.unsettled), (3, 1));
}

async fn a_replacement_needs_the_present_generation_and_revives(store: &dyn Store) {
    let Credential { id, .. } = inserted(store).await;
    let claim = claimed(store, id, MINUTE).await;
    let tokens = |byte| Replacement {
        sealed: vec![byte],
        expires_at: Some(noon() + MINUTE),
        refreshed_at: noon(),
    };
    assert!(!store.replace(id, 1, tokens(1)).await.unwrap());

    // It overtakes a claim that is under way.
    assert!(store.replace(id, 0, tokens(2)).await.unwrap());
    assert!(!store.settle(claim, terminal("late")).await.unwrap());
    let claim = store.claim(id, 1, OTHER, MINUTE).await.unwrap().unwrap();
    assert_eq!((claim.generation, claim.sealed.clone()), (1, vec![2]));
    assert_eq!(claim.unsettled, 0, "that was of the tokens before");

    let ended = store.settle(claim_of(&claim), terminal("invalid_grant"));
    assert!(ended.await.unwrap());
    assert!(store.replace(id, 1, tokens(3)).await.unwrap());
    let row = store.credential(id).await.unwrap().unwrap();
    assert_eq!(
        (row.generation, row.sealed, row.terminal),
        (2, vec![3], None)
    );
    assert_eq!(row.expires_at, Some(noon() + MINUTE));
    assert!(row.fence > claim.fence);
}

async fn a_settlement_needs_generation_and_fence(store: &dyn Store) {
    let Credential { id, .. } = inserted(store).await;
    let refreshed = |byte| Settlement::Refreshed {
        sealed: vec![byte],
        expires_at: Some(noon() + MINUTE),
        refreshed_at: noon(),
        forced_at: (byte == 3).then(noon),
        not_before: (byte == 3).then(noon),
    };
    let stale = claimed(store, id, Duration::ZERO).await;
    let present = claimed(store, id, MINUTE).await;

    assert!(!store.settle(stale, refreshed(1)).await.unwrap());
    let other = Claim {
        generation: 7,
        ..present
    };
    assert!(!store.settle(other, refreshed(2)).await.unwrap());
    assert!(store.settle(present, refreshed(3)).await.unwrap());
    assert!(!store.settle(present, refreshed(4)).await.unwrap());

    let row = store.credential(id).await.unwrap().unwrap();
    assert_eq!((row.generation, row.sealed), (1, vec![3]));
    assert_eq!(row.expires_at, Some(noon() + MINUTE));
    assert_eq!(
        (row.forced_at, row.not_before),
        (Some(noon()), Some(noon()))
    );

    // Settling gave the lease back.
    let next = store.claim(id, 1, ME, MINUTE).await.unwrap().unwrap();
    let next = claim_of(&next);
    let not_before = noon() + MINUTE;
    let released = Settlement::Released {
        not_before,
        unsettled: 2,
        failures: 3,
    };
    assert!(store.settle(next, released).await.unwrap());
    let row = store.credential(id).await.unwrap().unwrap();
    assert_eq!((row.generation, row.not_before), (1, Some(not_before)));
    assert_eq!((row.unsettled, row.failures), (2, 3));
    let last = store.claim(id, 1, ME, MINUTE).await.unwrap().unwrap();
    assert!(store.settle(claim_of(&last), refreshed(5)).await.unwrap());
    let row = store.credential(id).await.unwrap().unwrap();
    assert_eq!((row.generation, row.not_before), (2, None));
    assert_eq!((row.unsettled, row.failures), (0, 0));
    assert_eq!(row.forced_at, Some(noon()), "kept");
}

async fn a_terminal_credential_is_never_claimed_again(store: &dyn Store) {
    let Credential { id, .. } = inserted(store).await;
    let claim = claimed(store, id, MINUTE).await;
    assert!(
        store
            .settle(claim, terminal("invalid_grant"))
            .await
            .unwrap()
    );
    assert!(!store.settle(claim, terminal("other")).await.unwrap());

    let row = store.credential(id).await.unwrap().unwrap();
    assert_eq!(row.terminal.as_deref(), Some("invalid_grant"));
    assert_eq!(row.generation, 0);
    assert!(store.claim(id, 0, ME, MINUTE).await.unwrap().is_none());
}

async fn of_many_claims_at_once_exactly_one_wins(store: &Arc<dyn Store>) {
    let Credential { id, .. } = inserted(&**store).await;
    let won = at_once(store, move |store| async move {
        let holder = *CredentialId::random().unwrap().as_bytes();
        store.claim(id, 0, holder, MINUTE).await.unwrap().is_some()
    })
    .await;
    assert_eq!(won, 1);
}

async fn rotation_needs_generation_hash_and_life(store: &dyn Store) {
    let grant = grant();
    store.insert_grant(grant.clone()).await.unwrap();
    let good = rotation(&grant, 50);

    for refused in [
        Rotation {
            generation: 1,
            ..good.clone()
        },
        Rotation {
            presented_hash: [0; 32],
            ..good.clone()
        },
    ] {
        assert!(!store.rotate(refused).await.unwrap());
    }
    assert!(store.rotate(good.clone()).await.unwrap());
    assert!(!store.rotate(good.clone()).await.unwrap());

    let row = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!(row.generation, 1);
    assert_eq!(row.refresh_hash, [50; 32]);
    assert_eq!(row.previous_hash, Some(grant.refresh_hash));
    assert_eq!(row.rotated_at, Some(good.at));
    assert_eq!(row.last_used_at, good.at);
    assert_eq!(row.access_expires_at, good.access_expires_at);
    assert_eq!(row.key_id, "new");
    assert_eq!((row.replays, row.acknowledged), (0, false));

    store.acknowledge(grant.id, 0).await.unwrap();
    assert!(!store.grant(grant.id).await.unwrap().unwrap().acknowledged);
    store.acknowledge(grant.id, 1).await.unwrap();
    assert!(store.grant(grant.id).await.unwrap().unwrap().acknowledged);
}

async fn of_many_rotations_at_once_exactly_one_wins(store: &Arc<dyn Store>) {
    let grant = grant();
    store.insert_grant(grant.clone()).await.unwrap();
    let won = at_once(store, move |store| {
        let rotation = rotation(&grant, 51);
        async move { store.rotate(rotation).await.unwrap() }
    })
    .await;
    assert_eq!(won, 1);
}

async fn replays_are_counted_up_to_the_cap(store: &dyn Store) {
    let Grant { id, .. } = inserted_grant(store).await;

    assert!(!store.count_replay(id, 1, 2).await.unwrap());
    assert!(store.count_replay(id, 0, 2).await.unwrap());
    assert!(store.count_replay(id, 0, 2).await.unwrap());
    assert!(!store.count_replay(id, 0, 2).await.unwrap());
    assert_eq!(store.grant(id).await.unwrap().unwrap().replays, 2);
}

async fn revocation_is_final(store: &dyn Store) {
    let grant = inserted_grant(store).await;
    let id = grant.id;
    let at = grant.created_at + MINUTE;

    let first = store.revoke_grant(id, at, RevocationReason::Client).await;
    assert!(first.unwrap());
    let again = store.revoke_grant(id, at, RevocationReason::Reuse).await;
    assert!(!again.unwrap());

    assert!(!store.rotate(rotation(&grant, 52)).await.unwrap());
    assert!(!store.count_replay(id, 0, 9).await.unwrap());
    store.acknowledge(id, 0).await.unwrap();
    let row = store.grant(id).await.unwrap().unwrap();
    assert_eq!(row.revoked, Some((at, RevocationReason::Client)));
    assert_eq!((row.generation, row.acknowledged), (0, false));
}

async fn single_access_tokens_are_revoked(store: &dyn Store) {
    let Grant { id, .. } = inserted_grant(store).await;
    let entry = |first: u8| {
        let mut entry = [7; 24];
        entry[0] = first;
        entry
    };
    for first in [1, 2, 2, 3] {
        store
            .revoke_access(id, entry(first), [0; 24])
            .await
            .unwrap();
    }
    // What expired before this one is dropped on the way.
    store.revoke_access(id, entry(4), entry(2)).await.unwrap();

    let mut left = store.grant(id).await.unwrap().unwrap().revoked_access;
    left.sort_unstable();
    assert_eq!(left, [entry(2), entry(3), entry(4)]);
}

async fn what_is_not_there_is_not_made_up(store: &dyn Store) {
    let grant = grant();
    let (id, now) = (grant.id, grant.created_at);
    let claim = Claim {
        id: grant.credential_id,
        generation: 0,
        fence: 0,
    };
    let released = Settlement::Released {
        not_before: now,
        unsettled: 0,
        failures: 0,
    };
    let tokens = Replacement {
        sealed: vec![1],
        expires_at: None,
        refreshed_at: now,
    };

    assert!(store.grant(id).await.unwrap().is_none());
    assert!(store.credential(claim.id).await.unwrap().is_none());
    assert!(
        store
            .claim(claim.id, 0, ME, MINUTE)
            .await
            .unwrap()
            .is_none()
    );
    assert!(!store.settle(claim, released).await.unwrap());
    assert!(!store.replace(claim.id, 0, tokens).await.unwrap());
    assert!(!store.rotate(rotation(&grant, 53)).await.unwrap());
    assert!(!store.count_replay(id, 0, 9).await.unwrap());
    store.acknowledge(id, 0).await.unwrap();
    store.revoke_access(id, [1; 24], [0; 24]).await.unwrap();
    let revoked = store
        .revoke_grant(id, now, RevocationReason::Operator)
        .await;
    assert!(!revoked.unwrap());
    assert!(store.grant(id).await.unwrap().is_none());
    assert!(store.credential(claim.id).await.unwrap().is_none());
}

/// How many of 32 tasks, let loose together, answer `true`.
async fn at_once<F>(store: &Arc<dyn Store>, contend: impl Fn(Arc<dyn Store>) -> F) -> usize
where
    F: Future<Output = bool> + Send + 'static,
{
    let barrier = Arc::new(Barrier::new(CONTENDERS));
    let tasks = (0..CONTENDERS).map(|_| {
        let (barrier, contender) = (Arc::clone(&barrier), contend(Arc::clone(store)));
        tokio::spawn(async move {
            barrier.wait().await;
            contender.await
        })
    });
    let outcomes = join_all(tasks).await;
    outcomes
        .into_iter()
        .filter(|won| *won.as_ref().unwrap())
        .count()
}

async fn inserted(store: &dyn Store) -> Credential {
    let credential = credential();
    store.insert_credential(credential.clone()).await.unwrap();
    credential
}

async fn inserted_grant(store: &dyn Store) -> Grant {
    let grant = grant();
    store.insert_grant(grant.clone()).await.unwrap();
    grant
}

async fn claimed(store: &dyn Store, id: CredentialId, lease: Duration) -> Claim {
    claim_of(&store.claim(id, 0, ME, lease).await.unwrap().unwrap())
}

fn claim_of(row: &Credential) -> Claim {
    Claim {
        id: row.id,
        generation: row.generation,
        fence: row.fence,
    }
}

fn credential() -> Credential {
    Credential {
        id: CredentialId::random().unwrap(),
        provider: "provider".to_owned(),
        subject: "subject".to_owned(),
        generation: 0,
        sealed: vec![0, 1, 255],
        expires_at: None,
        refreshed_at: noon(),
        not_before: None,
        forced_at: None,
        fence: 0,
        unsettled: 0,
        failures: 0,
        terminal: None,
    }
}

fn terminal(reason: &str) -> Settlement {
    Settlement::Terminal {
        reason: reason.to_owned(),
    }
}

fn grant() -> Grant {
    Grant {
        id: GrantId::random().unwrap(),
        credential_id: CredentialId::random().unwrap(),
        provider: "provider".to_owned(),
        subject: "subject".to_owned(),
        client_id: None,
        scope: Some("read write".to_owned()),
        resource: None,
        salt: [1; 32],
        key_id: "old".to_owned(),
        generation: 0,
        refresh_hash: [2; 32],
        previous_hash: None,
        rotated_at: None,
        access_expires_at: noon() + MINUTE,
        replays: 0,
        acknowledged: false,
        created_at: noon(),
        last_used_at: noon(),
        revoked_access: Vec::new(),
        revoked: None,
    }
}

fn rotation(grant: &Grant, successor: u8) -> Rotation {
    Rotation {
        id: grant.id,
        generation: grant.generation,
        presented_hash: grant.refresh_hash,
        refresh_hash: [successor; 32],
        key_id: "new".to_owned(),
        at: grant.created_at + MINUTE,
        access_expires_at: grant.created_at + 2 * MINUTE,
    }
}

/// Some time, in whole seconds: stores may cut fractions.
fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

const MINUTE: Duration = Duration::from_secs(60);
const ME: LeaseHolder = [1; 16];
const OTHER: LeaseHolder = [2; 16];
const CONTENDERS: usize = 32;
