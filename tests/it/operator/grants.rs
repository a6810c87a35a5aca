//! `regrant grants list` and `show`.

use std::collections::BTreeSet;

use regrant::store::Deadlines;
use regrant::store::DirectToken;
use regrant::store::RevocationReason;
use regrant::store::Store as _;
use serde_json::Value;
use serde_json::json;

use super::DAY;
use super::Desk;
use super::credential;
use super::grant;
use super::now;
use super::stderr;
use crate::support::HOUR;

#[tokio::test]
async fn grants_are_listed_by_subject_client_and_provider_as_a_table_and_as_json() {
    let desk = Desk::new().await;
    let ada = desk.grant("ada", Some("agent"), "linear").await;
    let bob = desk.grant("bob", Some("agent"), "github").await;
    let any = desk.grant("bob", None, "linear").await;
    let old = grant("ada", None, &[&credential("ada", "slack")]);
    let old = regrant::store::Grant {
        created_at: now() - 100 * DAY,
        last_used_at: now() - 31 * DAY,
        ..old
    };
    desk.store.insert_grant(old.clone()).await.unwrap();
    desk.store
        .revoke_grant(any.id, now(), RevocationReason::Reuse)
        .await
        .unwrap();

    for (filter, want) in [
        (&[][..], vec![&ada, &bob, &any, &old]),
        (&["--subject", "ada"], vec![&ada, &old]),
        (&["--client-id", "agent"], vec![&ada, &bob]),
        (&["--provider", "linear"], vec![&ada, &any]),
        (
            &["--provider", "linear", "--client-id", "agent"],
            vec![&ada],
        ),
    ] {
        let arguments = [&["grants", "list"], filter].concat();
        let want: BTreeSet<_> = want.iter().map(|grant| grant.id.to_string()).collect();
        let table = desk.text(&arguments).await;
        let mut lines = table.lines();
        let header: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            header[..5],
            ["GRANT", "STATE", "SUBJECT", "CLIENT", "PROVIDERS"]
        );
        let found = lines.map(|line| line.split_whitespace().next().unwrap().to_owned());
        assert_eq!(found.collect::<BTreeSet<_>>(), want, "{filter:?}");
        assert!(!table.contains('\u{1b}'), "no colours where no terminal is");

        let listed = desk.json(&[&arguments[..], &["--json"]].concat()).await;
        let found = listed["grants"].as_array().unwrap().iter();
        let found = found.map(|grant| grant["id"].as_str().unwrap().to_owned());
        assert_eq!(found.collect::<BTreeSet<_>>(), want, "{filter:?}");
        assert_eq!(listed["next"], Value::Null);
    }

    let table = desk.text(&["grants", "list"]).await;
    for (grant, state) in [(&ada, "live"), (&any, "revoked"), (&old, "expired")] {
        let id = grant.id.to_string();
        let line = table.lines().find(|line| line.starts_with(&id)).unwrap();
        let cells: Vec<_> = line.split_whitespace().collect();
        assert_eq!(cells[1..3], [state, grant.subject.as_str()], "{line}");
    }
}

#[tokio::test]
async fn a_list_says_how_to_go_on_until_all_has_been_seen() {
    let desk = Desk::new().await;
    let mut want = BTreeSet::new();
    for _ in 0..5 {
        want.insert(desk.grant("ada", None, "linear").await.id.to_string());
    }

    let (mut found, mut after) = (Vec::new(), None::<String>);
    for pages in 1.. {
        let mut arguments = vec!["grants", "list", "--limit", "2"];
        arguments.extend(after.iter().flat_map(|id| ["--after", id]));
        let listed = desk.json(&[&arguments[..], &["--json"]].concat()).await;
        let text = desk.text(&arguments).await;
        let last = text.lines().last().unwrap().to_owned();
        let grants = listed["grants"].as_array().unwrap().iter();
        found.extend(grants.map(|grant| grant["id"].as_str().unwrap().to_owned()));
        if let Some(next) = listed["next"].as_str() {
            assert_eq!(last, format!("there may be more: --after {next}"));
            after = Some(next.to_owned());
        } else {
            assert!(!last.contains("--after"), "{last}");
            assert_eq!(pages, 3);
            break;
        }
    }
    assert_eq!(found, want.into_iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_grant_is_shown_with_its_credentials_and_deadlines() {
    let desk = Desk::new().await;
    let (linear, github) = (credential("ada", "linear"), credential("ada", "github"));
    let mut ended = linear.clone();
    ended.terminal = Some("invalid_grant".to_owned());
    let mut shown = grant("ada", Some("agent"), &[&linear, &github]);
    shown.direct = Some(DirectToken {
        hash: [9; 32],
        used_at: now(),
    });
    desk.store.insert_credential(ended).await.unwrap();
    desk.store.insert_grant(shown.clone()).await.unwrap();
    let id = shown.id.to_string();

    // What a deployment was never told is reckoned with the defaults.
    let found = desk.json(&["grants", "show", &id, "--json"]).await;
    assert_eq!(found["lifetimes"]["by"], "default");
    assert_eq!(found["lifetimes"]["refresh_idle"], 30 * 86_400);
    assert_eq!(
        desk.store.deadlines().await.unwrap(),
        None,
        "nothing is written"
    );

    let deadlines = Deadlines {
        refresh_idle: 10 * DAY,
        refresh_absolute: 20 * DAY,
        direct: 5 * DAY,
        code: HOUR,
    };
    let kept = desk.store.upkeep().raise_deadlines(deadlines).await;
    assert_eq!(kept.unwrap(), deadlines);
    let found = desk.json(&["grants", "show", &id, "--json"]).await;
    assert_eq!(found["lifetimes"]["by"], "deployment");
    assert_eq!(
        found["idle_deadline"],
        rfc3339(shown.last_used_at + 10 * DAY)
    );
    assert_eq!(
        found["absolute_deadline"],
        rfc3339(shown.created_at + 20 * DAY)
    );
    assert_eq!(
        found["direct"]["expires_at"],
        rfc3339(now_of(&shown) + 5 * DAY)
    );
    assert_eq!(found["state"], "live");
    assert_eq!(
        (&found["generation"], &found["key_id"]),
        (&json!(3), &json!("k1"))
    );
    assert_eq!(found["credentials"][0]["state"], "terminal");
    assert_eq!(found["credentials"][0]["reason"], "invalid_grant");
    assert_eq!(found["credentials"][1]["state"], "missing");
    for secret in ["salt", "hash", "sealed"] {
        assert!(!found.to_string().contains(secret), "{found}");
    }

    let arguments = [
        "grants",
        "show",
        &id,
        "--refresh-idle-ttl",
        "3600",
        "--json",
    ];
    let found = desk.json(&arguments).await;
    assert_eq!(found["lifetimes"]["by"], "settings");
    assert_eq!(found["idle_deadline"], rfc3339(shown.last_used_at + HOUR));

    let output = desk.run(&["grants", "show", &id]).await;
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for want in [
        format!("grant         {id}"),
        "client        agent".to_owned(),
        format!("idle until    {}", rfc3339(shown.last_used_at + 10 * DAY)),
        "the user must log in again".to_owned(),
    ] {
        assert!(text.contains(&want), "{want}: {text}");
    }
    let missing = github.id.to_string();
    assert!(stderr(&output).contains(&missing), "{output:?}");
}

#[tokio::test]
async fn what_is_not_there_is_1_and_what_was_asked_the_wrong_way_is_2() {
    let desk = Desk::new().await;
    let nobody = "0123456789abcdef0123456789abcdef";
    for (arguments, status, want) in [
        (&["grants", "list"][..], 1, "no grant matches"),
        (&["grants", "show", nobody], 1, nobody),
        (&["grants", "revoke", nobody], 1, nobody),
        (
            &["grants", "revoke", "--subject", "ada", "--yes"],
            1,
            "no live grant matches",
        ),
        (
            &["grants", "revoke", "--subject", "ada"],
            1,
            "no live grant",
        ),
        (&["credentials", "list"], 1, "no credential matches"),
        (&["grants", "revoke"], 2, "--subject"),
        (&["grants", "revoke", "--yes"], 2, "--subject"),
        (
            &["grants", "revoke", nobody, "--subject", "ada"],
            2,
            "cannot be used with",
        ),
        (&["grants", "show", "7"], 2, "32"),
        (&["grants", "list", "--limit", "0"], 2, "--limit"),
        (&["credentials", "list", "--state", "odd"], 2, "backing-off"),
        (&["migrate", "--check", "--citus"], 2, "cannot be used with"),
        (&["completions", "tcl"], 2, "bash"),
    ] {
        let output = desk.run(arguments).await;
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {output:?}"
        );
        assert!(stderr(&output).contains(want), "{arguments:?}: {output:?}");
    }
    let empty = desk.run(&["grants", "list", "--json"]).await;
    let empty: Value = serde_json::from_slice(&empty.stdout).unwrap();
    assert_eq!(empty, json!({ "grants": [], "next": null }));
}

fn now_of(grant: &regrant::store::Grant) -> std::time::SystemTime {
    grant.direct.as_ref().unwrap().used_at
}

fn rfc3339(time: std::time::SystemTime) -> String {
    let format = time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::from(time).format(&format).unwrap()
}
