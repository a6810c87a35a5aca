//! Each preset against the shapes that its provider documents.

use std::time::Duration;

use regrant::provider::Expiry;
use regrant::provider::Provider as _;
use regrant::provider::ProviderErrorKind::Misconfigured;
use regrant::provider::ProviderErrorKind::Rejected;
use regrant::provider::ProviderErrorKind::Terminal;
use regrant::provider::ProviderErrorKind::Transient;
use regrant::provider::RefreshRequest;
use regrant::provider::presets;
use regrant::secret::ClientSecret;
use regrant::secret::UpstreamRefreshToken;
use serde_json::json;

use crate::provider_server::Preset;
use crate::provider_server::pairs;

fn secret() -> ClientSecret {
    ClientSecret::new("secret-1")
}

fn after(seconds: u64) -> Expiry {
    Expiry::After(Duration::from_secs(seconds))
}

/// What all that are `client_secret_post` forms send on refresh.
fn posted() -> std::collections::BTreeMap<String, String> {
    pairs([
        ("grant_type", "refresh_token"),
        ("refresh_token", "rt-1"),
        ("client_id", "id-1"),
        ("client_secret", "secret-1"),
    ])
}

#[tokio::test]
async fn github_answers_errors_with_200_and_forms_unless_told() {
    let builder = presets::github("id-1", secret());
    let preset = Preset::of(
        builder,
        "https://github.com",
        "/login/oauth/access_token",
        None,
    )
    .await;
    let body = r#"{"access_token":"ghu_1","expires_in":28800,"refresh_token":"ghr_2",
        "refresh_token_expires_in":15897600,"scope":"","token_type":"bearer"}"#;
    let (sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    assert_eq!(sent.header("accept"), "application/json");
    assert_eq!(sent.form(), posted());
    assert_eq!(answer.access_token.expose(), "ghu_1");
    assert_eq!(answer.refresh_token.unwrap().expose(), "ghr_2");
    assert_eq!(answer.expiry, after(28_800));
    assert_eq!(answer.refresh_expiry, after(15_897_600));

    let body = "access_token=ghu_1&expires_in=28800&refresh_token=ghr_2&token_type=bearer";
    let answer = preset.refresh(200, body).await.1.unwrap();
    assert_eq!(answer.expiry, after(28_800));
    let body = r#"{"access_token":"ghu_1","scope":"","token_type":"bearer"}"#;
    assert_eq!(preset.exchange(body).await.1.expiry, Expiry::Never);
    preset
        .classifies(&[
            (200, r#"{"error":"bad_refresh_token","error_description":"The refresh token passed is incorrect or expired."}"#, Terminal),
            (200, "error=bad_refresh_token&error_description=x", Terminal),
            (200, r#"{"error":"incorrect_client_credentials"}"#, Misconfigured),
            (200, r#"{"error":"unsupported_grant_type"}"#, Rejected),
            (502, "<html>Unicorn!</html>", Transient),
        ])
        .await;
}

#[tokio::test]
async fn google_keeps_the_refresh_token_and_revokes_it_by_name() {
    let builder = presets::google("id-1", secret());
    let preset = Preset::of(
        builder,
        "https://oauth2.googleapis.com",
        "/token",
        Some("/revoke"),
    )
    .await;
    let body =
        r#"{"access_token":"ya29.1","expires_in":3599,"scope":"openid","token_type":"Bearer"}"#;
    let (sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    assert_eq!(sent.form(), posted());
    assert!(answer.refresh_token.is_none());
    assert_eq!(answer.expiry, after(3_599));
    preset
        .classifies(&[
            (400, r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#, Terminal),
            (401, r#"{"error":"deleted_client","error_description":"The OAuth client was deleted."}"#, Misconfigured),
            (401, r#"{"error":"invalid_client","error_description":"Unauthorized"}"#, Misconfigured),
            (403, r#"{"error":{"code":403,"status":"RESOURCE_EXHAUSTED"}}"#, Transient),
            (500, r#"{"error":"internal_failure"}"#, Transient),
        ])
        .await;

    let (sent, ended) = preset.revoke(200, "{}").await;
    ended.unwrap();
    assert_eq!(sent.form()["token"], "rt-1");
    let body = r#"{"error":"invalid_token","error_description":"Token expired or revoked"}"#;
    preset.revoke(400, body).await.1.unwrap();
}

#[tokio::test]
async fn microsoft_entra_has_the_tenant_in_the_path_and_scope_instead_of_resource() {
    let scope = "https://graph.microsoft.com/Mail.Read offline_access";
    let builder = presets::microsoft_entra("id-1", secret(), scope);
    let host = "https://login.microsoftonline.com";
    let preset = Preset::of(builder, host, "/{tenant}/oauth2/v2.0/token", None).await;
    let body = r#"{"access_token":"eyJ0.x","token_type":"Bearer","expires_in":3599,
        "ext_expires_in":3599,"scope":"Mail.Read","refresh_token":"0.A-2","id_token":"eyJ0"}"#;
    let (sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    assert_eq!(sent.line, "POST /acme/oauth2/v2.0/token HTTP/1.1");
    let mut want = posted();
    want.insert("scope".to_owned(), scope.to_owned());
    assert_eq!(sent.form(), want, "and no resource");
    assert_eq!(answer.refresh_token.unwrap().expose(), "0.A-2");
    assert_eq!(answer.expiry, after(3_599));
    let (sent, _answer) = preset.exchange(body).await;
    assert_eq!(sent.form()["scope"], scope);
    preset
        .classifies(&[
            (400, r#"{"error":"invalid_grant","error_description":"AADSTS700082: The refresh token has expired due to inactivity.","error_codes":[700082],"suberror":"bad_token"}"#, Terminal),
            (400, r#"{"error":"interaction_required","error_description":"AADSTS50076"}"#, Terminal),
            (401, r#"{"error":"invalid_client","error_description":"AADSTS7000215","error_codes":[7000215]}"#, Misconfigured),
            (400, r#"{"error":"invalid_grant","error_description":"AADSTS50196: The server terminated an operation because it encountered a client request loop.","error_codes":[50196]}"#, Transient),
            (400, r#"{"error":"invalid_grant","error_codes":[700082,150196]}"#, Terminal),
            (400, r#"{"error":"invalid_scope","error_codes":[70011]}"#, Rejected),
            (400, r#"{"error":"invalid_request","error_description":"AADSTS90002: Tenant 'x' not found.","error_codes":[90002]}"#, Rejected),
            (503, r#"{"error":"temporarily_unavailable"}"#, Transient),
            (400, r#"{"error":"temporarily_unavailable"}"#, Transient),
        ])
        .await;
}

#[tokio::test]
async fn slack_says_ok_false_with_200() {
    let builder =
        presets::slack("id-1", secret()).on_exchange(|leg| leg.scope("chat:write users:read"));
    let preset = Preset::of(builder, "https://slack.com", "/api/oauth.v2.access", None).await;
    let body = r#"{"ok":true,"access_token":"xoxe.xoxb-1","expires_in":43200,"refresh_token":"xoxe-2",
        "token_type":"bot","scope":"chat:write","bot_user_id":"U0","team":{"id":"T9"},"enterprise":null}"#;
    let (sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    assert_eq!(sent.header("authorization"), "Basic aWQtMTpzZWNyZXQtMQ==");
    let want = pairs([("grant_type", "refresh_token"), ("refresh_token", "rt-1")]);
    assert_eq!(sent.form(), want);
    assert_eq!(answer.access_token.expose(), "xoxe.xoxb-1");
    assert_eq!(answer.refresh_token.unwrap().expose(), "xoxe-2");
    assert_eq!(answer.expiry, after(43_200));
    let body =
        r#"{"ok":true,"access_token":"xoxb-1","token_type":"bot","authed_user":{"id":"U1"}}"#;
    let (sent, answer) = preset.exchange(body).await;
    assert_eq!(sent.form()["scope"], "chat:write,users:read");
    assert_eq!(answer.expiry, Expiry::Never);
    preset
        .classifies(&[
            (
                200,
                r#"{"ok":false,"error":"invalid_refresh_token"}"#,
                Terminal,
            ),
            (200, r#"{"ok":false,"error":"token_revoked"}"#, Terminal),
            (
                200,
                r#"{"ok":false,"error":"bad_client_secret"}"#,
                Misconfigured,
            ),
            (
                200,
                r#"{"ok":false,"error":"invalid_client_id"}"#,
                Misconfigured,
            ),
            (
                200,
                r#"{"ok":false,"error":"service_unavailable"}"#,
                Transient,
            ),
            (429, r#"{"ok":false,"error":"ratelimited"}"#, Transient),
        ])
        .await;
}

#[tokio::test]
async fn slack_user_tokens_are_found_where_they_are() {
    let builder = presets::slack("id-1", secret()).response(|shape| {
        shape
            .access_token("authed_user.access_token")
            .refresh_token("authed_user.refresh_token")
            .expiry_at("authed_user.expires_in")
    });
    let preset = Preset::of(builder, "https://slack.com", "/api/oauth.v2.access", None).await;
    let body = r#"{"ok":true,"access_token":"xoxb-bot","authed_user":{"id":"U1",
        "access_token":"xoxe.xoxp-1","refresh_token":"xoxe-1","expires_in":43200}}"#;
    let (_sent, answer) = preset.exchange(body).await;
    assert_eq!(answer.access_token.expose(), "xoxe.xoxp-1");
    assert_eq!(answer.refresh_token.unwrap().expose(), "xoxe-1");
    assert_eq!(answer.expiry, after(43_200));
    let body = r#"{"ok":true,"access_token":"xoxe.xoxp-2","refresh_token":"xoxe-2",
        "expires_in":600,"token_type":"user","scope":"chat:write"}"#;
    let (_sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    assert_eq!(answer.access_token.expose(), "xoxe.xoxp-2");
    assert_eq!(answer.refresh_token.unwrap().expose(), "xoxe-2");
    assert_eq!(answer.expiry, after(600));
    preset
        .classifies(&[(
            200,
            r#"{"ok":false,"error":"invalid_refresh_token"}"#,
            Terminal,
        )])
        .await;
}

#[tokio::test]
async fn atlassian_takes_json_and_an_audience_for_codes() {
    let builder = presets::atlassian("id-1", secret());
    let preset = Preset::of(builder, "https://auth.atlassian.com", "/oauth/token", None).await;
    let body = r#"{"access_token":"eyJ.1","refresh_token":"eyJ.2","expires_in":3600,"scope":"read:jira-work"}"#;
    let (sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    let want = json!({"grant_type": "refresh_token", "refresh_token": "rt-1",
        "client_id": "id-1", "client_secret": "secret-1"});
    assert_eq!(sent.json(), want);
    assert_eq!(answer.refresh_token.unwrap().expose(), "eyJ.2");
    assert_eq!(answer.expiry, after(3_600));
    let (sent, _answer) = preset.exchange(body).await;
    assert_eq!(sent.json()["audience"], "api.atlassian.com");
    assert_eq!(sent.json()["code"], "code-1");
    preset
        .classifies(&[
            (403, r#"{"error":"invalid_grant","error_description":"Unknown or invalid refresh token."}"#, Terminal),
            (403, r#"{"error":"unauthorized_client","error_description":"refresh_token is invalid"}"#, Terminal),
            (403, r#"{"error":"unauthorized_client","error_description":"The client is unauthorized."}"#, Misconfigured),
            (503, r#"{"error":"unauthorized_client","error_description":"refresh_token is invalid"}"#, Transient),
            (401, r#"{"error":"access_denied","error_description":"Unauthorized"}"#, Rejected),
            (400, r#"{"error":"unauthorized_client"}"#, Misconfigured),
            (429, r#"{"error":"too_many_requests"}"#, Transient),
        ])
        .await;
}

#[tokio::test]
async fn linear_rotates_and_revokes() {
    let builder = presets::linear("id-1", secret());
    let preset = Preset::of(
        builder,
        "https://api.linear.app",
        "/oauth/token",
        Some("/oauth/revoke"),
    )
    .await;
    let body = r#"{"access_token":"lin_1","token_type":"Bearer","expires_in":86399,
        "scope":"read write","refresh_token":"rt-2"}"#;
    let (sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    assert_eq!(sent.form(), posted());
    assert_eq!(answer.refresh_token.unwrap().expose(), "rt-2");
    assert_eq!(answer.expiry, after(86_399));
    let body = body.replace(r#""read write""#, r#"["read","write"]"#);
    preset.refresh(200, &body).await.1.unwrap();
    preset
        .classifies(&[
            (
                400,
                r#"{"error":"invalid_grant","error_description":"Invalid refresh token"}"#,
                Terminal,
            ),
            (401, r#"{"error":"invalid_client"}"#, Misconfigured),
            (500, "", Transient),
        ])
        .await;

    let (sent, ended) = preset.revoke(200, "").await;
    ended.unwrap();
    let form = sent.form();
    assert_eq!(
        (&*form["token"], &*form["token_type_hint"]),
        ("rt-1", "refresh_token")
    );
    assert_eq!(form["client_secret"], "secret-1");
}

#[tokio::test]
async fn notion_takes_basic_and_json_and_says_errors_in_code() {
    let builder = presets::notion("id-1", secret());
    let preset = Preset::of(
        builder,
        "https://api.notion.com",
        "/v1/oauth/token",
        Some("/v1/oauth/revoke"),
    )
    .await;
    let body = r#"{"access_token":"ntn_1","token_type":"bearer","refresh_token":"nrt_2","bot_id":"b",
        "workspace_icon":null,"workspace_name":"Ada's","workspace_id":"w","owner":{"type":"user"},
        "duplicated_template_id":null,"request_id":"r"}"#;
    let (sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    assert_eq!(sent.header("authorization"), "Basic aWQtMTpzZWNyZXQtMQ==");
    assert!(!sent.header("notion-version").is_empty());
    let want = json!({"grant_type": "refresh_token", "refresh_token": "rt-1"});
    assert_eq!(sent.json(), want);
    assert_eq!(answer.refresh_token.unwrap().expose(), "nrt_2");
    assert_eq!(answer.expiry, Expiry::Unknown);
    preset
        .classifies(&[
            (400, r#"{"object":"error","status":400,"code":"invalid_grant","message":"Invalid refresh token."}"#, Terminal),
            (400, r#"{"error":"invalid_grant","request_id":"r"}"#, Terminal),
            (401, r#"{"object":"error","status":401,"code":"invalid_client","message":"x"}"#, Misconfigured),
            (403, r#"{"object":"error","status":403,"code":"test_env_error"}"#, Rejected),
            (500, r#"{"object":"error","status":500,"code":"internal_server_error"}"#, Transient),
        ])
        .await;

    let (sent, ended) = preset.revoke(200, r#"{"request_id":"r"}"#).await;
    ended.unwrap();
    assert_eq!(sent.json()["token"], "rt-1");
}

#[tokio::test]
async fn salesforce_is_asked_on_the_users_domain_and_tells_no_expiry() {
    let path = "/services/oauth2/token";
    let builder = presets::salesforce("id-1", secret());
    let preset = Preset::of(
        builder,
        "https://{tenant}.my.salesforce.com",
        path,
        Some("/services/oauth2/revoke"),
    )
    .await;
    let body = r#"{"access_token":"00D!1","signature":"s","scope":"refresh_token api","instance_url":"https://acme.my.salesforce.com",
        "id":"https://login.salesforce.com/id/00D/005","token_type":"Bearer","issued_at":"1800000000000"}"#;
    let (sent, answer) = preset.refresh(200, body).await;
    let answer = answer.unwrap();
    assert_eq!(sent.form(), posted());
    assert!(answer.refresh_token.is_none());
    assert_eq!(answer.expiry, Expiry::Unknown);
    preset
        .classifies(&[
            (
                400,
                r#"{"error":"invalid_grant","error_description":"expired access/refresh token"}"#,
                Terminal,
            ),
            (
                400,
                r#"{"error":"invalid_client_id","error_description":"client identifier invalid"}"#,
                Misconfigured,
            ),
            (
                400,
                r#"{"error":"invalid_client","error_description":"invalid client credentials"}"#,
                Misconfigured,
            ),
            (
                400,
                r#"{"error":"inactive_user","error_description":"user is inactive"}"#,
                Rejected,
            ),
            (400, r#"{"error":"inactive_org","error_description":"x"}"#, Rejected),
            (
                400,
                r#"{"error":"invalid_grant","error_description":"Token request is already being processed"}"#,
                Transient,
            ),
            (
                400,
                r#"{"error":"invalid_grant","error_description":"ip restricted"}"#,
                Rejected,
            ),
            (503, "", Transient),
        ])
        .await;

    let untouched = presets::salesforce("id-1", secret()).build().unwrap();
    let token = UpstreamRefreshToken::new("rt-1");
    let error = untouched.refresh(RefreshRequest::new(&token)).await;
    assert_eq!(
        error.unwrap_err().kind(),
        Rejected,
        "without a tenant nobody is asked"
    );
}
