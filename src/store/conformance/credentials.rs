//! Credentials: claims, settlements and what overtakes them.

use std::sync::Arc;
use std::time::Duration;

use super::ME;
use super::MINUTE;
use super::at_once;
use super::credential;
use super::noon;
use crate::id::CredentialId;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::DISCONNECTED;
use crate::store::LOST_IN_FLIGHT;
use crate::store::LeaseHolder;
use crate::store::REVOKED;
use crate::store::Replacement;
use crate::store::Settlement;
use crate::store::Store;

pub(super) async fn a_claim_needs_the_present_generation_and_no_running_lease(store: &dyn Store) {
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

pub(super) async fn a_replacement_needs_the_present_generation_and_revives(store: &dyn Store) {
    let Credential { id, .. } = inserted(store).await;
    let claim = claimed(store, id, MINUTE).await;
    let tokens = |byte| Replacement {
        sealed: vec![byte],
        expires_at: Some(noon() + MINUTE),
        refreshed_at: noon(),
        linked: false,
        unless_revoked: false,
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

pub(super) async fn what_was_taken_back_is_revived_only_by_who_means_to(store: &dyn Store) {
    let tokens = |unless_revoked| Replacement {
        sealed: vec![7],
        expires_at: None,
        refreshed_at: noon(),
        linked: false,
        unless_revoked,
    };
    for (reason, is_spared) in [
        (REVOKED, true),
        (DISCONNECTED, true),
        (LOST_IN_FLIGHT, false),
        ("invalid_grant", false),
    ] {
        let Credential { id, .. } = inserted(store).await;
        let claim = claimed(store, id, MINUTE).await;
        assert!(store.settle(claim, terminal(reason)).await.unwrap());

        let replaced = store.replace(id, 0, tokens(true)).await.unwrap();

        assert_eq!(replaced, !is_spared, "{reason}");
        let row = store.credential(id).await.unwrap().unwrap();
        assert_eq!(row.terminal.is_some(), is_spared, "{reason}");
        if is_spared {
            assert!(store.replace(id, 0, tokens(false)).await.unwrap());
            let row = store.credential(id).await.unwrap().unwrap();
            assert_eq!(row.terminal, None, "{reason}");
        }
    }
}

pub(super) async fn a_settlement_needs_generation_and_fence(store: &dyn Store) {
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

pub(super) async fn a_terminal_credential_is_never_claimed_again(store: &dyn Store) {
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

pub(super) async fn of_many_claims_at_once_exactly_one_wins(store: &Arc<dyn Store>) {
    let Credential { id, .. } = inserted(&**store).await;
    let won = at_once(store, move |store| async move {
        let holder = *CredentialId::random().unwrap().as_bytes();
        store.claim(id, 0, holder, MINUTE).await.unwrap().is_some()
    })
    .await;
    assert_eq!(won, 1);
}

async fn inserted(store: &dyn Store) -> Credential {
    let credential = credential();
    store.insert_credential(credential.clone()).await.unwrap();
    credential
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

fn terminal(reason: &str) -> Settlement {
    Settlement::Terminal {
        reason: reason.to_owned(),
    }
}

const OTHER: LeaseHolder = [2; 16];
