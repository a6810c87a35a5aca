//! Scopes that get a permission more.

use http::StatusCode;
use regrant::provider::ProviderErrorKind::Terminal;
use regrant::provider::ProviderErrorKind::Transient;
use regrant::provider::github::InstallationScope;
use serde_json::json;

use super::Stage;
use super::message;
use super::refresh;
use super::rocket;
use crate::github::Endpoint;

#[tokio::test]
async fn a_stored_scope_is_widened_each_time_and_stays_as_it_is() {
    let stage = Stage::start().await;
    let app = stage.builder().widen("checks", "read").build().unwrap();

    for _ in 0..2 {
        let response = refresh(&app, &rocket()).await.unwrap();
        assert!(response.refresh_token.is_none());
    }

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
