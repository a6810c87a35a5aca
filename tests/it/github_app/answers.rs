//! What a refresh makes of GitHub's answers.

use std::time::Duration;
use std::time::SystemTime;

use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use regrant::provider::Expiry;
use regrant::provider::Provider as _;
use regrant::provider::ProviderErrorKind;
use regrant::provider::ProviderErrorKind::Misconfigured;
use regrant::provider::ProviderErrorKind::Rejected;
use regrant::provider::ProviderErrorKind::Terminal;
use regrant::provider::ProviderErrorKind::Transient;
use regrant::provider::RefreshRequest;
use regrant::provider::github::GitHubApp;
use regrant::secret::PrivateKey;
use regrant::secret::UpstreamRefreshToken;
use serde_json::json;

use super::Stage;
use super::message;
use super::refresh;
use super::rocket;
use crate::github::AppKey;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::github::GitHub;

#[tokio::test]
async fn every_answer_that_is_no_token_says_what_became_of_the_login() {
    let stage = Stage::start().await;
    let app = stage.app();
    let status = |code| StatusCode::from_u16(code).unwrap();
    let said = |code| message(status(code));
    let limited = |code, name: &'static str, value: &'static str| {
        let name = HeaderName::from_static(name);
        said(code).header(name, HeaderValue::from_static(value))
    };
    let secondary = json!({"message": "You have exceeded a secondary rate limit"}).to_string();
    for (number, (fault, kind, code, after)) in [
        (said(404), Terminal, "installation_gone", None),
        (said(422), Terminal, "not_granted", None),
        (said(401), Misconfigured, "app_refused", None),
        (said(403), Rejected, "refused", None),
        (said(400), Rejected, "refused", None),
        (said(301), Rejected, "refused", None),
        (said(429), Transient, "rate_limited", Some(60)),
        (
            limited(403, "retry-after", "7"),
            Transient,
            "rate_limited",
            Some(7),
        ),
        (
            limited(403, "x-ratelimit-remaining", "0"),
            Transient,
            "rate_limited",
            Some(3_600),
        ),
        (
            Fault::answer(status(403), secondary),
            Transient,
            "rate_limited",
            Some(60),
        ),
        (said(500), Transient, "unavailable", None),
        (
            limited(503, "retry-after", "7"),
            Transient,
            "unavailable",
            Some(7),
        ),
        (said(408), Transient, "unavailable", None),
        // Not of GitHub's making, so no word on the login.
        (
            Fault::answer(status(404), "<html>"),
            Transient,
            "unreadable_answer",
            None,
        ),
        (
            Fault::answer(status(422), " <!doctype html>"),
            Transient,
            "unreadable_answer",
            None,
        ),
        (
            Fault::answer(status(422), ""),
            Transient,
            "unreadable_answer",
            None,
        ),
        (
            Fault::answer(status(200), "{"),
            Transient,
            "unreadable_answer",
            None,
        ),
        (
            Fault::answer(status(201), r#"{"token":""}"#),
            Transient,
            "unreadable_answer",
            None,
        ),
        (
            Fault::answer(status(201), r#"{"token":"a\nb"}"#),
            Transient,
            "unreadable_answer",
            None,
        ),
        (Fault::Reset, Transient, "no_answer", None),
        (Fault::LoseAnswer, Transient, "no_answer", None),
    ]
    .into_iter()
    .enumerate()
    {
        // Each has its own, because it remembers how long it is limited.
        let app = stage.builder().build().unwrap();
        stage.github.fail_next(Endpoint::Mint, fault);
        let error = refresh(&app, &rocket()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{number}");
        assert_eq!(error.code(), Some(code), "{number}");
        assert_eq!(
            error.retry_after(),
            after.map(Duration::from_secs),
            "{number}"
        );
        assert!(!format!("{error:?}").contains("canary"), "{number}");
    }
    let token = UpstreamRefreshToken::new("rt");
    let error = app.refresh(RefreshRequest::new(&token)).await.unwrap_err();
    assert_eq!(error.kind(), Rejected);
}

#[tokio::test]
async fn what_happens_at_github_says_what_became_of_the_login() {
    type Event = fn(&GitHub);
    let events: [(Event, ProviderErrorKind); 4] = [
        (|github| github.uninstall(7), Terminal),
        (|github| github.remove_repository(7, 70), Terminal),
        (|github| github.set_permissions(7, &[]), Terminal),
        (|github| github.suspend(7), Rejected),
    ];
    for (number, (event, want)) in events.into_iter().enumerate() {
        let stage = Stage::start().await;
        event(&stage.github);
        let error = refresh(&stage.app(), &rocket()).await.unwrap_err();
        assert_eq!(error.kind(), want, "{number}");
    }
}

#[tokio::test]
async fn an_expiry_that_nobody_can_read_is_unknown_and_the_token_is_kept() {
    let stage = Stage::start().await;
    let app = stage.app();
    let year_2100 = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    for (member, want) in [
        (
            r#","expires_at":"2100-01-01T00:00:00Z""#,
            Expiry::At(year_2100),
        ),
        (
            r#","expires_at":"2100-01-01T01:00:00+01:00""#,
            Expiry::At(year_2100),
        ),
        (
            r#","expires_at":"2100-01-01T00:00:00.000Z","permissions":3"#,
            Expiry::At(year_2100),
        ),
        (r#","expires_at":"soon""#, Expiry::Unknown),
        (r#","expires_at":null"#, Expiry::Unknown),
        (r#","expires_at":4102444800"#, Expiry::Unknown),
        ("", Expiry::Unknown),
    ] {
        let token = "x".repeat(4_000);
        let body = format!(r#"{{"token":"{token}"{member}}}"#);
        stage
            .github
            .fail_next(Endpoint::Mint, Fault::answer(StatusCode::CREATED, body));
        let response = refresh(&app, &rocket()).await.unwrap();
        assert_eq!(response.access_token.expose(), token);
        assert_eq!(response.expiry, want, "{member}");
    }
}

#[tokio::test]
async fn a_call_that_takes_too_long_leaves_nothing_in_doubt() {
    let stage = Stage::start().await;
    let app = stage.builder().timeout(Duration::from_millis(50)).build();
    let gate = stage.github.hold(Endpoint::Any);

    let error = refresh(&app.unwrap(), &rocket()).await.unwrap_err();

    assert_eq!(error.kind(), Transient);
    assert_eq!(stage.github.mints(), 0);
    gate.release();
}

#[tokio::test]
async fn a_refused_connection_is_transient() {
    let stage = Stage::start().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let app = stage.builder().base_url(url).build().unwrap();
    let error = refresh(&app, &rocket()).await.unwrap_err();
    assert_eq!(error.kind(), Transient);
}

#[tokio::test]
async fn an_app_with_the_key_of_another_is_misconfigured() {
    let stage = Stage::start().await;
    let other = AppKey::generate().unwrap();
    let app = GitHubApp::builder("123456", PrivateKey::new(other.pkcs8_pem()))
        .base_url(&stage.url)
        .build()
        .unwrap();
    let error = refresh(&app, &rocket()).await.unwrap_err();
    assert_eq!(error.kind(), Misconfigured);
}
