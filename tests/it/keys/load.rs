//! Keys rotate under load. `KEY_ROTATION_ROWS` says how many rows there are.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http_body_util::Full;
use regrant::Regrant;
use regrant::Upstream;
use regrant::key_rotation::Pace;
use regrant::replay::ReplayBody;
use regrant::resolve::Caller;
use regrant::resolve::ResolveGrant;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::CredentialFilter;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tokio::sync::watch;
use tower::Layer as _;
use tower::ServiceExt as _;

use super::builder;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fm27_keys_rotate_under_load_and_no_request_fails() {
    let lab = Arc::new(Lab::start().await);
    let database = Database::create().await;
    let rows = rows();
    fill(&lab, &database, rows).await;
    let old = start(&lab, &database, &["k1", "k2"]).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS + IDLE {
        let login = lab.login_of(&format!("client-{number}"));
        clients.push(old.issue(login).await.unwrap());
    }
    let idle = clients.split_off(CLIENTS);
    let all = (rows + CLIENTS + IDLE) as u64;

    // One replica still seals with the old key.
    let new = start(&lab, &database, &["k2", "k1"]).await;
    // Whoever rotates keys has connections of its own, as the command does.
    let operator = start(&lab, &database, &["k2", "k1"]).await;
    let before = used(&operator).await;
    assert_eq!(before[0], ("k1".to_owned(), all));
    let replicas = watch::Sender::new([old, new.clone()]);
    let traffic = Arc::new(Traffic {
        replicas: replicas.subscribe(),
        lab: Arc::clone(&lab),
        is_over: AtomicBool::new(false),
        requests: AtomicUsize::new(0),
    });
    let running: Vec<_> = clients
        .into_iter()
        .map(|issued| {
            let traffic = Arc::clone(&traffic);
            let token = issued.refresh_token.expose().to_owned();
            tokio::spawn(async move { traffic.client(token).await })
        })
        .collect();
    traffic.reached(2 * CLIENTS).await;

    let (begun, served) = (Instant::now(), traffic.requests.load(Ordering::SeqCst));
    let first = operator.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    let (took, served) = (
        begun.elapsed(),
        traffic.requests.load(Ordering::SeqCst) - served,
    );
    let during = used(&operator).await;
    replicas.send_replace([start(&lab, &database, &["k2", "k1"]).await, new.clone()]);
    traffic
        .reached(traffic.requests.load(Ordering::SeqCst) + 2 * CLIENTS)
        .await;
    let second = operator.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    traffic.is_over.store(true, Ordering::SeqCst);
    let tokens: Vec<String> = join_all(running)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let after = used(&operator).await;

    assert_eq!((first.unopened, second.unopened), (0, 0));
    assert!(first.resealed >= rows as u64, "{first:?}");
    assert_eq!(second.remaining, 0, "{second:?}");
    assert_eq!(after, [("k1".to_owned(), 0), ("k2".to_owned(), all)]);
    println!(
        "{} rows in {took:.1?}: {:.0} rows/s; {served} requests meanwhile, none failed\n\
         credentials before {before:?}\n  after the first rotation {during:?}\n  \
         after the second, of {} rows {after:?}",
        first.resealed,
        Duration::from_secs(first.resealed).as_secs_f64() / took.as_secs_f64(),
        second.resealed,
    );

    // The old key goes, and everybody is still there.
    drop(replicas);
    lab.clock.advance(26 * HOUR);
    let alone = start(&lab, &database, &["k2"]).await;
    let begun = Instant::now();
    every_row_opens(&alone, rows).await;
    println!("every row opened in {:.1?}", begun.elapsed());
    let idle = idle.iter().map(|issued| issued.refresh_token.expose());
    for token in tokens.iter().map(String::as_str).chain(idle) {
        let rotated = refresh(&alone, token).await;
        assert_eq!(rotated.status, StatusCode::OK, "{rotated:?}");
        let request = post(&rotated.text("access_token"), "");
        assert_eq!(send(&lab.gateway(&alone), request).await.status, 200);
    }
    assert_eq!(lab.provider.counts().double_spends, 0);
}

/// Clients that send requests and refresh, at both replicas in turn.
struct Traffic {
    replicas: watch::Receiver<[Regrant; 2]>,
    lab: Arc<Lab>,
    is_over: AtomicBool,
    requests: AtomicUsize,
}

impl Traffic {
    /// One of them, until it is over; its last refresh token.
    async fn client(&self, mut token: String) -> String {
        for round in 0.. {
            if self.is_over.load(Ordering::SeqCst) {
                break;
            }
            let replica = self.replicas.borrow()[round % 2].clone();
            let rotated = refresh(&replica, &token).await;
            assert_eq!(rotated.status, StatusCode::OK, "{rotated:?}");
            token = rotated.text("refresh_token");
            let replica = self.replicas.borrow()[(round / 2) % 2].clone();
            for _ in 0..3 {
                let request = post(&rotated.text("access_token"), "");
                let answer = send(&self.lab.gateway(&replica), request).await;
                assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                self.requests.fetch_add(1, Ordering::SeqCst);
            }
            // So that upstream tokens expire now and then.
            self.lab.clock.advance(Duration::from_secs(5));
        }
        token
    }

    async fn reached(&self, requests: usize) {
        let begun = Instant::now();
        while self.requests.load(Ordering::SeqCst) < requests {
            assert!(begun.elapsed().as_secs() < 60, "the traffic has stopped");
            tokio::task::yield_now().await;
        }
    }
}

async fn start(lab: &Lab, database: &Database, ids: &[&str]) -> Regrant {
    let builder = builder(lab, database.store().await, ids).lifetimes(long());
    builder.start().await.unwrap()
}

async fn used(regrant: &Regrant) -> Vec<(String, u64)> {
    let keys = regrant.key_status().await.unwrap();
    keys.into_iter()
        .map(|key| (key.id, key.credentials))
        .collect()
}

/// Writes so many credentials at once: what the library sealed in memory.
async fn fill(lab: &Lab, database: &Database, rows: usize) {
    let memory = MemoryStore::new();
    let regrant = builder(lab, memory.clone(), &["k1"]).start().await.unwrap();
    for number in 0..rows {
        let upstream = Upstream::new("linear", UpstreamAccessToken::new(token(number)))
            .refresh_token(UpstreamRefreshToken::new(format!("refresh-{number}")));
        regrant.link(&subject(number), upstream).await.unwrap();
    }
    let everything = CredentialFilter::default();
    let page = memory.upkeep().credentials(everything, None, u32::MAX);
    let page = page.await.unwrap().rows;

    let _migrated = database.store().await;
    let client = database.client().await;
    for chunk in page.chunks(5_000) {
        let ids: Vec<_> = chunk.iter().map(|row| row.id.to_string()).collect();
        let subjects: Vec<_> = chunk.iter().map(|row| row.subject.as_str()).collect();
        let sealed: Vec<_> = chunk.iter().map(|row| row.sealed.as_slice()).collect();
        let sql = "INSERT INTO credentials (id, provider, subject, generation, sealed,
                       refreshed_at, fence, linked)
                   SELECT id::uuid, 'linear', subject, 0, sealed, now(), 0, true
                   FROM unnest($1::text[], $2::text[], $3::bytea[]) AS row (id, subject, sealed)";
        client
            .execute(sql, &[&ids, &subjects, &sealed])
            .await
            .unwrap();
    }
}

/// Asks for each of the rows that were written, through the layer.
async fn every_row_opens(regrant: &Regrant, rows: usize) {
    let upstream = tower::service_fn(async |request: Request<ReplayBody<Full<Bytes>>>| {
        let bearer = request.headers().get(AUTHORIZATION).cloned();
        let bearer = bearer.unwrap().to_str().unwrap().to_owned();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(bearer))))
    });
    let layer = regrant.layer("linear").unwrap();
    let gateway = layer.with_resolve_grant(ByHeader).layer(upstream);
    let opened = stream::iter(0..rows).map(|number| {
        let gateway = gateway.clone();
        async move {
            let request = Request::post("/mcp").header("x-user", subject(number));
            let request = request.body(Full::new(Bytes::new())).unwrap();
            let answer = gateway.oneshot(request).await.unwrap();
            let answer = crate::support::Answer::of(answer).await;
            assert_eq!(answer.status, StatusCode::OK, "{number}: {answer:?}");
            assert_eq!(answer.body, format!("Bearer {}", token(number)));
        }
    });
    assert_eq!(opened.buffer_unordered(16).count().await, rows);
}

#[derive(Debug)]
struct ByHeader;

impl ResolveGrant for ByHeader {
    fn resolve(&self, request: &http::request::Parts) -> Option<Caller> {
        Some(Caller::new(request.headers.get("x-user")?.to_str().ok()?))
    }
}

fn subject(number: usize) -> String {
    format!("user-{number}")
}

fn token(number: usize) -> String {
    format!("upstream-{number}")
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn rows() -> usize {
    let rows = std::env::var("KEY_ROTATION_ROWS");
    rows.map_or(2_000, |rows| rows.parse().unwrap())
}

const CLIENTS: usize = 8;
const IDLE: usize = 20;
