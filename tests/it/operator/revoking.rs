//! `regrant grants revoke`.

use regrant::GrantId;
use regrant::store::RevocationReason;
use regrant::store::Store as _;

use super::Desk;
use super::stderr;

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
