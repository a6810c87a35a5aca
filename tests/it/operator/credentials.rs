//! `regrant credentials list`.

use regrant::store::Credential;
use regrant::store::DISCONNECTED;
use regrant::store::LOST_IN_FLIGHT;
use regrant::store::REVOKED;
use regrant::store::Store as _;
use serde_json::Value;
use serde_json::json;

use super::Desk;
use super::credential;
use super::now;
use crate::support::HOUR;

#[tokio::test]
async fn credentials_are_listed_by_their_state_with_what_to_do() {
    let desk = Desk::new().await;
    let rows = rows();
    for (_state, _why, row) in &rows {
        desk.store.insert_credential(row.clone()).await.unwrap();
    }

    let table = desk.text(&["credentials", "list"]).await;
    let header: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    let columns = [
        "CREDENTIAL",
        "STATE",
        "WHY",
        "PROVIDER",
        "SUBJECT",
        "EXPIRES",
        "REFRESHED",
        "GENERATION",
        "FAILURES",
        "UNSETTLED",
        "LINKED",
        "KEY",
    ];
    assert_eq!(header, columns);
    for (state, why, row) in &rows {
        let id = row.id.to_string();
        let line = table.lines().find(|line| line.starts_with(&id)).unwrap();
        let cells: Vec<_> = line.split_whitespace().collect();
        assert_eq!(cells[1..3], [*state, *why], "{line}");
        assert_eq!(cells.last(), Some(&"2026a"), "the key: {line}");
    }
    assert!(
        table.contains("lost_in_flight: a refresh was cut off"),
        "{table}"
    );

    for state in ["fresh", "expired", "backing-off", "terminal"] {
        let listed = desk
            .json(&["credentials", "list", "--state", state, "--json"])
            .await;
        let mut found = subjects(&listed);
        let wanted = rows.iter().filter(|(of, ..)| *of == state);
        let mut want: Vec<_> = wanted.map(|(.., row)| row.subject.clone()).collect();
        found.sort();
        want.sort();
        assert_eq!(found, want, "{state}");
    }
    let listed = desk
        .json(&["credentials", "list", "--subject", "backing-off", "--json"])
        .await;
    let found = &listed["credentials"][0];
    assert_eq!(found["failures"], 3);
    assert_eq!(found["generation"], 7);
    assert_eq!(found["key_id"], "2026a");
    assert_eq!(found["linked"], false);
    assert_eq!(found["reason"], Value::Null);

    // A state is looked for beyond the first page that has none of it.
    let listed = desk
        .json(&[
            "credentials",
            "list",
            "--state",
            "fresh",
            "--limit",
            "1",
            "--json",
        ])
        .await;
    assert_eq!(subjects(&listed).len(), 1);
    let after = listed["next"].as_str().unwrap().to_owned();
    let arguments = [
        "credentials",
        "list",
        "--state",
        "fresh",
        "--after",
        &after,
        "--json",
    ];
    assert_eq!(subjects(&desk.json(&arguments).await).len(), 2);
}

/// Their states, the first word of why, and the rows.
fn rows() -> [(&'static str, &'static str, Credential); 6] {
    let expired = Some(now() - HOUR);
    [
        ("fresh", "-", credential("fresh", "linear")),
        (
            "fresh",
            "-",
            Credential {
                expires_at: None,
                ..credential("unknown", "linear")
            },
        ),
        (
            "expired",
            "-",
            Credential {
                expires_at: expired,
                failures: 2,
                not_before: Some(now() - HOUR),
                ..credential("expired", "linear")
            },
        ),
        (
            "backing-off",
            "again",
            Credential {
                expires_at: expired,
                failures: 3,
                not_before: Some(now() + HOUR),
                ..credential("backing-off", "linear")
            },
        ),
        // A refresh that came to something may have a pause after it, too.
        (
            "fresh",
            "-",
            Credential {
                not_before: Some(now() + HOUR),
                ..credential("paused", "linear")
            },
        ),
        (
            "terminal",
            LOST_IN_FLIGHT,
            Credential {
                terminal: Some(LOST_IN_FLIGHT.to_owned()),
                unsettled: 1,
                not_before: Some(now() + HOUR),
                ..credential("terminal", "linear")
            },
        ),
    ]
}

#[tokio::test]
async fn every_reason_says_what_it_means() {
    let desk = Desk::new().await;
    for (reason, want) in [
        (LOST_IN_FLIGHT, "drain"),
        (REVOKED, "a new login revives it"),
        (DISCONNECTED, "linking it again"),
        ("invalid_grant", "the user must log in again"),
        ("unsupported", "offline access"),
        ("ended", "without an error code"),
        ("bad_refresh_token", "the provider ended it with this error"),
    ] {
        let row = Credential {
            terminal: Some(reason.to_owned()),
            ..credential(reason, "linear")
        };
        desk.store.insert_credential(row).await.unwrap();
        let listed = desk
            .json(&["credentials", "list", "--subject", reason, "--json"])
            .await;
        let found = &listed["credentials"][0];
        assert_eq!(found["reason"], json!(reason));
        let meaning = found["meaning"].as_str().unwrap();
        assert!(meaning.contains(want), "{reason}: {meaning}");
    }
}

#[tokio::test]
async fn what_others_wrote_forges_no_line_and_moves_no_cursor() {
    let desk = Desk::new().await;
    let evil = "ada\u{1b}[2J\r\nfresh\u{202e}";
    let row = Credential {
        terminal: Some(evil.to_owned()),
        ..credential(evil, "linear")
    };
    let grant = super::grant(evil, Some(evil), &[&row]);
    desk.store.insert_credential(row).await.unwrap();
    desk.store.insert_grant(grant.clone()).await.unwrap();

    let id = grant.id.to_string();
    for (arguments, lines) in [
        (&["credentials", "list"][..], 3),
        (&["grants", "list"], 2),
        (&["grants", "show", &id], 18),
    ] {
        let text = desk.text(arguments).await;
        assert_eq!(text.lines().count(), lines, "{text}");
        let moves = |letter: char| letter != '\n' && (letter.is_control() || letter == '\u{202e}');
        assert!(!text.contains(moves), "{text:?}");
        assert!(text.contains("ada\\u{1b}[2J\\r\\n"), "{text}");
    }
    // JSON has escapes of its own.
    let listed = desk.json(&["grants", "list", "--json"]).await;
    assert_eq!(listed["grants"][0]["subject"], json!(evil));
}

fn subjects(listed: &Value) -> Vec<String> {
    let listed = listed["credentials"].as_array().unwrap().iter();
    listed
        .map(|it| it["subject"].as_str().unwrap().to_owned())
        .collect()
}
