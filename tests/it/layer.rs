//! What the layer does to requests and responses while all goes well.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderName;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::AUTHORIZATION;
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
use crate::support::Lab;
use crate::support::always;
use crate::support::flaky::FlakyStore;
use crate::support::forged;
use crate::support::form;
use crate::support::post;
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
async fn fm25_the_leeway_of_a_token_does_not_outlast_its_grant_in_memory_either() {
    let lab = Lab::start().await;
    let absolute = Duration::from_secs(60);
    let lifetimes = Lifetimes::default().refresh_absolute(absolute);
    let builder = lab.builder(MemoryStore::new()).lifetimes(lifetimes);
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);

    for (seconds, want) in [(59, StatusCode::OK), (1, StatusCode::UNAUTHORIZED)] {
        lab.clock.advance(Duration::from_secs(seconds));
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, want, "{seconds}");
    }
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
