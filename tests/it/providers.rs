//! What `OAuth2Provider` sends, and what it reads from what comes back.

use std::time::Duration;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regrant::provider::Expiry;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::TokenResponse;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::provider::oauth2::CodeRequest;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::secret::ClientSecret;
use regrant::secret::CodeVerifier;
use regrant::secret::UpstreamCode;
use regrant::secret::UpstreamRefreshToken;

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

/// A provider that has a user's tokens beside the bot's.
fn of_users(server: &Server) -> OAuth2Provider {
    let builder = builder(server).response(|shape| {
        shape
            .access_token("user.access_token")
            .refresh_token("user.refresh_token")
            .expiry_at("user.expires_in")
    });
    builder.build().unwrap()
}

async fn exchange(provider: &OAuth2Provider) -> Result<TokenResponse, ProviderError> {
    let code = UpstreamCode::new("c0de");
    provider.exchange_code(CodeRequest::new(&code)).await
}

#[tokio::test]
async fn a_user_never_gets_the_tokens_of_another_place() {
    let server = Server::start().await;
    let provider = of_users(&server);
    for body in [
        // The user's one is not there, or cannot be told from others.
        r#"{"access_token":"BOT","refresh_token":"BOT-r","user":{"id":"U1"}}"#,
        r#"{"data":{"access_token":"BOT","refresh_token":"BOT-r"}}"#,
        r#"{"access_token":"BOT","team":"\ud83d","user":{"access_token":"a"}}"#,
    ] {
        server.answer(200, body);
        let error = exchange(&provider).await.unwrap_err();
        assert_eq!(error.kind(), ProviderErrorKind::Ambiguous, "{body}");
    }
    let broken = r#"{"access_token":"BOT","team":"\ud83d","user":{"access_token":"a"}}"#;
    server.answer(200, broken);
    let error = refresh(&provider).await.unwrap_err();
    assert_eq!(error.kind(), ProviderErrorKind::Ambiguous);

    for (user, refresh_token, expiry) in [
        (
            r#"{"access_token":"a","refresh_token":"r","expires_in":60}"#,
            Some("r"),
            after(60),
        ),
        (r#"{"access_token":"a"}"#, None, Expiry::Unknown),
    ] {
        let body = format!(
            r#"{{"access_token":"BOT","refresh_token":"BOT-r","expires_in":9,"refresh_expires_in":9,
                "data":{{"refresh_token":"BOT-r"}},"user":{user}}}"#
        );
        for is_exchange in [true, false] {
            server.answer(200, &body);
            let answer = if is_exchange {
                exchange(&provider).await
            } else {
                refresh(&provider).await
            };
            let answer = answer.unwrap();
            assert_eq!(answer.access_token.expose(), "a");
            let token = answer
                .refresh_token
                .as_ref()
                .map(UpstreamRefreshToken::expose);
            assert_eq!(token, refresh_token, "{body}");
            assert_eq!(answer.expiry, expiry, "{body}");
            assert_eq!(answer.refresh_expiry, Expiry::Unknown, "{body}");
        }
    }
}

#[tokio::test]
async fn a_refresh_may_be_answered_in_the_usual_place_and_then_all_of_it_is_there() {
    let server = Server::start().await;
    let provider = of_users(&server);
    for (body, refresh_token) in [
        (
            r#"{"access_token":"a","refresh_token":"r","expires_in":60}"#,
            Some("r"),
        ),
        (
            r#"{"access_token":"a","expires_in":60,"data":{"refresh_token":"other"},
                "user":{"refresh_token":"other","expires_in":9}}"#,
            None,
        ),
    ] {
        server.answer(200, body);
        let answer = refresh(&provider).await.unwrap();
        assert_eq!(answer.access_token.expose(), "a");
        let token = answer
            .refresh_token
            .as_ref()
            .map(UpstreamRefreshToken::expose);
        assert_eq!(token, refresh_token, "{body}");
        assert_eq!(answer.expiry, after(60), "{body}");
    }
}

#[tokio::test]
async fn refreshes_may_go_to_an_endpoint_of_their_own() {
    let server = Server::start().await;
    let provider = builder(&server)
        .refresh_endpoint(format!("{}/refresh?v=2", server.url))
        .build()
        .unwrap();
    server.answer(200, r#"{"access_token":"a"}"#);
    refresh(&provider).await.unwrap();
    assert_eq!(server.only().line, "POST /refresh?v=2 HTTP/1.1");
    server.answer(200, r#"{"access_token":"a"}"#);
    exchange(&provider).await.unwrap();
    assert_eq!(server.only().line, "POST /token HTTP/1.1");
}

#[tokio::test]
async fn requests_say_who_asks_and_that_no_coding_is_understood() {
    let server = Server::start().await;
    let own = reqwest::Client::builder().user_agent("my-gateway/7");
    let version = concat!("regrant/", env!("CARGO_PKG_VERSION"));
    for (builder, agent) in [
        (builder(&server), version),
        (builder(&server).with_http_client(own), "my-gateway/7"),
    ] {
        server.answer(200, r#"{"access_token":"a"}"#);
        refresh(&builder.build().unwrap()).await.unwrap();
        let sent = server.only();
        assert_eq!(sent.header("user-agent"), agent);
        // RFC 9110 §12.5.3.
        assert_eq!(sent.header("accept-encoding"), "identity");
    }
}
