//! The endpoints: what clients ask of the gateway as an authorization server.
//!
//! | path | method | what |
//! |---|---|---|
//! | `/oauth/token`, `/token` | POST | redeem a code, rotate a refresh token (RFC 6749 §4.1.3, §6) |
//! | `/oauth/revoke` | POST | end a grant or an access token (RFC 7009) |
//! | `/oauth/introspect` | POST | tell a resource server of a token (RFC 7662), if switched on |
//! | `/.well-known/oauth-authorization-server` | GET | metadata (RFC 8414) |
//! | `/.well-known/oauth-protected-resource` | GET | metadata (RFC 9728) |
//! | `/repo-grant/token` | POST | redeem a repo grant, if there are any |
//! | `/repo-grant/revoke` | POST | end a repo grant (RFC 7009) |
//!
//! They never call a provider and do not depend on the upstream, but for the one
//! that redeems repo grants: minting is what that is for. Every answer
//! is JSON, errors and panics included: some clients take anything else for the
//! end of a login.

mod client;
mod code;
mod error;
mod form;
mod introspect;
pub(crate) mod metadata;
mod presented;
mod refresh;
mod repo_grant;
mod revoke;
mod token;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::ALLOW;
use http::header::CACHE_CONTROL;
use http::header::CONTENT_TYPE;
use http::header::PRAGMA;
use http::header::RETRY_AFTER;
use http::header::WWW_AUTHENTICATE;
use http_body::Body;
use serde_json::Value;
use tower::Service;
use tower::ServiceBuilder;
use tower::ServiceExt as _;
use tower_http::cors;
use tower_http::cors::CorsLayer;

use self::error::OAuthError;
use crate::BoxError;
use crate::response::OwnBody;
use crate::state::Core;
use crate::state::Resource;

/// The token and revocation endpoints with their metadata.
///
/// A [`RefreshLayer`](crate::RefreshLayer) serves them by itself. Mounted alone
/// they are any `tower::Service`; what is not theirs is a 404.
///
/// ```
/// use regrant::Regrant;
/// use regrant::seal::Keyring;
/// use regrant::store::memory::MemoryStore;
/// use tower::ServiceExt as _;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let regrant = Regrant::builder("https://gateway.example", MemoryStore::new(), Keyring::generate()?)
///     .start()
///     .await?;
/// let request = http::Request::get("/oauth/token").body(String::new())?;
///
/// let response = regrant.endpoints().oneshot(request).await?;
/// assert_eq!(response.status(), 405);
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Endpoints {
    core: Arc<Core>,
}

impl Endpoints {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Whether this path is an endpoint's.
    pub(crate) fn serves(core: &Core, path: &str) -> bool {
        Endpoint::at(core, path).is_some()
    }

    /// Answers; errors are answers too.
    pub(crate) fn respond<B>(&self, request: Request<B>) -> BoxFuture<'static, Response<OwnBody>>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let core = Arc::clone(&self.core);
        // Browser clients: no cookies are involved, so any origin may ask.
        let cross_origin = CorsLayer::new()
            .allow_origin(cors::Any)
            .allow_methods([Method::GET, Method::POST])
            // `Authorization` for `client_secret_basic`, `MCP-Protocol-Version`
            // for metadata, and whatever else a client comes to send.
            .allow_headers(cors::AllowHeaders::mirror_request())
            .expose_headers([RETRY_AFTER, WWW_AUTHENTICATE])
            .max_age(PREFLIGHT_AGE);
        let service = ServiceBuilder::new()
            .layer(cross_origin)
            .service_fn(move |request| answer(Arc::clone(&core), request));
        service
            .oneshot(request)
            .map(|result| result.unwrap_or_else(|never: Infallible| match never {}))
            .boxed()
    }
}

impl<B> Service<Request<B>> for Endpoints
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<OwnBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<OwnBody>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.respond(request).map(Ok).boxed()
    }
}

async fn answer<B>(core: Arc<Core>, request: Request<B>) -> Result<Response<OwnBody>, Infallible>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let answered = AssertUnwindSafe(route(&core, request)).catch_unwind().await;
    let answered = answered.unwrap_or_else(|_panic| {
        tracing::error!("an endpoint panicked");
        Err(OAuthError::internal())
    });
    Ok(answered.unwrap_or_else(OAuthError::into_response))
}

async fn route<B>(core: &Arc<Core>, request: Request<B>) -> Result<Response<OwnBody>, OAuthError>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let path = request.uri().path();
    let Some(endpoint) = Endpoint::at(core, path) else {
        return Ok(json(StatusCode::NOT_FOUND, &Value::Null));
    };
    let is_head = request.method() == Method::HEAD;
    if !endpoint.allows(request.method()) {
        let mut response = OAuthError::method_not_allowed().into_response();
        response.headers_mut().insert(ALLOW, endpoint.allowed());
        return Ok(response);
    }

    match endpoint {
        Endpoint::Token => token::token(core, form::read(request).await?).await,
        Endpoint::Revoke => revoke::revoke(core, form::read(request).await?).await,
        Endpoint::Introspect => introspect::introspect(core, form::read(request).await?).await,
        Endpoint::RepoGrantToken => repo_grant::redeem(core, form::read(request).await?).await,
        Endpoint::RepoGrantRevoke => repo_grant::revoke(core, form::read(request).await).await,
        Endpoint::ServerMetadata => {
            let metadata = metadata::server(core);
            Ok(metadata::respond(&metadata, request.headers(), is_head))
        }
        Endpoint::ResourceMetadata(resource) => {
            let metadata = metadata::resource(core, &resource);
            Ok(metadata::respond(&metadata, request.headers(), is_head))
        }
    }
}

enum Endpoint {
    Token,
    Revoke,
    Introspect,
    RepoGrantToken,
    RepoGrantRevoke,
    ServerMetadata,
    ResourceMetadata(Resource),
}

impl Endpoint {
    fn at(core: &Core, path: &str) -> Option<Self> {
        let base = core.public_url.path();
        // Where the public URL has a path, a proxy in front may strip it or not.
        match path.strip_prefix(base).unwrap_or(path) {
            // Some clients guess `/token` after a restart.
            "/oauth/token" | "/token" => Some(Self::Token),
            "/oauth/revoke" => Some(Self::Revoke),
            "/oauth/introspect" if core.advertised.introspection => Some(Self::Introspect),
            // Not below `/oauth`, which is the gateway's own.
            REPO_GRANT_TOKEN if core.repo_grants.is_some() => Some(Self::RepoGrantToken),
            "/repo-grant/revoke" if core.repo_grants.is_some() => Some(Self::RepoGrantRevoke),
            _ => {
                // Both forms of RFC 8414 §3.1: with the issuer's path behind
                // the well-known one, and the plain one behind a proxy that
                // strips it.
                let rest = path.strip_prefix("/.well-known/")?;
                if let Some(issuer) = rest.strip_prefix("oauth-authorization-server") {
                    return (issuer.is_empty() || issuer == base).then_some(Self::ServerMetadata);
                }
                let resource = rest.strip_prefix("oauth-protected-resource")?;
                metadata::known_resource(core, resource.strip_prefix(base).unwrap_or(resource))
                    .map(Self::ResourceMetadata)
            }
        }
    }

    fn allows(&self, method: &Method) -> bool {
        match self {
            Self::Token
            | Self::Revoke
            | Self::Introspect
            | Self::RepoGrantToken
            | Self::RepoGrantRevoke => *method == Method::POST,
            Self::ServerMetadata | Self::ResourceMetadata(_) => {
                *method == Method::GET || *method == Method::HEAD
            }
        }
    }

    fn allowed(&self) -> HeaderValue {
        match self {
            Self::Token
            | Self::Revoke
            | Self::Introspect
            | Self::RepoGrantToken
            | Self::RepoGrantRevoke => HeaderValue::from_static("POST"),
            Self::ServerMetadata | Self::ResourceMetadata(_) => {
                HeaderValue::from_static("GET, HEAD")
            }
        }
    }
}

/// RFC 6749 §5.1: tokens must not be cached, nor must the errors about them.
fn json(status: StatusCode, body: &Value) -> Response<OwnBody> {
    let mut response = Response::new(OwnBody::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// Read so far, at most this much.
async fn collect<B>(mut body: std::pin::Pin<&mut B>, limit: usize) -> Result<Bytes, OAuthError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    use bytes::Buf as _;
    use http_body_util::BodyExt as _;

    let mut collected = Vec::new();
    while let Some(frame) = body.as_mut().frame().await {
        let frame = frame.map_err(|_error| OAuthError::invalid_request("unreadable body"))?;
        if let Ok(mut data) = frame.into_data() {
            // Counted, because `Content-Length` may be absent or untrue.
            if collected.len() + data.remaining() > limit {
                return Err(OAuthError::too_large());
            }
            let chunk = data.copy_to_bytes(data.remaining());
            collected.extend_from_slice(&chunk);
        }
    }
    Ok(collected.into())
}

/// Below the public URL.
pub(crate) const REPO_GRANT_TOKEN: &str = "/repo-grant/token";
const PREFLIGHT_AGE: std::time::Duration = std::time::Duration::from_secs(3_600);
