//! What the layer costs: layered against bare, side by side in one run.
//!
//! ```sh
//! cargo bench --bench layered             # 21 rounds
//! cargo bench --bench layered -- --quick  # 3 short rounds: does it run at all?
//! ```
//!
//! Client and server share one thread, and the figures are CPU time of that
//! thread, because machines are shared. Rounds alternate (A B A B …); quoted is
//! the median of the ratios of neighbours. The A/A line compares the bare
//! service with itself: a ratio within its spread says nothing.
#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops at the first surprise"
)]

use std::convert::Infallible;
use std::fs;
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use axum::routing::any;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use http::Response;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::settings::Timings;
use regrant::store::memory::MemoryStore;
use tokio::net::TcpListener;
use tower::Layer as _;
use tower::Service;
use tower::ServiceExt as _;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let plan = if is_quick {
        Plan {
            rounds: 3,
            in_process: 20_000,
            over_http: 500,
        }
    } else {
        Plan {
            rounds: 21,
            in_process: 200_000,
            over_http: 10_000,
        }
    };
    let gateway = Gateway::start(GRANTS).await;
    println!(
        "{GRANTS} grants in memory, {} rounds; CPU per request, median (least … most)\n",
        plan.rounds
    );

    in_process(&gateway, &plan).await;
    through_axum(&gateway, &plan).await;
}

struct Plan {
    rounds: usize,
    /// Requests a round: many, because the kernel accounts CPU time by ticks of
    /// some milliseconds.
    in_process: usize,
    over_http: usize,
}

/// A gateway whose grants are all in memory.
struct Gateway {
    regrant: Regrant,
    tokens: Vec<String>,
}

impl Gateway {
    async fn start(grants: usize) -> Self {
        let provider = OAuth2Provider::builder("http://127.0.0.1:9/token", "bench");
        let store = MemoryStore::new();
        let keyring = Keyring::generate().unwrap();
        let regrant = Regrant::builder("https://gateway.example", store, keyring)
            .provider("bench", provider.build().unwrap())
            .timings(Timings::default().staleness(Duration::from_secs(3_600)))
            .start()
            .await
            .unwrap();
        let mut tokens = Vec::new();
        for number in 0..grants {
            let token = UpstreamAccessToken::new(format!("upstream-{number:040}"));
            let login = Login::new("bench", format!("user-{number}"), token)
                .expiry(Expiry::After(Duration::from_secs(86_400)));
            let issued = regrant.issue(login).await.unwrap();
            tokens.push(issued.access_token.expose().to_owned());
        }
        let gateway = Self { regrant, tokens };
        let mut service = gateway.regrant.layer("bench").unwrap().layer(echo());
        for token in &gateway.tokens {
            let response = service.ready().await.unwrap().call(request("/", token));
            assert_eq!(response.await.unwrap().status(), 200);
        }
        gateway
    }

    fn token(&self, number: usize) -> &str {
        &self.tokens[number % self.tokens.len()]
    }
}

async fn in_process(gateway: &Gateway, plan: &Plan) {
    let layered = gateway.regrant.layer("bench").unwrap().layer(echo());
    let run = |is_layered: bool| -> BoxFuture<'_, ()> {
        let (mut bare, mut layered) = (echo(), layered.clone());
        Box::pin(async move {
            for number in 0..plan.in_process {
                let token = gateway.token(number);
                let status = if is_layered {
                    let call = layered.ready().await.unwrap().call(request("/", token));
                    call.await.unwrap().status()
                } else {
                    // What the layer does to the body is part of its price.
                    let call = bare.ready().await.unwrap().call(request("/", token));
                    call.await.unwrap().status()
                };
                assert_eq!(status, 200);
            }
        })
    };
    compare("in process", plan.rounds, plan.in_process, run).await;
}

async fn through_axum(gateway: &Gateway, plan: &Plan) {
    let app = || Router::new().route("/mcp", any(async |body: Bytes| body));
    let bare = serve(app()).await;
    let layered = serve(app().layer(gateway.regrant.layer("bench").unwrap())).await;
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let run = |is_layered: bool| -> BoxFuture<'_, ()> {
        let (url, client) = (if is_layered { &layered } else { &bare }, &client);
        Box::pin(async move {
            for number in 0..plan.over_http {
                let token = gateway.token(number);
                let response = client.request(request(url, token)).await.unwrap();
                assert_eq!(response.status(), 200);
                let body = response.into_body().collect().await.unwrap();
                assert_eq!(body.to_bytes(), BODY);
            }
        })
    };
    compare(
        "axum over loopback, client included",
        plan.rounds,
        plan.over_http,
        run,
    )
    .await;
}

/// Prints bare, layered, their ratio, and the ratio of bare to itself.
async fn compare<'a>(
    what: &str,
    rounds: usize,
    requests: usize,
    run: impl Fn(bool) -> BoxFuture<'a, ()>,
) {
    let (mut bare, mut layered) = (Vec::new(), Vec::new());
    let (mut ratios, mut same) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let first = timed(requests, run(false)).await;
        let with = timed(requests, run(true)).await;
        let again = timed(requests, run(false)).await;
        bare.push(first);
        layered.push(with);
        ratios.push(with / f64::midpoint(first, again));
        same.push(again / first);
    }
    println!("{what}");
    print("  bare, ns", &mut bare, 0);
    print("  layered, ns", &mut layered, 0);
    print("  layered ÷ bare", &mut ratios, 3);
    print("  bare ÷ bare (A/A)", &mut same, 3);
    println!();
}

/// Nanoseconds of CPU a request.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
async fn timed(requests: usize, work: BoxFuture<'_, ()>) -> f64 {
    let before = cpu_time();
    work.await;
    cpu_time().saturating_sub(before).as_nanos() as f64 / requests as f64
}

/// CPU time of this thread; wall time where Linux's accounting is missing.
fn cpu_time() -> Duration {
    thread_local!(static START: Instant = Instant::now());

    let accounted = fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok());
    accounted.map_or_else(|| START.with(Instant::elapsed), Duration::from_nanos)
}

fn print(what: &str, figures: &mut [f64], digits: usize) {
    figures.sort_by(f64::total_cmp);
    let (least, most) = (figures.first().unwrap(), figures.last().unwrap());
    let median = figures[figures.len() / 2];
    println!("{what:<22} {median:>9.digits$}   ({least:.digits$} … {most:.digits$})");
}

fn echo<B: Send>()
-> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone
{
    tower::service_fn(async |_request: Request<B>| Ok(Response::new(Full::new(BODY))))
}

fn request(url: &str, token: &str) -> Request<Full<Bytes>> {
    Request::post(url)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(Full::new(BODY))
        .unwrap()
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

const BODY: Bytes = Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
const GRANTS: usize = 1_000;
