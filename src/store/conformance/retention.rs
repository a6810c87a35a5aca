//! How long what is issued lives, and what is swept when it is over.

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
use crate::store::Deadlines;
use crate::store::DirectToken;
use crate::store::Grant;
use crate::store::Outlived;
use crate::store::RevocationReason;
use crate::store::Settlement;
use crate::store::Store;

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
