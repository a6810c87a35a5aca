//! What `OAuth2Provider` sends, and what it reads from what comes back.

use std::time::Duration;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regrant::provider::Expiry;
use regrant::provider::ProviderErrorKind;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::provider::oauth2::CodeRequest;
use regrant::secret::ClientSecret;
use regrant::secret::CodeVerifier;
use regrant::secret::UpstreamCode;

use crate::provider_server::Server;
use crate::provider_server::builder;
use crate::provider_server::pairs;
use crate::provider_server::refresh;

fn after(seconds: u64) -> Expiry {
    Expiry::After(Duration::from_secs(seconds))
}

#[tokio::test]
async fn fm16_an_expiry_is_read_in_any_form_and_none_is_invented() {
    let server = Server::start().await;
    let provider = builder(&server).build().unwrap();
    let at = |seconds| Expiry::At(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    for (member, want) in [
        (r#""token_type":"bearer""#, Expiry::Unknown),
        (r#""expires_in":0"#, Expiry::Unknown),
        (r#""expires_in":null"#, Expiry::Unknown),
        (r#""expires_in":{"seconds":60}"#, Expiry::Unknown),
        (r#""expires_in":"3600""#, after(3_600)),
        (r#""expires_in":3600.0"#, after(3_600)),
        (r#""expires_in":1800000000000"#, at(1_800_000_000)),
        (r#""expires_at":"2027-01-15T08:00:00Z""#, at(1_800_000_000)),
    ] {
        server.answer(200, &format!(r#"{{"access_token":"a",{member}}}"#));
        let response = refresh(&provider).await.unwrap();
        assert_eq!(response.expiry, want, "{member}");
    }
}

#[tokio::test]
async fn fm16_an_expiry_that_the_provider_invents_or_counts_otherwise_is_set_by_data() {
    let server = Server::start().await;
    let fixed = builder(&server).response(|shape| shape.expiry_always(after(600)));
    let milliseconds =
        builder(&server).response(regrant::provider::oauth2::ResponseShape::milliseconds);
    let missing = builder(&server).response(|shape| shape.expiry_if_missing(after(7_200)));
    let never = builder(&server).response(|shape| shape.expiry_if_missing(Expiry::Never));
    for (builder, member, want) in [
        (fixed, r#""expires_in":31536000"#, after(600)),
        (milliseconds, r#""expires_in":600000"#, after(600)),
        (missing, r#""expires_in":"unknown""#, after(7_200)),
        (never, r#""scope":"x""#, Expiry::Never),
    ] {
        server.answer(200, &format!(r#"{{"access_token":"a",{member}}}"#));
        let response = refresh(&builder.build().unwrap()).await.unwrap();
        assert_eq!(response.expiry, want, "{member}");
    }
}

#[tokio::test]
async fn fm16_a_jwt_tells_its_expiry_where_the_answer_does_not() {
    let server = Server::start().await;
    let provider = builder(&server).build().unwrap();
    let claims = URL_SAFE_NO_PAD.encode(r#"{"exp":1800000000}"#);
    let expiry = Expiry::At(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    for (member, want) in [
        (r#""expires_in":0"#, expiry),
        (r#""expires_in":60"#, after(60)),
    ] {
        let body = format!(r#"{{"access_token":"e30.{claims}.c2ln",{member}}}"#);
        server.answer(200, &body);
        let response = refresh(&provider).await.unwrap();
        assert_eq!(response.expiry, want, "{member}");
    }
}

#[tokio::test]
async fn fm16_a_spent_token_is_never_lost_to_a_parse_error() {
    let server = Server::start().await;
    let provider = builder(&server).build().unwrap();
    for (status, body) in [
        (
            200,
            r#"{"access_token":"a","refresh_token":"r","expires_in":[1],"scope":7}"#,
        ),
        (
            200,
            r#"{"access_token":"a","refresh_token":"r","expires_in":1e999}"#,
        ),
        (
            200,
            r#"{"access_token":"a","refresh_token":"r","name":"\ud83d"}"#,
        ),
        (
            200,
            r#"{"access_token":"a","refresh_token":"r","error":"a warning"}"#,
        ),
        (201, r#"{"data":{"accessToken":"a","refreshToken":"r"}}"#),
        (200, "access_token=a&refresh_token=r&expires_in=never"),
    ] {
        server.answer(status, body);
        let response = refresh(&provider).await.unwrap();
        assert_eq!(response.access_token.expose(), "a", "{body}");
        assert_eq!(response.refresh_token.unwrap().expose(), "r", "{body}");
    }
}

#[tokio::test]
async fn fm17_each_leg_sends_its_own_resource_audience_and_scope() {
    let server = Server::start().await;
    let provider = builder(&server)
        .on_exchange(|leg| leg.resource("https://mcp.example").audience("api"))
        .on_refresh(|leg| leg.scope("read write").parameter("expires_in", "1800"))
        .build()
        .unwrap();
    let code = UpstreamCode::new("c0de");
    let verifier = CodeVerifier::new("v3rifier");

    server.answer(200, r#"{"access_token":"a","refresh_token":"r"}"#);
    let request = CodeRequest::new(&code)
        .redirect_uri(Some("https://gateway.example/callback"))
        .code_verifier(Some(&verifier));
    let response = provider.exchange_code(request).await.unwrap();
    assert_eq!(response.refresh_token.unwrap().expose(), "r");
    let want = pairs([
        ("grant_type", "authorization_code"),
        ("code", "c0de"),
        ("redirect_uri", "https://gateway.example/callback"),
        ("code_verifier", "v3rifier"),
        ("resource", "https://mcp.example"),
        ("audience", "api"),
        ("client_id", "gateway"),
    ]);
    assert_eq!(server.only().form(), want);

    server.answer(200, r#"{"access_token":"a"}"#);
    refresh(&provider).await.unwrap();
    let want = pairs([
        ("grant_type", "refresh_token"),
        ("refresh_token", "rt-secret"),
        ("scope", "read write"),
        ("expires_in", "1800"),
        ("client_id", "gateway"),
    ]);
    assert_eq!(server.only().form(), want);
}

#[tokio::test]
async fn fm17_a_provider_that_requires_resource_on_refresh_gets_it_there_alone() {
    let server = Server::start().await;
    let provider = builder(&server)
        .on_refresh(|leg| leg.resource("https://mcp.example"))
        .build()
        .unwrap();
    let code = UpstreamCode::new("c0de");

    server.answer(200, r#"{"access_token":"a"}"#);
    refresh(&provider).await.unwrap();
    assert_eq!(server.only().form()["resource"], "https://mcp.example");

    server.answer(200, r#"{"access_token":"a"}"#);
    provider
        .exchange_code(CodeRequest::new(&code))
        .await
        .unwrap();
    assert!(!server.only().form().contains_key("resource"));
}

#[tokio::test]
async fn how_requests_are_written_is_data() {
    let server = Server::start().await;
    let secret = || ClientSecret::new("s3cret");
    server.answer(200, r#"{"access_token":"a"}"#);
    let basecamp = builder(&server)
        .client_authentication(ClientAuthentication::Post(secret()))
        .on_refresh(|leg| leg.without("grant_type").parameter("type", "refresh"));
    refresh(&basecamp.build().unwrap()).await.unwrap();
    let sent = server.only();
    assert_eq!(sent.line, "POST /token HTTP/1.1");
    assert_eq!(sent.header("accept"), "application/json");
    assert_eq!(sent.header("authorization"), "");
    let want = pairs([
        ("type", "refresh"),
        ("refresh_token", "rt-secret"),
        ("client_id", "gateway"),
        ("client_secret", "s3cret"),
    ]);
    assert_eq!(sent.form(), want);

    server.answer(200, r#"{"access_token":"a"}"#);
    let tiktok = builder(&server)
        .client_authentication(ClientAuthentication::Post(secret()))
        .scope("user.info video.list")
        .request(|shape| {
            let shape = shape.json().header("X-Api-Version", "7");
            shape.client_id_parameter("client_key").scope_separator(',')
        });
    refresh(&tiktok.build().unwrap()).await.unwrap();
    let sent = server.only();
    assert_eq!(sent.header("x-api-version"), "7");
    let want = serde_json::json!({
        "grant_type": "refresh_token",
        "refresh_token": "rt-secret",
        "scope": "user.info,video.list",
        "client_key": "gateway",
        "client_secret": "s3cret",
    });
    assert_eq!(sent.json(), want);

    server.answer(200, r#"{"access_token":"a"}"#);
    let both = builder(&server)
        .client_authentication(ClientAuthentication::Basic(secret()))
        .on_refresh(|leg| leg.parameter("client_id", "gateway"));
    refresh(&both.build().unwrap()).await.unwrap();
    assert_eq!(server.only().form()["client_id"], "gateway");

    server.answer(200, r#"{"access_token":"a"}"#);
    let own = builder(&server).on_refresh(|leg| leg.parameter("client_id", "other"));
    refresh(&own.build().unwrap()).await.unwrap();
    assert_eq!(server.only().form()["client_id"], "other", "and not twice");

    server.answer(200, r#"{"access_token":"a"}"#);
    let stripe = builder(&server);
    let stripe = stripe.client_authentication(ClientAuthentication::BasicSecretOnly(secret()));
    refresh(&stripe.build().unwrap()).await.unwrap();
    let sent = server.only();
    assert_eq!(sent.header("authorization"), "Basic czNjcmV0Og==");
    assert!(!sent.body.contains("client"));
}

#[tokio::test]
async fn a_code_and_a_refresh_token_are_sent_once_and_in_no_url() {
    let server = Server::start().await;
    let provider = builder(&server).build().unwrap();
    let code = UpstreamCode::new("c0de");
    for status in [500, 429, 302, 400] {
        server.answer_with(status, &format!("location: {}/other\r\n", server.url), "");
        refresh(&provider).await.unwrap_err();
        assert_eq!(server.only().line, "POST /token HTTP/1.1");

        server.answer_with(status, &format!("location: {}/other\r\n", server.url), "");
        let exchange = provider.exchange_code(CodeRequest::new(&code)).await;
        assert_eq!(exchange.unwrap_err().kind(), ProviderErrorKind::Transient);
        assert_eq!(server.only().line, "POST /token HTTP/1.1");
    }
    server.answer(400, r#"{"error":"invalid_grant"}"#);
    let exchange = provider.exchange_code(CodeRequest::new(&code)).await;
    assert_eq!(exchange.unwrap_err().kind(), ProviderErrorKind::Terminal);
}
