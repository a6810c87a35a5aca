//! Attempts to refresh that are cut off, overtaken or told the end: what became
//! of the refresh token decides what happens next.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::StatusCode;
use metrics_util::debugging::DebugValue;
use metrics_util::debugging::DebuggingRecorder;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::settings::Timings;
use regrant::store::LOST_IN_FLIGHT;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tokio::sync::OnceCell;

use crate::support::HOUR;
use crate::support::Lab;
use crate::support::flaky::FlakyStore;
use crate::support::line::Line;
use crate::support::long;
use crate::support::lossy::Fate;
use crate::support::lossy::Lossy;
use crate::support::post;
use crate::support::refresh;
use crate::support::secrets::Log;
use crate::support::send;
use crate::support::short;

#[tokio::test]
async fn fm11_what_was_not_sent_is_sent_again_without_ado() {
    let line = Line::start().await;
    line.provider.then(Fate::NotSent);

    assert_eq!(line.ask().await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(line.row().await.unsettled, 0);
    line.lab.clock.advance(Duration::from_secs(1));

    assert_eq!(line.ask().await, StatusCode::OK);
    assert_eq!(line.lab.provider.counts().double_spends, 0);
}

#[tokio::test]
async fn fm11_what_was_cut_off_is_sent_once_more_after_a_while() {
    let line = Line::start().await;
    line.provider.then(Fate::LostOnTheWay);

    assert_eq!(line.ask().await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(line.row().await.unsettled, 1);
    assert_eq!(line.ask().await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(line.provider.calls(), 1, "not at once");
    line.lab.clock.advance(Duration::from_secs(2));

    assert_eq!(line.ask().await, StatusCode::OK);
    let row = line.row().await;
    assert_eq!((row.generation, row.unsettled, row.terminal), (1, 0, None));
}

#[tokio::test]
async fn fm11_each_further_attempt_waits_twice_as_long() {
    let line = Line::start().await;
    let lease = short().lease;
    for number in 0..4_u32 {
        line.provider.then(Fate::LostOnTheWay);
        assert_eq!(line.ask().await, StatusCode::SERVICE_UNAVAILABLE);
        let row = line.row().await;
        assert_eq!(row.unsettled, number + 1);
        let wait = row.not_before.unwrap().duration_since(line.now()).unwrap();
        assert_eq!(wait, lease * 2_u32.pow(number));
        line.lab.clock.advance(wait);
    }
    assert_eq!(line.ask().await, StatusCode::OK, "nobody gave up");
}

#[tokio::test]
async fn fm11_a_token_that_was_spent_by_an_attempt_that_was_cut_off_is_lost_in_flight() {
    for dies in [false, true] {
        let recorder = DebuggingRecorder::new();
        let metrics = recorder.snapshotter();
        let _recording = metrics::set_default_local_recorder(&recorder);
        let log = Log::capture();
        let line = Line::start().await;
        if dies {
            // The provider has heard it, the process is no more.
            let token = line.spend_elsewhere().await;
            assert!(!token.is_empty());
            line.die_in_mid_refresh().await;
        } else {
            line.provider.then(Fate::AnswerLost);
        }

        assert_eq!(line.ask().await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(line.row().await.terminal, None);
        line.lab.clock.advance(Duration::from_secs(2));
        assert_eq!(line.ask().await, StatusCode::UNAUTHORIZED);

        let row = line.row().await;
        assert_eq!(row.terminal.as_deref(), Some(LOST_IN_FLIGHT));
        assert_eq!(log.lines("WARN", "outcome=\"lost_in_flight\""), 1);
        let counted = metrics.snapshot().into_vec();
        let lost = counted.iter().find(|(key, ..)| {
            let labels = key.key().labels();
            let labels: Vec<_> = labels.map(|l| (l.key(), l.value())).collect();
            key.key().name() == "regrant_refreshes_total"
                && labels.contains(&("outcome", "lost_in_flight"))
                && labels.contains(&("provider", "linear"))
        });
        assert_eq!(lost.unwrap().3, DebugValue::Counter(1));
        let answer = refresh(&line.regrant, line.issued.refresh_token.expose()).await;
        assert_eq!(answer.text("error"), "invalid_grant");
    }
}

#[tokio::test]
async fn fm11_who_takes_over_leaves_time_for_the_answer_to_turn_up() {
    let line = Line::start().await;
    line.die_in_mid_refresh().await;

    assert_eq!(line.ask().await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(line.provider.calls(), 0, "not at once");
    let row = line.row().await;
    assert_eq!((row.unsettled, row.terminal), (1, None));
    line.lab.clock.advance(Duration::from_secs(2));

    assert_eq!(line.ask().await, StatusCode::OK);
    assert_eq!(line.provider.calls(), 1);
}

#[tokio::test]
async fn fm11_an_answer_that_turns_up_after_all_revives_what_was_given_up() {
    let lab = Lab::start().await;
    let shared = MemoryStore::new();
    // Keeps its answer to itself, because its store is away.
    let cut_off = FlakyStore::over(shared.clone());
    let provider = crate::support::flaky::Saboteur {
        inner: lab.oauth2(),
        store: cut_off.clone(),
    };
    let builder = lab.builder(cut_off.clone()).provider("linear", provider);
    let builder = builder.lifetimes(long()).timings(short());
    let holder = builder.start().await.unwrap();
    let issued = lab.issue(&holder).await;
    lab.clock.advance(HOUR);
    let request = || post(issued.access_token.expose(), "");
    let answer = send(&lab.gateway(&holder), request()).await;
    assert_eq!(answer.status, StatusCode::OK, "from memory");

    // Meanwhile another replica takes over, and hears that the token is spent.
    // Not every provider ends the whole login then.
    let refusing = Lossy::new(lab.oauth2());
    refusing.then(Fate::Refused(ProviderErrorKind::Terminal, None));
    let builder = lab.builder(shared.clone()).provider("linear", refusing);
    let builder = builder.lifetimes(long()).timings(short());
    let other = builder.start().await.unwrap();
    let row = async || {
        let grant = shared.grant(issued.grant_id).await.unwrap().unwrap();
        let row = shared.credential(grant.credentials[0].id).await;
        row.unwrap().unwrap()
    };
    while row().await.terminal.is_none() {
        send(&lab.gateway(&other), request()).await;
        lab.clock.advance(Duration::from_secs(2));
    }
    assert_eq!(row().await.terminal.as_deref(), Some(LOST_IN_FLIGHT));

    cut_off.set_down(false);
    assert!(holder.drain(Duration::from_secs(10)).await);
    assert_eq!(row().await.terminal, None);
    for regrant in [&other, &holder] {
        let answer = send(&lab.gateway(regrant), request()).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert_eq!(lab.provider.counts().double_spends, 0);
}

/// Is told the end, after somebody else has stored new tokens.
#[derive(Debug)]
struct Overtaken {
    winner: Arc<OnceCell<(Regrant, Login)>>,
}

impl Provider for Overtaken {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        async {
            let (winner, login) = self.winner.get().unwrap();
            winner.issue(login.clone()).await.unwrap();
            Err(ProviderErrorKind::Terminal.into())
        }
        .boxed()
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }
}

#[tokio::test]
async fn fm03_the_loser_of_a_race_does_not_end_the_winners_login() {
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let winner = Arc::new(OnceCell::new());
    let overtaken = Overtaken {
        winner: Arc::clone(&winner),
    };
    let builder = lab.builder(store.clone()).provider("linear", overtaken);
    let loser = builder.lifetimes(long()).start().await.unwrap();
    let issued = lab.issue(&loser).await;
    let other = lab.builder(store.clone()).start().await.unwrap();
    winner.set((other, lab.login())).unwrap();
    lab.clock.advance(HOUR);

    let request = post(issued.access_token.expose(), "");
    let answer = send(&lab.gateway(&loser), request).await;

    assert_eq!(answer.status, StatusCode::OK);
    assert!(lab.seen()[0].bearer().starts_with("upstream-at-1-"));
    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    let row = store
        .credential(grant.credentials[0].id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.generation, row.terminal), (1, None));
    let counted = metrics.snapshot().into_vec();
    let ends = |key: &metrics::Key| key.labels().any(|label| label.value() == "terminal");
    assert!(!counted.iter().any(|(key, ..)| ends(key.key())), "no end");
}

#[tokio::test]
async fn fm05_no_replica_ever_sends_again_what_one_was_told_is_dead() {
    let line = Line::start().await;
    line.lab.provider.log_out();
    assert_eq!(line.ask().await, StatusCode::UNAUTHORIZED);
    assert_eq!(line.row().await.terminal.as_deref(), Some("invalid_grant"));

    for _ in 0..3 {
        let provider = line.provider.clone();
        let builder = line.lab.builder(line.store.clone());
        let builder = builder.provider("linear", provider).lifetimes(long());
        let other = builder.start().await.unwrap();
        for _ in 0..10 {
            let request = post(line.issued.access_token.expose(), "");
            let answer = send(&line.lab.gateway(&other), request).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        }
    }
    assert_eq!(line.provider.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_not_waited_for_longer_than_the_lease() {
    let lab = Lab::start().await;
    let provider = Lossy::new(lab.oauth2());
    provider.then(Fate::AnswerLate);
    let builder = lab.builder(MemoryStore::new()).provider("linear", provider);
    let regrant = builder.lifetimes(long()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.clock.advance(HOUR);
    let begun = tokio::time::Instant::now();

    let request = post(issued.access_token.expose(), "");
    let answer = send(&lab.gateway(&regrant), request).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let timings = Timings::default();
    assert!(begun.elapsed() >= timings.provider_timeout);
    assert!(begun.elapsed() <= timings.wait_budget);
}
