//! Answers that were lost before the key was removed that could repeat them.

use std::sync::Arc;

use futures_util::future::join_all;
use http::StatusCode;
use regrant::Client;
use regrant::settings::Lifetimes;
use regrant::store::RotationPolicy;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tokio::sync::Barrier;

use super::MINUTE;
use super::builder;
use super::leave_k1;
use super::replica;
use crate::support::Answer;
use crate::support::Lab;
use crate::support::ask;
use crate::support::database::Database;
use crate::support::form;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn fm27_a_lost_answer_heals_after_its_key_was_removed() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&old).await;
    let token = issued.refresh_token.expose();
    leave_k1(&lab, store.clone()).await;
    // Derived under the old key, issued under the new one, and lost.
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    let lost = refresh(&both, token).await;
    assert_eq!(lost.status, StatusCode::OK);
    let new = replica(&lab, store.clone(), &["k2"]).await;
    let another = replica(&lab, store.clone(), &["k2"]).await;

    for wait in [0, 60 * 24 * 10] {
        lab.clock.advance(wait * MINUTE);
        let healed = refresh(&new, token).await;
        assert_eq!(healed.status, StatusCode::OK, "{healed:?}");
        let pair = healed.text("refresh_token");
        assert_ne!(pair, lost.text("refresh_token"));
        for replica in [&another, &both, &new] {
            let repeated = refresh(replica, token).await;
            assert_eq!(repeated.text("refresh_token"), pair);
        }
    }
    let healed = refresh(&another, token).await;
    let request = post(&healed.text("access_token"), "");
    assert_eq!(send(&lab.gateway(&new), request).await.status, 200);
    let next = refresh(&new, &healed.text("refresh_token")).await;
    assert_eq!(next.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_ask_again_at_once_all_get_the_same_pair() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&old).await;
    let fresh = lab.issue(&old).await;
    leave_k1(&lab, store.clone()).await;
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    refresh(&both, issued.refresh_token.expose()).await;
    let replicas = [
        replica(&lab, store.clone(), &["k2"]).await,
        replica(&lab, database.store().await, &["k2"]).await,
    ];

    // A lost answer, and a token that was never used.
    for token in [issued.refresh_token, fresh.refresh_token] {
        let barrier = Arc::new(Barrier::new(16));
        let asked = (0..16).map(|index| {
            let (barrier, replica) = (Arc::clone(&barrier), replicas[index % 2].clone());
            let token = token.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                refresh(&replica, token.expose()).await
            })
        });
        let answers = join_all(asked).await;
        let answers: Vec<Answer> = answers.into_iter().map(Result::unwrap).collect();
        for answer in &answers {
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            assert_eq!(answer.body, answers[0].body);
        }
    }
}

/// Replicas with and without the old key derive different pairs: whichever the
/// client keeps goes on.
#[tokio::test]
async fn while_the_key_is_being_removed_no_pair_that_was_handed_out_ends_a_login() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = [lab.issue(&old).await, lab.issue(&old).await];
    leave_k1(&lab, store.clone()).await;
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    let new = replica(&lab, store.clone(), &["k2"]).await;

    for (keeps_first, issued) in [true, false].into_iter().zip(issued) {
        let token = issued.refresh_token.expose();
        let first = refresh(&both, token).await;
        let second = refresh(&new, token).await;
        assert_ne!(first.text("refresh_token"), second.text("refresh_token"));
        lab.clock.advance(10 * MINUTE);
        let kept = if keeps_first { &first } else { &second };
        let kept = kept.text("refresh_token");

        for replica in [&both, &new] {
            let next = refresh(replica, &kept).await;
            assert_eq!(next.status, StatusCode::OK, "{keeps_first}: {next:?}");
            let request = post(&next.text("access_token"), "");
            assert_eq!(send(&lab.gateway(replica), request).await.status, 200);
            assert!(replica.drain(MINUTE).await, "that use is noted");
        }
        if keeps_first {
            // It took the place of the other one and was never used: nobody's.
            let other = refresh(&new, &second.text("refresh_token")).await;
            assert_eq!(other.text("error"), "invalid_grant");
        }
        let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
        assert_eq!(grant.revoked, None, "{keeps_first}");
    }
}

#[tokio::test]
async fn who_cannot_tell_what_became_of_a_pair_in_a_burst_ends_no_login() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&old).await;
    let token = issued.refresh_token.expose();
    leave_k1(&lab, store.clone()).await;
    let lifetimes = Lifetimes::default().access(MINUTE).burst_grace(MINUTE);
    let both = builder(&lab, store.clone(), &["k2", "k1"]).lifetimes(lifetimes);
    let both = both.start().await.unwrap();
    let new = replica(&lab, store.clone(), &["k2"]).await;
    let first = refresh(&both, token).await;
    let second = refresh(&new, token).await;
    let next = refresh(&both, &second.text("refresh_token")).await;
    assert_eq!(next.status, StatusCode::OK);

    // Both were under way when that happened.
    for late in [token, &first.text("refresh_token")] {
        let answer = refresh(&both, late).await;
        assert_eq!(answer.text("error"), "invalid_grant");
        let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
        assert_eq!(grant.revoked, None);
    }
    let goes_on = refresh(&both, &next.text("refresh_token")).await;
    assert_eq!(goes_on.status, StatusCode::OK);
}

#[tokio::test]
async fn what_another_process_of_the_client_uses_is_not_taken_from_it() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&old).await;
    let token = issued.refresh_token.expose();
    leave_k1(&lab, store.clone()).await;
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    let used = refresh(&both, token).await;
    let request = post(&used.text("access_token"), "");
    assert_eq!(send(&lab.gateway(&both), request).await.status, 200);
    assert!(both.drain(MINUTE).await);
    let new = replica(&lab, store.clone(), &["k2"]).await;

    // It will be repeated by whoever has the key, and is reuse afterwards.
    let answer = refresh(&new, token).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let next = refresh(&new, &used.text("refresh_token")).await;
    assert_eq!(next.status, StatusCode::OK);
}

#[tokio::test]
async fn a_sticky_client_keeps_its_token_when_the_key_is_removed() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let sticky = Client::new("stubborn").rotation(RotationPolicy::Sticky);
    old.register_client(sticky).await.unwrap();
    let login = lab.login().client_id("stubborn");
    let issued = old.issue(login).await.unwrap();
    let once = async |regrant: &regrant::Regrant| {
        let pairs = [
            ("grant_type", "refresh_token"),
            ("refresh_token", issued.refresh_token.expose()),
            ("client_id", "stubborn"),
        ];
        let answer = ask(regrant, form("/oauth/token", &pairs)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let request = post(&answer.text("access_token"), "");
        let used = send(&lab.gateway(regrant), request).await;
        assert_eq!(used.status, StatusCode::OK);
        assert!(regrant.drain(MINUTE).await, "that use is noted");
        lab.clock.advance(10 * MINUTE);
    };
    once(&old).await;
    once(&old).await;
    leave_k1(&lab, store.clone()).await;
    let new = replica(&lab, store.clone(), &["k2"]).await;

    once(&new).await;
    once(&new).await;
    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    assert_eq!(grant.generation, 2, "one pair for each key");
}
