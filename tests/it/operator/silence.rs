//! No command prints a secret, but for those that make one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use regrant::GrantId;
use regrant::store::Store as _;

use crate::secrecy::hex;
use crate::support::KEYS;
use crate::support::database::Database;
use crate::support::process::json;
use crate::support::process::regrant;
use crate::support::secrets::assert_absent;

#[tokio::test]
async fn no_command_prints_a_token_a_key_a_salt_a_hash_or_the_password_of_the_database() {
    let database = Database::create().await;
    let store = database.store().await;
    let password = "canary-password-of-the-database";
    let url = database
        .url
        .replacen("regrant@", &format!("regrant:{password}@"), 1);
    assert!(url.contains(password));
    let variables = [("DATABASE_URL", url.as_str()), ("REGRANT_KEYS", KEYS)];
    let (access, refresh) = (
        "canary-upstream-access-token-1234567890",
        "canary-upstream-refresh-token-1234567890",
    );
    let stdin = format!("{access}\n{refresh}\n");
    let issue = [
        "issue",
        "--provider",
        "linear",
        "--subject",
        "ada",
        "--access-token-file",
        "-",
        "--refresh-token-file",
        "-",
    ];
    let issued = json(&regrant(&issue, &variables, &stdin).await);
    let id = issued["grant_id"].as_str().unwrap();
    let grant_id: GrantId = id.parse().unwrap();
    let grant = store.grant(grant_id).await.unwrap().unwrap();
    let held = store.credential(grant.credentials[0].id).await.unwrap();

    let text = |name: &str| issued[name].as_str().unwrap().to_owned();
    let mut canaries = vec![
        access.to_owned(),
        refresh.to_owned(),
        text("access_token"),
        text("refresh_token"),
        password.to_owned(),
        KEYS.split_once(':').unwrap().1.to_owned(),
    ];
    for bytes in [&grant.salt[..], &grant.refresh_hash, &held.unwrap().sealed] {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        canaries.extend([
            digits.collect(),
            STANDARD.encode(bytes),
            URL_SAFE_NO_PAD.encode(bytes),
            format!("{bytes:?}").trim_matches(['[', ']']).to_owned(),
        ]);
    }
    canaries.extend([hex(access), hex(refresh)]);

    let broken = url.replacen(&database_name(&database), "there_is_none", 1);
    let commands = [
        &["migrate", "--check"][..],
        &["migrate"],
        &["migrate", "--citus"],
        &["grants", "list"],
        &["grants", "list", "--json"],
        &["grants", "show", id],
        &["grants", "show", id, "--json"],
        &["credentials", "list"],
        &["credentials", "list", "--json"],
        &["grants", "revoke", "--subject", "ada"],
        &["grants", "revoke", id],
        &["grants", "revoke", "--subject", "ada", "--yes"],
        &["revoke", "--grant", id],
        &["grants", "revoke", "--help"],
        &["keys", "status"],
        &["keys", "rotate"],
        &["keys", "rotate", "--json"],
        &["sweep"],
        &["health"],
        &["health", "--json"],
        &["completions", "bash"],
    ];
    let mut said = 0;
    for (variables, stage) in [
        (vec![variables[0], variables[1]], "as it is"),
        (
            vec![("DATABASE_URL", &*broken), variables[1]],
            "no database",
        ),
        (vec![("DATABASE_URL", password), variables[1]], "no URL"),
        (
            vec![variables[0], ("REGRANT_KEYS", "k2:AQEBAQEBAQEBAQEBAQEB")],
            "no key",
        ),
    ] {
        let (variables, mut runs) = (&variables, Vec::new());
        for arguments in &commands {
            runs.push(async move {
                let output = regrant(arguments, variables, "").await;
                let text = [output.stdout, output.stderr].concat();
                (arguments, String::from_utf8(text).unwrap())
            });
        }
        // At once: without a database each of them tries for a while.
        for (arguments, text) in join_all(runs).await {
            assert!(!text.is_empty(), "{stage}: {arguments:?}");
            said += text.len();
            assert_absent(&canaries, &text, &format!("{stage}: {arguments:?}"));
        }
    }
    assert!(said > 10_000, "{said}");
}

fn database_name(database: &Database) -> String {
    let (_server, name) = database.url.rsplit_once('/').unwrap();
    name.to_owned()
}
