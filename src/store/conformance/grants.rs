//! Grants: rotation, replays and revocation.

use std::sync::Arc;

use super::MINUTE;
use super::at_once;
use super::grant;
use super::rotation;
use crate::store::DirectToken;
use crate::store::Grant;
use crate::store::ROTATIONS_KEPT;
use crate::store::RevocationReason;
use crate::store::Rotation;
use crate::store::Store;

pub(super) async fn rotation_needs_generation_hash_and_life(store: &dyn Store) {
    let grant = grant();
    store.insert_grant(grant.clone()).await.unwrap();
    let good = rotation(&grant, 50);

    for refused in [
        Rotation {
            generation: 1,
            ..good.clone()
        },
        Rotation {
            replaced_hash: [0; 32],
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
    assert_eq!(row.rotations, [good.at]);
    assert_eq!(row.last_used_at, good.at);
    assert_eq!(row.access_expires_at, good.access_expires_at);
    assert_eq!(row.key_id, "new");
    assert_eq!((row.replays, row.acknowledged), (0, false));

    store.acknowledge(grant.id, 0).await.unwrap();
    assert!(!store.grant(grant.id).await.unwrap().unwrap().acknowledged);
    store.acknowledge(grant.id, 1).await.unwrap();
    assert!(store.grant(grant.id).await.unwrap().unwrap().acknowledged);
}

pub(super) async fn a_pair_that_nobody_has_used_is_replaced(store: &dyn Store) {
    let first = inserted_grant(store).await;
    let id = first.id;
    assert!(store.rotate(rotation(&first, 60)).await.unwrap());
    let second = store.grant(id).await.unwrap().unwrap();
    let anew = |grant: &Grant, successor, unless_used| Rotation {
        presented_hash: first.refresh_hash,
        unless_used,
        ..rotation(grant, successor)
    };

    assert!(store.rotate(anew(&second, 61, true)).await.unwrap());
    assert!(!store.rotate(anew(&second, 62, true)).await.unwrap());
    let third = store.grant(id).await.unwrap().unwrap();
    assert_eq!((third.generation, third.refresh_hash), (2, [61; 32]));
    assert_eq!(third.previous_hash, Some(first.refresh_hash));
    assert_eq!(second.superseded_hash, None);
    assert_eq!(third.superseded_hash, Some([60; 32]));

    store.acknowledge(id, 2).await.unwrap();
    assert!(!store.rotate(anew(&third, 63, true)).await.unwrap());
    assert!(store.rotate(anew(&third, 64, false)).await.unwrap());
}

pub(super) async fn the_last_rotations_are_remembered(store: &dyn Store) {
    let mut grant = grant();
    store.insert_grant(grant.clone()).await.unwrap();
    let mut times = Vec::new();
    for successor in 100..102 + ROTATIONS_KEPT {
        let mut rotation = rotation(&grant, successor);
        rotation.at += MINUTE * u32::from(successor);
        times.insert(0, rotation.at);
        assert!(store.rotate(rotation).await.unwrap());
        grant = store.grant(grant.id).await.unwrap().unwrap();
    }
    times.truncate(usize::from(ROTATIONS_KEPT));
    assert_eq!(grant.rotations, times);
}

pub(super) async fn of_many_rotations_at_once_exactly_one_wins(store: &Arc<dyn Store>) {
    let grant = grant();
    store.insert_grant(grant.clone()).await.unwrap();
    let won = at_once(store, move |store| {
        let rotation = rotation(&grant, 51);
        async move { store.rotate(rotation).await.unwrap() }
    })
    .await;
    assert_eq!(won, 1);
}

pub(super) async fn replays_are_counted_up_to_the_cap(store: &dyn Store) {
    let Grant { id, created_at, .. } = inserted_grant(store).await;
    let at = created_at + MINUTE;

    assert!(!store.count_replay(id, 1, 2, at).await.unwrap());
    assert!(store.count_replay(id, 0, 2, at).await.unwrap());
    assert!(store.count_replay(id, 0, 2, at).await.unwrap());
    assert!(!store.count_replay(id, 0, 2, at).await.unwrap());
    let row = store.grant(id).await.unwrap().unwrap();
    assert_eq!((row.replays, row.last_used_at), (2, at));
}

pub(super) async fn revocation_is_final(store: &dyn Store) {
    let grant = inserted_grant(store).await;
    let id = grant.id;
    let at = grant.created_at + MINUTE;

    let first = store.revoke_grant(id, at, RevocationReason::Client).await;
    assert!(first.unwrap());
    let again = store.revoke_grant(id, at, RevocationReason::Reuse).await;
    assert!(!again.unwrap());

    assert!(!store.rotate(rotation(&grant, 52)).await.unwrap());
    assert!(!store.count_replay(id, 0, 9, at).await.unwrap());
    store.acknowledge(id, 0).await.unwrap();
    let row = store.grant(id).await.unwrap().unwrap();
    assert_eq!(row.revoked, Some((at, RevocationReason::Client)));
    assert_eq!((row.generation, row.acknowledged), (0, false));
}

pub(super) async fn single_access_tokens_are_revoked(store: &dyn Store) {
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

async fn inserted_grant(store: &dyn Store) -> Grant {
    let grant = grant();
    store.insert_grant(grant.clone()).await.unwrap();
    grant
}

pub(super) async fn a_use_slides_a_living_grant_and_never_back(store: &dyn Store) {
    let (indirect, direct) = (grant(), direct_grant());
    store.insert_grant(indirect.clone()).await.unwrap();
    store.insert_grant(direct.clone()).await.unwrap();
    let later = direct.last_used_at + 2 * MINUTE;
    assert!(!store.slide(indirect.id, later).await.unwrap());

    assert!(store.slide(direct.id, later).await.unwrap());
    assert!(store.slide(direct.id, later - MINUTE).await.unwrap());
    let row = store.grant(direct.id).await.unwrap().unwrap();
    assert_eq!(row.direct.unwrap().used_at, later);
    assert_eq!(row.last_used_at, direct.last_used_at, "the pair's own");

    let reason = RevocationReason::Client;
    store.revoke_grant(direct.id, later, reason).await.unwrap();
    assert!(!store.slide(direct.id, later + MINUTE).await.unwrap());
    let row = store.grant(direct.id).await.unwrap().unwrap();
    assert_eq!(row.direct.unwrap().used_at, later);
    assert_eq!(row.revoked, Some((later, reason)));
}

pub(super) async fn a_grant_expires_only_if_it_was_not_used(store: &dyn Store) {
    let (indirect, grant) = (grant(), direct_grant());
    store.insert_grant(indirect.clone()).await.unwrap();
    store.insert_grant(grant.clone()).await.unwrap();
    let (read, now) = (grant.last_used_at, grant.last_used_at + 9 * MINUTE);
    let expire = |id, redeemed, rotated, at| {
        store.expire_grant(id, read + redeemed * MINUTE, read + rotated * MINUTE, at)
    };
    assert!(!expire(indirect.id, 9, 9, now).await.unwrap());

    // Somebody used one of the two after it was read.
    store.slide(grant.id, read + MINUTE).await.unwrap();
    assert!(!expire(grant.id, 0, 0, now).await.unwrap());
    let mut rotation = rotation(&grant, 50);
    rotation.at = read + 2 * MINUTE;
    assert!(store.rotate(rotation).await.unwrap());
    assert!(!expire(grant.id, 1, 1, now).await.unwrap());
    assert!(!expire(grant.id, 0, 2, now).await.unwrap());
    let row = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!((row.revoked, row.upstream_due), (None, None));

    assert!(expire(grant.id, 1, 2, now).await.unwrap());
    let again = expire(grant.id, 1, 2, now + MINUTE);
    assert!(!again.await.unwrap(), "the first one stays");
    let row = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!(row.revoked, Some((now, RevocationReason::Expired)));
    assert_eq!(row.upstream_due, Some(now));
}

fn direct_grant() -> Grant {
    let grant = grant();
    Grant {
        direct: Some(DirectToken {
            hash: [7; 32],
            used_at: grant.last_used_at,
        }),
        ..grant
    }
}
