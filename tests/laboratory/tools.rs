//! A real MCP server (the official Rust SDK) with sessions and event streams,
//! behind the same guard as the plain resource.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::extract::State;
use axum::http::request::Parts;
use axum::middleware;
use axum::middleware::Next;
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

use crate::Laboratory;
use crate::upstream;

pub(crate) fn router(lab: Laboratory) -> Router<Laboratory> {
    let mcp = StreamableHttpService::new(
        || Ok(Tools::new()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    Router::new()
        .route_service("/tools", mcp)
        .layer(middleware::from_fn_with_state(lab, authenticate))
}

async fn authenticate(State(lab): State<Laboratory>, mut request: Request, next: Next) -> Response {
    match upstream::admit(&lab, request.headers()) {
        Ok(user) => {
            request.extensions_mut().insert(Caller(user));
            next.run(request).await
        }
        Err(refusal) => refusal,
    }
}

/// Whose access token it was.
#[derive(Clone)]
struct Caller(String);

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

    #[tool(description = "Says who you are to the laboratory")]
    async fn whoami(&self, Extension(head): Extension<Parts>) -> String {
        let caller = head.extensions.get::<Caller>();
        caller.map_or_else(|| "nobody".to_owned(), |Caller(user)| user.clone())
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }
}
