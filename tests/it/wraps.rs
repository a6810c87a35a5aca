//! The same layer around everything that a gateway may be made of.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;
use bytes::Bytes;
use http::Response;
use http::StatusCode;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use regrant::GrantContext;
use regrant::RefreshLayer;
use regrant::replay::ReplayBody;
use regrant::service::Refresh;
use rmcp::ServerHandler;
use rmcp::ServiceExt as _;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::tool::Extension;
use rmcp::model::CallToolRequestParams;
use rmcp::model::ServerCapabilities;
use rmcp::model::ServerConfig;
use rmcp::tool;
use rmcp::tool_handler;
use rmcp::tool_router;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use tokio::net::TcpListener;
use tower::Layer as _;
use tower::ServiceBuilder;
use tower::ServiceExt as _;
use tower_http::cors::CorsLayer;

use crate::support::Lab;
use crate::support::post;
use crate::support::serve;

#[tokio::test]
async fn an_axum_router_with_several_routes_and_a_fallback() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let subject = async |request: Request| {
        let grant = request.extensions().get::<GrantContext>().unwrap();
        grant.subject().to_owned()
    };
    let app = Router::new()
        .route("/mcp", any(subject))
        .route("/other", any(async || "other"))
        .layer(regrant.layer("linear").unwrap())
        // The layer composes with what stands around it.
        .layer(CorsLayer::permissive());
    let url = serve(app).await;
    let http = reqwest::Client::new();

    let access = issued.access_token.expose();
    for (path, want) in [("/mcp", "ada"), ("/other", "other")] {
        let request = http.post(format!("{url}{path}")).bearer_auth(access);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), want);
    }
    // No route was declared for the token endpoint.
    let form = format!(
        "grant_type=refresh_token&refresh_token={}",
        issued.refresh_token.expose()
    );
    let request = http.post(format!("{url}/oauth/token"));
    let media = "application/x-www-form-urlencoded";
    let request = request.header("content-type", media).body(form);
    assert_eq!(request.send().await.unwrap().status(), 200);
    let answer = http.get(format!("{url}/nowhere")).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    let request = http.get(format!("{url}/nowhere")).bearer_auth(access);
    assert_eq!(request.send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn a_hyper_service_fn() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let echo = async |request: http::Request<ReplayBody<Incoming>>| {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Ok::<_, Infallible>(Response::new(Full::new(body)))
    };
    let service = ServiceBuilder::new()
        .layer(regrant.layer("linear").unwrap())
        .service_fn(echo);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let io = TokioIo::new(listener.accept().await.unwrap().0);
        auto::Builder::new(TokioExecutor::new())
            .serve_connection(io, TowerToHyperService::new(service))
            .await
            .unwrap();
    });

    let request = reqwest::Client::new().post(url).body("hello");
    let request = request.bearer_auth(issued.access_token.expose());
    assert_eq!(request.send().await.unwrap().text().await.unwrap(), "hello");
}

#[tokio::test]
async fn a_hyper_client_whose_upstream_refuses_at_first() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let provider = lab.provider.clone();
    let upstream = Router::new().fallback(any(async move |request: Request| {
        let bearer = request.headers()["authorization"].to_str().unwrap();
        let token = bearer.strip_prefix("Bearer ").unwrap();
        let user = provider.introspect(token);
        let body = axum::body::to_bytes(request.into_body(), 1_000).await;
        match user {
            Some(_) => (StatusCode::OK, body.unwrap()),
            None => (StatusCode::UNAUTHORIZED, Bytes::new()),
        }
    }));
    let url = serve(upstream).await;
    let client: Client<HttpConnector, ReplayBody<Full<Bytes>>> =
        Client::builder(TokioExecutor::new()).build_http();
    let client = regrant.layer("linear").unwrap().layer(client);
    lab.provider.revoke_access_tokens();

    let mut request = post(issued.access_token.expose(), "hello");
    *request.uri_mut() = format!("{url}/mcp").parse().unwrap();
    let response = client.oneshot(request).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "hello");
    assert_eq!(lab.provider.counts().refreshes, 1);
}

#[tokio::test]
async fn the_official_sdks_server_with_the_official_sdks_client() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let mcp = StreamableHttpService::new(
        || Ok(Tools::new()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    let mcp = regrant.layer("linear").unwrap().layer(mcp);
    let url = serve(Router::new().route_service("/mcp", mcp)).await;
    let config = StreamableHttpClientTransportConfig::with_uri(format!("{url}/mcp"))
        .auth_header(issued.access_token.expose());
    let transport = StreamableHttpClientTransport::from_config(config);

    let client = ().serve(transport).await.unwrap();
    let before = called(&client).await;
    lab.clock
        .advance(Duration::from_secs(3_600) - Duration::from_secs(1));
    let after = called(&client).await;
    client.cancel().await.unwrap();

    assert!(before.contains("ada, generation 0"), "{before}");
    assert!(after.contains("ada, generation 1"), "{after}");
}

async fn called(client: &rmcp::service::RunningService<rmcp::RoleClient, ()>) -> String {
    let answer = client.call_tool(CallToolRequestParams::new("whoami")).await;
    serde_json::to_string(&answer.unwrap().content).unwrap()
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

    #[tool(description = "Who is calling")]
    async fn whoami(&self, Extension(head): Extension<http::request::Parts>) -> String {
        let grant = head.extensions.get::<GrantContext>().unwrap();
        format!(
            "{}, generation {}",
            grant.subject(),
            grant.credential_generation()
        )
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }
}

/// What users rely on without saying so.
#[test]
fn the_types_are_what_axum_and_hyper_ask_for() {
    fn is<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    fn is_future<T: Send>() {}
    fn is_body<T: http_body::Body + Default + std::fmt::Debug + Send + Sync>() {}

    is::<RefreshLayer>();
    is::<Refresh<Router>>();
    is::<regrant::Regrant>();
    is::<regrant::Endpoints>();
    is_future::<<Refresh<Router> as tower::Service<http::Request<Body>>>::Future>();
    is_body::<regrant::response::ResponseBody<Full<Bytes>>>();
}
