//! Requests that are bad in themselves, and what must not be taken for abuse.

use std::convert::Infallible;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Request;
use http::StatusCode;
use http_body_util::Full;
use http_body_util::channel::Channel;
use regrant::settings::Lifetimes;
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::ATTEMPTS;
use super::Pair;
use super::codes::VERIFIER;
use super::codes::code;
use super::codes::redeem;
use super::refreshing;
use crate::support::Answer;
use crate::support::ask;
use crate::support::forged;
use crate::support::form;
use crate::support::long;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn garbage_and_forgeries_never_reach_the_store() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let id = issued.grant_id;
    let forgeries = [
        "nonsense".to_owned(),
        forged(issued.refresh_token.expose()),
        forged(issued.access_token.expose()),
        format!("rgrt_{id}.AAAA"),
        format!("rgat_{id}.AAAA"),
        format!("rgac_{id}.AAAA"),
    ];

    let before = pair.store.calls();
    for number in 0..ATTEMPTS {
        let token = &*forgeries[number % forgeries.len()];
        let answer = refresh(&pair.here, token).await;
        assert_eq!(answer.text("error"), "invalid_grant");
        let answer = redeem(&pair, token, VERIFIER, "claude").await;
        assert_eq!(answer.text("error"), "invalid_grant");
        assert_eq!(pair.call(token).await.status, StatusCode::UNAUTHORIZED);
        let request = form("/oauth/revoke", &[("token", token)]);
        assert_eq!(ask(&pair.here, request).await.status, StatusCode::OK);
    }

    assert_eq!(pair.store.calls() - before, 0);
}

#[tokio::test]
async fn short_lifetimes_and_a_refresh_on_every_call_earn_no_429() {
    let second = Duration::from_secs(1);
    let pair = Pair::start(Lifetimes::default().access(second)).await;
    let issued = pair.issue().await;
    let mut token = issued.refresh_token.expose().to_owned();

    for _ in 0..2_000 {
        let rotated = pair.refresh_as("claude", &token).await;
        assert_eq!(rotated.status, StatusCode::OK);
        let answer = pair.call(&rotated.text("access_token")).await;
        assert_eq!(answer.status, StatusCode::OK);
        token = rotated.text("refresh_token");
    }
}

#[tokio::test]
async fn a_panic_is_a_500_in_oauths_words_and_the_next_request_is_served() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let token = issued.refresh_token.expose();
    pair.store.set_panicking(true);

    for (path, pairs) in [
        ("/oauth/token", refreshing(token).to_vec()),
        ("/token", refreshing(token).to_vec()),
        ("/oauth/revoke", vec![("token", token)]),
    ] {
        let mut request = form(path, &pairs);
        let origin = "https://app.example".parse().unwrap();
        request.headers_mut().insert("origin", origin);
        // Mounted alone or on a layer.
        for answer in [
            ask(&pair.here, request.clone()).await,
            send(&pair.gateway, request).await,
        ] {
            assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.header("cache-control"), "no-store");
            assert_eq!(answer.header("access-control-allow-origin"), "*");
            // On `server_error` clients begin a new login.
            assert_eq!(answer.text("error"), "temporarily_unavailable");
            assert_eq!(answer.text("error_description"), "internal error");
        }
    }

    pair.store.set_panicking(false);
    assert_eq!(refresh(&pair.here, token).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_cut_off() {
    let pair = Pair::start(long()).await;
    for path in ["/oauth/token", "/token", "/oauth/revoke"] {
        let (mut sender, trickle) = Channel::<Bytes, Infallible>::new(1);
        let feed = tokio::spawn(async move {
            let mut sent = 0;
            while sender.send_data(Bytes::from_static(b"a")).await.is_ok() {
                sent += 1;
                // By the paused clock: a byte a second, for ever.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            sent
        });
        let began = Instant::now();

        let request = form(path, &[]).map(|_| trickle);
        let response = pair.here.endpoints().oneshot(request).await.unwrap();

        let answer = Answer::of(response).await;
        assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT, "{path}");
        assert_eq!(answer.text("error"), "invalid_request");
        assert_eq!(began.elapsed().as_secs(), 10, "by the paused clock");
        assert!(feed.await.unwrap() <= 12, "nobody reads on");
    }
}

#[tokio::test]
async fn nul_bytes_and_huge_values_are_4xx_wherever_they_are() {
    let pair = Pair::start(long()).await;
    let issued = pair.issue().await;
    let code = code(&pair).await;
    let token = issued.refresh_token.expose();
    let huge = "x".repeat(200_000);
    let subject = |sub: &str| {
        let claims = serde_json::json!({ "sub": sub }).to_string();
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.AAAA", part(r#"{"alg":"RS256"}"#), part(&claims))
    };
    let (nul_subject, huge_subject) = (subject("clau\0de"), subject(&"x".repeat(5_000)));

    let full = [
        ("grant_type", "refresh_token"),
        ("refresh_token", token),
        ("code", &*code),
        ("code_verifier", VERIFIER),
        ("client_id", "claude"),
        ("client_secret", "secret"),
        ("client_assertion", "a.b.c"),
        ("redirect_uri", "http://127.0.0.1/"),
        ("resource", "https://gateway.example"),
        ("scope", "read"),
        ("token", token),
        ("token_type_hint", "refresh_token"),
    ];
    for path in ["/oauth/token", "/oauth/revoke"] {
        for grant_type in ["refresh_token", "authorization_code"] {
            for number in 0..full.len() {
                for bad in ["\0", "cl\0aude", &*huge] {
                    let mut pairs = full;
                    pairs[0].1 = grant_type;
                    pairs[number].1 = bad;
                    let answer = ask(&pair.here, form(path, &pairs)).await;
                    assert!(answer.status.is_client_error(), "{answer:?}");
                    assert_eq!(answer.text("error"), "invalid_request");
                }
            }
            for bad in [&*nul_subject, &*huge_subject] {
                let mut pairs = full.to_vec();
                pairs[0].1 = grant_type;
                pairs[6].1 = bad;
                pairs.remove(4);
                let answer = ask(&pair.here, form("/oauth/token", &pairs)).await;
                assert!(answer.status.is_client_error(), "{answer:?}");
            }
        }
    }
    let huge = format!("Bearer {huge}");
    for value in [&*huge, "Bearer \u{80}", "Basic AAAA"] {
        let request = Request::post("/mcp").header("authorization", value);
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let answer = send(&pair.gateway, request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let answer = refresh(&pair.here, token).await;
    assert_eq!(answer.status, StatusCode::OK, "nothing was lost");
}
