//! What the tests stand on: a provider on a socket, an upstream that accepts
//! only its live tokens, and a gateway between them.

pub(crate) mod cluster;
pub(crate) mod database;
pub(crate) mod faults;
pub(crate) mod flaky;
pub(crate) mod laboratory;
pub(crate) mod line;
pub(crate) mod lossy;
pub(crate) mod process;
pub(crate) mod secrets;
pub(crate) mod standby;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::HeaderMap;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::WWW_AUTHENTICATE;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use regrant::GrantContext;
use regrant::GrantId;
use regrant::Issued;
use regrant::Login;
use regrant::Regrant;
use regrant::RegrantBuilder;
use regrant::clock::ManualClock;
use regrant::provider::Expiry;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::replay::ReplayBody;
use regrant::response::ResponseBody;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::service::Refresh;
use regrant::settings::Lifetimes;
use regrant::settings::Timings;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;
use serde_json::Value;
use tokio::net::TcpListener;
use tower::Layer as _;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use self::faults::Faults;
use crate::provider::Provider;

pub(crate) const KEYS: &str = "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// A provider and an upstream, with everything they see.
pub(crate) struct Lab {
    pub(crate) provider: Provider,
    pub(crate) faults: Faults,
    pub(crate) token_url: String,
    oauth2: OAuth2Provider,
    pub(crate) clock: ManualClock,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
}

/// Access tokens of ours that outlive the upstream's.
pub(crate) fn long() -> Lifetimes {
    Lifetimes::default().access(24 * HOUR)
}

/// Short enough for a test to sit out.
pub(crate) fn short() -> Timings {
    Timings::default()
        .provider_timeout(Duration::from_millis(200))
        .lease(Duration::from_millis(300))
        .wait_budget(Duration::from_millis(400))
}

/// A gateway that soon gives up waiting.
pub(crate) async fn impatient(lab: &Lab) -> Regrant {
    let builder = lab.builder(MemoryStore::new());
    builder
        .lifetimes(long())
        .timings(short())
        .start()
        .await
        .unwrap()
}

/// A gateway with a grant of one client.
pub(crate) async fn issued() -> (Lab, Regrant, Issued) {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let login = lab.login().client_id("claude").scope("read write");
    let issued = regrant.issue(login).await.unwrap();
    (lab, regrant, issued)
}

/// A request as the upstream got it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head_line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) grant: Option<(GrantId, u64)>,
}

impl Seen {
    pub(crate) fn bearer(&self) -> &str {
        let value = self.headers.get(AUTHORIZATION).map(|v| v.to_str().unwrap());
        value.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or("")
    }
}

/// The gateway of the in-process tests.
pub(crate) type Gateway = Refresh<Inner>;
pub(crate) type Inner =
    BoxCloneSyncService<Request<ReplayBody<Full<Bytes>>>, Response<Full<Bytes>>, Infallible>;

impl Lab {
    pub(crate) async fn start() -> Self {
        // Tests let time pass by the clock of the gateway, so the provider's
        // own tokens outlive every test.
        let provider = Provider::new(HOUR);
        let faults = Faults::default();
        let origin = serve(faults.around(provider.router())).await;
        let token_url = format!("{origin}/token");
        Self {
            oauth2: OAuth2Provider::builder(&token_url, "gateway")
                .revocation_endpoint(format!("{origin}/revoke"))
                .build()
                .unwrap(),
            provider,
            faults,
            token_url,
            clock: ManualClock::starting_now(),
            seen: Arc::default(),
        }
    }

    pub(crate) fn oauth2(&self) -> OAuth2Provider {
        self.oauth2.clone()
    }

    pub(crate) fn builder(&self, store: impl Store) -> RegrantBuilder {
        Regrant::builder(
            "https://gateway.example",
            store,
            Keyring::parse(KEYS).unwrap(),
        )
        .provider("linear", self.oauth2())
        .with_clock(self.clock.clone())
    }

    pub(crate) async fn regrant(&self) -> Regrant {
        self.builder(MemoryStore::new()).start().await.unwrap()
    }

    /// A login whose upstream access token lives an hour.
    pub(crate) fn login(&self) -> Login {
        self.login_of("ada")
    }

    pub(crate) fn login_of(&self, subject: &str) -> Login {
        let tokens = self.provider.log_in(subject);
        Login::new("linear", subject, UpstreamAccessToken::new(tokens.access))
            .refresh_token(UpstreamRefreshToken::new(tokens.refresh))
            .expiry(Expiry::After(HOUR))
    }

    pub(crate) async fn issue(&self, regrant: &Regrant) -> Issued {
        regrant.issue(self.login()).await.unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn gateway(&self, regrant: &Regrant) -> Gateway {
        regrant.layer("linear").unwrap().layer(self.upstream())
    }

    /// Answers 200 with what it got to the provider's live tokens, 401 to the
    /// rest.
    pub(crate) fn upstream(&self) -> Inner {
        let provider = self.provider.clone();
        self.answering(move |request| provider.introspect(request.bearer()).is_some())
    }

    /// Answers 200 to everybody.
    pub(crate) fn witness(&self) -> Inner {
        self.answering(|_request| true)
    }

    fn answering(&self, accepts: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Inner {
        let (accepts, seen) = (Arc::new(accepts), Arc::clone(&self.seen));
        BoxCloneSyncService::new(tower::service_fn(
            move |request: Request<ReplayBody<Full<Bytes>>>| {
                let (accepts, seen) = (Arc::clone(&accepts), Arc::clone(&seen));
                async move {
                    let request = see(request).await;
                    let is_live = accepts(&request);
                    let body = request.body.clone();
                    seen.lock().unwrap().push(request);
                    let mut response = Response::new(Full::new(body));
                    if !is_live {
                        *response.status_mut() = StatusCode::UNAUTHORIZED;
                        let foreign = http::HeaderValue::from_static("Bearer realm=\"upstream\"");
                        response.headers_mut().insert(WWW_AUTHENTICATE, foreign);
                    }
                    Ok(response)
                }
            },
        ))
    }
}

pub(crate) async fn see<B>(request: Request<ReplayBody<B>>) -> Seen
where
    ReplayBody<B>: http_body::Body<Data = Bytes, Error = regrant::BoxError>,
{
    let (head, body) = request.into_parts();
    let collected = body.collect().await.unwrap();
    let grant = head.extensions.get::<GrantContext>();
    Seen {
        head_line: format!("{} {}", head.method, head.uri),
        grant: grant.map(|grant| (grant.id(), grant.credential_generation())),
        headers: head.headers,
        trailers: collected.trailers().cloned(),
        body: collected.to_bytes(),
    }
}

/// An answer as a client reads it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of<B>(response: Response<B>) -> Self
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::fmt::Debug,
    {
        let (head, body) = response.into_parts();
        Self {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn text(&self, member: &str) -> String {
        self.json()[member].as_str().unwrap_or_default().to_owned()
    }
}

/// An upstream that says this to everybody, with a challenge of its own.
pub(crate) fn always(status: StatusCode) -> Inner {
    Inner::new(tower::service_fn(
        move |_request: Request<ReplayBody<Full<Bytes>>>| async move {
            let response = Response::builder()
                .status(status)
                .header(WWW_AUTHENTICATE, "Bearer realm=\"upstream\"")
                .body(Full::from("the upstream's words"));
            Ok(response.unwrap())
        },
    ))
}

/// `POST /mcp` with this access token.
pub(crate) fn post(access: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/mcp?q=1")
        .header(AUTHORIZATION, format!("Bearer {access}"))
        .body(Full::new(body.into()))
        .unwrap()
}

/// A form sent to an endpoint.
pub(crate) fn form(path: &str, pairs: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs)
        .finish();
    Request::post(path)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::new(body.into()))
        .unwrap()
}

pub(crate) async fn send(gateway: &Gateway, request: Request<Full<Bytes>>) -> Answer {
    let response: Response<ResponseBody<_>> = gateway.clone().oneshot(request).await.unwrap();
    Answer::of(response).await
}

pub(crate) async fn ask(regrant: &Regrant, request: Request<Full<Bytes>>) -> Answer {
    Answer::of(regrant.endpoints().oneshot(request).await.unwrap()).await
}

pub(crate) async fn refresh(regrant: &Regrant, refresh_token: &str) -> Answer {
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh_token),
    ];
    ask(regrant, form("/oauth/token", &pairs)).await
}

/// The same token but for its last character.
pub(crate) fn forged(token: &str) -> String {
    let (rest, last) = token.split_at(token.len() - 1);
    format!("{rest}{}", if last == "A" { "B" } else { "A" })
}

/// Serves a router on loopback until the test ends.
pub(crate) async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}
