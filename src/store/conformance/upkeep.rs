//! Pages, keys, deadlines and sweeps.

use std::time::Duration;
use std::time::SystemTime;

use super::ME;
use super::MINUTE;
use super::credential;
use super::grant;
use super::held;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::store::Claim;
use crate::store::Code;
use crate::store::Credential;
use crate::store::CredentialFilter;
use crate::store::Deadlines;
use crate::store::DirectToken;
use crate::store::Grant;
use crate::store::GrantFilter;
use crate::store::KeyUsage;
use crate::store::Outlived;
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

pub(super) async fn deadlines_are_only_ever_raised(store: &dyn Store) {
    let of = |idle, absolute, direct, code| Deadlines {
        refresh_idle: Duration::from_secs(idle),
        refresh_absolute: Duration::from_secs(absolute),
        direct: Duration::from_secs(direct),
        code: Duration::from_secs(code),
    };
    let raise = async |deadlines| store.upkeep().raise_deadlines(deadlines).await.unwrap();
    let kept = raise(of(0, 0, 0, 0)).await;
    let more = |time: Duration, seconds| time.as_secs() + seconds;
    let (idle, absolute) = (more(kept.refresh_idle, 5), more(kept.refresh_absolute, 6));
    let (direct, code) = (more(kept.direct, 7), more(kept.code, 8));
    let raised = of(idle, absolute, direct, code);
    assert_eq!(raise(raised).await, raised);
    assert_eq!(
        raise(of(0, 1, 2, code + 1)).await,
        of(idle, absolute, direct, code + 1)
    );
    assert_eq!(raise(kept).await, of(idle, absolute, direct, code + 1));
}

pub(super) async fn what_has_outlived_everything_is_swept_and_nothing_else(store: &dyn Store) {
    // Long before anything else that is here.
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let later = then + MINUTE;
    let cases = old_grants(then, later);
    for (_, _, grant) in &cases {
        store.insert_grant(grant.clone()).await.unwrap();
    }

    let upkeep = store.upkeep();
    let outlived = Outlived {
        access: later,
        idle: later,
        absolute: then - MINUTE,
        code: later,
        direct: later,
    };
    for limit in [2, 1_000] {
        let (mut after, mut deleted) = (None, 0);
        loop {
            let swept = upkeep.sweep_grants(outlived, after, limit).await.unwrap();
            deleted += swept.deleted;
            after = swept.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(deleted, if limit == 2 { 4 } else { 0 });
    }
    for (name, is_swept, grant) in cases {
        let read = store.grant(grant.id).await.unwrap();
        assert_eq!(read.is_none(), is_swept, "{name}");
    }
}

pub(super) async fn codes_are_swept_when_they_have_expired(store: &dyn Store) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let later = then + MINUTE;
    let (expired, good) = (code(then), code(later));
    store.insert_code(expired.clone()).await.unwrap();
    store.insert_code(good.clone()).await.unwrap();

    let mut after = None;
    loop {
        let swept = store.upkeep().sweep_codes(later, after, 3).await.unwrap();
        after = swept.next;
        if after.is_none() {
            break;
        }
    }
    assert!(store.code(expired.id).await.unwrap().is_none());
    assert!(store.code(good.id).await.unwrap().is_some());
}

pub(super) async fn a_credential_goes_once_it_has_ended_and_nobody_names_it(store: &dyn Store) {
    let upkeep = store.upkeep();
    let credential = credential();
    let id = credential.id;
    store.insert_credential(credential.clone()).await.unwrap();
    let named = upkeep.referred_to(vec![id]).await.unwrap();
    assert!(!named.contains(&id));
    let delete = async |generation, fence| {
        let claim = Claim {
            id,
            generation,
            fence,
        };
        upkeep.delete_credentials(vec![claim]).await.unwrap() == 1
    };
    assert!(!delete(0, 0).await, "it lives");

    let claimed = store.claim(id, 0, ME, MINUTE).await.unwrap().unwrap();
    let claim = Claim {
        id,
        generation: 0,
        fence: claimed.fence,
    };
    let reason = "invalid_grant".to_owned();
    assert!(
        store
            .settle(claim, Settlement::Terminal { reason })
            .await
            .unwrap()
    );
    assert!(!delete(0, claim.fence + 1).await, "somebody was there");
    assert!(!delete(1, claim.fence).await);
    assert!(delete(0, claim.fence).await);
    assert!(store.credential(id).await.unwrap().is_none());

    let mut linked = credential;
    (linked.terminal, linked.linked) = (Some("invalid_grant".to_owned()), true);
    store.insert_credential(linked).await.unwrap();
    assert!(!delete(0, 0).await, "it is its user's");

    for position in 0..3 {
        let named = held("provider");
        if position == 2 {
            let mut code = code(grant().created_at);
            code.credentials.push(named.clone());
            store.insert_code(code).await.unwrap();
        } else {
            let mut grant = grant();
            grant.revoked = Some((grant.created_at, RevocationReason::Client));
            grant.credentials.insert(position, named.clone());
            store.insert_grant(grant).await.unwrap();
        }
        let found = upkeep.referred_to(vec![named.id]).await.unwrap();
        assert!(found.contains(&named.id), "{position}");
    }
}

pub(super) async fn credentials_are_asked_for_and_deleted_many_at_once(store: &dyn Store) {
    let upkeep = store.upkeep();
    let mut named = Vec::new();
    for position in 0..3 {
        let held = held("provider");
        named.push(held.id);
        if position == 2 {
            let mut code = code(grant().created_at);
            code.credentials.push(held);
            store.insert_code(code).await.unwrap();
        } else {
            let mut grant = grant();
            grant.credentials.insert(position, held);
            store.insert_grant(grant).await.unwrap();
        }
    }
    let nobodys = CredentialId::random().unwrap();
    let all = [&named[..], &[nobodys]].concat();
    let found = upkeep.referred_to(all).await.unwrap();
    assert!(named.iter().all(|id| found.contains(id)));
    assert!(!found.contains(&nobodys));
    assert!(upkeep.referred_to(Vec::new()).await.unwrap().is_empty());

    let row = |terminal: Option<&str>, linked| {
        let terminal = terminal.map(str::to_owned);
        Credential {
            terminal,
            linked,
            ..credential()
        }
    };
    let over = Some("invalid_grant");
    let rows = [
        ("first", true, row(over, false), (0, 0)),
        ("second", true, row(over, false), (0, 0)),
        ("somebody was there", false, row(over, false), (0, 1)),
        (
            "it is at another generation",
            false,
            row(over, false),
            (1, 0),
        ),
        ("it lives", false, row(None, false), (0, 0)),
        ("it is its user's", false, row(over, true), (0, 0)),
    ];
    let mut claims = Vec::new();
    for (_name, _goes, row, (generation, fence)) in &rows {
        store.insert_credential(row.clone()).await.unwrap();
        let (id, generation, fence) = (row.id, *generation, *fence);
        claims.push(Claim {
            id,
            generation,
            fence,
        });
    }
    assert_eq!(upkeep.delete_credentials(claims.clone()).await.unwrap(), 2);
    for (name, goes, row, _) in rows {
        let read = store.credential(row.id).await.unwrap();
        assert_eq!(read.is_none(), goes, "{name}");
    }
    assert_eq!(upkeep.delete_credentials(claims).await.unwrap(), 0);
    assert_eq!(upkeep.delete_credentials(Vec::new()).await.unwrap(), 0);
}

/// Grants of long ago, by what keeps them, and whether they are to go.
fn old_grants(then: SystemTime, later: SystemTime) -> Vec<(&'static str, bool, Grant)> {
    let old = || Grant {
        created_at: then,
        last_used_at: then,
        access_expires_at: then,
        ..grant()
    };
    let direct = |used_at| {
        Some(DirectToken {
            hash: [4; 32],
            used_at,
        })
    };
    vec![
        ("idle", true, old()),
        ("revoked", true, {
            let revoked = Some((then, RevocationReason::Client));
            Grant { revoked, ..old() }
        }),
        ("direct", true, {
            let direct = direct(then);
            Grant { direct, ..old() }
        }),
        ("used lately, yet over", true, {
            let last_used_at = later;
            Grant {
                last_used_at,
                created_at: then - 2 * MINUTE,
                ..old()
            }
        }),
        ("used lately", false, {
            let last_used_at = later;
            Grant {
                last_used_at,
                ..old()
            }
        }),
        ("with an access token", false, {
            let access_expires_at = later;
            Grant {
                access_expires_at,
                ..old()
            }
        }),
        ("new", false, {
            let created_at = later;
            Grant {
                created_at,
                ..old()
            }
        }),
        ("redeemed lately", false, {
            let direct = direct(later);
            Grant { direct, ..old() }
        }),
        ("not told to its provider", false, {
            let upstream_due = Some(then);
            Grant {
                upstream_due,
                ..old()
            }
        }),
    ]
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

fn code(expires_at: SystemTime) -> Code {
    Code {
        id: GrantId::random().unwrap(),
        hash: [1; 32],
        challenge: [2; 32],
        client_id: "client".to_owned(),
        confidential: false,
        redirect_uri: None,
        subject: "subject".to_owned(),
        scope: None,
        resource: None,
        credentials: vec![held("other")],
        expires_at,
    }
}
