//! `regrant sweep`.

use std::time::Duration;

use regrant::Regrant;
use regrant::seal::Keyring;
use regrant::settings::Lifetimes;
use regrant::store::Code;
use regrant::store::Credential;
use regrant::store::Grant;
use regrant::store::Store as _;

use super::DAY;
use super::Desk;
use super::credential;
use super::grant;
use super::now;
use super::stderr;
use crate::support::KEYS;

#[tokio::test]
async fn a_sweep_deletes_what_is_over_and_says_how_much() {
    let desk = Desk::new().await;
    gateway(&desk, DAY).await;
    let long_ago = now() - 800 * DAY;
    let living = desk.grant("ada", None, "linear").await;
    let ended = Credential {
        terminal: Some("invalid_grant".to_owned()),
        refreshed_at: long_ago,
        ..credential("bob", "linear")
    };
    let over = Grant {
        created_at: long_ago,
        last_used_at: long_ago,
        access_expires_at: long_ago,
        ..grant("bob", None, &[&ended])
    };
    let code = Code {
        id: regrant::GrantId::random().unwrap(),
        hash: [1; 32],
        challenge: [2; 32],
        client_id: "agent".to_owned(),
        confidential: false,
        redirect_uri: None,
        subject: "bob".to_owned(),
        scope: None,
        resource: None,
        credentials: over.credentials.clone(),
        expires_at: long_ago,
    };
    desk.store.insert_credential(ended.clone()).await.unwrap();
    desk.store.insert_grant(over.clone()).await.unwrap();
    desk.store.insert_code(code).await.unwrap();

    let text = desk.text(&["sweep", "--tombstones", "3153600000"]).await;
    assert_eq!(text, "deleted: 0 grants, 0 codes, 0 credentials\n");
    let said = desk.json(&["sweep", "--json"]).await;
    for table in ["grants", "codes", "credentials"] {
        assert_eq!(said[table], 1, "{table}: {said}");
    }
    assert!(desk.store.grant(over.id).await.unwrap().is_none());
    assert!(desk.store.grant(living.id).await.unwrap().is_some());
    let text = desk.text(&["sweep"]).await;
    assert_eq!(text, "deleted: 0 grants, 0 codes, 0 credentials\n");
}

/// A login outlives what a command knows of lifetimes: before a gateway has told
/// its own, right after an upgrade, and afterwards.
#[tokio::test]
async fn a_command_with_other_lifetimes_ends_no_login_whichever_gateways_have_started() {
    let desk = Desk::new().await;
    let living = Grant {
        created_at: now() - 300 * DAY,
        last_used_at: now() - 200 * DAY,
        access_expires_at: now() - 200 * DAY,
        ..desk.grant("ada", None, "linear").await
    };
    let living = Grant {
        id: regrant::GrantId::random().unwrap(),
        ..living
    };
    desk.store.insert_grant(living.clone()).await.unwrap();

    desk.json(&["keys", "status", "--json"]).await;
    let output = desk.run(&["sweep"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("no gateway"), "{output:?}");
    assert!(desk.store.grant(living.id).await.unwrap().is_some());

    gateway(&desk, 365 * DAY).await;
    let text = desk.text(&["sweep"]).await;
    assert_eq!(text, "deleted: 0 grants, 0 codes, 0 credentials\n");
    assert!(desk.store.grant(living.id).await.unwrap().is_some());
}

/// One has started whose grants live for as long.
async fn gateway(desk: &Desk, lifetime: Duration) {
    let lifetimes = Lifetimes::default()
        .refresh_idle(lifetime)
        .refresh_absolute(lifetime);
    let keyring = Keyring::parse(KEYS).unwrap();
    Regrant::builder("https://gateway.example", desk.store.clone(), keyring)
        .lifetimes(lifetimes)
        .start()
        .await
        .unwrap();
}

#[tokio::test]
async fn settings_that_no_gateway_takes_are_asking_the_wrong_way() {
    let desk = Desk::new().await;
    gateway(&desk, DAY).await;
    for arguments in [
        &["sweep", "--tombstones", "0"][..],
        &["sweep", "--refresh-idle-ttl", "0"],
        &["health", "--access-token-ttl", "0"],
    ] {
        let output = desk.run(arguments).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains("must"), "{output:?}");
    }
}
