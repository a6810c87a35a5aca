//! HTTP Basic (RFC 7617): a token of ours as its password on the way in, the
//! upstream's on the way out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use http::Request;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::ORIGIN;
use http::header::WWW_AUTHENTICATE;
use http_body_util::Full;
use regrant::RefreshLayer;
use regrant::Regrant;
use regrant::resolve::Caller;
use regrant::resolve::FromExtensions;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;

use crate::support::Answer;
use crate::support::Lab;
use crate::support::always;
use crate::support::forged;
use crate::support::issued;
use crate::support::post;
use crate::support::send;

#[tokio::test]
async fn a_token_as_the_password_is_as_good_as_a_bearer_where_that_is_accepted() {
    let (lab, regrant, issued) = issued().await;
    let access = issued.access_token.expose();
    let gateway = layer(&regrant).layer(lab.upstream());

    for user in ["x-access-token", "ada", ""] {
        let answer = send(&gateway, of(user, access)).await;
        assert_eq!(answer.status, StatusCode::OK, "{user}");
        let seen = lab.seen().pop().unwrap();
        assert!(seen.bearer().starts_with("upstream-at-0-"));
        assert_eq!(seen.grant, Some((issued.grant_id, 0)));
    }
    // From the store and from memory, with a bearer from the same memory.
    let answer = send(&gateway, post(access, "")).await;
    assert_eq!(answer.status, StatusCode::OK);

    let without = lab.gateway(&regrant);
    let answer = send(&without, of("x-access-token", access)).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(errors(&answer), [""]);
    assert_eq!(lab.seen().len(), 4);
}

#[tokio::test]
async fn what_a_page_sends_is_not_served_by_the_password_that_a_browser_kept() {
    let (lab, regrant, issued) = issued().await;
    let access = issued.access_token.expose();
    let page = |mut request: Request<Full<Bytes>>| {
        let origin = HeaderValue::from_static("https://page.example");
        request.headers_mut().insert(ORIGIN, origin);
        request
    };
    let gateway = layer(&regrant).layer(lab.upstream());

    let answer = send(&gateway, page(of("x-access-token", access))).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(errors(&answer), ["", "basic"]);
    assert!(lab.seen().is_empty());
    let answer = send(&gateway, page(post(access, ""))).await;
    assert_eq!(answer.status, StatusCode::OK);

    // Nor does it get past us where others than ours may.
    let passing = layer(&regrant).pass_through(true).layer(lab.witness());
    let answer = send(&passing, page(of("x-access-token", access))).await;
    assert_eq!(answer.status, StatusCode::OK);
    let seen = lab.seen().pop().unwrap();
    assert!(!seen.headers.contains_key(AUTHORIZATION));
    assert_eq!(seen.grant, None);
}

#[tokio::test]
async fn the_clients_basic_reaches_the_upstream_in_no_case() {
    let (lab, regrant, issued) = issued().await;
    let access = issued.access_token.expose();
    // What is put in elsewhere overwrites nothing.
    let elsewhere = HeaderName::from_static("x-upstream");
    let gateway = layer(&regrant).credential_header(elsewhere.clone(), None);
    // Takes nothing, so that there is a replay.
    let gateway = gateway.layer(lab.upstream());

    let answer = send(&gateway, of("x-access-token", access)).await;

    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(errors(&answer), ["invalid_token", "basic"]);
    let seen = lab.seen();
    assert_eq!(seen.len(), 2, "the request and its replay");
    for (number, seen) in seen.into_iter().enumerate() {
        let value = seen.headers[&elsewhere].to_str().unwrap();
        let prefix = format!("upstream-at-{number}-");
        assert!(value.starts_with(&prefix));
        assert!(!seen.headers.contains_key(AUTHORIZATION));
    }
}

#[tokio::test]
async fn the_credential_goes_out_as_a_password_and_in_the_replay_too() {
    let (lab, regrant, issued) = issued().await;
    let layer = regrant.layer("linear").unwrap();
    let layer = layer.credential_header(HeaderName::from_static("x-upstream"), None);
    let layer = layer.credential_basic("x-access-token").unwrap();
    // Finds no bearer, so that there is a replay.
    let gateway = layer.layer(lab.upstream());

    send(&gateway, post(issued.access_token.expose(), "hello")).await;

    let seen = lab.seen();
    assert_eq!(seen.len(), 2);
    for (number, seen) in seen.into_iter().enumerate() {
        let values: Vec<_> = seen.headers.get_all(AUTHORIZATION).iter().collect();
        let [value] = values[..] else { panic!() };
        assert!(value.is_sensitive());
        let encoded = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        let pair = String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
        let prefix = format!("x-access-token:upstream-at-{number}-");
        assert!(pair.starts_with(&prefix), "{number}");
        assert!(!seen.headers.contains_key("x-upstream"));
        assert_eq!(seen.body, "hello");
    }
}

#[tokio::test]
async fn a_user_name_that_does_not_fit_into_basic_is_refused() {
    let (_lab, regrant, _issued) = issued().await;
    for bad in ["x:y", ":", "x\ny", "\0", "\u{7f}"] {
        let layer = regrant.layer("linear").unwrap();
        let error = layer.credential_basic(bad).unwrap_err();
        assert_eq!(error.setting(), "user name of the credential");
    }
    for good in ["x-access-token", "", "zoë"] {
        let layer = regrant.layer("linear").unwrap();
        assert!(layer.credential_basic(good).is_ok(), "{good}");
    }
}

#[tokio::test]
async fn each_401_asks_for_basic_too_and_no_403_does() {
    let lab = Lab::start().await;
    let builder = lab.builder(MemoryStore::new());
    let builder = builder.provider("github", lab.oauth2());
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let access = issued.access_token.expose();
    let gateway = layer(&regrant).layer(lab.upstream());

    let forged = forged(access);
    for (request, error) in [
        (nobody(), ""),
        (of("x-access-token", ""), ""),
        (of("x-access-token", "nonsense"), "invalid_token"),
        (of("x-access-token", &forged), "invalid_token"),
        (of(access, "x-oauth-basic"), "invalid_token"),
        (with("Basic nonsense"), "invalid_token"),
        (post(&forged, ""), "invalid_token"),
    ] {
        let answer = send(&gateway, request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(errors(&answer), [error, "basic"]);
    }
    assert!(lab.seen().is_empty(), "none of it reached the upstream");

    // The upstream's own 401 is passed on with our challenges, its 403 with one.
    for (status, want) in [
        (StatusCode::UNAUTHORIZED, &["invalid_token", "basic"][..]),
        (StatusCode::FORBIDDEN, &["insufficient_scope"]),
    ] {
        let gateway = layer(&regrant).layer(always(status));
        let answer = send(&gateway, of("x-access-token", access)).await;
        assert_eq!((answer.status, &errors(&answer)[..]), (status, want));
    }
    let scope = layer(&regrant).required_scope("admin").unwrap();
    let other = regrant.layer("github").unwrap().accept_basic(true);
    for (layer, want) in [(scope, "insufficient_scope"), (other, "")] {
        let answer = send(&layer.layer(lab.upstream()), of("", access)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert_eq!(errors(&answer), [want]);
    }

    regrant.revoke(issued.grant_id).await.unwrap();
    let answer = send(&gateway, of("x-access-token", access)).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(errors(&answer), ["invalid_token", "basic"]);
    let quiet = layer(&regrant).accept_basic(false);
    let answer = send(&quiet.layer(lab.upstream()), post(access, "")).await;
    assert_eq!(errors(&answer), ["invalid_token"]);
}

#[tokio::test]
async fn the_realm_is_the_resource() {
    let (lab, regrant, _issued) = issued().await;
    let layer = layer(&regrant).resource_path("/git").unwrap();
    let answer = send(&layer.layer(lab.upstream()), nobody()).await;
    let values: Vec<_> = answer.headers.get_all(WWW_AUTHENTICATE).iter().collect();
    assert_eq!(
        values,
        [
            r#"Bearer resource_metadata="https://gateway.example/.well-known/oauth-protected-resource/git""#,
            r#"Basic realm="https://gateway.example/git", charset="UTF-8""#,
        ]
    );
}

#[tokio::test]
async fn basic_that_is_meant_for_us_does_not_pass_through() {
    let (lab, regrant, issued) = issued().await;
    let access = issued.access_token.expose();
    let passing = |accepts| {
        let layer = layer(&regrant).accept_basic(accepts).pass_through(true);
        layer.layer(lab.witness())
    };

    // A token where a user name should be, as some clients send it.
    let answer = send(&passing(true), of(access, "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    let seen = lab.seen().pop().unwrap();
    assert!(!seen.headers.contains_key(AUTHORIZATION));
    let answer = send(&passing(true), of("ada", "hers")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);

    // Otherwise it is the gateway's own business, as is what is not Basic.
    for (accepts, request) in [(false, of("ada", "hers")), (true, with("Digest x"))] {
        let sent = request.headers()[AUTHORIZATION].clone();
        let answer = send(&passing(accepts), request).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(lab.seen().pop().unwrap().headers[AUTHORIZATION], sent);
    }
}

#[tokio::test]
async fn whom_the_gateway_names_is_asked_for_no_password() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    // That login's credential is the subject's.
    lab.issue(&regrant).await;
    let named = || {
        let mut request = of("x-access-token", "nonsense");
        request.extensions_mut().insert(Caller::new("ada"));
        request
    };
    let layer = layer(&regrant).with_resolve_grant(FromExtensions);

    let answer = send(&layer.layer(lab.upstream()), named()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let refusing = layer.layer(always(StatusCode::UNAUTHORIZED));
    let answer = send(&refusing, named()).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(errors(&answer).is_empty());
}

fn layer(regrant: &Regrant) -> RefreshLayer {
    regrant.layer("linear").unwrap().accept_basic(true)
}

fn of(user: &str, password: &str) -> Request<Full<Bytes>> {
    let pair = STANDARD.encode(format!("{user}:{password}"));
    with(&format!("Basic {pair}"))
}

fn with(authorization: &str) -> Request<Full<Bytes>> {
    let mut request = post("", "");
    let value = HeaderValue::try_from(authorization).unwrap();
    request.headers_mut().insert(AUTHORIZATION, value);
    request
}

fn nobody() -> Request<Full<Bytes>> {
    let mut request = post("", "");
    request.headers_mut().remove(AUTHORIZATION);
    request
}

/// The challenges of an answer: the error of each bearer's, or `basic`.
fn errors(answer: &Answer) -> Vec<&str> {
    let values = answer.headers.get_all(WWW_AUTHENTICATE).iter();
    values
        .map(|value| {
            let value = value.to_str().unwrap();
            if value.starts_with("Basic realm=\"https://gateway.example") {
                return "basic";
            }
            assert!(value.starts_with("Bearer "), "{value}");
            let error = value.split_once("error=\"");
            error.map_or("", |(_, rest)| rest.split_once('"').unwrap().0)
        })
        .collect()
}
