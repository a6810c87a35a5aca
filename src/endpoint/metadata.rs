//! Metadata: only what works is advertised, from one source of truth.

use serde_json::Value;
use serde_json::json;

use crate::state::Core;

/// RFC 8414 §2.
pub(super) fn server(core: &Core) -> Value {
    let base = core.public_url.as_str();
    json!({
        "issuer": base,
        "token_endpoint": format!("{base}/oauth/token"),
        "revocation_endpoint": format!("{base}/oauth/revoke"),
        "grant_types_supported": ["refresh_token"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
    })
}

/// RFC 9728 §2, for the resource at this path.
pub(super) fn resource(core: &Core, path: &str) -> Value {
    let base = core.public_url.as_str();
    json!({
        "resource": format!("{base}{path}"),
        "authorization_servers": [base],
        "bearer_methods_supported": ["header"],
    })
}

/// The path of a resource that a layer protects. The form without a path names
/// the only resource, or the gateway as a whole.
pub(super) fn known_resource(core: &Core, path: &str) -> Option<String> {
    let known = core.resources();
    if path.is_empty() {
        return match <[String; 1]>::try_from(known) {
            Ok([only]) => Some(only),
            Err(_) => Some(String::new()),
        };
    }
    known.into_iter().find(|resource| resource == path)
}
