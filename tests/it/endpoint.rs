//! The token, revocation and metadata endpoints, as clients meet them.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use http::Request;
use http::StatusCode;
use http_body_util::Full;
use http_body_util::channel::Channel;
use regrant::settings::Lifetimes;
use regrant::store::memory::MemoryStore;
use tower::ServiceExt as _;

use crate::support::Answer;
use crate::support::Lab;
use crate::support::ask;
use crate::support::form;
use crate::support::issued;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn rotation_gives_a_new_pair_that_works_and_leaves_the_old_access_token_alive() {
    let (lab, regrant, issued) = issued().await;
    let gateway = lab.gateway(&regrant);

    let answer = refresh(&regrant, issued.refresh_token.expose()).await;

    assert_eq!(answer.status, StatusCode::OK);
    let json = answer.json();
    assert_eq!(json["token_type"], "Bearer");
    assert_eq!(json["expires_in"], 3_600);
    assert_eq!(json["scope"], "read write");
    assert_eq!(json.as_object().unwrap().len(), 5);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("pragma"), "no-cache");
    assert_ne!(answer.text("access_token"), issued.access_token.expose());
    assert_ne!(answer.text("refresh_token"), issued.refresh_token.expose());
    for access in [&*answer.text("access_token"), issued.access_token.expose()] {
        let answer = send(&gateway, post(access, "")).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    let next = refresh(&regrant, &answer.text("refresh_token")).await;
    assert_eq!(next.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fm01_everybody_who_refreshes_with_one_token_at_once_gets_the_same_pair() {
    let (_lab, regrant, issued) = issued().await;

    let asking = (0..100).map(|_| refresh(&regrant, issued.refresh_token.expose()));
    let answers = join_all(asking).await;

    let mut pairs: Vec<_> = answers
        .iter()
        .map(|answer| (answer.text("access_token"), answer.text("refresh_token")))
        .collect();
    pairs.dedup();
    assert_eq!(pairs.len(), 1, "{pairs:?}");
    assert_ne!(pairs[0].0, "");
}

#[tokio::test]
async fn a_replay_reports_the_true_remaining_lifetime() {
    let (lab, regrant, issued) = issued().await;
    let first = refresh(&regrant, issued.refresh_token.expose()).await;
    lab.clock.advance(Duration::from_secs(100));

    let replayed = refresh(&regrant, issued.refresh_token.expose()).await;

    assert_eq!(replayed.json()["expires_in"], 3_500);
    assert_eq!(replayed.text("access_token"), first.text("access_token"));
    assert_eq!(replayed.text("refresh_token"), first.text("refresh_token"));
}

#[tokio::test]
async fn fm01_a_lost_answer_heals_however_late() {
    let (lab, regrant, issued) = issued().await;
    let lost = refresh(&regrant, issued.refresh_token.expose()).await;
    lab.clock.advance(Duration::from_secs(10 * 86_400));

    let late = refresh(&regrant, issued.refresh_token.expose()).await;

    assert_eq!(late.status, StatusCode::OK);
    assert_eq!(late.text("refresh_token"), lost.text("refresh_token"));
    assert_eq!(
        late.json()["expires_in"],
        3_600,
        "with an access token that works"
    );
    let answer = send(&lab.gateway(&regrant), post(&late.text("access_token"), "")).await;
    assert_ne!(answer.header("www-authenticate"), "Bearer", "{answer:?}");
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn once_the_new_pair_is_used_the_old_refresh_token_dies_with_the_grace() {
    let (lab, regrant, issued) = issued().await;
    let gateway = lab.gateway(&regrant);
    let rotated = refresh(&regrant, issued.refresh_token.expose()).await;
    let used = send(&gateway, post(&rotated.text("access_token"), "")).await;
    assert_eq!(used.status, StatusCode::OK);
    settle().await;

    lab.clock.advance(Duration::from_secs(120));
    let replayed = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(replayed.status, StatusCode::OK, "inside the grace");

    lab.clock.advance(Duration::from_secs(1));
    let reused = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(reused.text("error"), "invalid_grant");
    // Reuse ends the family, at once.
    let answer = refresh(&regrant, &rotated.text("refresh_token")).await;
    assert_eq!(answer.text("error"), "invalid_grant");
    let answer = send(&gateway, post(&rotated.text("access_token"), "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_genuine_token_of_any_older_generation_is_reuse() {
    let (_lab, regrant, issued) = issued().await;
    let mut latest = issued.refresh_token.expose().to_owned();
    for _ in 0..3 {
        latest = refresh(&regrant, &latest).await.text("refresh_token");
    }

    let reused = refresh(&regrant, issued.refresh_token.expose()).await;

    assert_eq!(reused.text("error"), "invalid_grant");
    let answer = refresh(&regrant, &latest).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

#[tokio::test]
async fn within_a_burst_an_older_token_gets_the_present_pair_if_that_is_wanted() {
    let lab = Lab::start().await;
    let seconds = Duration::from_secs;
    let lifetimes = Lifetimes::default().burst_grace(seconds(10));
    let builder = lab.builder(MemoryStore::new()).lifetimes(lifetimes);
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let mut latest = issued.refresh_token.expose().to_owned();
    for _ in 0..3 {
        latest = refresh(&regrant, &latest).await.text("refresh_token");
        lab.clock.advance(seconds(3));
    }

    let late = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(late.text("refresh_token"), latest);
    lab.clock.advance(seconds(1));
    let reused = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(reused.text("error"), "invalid_grant");
    let answer = refresh(&regrant, &latest).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

#[tokio::test]
async fn fm25_idle_and_absolute_deadlines_both_hold() {
    let lab = Lab::start().await;
    let day = Duration::from_secs(86_400);
    let lifetimes = Lifetimes::default()
        .refresh_idle(10 * day)
        .refresh_absolute(25 * day);
    let builder = lab.builder(MemoryStore::new()).lifetimes(lifetimes);
    let regrant = builder.start().await.unwrap();
    let (idle, busy) = (lab.issue(&regrant).await, lab.issue(&regrant).await);
    assert_eq!(idle.refresh_expires_in, 10 * day);

    lab.clock.advance(9 * day);
    let rotated = refresh(&regrant, busy.refresh_token.expose()).await;
    lab.clock.advance(day);
    let answer = refresh(&regrant, idle.refresh_token.expose()).await;
    assert_eq!(
        answer.text("error"),
        "invalid_grant",
        "ten days without use"
    );
    lab.clock.advance(8 * day);
    let rotated = refresh(&regrant, &rotated.text("refresh_token")).await;
    assert_eq!(rotated.status, StatusCode::OK, "used meanwhile");

    lab.clock.advance(7 * day);
    let answer = refresh(&regrant, &rotated.text("refresh_token")).await;
    assert_eq!(answer.text("error"), "invalid_grant", "25 days in all");
}

#[tokio::test]
async fn what_is_wrong_with_a_token_request_is_said_in_oauths_words() {
    let (_lab, regrant, issued) = issued().await;
    let token = issued.refresh_token.expose();
    let grant = ("grant_type", "refresh_token");
    let good = ("refresh_token", token);

    for (pairs, status, error) in [
        (vec![], 400, "invalid_request"),
        (vec![good], 400, "invalid_request"),
        (vec![grant], 400, "invalid_request"),
        (vec![grant, ("refresh_token", "")], 400, "invalid_request"),
        (
            vec![("grant_type", "password"), good],
            400,
            "unsupported_grant_type",
        ),
        (vec![grant, good, good], 400, "invalid_request"),
        (
            vec![grant, good, ("x", "1"), ("x", "2")],
            400,
            "invalid_request",
        ),
        (
            vec![grant, good, ("client_id", "mallory")],
            400,
            "invalid_grant",
        ),
        (
            vec![grant, good, ("scope", "read admin")],
            400,
            "invalid_scope",
        ),
        (
            vec![grant, good, ("resource", "https://evil.example")],
            400,
            "invalid_target",
        ),
        (
            vec![grant, ("refresh_token", "nonsense")],
            400,
            "invalid_grant",
        ),
        (vec![grant, ("refresh_token", "\0")], 400, "invalid_request"),
        (
            vec![grant, ("refresh_token", issued.access_token.expose())],
            400,
            "invalid_grant",
        ),
    ] {
        let answer = ask(&regrant, form("/oauth/token", &pairs)).await;
        assert_eq!(answer.status.as_u16(), status, "{pairs:?}");
        assert_eq!(answer.text("error"), error, "{pairs:?}");
        assert_eq!(answer.header("cache-control"), "no-store");
        assert!(!answer.text("error_description").is_empty());
    }

    // Nothing of it did any harm, and the good forms of each are accepted.
    let pairs = [
        grant,
        good,
        ("client_id", "claude"),
        ("scope", "read"),
        ("resource", "HTTPS://gateway.EXAMPLE/mcp/"),
    ];
    let answer = ask(&regrant, form("/oauth/token", &pairs)).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn wrong_methods_content_types_and_sizes_are_refused_and_lose_nothing() {
    let (_lab, regrant, issued) = issued().await;
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", issued.refresh_token.expose()),
    ];
    let good = || form("/oauth/token", &pairs);

    for method in [Method::GET, Method::PUT, Method::DELETE, Method::HEAD] {
        let mut request = good();
        *request.method_mut() = method.clone();
        let answer = ask(&regrant, request).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(answer.header("allow"), "POST");
    }
    for media in ["application/json", "multipart/form-data", "text/plain", ""] {
        let mut request = good();
        request
            .headers_mut()
            .insert("content-type", media.parse().unwrap());
        let answer = ask(&regrant, request).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{media}");
        assert_eq!(answer.text("error"), "invalid_request");
    }

    let large = format!("{}&filler={}", body(&good()), "x".repeat(1_000_000));
    let request = good().map(|_| Full::new(Bytes::from(large)));
    let answer = ask(&regrant, request).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.text("error"), "invalid_request");

    // Counted, not believed: this one comes in chunks and never says how long
    // it will be.
    let (mut sender, chunked) = Channel::<Bytes, Infallible>::new(1);
    let feed = tokio::spawn(async move {
        let mut sent = 0;
        while sender
            .send_data(Bytes::from_static(&[b'x'; 1_000]))
            .await
            .is_ok()
        {
            sent += 1;
        }
        sent
    });
    let response = regrant.endpoints().oneshot(good().map(|_| chunked)).await;
    let answer = Answer::of(response.unwrap()).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(feed.await.unwrap() < 12, "it was not read to its end");

    let exact = body(&good());
    let exact = format!("{exact}&x={}", "y".repeat(8_192 - exact.len() - 3));
    let request = good().map(|_| Full::new(Bytes::from(exact)));
    let answer = ask(&regrant, request).await;
    assert_eq!(answer.status, StatusCode::OK, "8192 bytes are fine");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let (_lab, regrant, _issued) = issued().await;
    let (_sender, stuck) = Channel::<Bytes, Infallible>::new(1);

    let request = form("/oauth/token", &[]).map(|_| stuck);
    let response = regrant.endpoints().oneshot(request).await.unwrap();

    let answer = Answer::of(response).await;
    assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(answer.text("error"), "invalid_request");
}

/// Lets what was spawned off the request's path come to its end.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

fn body(request: &Request<Full<Bytes>>) -> String {
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;

    let collected = request.body().clone().collect().now_or_never().unwrap();
    String::from_utf8(collected.unwrap().to_bytes().to_vec()).unwrap()
}
