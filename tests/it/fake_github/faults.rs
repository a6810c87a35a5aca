//! What a call looks like to GitHub, and what goes wrong with it.

use std::time::Duration;

use http::HeaderName;
use http::StatusCode;
use http::header::RETRY_AFTER;
use regrant::clock::Clock as _;
use reqwest::Client;
use serde_json::json;

use super::Stage;
use super::answer;
use crate::github::Call;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::github::Gate;

#[tokio::test]
async fn headers_are_looked_at_and_written_down() {
    let stage = Stage::start().await;
    let anonymous = Client::new().get(format!("{}/user/installations", stage.url));
    let anonymous = answer(anonymous.bearer_auth(&stage.user_token)).await;
    anonymous.expect(StatusCode::FORBIDDEN);
    let versioned = |version: &str| {
        let request = stage.get("/user/installations?page=1", &stage.user_token);
        let request = request.header("accept", "application/vnd.github+json");
        answer(request.header("x-github-api-version", version))
    };
    versioned("2020-01-01")
        .await
        .expect(StatusCode::BAD_REQUEST);
    let answer = versioned("2022-11-28").await;

    assert_eq!(
        answer.header("date"),
        httpdate::fmt_http_date(stage.clock.now())
    );
    assert_eq!(answer.header("x-ratelimit-limit"), "5000");
    assert_eq!(answer.header("x-ratelimit-remaining"), "4997");
    assert_eq!(
        answer.header("x-ratelimit-reset"),
        (stage.now() + 3_600).to_string()
    );
    answer.expect(StatusCode::OK);
    let calls = stage.github.calls();
    assert_eq!(
        calls
            .iter()
            .map(Call::has_recommended_headers)
            .collect::<Vec<_>>(),
        [false, false, true]
    );
    let [first, .., last] = calls.as_slice() else {
        panic!("{calls:?}")
    };
    assert_eq!(
        (&first.user_agent, first.status),
        (&None, Some(StatusCode::FORBIDDEN))
    );
    assert_eq!(last.user_agent.as_deref(), Some("tests"));
    assert_eq!(
        (last.method.as_str(), &*last.path),
        ("GET", "/user/installations?page=1")
    );
    assert_eq!(last.caller, Caller::User("ada".to_owned()));
    assert!(last.body.is_null());
}

#[tokio::test]
async fn calls_by_one_client_share_a_connection() {
    let stage = Stage::start().await;
    let (first, second) = (
        json!({ "repository_ids": [70] }),
        json!({ "repository_ids": [71] }),
    );
    for body in [&first, &second] {
        stage.minted(body).await;
    }

    let calls = stage.github.calls_of(Endpoint::Mint);

    assert_eq!(stage.github.connections(), 1);
    assert_eq!(
        calls.iter().map(|call| call.connection).collect::<Vec<_>>(),
        [Some(0), Some(0)]
    );
    assert_eq!(
        calls.iter().map(|call| &call.body).collect::<Vec<_>>(),
        [&first, &second]
    );
    assert!(calls.iter().all(|call| call.caller == Caller::App));
    assert!(stage.github.calls_of(Endpoint::Revoke).is_empty());
}

#[tokio::test]
async fn faults_answer_in_githubs_place_once_or_until_healed() {
    let stage = Stage::start().await;
    let remaining = HeaderName::from_static("x-ratelimit-remaining");
    let limited = Fault::answer(StatusCode::FORBIDDEN, r#"{"message":"limited"}"#);
    let limited = limited.header(RETRY_AFTER, 7).header(remaining, 0);
    stage.github.fail_next(Endpoint::Mint, limited);
    stage.github.fail_all(
        Endpoint::Any,
        Fault::answer(StatusCode::BAD_GATEWAY, "<html>"),
    );

    let once = answer(stage.minting(7, &json!({}))).await;
    assert_eq!(
        (
            once.header("retry-after"),
            once.header("x-ratelimit-remaining")
        ),
        ("7", "0")
    );
    assert_eq!(once.header("x-ratelimit-limit"), "5000");
    assert_eq!(once.expect(StatusCode::FORBIDDEN)["message"], "limited");
    for _ in 0..2 {
        answer(stage.minting(7, &json!({})))
            .await
            .expect(StatusCode::BAD_GATEWAY);
    }
    assert_eq!(stage.github.mints(), 0);
    stage.github.heal();
    stage.minted(&json!({})).await;
    assert_eq!(stage.github.calls_of(Endpoint::Mint).len(), 4);
}

#[tokio::test]
async fn a_reset_loses_the_answer_and_what_was_done_stays_done() {
    let stage = Stage::start().await;
    for (fault, mints) in [(Fault::Reset, 0), (Fault::LoseAnswer, 1)] {
        stage.github.fail_next(Endpoint::Mint, fault);

        let error = stage.minting(7, &json!({})).send().await.unwrap_err();

        let mut causes = std::iter::successors(std::error::Error::source(&error), |it| it.source());
        assert!(
            causes.any(|it| it.to_string().contains("reset")),
            "{error:?}"
        );
        assert_eq!(stage.github.mints(), mints);
    }
    stage.minted(&json!({})).await;
    assert_eq!(stage.github.connections(), 3);
}

async fn until_left(gate: &Gate, calls: usize) {
    let left = async {
        while gate.waiting() > calls {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), left)
        .await
        .expect("a call whose client has gone still waits");
}

#[tokio::test]
async fn held_calls_wait_for_their_release_and_are_counted() {
    let stage = Stage::start().await;
    let gate = stage.github.hold(Endpoint::Mint);
    let calls: Vec<_> = (0..4)
        .map(|_| tokio::spawn(answer(stage.minting(7, &json!({})))))
        .collect();
    gate.until_waiting(4).await;
    calls[3].abort();
    until_left(&gate, 3).await;
    assert_eq!((gate.waiting(), stage.github.mints()), (3, 0));
    stage.clock.advance(Duration::from_secs(539));

    gate.release();

    for call in calls.into_iter().take(3) {
        call.await.unwrap().expect(StatusCode::CREATED);
    }
    stage.minted(&json!({})).await;
    assert_eq!((gate.waiting(), stage.github.mints()), (0, 4));
}

#[tokio::test]
async fn a_held_call_is_judged_by_the_time_of_its_release() {
    let stage = Stage::start().await;
    let gate = stage.github.hold(Endpoint::Mint);
    let call = tokio::spawn(answer(stage.minting(7, &json!({}))));
    gate.until_waiting(1).await;

    stage.clock.advance(Duration::from_secs(540));
    gate.release();

    call.await.unwrap().expect(StatusCode::UNAUTHORIZED);
    assert_eq!(stage.github.calls()[0].caller, Caller::App);
}

#[tokio::test(start_paused = true)]
async fn a_latency_comes_before_the_answer() {
    let stage = Stage::start().await;
    stage
        .github
        .fail_next(Endpoint::Mint, Fault::Delay(Duration::from_secs(5)));
    let before = tokio::time::Instant::now();

    stage.minted(&json!({})).await;

    assert!(before.elapsed() >= Duration::from_secs(5));
}
