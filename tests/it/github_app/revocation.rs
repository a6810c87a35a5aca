//! The end of a token.

use http::HeaderValue;
use http::StatusCode;
use http::header::RETRY_AFTER;
use regrant::provider::ProviderErrorKind;
use regrant::provider::ProviderErrorKind::Rejected;
use regrant::provider::ProviderErrorKind::Transient;
use regrant::secret::UpstreamAccessToken;

use super::Stage;
use super::message;
use super::refresh;
use super::revoke;
use super::rocket;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::github::Fault;

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
