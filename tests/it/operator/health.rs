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

#[tokio::test]
async fn a_role_that_lacks_a_privilege_is_told_from_a_database_that_does_not_answer() {
    let desk = Desk::new().await;
    let url = desk.database.direct.as_str();
    let role = format!("r_{}", regrant::GrantId::random().unwrap());
    let client = desk.database.client().await;
    let sql = format!("CREATE ROLE {role} LOGIN");
    client.batch_execute(&sql).await.unwrap();
    let theirs = url.replacen("regrant@", &format!("{role}@"), 1);
    assert!(theirs.contains(&role));
    let variables = [("DATABASE_URL", theirs.as_str()), ("REGRANT_KEYS", KEYS)];

    let mut said = Vec::new();
    for sql in [
        "SELECT".to_owned(),
        format!("GRANT SELECT ON refinery_schema_history TO {role}"),
    ] {
        client.batch_execute(&sql).await.unwrap();
        let output = regrant(&["health", "--json"], &variables, "").await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        said.push(found["database"].as_str().unwrap().to_owned());
    }
    let listed = regrant(&["grants", "list"], &variables, "").await;
    said.push(String::from_utf8(listed.stderr).unwrap());
    let migrated = regrant(&["migrate", "--check"], &variables, "").await;
    assert!(migrated.status.success(), "{migrated:?}");
    client
        .batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await
        .unwrap();

    for text in &said {
        for want in ["lacks a privilege", "GRANT SELECT", "permission denied for"] {
            assert!(text.contains(want), "{said:?}");
        }
        for not in ["does not answer", "cannot be read", "could not be migrated"] {
            assert!(!text.contains(not), "{said:?}");
        }
    }
}

#[tokio::test]
async fn a_listener_that_cannot_connect_says_why_and_no_password() {
    let desk = Desk::new().await;
    let url = desk.database.url.as_str();
    let (_server, name) = url.rsplit_once('/').unwrap();
    let listen_at = (desk.database.direct)
        .replacen(name, "there_is_none", 1)
        .replacen("regrant@", "regrant:canary@", 1);
    let variables = [
        ("DATABASE_URL", url),
        ("DATABASE_LISTEN_URL", &*listen_at),
        ("REGRANT_KEYS", KEYS),
    ];
    let output = regrant(&["health", "--json"], &variables, "").await;
    let said = String::from_utf8([output.stdout.clone(), output.stderr].concat()).unwrap();
    assert!(!said.contains("canary"), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let listener = found["listener"].as_str().unwrap();
    for want in ["hears nothing", "DATABASE_LISTEN_URL", "there_is_none"] {
        assert!(listener.contains(want), "{listener}");
    }
    assert!(!listener.contains("pooler"), "{listener}");
    assert_eq!(found["status"], "ready", "{found}");
}
