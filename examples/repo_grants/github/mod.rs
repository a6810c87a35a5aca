//! A small GitHub for the tour and the tests: one App with its installations,
//! users with their access, and the REST endpoints by which installation tokens
//! are minted, used and revoked. It refuses what GitHub refuses, in GitHub's
//! words (<https://docs.github.com/en/rest/apps>), and goes wrong when told to.
//!
//! ```ignore
//! let key = AppKey::shared()?;
//! let github = GitHub::new("123456", key.public_der(), Arc::new(SystemClock));
//! github.install(7, "acme", &[("contents", "write")]);
//! github.add_repository(7, 70, "rocket");
//! github.give_access("ada", 7, &[70]);
//! let user_token = github.log_in("ada")?;
//! let api_url = github.start().await?;
//! ```

mod answers;
mod app;
mod authentication;
mod calls;
mod faults;
mod key;
mod repositories;
mod user;
mod wire;
mod world;

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header::USER_AGENT;
use axum::http::request::Parts;
use axum::middleware;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::routing::delete;
use axum::routing::get;
use axum::routing::post;
use regrant::clock::Clock;

pub(crate) use self::authentication::Caller;
pub(crate) use self::calls::Call;
pub(crate) use self::calls::Endpoint;
pub(crate) use self::faults::Fault;
pub(crate) use self::faults::Gate;
pub(crate) use self::key::AppKey;
pub(crate) use self::world::Role;

use self::answers::Refusal;
use self::answers::error;
use self::app::App;
use self::calls::API_VERSION;
use self::calls::Calls;
use self::faults::Faults;
use self::wire::Connection;
use self::wire::Listener;
use self::world::World;

/// GitHub, as one App sees it; clones are the same one.
#[derive(Clone)]
pub(crate) struct GitHub(Arc<Inner>);

struct Inner {
    app: App,
    clock: Arc<dyn Clock>,
    world: Mutex<World>,
    faults: Mutex<Faults>,
    calls: Mutex<Calls>,
    connections: Arc<AtomicUsize>,
}

impl GitHub {
    /// Knows one App by its id and its public key in DER, as
    /// [`AppKey::public_der`] gives it.
    pub(crate) fn new(app_id: &str, public_key: &[u8], clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            app: App::new(app_id, public_key),
            clock,
            world: Mutex::default(),
            faults: Mutex::default(),
            calls: Mutex::default(),
            connections: Arc::default(),
        }))
    }

    /// What GitHub takes for the issuer of an App's JWTs beside its id.
    pub(crate) fn client_id(&self) -> &str {
        self.0.app.client_id()
    }

    /// The endpoints. Connections are counted, and reset by a [`Fault`], only
    /// where [`start`](Self::start) serves them.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/user/installations", get(user::installations))
            .route(
                "/user/installations/{id}/repositories",
                get(user::repositories),
            )
            .route("/app/installations/{id}/access_tokens", post(app::mint))
            .route("/installation/token", delete(repositories::revoke))
            .route("/installation/repositories", get(repositories::list))
            .route("/repos/{owner}/{repo}", get(repositories::read))
            .route(
                "/repos/{owner}/{repo}/contents/{*path}",
                get(repositories::contents),
            )
            .fallback(async || Refusal::NOT_FOUND)
            .method_not_allowed_fallback(async || Refusal::NOT_FOUND)
            .layer(middleware::from_fn_with_state(self.clone(), meet))
            .with_state(self.clone())
    }

    /// Serves it on a free port of this machine for as long as the runtime
    /// lives; gives the base URL of the API, without a slash at its end.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub(crate) async fn start(&self) -> io::Result<String> {
        let listener = Listener::bind(Arc::clone(&self.0.connections)).await?;
        let url = format!("http://{}", listener.address()?);
        let service = self
            .router()
            .into_make_service_with_connect_info::<Connection>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        Ok(url)
    }

    /// How many TCP connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.0.connections.load(Ordering::SeqCst)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.0.world)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.0.faults)
    }

    fn recorded(&self) -> MutexGuard<'_, Calls> {
        lock(&self.0.calls)
    }
}

/// What GitHub does around every endpoint: writes the call down, lets it go
/// wrong, looks at the headers.
async fn meet(State(github): State<GitHub>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body::to_bytes(body, BODY_LIMIT).await else {
        return error(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large");
    };
    let connection = parts.extensions.get::<ConnectInfo<Connection>>().cloned();
    let caller = github.presented(&parts.headers).caller;
    let call = Call::new(
        &parts,
        &body,
        &caller,
        connection.as_ref().map(|it| it.0.number()),
    );
    let fault = github.faults().next(call.endpoint);
    let number = github.recorded().push(call);

    let request = Request::from_parts(parts, Body::from(body));
    let mut response = match &fault {
        Some(Fault::Answer(answer)) => answer.to_response(),
        Some(Fault::Reset) => StatusCode::BAD_GATEWAY.into_response(),
        Some(Fault::Delay(latency)) => {
            tokio::time::sleep(*latency).await;
            answer(&github, request, next).await
        }
        Some(Fault::Hold(gate)) => {
            gate.pass().await;
            answer(&github, request, next).await
        }
        Some(Fault::LoseAnswer) | None => answer(&github, request, next).await,
    };
    if let (Some(Fault::Reset | Fault::LoseAnswer), Some(ConnectInfo(connection))) =
        (&fault, &connection)
    {
        connection.cut();
    }
    let now = github.0.clock.now();
    github.recorded().answered(number, response.status());
    let limit = github.recorded().limit(&caller, now);
    answers::stamp(response.headers_mut(), now, &limit);
    response
}

async fn answer(github: &GitHub, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    if let Some(refusal) = refused(&parts) {
        return refusal;
    }
    // Not who it was on arrival: a token may have expired while its call was held.
    let presented = github.presented(&parts.headers);
    parts.extensions.insert(presented);
    next.run(Request::from_parts(parts, body)).await
}

/// The headers that GitHub wants of every call
/// (<https://docs.github.com/en/rest/using-the-rest-api/getting-started-with-the-rest-api>).
fn refused(parts: &Parts) -> Option<Response> {
    if text(&parts.headers, USER_AGENT.as_str()).is_none_or(str::is_empty) {
        let why = "Request forbidden by administrative rules. Please make sure your request has a \
                   User-Agent header.";
        return Some((StatusCode::FORBIDDEN, why).into_response());
    }
    let version = text(&parts.headers, API_VERSION)?;
    (version != SUPPORTED_VERSION).then(|| {
        let why = format!(
            "The version you specified in the \"X-GitHub-API-Version\" request header, \
             \"{version}\", is not a supported version. The following versions are currently \
             supported: \"{SUPPORTED_VERSION}\" (most recent)."
        );
        error(StatusCode::BAD_REQUEST, &why)
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SUPPORTED_VERSION: &str = "2022-11-28";
const BODY_LIMIT: usize = 1 << 20;
