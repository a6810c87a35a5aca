//! Credentials that several grants share.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body_util::Full;
use regrant::GrantContext;
use regrant::GrantId;
use regrant::Login;
use regrant::Upstream;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::replay::ReplayBody;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;

use crate::support::HOUR;
use crate::support::Inner;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

/// Keeps the newest ten refresh tokens of an application's user, as GitHub does.
#[derive(Clone, Debug, Default)]
struct KeepsTen(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    live: Vec<String>,
    issued: usize,
    refreshes: usize,
}

impl Inside {
    fn issue(&mut self) -> String {
        self.issued += 1;
        self.live.push(format!("rt-{}", self.issued));
        let surplus = self.live.len().saturating_sub(10);
        self.live.drain(..surplus);
        format!("rt-{}", self.issued)
    }
}

impl KeepsTen {
    fn log_in(&self) -> Login {
        let refresh = self.0.lock().unwrap().issue();
        Login::new("ten", "ada", UpstreamAccessToken::new("first"))
            .refresh_token(UpstreamRefreshToken::new(refresh))
            .expiry(Expiry::After(HOUR))
    }
}

impl Provider for KeepsTen {
    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        let mut inside = self.0.lock().unwrap();
        let presented = request.refresh_token.expose();
        let Some(at) = inside.live.iter().position(|live| live == presented) else {
            return async { Err(ProviderErrorKind::Terminal.into()) }.boxed();
        };
        inside.live.remove(at);
        inside.refreshes += 1;
        let mut response = TokenResponse::new(UpstreamAccessToken::new("second"));
        response.refresh_token = Some(UpstreamRefreshToken::new(inside.issue()));
        response.expiry = Expiry::After(HOUR);
        async { Ok(response) }.boxed()
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }
}

#[tokio::test]
async fn fm21_a_new_login_does_not_log_out_the_users_other_clients() {
    let (lab, ten, store) = (Lab::start().await, KeepsTen::default(), MemoryStore::new());
    let builder = lab.builder(store.clone()).lifetimes(long());
    let regrant = builder.provider("ten", ten.clone()).start().await.unwrap();
    let gateway = regrant.layer("ten").unwrap().layer(lab.witness());
    let mut clients = Vec::new();
    for number in 0..15 {
        let login = ten.log_in().client_id(format!("client-{number}"));
        clients.push(regrant.issue(login).await.unwrap());
    }
    let mut credentials = Vec::new();
    for client in &clients {
        let grant = store.grant(client.grant_id).await.unwrap().unwrap();
        credentials.push(grant.credential("ten").unwrap());
    }
    credentials.dedup();
    assert_eq!(credentials.len(), 1, "one family of refresh tokens");

    for round in 1..=3 {
        lab.clock.advance(HOUR);
        for client in &clients {
            let answer = send(&gateway, post(client.access_token.expose(), "")).await;
            assert_eq!(answer.status, StatusCode::OK, "round {round}");
        }
        assert_eq!(ten.0.lock().unwrap().refreshes, round, "once for all");
    }
    for client in &clients {
        let rotated = refresh(&regrant, client.refresh_token.expose()).await;
        assert_eq!(rotated.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn fm22_a_session_outlives_refresh_and_rotation() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    let other = lab.issue(&regrant).await;
    let (opened, bearers) = (Arc::default(), Arc::new(Mutex::new(Vec::new())));
    let gateway = {
        let (opened, bearers) = (Arc::clone(&opened), Arc::clone(&bearers));
        regrant
            .layer("linear")
            .unwrap()
            .layer(sessions(opened, bearers))
    };
    let visits = async |access: &str| {
        let answer = send(&gateway, post(access, "")).await;
        assert_eq!(answer.status, StatusCode::OK);
        String::from_utf8(answer.body.to_vec()).unwrap()
    };

    assert_eq!(visits(issued.access_token.expose()).await, "visit 1");
    assert_eq!(visits(other.access_token.expose()).await, "visit 1");
    // The gateway's own pair is rotated.
    let rotated = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(visits(&rotated.text("access_token")).await, "visit 2");
    // The upstream credential is refreshed, and the pair is rotated again.
    lab.clock.advance(HOUR);
    let rotated = refresh(&regrant, &rotated.text("refresh_token")).await;
    assert_eq!(visits(&rotated.text("access_token")).await, "visit 3");

    let sessions: &Mutex<HashMap<GrantId, usize>> = &opened;
    assert_eq!(sessions.lock().unwrap().len(), 2, "one for each grant");
    let mut bearers = bearers.lock().unwrap().clone();
    bearers.dedup();
    assert_eq!(bearers.len(), 2, "the bearer did change");
}

/// Counts the visits of each session.
fn sessions(
    opened: Arc<Mutex<HashMap<GrantId, usize>>>,
    bearers: Arc<Mutex<Vec<String>>>,
) -> Inner {
    Inner::new(tower::service_fn(
        move |request: Request<ReplayBody<Full<Bytes>>>| {
            let grant = request.extensions().get::<GrantContext>().unwrap();
            let bearer = request.headers()[http::header::AUTHORIZATION].to_str();
            bearers.lock().unwrap().push(bearer.unwrap().to_owned());
            let mut opened = opened.lock().unwrap();
            let visits = opened.entry(grant.id()).or_default();
            *visits += 1;
            let answer = Response::new(Full::from(format!("visit {visits}")));
            async { Ok::<_, Infallible>(answer) }
        },
    ))
}

#[tokio::test]
async fn fm23_no_refresh_token_is_stored_twice() {
    let (lab, database) = (Lab::start().await, Database::create().await);
    let replica = async || {
        let builder = lab.builder(database.store().await).lifetimes(long());
        builder.start().await.unwrap()
    };
    let (here, there) = (replica().await, replica().await);
    let (first, second) = (lab.issue(&here).await, lab.issue(&there).await);
    // Attached by another way, it is still the same one.
    let tokens = lab.provider.log_in("ada");
    let upstream = Upstream::new("linear", UpstreamAccessToken::new(tokens.access))
        .refresh_token(UpstreamRefreshToken::new(tokens.refresh))
        .expiry(Expiry::After(HOUR));
    assert!(here.attach(first.grant_id, upstream).await.unwrap());
    let counted = "SELECT count(*) FROM credentials";
    let client = database.client().await;
    let count = async || {
        client
            .query_one(counted, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
    };
    assert_eq!(count().await, 1);

    for round in 1..=3 {
        lab.clock.advance(HOUR);
        for (regrant, issued) in [(&here, &first), (&there, &second), (&there, &first)] {
            let request = post(issued.access_token.expose(), "");
            let answer = send(&lab.gateway(regrant), request).await;
            assert_eq!(answer.status, StatusCode::OK, "round {round}");
        }
        let mut bearers: Vec<_> = lab.seen.lock().unwrap().drain(..).collect();
        bearers.dedup_by_key(|seen| seen.bearer().to_owned());
        assert_eq!(bearers.len(), 1, "what one got, the others use");
        let counts = lab.provider.counts();
        assert_eq!((counts.refreshes, counts.double_spends), (round, 0));
    }
    assert_eq!(count().await, 1);
}
