//! Pages, and the keys that rows are sealed under.

use super::ME;
use super::MINUTE;
use super::credential;
use super::grant;
use super::held;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::store::Claim;
use crate::store::CredentialFilter;
use crate::store::GrantFilter;
use crate::store::KeyUsage;
use crate::store::RevocationReason;
use crate::store::Settlement;
use crate::store::Store;

pub(super) async fn pages_lead_through_all_rows(store: &dyn Store) {
    let subject = GrantId::random().unwrap().to_string();
    let mut ids = Vec::new();
    for number in 0..7 {
        let mut grant = grant();
        grant.subject.clone_from(&subject);
        grant.client_id = (number % 2 == 0).then(|| "even".to_owned());
        grant.credentials = vec![held("first"), held("further")];
        ids.push(grant.id);
        store.insert_grant(grant).await.unwrap();
        let mut credential = credential();
        credential.subject.clone_from(&subject);
        credential.refreshed_at += number * MINUTE;
        store.insert_credential(credential).await.unwrap();
    }
    ids.sort();

    let of = |client: Option<&str>, provider: Option<&str>| GrantFilter {
        subject: Some(subject.clone()),
        client_id: client.map(str::to_owned),
        provider: provider.map(str::to_owned),
    };
    for limit in [1, 3, 1_000] {
        assert_eq!(found(store, &of(None, None), limit).await, ids, "{limit}");
    }
    assert_eq!(found(store, &of(Some("even"), None), 2).await.len(), 4);
    assert_eq!(found(store, &of(None, Some("further")), 2).await.len(), 7);
    assert_eq!(found(store, &of(None, Some("other")), 2).await.len(), 0);

    let of = |provider: Option<&str>, minutes: Option<u32>| CredentialFilter {
        subject: Some(subject.clone()),
        provider: provider.map(str::to_owned),
        refreshed_before: minutes.map(|minutes| credential().refreshed_at + minutes * MINUTE),
        not_sealed_under: None,
    };
    for (filter, count) in [
        (of(None, None), 7),
        (of(Some("provider"), None), 7),
        (of(Some("other"), None), 0),
        (of(None, Some(3)), 3),
    ] {
        assert_eq!(found_credentials(store, &filter).await.len(), count);
    }
}

pub(super) async fn keys_are_counted_and_rows_sealed_anew(store: &dyn Store) {
    let (old, new) = (key(), key());
    let mut sealed = Vec::new();
    for _ in 0..3 {
        let mut credential = credential();
        credential.sealed = sealed_under(&old);
        sealed.push(credential.id);
        store.insert_credential(credential).await.unwrap();
    }
    let mut living = grant();
    living.key_id.clone_from(&old);
    living.access_expires_at += MINUTE;
    store.insert_grant(living.clone()).await.unwrap();
    let mut ended = grant();
    ended.key_id.clone_from(&old);
    ended.access_expires_at += 2 * MINUTE;
    ended.revoked = Some((ended.created_at, RevocationReason::Operator));
    store.insert_grant(ended).await.unwrap();

    let before = usage(store, &old).await.unwrap();
    assert_eq!((before.credentials, before.grants), (3, 1));
    assert_eq!(before.access_until, Some(living.access_expires_at));
    assert_eq!(usage(store, &new).await, None);

    let others = CredentialFilter {
        not_sealed_under: Some(new.clone()),
        ..CredentialFilter::default()
    };
    let found = found_credentials(store, &others).await;
    assert!(sealed.iter().all(|id| found.contains(id)));
    for id in &sealed {
        let resealed = store
            .upkeep()
            .reseal(*id, 0, sealed_under(&old), sealed_under(&new));
        assert!(resealed.await.unwrap());
        let read = store.credential(*id).await.unwrap().unwrap();
        assert_eq!(read.sealed, sealed_under(&new));
        assert_eq!((read.generation, read.fence), (0, 0));
    }
    let found = found_credentials(store, &others).await;
    assert!(!sealed.iter().any(|id| found.contains(id)));
    assert_eq!(usage(store, &old).await.unwrap().credentials, 0);
    assert_eq!(usage(store, &new).await.unwrap().credentials, 3);
}

pub(super) async fn a_row_that_changed_is_not_sealed_anew(store: &dyn Store) {
    let credential = credential();
    let (id, now) = (credential.id, credential.refreshed_at);
    let before = credential.sealed.clone();
    store.insert_credential(credential).await.unwrap();
    let upkeep = store.upkeep();
    let other = upkeep.reseal(id, 0, vec![7], vec![8]).await;
    assert!(!other.unwrap(), "it holds something else");

    // A refresh under way goes on, and wins.
    let claimed = store.claim(id, 0, ME, MINUTE).await.unwrap().unwrap();
    assert!(upkeep.reseal(id, 0, before, vec![8]).await.unwrap());
    let claim = Claim {
        id,
        generation: 0,
        fence: claimed.fence,
    };
    let refreshed = Settlement::Refreshed {
        sealed: vec![9],
        expires_at: None,
        refreshed_at: now,
        forced_at: None,
        not_before: None,
    };
    assert!(store.settle(claim, refreshed).await.unwrap());
    assert!(!upkeep.reseal(id, 0, vec![8], vec![8]).await.unwrap());
    assert!(!upkeep.reseal(id, 1, vec![8], vec![8]).await.unwrap());
    let read = store.credential(id).await.unwrap().unwrap();
    assert_eq!((read.sealed, read.generation), (vec![9], 1));
}

async fn found(store: &dyn Store, filter: &GrantFilter, limit: u32) -> Vec<GrantId> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.upkeep().grants(filter.clone(), after, limit).await;
        let page = page.unwrap();
        found.extend(page.rows.iter().map(|grant| grant.id));
        after = page.next;
        if after.is_none() {
            return found;
        }
    }
}

async fn found_credentials(store: &dyn Store, filter: &CredentialFilter) -> Vec<CredentialId> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.upkeep().credentials(filter.clone(), after, 4).await;
        let page = page.unwrap();
        found.extend(page.rows.iter().map(|credential| credential.id));
        after = page.next;
        if after.is_none() {
            return found;
        }
    }
}

async fn usage(store: &dyn Store, id: &str) -> Option<KeyUsage> {
    let usage = store.upkeep().key_usage().await.unwrap();
    usage.into_iter().find(|usage| usage.id == id)
}

/// An id that nobody else has.
fn key() -> String {
    GrantId::random().unwrap().to_string()
}

fn sealed_under(key: &str) -> Vec<u8> {
    let length = u8::try_from(key.len()).unwrap();
    [&[1, length], key.as_bytes(), b"nonce and ciphertext"].concat()
}
