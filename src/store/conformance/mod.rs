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

mod clients;
mod credentials;
mod grants;
mod retention;
mod revocations;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::future::join_all;
use tokio::sync::Barrier;

use crate::id::CredentialId;
use crate::id::GrantId;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::DirectToken;
use crate::store::Grant;
use crate::store::HeldCredential;
use crate::store::KeyRecord;
use crate::store::LeaseHolder;
use crate::store::Replacement;
use crate::store::RevocationReason;
use crate::store::Rotation;
use crate::store::Settlement;
use crate::store::Store;
use crate::store::StoreErrorKind;

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
    credentials::a_claim_needs_the_present_generation_and_no_running_lease(&*store).await;
    credentials::a_settlement_needs_generation_and_fence(&*store).await;
    credentials::a_terminal_credential_is_never_claimed_again(&*store).await;
    credentials::a_replacement_needs_the_present_generation_and_revives(&*store).await;
    credentials::what_was_taken_back_is_revived_only_by_who_means_to(&*store).await;
    credentials::of_many_claims_at_once_exactly_one_wins(&store).await;
    grants::rotation_needs_generation_hash_and_life(&*store).await;
    grants::a_pair_that_nobody_has_used_is_replaced(&*store).await;
    grants::of_many_rotations_at_once_exactly_one_wins(&store).await;
    grants::the_last_rotations_are_remembered(&*store).await;
    grants::replays_are_counted_up_to_the_cap(&*store).await;
    grants::revocation_is_final(&*store).await;
    grants::single_access_tokens_are_revoked(&*store).await;
    grants::a_use_slides_a_living_grant_and_never_back(&*store).await;
    grants::a_grant_expires_only_if_it_was_not_used(&*store).await;
    revocations::a_credential_is_attached_in_place_of_the_one_of_its_provider(&*store).await;
    revocations::an_upstream_revocation_is_due_until_it_is_finished(&*store).await;
    revocations::of_many_takers_at_once_exactly_one_wins(&store).await;
    revocations::a_credential_is_held_by_grants_that_live(&*store).await;
    clients::a_code_is_inserted_once_and_read_back_as_written(&*store).await;
    clients::a_registration_takes_the_place_of_the_one_before(&*store).await;
    upkeep::pages_lead_through_all_rows(&*store).await;
    upkeep::keys_are_counted_and_rows_sealed_anew(&*store).await;
    upkeep::a_row_that_changed_is_not_sealed_anew(&*store).await;
    retention::deadlines_are_only_ever_raised(&*store).await;
    retention::what_has_outlived_everything_is_swept_and_nothing_else(&*store).await;
    retention::codes_are_swept_when_they_have_expired(&*store).await;
    retention::a_credential_goes_once_it_has_ended_and_nobody_names_it(&*store).await;
    retention::credentials_are_asked_for_and_deleted_many_at_once(&*store).await;
    what_is_not_there_is_not_made_up(&*store).await;
}

async fn keys_are_registered_once(store: &dyn Store) {
    let id = GrantId::random().unwrap().to_string();
    let key = |byte| KeyRecord {
        id: id.clone(),
        check_value: [byte; 32],
        registered_at: Some(noon()),
        retired_at: None,
    };
    let later = KeyRecord {
        registered_at: Some(noon() + MINUTE),
        ..key(1)
    };
    let retire = async |at| store.upkeep().retire_key(&id, at).await.unwrap();
    let ours = async || {
        let keys = store.keys().await.unwrap();
        let ours = keys.into_iter().filter(|key| key.id == id);
        ours.collect::<Vec<_>>()
    };
    retire(noon()).await;
    assert_eq!(ours().await, [], "it is not registered");

    for other in [key(1), key(2), later.clone()] {
        store.register_key(other).await.unwrap();
        assert_eq!(ours().await, [key(1)], "the first record of an id stays");
    }

    retire(noon()).await;
    retire(noon() + MINUTE).await;
    let retired = KeyRecord {
        retired_at: Some(noon()),
        ..key(1)
    };
    let retired = [retired];
    assert_eq!(ours().await, retired);
    store.register_key(key(2)).await.unwrap();
    assert_eq!(ours().await, retired, "another key of its name");
    store.register_key(later.clone()).await.unwrap();
    assert_eq!(ours().await, [later], "it is in use again");
}

async fn rows_are_read_back_as_written(store: &dyn Store) {
    let mut credential = credential();
    credential.expires_at = Some(credential.refreshed_at + Duration::from_secs(60));
    (credential.unsettled, credential.failures) = (1, 2);
    credential.terminal = Some("invalid_grant".to_owned());
    credential.linked = true;
    store.insert_credential(credential.clone()).await.unwrap();
    let read = store.credential(credential.id).await.unwrap().unwrap();
    assert_eq!(format!("{read:?}"), format!("{credential:?}"));

    let mut grant = grant();
    grant.client_id = Some("client".to_owned());
    grant.revoked_access = vec![[9; 24], [8; 24]];
    grant.previous_hash = Some([3; 32]);
    grant.superseded_hash = Some([6; 32]);
    grant.direct = Some(DirectToken {
        hash: [4; 32],
        used_at: grant.created_at + MINUTE,
    });
    grant.revoked = Some((grant.created_at, RevocationReason::Reuse));
    grant.upstream_due = Some(grant.created_at);
    grant.credentials = vec![held("a"), held("b"), held("c")];
    grant.confidential = true;
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

async fn what_is_not_there_is_not_made_up(store: &dyn Store) {
    let grant = grant();
    let (id, now) = (grant.id, grant.created_at);
    let claim = Claim {
        id: grant.credential("provider").unwrap(),
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
        linked: false,
        unless_revoked: false,
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
    assert!(!store.count_replay(id, 0, 9, now).await.unwrap());
    store.acknowledge(id, 0).await.unwrap();
    store.revoke_access(id, [1; 24], [0; 24]).await.unwrap();
    let revoked = store
        .revoke_grant(id, now, RevocationReason::Operator)
        .await;
    assert!(!revoked.unwrap());
    assert!(!store.slide(id, now).await.unwrap());
    assert!(!store.expire_grant(id, now, now, now).await.unwrap());
    assert!(!store.attach(id, held("provider")).await.unwrap());
    assert!(store.take_revocation(id, now, now).await.unwrap().is_none());
    store.finish_revocation(id).await.unwrap();
    assert!(!store.is_held(claim.id, now, now).await.unwrap());
    assert!(store.code(id).await.unwrap().is_none());
    assert!(store.client("nobody").await.unwrap().is_none());
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
        linked: false,
    }
}

fn grant() -> Grant {
    Grant {
        id: GrantId::random().unwrap(),
        credentials: vec![held("provider")],
        subject: "subject".to_owned(),
        client_id: None,
        confidential: false,
        scope: Some("read write".to_owned()),
        resource: None,
        salt: [1; 32],
        key_id: "old".to_owned(),
        generation: 0,
        refresh_hash: [2; 32],
        previous_hash: None,
        superseded_hash: None,
        direct: None,
        rotated_at: None,
        rotations: Vec::new(),
        access_expires_at: noon() + MINUTE,
        replays: 0,
        acknowledged: false,
        created_at: noon(),
        last_used_at: noon(),
        revoked_access: Vec::new(),
        revoked: None,
        upstream_due: None,
    }
}

fn held(provider: &str) -> HeldCredential {
    HeldCredential {
        provider: provider.to_owned(),
        id: CredentialId::random().unwrap(),
    }
}

fn rotation(grant: &Grant, successor: u8) -> Rotation {
    Rotation {
        id: grant.id,
        generation: grant.generation,
        presented_hash: grant.refresh_hash,
        replaced_hash: grant.refresh_hash,
        unless_used: false,
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
const CONTENDERS: usize = 32;
