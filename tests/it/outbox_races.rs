//! The outbox against what happens at the same time: crashes, other replicas and
//! refreshes.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use http::StatusCode;
use regrant::Login;
use regrant::Regrant;
use regrant::clock::Clock;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::REVOKED;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;
use tokio::time::Instant;

use crate::outbox::due;
use crate::outbox::revoke;
use crate::outbox::row;
use crate::support::HOUR;
use crate::support::KEYS;
use crate::support::Lab;
use crate::support::flaky::FlakyStore;
use crate::support::long;
use crate::support::post;
use crate::support::send;
use crate::support::short;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Wall-clock time that passes as the runtime's does.
#[derive(Debug)]
struct RuntimeClock(SystemTime, Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> SystemTime {
        self.0 + self.1.elapsed()
    }
}

/// Writes down what it is to end.
#[derive(Clone, Debug, Default)]
struct Listener(Arc<Mutex<Vec<String>>>);

impl Listener {
    fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Provider for Listener {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }

    fn revoke<'a>(
        &'a self,
        request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        let token = request.refresh_token.expose().to_owned();
        self.0.lock().unwrap().push(token);
        async { Ok(()) }.boxed()
    }
}

/// A replica in paused time, in which nothing but its sweeps happens by itself.
async fn paused(store: impl Store, listener: &Listener, begun: Instant) -> Regrant {
    let epoch = SystemTime::UNIX_EPOCH + 500_000 * HOUR;
    let clock = RuntimeClock(epoch, begun);
    Regrant::builder(
        "https://gateway.example",
        store,
        Keyring::parse(KEYS).unwrap(),
    )
    .provider("linear", listener.clone())
    .with_clock(clock)
    .start()
    .await
    .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_step_leaves_it_to_the_sweep_of_another_replica() {
    let (begun, mut calls) = (Instant::now(), 0);
    loop {
        let (store, listener) = (MemoryStore::new(), Listener::default());
        let crashing = FlakyStore::over(store.clone());
        let here = paused(crashing.clone(), &listener, begun).await;
        let login = Login::new("linear", "ada", UpstreamAccessToken::new("at"))
            .refresh_token(UpstreamRefreshToken::new("rt"))
            .expiry(Expiry::After(HOUR));
        let issued = here.issue(login).await.unwrap();
        let there = paused(store.clone(), &listener, begun).await;
        // Reading the grant and ending it, and this many calls of the outbox.
        crashing.die_after(2 + calls);
        assert!(here.revoke(issued.grant_id).await.unwrap());

        tokio::time::sleep(10 * MINUTE).await;

        assert_eq!(due(&store).await, 0, "it crashed after {calls} calls");
        let heard = listener.heard();
        assert!(!heard.is_empty(), "it crashed after {calls} calls");
        assert!(heard.iter().all(|token| token == "rt"));
        let row = row(&store, issued.grant_id).await;
        assert_eq!(row.terminal.as_deref(), Some(REVOKED));
        drop(there);
        if crashing.calls() < 2 + calls {
            break;
        }
        calls += 1;
    }
    assert!(calls > 8, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn sweeps_end_with_their_gateway() {
    let (store, listener) = (MemoryStore::new(), Listener::default());
    let begun = Instant::now();
    for is_drained in [true, false] {
        let counting = FlakyStore::over(store.clone());
        let regrant = paused(counting.clone(), &listener, begun).await;
        let before = counting.calls();
        tokio::time::sleep(10 * MINUTE).await;
        assert!(counting.calls() > before + 10, "it sweeps");
        if is_drained {
            assert!(regrant.drain(SECOND).await);
        } else {
            drop(regrant);
        }

        let before = counting.calls();
        tokio::time::sleep(10 * MINUTE).await;
        assert_eq!(counting.calls(), before);
    }
}

#[tokio::test]
async fn of_many_replicas_one_tells_the_provider() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    // They all meet at every step.
    let replica = async || {
        let store = FlakyStore::over(store.clone()).yields(1);
        lab.builder(store).start().await.unwrap()
    };
    let replicas = join_all((0..8).map(|_| replica())).await;
    let mut grants = Vec::new();
    for number in 0..20 {
        let login = lab.login_of(&format!("user-{number}"));
        grants.push(replicas[0].issue(login).await.unwrap().grant_id);
    }
    for grant in grants {
        let at = lab.clock.now();
        let reason = regrant::store::RevocationReason::Operator;
        assert!(store.revoke_grant(grant, at, reason).await.unwrap());
    }

    join_all(replicas.iter().map(Regrant::revoke_due)).await;

    assert_eq!(lab.provider.counts().revocations, 20);
    assert_eq!(due(&store).await, 0);
}

#[tokio::test]
async fn a_refresh_under_way_comes_to_its_end_first() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let builder = lab.builder(store.clone()).lifetimes(long());
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.clock.advance(HOUR);
    lab.faults.hold();
    let gateway = lab.gateway(&regrant);
    let request = post(issued.access_token.expose(), "");
    let asked = tokio::spawn(async move { send(&gateway, request).await.status });
    lab.faults.arrived(1).await;

    revoke(&regrant, &issued).await;
    // As often as it likes: the refresh goes first.
    for _ in 0..3 {
        lab.clock.advance(MINUTE);
        regrant.revoke_due().await;
    }
    assert_eq!(lab.faults.requests().len(), 1);
    lab.faults.release();
    let _served_or_not = asked.await.unwrap();
    assert_eq!(row(&store, issued.grant_id).await.generation, 1);
    for _ in 0..5 {
        lab.clock.advance(2 * MINUTE);
        regrant.revoke_due().await;
    }

    let counts = lab.provider.counts();
    assert_eq!((counts.refreshes, counts.double_spends), (1, 0));
    assert_eq!((counts.revocations, due(&store).await), (1, 0));
    let row = row(&store, issued.grant_id).await;
    assert_eq!(row.terminal.as_deref(), Some(REVOKED));
    let ended = lab.seen().pop().is_none_or(|seen| {
        let upstream = seen.bearer().to_owned();
        lab.provider.introspect(&upstream).is_none()
    });
    assert!(ended, "also what it got");
}

#[tokio::test]
async fn tokens_that_are_stored_late_are_the_ones_that_end() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let flaky = FlakyStore::over(store.clone());
    let builder = lab.builder(flaky.clone()).lifetimes(long());
    let here = builder.timings(short()).start().await.unwrap();
    let there = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&here).await;
    lab.clock.advance(HOUR);
    flaky.set_read_only(true);
    let request = post(issued.access_token.expose(), "");
    let answer = send(&lab.gateway(&here), request).await;
    assert_eq!(answer.status, StatusCode::OK, "from memory");
    assert!(there.revoke(issued.grant_id).await.unwrap());

    // The lease runs out, and the outbox finds an attempt that was cut off.
    let (begun, mut sat_out) = (std::time::Instant::now(), Duration::ZERO);
    while row(&store, issued.grant_id).await.unsettled == 0 {
        assert!(begun.elapsed() < MINUTE, "nobody takes the lease over");
        // Slowly: a day later it would be given up.
        if begun.elapsed() > sat_out {
            sat_out += MINUTE / 1_000;
            lab.clock.advance(MINUTE);
        }
        there.revoke_due().await;
        tokio::task::yield_now().await;
    }
    assert_eq!(row(&store, issued.grant_id).await.terminal, None);
    flaky.set_read_only(false);
    assert!(here.drain(10 * SECOND).await, "it is stored");
    for _ in 0..10 {
        lab.clock.advance(HOUR);
        there.revoke_due().await;
    }

    let row = row(&store, issued.grant_id).await;
    assert_eq!(
        (row.generation, row.terminal.as_deref()),
        (1, Some(REVOKED))
    );
    let sent = lab.faults.requests().pop().unwrap().1;
    assert!(sent.contains("token=upstream-rt-1-"), "the newest");
    assert_eq!(due(&store).await, 0);
}
