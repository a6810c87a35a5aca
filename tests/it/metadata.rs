//! Metadata and who may read it: what clients find by themselves.

use bytes::Bytes;
use http::Request;
use http::StatusCode;
use http_body_util::Full;
use regrant::Regrant;
use regrant::StartError;
use regrant::store::memory::MemoryStore;
use serde_json::json;

use crate::support::Answer;
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
    let get = async |path: &str| get(&regrant, path).await;

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
async fn what_is_switched_on_or_served_by_the_gateway_is_advertised_too() {
    let lab = Lab::start().await;
    let regrant = lab
        .builder(MemoryStore::new())
        .authorization_endpoint("https://gateway.example/authorize")
        .introspection(true)
        .metadata("registration_endpoint", "https://gateway.example/register")
        .metadata("issuer", "https://evil.example")
        .start()
        .await
        .unwrap();

    let metadata = get(&regrant, "/.well-known/oauth-authorization-server").await;

    let methods = json!([
        "none",
        "client_secret_basic",
        "client_secret_post",
        "private_key_jwt"
    ]);
    for (member, want) in [
        ("issuer", json!("https://gateway.example")),
        (
            "authorization_endpoint",
            json!("https://gateway.example/authorize"),
        ),
        (
            "registration_endpoint",
            json!("https://gateway.example/register"),
        ),
        (
            "introspection_endpoint",
            json!("https://gateway.example/oauth/introspect"),
        ),
        (
            "grant_types_supported",
            json!(["authorization_code", "refresh_token"]),
        ),
        ("response_types_supported", json!(["code"])),
        ("code_challenge_methods_supported", json!(["S256"])),
        ("token_endpoint_auth_methods_supported", methods.clone()),
        ("revocation_endpoint_auth_methods_supported", methods),
        (
            "introspection_endpoint_auth_methods_supported",
            json!([
                "client_secret_basic",
                "client_secret_post",
                "private_key_jwt"
            ]),
        ),
    ] {
        assert_eq!(metadata.json()[member], want, "{member}");
    }

    let relative = lab.builder(MemoryStore::new());
    let relative = relative.authorization_endpoint("/authorize").start().await;
    assert!(matches!(relative, Err(StartError::Config(_))));
}

#[tokio::test]
async fn a_resource_tells_the_scopes_that_its_routes_demand() {
    let (_lab, regrant, _issued) = issued().await;
    for scope in ["write read", "read offline_access"] {
        let layer = regrant.layer("linear").unwrap().resource_path("/mcp");
        let _layer = layer.unwrap().required_scope(scope).unwrap();
    }
    let other = regrant.layer("linear").unwrap().required_scope("admin");
    let _other = other.unwrap().resource_path("/admin").unwrap();

    let scopes = async |path: &str| {
        let path = format!("/.well-known/oauth-protected-resource{path}");
        get(&regrant, &path).await.json()["scopes_supported"].clone()
    };
    assert_eq!(scopes("/mcp").await, json!(["read", "write"]));
    assert_eq!(scopes("/admin").await, json!(["admin"]));
}

#[tokio::test]
async fn metadata_may_be_cached_and_is_not_sent_again_unchanged() {
    let (_lab, regrant, _issued) = issued().await;
    let path = "/.well-known/oauth-authorization-server";
    let first = get(&regrant, path).await;
    assert_eq!(first.header("cache-control"), "public, max-age=300");
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");

    for (known, status) in [
        (tag.clone(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"other\", {tag}"), 304),
        ("*".to_owned(), 304),
        ("\"other\"".to_owned(), 200),
    ] {
        let request = Request::get(path).header("if-none-match", &known);
        let answer = ask(&regrant, request.body(Full::<Bytes>::default()).unwrap()).await;
        assert_eq!(answer.status.as_u16(), status, "{known}");
        assert_eq!(answer.header("etag"), tag);
        assert_eq!(answer.body.is_empty(), status == 304);
    }
    let head = Request::head(path).body(Full::<Bytes>::default());
    let head = ask(&regrant, head.unwrap()).await;
    assert_eq!(head.status, StatusCode::OK);
    assert!(head.body.is_empty());
    assert_eq!(head.header("content-length"), first.body.len().to_string());

    // Something else is tagged otherwise.
    let other = get(&regrant, "/.well-known/oauth-protected-resource").await;
    assert_ne!(other.header("etag"), tag);
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

async fn get(regrant: &Regrant, path: &str) -> Answer {
    let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
    ask(regrant, request).await
}
