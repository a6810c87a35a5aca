//! When a credential is refreshed, by whom, and when nobody asks the provider.

use std::time::Duration;

use futures_util::FutureExt as _;
use http::StatusCode;
use regrant::Issued;
use regrant::Regrant;
use regrant::provider::ProviderErrorKind;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::settings::Timings;
use regrant::store::memory::MemoryStore;
use tower::ServiceExt as _;

use crate::support::Answer;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::flaky::FlakyStore;
use crate::support::long;
use crate::support::lossy::Fate;
use crate::support::lossy::Lossy;
use crate::support::post;
use crate::support::send;
use crate::support::short;

const SECOND: Duration = Duration::from_secs(1);

/// A gateway that waits for nobody, with one client.
async fn soon(lab: &Lab) -> (Regrant, Issued) {
    let builder = lab.builder(MemoryStore::new()).timings(short());
    let regrant = builder.lifetimes(long()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    // An hour's token is due within the last six and a half minutes and must be
    // renewed in the last half; jitter decides when in the first three.
    lab.clock.advance(3_400 * SECOND);
    (regrant, issued)
}

#[tokio::test]
async fn fm29_a_credential_that_is_due_soon_is_refreshed_while_the_old_one_is_served() {
    let lab = Lab::start().await;
    let (regrant, issued) = soon(&lab).await;
    let gateway = lab.gateway(&regrant);
    lab.faults.hold();

    // Nobody waits for the provider, and one call is enough.
    for _ in 0..20 {
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    lab.faults.arrived(1).await;
    lab.faults.release();
    assert!(regrant.drain(10 * SECOND).await);

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.faults.requests().len(), 1);
    let seen = lab.seen();
    let (last, before) = seen.split_last().unwrap();
    assert!(
        before
            .iter()
            .all(|seen| seen.bearer().starts_with("upstream-at-0-"))
    );
    assert!(last.bearer().starts_with("upstream-at-1-"));
}

#[tokio::test]
async fn a_credential_that_is_fresh_is_left_alone() {
    let lab = Lab::start().await;
    let regrant = lab.builder(MemoryStore::new()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    for seconds in [0, 3_000, 200] {
        lab.clock.advance(seconds * SECOND);
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert!(regrant.drain(10 * SECOND).await);
    assert_eq!(lab.faults.requests().len(), 0);
}

#[tokio::test]
async fn fm29_a_refresh_that_fails_early_costs_nobody_anything() {
    let lab = Lab::start().await;
    let (regrant, issued) = soon(&lab).await;
    let gateway = lab.gateway(&regrant);
    let ask = async || {
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::OK);
    };
    lab.faults.answer_next(503, "");
    ask().await;
    lab.faults.arrived(1).await;
    // Until the flight has landed.
    while lab.faults.requests().len() < 2 {
        lab.clock.advance(2 * SECOND);
        ask().await;
        tokio::task::yield_now().await;
    }
    assert!(regrant.drain(10 * SECOND).await);
    ask().await;
    let last = lab.seen().pop().unwrap();
    assert!(last.bearer().starts_with("upstream-at-1-"));
    assert_eq!(lab.provider.counts().double_spends, 0);
}

#[tokio::test]
async fn fm26_a_request_asks_neither_provider_nor_store_about_its_token() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    let ask = async || send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(ask().await.status, StatusCode::OK);
    let before = store.calls();

    for _ in 0..200 {
        assert_eq!(ask().await.status, StatusCode::OK);
    }

    assert_eq!(store.calls(), before);
    assert_eq!(lab.faults.requests().len(), 0);
    assert_eq!(lab.seen().len(), 201, "one call of the upstream each");
}

/// Two users of one provider, with credentials that have expired.
struct Two {
    lab: Lab,
    provider: Lossy<OAuth2Provider>,
    regrant: Regrant,
    ada: Issued,
    bob: Issued,
}

impl Two {
    async fn start() -> Self {
        let lab = Lab::start().await;
        let provider = Lossy::new(lab.oauth2());
        let builder = lab.builder(MemoryStore::new()).timings(short());
        let builder = builder.provider("linear", provider.clone());
        let regrant = builder.lifetimes(long()).start().await.unwrap();
        let ada = regrant.issue(lab.login_of("ada")).await.unwrap();
        let bob = regrant.issue(lab.login_of("bob")).await.unwrap();
        lab.clock.advance(HOUR);
        Self {
            lab,
            provider,
            regrant,
            ada,
            bob,
        }
    }

    async fn ask(&self, issued: &Issued) -> Answer {
        let request = post(issued.access_token.expose(), "");
        send(&self.lab.gateway(&self.regrant), request).await
    }
}

#[tokio::test]
async fn a_provider_that_asks_to_be_left_alone_is_left_alone_by_all() {
    let two = Two::start().await;
    let busy = Fate::Refused(ProviderErrorKind::Transient, Some(40 * SECOND));
    two.provider.then(busy);

    let answer = two.ask(&two.ada).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "40");
    two.lab.clock.advance(10 * SECOND);
    for issued in [&two.bob, &two.ada, &two.bob] {
        let answer = two.ask(issued).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.header("retry-after"), "30");
    }
    assert_eq!(two.provider.calls(), 1);

    two.lab.clock.advance(30 * SECOND);
    assert_eq!(two.ask(&two.bob).await.status, StatusCode::OK);
    assert_eq!(two.ask(&two.ada).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_provider_that_refuses_the_gateway_is_asked_by_one_request_at_a_time() {
    let two = Two::start().await;
    // Once both know, it is the provider's trouble and not theirs.
    for issued in [&two.ada, &two.bob] {
        let refused = Fate::Refused(ProviderErrorKind::Misconfigured, None);
        two.provider.then(refused);
        let answer = two.ask(issued).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    two.lab.clock.advance(30 * SECOND);
    for wait in [60, 120, 240, 300, 300] {
        let refused = Fate::Refused(ProviderErrorKind::Misconfigured, None);
        two.provider.then(refused);
        let calls = two.provider.calls();
        for _ in 0..3 {
            for issued in [&two.ada, &two.bob] {
                let answer = two.ask(issued).await;
                assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
                let asked: u32 = answer.header("retry-after").parse().unwrap();
                assert!((1..=wait).contains(&asked), "{asked} of {wait}");
            }
        }
        assert_eq!(two.provider.calls(), calls + 1);
        two.lab.clock.advance(wait * SECOND);
    }
    // Who found out last lets others go first.
    assert_eq!(two.ask(&two.bob).await.status, StatusCode::OK);
    assert_eq!(two.ask(&two.ada).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_provider_that_fails_five_times_in_a_row_is_left_alone() {
    let two = Two::start().await;
    for number in 0..5 {
        two.provider.then(Fate::NotSent);
        let issued = [&two.ada, &two.bob][number % 2];
        let answer = two.ask(issued).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        if number < 4 {
            two.lab.clock.advance(30 * SECOND);
        }
    }
    assert_eq!(two.provider.calls(), 5);
    // Of the credential nothing is known that speaks against it.
    let answer = two.ask(&two.bob).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(two.provider.calls(), 5);

    two.lab.clock.advance(2 * SECOND);
    assert_eq!(two.ask(&two.bob).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_credential_that_is_rejected_stops_nobody_else() {
    let two = Two::start().await;
    for _ in 0..8 {
        let rejected = Fate::Refused(ProviderErrorKind::Rejected, None);
        two.provider.then(rejected);
        let answer = two.ask(&two.ada).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        two.lab.clock.advance(30 * SECOND);
    }
    assert_eq!(two.provider.calls(), 8);

    assert_eq!(two.ask(&two.bob).await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_back_off_of_a_credential_grows_to_half_a_minute() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let provider = Lossy::new(lab.oauth2());
    let builder = lab.builder(store.clone()).timings(short());
    let builder = builder.provider("linear", provider.clone());
    let regrant = builder.lifetimes(long()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.clock.advance(HOUR);
    let gateway = lab.gateway(&regrant);
    let mut waits = Vec::new();
    for _ in 0..8 {
        provider.then(Fate::NotSent);
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        waits.push(wait);
        lab.clock.advance(60 * SECOND);
    }
    assert!(waits[0] <= 1 && waits[7] >= 15, "{waits:?}");
    assert!(
        waits.iter().all(|wait| (1..=30).contains(wait)),
        "{waits:?}"
    );
    assert_eq!(provider.calls(), 8);
}

#[tokio::test]
async fn who_waits_for_a_refresh_under_way_does_not_start_another() {
    let lab = Lab::start().await;
    let (regrant, issued) = soon(&lab).await;
    let gateway = lab.gateway(&regrant);
    lab.faults.hold();
    let request = || post(issued.access_token.expose(), "");
    assert_eq!(send(&gateway, request()).await.status, StatusCode::OK);
    lab.faults.arrived(1).await;

    // It expires meanwhile.
    lab.clock.advance(200 * SECOND);
    let mut waiting = Box::pin(gateway.clone().oneshot(request()));
    assert!((&mut waiting).now_or_never().is_none());
    lab.faults.release();

    assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
    let counts = lab.provider.counts();
    assert_eq!((counts.calls, counts.double_spends), (1, 0));
}

#[tokio::test]
async fn fm29_who_waits_does_not_share_the_failure_of_a_refresh_that_was_early() {
    let lab = Lab::start().await;
    let builder = lab.builder(MemoryStore::new()).lifetimes(long());
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.clock.advance(3_400 * SECOND);
    let gateway = lab.gateway(&regrant);
    lab.faults.hold();
    lab.faults.answer_next(503, "");
    let request = || post(issued.access_token.expose(), "");
    assert_eq!(send(&gateway, request()).await.status, StatusCode::OK);
    lab.faults.arrived(1).await;
    lab.clock.advance(200 * SECOND);
    let waiting = tokio::spawn(gateway.clone().oneshot(request()));
    tokio::task::yield_now().await;

    lab.faults.release();
    while lab.faults.requests().len() < 2 {
        lab.clock.advance(SECOND);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!waiting.is_finished() || lab.faults.requests().len() > 1);
    }

    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn while_a_refresh_keeps_failing_requests_go_on_without_a_word() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let timings = short().staleness(HOUR);
    let builder = lab
        .builder(store.clone())
        .lifetimes(long())
        .timings(timings);
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    let request = || post(issued.access_token.expose(), "");
    assert_eq!(send(&gateway, request()).await.status, StatusCode::OK);
    lab.faults.answer_next(503, "");
    lab.clock.advance(3_400 * SECOND);
    assert_eq!(send(&gateway, request()).await.status, StatusCode::OK);
    lab.faults.arrived(1).await;
    assert!(regrant.drain(10 * SECOND).await);
    let before = store.calls();

    for _ in 0..100 {
        assert_eq!(send(&gateway, request()).await.status, StatusCode::OK);
    }

    assert_eq!(store.calls(), before);
    assert_eq!(lab.faults.requests().len(), 1);
}

#[tokio::test]
async fn settings_that_let_a_lease_end_before_its_holder_are_refused() {
    let lab = Lab::start().await;
    for (provider, lease, wait) in [(10, 10, 20), (10, 15, 14), (15, 10, 20)] {
        let timings = Timings::default()
            .provider_timeout(provider * SECOND)
            .lease(lease * SECOND)
            .wait_budget(wait * SECOND);
        let builder = lab.builder(MemoryStore::new()).timings(timings);
        assert!(builder.start().await.is_err(), "{provider} {lease} {wait}");
    }
}
