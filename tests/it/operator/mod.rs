//! The operator command, as a process on a database of its own.

mod citus;
mod credentials;
mod grants;
mod health;
mod help;
mod hot_path;
mod keys;
mod migrations;
mod revoking;
mod silence;
mod sweeping;
mod upgrade;

use std::process::Output;
use std::time::Duration;
use std::time::SystemTime;

use regrant::CredentialId;
use regrant::GrantId;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::store::Credential;
use regrant::store::Grant;
use regrant::store::HeldCredential;
use regrant::store::Store as _;
use regrant::store::postgres::PostgresStore;
use serde_json::Value;

use crate::support::HOUR;
use crate::support::KEYS;
use crate::support::database::Database;
use crate::support::process::regrant;

/// Where an operator sits.
struct Desk {
    database: Database,
    store: PostgresStore,
}

impl Desk {
    async fn new() -> Self {
        let database = Database::create().await;
        let store = database.store().await;
        Self { database, store }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        on(&self.database, arguments).await
    }

    /// What a command that succeeded printed.
    async fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(arguments).await).unwrap()
    }

    /// A grant with a credential of its own.
    async fn grant(&self, subject: &str, client: Option<&str>, provider: &str) -> Grant {
        let credential = credential(subject, provider);
        let grant = grant(subject, client, &[&credential]);
        self.store.insert_credential(credential).await.unwrap();
        self.store.insert_grant(grant.clone()).await.unwrap();
        grant
    }
}

async fn on(database: &Database, arguments: &[&str]) -> Output {
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("REGRANT_KEYS", KEYS),
    ];
    regrant(arguments, &variables, "").await
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn grant(subject: &str, client: Option<&str>, credentials: &[&Credential]) -> Grant {
    let held = |credential: &&Credential| HeldCredential {
        provider: credential.provider.clone(),
        id: credential.id,
    };
    Grant {
        id: GrantId::random().unwrap(),
        credentials: credentials.iter().map(held).collect(),
        subject: subject.to_owned(),
        client_id: client.map(str::to_owned),
        confidential: false,
        scope: Some("read".to_owned()),
        resource: None,
        salt: [1; 32],
        key_id: "k1".to_owned(),
        generation: 3,
        refresh_hash: [2; 32],
        previous_hash: None,
        superseded_hash: None,
        direct: None,
        rotated_at: None,
        rotations: Vec::new(),
        access_expires_at: now() + HOUR,
        replays: 0,
        acknowledged: true,
        created_at: now() - 2 * DAY,
        last_used_at: now() - HOUR,
        revoked_access: Vec::new(),
        revoked: None,
        upstream_due: None,
    }
}

/// One that is fresh.
fn credential(subject: &str, provider: &str) -> Credential {
    Credential {
        id: CredentialId::random().unwrap(),
        provider: provider.to_owned(),
        subject: subject.to_owned(),
        generation: 7,
        sealed: b"\x01\x052026aciphertext".to_vec(),
        expires_at: Some(now() + HOUR),
        refreshed_at: now() - HOUR,
        not_before: None,
        forced_at: None,
        fence: 0,
        unsettled: 0,
        failures: 0,
        terminal: None,
        linked: false,
    }
}

/// In whole seconds.
fn now() -> SystemTime {
    let since = SystemClock.now().duration_since(SystemTime::UNIX_EPOCH);
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.unwrap().as_secs())
}

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn the_operator_command_makes_keys_and_explains_itself() {
    let output = regrant(&["keys", "generate", "--id", "2026b"], &[], "").await;
    let key = String::from_utf8(output.stdout).unwrap();
    let keyring = regrant::seal::Keyring::parse(key.trim()).unwrap();
    assert_eq!(keyring.key_ids().collect::<Vec<_>>(), ["2026b"]);
    let other = regrant(&["keys", "generate", "--id", "2026b"], &[], "").await;
    assert_ne!(other.stdout, key.as_bytes());

    let database = Database::create().await;
    let url = database.url.as_str();
    let issue = ["issue", "--provider", "p", "--access-token", "a"];
    for (arguments, variables, want) in [
        (&issue[..], vec![], "DATABASE_URL"),
        (&issue, vec![("DATABASE_URL", url)], "REGRANT_KEYS"),
        (
            &issue,
            vec![("DATABASE_URL", url), ("REGRANT_KEYS", "k")],
            "REGRANT_KEYS",
        ),
        (
            &issue,
            vec![("DATABASE_URL", url), ("REGRANT_KEYS", KEYS)],
            "run the migrations",
        ),
        (&["revoke", "--grant", "7"], vec![], "32"),
        (
            &["migrate"],
            vec![("DATABASE_URL", "nonsense")],
            "DATABASE_URL",
        ),
        (&["issue", "--provider", "p"], vec![], "--access-token"),
    ] {
        let output = regrant(arguments, &variables, "").await;
        assert!(!output.status.success(), "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(want), "{arguments:?}: {stderr}");
    }
}

#[tokio::test]
async fn what_is_printed_once_and_read_by_nobody_is_a_failure() {
    let desk = Desk::new().await;
    let issue = ["issue", "--provider", "p", "--access-token", "canary"];
    for (arguments, want) in [
        (&issue[..], "revoke it"),
        (&["keys", "generate"], "nobody has the key"),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_regrant"))
            .args(arguments)
            .env("DATABASE_URL", &desk.database.url)
            .env("REGRANT_KEYS", KEYS)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(want), "{said}");
        assert!(!said.contains("canary"), "{said}");
    }
    let listed = desk.json(&["grants", "list", "--json"]).await;
    let id = listed["grants"][0]["id"].as_str().unwrap();
    assert_eq!(id.len(), 32, "the grant is there");
}
