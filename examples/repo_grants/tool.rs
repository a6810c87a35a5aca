//! The MCP server (the official Rust SDK): one tool, which mints.
//!
//! Whose entitlement counts is said by the token of the MCP request. It is taken
//! out of the request before the SDK sees it, so that it cannot come into a log.

use std::error::Error;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware;
use axum::middleware::Next;
use axum::response::Response;
use regrant::repo_grants::MintError;
use regrant::repo_grants::MintErrorKind;
use regrant::repo_grants::MintRequest;
use regrant::repo_grants::Minted;
use regrant::repo_grants::RepoGrants;
use regrant::secret::UpstreamAccessToken;
use rmcp::ErrorData;
use rmcp::RoleServer;
use rmcp::ServerHandler;
use rmcp::model::CallToolRequestParams;
use rmcp::model::CallToolResponse;
use rmcp::model::CallToolResult;
use rmcp::model::JsonObject;
use rmcp::model::ListToolsResult;
use rmcp::model::PaginatedRequestParams;
use rmcp::model::ServerCapabilities;
use rmcp::model::ServerConfig;
use rmcp::model::Tool;
use rmcp::model::ToolAnnotations;
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use serde_json::Value;
use serde_json::json;

/// The server.
#[derive(Clone)]
pub(crate) struct Tools {
    grants: RepoGrants,
    /// Who is calling where a request does not say.
    fallback: Option<UpstreamAccessToken>,
}

impl Tools {
    pub(crate) fn new(grants: RepoGrants, fallback: Option<UpstreamAccessToken>) -> Self {
        Self { grants, fallback }
    }

    /// MCP at this path, without sessions, so that single `curl` lines work.
    pub(crate) fn router(self, path: &str, host: &str) -> Router {
        let hosts = LOOPBACK.iter().copied().chain([host]);
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(true)
            .with_allowed_hosts(hosts)
            // No page is to act for whoever runs this.
            .enforce_origin_validation();
        let mcp = StreamableHttpService::new(
            move || Ok(self.clone()),
            Arc::new(LocalSessionManager::default()),
            config,
        );
        Router::new()
            .route_service(path, mcp)
            .layer(middleware::from_fn(take_caller))
    }

    async fn mint(
        &self,
        arguments: JsonObject,
        caller: Option<&UpstreamAccessToken>,
    ) -> Result<Value, Failure> {
        let request: MintRequest = serde_json::from_value(Value::Object(arguments))?;
        let minted = self.grants.mint(&request, caller).await?;
        Ok(serde_json::to_value(&minted)?)
    }

    fn caller(&self, context: &RequestContext<RoleServer>) -> Option<UpstreamAccessToken> {
        let head = context.extensions.get::<Parts>()?;
        match head.extensions.get::<Presented>() {
            Some(Presented(token)) => token.clone(),
            None => self.fallback.clone(),
        }
    }
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(vec![tool()]))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        Some(tool()).filter(|tool| tool.name == name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if request.name != NAME {
            return Err(ErrorData::invalid_params("there is no such tool", None));
        }
        let caller = self.caller(&context);
        let minted = self.mint(request.arguments.unwrap_or_default(), caller.as_ref());
        let result = match minted.await {
            Ok(minted) => CallToolResult::structured(minted),
            Err(failure) => CallToolResult::structured_error(failure.told()),
        };
        Ok(result.into())
    }
}

fn tool() -> Tool {
    let description = "Mints a GitHub token for one repository, good for an hour, and a refresh \
                       token that gets more of them. Needs the GitHub token of a user who can \
                       reach the repository through an installation of the App.";
    Tool::new(NAME, description, object(&MintRequest::input_schema()))
        .with_raw_output_schema(object(&Minted::output_schema()))
        .with_annotations(ToolAnnotations::new().read_only(false).destructive(false))
}

fn object(schema: &Value) -> Arc<JsonObject> {
    Arc::new(schema.as_object().cloned().unwrap_or_default())
}

/// Why there is no token, and what is wrong with the arguments if they are to
/// blame.
struct Failure {
    error: MintError,
    detail: Option<String>,
}

impl Failure {
    /// What the caller is told; the operator learns the cause.
    fn told(self) -> Value {
        let Self { error, detail } = self;
        if matches!(
            error.kind(),
            MintErrorKind::Config | MintErrorKind::Storage | MintErrorKind::Upstream
        ) {
            tracing::warn!(error = &error as &dyn Error, "no token was minted");
        }
        let message = match detail {
            Some(detail) => format!("{error}: {detail}"),
            None => error.to_string(),
        };
        // Not a moment too early.
        let wait = error.retry_after();
        let wait = wait.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        match wait {
            Some(wait) => json!({ "error": error.code(), "message": message, "retryAfter": wait }),
            None => json!({ "error": error.code(), "message": message }),
        }
    }
}

impl From<MintError> for Failure {
    fn from(error: MintError) -> Self {
        Self {
            error,
            detail: None,
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self {
            detail: Some(error.to_string()),
            error: MintErrorKind::InvalidInput.into(),
        }
    }
}

/// What a request had in `Authorization`: a bearer token, or nothing that could
/// be one.
#[derive(Clone)]
struct Presented(Option<UpstreamAccessToken>);

async fn take_caller(mut request: Request, next: Next) -> Response {
    if let Some(presented) = presented(request.headers()) {
        request.headers_mut().remove(AUTHORIZATION);
        request.extensions_mut().insert(presented);
    }
    next.run(request).await
}

fn presented(headers: &HeaderMap) -> Option<Presented> {
    let values: Vec<_> = headers.get_all(AUTHORIZATION).iter().collect();
    match values.as_slice() {
        [] => None,
        [value] => Some(Presented(bearer(value))),
        // Nobody knows which one is meant.
        _ => Some(Presented(None)),
    }
}

fn bearer(value: &HeaderValue) -> Option<UpstreamAccessToken> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| UpstreamAccessToken::new(token.trim()))
}

pub(crate) const NAME: &str = "MINT_REPO_TOKEN";
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
