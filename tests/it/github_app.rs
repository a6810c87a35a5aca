//! `GitHubApp`: what it asks of GitHub, and what it makes of the answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use axum::extract::Request;
use axum::middleware;
use axum::middleware::Next;
use futures_util::future::join_all;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::RETRY_AFTER;
use regrant::clock::Clock;
use regrant::clock::ManualClock;
use regrant::provider::Expiry;
use regrant::provider::Provider as _;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::ProviderErrorKind::Misconfigured;
use regrant::provider::ProviderErrorKind::Rejected;
use regrant::provider::ProviderErrorKind::Terminal;
use regrant::provider::ProviderErrorKind::Transient;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::provider::github::GitHubApp;
use regrant::provider::github::GitHubAppBuilder;
use regrant::provider::github::InstallationScope;
use regrant::secret::PrivateKey;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use serde_json::json;

use crate::github::AppKey;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::github::GitHub;
use crate::support::HOUR;
use crate::support::serve;

/// A GitHub with one installation, and the App that has it.
struct Stage {
    github: GitHub,
    clock: ManualClock,
    url: String,
}

impl Stage {
    async fn start() -> Self {
        let clock = ManualClock::starting_now();
        let key = AppKey::shared().unwrap();
        let github = GitHub::new("123456", key.public_der(), Arc::new(clock.clone()));
        github.install(7, "acme", &[("contents", "write"), ("checks", "read")]);
        github.add_repository(7, 70, "rocket");
        github.add_repository(7, 71, "secret");
        let url = github.start().await.unwrap();
        Self { github, clock, url }
    }

    fn builder(&self) -> GitHubAppBuilder {
        let key = PrivateKey::new(AppKey::shared().unwrap().pkcs1_pem());
        GitHubApp::builder("123456", key)
            .base_url(&self.url)
            .with_clock(self.clock.clone())
    }

    fn app(&self) -> GitHubApp {
        self.builder().build().unwrap()
    }
}

fn rocket() -> InstallationScope {
    InstallationScope::new(7)
        .repository(70)
        .permission("contents", "write")
}

async fn refresh(
    app: &GitHubApp,
    scope: &InstallationScope,
) -> Result<TokenResponse, ProviderError> {
    let token = scope.refresh_token();
    app.refresh(RefreshRequest::new(&token)).await
}

async fn revoke(app: &GitHubApp, token: Option<&UpstreamAccessToken>) -> Result<(), ProviderError> {
    let scope = rocket().refresh_token();
    let request = RevocationRequest::new(&scope).access_token(token);
    app.revoke(request).await
}

fn message(status: StatusCode) -> Fault {
    Fault::answer(status, json!({"message": "canary"}).to_string())
}

#[tokio::test]
async fn a_refresh_mints_a_token_for_exactly_the_scope() {
    let stage = Stage::start().await;

    let response = refresh(&stage.app(), &rocket()).await.unwrap();

    assert!(stage.github.is_live(response.access_token.expose()));
    assert_eq!(response.expiry, Expiry::At(stage.clock.now() + HOUR));
    assert!(response.refresh_token.is_none());
    let [call] = &*stage.github.calls() else {
        panic!("one call")
    };
    assert_eq!(call.path, "/app/installations/7/access_tokens");
    let asked = json!({"repository_ids": [70], "permissions": {"contents": "write"}});
    assert_eq!(call.body, asked);
    assert_eq!(call.caller, Caller::App);
    assert!(call.has_recommended_headers());
    let version = concat!("regrant/", env!("CARGO_PKG_VERSION"));
    assert_eq!(call.user_agent.as_deref(), Some(version));
}

#[tokio::test]
async fn a_scope_of_all_names_nothing_and_the_gateway_names_itself() {
    let stage = Stage::start().await;
    let app = stage
        .builder()
        .base_url(format!("{}///", stage.url))
        .user_agent("acme")
        .with_http_client(reqwest::Client::builder().user_agent("other"))
        .build()
        .unwrap();

    refresh(&app, &InstallationScope::new(7)).await.unwrap();

    let call = stage.github.calls().remove(0);
    assert_eq!(call.path, "/app/installations/7/access_tokens");
    assert_eq!(call.body, json!({}));
    assert_eq!(call.user_agent.as_deref(), Some("acme"));
}

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
async fn a_stored_scope_is_widened_once_and_stored() {
    let stage = Stage::start().await;
    let app = stage.builder().widen("checks", "read").build().unwrap();

    let response = refresh(&app, &rocket()).await.unwrap();

    let wider = rocket().permission("checks", "read");
    let stored = response.refresh_token.unwrap();
    assert_eq!(stored.expose(), wider.refresh_token().expose());
    let again = refresh(&app, &wider).await.unwrap();
    assert!(again.refresh_token.is_none());
    let calls = stage.github.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0].body, calls[1].body);
    assert_eq!(calls[0].body["permissions"]["checks"], "read");
    // A scope of all has it, or will.
    let all = refresh(&app, &InstallationScope::new(7)).await.unwrap();
    assert!(all.refresh_token.is_none());
    // What the operator says is no reason to take away.
    let more = rocket().permission("checks", "write");
    assert!(refresh(&app, &more).await.is_err());
}

#[tokio::test]
async fn where_the_wider_scope_is_not_granted_the_stored_one_decides() {
    let stage = Stage::start().await;
    stage.github.set_permissions(7, &[("contents", "write")]);
    let app = stage.builder().widen("checks", "read").build().unwrap();

    let response = refresh(&app, &rocket()).await.unwrap();

    assert!(response.refresh_token.is_none());
    let asked: Vec<_> = stage.github.calls().into_iter().map(|it| it.body).collect();
    let wide =
        json!({"repository_ids": [70], "permissions": {"contents": "write", "checks": "read"}});
    let stored = json!({"repository_ids": [70], "permissions": {"contents": "write"}});
    assert_eq!(asked, [wide, stored]);

    stage.github.set_permissions(7, &[]);
    let error = refresh(&app, &rocket()).await.unwrap_err();
    assert_eq!(error.kind(), Terminal);
    // What is no word on the scope is no reason to ask for less.
    stage
        .github
        .fail_next(Endpoint::Mint, message(StatusCode::BAD_GATEWAY));
    let error = refresh(&app, &rocket()).await.unwrap_err();
    assert_eq!(error.kind(), Transient);
    assert_eq!(stage.github.calls().len(), 5);
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
async fn a_revocation_ends_the_token_and_what_had_ended_is_ended() {
    let stage = Stage::start().await;
    let app = stage.app();
    let token = refresh(&app, &rocket()).await.unwrap().access_token;

    revoke(&app, Some(&token)).await.unwrap();

    assert!(!stage.github.is_live(token.expose()));
    let call = stage.github.calls().pop().unwrap();
    assert_eq!(call.endpoint, Endpoint::Revoke);
    assert_eq!(call.caller, Caller::Installation(7));
    assert!(call.has_recommended_headers() && call.user_agent.is_some());
    // GitHub answers 401 now.
    revoke(&app, Some(&token)).await.unwrap();
    stage
        .github
        .fail_next(Endpoint::Revoke, message(StatusCode::NOT_FOUND));
    revoke(&app, Some(&token)).await.unwrap();
}

#[tokio::test]
async fn a_revocation_that_fails_says_whether_to_try_again() {
    let stage = Stage::start().await;
    let app = stage.app();
    let token = UpstreamAccessToken::new("ghs_x");
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    let limited = message(StatusCode::FORBIDDEN).header(RETRY_AFTER, HeaderValue::from_static("7"));
    for (fault, want) in [
        (message(StatusCode::FORBIDDEN), Rejected),
        (message(unprocessable), Rejected),
        (limited, Transient),
        (message(StatusCode::BAD_GATEWAY), Transient),
        (Fault::Reset, Transient),
    ] {
        stage.github.fail_next(Endpoint::Revoke, fault);
        let error = revoke(&app, Some(&token)).await.unwrap_err();
        assert_eq!(error.kind(), want);
    }
    let broken = UpstreamAccessToken::new("a\nb");
    let error = revoke(&app, Some(&broken)).await.unwrap_err();
    assert_eq!(error.kind(), Rejected);
}

#[tokio::test]
async fn without_a_token_or_against_the_setting_nothing_is_revoked() {
    let stage = Stage::start().await;
    let token = UpstreamAccessToken::new("ghs_x");
    let keeps = stage.builder().revoke_tokens(false).build().unwrap();
    for ended in [
        revoke(&stage.app(), None).await,
        revoke(&keeps, Some(&token)).await,
    ] {
        assert_eq!(ended.unwrap_err().kind(), ProviderErrorKind::Unsupported);
    }
    assert!(stage.github.calls().is_empty());
}

#[tokio::test]
async fn one_connection_serves_one_call_after_the_other() {
    let stage = Stage::start().await;
    let app = stage.app();
    for _ in 0..20 {
        let token = refresh(&app, &rocket()).await.unwrap().access_token;
        revoke(&app.clone(), Some(&token)).await.unwrap();
    }
    assert_eq!(stage.github.connections(), 1);
}

#[tokio::test]
async fn many_refreshes_sign_one_jwt() {
    let stage = Stage::start().await;
    let (url, jwts) = recorded(&stage).await;
    // With each look at it a second goes by, so no two JWTs would be the same.
    let app = stage.builder().with_clock(Ticking(stage.clock.clone()));
    let app = app.base_url(url).build().unwrap();

    let scope = rocket();
    for minted in join_all((0..20).map(|_| refresh(&app, &scope))).await {
        minted.unwrap();
    }
    refresh(&app.clone(), &scope).await.unwrap();

    assert_eq!(jwts.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_jwt_is_signed_anew_before_it_expires_and_when_it_was_refused() {
    let stage = Stage::start().await;
    let (url, jwts) = recorded(&stage).await;
    let app = stage.builder().base_url(url).build().unwrap();
    let signed = || jwts.lock().unwrap().len();
    let scope = rocket();
    refresh(&app, &scope).await.unwrap();
    stage.clock.advance(Duration::from_secs(480));
    refresh(&app, &scope).await.unwrap();
    assert_eq!(signed(), 1);
    stage.clock.advance(Duration::from_secs(1));
    refresh(&app, &scope).await.unwrap();
    assert_eq!(signed(), 2);

    stage.clock.advance(Duration::from_secs(1));
    let refused = message(StatusCode::UNAUTHORIZED);
    stage.github.fail_next(Endpoint::Mint, refused);
    refresh(&app, &scope).await.unwrap_err();
    assert_eq!(signed(), 2);
    refresh(&app, &scope).await.unwrap();
    assert_eq!(signed(), 3);
}

/// The same GitHub at another URL, by which it keeps what calls authenticate by.
async fn recorded(stage: &Stage) -> (String, Arc<Mutex<BTreeSet<String>>>) {
    let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let keep = Arc::clone(&seen);
    let record = move |request: Request, next: Next| {
        let value = request.headers()[AUTHORIZATION].to_str().unwrap();
        keep.lock().unwrap().insert(value.to_owned());
        next.run(request)
    };
    let router = stage.github.router().layer(middleware::from_fn(record));
    (serve(router).await, seen)
}

/// A clock that goes on by a second with each look at it.
#[derive(Debug)]
struct Ticking(ManualClock);

impl Clock for Ticking {
    fn now(&self) -> SystemTime {
        self.0.advance(Duration::from_secs(1));
        self.0.now()
    }
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

#[test]
fn settings_that_cannot_work_are_found_at_once() {
    type Change = fn(GitHubAppBuilder) -> GitHubAppBuilder;
    let key = || PrivateKey::new(AppKey::shared().unwrap().pkcs1_pem());
    let changes: [(Change, &str); 5] = [
        (
            |it| it.base_url("http://github.example/api/v3"),
            "base URL must be https",
        ),
        (
            |it| it.base_url("https://u:p@github.example"),
            "base URL must have no user name",
        ),
        (
            |it| it.base_url("https://github.example?x=1"),
            "base URL must have no query",
        ),
        (|it| it.base_url("github.example"), "base URL is not a URL"),
        (|it| it.user_agent("a\nb"), "user agent"),
    ];
    for (change, want) in changes {
        let error = change(GitHubApp::builder("1", key())).build().unwrap_err();
        assert!(error.to_string().starts_with(want), "{error}");
    }
    let error = GitHubApp::builder(" ", key()).build().unwrap_err();
    assert_eq!(error.setting(), "App id");
    let app = GitHubApp::builder("1", key()).build().unwrap();
    assert!(format!("{app:?}").contains("https://api.github.com\""));
}
