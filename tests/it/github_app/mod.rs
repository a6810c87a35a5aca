//! `GitHubApp`: what it asks of GitHub, and what it makes of the answers.

mod answers;
mod jwt;
mod revocation;
mod widening;

use std::sync::Arc;

use http::StatusCode;
use regrant::clock::Clock;
use regrant::clock::ManualClock;
use regrant::provider::Expiry;
use regrant::provider::Provider as _;
use regrant::provider::ProviderError;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::provider::github::GitHubApp;
use regrant::provider::github::GitHubAppBuilder;
use regrant::provider::github::InstallationScope;
use regrant::secret::PrivateKey;
use regrant::secret::UpstreamAccessToken;
use serde_json::json;

use crate::github::AppKey;
use crate::github::Caller;
use crate::github::Fault;
use crate::github::GitHub;
use crate::support::HOUR;

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
async fn one_connection_serves_one_call_after_the_other() {
    let stage = Stage::start().await;
    let app = stage.app();
    for _ in 0..20 {
        let token = refresh(&app, &rocket()).await.unwrap().access_token;
        revoke(&app.clone(), Some(&token)).await.unwrap();
    }
    assert_eq!(stage.github.connections(), 1);
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
