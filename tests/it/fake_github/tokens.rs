//! What tokens open, and when they no longer do.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::json;

use super::Stage;
use super::answer;

#[tokio::test]
async fn an_installation_that_is_gone_or_suspended_mints_nothing_and_its_tokens_are_dead() {
    let stage = Stage::start().await;
    let token = stage.token(&json!({})).await;

    stage.github.suspend(7);
    let suspended = answer(stage.minting(7, &json!({}))).await;
    assert_eq!(suspended.status, StatusCode::FORBIDDEN);
    assert_eq!(
        suspended.body["message"],
        "This installation has been suspended"
    );
    assert_eq!(stage.opened(&token).await.0, StatusCode::FORBIDDEN);
    assert!(!stage.github.is_live(&token));
    let seen = answer(stage.get("/user/installations", &stage.user_token)).await;
    assert!(seen.body["installations"][0]["suspended_at"].is_string());

    stage.github.resume(7);
    assert_eq!(stage.opened(&token).await.0, StatusCode::OK);

    stage.github.uninstall(7);
    assert_eq!(stage.opened(&token).await.0, StatusCode::UNAUTHORIZED);
    answer(stage.get("/repos/acme/rocket", &token))
        .await
        .expect(StatusCode::UNAUTHORIZED);
    for installation in [7, 8] {
        let gone = answer(stage.minting(installation, &json!({}))).await;
        assert_eq!(gone.expect(StatusCode::NOT_FOUND)["message"], "Not Found");
    }
}

#[tokio::test]
async fn an_installation_token_dies_by_the_clock_or_by_revocation() {
    let stage = Stage::start().await;
    let (first, second) = (stage.token(&json!({})).await, stage.token(&json!({})).await);
    let revoking = |token: &str| {
        let request = stage
            .http
            .delete(format!("{}/installation/token", stage.url));
        answer(request.bearer_auth(token))
    };

    revoking(&first).await.expect(StatusCode::NO_CONTENT);
    revoking(&first).await.expect(StatusCode::UNAUTHORIZED);
    assert_eq!(stage.opened(&first).await.0, StatusCode::UNAUTHORIZED);

    stage.clock.advance(Duration::from_secs(3_599));
    assert_eq!(stage.opened(&second).await.0, StatusCode::OK);
    assert!(stage.github.is_live(&second));
    stage.clock.advance(Duration::from_secs(1));
    let expired = answer(stage.get("/installation/repositories", &second)).await;
    assert_eq!(
        expired.expect(StatusCode::UNAUTHORIZED)["message"],
        "Bad credentials"
    );
    revoking(&second).await.expect(StatusCode::UNAUTHORIZED);
    assert!(!stage.github.is_live(&second));
}

#[tokio::test]
async fn a_token_opens_its_own_repositories_by_whatever_scheme_it_comes() {
    let stage = Stage::start().await;
    let token = stage.token(&json!({ "repository_ids": [70] })).await;
    let basic = format!(
        "Basic {}",
        STANDARD.encode(format!("x-access-token:{token}"))
    );
    for authorization in [format!("Bearer {token}"), format!("token {token}"), basic] {
        let get = |path: &str| {
            let request = stage.http.get(format!("{}{path}", stage.url));
            answer(request.header("authorization", &authorization))
        };
        let own = get("/repos/ACME/Rocket").await.expect(StatusCode::OK);
        assert_eq!(
            (&own["id"], &own["full_name"]),
            (&json!(70), &json!("acme/rocket"))
        );
        get("/repos/acme/rocket/contents/src/lib.rs")
            .await
            .expect(StatusCode::OK);
        get("/repos/acme/secret")
            .await
            .expect(StatusCode::NOT_FOUND);
    }
    let blind = json!({ "permissions": { "issues": "read" } });
    let contents = stage.get("/repos/acme/rocket/contents/a", &stage.token(&blind).await);
    answer(contents).await.expect(StatusCode::FORBIDDEN);

    stage.github.rename_repository(7, 70, "launcher");
    assert_eq!(stage.opened(&token).await.1, ["launcher"]);
    stage.github.remove_repository(7, 70);
    assert_eq!(stage.opened(&token).await, (StatusCode::OK, vec![]));
    let gone = stage.get("/repos/acme/launcher", &token);
    answer(gone).await.expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_endpoint_wants_its_own_kind_of_token() {
    let stage = Stage::start().await;
    let installation = stage.token(&json!({})).await;
    for (path, token, status, why) in [
        ("/user/installations", "ghu_x", 401, "Bad credentials"),
        ("/user/installations", "ghs_1_x", 401, "Bad credentials"),
        (
            "/user/installations",
            &installation,
            403,
            "Resource not accessible by integration",
        ),
        (
            "/user/installations",
            &stage.jwt(),
            403,
            "Resource not accessible by integration",
        ),
        (
            "/user/installations/7/repositories",
            &installation,
            403,
            "Resource not accessible by integration",
        ),
        (
            "/installation/repositories",
            &stage.user_token,
            403,
            "You must authenticate with an installation access token in order to list repositories for an installation.",
        ),
        (
            "/installation/repositories",
            &stage.jwt(),
            403,
            "Resource not accessible by integration",
        ),
        ("/installation/repositories", "x", 401, "Bad credentials"),
        ("/repos/acme/rocket", "x", 401, "Bad credentials"),
    ] {
        let answer = answer(stage.get(path, token)).await;

        assert_eq!(
            (answer.status.as_u16(), &answer.body["message"]),
            (status, &json!(why)),
            "{path}"
        );
    }
    let nobody = answer(stage.http.get(format!("{}/user/installations", stage.url))).await;
    assert_eq!(
        nobody.expect(StatusCode::UNAUTHORIZED)["message"],
        "Requires authentication"
    );
    answer(stage.get("/user", &stage.user_token))
        .await
        .expect(StatusCode::NOT_FOUND);
}
