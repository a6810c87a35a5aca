//! `regrant grants revoke`.

use std::time::Duration;

use regrant::GrantId;
use regrant::Regrant;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::seal::Keyring;
use regrant::store::RevocationReason;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;

use super::DAY;
use super::Desk;
use super::credential;
use super::grant;
use super::stderr;
use crate::support::KEYS;

#[tokio::test]
async fn grants_are_revoked_by_their_ids_and_what_had_ended_is_said() {
    let desk = Desk::new().await;
    let first = desk.grant("ada", None, "linear").await.id;
    let second = desk.grant("bob", None, "linear").await.id;
    let third = desk.grant("eve", None, "linear").await.id;

    let ids = [&*first.to_string(), &*second.to_string()];
    let text = desk.text(&["grants", "revoke", ids[0], ids[1]]).await;
    assert_eq!(text.lines().count(), 2, "{text}");
    for id in [first, second] {
        assert_eq!(reason(&desk, id).await, Some(RevocationReason::Operator));
        let row = desk.store.grant(id).await.unwrap().unwrap();
        assert!(row.upstream_due.is_some(), "a gateway tells the provider");
    }

    let id = third.to_string();
    let output = desk.run(&["grants", "revoke", ids[0], &id]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(ids[0]), "{output:?}");
    assert_eq!(reason(&desk, third).await, Some(RevocationReason::Operator));
}

#[tokio::test]
async fn a_filter_revokes_nothing_without_yes_and_all_that_matches_with_it() {
    let desk = Desk::new().await;
    let mut meant = Vec::new();
    for _ in 0..30 {
        meant.push(desk.grant("ada", Some("agent"), "linear").await.id);
    }
    let kept = [
        desk.grant("ada", Some("other"), "linear").await.id,
        desk.grant("bob", Some("agent"), "linear").await.id,
    ];
    let before = desk.grant("ada", Some("agent"), "linear").await.id;
    desk.store
        .revoke_grant(before, super::now(), RevocationReason::Client)
        .await
        .unwrap();

    let filter = [
        "grants",
        "revoke",
        "--subject",
        "ada",
        "--client-id",
        "agent",
    ];
    let output = desk.run(&filter).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        stderr(&output).contains("30 would be revoked"),
        "{output:?}"
    );
    let preview = String::from_utf8(output.stdout).unwrap();
    assert_eq!(preview.lines().count(), 1 + 20 + 1, "{preview}");
    assert!(preview.contains("and 10 more"), "{preview}");
    for id in &meant {
        assert_eq!(reason(&desk, *id).await, None);
    }

    let text = desk.text(&[&filter[..], &["--yes"]].concat()).await;
    assert_eq!(text, "revoked: 30\n");
    for id in meant {
        assert_eq!(reason(&desk, id).await, Some(RevocationReason::Operator));
    }
    for id in kept {
        assert_eq!(reason(&desk, id).await, None);
    }
    let kept = reason(&desk, before).await;
    assert_eq!(
        kept,
        Some(RevocationReason::Client),
        "the first reason stays"
    );
}

async fn reason(desk: &Desk, id: GrantId) -> Option<RevocationReason> {
    let row = desk.store.grant(id).await.unwrap().unwrap();
    row.revoked.map(|(_at, reason)| reason)
}

/// A command may run for hours, as `keys rotate` does, and knows no provider.
#[tokio::test(start_paused = true)]
async fn what_providers_are_still_to_hear_is_not_given_up_by_a_command() {
    let store = MemoryStore::new();
    let held = credential("ada", "linear");
    let (ended_at, due) = (SystemClock.now() - 2 * DAY, SystemClock.now() - DAY);
    let mut ended = grant("ada", None, &[&held]);
    ended.revoked = Some((ended_at, RevocationReason::Client));
    ended.upstream_due = Some(due);
    store.insert_credential(held).await.unwrap();
    store.insert_grant(ended.clone()).await.unwrap();

    let keyring = Keyring::parse(KEYS).unwrap();
    let command = Regrant::builder("http://localhost", store.clone(), keyring)
        .operates(None)
        .start()
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    drop(command);

    let row = store.grant(ended.id).await.unwrap().unwrap();
    assert_eq!(row.upstream_due, Some(due));
}
