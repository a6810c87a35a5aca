//! The gateway proper: a reverse proxy for MCP's Streamable HTTP. POST, GET and
//! DELETE pass, bodies stream both ways, nothing is buffered.

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::http::header;
use axum::http::uri::PathAndQuery;
use axum::response::IntoResponse as _;
use axum::response::Response;
use hyper_rustls::HttpsConnector;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

/// Where requests go, and the connections that lead there.
#[derive(Clone)]
pub(crate) struct Proxy {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    upstream: Uri,
}

impl Proxy {
    pub(crate) fn new(upstream: Uri) -> Self {
        let connector = HttpsConnectorBuilder::new()
            .with_platform_verifier()
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, upstream }
    }

    /// The upstream's URL with the query of the request.
    fn target(&self, request: &Uri) -> Uri {
        let Some(query) = request.query() else {
            return self.upstream.clone();
        };
        let mut parts = self.upstream.clone().into_parts();
        parts.path_and_query =
            PathAndQuery::try_from(format!("{}?{query}", self.upstream.path())).ok();
        Uri::from_parts(parts).unwrap_or_else(|_| self.upstream.clone())
    }
}

pub(crate) async fn forward(State(proxy): State<Proxy>, mut request: Request) -> Response {
    *request.uri_mut() = proxy.target(request.uri());
    // The client sets it from the URL: the upstream must not see our name.
    request.headers_mut().remove(header::HOST);
    strip_hop_by_hop(request.headers_mut());

    match proxy.client.request(request).await {
        Ok(mut response) => {
            strip_hop_by_hop(response.headers_mut());
            response.map(Body::new)
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "upstream unreachable"
            );
            let body = json!({
                "jsonrpc": "2.0",
                "id": null,
                "error": { "code": -32_002, "message": "the upstream cannot be reached" },
            });
            (StatusCode::BAD_GATEWAY, Json(body)).into_response()
        }
    }
}

/// RFC 9110 §7.6.1: these speak of one connection only, and so do those that
/// `Connection` names.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
}
