//! What the layer does to requests and responses while all goes well.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
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
use regrant::settings::Lifetimes;
use regrant::store::memory::MemoryStore;
use tokio::sync::Barrier;
use tower::Layer as _;
use tower::ServiceExt as _;

use crate::support::HOUR;
use crate::support::Inner;
use crate::support::Lab;
use crate::support::flaky::FlakyStore;
use crate::support::forged;
use crate::support::form;
use crate::support::post;
use crate::support::see;
use crate::support::send;

#[tokio::test]
async fn the_upstream_credential_takes_the_place_of_the_clients_token() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);

    let answer = send(&gateway, post(issued.access_token.expose(), "hello")).await;

    assert_eq!(
        (answer.status, &*answer.body),
        (StatusCode::OK, b"hello".as_slice())
    );
    let [seen] = &lab.seen()[..] else { panic!() };
    assert_eq!(seen.head_line, "POST /mcp?q=1");
    assert!(seen.bearer().starts_with("upstream-at-0-"));
    assert_eq!(seen.headers.get_all(AUTHORIZATION).iter().count(), 1);
    assert!(seen.headers[AUTHORIZATION].is_sensitive());
    assert_eq!(seen.grant, Some((issued.grant_id, 0)));
}

#[tokio::test]
async fn an_expired_credential_is_refreshed_before_the_call() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);

    lab.clock.advance(HOUR);
    let access = refreshed_access(&lab, &regrant, &issued).await;
    let answer = send(&gateway, post(&access, "hello")).await;

    assert_eq!(answer.status, StatusCode::OK);
    let [seen] = &lab.seen()[..] else { panic!() };
    assert!(seen.bearer().starts_with("upstream-at-1-"));
    assert_eq!(seen.grant, Some((issued.grant_id, 1)));
    assert_eq!(lab.provider.counts().calls, 1);

    let answer = send(&gateway, post(&access, "hello")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.provider.counts().calls, 1, "it is fresh now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_on_one_expired_credential_make_one_provider_call() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.clock.advance(HOUR);
    let access = refreshed_access(&lab, &regrant, &issued).await;
    lab.faults.hold();
    let store_calls = store.calls();

    let barrier = Arc::new(Barrier::new(200));
    let requests = (0..200).map(|number| {
        let (gateway, barrier, access) = (gateway.clone(), Arc::clone(&barrier), access.clone());
        tokio::spawn(async move {
            barrier.wait().await;
            send(&gateway, post(&access, format!("request {number}"))).await
        })
    });
    let requests: Vec<_> = requests.collect();
    lab.faults.arrived(1).await;
    lab.faults.release();
    let answers = join_all(requests).await;

    for (number, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, format!("request {number}"));
    }
    let counts = lab.provider.counts();
    assert_eq!(
        (counts.calls, counts.refreshes, counts.double_spends),
        (1, 1, 0)
    );
    // Each request read its grant and credential; one flight did the rest.
    let store_calls = store.calls() - store_calls;
    assert!(
        store_calls < 2 * 200 + 20,
        "{store_calls} calls of the store"
    );
}

#[tokio::test]
async fn an_early_revoked_credential_heals_within_the_same_request() {
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
async fn a_replay_repeats_trailers_and_what_the_upstream_had_not_read() {
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
async fn the_answer_to_a_replay_is_final_and_its_challenge_is_ours() {
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
async fn what_worked_and_is_revoked_twice_within_a_minute_is_a_503_not_a_401() {
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
async fn no_challenge_of_the_upstream_ever_leaves() {
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
async fn a_request_over_the_bound_is_not_replayed_but_the_next_one_works() {
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
async fn a_stream_passes_frame_by_frame() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let (mut sender, receiver) = Channel::<Bytes, BoxError>::new(1);
    let body = Arc::new(std::sync::Mutex::new(Some(receiver)));
    let upstream = tower::service_fn(move |_request: Request<ReplayBody<Full<Bytes>>>| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let gateway = regrant.layer("linear").unwrap().layer(upstream);

    let request = post(issued.access_token.expose(), "");
    let mut response = gateway.oneshot(request).await.unwrap();

    // Each frame is read before the next one is written.
    for part in ["data: 1\n\n", "data: 2\n\n"] {
        sender
            .send_data(Bytes::from_static(part.as_bytes()))
            .await
            .unwrap();
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
    drop(sender);
    assert!(response.body_mut().frame().await.is_none());
}

#[tokio::test]
async fn who_sends_no_token_or_a_bad_one_is_told_so_precisely() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let layer = regrant
        .layer("linear")
        .unwrap()
        .resource_path("/mcp")
        .unwrap();
    let gateway = layer.layer(lab.upstream());
    let metadata =
        r#"resource_metadata="https://gateway.example/.well-known/oauth-protected-resource/mcp""#;
    let with = |value: &[u8]| {
        let mut request = post("", "");
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().insert(AUTHORIZATION, value);
        request
    };

    let mut none = post("", "");
    none.headers_mut().remove(AUTHORIZATION);
    for request in [none, with(b"Basic YTpi")] {
        let answer = send(&gateway, request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(
            answer.header("www-authenticate"),
            format!("Bearer {metadata}")
        );
        assert_eq!(answer.json()["jsonrpc"], "2.0");
        assert!(answer.json()["id"].is_null());
    }

    let access = issued.access_token.expose();
    let flipped = forged(access);
    let other_grant = access.replace(&issued.grant_id.to_string(), &"0".repeat(32));
    let long = format!("Bearer {}", "a".repeat(100_000));
    for bad in [
        b"Bearer ".as_slice(),
        b"Bearer nonsense",
        b"Bearer rgat_0123456789abcdef0123456789abcdef.AAAA",
        b"Bearer \xff\xfe\xfd",
        b"Bearer rgat_\xc3\xa9",
        format!("Bearer {flipped}").as_bytes(),
        format!("Bearer {other_grant}").as_bytes(),
        format!("Bearer {}", issued.refresh_token.expose()).as_bytes(),
        format!("Bearer {}", access.to_uppercase()).as_bytes(),
        long.as_bytes(),
    ] {
        let answer = send(&gateway, with(bad)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        let want = format!(r#"Bearer error="invalid_token", {metadata}"#);
        assert_eq!(answer.header("www-authenticate"), want);
    }
    assert!(lab.seen().is_empty(), "none of it reached the upstream");

    let answer = send(&gateway, post(access, "")).await;
    assert_eq!(
        answer.status,
        StatusCode::OK,
        "nothing was lost by all that"
    );
}

#[tokio::test]
async fn an_access_token_is_good_until_its_expiry_and_the_leeway_are_over() {
    let lab = Lab::start().await;
    let lifetimes = Lifetimes::default()
        .access(Duration::from_secs(60))
        .leeway(Duration::from_secs(10));
    let regrant = lab
        .builder(MemoryStore::new())
        .lifetimes(lifetimes)
        .start()
        .await
        .unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    assert_eq!(issued.expires_in, Duration::from_secs(60));

    for (seconds, want) in [
        (59, StatusCode::OK),
        (10, StatusCode::OK),
        (1, StatusCode::UNAUTHORIZED),
    ] {
        lab.clock.advance(Duration::from_secs(seconds));
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, want, "{seconds}");
    }
    let rotated = crate::support::refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(rotated.status, StatusCode::OK, "the refresh token is fine");
}

#[tokio::test]
async fn a_grant_is_good_at_its_own_resource_provider_and_scope_only() {
    let lab = Lab::start().await;
    let regrant = lab
        .builder(MemoryStore::new())
        .provider("github", lab.oauth2())
        .start()
        .await
        .unwrap();
    let login = lab
        .login()
        .resource("https://GATEWAY.example/mcp/")
        .scope("read write");
    let issued = regrant.issue(login).await.unwrap();
    let at = |provider, path, scope| {
        let layer = regrant.layer(provider).unwrap();
        let layer = layer.resource_path(path).unwrap();
        layer.required_scope(scope).unwrap().layer(lab.upstream())
    };

    for (provider, path, scope, status, challenge) in [
        ("linear", "/mcp", "read", StatusCode::OK, ""),
        (
            "linear",
            "/other",
            "",
            StatusCode::UNAUTHORIZED,
            r#"error="invalid_token""#,
        ),
        (
            "github",
            "/mcp",
            "",
            StatusCode::FORBIDDEN,
            "Bearer resource_metadata=",
        ),
        (
            "linear",
            "/mcp",
            "read admin",
            StatusCode::FORBIDDEN,
            r#"error="insufficient_scope""#,
        ),
    ] {
        let gateway = at(provider, path, scope);
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, status, "{provider} {path} {scope}");
        assert!(answer.header("www-authenticate").contains(challenge));
    }
    let answer = send(
        &at("linear", "/mcp", "read admin"),
        post(issued.access_token.expose(), ""),
    )
    .await;
    assert!(
        answer
            .header("www-authenticate")
            .contains(r#"scope="read admin""#)
    );
}

#[tokio::test]
async fn the_layer_answers_for_the_endpoints_unless_told_not_to() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", issued.refresh_token.expose()),
    ];

    let with = lab.gateway(&regrant);
    for path in ["/oauth/token", "/token"] {
        let answer = send(&with, form(path, &pairs)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
    }
    let layer = regrant.layer("linear").unwrap().serve_endpoints(false);
    let without = layer.layer(lab.upstream());
    let answer = send(&without, form("/oauth/token", &pairs)).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_request_without_a_token_passes_only_where_that_is_configured() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let layer = regrant.layer("linear").unwrap().pass_through(true);
    let gateway = layer.layer(always(StatusCode::OK));
    let mut request = post("", "");
    request.headers_mut().remove(AUTHORIZATION);

    let answer = send(&gateway, request).await;
    assert_eq!(answer.status, StatusCode::OK);
    // The gateway's own business: its challenge stays.
    assert_eq!(
        answer.header("www-authenticate"),
        "Bearer realm=\"upstream\""
    );

    let answer = send(&gateway, post("nonsense", "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_credential_goes_where_the_route_says() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;

    let header = HeaderName::from_static("x-access-token");
    for (scheme, prefix) in [
        (None, "upstream-at-0-"),
        (Some("token"), "token upstream-at-0-"),
    ] {
        let layer = regrant.layer("linear").unwrap();
        let layer = layer.credential_header(header.clone(), scheme);
        let gateway = layer.layer(lab.witness());
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;

        assert_eq!(answer.status, StatusCode::OK);
        let seen = lab.seen().pop().unwrap();
        let value = seen.headers[&header].to_str().unwrap();
        assert!(value.starts_with(prefix), "{value}");
        assert!(
            !seen.headers.contains_key(AUTHORIZATION),
            "the client's is gone"
        );
    }
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

/// An upstream that says this to everybody, with a challenge of its own.
fn always(status: StatusCode) -> Inner {
    Inner::new(tower::service_fn(
        move |_request: Request<ReplayBody<Full<Bytes>>>| async move {
            let response = Response::builder()
                .status(status)
                .header(WWW_AUTHENTICATE, "Bearer realm=\"upstream\"")
                .body(Full::from("the upstream's words"));
            Ok(response.unwrap())
        },
    ))
}

/// An access token of ours that is good now; the first one expired with the
/// upstream's.
async fn refreshed_access(
    lab: &Lab,
    regrant: &regrant::Regrant,
    issued: &regrant::Issued,
) -> String {
    let before = lab.provider.counts().calls;
    let rotated = crate::support::refresh(regrant, issued.refresh_token.expose()).await;
    assert_eq!(
        rotated.status,
        StatusCode::OK,
        "it does not depend on the upstream"
    );
    assert_eq!(
        lab.provider.counts().calls,
        before,
        "nor does it ask the provider"
    );
    rotated.text("access_token")
}
