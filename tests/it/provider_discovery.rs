//! Endpoints from an authorization server's own metadata (RFC 8414).

use std::error::Error;

use regrant::provider::Provider as _;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::provider::oauth2::DiscoveryError;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::provider::oauth2::OAuth2ProviderBuilder;
use regrant::provider::oauth2::PrivateKeyJwt;
use regrant::provider::oauth2::SigningAlgorithm;
use regrant::secret::ClientSecret;
use regrant::secret::PrivateKey;
use regrant::secret::UpstreamRefreshToken;
use serde_json::Value;
use serde_json::json;

use crate::provider_server::Server;

/// A document of this issuer, with these changes.
fn document(server: &Server, issuer: &str, changes: &Value) -> String {
    let mut document = json!({
        "issuer": issuer,
        "token_endpoint": format!("{}/found/token", server.url),
        "revocation_endpoint": format!("{}/found/revoke", server.url),
    });
    for (name, value) in changes.as_object().unwrap() {
        document[name] = value.clone();
    }
    document.to_string()
}

async fn refused(builder: OAuth2ProviderBuilder) -> String {
    let error = builder.build_discovered().await.unwrap_err();
    format!("{error}: {}", error.source().unwrap())
}

#[tokio::test]
async fn endpoints_are_discovered_and_used() {
    let server = Server::start().await;
    server.answer(200, &document(&server, &server.url, &json!({})));
    let provider = OAuth2Provider::discover(&server.url, "gateway")
        .build_discovered()
        .await
        .unwrap();
    let sent = server.only();
    assert_eq!(
        sent.line,
        "GET /.well-known/oauth-authorization-server HTTP/1.1"
    );
    assert_eq!(sent.header("accept"), "application/json");
    assert_eq!(sent.header("accept-encoding"), "identity");

    let token = UpstreamRefreshToken::new("rt");
    server.answer(200, r#"{"access_token":"a"}"#);
    provider.refresh(RefreshRequest::new(&token)).await.unwrap();
    assert_eq!(server.only().line, "POST /found/token HTTP/1.1");
    server.answer(200, "");
    provider
        .revoke(RevocationRequest::new(&token))
        .await
        .unwrap();
    assert_eq!(server.only().line, "POST /found/revoke HTTP/1.1");
}

#[tokio::test]
async fn an_endpoint_that_was_set_is_kept() {
    let server = Server::start().await;
    server.answer(200, &document(&server, &server.url, &json!({})));
    let provider = OAuth2Provider::discover(&server.url, "gateway")
        .token_endpoint(format!("{}/set/token", server.url))
        .revocation_endpoint(format!("{}/set/revoke", server.url))
        .build_discovered()
        .await
        .unwrap();
    server.only();

    let token = UpstreamRefreshToken::new("rt");
    server.answer(200, r#"{"access_token":"a"}"#);
    provider.refresh(RefreshRequest::new(&token)).await.unwrap();
    assert_eq!(server.only().line, "POST /set/token HTTP/1.1");
    server.answer(200, "");
    provider
        .revoke(RevocationRequest::new(&token))
        .await
        .unwrap();
    assert_eq!(server.only().line, "POST /set/revoke HTTP/1.1");
}

#[tokio::test]
async fn every_well_known_place_is_asked_in_turn() {
    let server = Server::start().await;
    let issuer = format!("{}/realms/a/", server.url);
    server.answer(404, "");
    server.answer(200, "<html>a page for everything</html>");
    server.answer(200, &document(&server, &issuer, &json!({})));

    OAuth2Provider::discover(&issuer, "gateway")
        .build_discovered()
        .await
        .unwrap();

    let lines: Vec<_> = server.sent().into_iter().map(|sent| sent.line).collect();
    let want = [
        "GET /.well-known/oauth-authorization-server/realms/a HTTP/1.1",
        "GET /realms/a/.well-known/openid-configuration HTTP/1.1",
        "GET /.well-known/openid-configuration/realms/a HTTP/1.1",
    ];
    assert_eq!(lines, want);
}

#[tokio::test]
async fn a_document_of_another_issuer_is_not_used() {
    let server = Server::start().await;
    for issuer in [
        format!("{}/", server.url),
        server.url.to_uppercase(),
        "https://idp.example".to_owned(),
    ] {
        server.answer(200, &document(&server, &issuer, &json!({})));
        server.answer(404, "");
        let reason = refused(OAuth2Provider::discover(&server.url, "gateway")).await;
        assert!(
            reason.contains(&format!("is of the issuer {issuer:?}")),
            "{reason}"
        );
    }
    server.answer(200, r#"{"token_endpoint":"https://idp.example/token"}"#);
    server.answer(404, "");
    let reason = refused(OAuth2Provider::discover(&server.url, "gateway")).await;
    assert!(reason.contains("is of the issuer \"nobody\""), "{reason}");
}

#[tokio::test]
async fn a_document_is_neither_fetched_elsewhere_nor_of_any_size() {
    let server = Server::start().await;
    let elsewhere = format!("location: {}/elsewhere\r\n", server.url);
    server.answer_with(302, &elsewhere, "");
    server.answer_with(307, &elsewhere, "");
    let reason = refused(OAuth2Provider::discover(&server.url, "gateway")).await;
    assert!(reason.contains("answers 302"), "{reason}");
    assert_eq!(server.sent().len(), 2);

    let large = json!({"padding": "x".repeat(300_000)});
    for _ in 0..2 {
        server.answer(200, &document(&server, &server.url, &large));
    }
    let reason = refused(OAuth2Provider::discover(&server.url, "gateway")).await;
    assert!(reason.contains("more than 262144 bytes"), "{reason}");
}

#[tokio::test]
async fn endpoints_that_are_missing_or_not_safe_are_refused() {
    let server = Server::start().await;
    for (changes, want) in [
        (
            json!({"token_endpoint": null}),
            "token endpoint is not in the metadata",
        ),
        (
            json!({"token_endpoint": "http://idp.example/t"}),
            "token endpoint must be https",
        ),
        (
            json!({"token_endpoint": "https://u:p@idp.example/t"}),
            "token endpoint must have no user name",
        ),
        (
            json!({"token_endpoint": "https://{tenant}.idp.example/t"}),
            "token endpoint must have no braces",
        ),
        (
            json!({"revocation_endpoint": "http://idp.example/r"}),
            "revocation endpoint must be https",
        ),
    ] {
        server.answer(200, &document(&server, &server.url, &changes));
        let reason = refused(OAuth2Provider::discover(&server.url, "gateway")).await;
        assert!(reason.contains(want), "{reason}");
    }
    for issuer in [
        "http://idp.example",
        "https://idp.example?a=b",
        "https://idp.example#a",
        "idp",
    ] {
        let error = OAuth2Provider::discover(issuer, "gateway")
            .build_discovered()
            .await;
        assert!(
            matches!(error.unwrap_err(), DiscoveryError::Config(_)),
            "{issuer}"
        );
    }
}

#[tokio::test]
async fn a_client_authentication_that_is_not_supported_is_refused_by_name() {
    let server = Server::start().await;
    let basic = || ClientAuthentication::Basic(ClientSecret::new("s"));
    let key = PrivateKeyJwt::new(SigningAlgorithm::Es256, PrivateKey::new("…"));
    let key = ClientAuthentication::PrivateKeyJwt(key);
    let methods = json!({"token_endpoint_auth_methods_supported": ["client_secret_post", "none"]});
    let algorithms = json!({
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS256", "PS256"],
    });
    for (authentication, changes, want) in [
        (
            basic(),
            &methods,
            "client_secret_basic, and the provider supports client_secret_post, none",
        ),
        (
            key,
            &algorithms,
            "ES256, and the provider supports RS256, PS256",
        ),
    ] {
        server.answer(200, &document(&server, &server.url, changes));
        let builder = OAuth2Provider::discover(&server.url, "gateway");
        let reason = refused(builder.client_authentication(authentication)).await;
        assert!(reason.contains(want), "{reason}");
    }
    for changes in [&methods, &json!({})] {
        server.answer(200, &document(&server, &server.url, changes));
        let post = ClientAuthentication::Post(ClientSecret::new("s"));
        let builder = OAuth2Provider::discover(&server.url, "gateway").client_authentication(post);
        assert!(builder.build_discovered().await.is_ok());
    }
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_is_not_found() {
    let server = Server::start().await;
    server.answer(503, "");
    server.answer(503, "");
    let error = OAuth2Provider::discover(&server.url, "gateway")
        .build_discovered()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no metadata of the issuer {}", server.url)
    );
    assert!(error.source().unwrap().to_string().contains("503"));
}
