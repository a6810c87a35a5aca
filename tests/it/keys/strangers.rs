//! Garbage that names a removed key: nobody can tell it without the store.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use regrant::GrantId;
use regrant::Regrant;
use regrant::store::Store as _;

use super::leave_k1;
use super::replica;
use crate::support::Lab;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::refresh;

#[tokio::test]
async fn garbage_for_one_grant_is_soon_refused_from_memory_and_ends_nothing() {
    let (_lab, store, regrant, token) = removed().await;
    let (head, _payload) = token.split_once('.').unwrap();
    let id = head.strip_prefix("rgrt_").unwrap().parse().unwrap();
    let read = store.calls();
    for number in 0..300 {
        let answer = refresh(&regrant, &made_up(&token, number)).await;
        assert_eq!(answer.text("error"), "invalid_grant", "{number}");
    }
    let read = store.calls() - read;
    assert!(read <= 11, "{read} reads");

    let answer = refresh(&regrant, &token).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let grant = store.grant(id).await.unwrap().unwrap();
    assert_eq!(grant.revoked, None);
}

#[tokio::test]
async fn garbage_for_any_grant_closes_the_way_to_the_store_for_a_moment() {
    let (lab, store, regrant, token) = removed().await;
    let other = lab.issue(&regrant).await;
    for path in ["/oauth/token", "/oauth/revoke", "/oauth/token?code"] {
        lab.clock.advance(Duration::from_secs(60));
        let read = store.calls();
        let mut refused = 0;
        for number in 0..300 {
            let answer = ask_with(&regrant, path, &stranger(&token, number, path)).await;
            let is_refusal = answer != StatusCode::SERVICE_UNAVAILABLE;
            refused += usize::from(is_refusal);
        }
        let read = store.calls() - read;
        assert!(read <= 51 && refused <= 51, "{path}: {read}, {refused}");
    }

    // Whoever has a token that can be checked does not notice.
    let answer = refresh(&regrant, other.refresh_token.expose()).await;
    assert_eq!(answer.status, StatusCode::OK);
    // And those of the removed key wait for a second.
    let answer = refresh(&regrant, &token).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "1");
    lab.clock.advance(Duration::from_secs(1));
    let answer = refresh(&regrant, &token).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

#[tokio::test]
async fn clients_of_before_come_back_all_at_once() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let mut tokens = Vec::new();
    for _ in 0..200 {
        tokens.push(lab.issue(&old).await.refresh_token);
    }
    leave_k1(&lab, store.clone()).await;
    let new = replica(&lab, store, &["k2"]).await;

    for token in tokens {
        let answer = refresh(&new, token.expose()).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
}

/// A gateway whose old key was removed, and a refresh token of it.
async fn removed() -> (Lab, FlakyStore, Regrant, String) {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let token = lab.issue(&old).await.refresh_token.expose().to_owned();
    leave_k1(&lab, store.clone()).await;
    let new = replica(&lab, store.clone(), &["k2"]).await;
    (lab, store, new, token)
}

async fn ask_with(regrant: &Regrant, path: &str, token: &str) -> StatusCode {
    let pairs = match path {
        "/oauth/token" => vec![("grant_type", "refresh_token"), ("refresh_token", token)],
        "/oauth/revoke" => vec![("token", token)],
        _ => vec![
            ("grant_type", "authorization_code"),
            ("code", token),
            (
                "code_verifier",
                "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
            ),
            ("client_id", "claude"),
        ],
    };
    let path = path.split('?').next().unwrap();
    ask(regrant, form(path, &pairs)).await.status
}

/// Of the same grant and key, of any generation, with another secret.
fn made_up(token: &str, number: u64) -> String {
    let (head, payload) = token.split_once('.').unwrap();
    let mut payload = URL_SAFE_NO_PAD.decode(payload).unwrap();
    // Version and hint stay: they are public.
    payload[5..13].copy_from_slice(&(u64::MAX - number).to_be_bytes());
    payload[20..28].copy_from_slice(&number.to_be_bytes());
    format!("{head}.{}", URL_SAFE_NO_PAD.encode(payload))
}

/// The same of another grant each time.
fn stranger(token: &str, number: u64, path: &str) -> String {
    let id = GrantId::random().unwrap();
    let made_up = made_up(token, number);
    let (_head, payload) = made_up.split_once('.').unwrap();
    if path.ends_with("code") {
        // A code has no generation.
        let payload = URL_SAFE_NO_PAD.decode(payload).unwrap();
        let payload = URL_SAFE_NO_PAD.encode([&payload[..5], &payload[13..]].concat());
        return format!("rgac_{id}.{payload}");
    }
    format!("rgrt_{id}.{payload}")
}
