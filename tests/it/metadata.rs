//! Metadata and who may read it: what clients find by themselves.

use bytes::Bytes;
use http::Request;
use http::StatusCode;
use http_body_util::Full;
use regrant::Regrant;
use regrant::store::memory::MemoryStore;

use crate::support::Lab;
use crate::support::ask;
use crate::support::form;
use crate::support::issued;
use crate::support::send;

#[tokio::test]
async fn metadata_advertises_what_works_and_nothing_else() {
    let (_lab, regrant, _issued) = issued().await;
    let _layer = regrant
        .layer("linear")
        .unwrap()
        .resource_path("/mcp")
        .unwrap();
    let get = async |path: &str| {
        let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
        ask(&regrant, request).await
    };

    let server = get("/.well-known/oauth-authorization-server").await.json();
    assert_eq!(server["issuer"], "https://gateway.example");
    assert_eq!(
        server["token_endpoint"],
        "https://gateway.example/oauth/token"
    );
    assert_eq!(
        server["revocation_endpoint"],
        "https://gateway.example/oauth/revoke"
    );
    assert_eq!(
        server["grant_types_supported"],
        serde_json::json!(["refresh_token"])
    );
    assert!(server.get("authorization_endpoint").is_none());
    for path in [
        "/.well-known/oauth-protected-resource/mcp",
        "/.well-known/oauth-protected-resource",
    ] {
        let resource = get(path).await.json();
        assert_eq!(
            resource["resource"], "https://gateway.example/mcp",
            "{path}"
        );
        let servers = serde_json::json!(["https://gateway.example"]);
        assert_eq!(resource["authorization_servers"], servers);
    }
    for path in [
        "/.well-known/oauth-protected-resource/other",
        "/.well-known/oauth-authorization-server/other",
        "/elsewhere",
    ] {
        assert_eq!(get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn below_a_public_url_with_a_path_the_advertised_endpoints_answer() {
    let lab = Lab::start().await;
    let keyring = regrant::seal::Keyring::parse(crate::support::KEYS).unwrap();
    let builder = Regrant::builder("https://gateway.example/base/", MemoryStore::new(), keyring);
    let regrant = builder
        .provider("linear", lab.oauth2())
        .start()
        .await
        .unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    let metadata = "/.well-known/oauth-authorization-server/base";
    let metadata = Request::get(metadata).body(Full::default()).unwrap();
    let metadata = send(&gateway, metadata).await;
    assert_eq!(metadata.text("issuer"), "https://gateway.example/base");
    let advertised = metadata.text("token_endpoint");

    // As advertised, and as a proxy that strips the path leaves it.
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", issued.refresh_token.expose()),
    ];
    let path = advertised.strip_prefix("https://gateway.example").unwrap();
    assert_eq!(path, "/base/oauth/token");
    for path in [path, "/oauth/token", "/base/token", "/token"] {
        let answer = send(&gateway, form(path, &pairs)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
    }
    let answer = send(&gateway, form("/basement/oauth/token", &pairs)).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn browsers_may_ask_from_anywhere() {
    let (_lab, regrant, _issued) = issued().await;
    let preflight = Request::options("/oauth/token")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .body(Full::<Bytes>::default());

    let answer = ask(&regrant, preflight.unwrap()).await;

    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("access-control-allow-origin"), "*");
}
