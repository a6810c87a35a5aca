//! Authorization codes that are not, or no longer, to be redeemed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use regrant::CodeRequest;
use sha2::Digest as _;
use sha2::Sha256;

use super::NOW_AND_THEN;
use super::Pair;
use crate::support::Answer;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::long;
use crate::support::refresh;

pub(super) const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

pub(super) async fn code(pair: &Pair) -> String {
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
    let request = CodeRequest::new(challenge);
    let login = pair.lab.login().client_id("claude");
    let issued = pair.there.issue_code(login, request).await.unwrap();
    issued.code.expose().to_owned()
}

fn redemption<'a>(code: &'a str, verifier: &'a str, client: &'a str) -> [(&'a str, &'a str); 4] {
    [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("code_verifier", verifier),
        ("client_id", client),
    ]
}

pub(super) async fn redeem(pair: &Pair, code: &str, verifier: &str, client: &str) -> Answer {
    pair.token(&redemption(code, verifier, client)).await
}

#[tokio::test]
async fn wrong_verifiers_and_clients_are_refused_from_memory_and_the_right_one_is_not() {
    let pair = Pair::start(long()).await;
    let code = code(&pair).await;

    let other = "x".repeat(43);
    let pairs = redemption(&code, &other, "claude");
    let calls = pair.flood(&pairs, "invalid_grant").await;
    assert!(
        calls <= 30,
        "its client may be registered meanwhile: {calls}"
    );
    let pairs = redemption(&code, VERIFIER, "mallory");
    assert_eq!(pair.flood(&pairs, "invalid_grant").await, 0);

    let answer = redeem(&pair, &code, VERIFIER, "claude").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let answer = refresh(&pair.here, &answer.text("refresh_token")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_code_that_was_redeemed_ends_its_grant_once() {
    let pair = Pair::start(long()).await;
    let code = code(&pair).await;
    let good = ask(
        &pair.there,
        form("/oauth/token", &redemption(&code, VERIFIER, "claude")),
    )
    .await;
    assert_eq!(good.status, StatusCode::OK);

    let pairs = redemption(&code, VERIFIER, "claude");
    let calls = pair.flood(&pairs, "invalid_grant").await;

    assert!(
        calls <= 30,
        "its client may be registered meanwhile: {calls}"
    );
    let answer = refresh(&pair.here, &good.text("refresh_token")).await;
    assert_eq!(answer.text("error"), "invalid_grant");
    // A replica that comes to it later finds the same, and is done with it too.
    let late = FlakyStore::over(pair.shared.clone());
    let replica = pair.lab.builder(late.clone()).start().await.unwrap();
    let before = late.calls();
    for _ in 0..100 {
        let answer = ask(&replica, form("/oauth/token", &pairs)).await;
        assert_eq!(answer.text("error"), "invalid_grant");
    }
    assert!(late.calls() - before < 10);
}

#[tokio::test]
async fn codes_that_expired_are_unknown_or_whose_login_ended_are_refused_from_memory() {
    let pair = Pair::start(long()).await;
    let expired = code(&pair).await;
    pair.lab.clock.advance(Duration::from_secs(300));
    let pairs = redemption(&expired, VERIFIER, "claude");
    let calls = pair.flood(&pairs, "invalid_grant").await;
    assert!(calls < NOW_AND_THEN, "{calls} calls of the store");

    let elsewhere = Pair::start(long()).await;
    let unknown = code(&elsewhere).await;
    let pairs = redemption(&unknown, VERIFIER, "claude");
    assert_eq!(pair.flood(&pairs, "invalid_grant").await, 2);

    // A grant of the same login finds that it has ended.
    let issued = pair.lab.issue(&pair.here).await;
    let ended = code(&pair).await;
    pair.lab.clock.advance(Duration::from_secs(5));
    pair.lab.provider.log_out();
    let answer = pair.call(issued.access_token.expose()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let pairs = redemption(&ended, VERIFIER, "claude");
    let calls = pair.flood(&pairs, "invalid_grant").await;
    assert!(calls < NOW_AND_THEN, "{calls} calls of the store");
    let answer = redeem(&pair, &ended, VERIFIER, "claude").await;
    let words = answer.text("error_description");
    assert_eq!(words, "the upstream login has ended");
    let login = pair.lab.login().client_id("claude");
    pair.here.issue(login).await.unwrap();
    let answer = redeem(&pair, &ended, VERIFIER, "claude").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}
