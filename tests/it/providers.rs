//! What `OAuth2Provider` sends, and what it makes of what comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regrant::provider::Expiry;
use regrant::provider::Provider as _;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::provider::oauth2::CodeRequest;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::provider::oauth2::OAuth2ProviderBuilder;
use regrant::secret::ClientSecret;
use regrant::secret::CodeVerifier;
use regrant::secret::UpstreamCode;
use regrant::secret::UpstreamRefreshToken;
use reqwest::dns::Addrs;
use reqwest::dns::Name;
use reqwest::dns::Resolve;
use reqwest::dns::Resolving;
use tokio::net::TcpListener;

use crate::provider_server::Server;
use crate::provider_server::pairs;

async fn refresh(provider: &OAuth2Provider) -> Result<TokenResponse, ProviderError> {
    let token = UpstreamRefreshToken::new("rt-secret");
    provider.refresh(RefreshRequest::new(&token)).await
}

async fn refresh_at(
    provider: &OAuth2Provider,
    tenant: Option<&str>,
) -> Result<TokenResponse, ProviderError> {
    let token = UpstreamRefreshToken::new("rt-secret");
    let request = RefreshRequest::new(&token).tenant(tenant);
    provider.refresh(request).await
}

fn builder(server: &Server) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder(format!("{}/token", server.url), "gateway")
}

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

#[tokio::test]
async fn what_was_not_sent_is_transient_and_what_may_have_been_is_ambiguous() {
    use ProviderErrorKind::Ambiguous;
    use ProviderErrorKind::Transient;

    let server = Server::start().await;
    let provider = builder(&server).build().unwrap();
    let large = "x".repeat(70_000);
    let head = |status: u16| format!("HTTP/1.1 {status} X\r\ncontent-length: 70000\r\n\r\n");
    for (reply, want) in [
        (String::new(), Ambiguous),
        ("HTTP/1.1 20".to_owned(), Ambiguous),
        ("not HTTP\r\n\r\n".to_owned(), Ambiguous),
        (head(200) + r#"{"access_token":"a"#, Ambiguous),
        (head(200) + &large, Ambiguous),
        (head(400) + r#"{"error":"invalid_gra"#, Transient),
        (head(500) + "<html>", Transient),
        (head(500) + &large, Transient),
    ] {
        server.answer_raw(reply.clone());
        let error = refresh(&provider).await.unwrap_err();
        let shown = reply.get(..40.min(reply.len())).unwrap();
        assert_eq!(error.kind(), want, "{shown} {error:?}");
        server.only();
    }

    // Nobody listens; nobody speaks TLS; nobody has the name.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let tls = server.url.replace("http://", "https://");
    for url in [
        format!("http://{address}/"),
        tls,
        "https://nobody.invalid/".to_owned(),
    ] {
        let provider = OAuth2Provider::builder(&url, "gateway")
            .dns_resolver(Arc::new(Nobody))
            .build()
            .unwrap();
        let error = refresh(&provider).await.unwrap_err();
        assert_eq!(error.kind(), Transient, "{url} {error:?}");
    }
    assert!(server.sent().is_empty());
}

/// Knows no name.
struct Nobody;

impl Resolve for Nobody {
    fn resolve(&self, _name: Name) -> Resolving {
        Box::pin(async { Err("no such name".into()) })
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_ambiguous() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    let provider = OAuth2Provider::builder(url, "gateway")
        .timeout(Duration::from_millis(50))
        .build()
        .unwrap();

    let error = refresh(&provider).await.unwrap_err();

    assert_eq!(error.kind(), ProviderErrorKind::Ambiguous);
}

#[tokio::test]
async fn retry_after_is_heard_in_both_forms() {
    let server = Server::start().await;
    let provider = builder(&server).build().unwrap();
    let date = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    for (headers, want) in [
        ("retry-after: 17\r\n".to_owned(), Some(17)),
        (
            format!("{date}retry-after: Sun, 06 Nov 1994 08:50:07 GMT\r\n"),
            Some(30),
        ),
        (format!("{date}retry-after: when it pleases\r\n"), None),
        (String::new(), None),
    ] {
        for (status, body) in [
            (429, ""),
            (503, "<html>"),
            (400, r#"{"error":"slow_down"}"#),
        ] {
            server.answer_with(status, &headers, body);
            let error = refresh(&provider).await.unwrap_err();
            assert_eq!(
                error.retry_after(),
                want.map(Duration::from_secs),
                "{headers}"
            );
        }
    }
}

#[tokio::test]
async fn a_tenant_has_its_own_path_and_without_one_nothing_is_sent() {
    let server = Server::start().await;
    let provider = builder(&server)
        .token_endpoint(format!("{}/{{tenant}}/oauth2/v2.0/token", server.url))
        .build()
        .unwrap();

    server.answer(200, r#"{"access_token":"a"}"#);
    refresh_at(&provider, Some("contoso")).await.unwrap();
    assert_eq!(
        server.only().line,
        "POST /contoso/oauth2/v2.0/token HTTP/1.1"
    );

    for tenant in [
        None,
        Some(""),
        Some("a/../b"),
        Some("a%2fb"),
        Some("A"),
        Some("a.b"),
    ] {
        let error = refresh_at(&provider, tenant).await.unwrap_err();
        assert_eq!(error.kind(), ProviderErrorKind::Transient, "{tenant:?}");
    }
    assert_eq!(server.connections(), 1);
}

/// Says that every name is this address.
struct Everything(SocketAddr);

impl Resolve for Everything {
    fn resolve(&self, _name: Name) -> Resolving {
        let address = self.0;
        Box::pin(async move { Ok(Box::new(std::iter::once(address)) as Addrs) })
    }
}

#[tokio::test]
async fn a_host_that_a_tenant_chose_is_not_connected_to_in_the_private_network() {
    let server = Server::start().await;
    let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    for (url, tenant, connections) in [
        ("https://{tenant}.idp.example/token", Some("metadata"), 0),
        // The operator's own names may lead anywhere.
        ("https://idp.example/token", None, 1),
        ("https://idp.example/{tenant}/token", Some("acme"), 2),
    ] {
        let provider = OAuth2Provider::builder(url, "gateway")
            .dns_resolver(Arc::new(Everything(address)))
            .build()
            .unwrap();
        let error = refresh_at(&provider, tenant).await.unwrap_err();
        assert_eq!(error.kind(), ProviderErrorKind::Transient, "{url}");
        assert_eq!(server.connections(), connections, "{url}");
    }
}

#[tokio::test]
async fn a_login_is_ended_at_the_revocation_endpoint() {
    let server = Server::start().await;
    let token = UpstreamRefreshToken::new("rt-secret");
    let request = RevocationRequest::new(&token);
    let without = builder(&server).build().unwrap();
    let error = without.revoke(request).await.unwrap_err();
    assert_eq!(error.kind(), ProviderErrorKind::Unsupported);
    assert_eq!(server.connections(), 0);

    let provider = builder(&server)
        .revocation_endpoint(format!("{}/revoke", server.url))
        .client_authentication(ClientAuthentication::Basic(ClientSecret::new("s")))
        .build()
        .unwrap();
    for (status, body, want) in [
        (200, "", None),
        (200, "{}", None),
        (204, "", None),
        (400, r#"{"error":"invalid_token"}"#, None),
        (
            400,
            r#"{"error":"unsupported_token_type"}"#,
            Some(ProviderErrorKind::Unsupported),
        ),
        (
            401,
            r#"{"error":"invalid_client"}"#,
            Some(ProviderErrorKind::Misconfigured),
        ),
        (
            200,
            r#"{"ok":false,"error":"fatal"}"#,
            Some(ProviderErrorKind::Transient),
        ),
        (
            503,
            r#"{"error":"invalid_token"}"#,
            Some(ProviderErrorKind::Transient),
        ),
        (302, "", Some(ProviderErrorKind::Transient)),
    ] {
        server.answer_with(status, "retry-after: 9\r\n", body);
        let ended = provider.revoke(request).await;
        assert_eq!(
            ended.as_ref().err().map(ProviderError::kind),
            want,
            "{status} {body}"
        );
        if let Err(error) = ended {
            assert_eq!(error.retry_after(), Some(Duration::from_secs(9)));
        }
        let sent = server.only();
        assert_eq!(sent.line, "POST /revoke HTTP/1.1");
        assert_eq!(sent.header("authorization"), "Basic Z2F0ZXdheTpz");
        let want = pairs([("token", "rt-secret"), ("token_type_hint", "refresh_token")]);
        assert_eq!(sent.form(), want);
    }
}

#[tokio::test]
async fn an_error_tells_no_secret() {
    let server = Server::start().await;
    let provider = builder(&server)
        .token_endpoint(format!("{}/token?key=s3cret", server.url))
        .client_authentication(ClientAuthentication::Post(ClientSecret::new("s3cret")))
        .build()
        .unwrap();
    for reply in ["", "HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\n{"] {
        server.answer_raw(reply);
        let error = refresh(&provider).await.unwrap_err();
        let mut said = format!("{error:?}");
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            said += &error.to_string();
            cause = error.source();
        }
        assert!(
            !said.contains("s3cret") && !said.contains("rt-secret"),
            "{said}"
        );
    }
}
