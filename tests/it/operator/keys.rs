//! `regrant keys status` and `rotate`.

use regrant::Regrant;
use regrant::seal::Keyring;
use regrant::store::KeyRecord;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use serde_json::Value;

use super::Desk;
use super::credential;
use super::stderr;
use crate::support::KEYS;
use crate::support::process::json;
use crate::support::process::regrant;

const NEW: &str = "k2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

#[tokio::test]
async fn keys_are_changed_by_the_commands_alone() {
    let desk = Desk::new().await;
    let both = format!("{NEW},{KEYS}");
    let with = async |keys: &str, arguments: &[&str]| {
        let variables = [
            ("DATABASE_URL", desk.database.url.as_str()),
            ("REGRANT_KEYS", keys),
        ];
        regrant(arguments, &variables, "").await
    };
    let status = async |keys: &str| {
        let output = with(keys, &["keys", "status", "--json"]).await;
        let status = json(&output)["keys"].as_array().unwrap().clone();
        let key = |id: &str| status.iter().find(|key| key["id"] == id).cloned();
        (key("k1").unwrap(), key("k2"))
    };
    let issue = [
        "issue",
        "--provider",
        "p",
        "--access-token",
        "canary",
        "--subject",
    ];
    for subject in ["ada", "bob"] {
        let issued = with(KEYS, &[&issue[..], &[subject]].concat()).await;
        assert!(issued.status.success(), "{issued:?}");
    }

    let (old, new) = status(KEYS).await;
    assert_eq!(
        (&old["seals"], &old["credentials"]),
        (&true.into(), &2.into())
    );
    assert_eq!(new, None);
    let (old, new) = status(&both).await;
    assert_eq!(old["next_step"], "re-seal 2 rows");
    assert_eq!(old["removable"], false);
    assert_eq!(new.unwrap()["next_step"], "sealing");

    let output = with(
        &both,
        &[
            "keys",
            "rotate",
            "--rows-per-second",
            "1000",
            "--batch",
            "1",
        ],
    )
    .await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"re-sealed: 2, left under other keys: 0\n");
    assert!(
        stderr(&output).starts_with("regrant: re-sealed 0, 2 to go\n"),
        "{output:?}"
    );
    assert!(
        !stderr(&output).contains('\u{1b}'),
        "no bar where no terminal is"
    );
    let listed = desk.json(&["credentials", "list", "--json"]).await;
    for row in listed["credentials"].as_array().unwrap() {
        assert_eq!(row["key_id"], "k2");
    }
    let again = with(&both, &["keys", "rotate", "--json"]).await;
    assert_eq!(json(&again)["resealed"], 0);

    // Access tokens of the old one may live; it is not removed before.
    let (old, _new) = status(&both).await;
    assert_eq!(
        (&old["credentials"], &old["removable"]),
        (&0.into(), &false.into())
    );
    let text = with(&both, &["keys", "status"]).await;
    let text = String::from_utf8(text.stdout).unwrap();
    let header: Vec<_> = text.lines().next().unwrap().split("  ").collect();
    assert_eq!(header[0], "KEY");
    let line = text.lines().find(|line| line.starts_with("k1")).unwrap();
    assert!(line.contains("wait"), "{text}");
    let refused = with(NEW, &["keys", "status"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("k1"), "{refused:?}");
}

#[tokio::test]
async fn rows_that_do_not_open_are_counted_and_fail_a_rotation() {
    let desk = Desk::new().await;
    let row = credential("ada", "linear");
    desk.store.insert_credential(row).await.unwrap();

    let output = desk.run(&["keys", "rotate", "--json"]).await;

    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&said["resealed"], &said["remaining"]),
        (&0.into(), &1.into())
    );
    assert!(stderr(&output).contains("1 rows do not open"), "{output:?}");
}

/// It may know fewer keys than the gateways, and other lifetimes.
#[tokio::test]
async fn a_command_retires_no_key_and_a_gateway_does() {
    let store = MemoryStore::new();
    let unused = KeyRecord {
        id: "k0".to_owned(),
        check_value: [0; 32],
        registered_at: None,
        retired_at: None,
    };
    store.register_key(unused).await.unwrap();
    let builder = || {
        let keyring = Keyring::parse(KEYS).unwrap();
        Regrant::builder("http://localhost", store.clone(), keyring)
    };
    let is_retired = async || {
        let keys = store.keys().await.unwrap();
        let key = keys.iter().find(|key| key.id == "k0").unwrap();
        key.retired_at.is_some()
    };

    builder().operates(None).start().await.unwrap();
    assert!(!is_retired().await);
    builder().start().await.unwrap();
    assert!(is_retired().await);
}
