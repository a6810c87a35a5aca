//! The operator command by itself.

use crate::support::KEYS;
use crate::support::database::Database;
use crate::support::process::regrant;

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
