//! Clients that are web pages: what the layer and the endpoints let them ask and
//! read.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::ACCESS_CONTROL_ALLOW_ORIGIN;
use http::header::ACCESS_CONTROL_EXPOSE_HEADERS;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::channel::Channel;
use regrant::BoxError;
use regrant::RefreshLayer;
use regrant::Regrant;
use regrant::replay::ReplayBody;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;
use tower::ServiceExt as _;
use tower_http::cors::Any;
use tower_http::cors::CorsLayer;

use crate::support::Answer;
use crate::support::Gateway;
use crate::support::Inner;
use crate::support::Lab;
use crate::support::always;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::issued;
use crate::support::post;
use crate::support::send;
use crate::support::serve;

const PAGE: &str = "https://app.example";

fn from_page<B>(mut request: Request<B>) -> Request<B> {
    let origin = HeaderValue::from_static(PAGE);
    request.headers_mut().insert("origin", origin);
    request
}

fn preflight(path: &str, method: &str, headers: &str) -> Request<Full<Bytes>> {
    let request = Request::options(path)
        .header("origin", PAGE)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", headers);
    request.body(Full::default()).unwrap()
}

/// That the page may read the answer, and everything in it that it needs.
#[track_caller]
fn assert_readable(headers: &HeaderMap) {
    let origins: Vec<_> = headers
        .get_all(ACCESS_CONTROL_ALLOW_ORIGIN)
        .iter()
        .collect();
    assert_eq!(origins, ["*"]);
    let exposed = headers.get_all(ACCESS_CONTROL_EXPOSE_HEADERS);
    let exposed: Vec<_> = exposed.iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(exposed, ["www-authenticate, mcp-session-id, retry-after"]);
    assert!(!headers.contains_key("access-control-allow-credentials"));
}

fn layer(regrant: &Regrant) -> RefreshLayer {
    regrant.layer("linear").unwrap()
}

#[tokio::test]
async fn a_preflight_is_answered_by_the_layer_for_whatever_mcp_sends() {
    let (lab, regrant, _issued) = issued().await;
    let gateway = lab.gateway(&regrant);
    let headers = "authorization, content-type, mcp-protocol-version, mcp-session-id, \
                   mcp-method, mcp-name, mcp-param-region, last-event-id";

    for method in ["GET", "POST", "DELETE"] {
        let answer = send(&gateway, preflight("/mcp", method, headers)).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert!(
            answer
                .header("access-control-allow-methods")
                .contains(method)
        );
        assert_eq!(answer.header("access-control-allow-headers"), headers);
        assert_eq!(answer.header("access-control-max-age"), "3600");
        assert!(
            answer
                .header("vary")
                .contains("access-control-request-headers")
        );
        assert!(answer.body.is_empty());
    }
    assert!(lab.seen().is_empty(), "the gateway was not asked");
}

#[tokio::test]
async fn what_is_not_a_preflight_needs_a_bearer() {
    let (lab, regrant, _issued) = issued().await;
    let gateway = lab.gateway(&regrant);

    for missing in ["origin", "access-control-request-method"] {
        let mut request = preflight("/mcp", "POST", "authorization");
        request.headers_mut().remove(missing);
        let answer = send(&gateway, request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{missing}");
    }
    let mut request = preflight("/mcp", "POST", "authorization");
    *request.method_mut() = Method::POST;
    let answer = send(&gateway, request).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_readable(&answer.headers);
}

#[tokio::test]
async fn a_page_can_read_every_answer_and_its_challenge() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let access = issued.access_token.expose();
    let gateway = lab.gateway(&regrant);
    let admin = layer(&regrant).required_scope("admin").unwrap();
    let admin = admin.layer(lab.upstream());

    let bare = Request::post("/mcp").body(Full::default()).unwrap();
    for (gateway, request, status) in [
        (&gateway, bare, 401),
        (&gateway, post("nonsense", ""), 401),
        (&admin, post(access, ""), 403),
        (&gateway, post(access, "hello"), 200),
    ] {
        let answer = send(gateway, from_page(request)).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_readable(&answer.headers);
        assert_eq!(answer.header("www-authenticate").is_empty(), status == 200);
    }
    // The gateway's own 401, which the upstream's refusal is.
    let refusing = layer(&regrant).layer(always(StatusCode::FORBIDDEN));
    let answer = send(&refusing, from_page(post(access, ""))).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.body, "the upstream's words");
    assert_readable(&answer.headers);

    store.set_down(true);
    lab.clock.advance(std::time::Duration::from_secs(6));
    let answer = send(&gateway, from_page(post(access, ""))).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_readable(&answer.headers);
}

#[tokio::test]
async fn whoever_is_not_a_page_gets_no_word_of_it() {
    let (lab, regrant, issued) = issued().await;
    let gateway = lab.gateway(&regrant);

    for access in [issued.access_token.expose(), "nonsense"] {
        let answer = send(&gateway, post(access, "")).await;
        let words = answer.headers.keys().map(http::HeaderName::as_str);
        let words: Vec<_> = words.filter(|n| n.starts_with("access-control")).collect();
        assert!(words.is_empty(), "{words:?}");
    }
}

#[tokio::test]
async fn the_origin_reaches_the_gateway_and_its_refusal_the_page() {
    let (lab, regrant, issued) = issued().await;
    let strict = Inner::new(tower::service_fn(
        async |request: Request<ReplayBody<Full<Bytes>>>| {
            let mut response = Response::new(Full::default());
            if request.headers()["origin"] == PAGE {
                *response.status_mut() = StatusCode::FORBIDDEN;
            }
            Ok::<_, Infallible>(response)
        },
    ));
    let gateway: Gateway = layer(&regrant).layer(strict);
    drop(lab);

    let answer = send(&gateway, from_page(post(issued.access_token.expose(), ""))).await;

    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(
        answer.header("www-authenticate"),
        "",
        "it is not about scopes"
    );
    assert_readable(&answer.headers);
}

#[tokio::test]
async fn beside_a_cors_layer_nothing_is_said_twice() {
    let (lab, regrant, issued) = issued().await;
    let access = issued.access_token.expose();
    let cors = || {
        CorsLayer::new()
            .allow_origin([HeaderValue::from_static(PAGE)])
            .allow_methods([Method::POST])
            .allow_headers(Any)
            .expose_headers([http::HeaderName::from_static("x-own")])
    };
    let said = |answer: &Answer, name: &str| -> Vec<String> {
        let values = answer.headers.get_all(name).iter();
        values.map(|v| v.to_str().unwrap().to_owned()).collect()
    };

    // Around the layer: its word is the last.
    let outer = cors().layer(lab.gateway(&regrant));
    for (request, status) in [(post(access, ""), 200), (post("nonsense", ""), 401)] {
        let answer = outer.clone().oneshot(from_page(request)).await.unwrap();
        let answer = Answer::of(answer).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(said(&answer, "access-control-allow-origin"), [PAGE]);
        assert_eq!(said(&answer, "access-control-expose-headers"), ["x-own"]);
    }
    let answer = outer.oneshot(preflight("/mcp", "POST", "x")).await.unwrap();
    let answer = Answer::of(answer).await;
    assert_eq!(said(&answer, "access-control-allow-origin"), [PAGE]);

    // Behind it: what the gateway says stands; the layer's own answers are the
    // layer's.
    let inner = layer(&regrant).layer(cors().layer(lab.upstream()));
    let answer = inner.clone().oneshot(from_page(post(access, ""))).await;
    let answer = Answer::of(answer.unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(said(&answer, "access-control-allow-origin"), [PAGE]);
    assert_eq!(said(&answer, "access-control-expose-headers"), ["x-own"]);
    let answer = inner.oneshot(from_page(post("nonsense", ""))).await;
    assert_readable(answer.unwrap().headers());

    // Turned off, it is all the gateway's.
    let off = layer(&regrant).cross_origin(false).pass_through(true);
    let off = off.layer(cors().layer(lab.upstream()));
    let answer = off.clone().oneshot(preflight("/mcp", "POST", "x")).await;
    let answer = Answer::of(answer.unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(said(&answer, "access-control-allow-origin"), [PAGE]);
    let answer = off.oneshot(from_page(post("nonsense", ""))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert!(!answer.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
}

/// A gateway that lets requests in without a bearer may know its users by where
/// they come from: no page may be let in with them.
#[tokio::test]
async fn what_passes_through_without_a_bearer_is_not_opened_to_pages() {
    let (lab, regrant, issued) = issued().await;
    let gateway = layer(&regrant).pass_through(true).layer(lab.witness());

    let bare = Request::post("/mcp").body(Full::default()).unwrap();
    for request in [preflight("/mcp", "POST", "content-type"), from_page(bare)] {
        let answer = send(&gateway, request).await;
        assert_eq!(answer.status, StatusCode::OK, "the gateway's answer");
        assert!(!answer.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }
    for access in [issued.access_token.expose(), "nonsense"] {
        let answer = send(&gateway, from_page(post(access, ""))).await;
        assert_readable(&answer.headers);
    }
}

#[tokio::test]
async fn a_stream_reaches_the_page_frame_by_frame() {
    let (_lab, regrant, issued) = issued().await;
    let (mut sender, receiver) = Channel::<Bytes, BoxError>::new(1);
    let body = Arc::new(Mutex::new(Some(receiver)));
    let upstream = tower::service_fn(move |_request: Request<ReplayBody<Full<Bytes>>>| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let gateway = layer(&regrant).layer(upstream);

    let request = from_page(post(issued.access_token.expose(), ""));
    let mut response = gateway.oneshot(request).await.unwrap();

    assert_readable(response.headers());
    for part in ["data: 1\n\n", "data: 2\n\n"] {
        let part = Bytes::from_static(part.as_bytes());
        sender.send_data(part.clone()).await.unwrap();
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
}

#[tokio::test]
async fn a_page_can_use_the_endpoints() {
    let lab = Lab::start().await;
    let regrant = lab.builder(MemoryStore::new()).start().await.unwrap();
    let secret = regrant::secret::ClientSecret::new("0123456789abcdef0123456789abcdef");
    let worker = regrant::Client::new("worker").secret(&secret);
    regrant.register_client(worker).await.unwrap();
    let login = lab.login().client_id("worker");
    let issued = regrant.issue(login).await.unwrap();
    let metadata = "/.well-known/oauth-authorization-server";

    // `client_secret_basic` and metadata requests have headers to ask for.
    for (path, method, headers) in [
        ("/oauth/token", "POST", "authorization,content-type"),
        ("/token", "POST", "authorization,content-type"),
        ("/oauth/revoke", "POST", "authorization"),
        (metadata, "GET", "mcp-protocol-version"),
        ("/.well-known/oauth-protected-resource", "GET", "x-trace"),
    ] {
        let answer = send(&lab.gateway(&regrant), preflight(path, method, headers)).await;
        assert!(answer.status.is_success(), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        let methods = answer.header("access-control-allow-methods");
        assert!(methods.contains(method), "{methods}");
        let allowed = answer.header("access-control-allow-headers");
        assert_eq!(allowed, headers, "{path}");
    }

    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", issued.refresh_token.expose()),
        ("client_id", "worker"),
        ("client_secret", "wrong"),
    ];
    let answer = ask(&regrant, from_page(form("/oauth/token", &pairs))).await;
    assert_eq!(answer.text("error"), "invalid_client");
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    let exposed = answer.header("access-control-expose-headers");
    assert_eq!(exposed, "retry-after,www-authenticate");
}

/// What `fetch` does, over a socket: a preflight, the call, and a look at the
/// challenge.
#[tokio::test]
async fn over_a_socket_a_page_gets_through_and_finds_out_where_to_log_in() {
    let (_lab, regrant, issued) = issued().await;
    let echo = any(async |request: Request<Body>| {
        let session = [("mcp-session-id", "s1")];
        (session, request.into_body())
    });
    let layer = layer(&regrant).resource_path("/mcp").unwrap();
    let url = serve(Router::new().route("/mcp", echo).layer(layer)).await;
    let client = reqwest::Client::new();
    let mcp = format!("{url}/mcp");

    let asked = client
        .request(Method::OPTIONS, &mcp)
        .header("origin", PAGE)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type",
        );
    let asked = asked.send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::NO_CONTENT);
    let allowed = &asked.headers()["access-control-allow-headers"];
    assert_eq!(allowed, "authorization,content-type");

    let call = client.post(&mcp).header("origin", PAGE).body("hello");
    let refused = call.try_clone().unwrap().send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_readable(refused.headers());
    let challenge = refused.headers()["www-authenticate"].to_str().unwrap();
    let metadata = "/.well-known/oauth-protected-resource/mcp";
    assert!(challenge.contains(metadata), "{challenge}");
    let metadata = client
        .get(format!("{url}{metadata}"))
        .header("origin", PAGE);
    let metadata = metadata.send().await.unwrap();
    assert_eq!(metadata.headers()["access-control-allow-origin"], "*");

    let answer = call.bearer_auth(issued.access_token.expose());
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_readable(answer.headers());
    assert_eq!(answer.headers()["mcp-session-id"], "s1");
    assert_eq!(answer.text().await.unwrap(), "hello");
}
