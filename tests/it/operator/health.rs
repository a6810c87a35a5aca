//! `regrant health`.

use serde_json::Value;

use super::Desk;
use super::on;
use crate::support::KEYS;
use crate::support::database::Database;
use crate::support::process::regrant;

#[tokio::test]
async fn a_deployment_is_ready_when_everything_is_there() {
    let desk = Desk::new().await;
    let found = desk.json(&["health", "--json"]).await;
    assert_eq!(found["status"], "ready");
    assert_eq!(found["database"], "answers");
    assert_eq!(found["schema"], "up to date");
    assert_eq!(found["keys"], "all that are in use are here");
    assert_eq!(found["listener"], "hears");

    let text = desk.text(&["health"]).await;
    assert_eq!(text.lines().next(), Some("status    ready"));
    assert_eq!(text.lines().count(), 5, "{text}");
}

#[tokio::test]
async fn what_is_missing_is_named_and_fails() {
    let empty = Database::create().await;
    let desk = Desk::new().await;
    let issue = ["issue", "--provider", "p", "--access-token", "canary"];
    assert!(desk.run(&issue).await.status.success());
    let other = "k9:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let nowhere = "postgres://regrant@127.0.0.1:1/regrant";
    let url = desk.database.url.as_str();

    for (url, keys, part, want) in [
        (nowhere, KEYS, "database", "does not answer"),
        (&*empty.url, KEYS, "schema", "run `regrant migrate`"),
        (url, other, "keys", "k1"),
    ] {
        let variables = [("DATABASE_URL", url), ("REGRANT_KEYS", keys)];
        let output = regrant(&["health", "--json"], &variables, "").await;
        assert_eq!(output.status.code(), Some(1), "{part}: {output:?}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["status"], "down", "{found}");
        let said = found[part].as_str().unwrap();
        assert!(said.contains(want), "{part}: {said}");
        assert_eq!(found["listener"], Value::Null);
    }
    let asked = regrant(&["health"], &[("DATABASE_URL", url)], "").await;
    assert_eq!(asked.status.code(), Some(2), "{asked:?}");

    let client = desk.database.client().await;
    let sql = "INSERT INTO refinery_schema_history
         VALUES (99, 'what_is_to_come', '2026-11-22T12:00:00Z', '1')";
    client.batch_execute(sql).await.unwrap();
    let output = on(&desk.database, &["health"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("this version does not know"), "{text}");
}
