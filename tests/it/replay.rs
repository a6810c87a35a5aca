//! The upstream refuses: refresh, and send the request once more.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::WWW_AUTHENTICATE;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::channel::Channel;
use regrant::BoxError;
use regrant::replay::ReplayBody;
use tower::Layer as _;
use tower::ServiceExt as _;

use crate::support::Lab;
use crate::support::always;
use crate::support::post;
use crate::support::see;
use crate::support::send;

#[tokio::test]
async fn fm09_an_early_revoked_credential_heals_within_the_same_request() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.provider.revoke_access_tokens();
    let body: Bytes = (0..1_000_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    let mut request = post(issued.access_token.expose(), body.clone());
    let header = HeaderName::from_static("mcp-protocol-version");
    let value = HeaderValue::from_static("2026-07-28");
    request.headers_mut().insert(header, value);

    let answer = send(&gateway, request).await;

    assert_eq!(answer.status, StatusCode::OK);
    let [refused, served] = &lab.seen()[..] else {
        panic!()
    };
    assert_eq!(refused.body, body);
    assert_eq!(served.body, body);
    assert_eq!(served.head_line, refused.head_line);
    let without_credential = |headers: &HeaderMap| {
        let mut headers = headers.clone();
        headers.remove(AUTHORIZATION);
        headers
    };
    assert_eq!(
        without_credential(&served.headers),
        without_credential(&refused.headers)
    );
    assert!(refused.bearer().starts_with("upstream-at-0-"));
    assert!(served.bearer().starts_with("upstream-at-1-"));
    let counts = lab.provider.counts();
    assert_eq!((counts.calls, counts.double_spends), (1, 0));
}

#[tokio::test]
async fn fm28_a_replay_repeats_trailers_and_what_the_upstream_had_not_read() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let (provider, seen) = (lab.provider.clone(), Arc::clone(&lab.seen));
    // Refuses on sight of the head, with most of the body still to come.
    let upstream = tower::service_fn(move |request: Request<ReplayBody<_>>| {
        let (provider, seen) = (provider.clone(), Arc::clone(&seen));
        async move {
            let bearer = request.headers()[AUTHORIZATION].to_str().unwrap();
            let token = bearer.strip_prefix("Bearer ").unwrap();
            let mut response = Response::new(Full::<Bytes>::default());
            if provider.introspect(token).is_none() {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
                let mut body = request.into_body();
                let first = body.frame().await.unwrap().unwrap();
                assert_eq!(first.into_data().unwrap(), "one ");
            } else {
                let request = see(request).await;
                seen.lock().unwrap().push(request);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let gateway = regrant.layer("linear").unwrap().layer(upstream);
    lab.provider.revoke_access_tokens();
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(8);
    for part in ["one ", "two ", "three"] {
        sender
            .send_data(Bytes::from_static(part.as_bytes()))
            .await
            .unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("7"));
    sender.send_trailers(trailers.clone()).await.unwrap();
    drop(sender);

    let request = post(issued.access_token.expose(), "").map(|_| body);
    let response = gateway.oneshot(request).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    let [served] = &lab.seen()[..] else { panic!() };
    assert_eq!(served.body, "one two three");
    assert_eq!(served.trailers, Some(trailers));
}

#[tokio::test]
async fn fm28_the_answer_to_a_replay_is_final_and_its_challenge_is_ours() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    // This upstream accepts nobody.
    let stubborn = always(StatusCode::UNAUTHORIZED);
    let stubborn = regrant.layer("linear").unwrap().layer(stubborn);

    let answer = send(&stubborn, post(issued.access_token.expose(), "hello")).await;

    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.body, "the upstream's words");
    let challenge = answer.header("www-authenticate");
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    assert!(!challenge.contains("upstream"), "{challenge}");
    assert_eq!(answer.headers.get_all(WWW_AUTHENTICATE).iter().count(), 1);
    assert_eq!(lab.provider.counts().calls, 1);

    // The refreshed token was refused at once: no storm at the provider.
    for _ in 0..5 {
        let answer = send(&stubborn, post(issued.access_token.expose(), "hello")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(lab.provider.counts().calls, 1);
    // Other routes of the same credential are not affected.
    let answer = send(&gateway, post(issued.access_token.expose(), "hello")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn fm09_what_worked_and_is_revoked_twice_within_a_minute_is_a_503_not_a_401() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    let access = issued.access_token.expose();
    lab.provider.revoke_access_tokens();
    assert_eq!(
        send(&gateway, post(access, "")).await.status,
        StatusCode::OK
    );
    lab.clock.advance(Duration::from_secs(20));

    // One forced refresh a minute, or an upstream could start a storm.
    lab.provider.revoke_access_tokens();
    let answer = send(&gateway, post(access, "")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "40");
    assert_eq!(lab.provider.counts().calls, 1);

    lab.clock.advance(Duration::from_secs(40));
    assert_eq!(
        send(&gateway, post(access, "")).await.status,
        StatusCode::OK
    );
    assert_eq!(lab.provider.counts().calls, 2);
}

#[tokio::test]
async fn a_client_cannot_have_the_credential_dropped_as_a_header_of_its_connection() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    let mut request = post(issued.access_token.expose(), "");
    let value = HeaderValue::from_static("close, Authorization");
    request.headers_mut().insert("connection", value);

    assert_eq!(send(&gateway, request).await.status, StatusCode::OK);
    assert!(!lab.seen()[0].headers.contains_key("connection"));
}

#[tokio::test]
async fn fm07_no_challenge_of_the_upstream_ever_leaves() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;

    for (status, want) in [
        (StatusCode::OK, ""),
        (StatusCode::FORBIDDEN, "insufficient_scope"),
        (StatusCode::SERVICE_UNAVAILABLE, ""),
    ] {
        let gateway = regrant.layer("linear").unwrap().layer(always(status));
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, status);
        let challenge = answer.header("www-authenticate");
        assert!(!challenge.contains("realm"), "{status}: {challenge}");
        assert!(challenge.contains(want), "{status}: {challenge}");
        assert_eq!(challenge.is_empty(), want.is_empty());
    }
    assert_eq!(
        lab.provider.counts().calls,
        0,
        "a 403 is no reason to refresh"
    );
}

#[tokio::test]
async fn fm28_a_request_over_the_bound_is_not_replayed_but_the_next_one_works() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let layer = regrant.layer("linear").unwrap().replay_limit(10);
    let gateway = layer.layer(lab.upstream());
    lab.provider.revoke_access_tokens();

    let answer = send(&gateway, post(issued.access_token.expose(), "eleven chars")).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "0");
    let message = answer.json()["error"]["message"].clone();
    assert!(message.as_str().unwrap().contains("too large"), "{message}");
    assert_eq!(lab.seen().len(), 1, "it was sent once");

    let answer = send(&gateway, post(issued.access_token.expose(), "eleven chars")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.provider.counts().calls, 1);
}

#[tokio::test]
async fn the_inner_service_is_called_only_when_it_is_ready() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let layer = regrant.layer("linear").unwrap();
    let (mut gateway, mut handle) =
        tower_test::mock::spawn_with(move |inner: tower_test::mock::Mock<_, Response<String>>| {
            layer.layer(inner)
        });

    // The mock panics when it is called without having been polled ready: this
    // holds for the first call, which waits for the store, and for the replay.
    handle.allow(0);
    tokio_test::assert_pending!(gateway.poll_ready());
    handle.allow(2);
    tokio_test::assert_ready_ok!(gateway.poll_ready());
    let request: Request<Full<Bytes>> = post(issued.access_token.expose(), "hello");
    let mut response = tokio_test::task::spawn(gateway.call(request));
    let upstream = async {
        for status in [401, 200] {
            let (_request, respond): (Request<ReplayBody<Full<Bytes>>>, _) =
                handle.next_request().await.unwrap();
            let answer = Response::builder().status(status).body(String::new());
            respond.send_response(answer.unwrap());
        }
    };
    let (response, ()) = tokio::join!(&mut response, upstream);

    assert_eq!(response.unwrap().status(), StatusCode::OK);
    assert_eq!(lab.provider.counts().calls, 1);
}
