//! What starts, and what is refused because others would fail.

use http::StatusCode;
use regrant::StartError;
use regrant::clock::Clock as _;
use regrant::key_rotation::Pace;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;

use super::MINUTE;
use super::builder;
use super::leave_k1;
use super::missing;
use super::replica;
use crate::support::KEYS;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn fm15_processes_that_would_disagree_do_not_start() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;

    let generated = regrant::seal::Keyring::generate().unwrap();
    let generated = regrant::Regrant::builder("https://gateway.example", store.clone(), generated);
    let refused = generated.start().await.unwrap_err();
    assert!(matches!(refused, StartError::Config(_)), "{refused}");
    assert!(store.keys().await.unwrap().is_empty());

    let first = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&first).await;
    let same_name = KEYS.replace("AQEB", "AwMD");
    let same_name = regrant::seal::Keyring::parse(&same_name).unwrap();
    let other = regrant::Regrant::builder("https://gateway.example", store.clone(), same_name);
    let refused = other.start().await.unwrap_err();
    assert!(matches!(&refused, StartError::KeyChanged { id } if id == "k1"));
    let other_name = builder(&lab, store.clone(), &["k2"]).start().await;
    assert_eq!(missing(&other_name.unwrap_err()), ("k1", 1, 1));

    // What one issued the other serves, and the other way round.
    let second = replica(&lab, database.store().await, &["k1"]).await;
    let access = post(issued.access_token.expose(), "");
    assert_eq!(send(&lab.gateway(&second), access).await.status, 200);
    let rotated = refresh(&second, issued.refresh_token.expose()).await;
    let access = post(&rotated.text("access_token"), "");
    assert_eq!(send(&lab.gateway(&first), access).await.status, 200);
    let again = refresh(&first, issued.refresh_token.expose()).await;
    assert_eq!(again.body, rotated.body);
}

#[tokio::test]
async fn a_start_without_a_key_in_use_is_refused_and_says_by_how_many_rows() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let old = replica(&lab, store.clone(), &["k1"]).await;
    for subject in ["ada", "bob", "eve"] {
        old.issue(lab.login_of(subject)).await.unwrap();
    }
    let start = async || builder(&lab, store.clone(), &["k2"]).start().await;

    let refused = start().await.unwrap_err();
    assert_eq!(missing(&refused), ("k1", 3, 3));
    let said = refused.to_string();
    assert!(
        said.contains("`k1`") && said.contains("3 credentials"),
        "{said}"
    );
    assert!(said.contains("3 grants") && said.contains("70 s"), "{said}");
    let keys = store.keys().await.unwrap();
    assert_eq!(keys.len(), 1, "it leaves nothing behind");

    // Nothing is sealed under it any more, but access tokens of it live.
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    let done = both.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    assert_eq!((done.looked_at, done.resealed, done.remaining), (3, 3, 0));
    assert_eq!(missing(&start().await.unwrap_err()), ("k1", 0, 3));
    lab.clock.advance(MINUTE);
    assert_eq!(missing(&start().await.unwrap_err()), ("k1", 0, 3), "leeway");

    lab.clock.advance(MINUTE);
    start().await.unwrap();
    let retired = store.keys().await.unwrap();
    let retired = retired.iter().find(|key| key.id == "k1").unwrap();
    assert_eq!(retired.retired_at, Some(lab.clock.now()));
    start().await.unwrap();
}

#[tokio::test]
async fn access_tokens_of_pairs_that_were_rotated_meanwhile_are_waited_for() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&old).await;
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    both.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    let rotated = refresh(&both, issued.refresh_token.expose()).await;
    assert_eq!(rotated.status, StatusCode::OK);
    let access = || post(issued.access_token.expose(), "");

    // No row names the old key any more, yet a token of it is good.
    assert_eq!(send(&lab.gateway(&both), access()).await.status, 200);
    let refused = builder(&lab, store.clone(), &["k2"]).start().await;
    assert_eq!(missing(&refused.unwrap_err()), ("k1", 0, 0));

    lab.clock.advance(2 * MINUTE);
    assert_eq!(send(&lab.gateway(&both), access()).await.status, 401);
    replica(&lab, store, &["k2"]).await;
}

#[tokio::test]
async fn a_key_that_a_straggler_uses_after_it_was_retired_is_missed_and_may_come_back() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let straggler = replica(&lab, store.clone(), &["k1"]).await;
    leave_k1(&lab, store.clone()).await;
    replica(&lab, store.clone(), &["k2"]).await;

    let issued = lab.issue(&straggler).await;
    let refused = builder(&lab, store.clone(), &["k2"]).start().await;
    assert_eq!(missing(&refused.unwrap_err()), ("k1", 1, 1));

    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    let keys = store.keys().await.unwrap();
    assert!(keys.iter().all(|key| key.retired_at.is_none()), "{keys:?}");
    let access = post(issued.access_token.expose(), "");
    assert_eq!(send(&lab.gateway(&both), access).await.status, 200);
    leave_k1(&lab, store.clone()).await;
    let new = replica(&lab, store, &["k2"]).await;
    let rotated = refresh(&new, issued.refresh_token.expose()).await;
    assert_eq!(rotated.status, StatusCode::OK);
}

#[tokio::test]
async fn a_retired_key_does_not_come_back_as_another_one() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    replica(&lab, store.clone(), &["k1"]).await;
    replica(&lab, store.clone(), &["k2"]).await;

    let other = KEYS.replace("AQEB", "AwMD");
    let other = regrant::seal::Keyring::parse(&other).unwrap();
    let other = regrant::Regrant::builder("https://gateway.example", store, other);
    let refused = other.start().await.unwrap_err();
    assert!(matches!(&refused, StartError::KeyChanged { id } if id == "k1"));
}
