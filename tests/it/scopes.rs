//! Scopes and resources of single tokens, and what tokens look like.

use std::time::Duration;

use http::StatusCode;
use regrant::Regrant;
use regrant::seal::Keyring;
use regrant::settings::Lifetimes;
use regrant::settings::TokenPrefixes;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;

use crate::support::Answer;
use crate::support::KEYS;
use crate::support::Lab;
use crate::support::ask;
use crate::support::form;
use crate::support::issued;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn a_narrowed_access_token_can_do_less_and_the_grant_as_much_as_before() {
    let (lab, regrant, issued) = issued().await;
    let demanding = |scope: &str| {
        let layer = regrant.layer("linear").unwrap().required_scope(scope);
        layer.unwrap().layer(lab.upstream())
    };
    let (reads, writes) = (demanding("read"), demanding("write"));

    let narrowed = narrow(&regrant, issued.refresh_token.expose(), "read").await;

    assert_eq!(narrowed.text("scope"), "read");
    let access = narrowed.text("access_token");
    // Twice: as it was read, and as it is remembered.
    for _ in 0..2 {
        assert_eq!(send(&reads, post(&access, "")).await.status, 200);
        let refused = send(&writes, post(&access, "")).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        let challenge = refused.header("www-authenticate");
        assert!(challenge.contains(r#"error="insufficient_scope""#));
        assert!(challenge.contains(r#"scope="write""#), "{challenge}");
    }
    // The tokens beside it keep their own scope.
    let whole = issued.access_token.expose();
    assert_eq!(send(&writes, post(whole, "")).await.status, 200);
    assert_eq!(send(&writes, post(&access, "")).await.status, 403);

    let next = refresh(&regrant, &narrowed.text("refresh_token")).await;
    assert_eq!(next.text("scope"), "read write");
    let access = next.text("access_token");
    assert_eq!(send(&writes, post(&access, "")).await.status, 200);
}

#[tokio::test]
async fn asking_for_all_that_was_granted_is_asking_for_nothing_special() {
    let (_lab, regrant, issued) = issued().await;
    let token = issued.refresh_token.expose();

    let plain = refresh(&regrant, token).await;
    let explicit = narrow(&regrant, token, "write read").await;
    assert_eq!(explicit.body, plain.body);

    // A narrower replay has another access token, and the same successor.
    let narrowed = narrow(&regrant, token, "write").await;
    assert_ne!(narrowed.text("access_token"), plain.text("access_token"));
    assert_eq!(narrowed.text("refresh_token"), plain.text("refresh_token"));
}

#[tokio::test]
async fn a_replay_after_a_change_of_keys_gets_the_same_pair() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let before = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&before).await;
    let token = issued.refresh_token.expose();
    let first = refresh(&before, token).await;

    let both = format!("k2:{},{KEYS}", "AgIC".repeat(10) + "AgI=");
    let after = Regrant::builder(
        "https://gateway.example",
        store,
        Keyring::parse(&both).unwrap(),
    )
    .provider("linear", lab.oauth2())
    .with_clock(lab.clock.clone())
    .start()
    .await
    .unwrap();

    assert_eq!(refresh(&after, token).await.body, first.body);
    // And so does what is rotated from now on, whoever is asked.
    let second = refresh(&after, &first.text("refresh_token")).await;
    let replayed = refresh(&after, &first.text("refresh_token")).await;
    assert_eq!(replayed.body, second.body);
    let access = second.text("access_token");
    let answer = send(&lab.gateway(&after), post(&access, "")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

/// The key that tagged a token is known of the newest one only.
#[tokio::test]
async fn an_overtaken_token_gets_the_present_pair_while_keys_are_changed() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let lifetimes = Lifetimes::default().burst_grace(Duration::from_secs(10));
    let replica = async |keys: &str| {
        let keyring = Keyring::parse(keys).unwrap();
        Regrant::builder("https://gateway.example", store.clone(), keyring)
            .provider("linear", lab.oauth2())
            .with_clock(lab.clock.clone())
            .lifetimes(lifetimes)
            .start()
            .await
            .unwrap()
    };
    let second = format!("k2:{}", "AgIC".repeat(10) + "AgI=");
    let before = replica(&format!("{KEYS},{second}")).await;
    let after = replica(&format!("{second},{KEYS}")).await;
    let issued = lab.issue(&before).await;
    let mut latest = issued.refresh_token.expose().to_owned();

    for regrant in [&before, &after, &after, &before, &before] {
        let rotated = refresh(regrant, &latest).await;
        assert_eq!(rotated.status, StatusCode::OK, "{rotated:?}");
        latest = rotated.text("refresh_token");
        for regrant in [&before, &after] {
            let late = refresh(regrant, issued.refresh_token.expose()).await;
            assert_eq!(late.text("refresh_token"), latest, "{late:?}");
        }
    }
}

#[tokio::test]
async fn tokens_begin_with_the_gateways_own_prefixes() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let before = lab.builder(store.clone()).start().await.unwrap();
    let old = lab.issue(&before).await;
    let prefixes = TokenPrefixes::default()
        .access("acme_at_")
        .refresh("acme_rt_");
    let builder = lab.builder(store).token_prefixes(prefixes);
    let regrant = builder.start().await.unwrap();

    let new = refresh(&regrant, old.refresh_token.expose()).await;

    assert!(new.text("access_token").starts_with("acme_at_"));
    assert!(new.text("refresh_token").starts_with("acme_rt_"));
    let gateway = lab.gateway(&regrant);
    for access in [&*new.text("access_token"), old.access_token.expose()] {
        assert_eq!(send(&gateway, post(access, "")).await.status, 200);
    }
    let next = refresh(&regrant, &new.text("refresh_token")).await;
    assert_eq!(next.status, StatusCode::OK);

    let same = TokenPrefixes::default().access("rgrt_");
    let refused = lab.builder(MemoryStore::new()).token_prefixes(same);
    assert!(refused.start().await.is_err());
}

async fn narrow(regrant: &Regrant, refresh_token: &str, scope: &str) -> Answer {
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh_token),
        ("scope", scope),
    ];
    ask(regrant, form("/oauth/token", &pairs)).await
}
