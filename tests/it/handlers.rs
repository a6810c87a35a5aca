//! Handlers inside the gateway that call the upstream themselves, and upstreams
//! that hide a refusal in the body.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::channel::Channel;
use regrant::BoxError;
use regrant::GrantContext;
use regrant::Issued;
use regrant::Regrant;
use regrant::classify::Expired;
use regrant::classify::body::ExpiredInBodyLayer;
use regrant::error::RefreshErrorKind;
use regrant::replay::ReplayBody;
use serde_json::Value;
use serde_json::json;
use tower::Layer as _;
use tower::ServiceBuilder;
use tower::ServiceExt as _;

use crate::support::HOUR;
use crate::support::Inner;
use crate::support::Lab;
use crate::support::issued;
use crate::support::post;

type Sent = Request<ReplayBody<Full<Bytes>>>;

/// The handle that the gateway's handler got for one request.
async fn handle(regrant: &Regrant, issued: &Issued) -> GrantContext {
    let handle = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&handle);
    let handler = tower::service_fn(move |request: Sent| {
        *kept.lock().unwrap() = request.extensions().get::<GrantContext>().cloned();
        async { Ok::<_, Infallible>(Response::new(String::new())) }
    });
    let gateway = regrant.layer("linear").unwrap().layer(handler);
    let request = post(issued.access_token.expose(), "");
    let answer = gateway.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    handle.lock().unwrap().take().unwrap()
}

#[tokio::test]
async fn a_handler_has_a_fresh_credential_for_as_long_as_it_lives() {
    let (lab, regrant, issued) = issued().await;
    let grant = handle(&regrant, &issued).await;
    assert_eq!(grant.fresh().await.unwrap().credential_generation(), 0);
    assert_eq!(lab.provider.counts().calls, 0);

    lab.clock.advance(HOUR);
    let fresh = grant.fresh().await.unwrap();

    assert_eq!(fresh.credential_generation(), 1);
    assert!(
        lab.provider
            .introspect(fresh.access_token().expose())
            .is_some()
    );
    assert_eq!(fresh.id(), grant.id());
    assert_eq!(grant.credential_generation(), 0, "what it was called with");
}

#[tokio::test]
async fn a_handler_reports_an_expired_credential_and_gets_a_new_one() {
    let (lab, regrant, issued) = issued().await;
    let mut grant = handle(&regrant, &issued).await;
    lab.provider.revoke_access_tokens();

    grant.report_expired();
    let mut fresh = grant.fresh().await.unwrap();
    assert_eq!(fresh.credential_generation(), 1);
    assert!(
        lab.provider
            .introspect(fresh.access_token().expose())
            .is_some()
    );

    // Late reports of the old one change nothing.
    grant.report_expired();
    assert_eq!(grant.fresh().await.unwrap().credential_generation(), 1);
    assert_eq!(lab.provider.counts().calls, 1);

    // Once a minute, as for the upstream's own word.
    fresh.report_expired();
    let error = fresh.fresh().await.unwrap_err();
    assert_eq!(error.kind(), RefreshErrorKind::Provider);
    assert!(error.retry_after().is_some());
    lab.clock.advance(Duration::from_secs(60));
    assert_eq!(fresh.fresh().await.unwrap().credential_generation(), 2);
}

#[tokio::test]
async fn a_handler_gets_nothing_more_for_a_grant_that_was_revoked() {
    let (lab, regrant, issued) = issued().await;
    let grant = handle(&regrant, &issued).await;
    lab.clock.advance(HOUR);
    // Here at once; elsewhere within the staleness bound.
    assert!(regrant.revoke(issued.grant_id).await.unwrap());

    let error = grant.fresh().await.unwrap_err();

    assert_eq!(error.kind(), RefreshErrorKind::Terminal);
    assert_eq!(lab.provider.counts().calls, 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_not_held_back_for_long() {
    // Too slow, or too long without saying so beforehand.
    for (limit, held) in [(100, 1), (2, 0)] {
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(4);
        let body = Arc::new(Mutex::new(Some(body)));
        let upstream = tower::service_fn(move |_request: Request<String>| {
            let body = body.lock().unwrap().take().unwrap();
            let response = Response::builder().header("content-type", "application/json");
            async { Ok::<_, Infallible>(response.body(body).unwrap()) }
        });
        let gateway = ExpiredInBodyLayer::new(says_401).limit(limit);
        let gateway = gateway.layer(upstream);
        sender.send_data(Bytes::from_static(b"[1,")).await.unwrap();
        let begun = tokio::time::Instant::now();

        let answer = gateway.oneshot(Request::new(String::new()));
        let answer = tokio::time::timeout(HOUR, answer).await.unwrap();

        assert_eq!(begun.elapsed(), Duration::from_secs(held));
        let mut body = answer.unwrap().into_body();
        sender.send_data(Bytes::from_static(b"2]")).await.unwrap();
        drop(sender);
        for part in ["[1,", "2]"] {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), part);
        }
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn a_handler_may_have_its_request_replayed() {
    let (lab, regrant, issued) = issued().await;
    let provider = lab.provider.clone();
    let handler = tower::service_fn(move |request: Sent| {
        let grant = request.extensions().get::<GrantContext>().unwrap();
        let is_live = provider.introspect(grant.access_token().expose());
        let mut response = Response::new(String::new());
        if is_live.is_none() {
            response.extensions_mut().insert(Expired);
        }
        async { Ok::<_, Infallible>(response) }
    });
    lab.provider.revoke_access_tokens();
    let gateway = regrant.layer("linear").unwrap().layer(handler);

    let request = post(issued.access_token.expose(), "");
    let answer = gateway.oneshot(request).await.unwrap();

    assert!(answer.extensions().get::<Expired>().is_none());
    assert_eq!(lab.provider.counts().refreshes, 1);
}

/// An MCP server that answers 200 to everybody, and says inside what is wrong.
fn tool(lab: &Lab, media: &'static str, padding: usize) -> Inner {
    let (provider, seen) = (lab.provider.clone(), Arc::clone(&lab.seen));
    Inner::new(tower::service_fn(move |request: Sent| {
        let (provider, seen) = (provider.clone(), Arc::clone(&seen));
        async move {
            let request = crate::support::see(request).await;
            let is_live = provider.introspect(request.bearer()).is_some();
            seen.lock().unwrap().push(request);
            let text = if is_live { "done" } else { "upstream: 401" };
            let answer = json!({
                "jsonrpc": "2.0",
                "id": 1,
                "result": { "isError": !is_live, "content": [{ "type": "text", "text": text }] },
                "padding": " ".repeat(padding),
            });
            let mut response = Response::new(Full::from(answer.to_string()));
            let media = http::HeaderValue::from_static(media);
            response.headers_mut().insert("content-type", media);
            Ok(response)
        }
    }))
}

fn says_401(head: &http::response::Parts, answer: &Value) -> bool {
    let result = &answer["result"];
    let text = result["content"][0]["text"].as_str();
    head.status == StatusCode::OK
        && result["isError"] == true
        && text.is_some_and(|text| text.contains("401"))
}

#[tokio::test]
async fn fm08_a_refusal_inside_a_200_is_refreshed_and_replayed_where_that_is_wanted() {
    for (media, padding, opted_in, want) in [
        ("application/json", 0, true, "done"),
        ("application/json; charset=utf-8", 0, true, "done"),
        ("application/problem+json", 0, true, "done"),
        ("application/json", 0, false, "upstream: 401"),
        // Too long, or a stream: never held up, never read.
        ("application/json", 20_000, true, "upstream: 401"),
        ("text/event-stream", 0, true, "upstream: 401"),
    ] {
        let (lab, regrant, issued) = issued().await;
        lab.provider.revoke_access_tokens();
        let refresh = regrant.layer("linear").unwrap();
        let request = post(issued.access_token.expose(), "call");
        let upstream = tool(&lab, media, padding);
        let bytes = if opted_in {
            let gateway = ServiceBuilder::new()
                .layer(refresh)
                .layer(ExpiredInBodyLayer::new(says_401))
                .service(upstream);
            let answer = gateway.oneshot(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            answer.into_body().collect().await.unwrap().to_bytes()
        } else {
            let answer = refresh.layer(upstream).oneshot(request).await.unwrap();
            answer.into_body().collect().await.unwrap().to_bytes()
        };

        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        let text = &answer["result"]["content"][0]["text"];
        assert_eq!(text, want, "{media}, {padding}");
        assert_eq!(answer["padding"].as_str().unwrap().len(), padding);
        let calls = usize::from(want == "done");
        assert_eq!(lab.provider.counts().calls, calls, "{media}");
        assert_eq!(lab.seen().len(), 1 + calls);
        assert!(lab.seen().iter().all(|seen| seen.body == "call"));
    }
}

#[tokio::test]
async fn fm09_a_refusal_of_an_older_credential_is_replayed_without_a_refresh() {
    let (lab, regrant, issued) = issued().await;
    let gate = tokio::sync::watch::Sender::new(false);
    let (closed, provider) = (gate.clone(), lab.provider.clone());
    // Takes its time with the first token, and refuses it in the end.
    let slow = Inner::new(tower::service_fn(move |request: Sent| {
        let (closed, provider) = (closed.clone(), provider.clone());
        async move {
            let request = crate::support::see(request).await;
            let mut response = Response::new(Full::default());
            if request.grant.unwrap().1 == 0 {
                closed.subscribe().wait_for(|open| *open).await.unwrap();
            }
            if provider.introspect(request.bearer()).is_none() {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
            }
            Ok(response)
        }
    }));
    let slow = regrant.layer("linear").unwrap().layer(slow);
    let request = || post(issued.access_token.expose(), "");
    let waiting = tokio::spawn(slow.oneshot(request()));
    tokio::task::yield_now().await;
    lab.provider.revoke_access_tokens();
    let other = crate::support::send(&lab.gateway(&regrant), request()).await;
    assert_eq!(other.status, StatusCode::OK);
    assert_eq!(lab.provider.counts().calls, 1);

    gate.send_replace(true);

    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(lab.provider.counts().calls, 1, "it was refreshed already");
}
