//! A real MCP server (the official Rust SDK) for the demo. It accepts only the
//! demo provider's live access tokens.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::Request;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::request::Parts;
use axum::middleware;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use axum::response::Response;
use rmcp::ServerHandler;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::tool::Extension;
use rmcp::model::ServerCapabilities;
use rmcp::model::ServerConfig;
use rmcp::tool;
use rmcp::tool_handler;
use rmcp::tool_router;
use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;

use crate::provider::Provider;

/// The server; clones are the same one.
#[derive(Clone)]
pub(crate) struct Upstream {
    provider: Provider,
    refused: Arc<AtomicUsize>,
}

impl Upstream {
    pub(crate) fn new(provider: Provider) -> Self {
        Self {
            provider,
            refused: Arc::default(),
        }
    }

    /// How many requests were answered 401.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// MCP at `/mcp`, without sessions, so that single `curl` lines work.
    pub(crate) fn router(&self) -> Router {
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(true);
        let mcp = StreamableHttpService::new(
            || Ok(Tools::new()),
            Arc::new(LocalSessionManager::default()),
            config,
        );
        Router::new()
            .route_service("/mcp", mcp)
            .layer(middleware::from_fn_with_state(self.clone(), authenticate))
    }
}

async fn authenticate(
    State(upstream): State<Upstream>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .and_then(|token| upstream.provider.introspect(token));
    let Some((user, number)) = caller else {
        upstream.refused.fetch_add(1, Ordering::SeqCst);
        // A challenge that must never reach a client of the gateway.
        let challenge = [(WWW_AUTHENTICATE, r#"Bearer realm="the upstream's own""#)];
        return (StatusCode::UNAUTHORIZED, challenge, "who are you?").into_response();
    };
    request.extensions_mut().insert(Caller { user, number });
    next.run(request).await
}

/// Who called, by which access token.
#[derive(Clone)]
struct Caller {
    user: String,
    number: usize,
}

struct Tools {
    tool_router: ToolRouter<Self>,
}

#[tool_router]
impl Tools {
    fn new() -> Self {
        Self {
            tool_router: Self::tool_router(),
        }
    }

    #[tool(description = "Says who you are at the upstream, and by which access token")]
    async fn whoami(&self, Extension(head): Extension<Parts>) -> String {
        match head.extensions.get::<Caller>() {
            Some(Caller { user, number }) => format!("{user}, by upstream access token {number}"),
            None => "nobody".to_owned(),
        }
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }
}
