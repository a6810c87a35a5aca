//! Metadata: only what works is advertised, from one source of truth.

use http::HeaderMap;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header::CACHE_CONTROL;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_TYPE;
use http::header::ETAG;
use http::header::IF_NONE_MATCH;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use sha2::Digest as _;
use sha2::Sha256;

use super::client::SIGNING_ALGORITHMS;
use crate::response::OwnBody;
use crate::state::Core;
use crate::state::Resource;

/// What the gateway has beside the endpoints of this crate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Advertised {
    /// Where the gateway itself lets users log in (RFC 6749 §3.1).
    pub(crate) authorization_endpoint: Option<Box<str>>,
    pub(crate) introspection: bool,
    /// Members for whatever else it serves itself.
    pub(crate) further: Map<String, Value>,
}

/// RFC 8414 §2.
pub(super) fn server(core: &Core) -> Value {
    let base = core.public_url.as_str();
    let advertised = &core.advertised;
    let mut members = advertised.further.clone();
    let mut advertise = |name: &str, value: Value| {
        // What is ours, nobody else knows better.
        members.insert(name.to_owned(), value);
    };
    advertise("issuer", base.into());
    let mut grant_types = vec!["refresh_token"];
    let mut response_types = Vec::new();
    if let Some(endpoint) = &advertised.authorization_endpoint {
        advertise("authorization_endpoint", (**endpoint).into());
        advertise("code_challenge_methods_supported", json!(["S256"]));
        grant_types.insert(0, "authorization_code");
        response_types.push("code");
    }
    advertise("grant_types_supported", grant_types.into());
    advertise("response_types_supported", response_types.into());
    let mut endpoints = vec![("token", true), ("revocation", true)];
    if advertised.introspection {
        endpoints.push(("introspection", false));
    }
    for (endpoint, is_public) in endpoints {
        let path = match endpoint {
            "revocation" => "revoke",
            "introspection" => "introspect",
            same => same,
        };
        let mut methods = vec![
            "client_secret_basic",
            "client_secret_post",
            "private_key_jwt",
        ];
        if is_public {
            methods.insert(0, "none");
        }
        let name = |rest: &str| format!("{endpoint}_endpoint{rest}");
        advertise(&name(""), format!("{base}/oauth/{path}").into());
        advertise(&name("_auth_methods_supported"), methods.into());
        advertise(
            &name("_auth_signing_alg_values_supported"),
            SIGNING_ALGORITHMS.as_slice().into(),
        );
    }
    Value::Object(members)
}

/// RFC 9728 §2.
pub(super) fn resource(core: &Core, resource: &Resource) -> Value {
    let base = core.public_url.as_str();
    let mut metadata = json!({
        "resource": format!("{base}{}", resource.path),
        "authorization_servers": [base],
        "bearer_methods_supported": ["header"],
    });
    if let (false, Some(members)) = (resource.scopes.is_empty(), metadata.as_object_mut()) {
        let scopes: Vec<_> = resource.scopes.iter().map(String::as_str).collect();
        members.insert("scopes_supported".to_owned(), scopes.into());
    }
    metadata
}

/// The resource at a path that a layer protects. The form without a path names
/// the only resource, or the gateway as a whole.
pub(super) fn known_resource(core: &Core, path: &str) -> Option<Resource> {
    let mut known = core.resources();
    if path.is_empty() {
        let base = known.iter().position(|resource| resource.path.is_empty());
        let whole = base.map(|index| known.remove(index)).unwrap_or_default();
        return match <[Resource; 1]>::try_from(known) {
            Ok([only]) => Some(only),
            Err(_) => Some(whole),
        };
    }
    known.into_iter().find(|resource| resource.path == path)
}

/// Public, and cached for a while (RFC 9111); who asks again with the tag of
/// what it has is told that it still holds (RFC 9110 §13.1.2).
pub(super) fn respond(metadata: &Value, request: &HeaderMap, is_head: bool) -> Response<OwnBody> {
    let text = metadata.to_string();
    let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let tag = digest
        .iter()
        .take(8)
        .fold(String::new(), |tag, byte| tag + &format!("{byte:02x}"));
    let tag = format!("\"{tag}\"");
    let is_known = |value: &HeaderValue| {
        value.to_str().is_ok_and(|known| {
            known
                .split(',')
                .map(|known| known.trim().trim_start_matches("W/"))
                .any(|known| known == tag || known == "*")
        })
    };
    let is_unchanged = request.get_all(IF_NONE_MATCH).iter().any(is_known);

    let length = text.len();
    let body = if is_unchanged || is_head {
        String::new()
    } else {
        text
    };
    let mut response = Response::new(OwnBody::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=300"),
    );
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    if is_unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    response
}
