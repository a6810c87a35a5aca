//! What `OAuth2Provider` makes of trouble on the way, and where it does not go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use regrant::provider::Provider as _;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RevocationRequest;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::secret::ClientSecret;
use regrant::secret::UpstreamRefreshToken;
use reqwest::dns::Addrs;
use reqwest::dns::Name;
use reqwest::dns::Resolve;
use reqwest::dns::Resolving;
use tokio::net::TcpListener;

use crate::provider_server::Server;
use crate::provider_server::builder;
use crate::provider_server::pairs;
use crate::provider_server::refresh;
use crate::provider_server::refresh_at;

#[tokio::test]
async fn what_was_not_sent_is_transient_and_what_may_have_been_is_ambiguous() {
    use ProviderErrorKind::Ambiguous;
    use ProviderErrorKind::Transient;

    let server = Server::start().await;
    let provider = builder(&server).build().unwrap();
    // It would be read, were it smaller.
    let large = format!(r#"{{"access_token":"a{}"}}"#, "x".repeat(1_099_980));
    let head = |status: u16| format!("HTTP/1.1 {status} X\r\ncontent-length: 1100000\r\n\r\n");
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
async fn a_whole_object_in_a_body_that_breaks_off_is_not_lost() {
    let server = Server::start().await;
    let provider = builder(&server).build().unwrap();
    let body = r#"{"access_token":"a","refresh_token":"r","expires_in":60}"#;
    let (length, longer) = (body.len(), body.len() + 2);
    let chunked =
        format!("HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n");
    let counted = format!("HTTP/1.1 200 X\r\ncontent-length: {longer}\r\n\r\n{body}");
    for reply in [&chunked, &counted] {
        server.answer_raw(reply.clone());
        let answer = refresh(&provider).await.unwrap();
        assert_eq!(answer.refresh_token.unwrap().expose(), "r", "{reply}");
    }
    for (reply, want) in [
        // There may have been a refresh token yet to come.
        (
            counted.replace(body, "access_token=a"),
            ProviderErrorKind::Ambiguous,
        ),
        (
            counted.replace(body, r#"{"access_token":"a","n":1e999}"#),
            ProviderErrorKind::Ambiguous,
        ),
        (
            counted.replace(body, r#"{"ok":true}"#),
            ProviderErrorKind::Ambiguous,
        ),
        (counted.replace("200", "500"), ProviderErrorKind::Transient),
    ] {
        server.answer_raw(reply.clone());
        let error = refresh(&provider).await.unwrap_err();
        assert_eq!(error.kind(), want, "{reply}");
    }
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_transient_within_half_the_time() {
    for timeout in [Duration::from_millis(300), Duration::from_secs(60)] {
        let provider = OAuth2Provider::builder("https://idp.example/token", "gateway")
            .dns_resolver(Arc::new(Never))
            .timeout(timeout)
            .build()
            .unwrap();
        let begun = Instant::now();
        let error = refresh(&provider).await.unwrap_err();
        assert_eq!(error.kind(), ProviderErrorKind::Transient, "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

/// Never says anything.
struct Never;

impl Resolve for Never {
    fn resolve(&self, _name: Name) -> Resolving {
        Box::pin(std::future::pending())
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
        assert_eq!(error.kind(), ProviderErrorKind::Rejected, "{tenant:?}");
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
async fn a_proxy_may_be_in_the_private_network_where_a_tenant_may_not() {
    let server = Server::start().await;
    let address: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = format!("http://proxy.internal:{}", address.port());
    let http = reqwest::Client::builder().proxy(reqwest::Proxy::all(proxy).unwrap());
    let provider = OAuth2Provider::builder("https://{tenant}.idp.example/token", "gateway")
        .with_http_client(http)
        .dns_resolver(Arc::new(Everything(address)))
        .build()
        .unwrap();

    refresh_at(&provider, Some("acme")).await.unwrap_err();

    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn plain_http_to_this_machine_goes_through_no_proxy() {
    let (server, proxy) = (Server::start().await, Server::start().await);
    let http = || reqwest::Client::builder().proxy(reqwest::Proxy::all(&proxy.url).unwrap());
    for builder in [
        builder(&server),
        builder(&server).token_endpoint(format!("{}/{{tenant}}/token", server.url)),
        OAuth2Provider::builder("https://idp.invalid/token", "gateway")
            .refresh_endpoint(format!("{}/refresh", server.url)),
    ] {
        let provider = builder.with_http_client(http()).build().unwrap();
        server.answer(200, r#"{"access_token":"a"}"#);
        refresh_at(&provider, Some("acme")).await.unwrap();
    }
    let metadata = format!(
        r#"{{"issuer":"{0}","token_endpoint":"{0}/token"}}"#,
        server.url
    );
    server.answer(200, &metadata);
    let discovered = OAuth2Provider::discover(&server.url, "gateway");
    let discovered = discovered.with_http_client(http()).build_discovered().await;
    server.answer(200, r#"{"access_token":"a"}"#);
    refresh(&discovered.unwrap()).await.unwrap();
    assert_eq!(proxy.connections(), 0);
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
        (400, r#"{"error":"invalid_grant"}"#, None),
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
            Some(ProviderErrorKind::Rejected),
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
    for reply in [
        "",
        "HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\n{",
        "HTTP/1.1 400 X\r\n\r\n{\"error\":\"unknown refresh token rt-secret\"}",
        "HTTP/1.1 400 X\r\n\r\n{\"error\":\"rt-secret\"}",
    ] {
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
