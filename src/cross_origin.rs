//! Browser clients: what lets a page of another origin call the resource and
//! read the answers, the challenge above all (the Fetch standard's CORS).
//!
//! 1. Any origin may ask, because no cookie is involved: whoever is to be let in
//!    shows a bearer token. `Access-Control-Allow-Credentials` is never sent.
//! 2. A preflight has no bearer and never will. It is answered here.
//! 3. An `Access-Control-Allow-Origin` of the gateway stands, and all else that
//!    it says with it.
//! 4. Where requests without a bearer pass through, they and their preflights
//!    are the gateway's own business: it may know its users by their network.
//! 5. `Origin` reaches the gateway: MCP has it refuse foreign ones.

use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header::ACCESS_CONTROL_ALLOW_HEADERS;
use http::header::ACCESS_CONTROL_ALLOW_METHODS;
use http::header::ACCESS_CONTROL_ALLOW_ORIGIN;
use http::header::ACCESS_CONTROL_EXPOSE_HEADERS;
use http::header::ACCESS_CONTROL_MAX_AGE;
use http::header::ACCESS_CONTROL_REQUEST_HEADERS;
use http::header::ACCESS_CONTROL_REQUEST_METHOD;
use http::header::ORIGIN;
use http::header::VARY;

use crate::response::OwnBody;

pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
}

/// Whether a request with an `Origin` is a preflight.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

pub(crate) fn preflight(request: &HeaderMap) -> Response<OwnBody> {
    let mut response = Response::new(OwnBody::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    // Those that are asked for: MCP's `Mcp-Param-*` are open-ended, and `*`
    // would not cover `Authorization`.
    for asked in request.get_all(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.append(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    headers.insert(VARY, VARIES);
    response
}

/// Lets the page read this response.
pub(crate) fn expose(response: &mut HeaderMap) {
    if response.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    // Names that the gateway lists on its own add up.
    response.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}

const ANY: HeaderValue = HeaderValue::from_static("*");
/// Those of MCP's Streamable HTTP.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE");
const EXPOSED: HeaderValue =
    HeaderValue::from_static("www-authenticate, mcp-session-id, retry-after");
/// Seconds; browsers cut it down to two hours or less.
const MAX_AGE: HeaderValue = HeaderValue::from_static("3600");
const VARIES: HeaderValue = HeaderValue::from_static(
    "origin, access-control-request-method, access-control-request-headers",
);
