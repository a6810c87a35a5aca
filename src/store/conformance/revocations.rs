//! The outbox of upstream revocations, and which credentials grants still hold.

use std::sync::Arc;

use super::MINUTE;
use super::at_once;
use super::grant;
use super::held;
use crate::id::CredentialId;
use crate::store::Grant;
use crate::store::HeldCredential;
use crate::store::RevocationReason;
use crate::store::Store;

pub(super) async fn a_credential_is_attached_in_place_of_the_one_of_its_provider(
    store: &dyn Store,
) {
    let mut grant = grant();
    grant.credentials = vec![held("a"), held("b")];
    let id = grant.id;
    store.insert_grant(grant.clone()).await.unwrap();

    // In this order: the first one, one more, a further one, the newest.
    for provider in ["a", "c", "b", "c"] {
        let new = held(provider);
        let known = grant
            .credentials
            .iter_mut()
            .find(|held| held.provider == provider);
        match known {
            Some(held) => *held = new.clone(),
            None => grant.credentials.push(new.clone()),
        }
        assert!(store.attach(id, new).await.unwrap());
        let read = store.grant(id).await.unwrap().unwrap();
        assert_eq!(read.credentials, grant.credentials, "{provider}");
    }

    revoke(store, &grant).await;
    assert!(!store.attach(id, held("d")).await.unwrap());
}

pub(super) async fn an_upstream_revocation_is_due_until_it_is_finished(store: &dyn Store) {
    let grant = grant();
    let (id, at) = (grant.id, grant.created_at);
    store.insert_grant(grant.clone()).await.unwrap();
    assert!(!is_due(store, &grant, 9).await);
    let early = store.take_revocation(id, at + 9 * MINUTE, at).await;
    assert!(early.unwrap().is_none());

    revoke(store, &grant).await;
    assert!(is_due(store, &grant, 0).await);
    let taken = store
        .take_revocation(id, at, at + MINUTE)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(taken.id, id);
    assert_eq!(taken.upstream_due, Some(at + MINUTE));
    let again = store.take_revocation(id, at, at + MINUTE).await;
    assert!(again.unwrap().is_none());
    assert!(!is_due(store, &grant, 0).await);
    assert!(is_due(store, &grant, 1).await);

    store.finish_revocation(id).await.unwrap();
    assert!(!is_due(store, &grant, 9).await);
    let finished = store.take_revocation(id, at + 9 * MINUTE, at).await;
    assert!(finished.unwrap().is_none());
    // It stays finished, and revoked.
    assert!(!revoke(store, &grant).await);
    assert!(!is_due(store, &grant, 9).await);
    let row = store.grant(id).await.unwrap().unwrap();
    assert!(row.revoked.is_some());
}

pub(super) async fn of_many_takers_at_once_exactly_one_wins(store: &Arc<dyn Store>) {
    let grant = grant();
    let (id, at) = (grant.id, grant.created_at);
    store.insert_grant(grant.clone()).await.unwrap();
    revoke(&**store, &grant).await;
    let won = at_once(store, move |store| async move {
        let taken = store.take_revocation(id, at, at + MINUTE).await;
        taken.unwrap().is_some()
    })
    .await;
    assert_eq!(won, 1);
}

pub(super) async fn a_credential_is_held_by_grants_that_live(store: &dyn Store) {
    let (shared, other) = (held("a"), held("b"));
    let first = holding(store, &[&shared]).await;
    let second = holding(store, &[&other, &shared]).await;
    let at = first.created_at;
    assert!(is_held(store, shared.id, 0, 0).await);

    revoke(store, &first).await;
    assert!(is_held(store, shared.id, 0, 0).await, "as a further one");
    // Those that were created or used too long ago do not count.
    assert!(!is_held(store, shared.id, 1, 0).await);
    assert!(!is_held(store, shared.id, 0, 1).await);
    assert!(store.count_replay(second.id, 0, 9, at).await.unwrap());
    revoke(store, &second).await;
    assert!(!is_held(store, shared.id, 0, 0).await);
    assert!(!is_held(store, other.id, 0, 0).await);
}

/// Whether it is due this many minutes after its revocation.
async fn is_due(store: &dyn Store, grant: &Grant, minutes: u32) -> bool {
    let now = grant.created_at + minutes * MINUTE;
    let due = store.due_revocations(now, u32::MAX).await.unwrap();
    due.contains(&grant.id)
}

/// Whether it is held by a grant that was made or used these many minutes
/// after noon at the earliest.
async fn is_held(store: &dyn Store, id: CredentialId, created: u32, used: u32) -> bool {
    let since = |minutes: u32| super::noon() + minutes * MINUTE - MINUTE / 2;
    store
        .is_held(id, since(created), since(used))
        .await
        .unwrap()
}

async fn holding(store: &dyn Store, held: &[&HeldCredential]) -> Grant {
    let mut grant = grant();
    grant.credentials = held.iter().map(|held| (*held).clone()).collect();
    store.insert_grant(grant.clone()).await.unwrap();
    grant
}

async fn revoke(store: &dyn Store, grant: &Grant) -> bool {
    let at = grant.created_at;
    let revoked = store
        .revoke_grant(grant.id, at, RevocationReason::Client)
        .await;
    revoked.unwrap()
}
