//! Replicas and requests that get in each other's way. Found by review, one by
//! one, as ways to a false 401 or a lost refresh token.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body_util::Full;
use regrant::Login;
use regrant::Regrant;
use regrant::clock::ManualClock;
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
use regrant::settings::Timings;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;
use tokio::sync::watch;
use tower::Layer as _;
use tower::ServiceExt as _;

use crate::support::HOUR;
use crate::support::Inner;
use crate::support::Lab;
use crate::support::flaky::FlakyStore;
use crate::support::flaky::Saboteur;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::see;
use crate::support::send;
use crate::support::short;

async fn replica(lab: &Lab, store: impl Store, timings: Timings) -> Regrant {
    let lifetimes = long();
    let builder = lab.builder(store).lifetimes(lifetimes).timings(timings);
    builder.start().await.unwrap()
}

#[tokio::test]
async fn two_replicas_that_meet_the_same_early_revoked_token_both_heal() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let a = replica(&lab, store.clone(), Timings::default()).await;
    let b = replica(&lab, store, Timings::default()).await;
    let issued = lab.issue(&a).await;
    lab.provider.revoke_access_tokens();
    lab.faults.hold();

    let ask = |regrant: &Regrant| {
        let gateway = lab.gateway(regrant);
        let request = post(issued.access_token.expose(), "");
        tokio::spawn(async move { send(&gateway, request).await.status })
    };
    let first = ask(&a);
    lab.faults.arrived(1).await;
    // The second one finds the lease taken, before the provider has answered.
    let second = ask(&b);
    while lab.seen().len() < 2 {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    lab.faults.release();

    assert_eq!(first.await.unwrap(), StatusCode::OK);
    assert_eq!(second.await.unwrap(), StatusCode::OK);
    let counts = lab.provider.counts();
    assert_eq!((counts.calls, counts.double_spends), (1, 0));
}

/// An upstream that refuses while `refuses` says so, and answers at the gate's
/// leisure.
fn gated(gate: &watch::Sender<bool>, refuses: &Arc<Mutex<bool>>) -> Inner {
    let (gate, refuses) = (gate.clone(), Arc::clone(refuses));
    Inner::new(tower::service_fn(
        move |request: Request<ReplayBody<Full<Bytes>>>| {
            let (gate, refuses) = (gate.clone(), Arc::clone(&refuses));
            async move {
                let _seen = see(request).await;
                gate.subscribe().wait_for(|open| *open).await.unwrap();
                let mut response = Response::new(Full::default());
                if std::mem::take(&mut *refuses.lock().unwrap()) {
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                }
                Ok(response)
            }
        },
    ))
}

#[tokio::test]
async fn that_one_request_was_refused_is_no_trouble_of_the_others() {
    let lab = Lab::start().await;
    let regrant = replica(&lab, MemoryStore::new(), short().staleness(HOUR)).await;
    let issued = lab.issue(&regrant).await;
    let access = issued.access_token.expose();
    let gate = watch::Sender::new(false);
    let refusing = gated(&gate, &Arc::new(Mutex::new(true)));
    let refusing = regrant.layer("linear").unwrap().layer(refusing);
    let witness = regrant.layer("linear").unwrap().layer(lab.witness());
    assert_eq!(send(&witness, post(access, "")).await.status, 200);
    lab.clock.advance(Duration::from_secs(3_569));
    lab.faults.answer_next(503, "");

    // Sent while fresh, refused within the skew, with the provider down.
    let mut refused = Box::pin(send(&refusing, post(access, "")));
    assert!((&mut refused).now_or_never().is_none());
    lab.clock.advance(Duration::from_secs(2));
    gate.send_replace(true);
    assert!((&mut refused).now_or_never().is_none());
    let (refused, other) = tokio::join!(refused, send(&witness, post(access, "")));

    assert_eq!(
        other.status,
        StatusCode::OK,
        "its token is good for 29 s more"
    );
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_token_that_expires_on_its_way_is_refreshed_however_recently_one_was_forced() {
    let lab = Lab::start().await;
    let regrant = replica(&lab, MemoryStore::new(), short().staleness(HOUR)).await;
    let issued = lab.issue(&regrant).await;
    let access = issued.access_token.expose();
    let (gate, refuses) = (watch::Sender::new(true), Arc::new(Mutex::new(true)));
    let gateway = gated(&gate, &refuses);
    let gateway = regrant.layer("linear").unwrap().layer(gateway);
    let body = r#"{"access_token":"short","expires_in":20}"#;
    lab.faults.answer_next(200, body);
    assert_eq!(send(&gateway, post(access, "")).await.status, 200, "forced");

    lab.clock.advance(Duration::from_secs(14));
    gate.send_replace(false);
    *refuses.lock().unwrap() = true;
    let mut request = Box::pin(send(&gateway, post(access, "")));
    assert!((&mut request).now_or_never().is_none());
    lab.clock.advance(Duration::from_secs(10));
    gate.send_replace(true);

    assert_eq!(request.await.status, StatusCode::OK);
}

/// A replica that holds a pair which its store has not taken, its lease over,
/// with a second replica beside it.
struct Holding {
    lab: Lab,
    shared: MemoryStore,
    flaky: FlakyStore,
    holder: Regrant,
    issued: regrant::Issued,
}

impl Holding {
    async fn start() -> Self {
        let lab = Lab::start().await;
        let shared = MemoryStore::new();
        let flaky = FlakyStore::over(shared.clone());
        let saboteur = Saboteur {
            inner: lab.oauth2(),
            store: flaky.clone(),
        };
        let lifetimes = long();
        let builder = lab.builder(flaky.clone()).provider("linear", saboteur);
        let builder = builder.lifetimes(lifetimes).timings(short());
        let holder = builder.start().await.unwrap();
        let issued = lab.issue(&holder).await;
        lab.clock.advance(HOUR);
        let request = post(issued.access_token.expose(), "");
        let answer = send(&lab.gateway(&holder), request).await;
        assert_eq!(answer.status, StatusCode::OK, "from memory");
        let holding = Self {
            lab,
            shared,
            flaky,
            holder,
            issued,
        };
        holding.lease_is_over().await;
        holding
    }

    /// Leases run by the store's time, which nobody can turn.
    async fn lease_is_over(&self) {
        let grant = self.shared.grant(self.issued.grant_id).await;
        let id = grant.unwrap().unwrap().credentials[0].id;
        let claim = async || {
            self.shared
                .claim(id, 0, [0; 16], Duration::ZERO)
                .await
                .unwrap()
        };
        while claim().await.is_none() {
            tokio::task::yield_now().await;
        }
    }

    async fn ask(&self, regrant: &Regrant) -> StatusCode {
        let request = post(self.issued.access_token.expose(), "");
        send(&self.lab.gateway(regrant), request).await.status
    }
}

#[tokio::test]
async fn a_pair_that_waits_for_the_store_is_stored_though_another_replica_claimed() {
    let holding = Holding::start().await;
    let Holding { lab, shared, .. } = &holding;
    // The other one gets nothing: no harm is done.
    let other = replica(lab, shared.clone(), short()).await;
    lab.faults.answer_next(503, "");
    assert_eq!(holding.ask(&other).await, StatusCode::SERVICE_UNAVAILABLE);

    holding.flaky.set_down(false);
    assert!(holding.holder.drain(Duration::from_secs(10)).await);

    let third = replica(lab, shared.clone(), short()).await;
    assert_eq!(holding.ask(&third).await, StatusCode::OK);
    assert_eq!(lab.provider.counts().double_spends, 0);
}

#[tokio::test]
async fn who_holds_a_pair_hears_that_the_login_has_ended_meanwhile() {
    let holding = Holding::start().await;
    let Holding { lab, shared, .. } = &holding;
    // The other one leaves some time for the answer to turn up, then spends the
    // spent token, and the provider ends it all.
    let other = replica(lab, shared.clone(), short()).await;
    assert_eq!(holding.ask(&other).await, StatusCode::SERVICE_UNAVAILABLE);
    lab.clock.advance(Duration::from_secs(2));
    assert_eq!(holding.ask(&other).await, StatusCode::UNAUTHORIZED);

    holding.flaky.set_down(false);
    assert!(holding.holder.drain(Duration::from_secs(10)).await);
    lab.clock.advance(HOUR);

    // The store goes away once more with the provider's answer; the token that
    // the provider ended is not sent again all the same.
    let calls = lab.provider.counts().calls;
    let asked = holding.ask(&holding.holder).await;
    assert_eq!(asked, StatusCode::SERVICE_UNAVAILABLE);
    holding.flaky.set_down(false);
    assert_eq!(holding.ask(&holding.holder).await, StatusCode::UNAUTHORIZED);
    assert_eq!(lab.provider.counts().calls, calls + 1);
    assert!(holding.holder.drain(Duration::from_secs(10)).await);
    let grant = shared
        .grant(holding.issued.grant_id)
        .await
        .unwrap()
        .unwrap();
    let row = shared
        .credential(grant.credentials[0].id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.terminal.as_deref(), Some("invalid_grant"), "all know");
    let token = holding.issued.refresh_token.expose();
    let answer = refresh(&holding.holder, token).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

/// Takes its time, and counts.
#[derive(Clone, Debug, Default)]
struct Slow(Arc<Mutex<usize>>);

impl Provider for Slow {
    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }

    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        async {
            *self.0.lock().unwrap() += 1;
            tokio::time::sleep(Duration::from_secs(8)).await;
            let mut response = TokenResponse::new(UpstreamAccessToken::new("late"));
            response.expiry = Expiry::After(HOUR);
            Ok(response)
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_is_not_spent_when_the_lease_leaves_no_time_for_the_answer() {
    for (claim_delay, spent, status) in [(3, 0, 503), (0, 1, 200)] {
        let lab = Lab::start().await;
        let slow = Slow::default();
        let store = FlakyStore::default().claim_delay(Duration::from_secs(claim_delay));
        let timings = Timings::default()
            .provider_timeout(Duration::from_secs(9))
            .lease(Duration::from_secs(10));
        let builder = lab.builder(store).provider("linear", slow.clone());
        let builder = builder.lifetimes(long()).timings(timings);
        let regrant = builder.start().await.unwrap();
        let issued = lab.issue(&regrant).await;
        lab.clock.advance(HOUR);
        let witness = regrant.layer("linear").unwrap().layer(lab.witness());

        let answer = send(&witness, post(issued.access_token.expose(), "")).await;

        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(
            *slow.0.lock().unwrap(),
            spent,
            "claimed after {claim_delay} s"
        );
    }
}

#[tokio::test]
async fn a_second_early_revocation_is_no_401_on_a_replica_that_did_not_see_the_first() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let a = replica(&lab, store.clone(), Timings::default()).await;
    let b = replica(&lab, store, Timings::default()).await;
    let issued = lab.issue(&a).await;
    let ask = async |regrant: &Regrant| {
        let request = post(issued.access_token.expose(), "");
        send(&lab.gateway(regrant), request).await.status
    };
    lab.provider.revoke_access_tokens();
    assert_eq!(ask(&a).await, StatusCode::OK);
    lab.clock.advance(Duration::from_secs(20));

    lab.provider.revoke_access_tokens();
    for regrant in [&b, &a] {
        assert_eq!(ask(regrant).await, StatusCode::SERVICE_UNAVAILABLE);
    }

    lab.clock.advance(Duration::from_secs(40));
    assert_eq!(ask(&b).await, StatusCode::OK);
}

#[tokio::test]
async fn a_replica_whose_clock_runs_ahead_does_not_hold_up_the_others() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let ahead = ManualClock::starting_now();
    ahead.advance(Duration::from_secs(20 * 60));
    let builder = lab.builder(store.clone()).with_clock(ahead);
    let ahead = builder.lifetimes(long()).start().await.unwrap();
    let here = replica(&lab, store, Timings::default()).await;
    let issued = lab.issue(&here).await;
    let ask = async |regrant: &Regrant| {
        let request = post(issued.access_token.expose(), "");
        send(&lab.gateway(regrant), request).await.status
    };
    lab.provider.revoke_access_tokens();
    assert_eq!(ask(&ahead).await, StatusCode::OK);

    lab.provider.revoke_access_tokens();
    assert_eq!(ask(&here).await, StatusCode::OK);
}

/// Panics at first.
#[derive(Debug, Default)]
struct Panicking(Mutex<bool>);

impl Provider for Panicking {
    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }

    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        async {
            let has_panicked = std::mem::replace(&mut *self.0.lock().unwrap(), true);
            assert!(has_panicked, "on purpose");
            let mut response = TokenResponse::new(UpstreamAccessToken::new("after"));
            response.expiry = Expiry::After(HOUR);
            Ok(response)
        }
        .boxed()
    }
}

#[tokio::test]
async fn a_provider_that_panics_leaves_nobody_hanging() {
    let lab = Lab::start().await;
    let lifetimes = long();
    let builder = lab.builder(MemoryStore::new()).lifetimes(lifetimes);
    let builder = builder.provider("linear", Panicking::default());
    let regrant = builder.timings(short()).start().await.unwrap();
    let login = Login::new("linear", "ada", UpstreamAccessToken::new("before"))
        .refresh_token(UpstreamRefreshToken::new("r"))
        .expiry(Expiry::After(HOUR));
    let issued = regrant.issue(login).await.unwrap();
    lab.clock.advance(HOUR);
    let witness = regrant.layer("linear").unwrap().layer(lab.witness());

    let request = post(issued.access_token.expose(), "");
    let response = witness.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Nobody knows what it has done: it is asked once more, a little later.
    lab.clock.advance(Duration::from_secs(2));
    let answer = send(&witness, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.seen()[0].bearer(), "after");
}
