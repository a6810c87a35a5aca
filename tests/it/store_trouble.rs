//! Trouble at the store, and clients that go away in mid-refresh.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::StatusCode;
use regrant::settings::Timings;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tower::ServiceExt as _;

use crate::support::Answer;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::flaky::FlakyStore;
use crate::support::flaky::Saboteur;
use crate::support::impatient;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;
use crate::support::short;

#[tokio::test]
async fn a_client_that_goes_away_cancels_no_refresh() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.clock.advance(HOUR);
    lab.faults.hold();

    let request = post(issued.access_token.expose(), "");
    let mut waiting = Box::pin(gateway.clone().oneshot(request));
    assert!((&mut waiting).now_or_never().is_none());
    tokio::select! {
        _ = &mut waiting => panic!("the provider has not answered"),
        () = lab.faults.arrived(1) => {}
    }
    drop(waiting);
    lab.faults.release();
    assert!(regrant.drain(Duration::from_secs(10)).await);

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    let counts = lab.provider.counts();
    assert_eq!((counts.calls, counts.double_spends), (1, 0));
}

#[tokio::test]
async fn fm04_a_store_that_is_away_is_never_a_401() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let builder = lab.builder(store.clone()).timings(short());
    let regrant = builder.lifetimes(long()).start().await.unwrap();
    let (known, unknown) = (lab.issue(&regrant).await, lab.issue(&regrant).await);
    let gateway = lab.gateway(&regrant);
    let ask = async |issued: &regrant::Issued| -> Answer {
        send(&gateway, post(issued.access_token.expose(), "")).await
    };
    assert_eq!(ask(&known).await.status, StatusCode::OK);
    store.set_down(true);

    // Served from memory within the staleness bound, not after it.
    assert_eq!(ask(&known).await.status, StatusCode::OK);
    lab.clock.advance(Timings::default().staleness);
    for issued in [&known, &unknown] {
        let answer = ask(issued).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.header("retry-after"), "1");
        let answer = refresh(&regrant, issued.refresh_token.expose()).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.text("error"), "temporarily_unavailable");
        assert_eq!(answer.header("retry-after"), "1");
    }

    store.set_down(false);
    for issued in [&known, &unknown] {
        assert_eq!(ask(issued).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn what_we_did_not_issue_never_reaches_the_store() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    let before = store.calls();

    // In the grant id, the dot, the payload and the tag.
    for at in [10, 37, 50, 110] {
        let forged = |token: &str| {
            let mut bytes = token.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            String::from_utf8(bytes).unwrap()
        };
        let access = forged(issued.access_token.expose());
        let answer = send(&gateway, post(&access, "")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{at}");
        let answer = refresh(&regrant, &forged(issued.refresh_token.expose())).await;
        assert_eq!(answer.text("error"), "invalid_grant", "{at}");
    }

    assert_eq!(store.calls(), before);
}

#[tokio::test]
async fn fm10_a_pair_that_cannot_be_stored_is_served_from_memory_until_it_can() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let saboteur = Saboteur {
        inner: lab.oauth2(),
        store: store.clone(),
    };
    let builder = lab.builder(store.clone()).provider("linear", saboteur);
    let regrant = builder.lifetimes(long()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    lab.clock.advance(HOUR);

    let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(lab.seen()[0].bearer().starts_with("upstream-at-1-"));

    store.set_down(false);
    assert!(regrant.drain(Duration::from_secs(10)).await);
    // Another replica finds it in the store.
    let builder = lab.builder(store).lifetimes(long());
    let replica = builder.start().await.unwrap();
    let answer = send(
        &lab.gateway(&replica),
        post(issued.access_token.expose(), ""),
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(lab.seen()[1].bearer().starts_with("upstream-at-1-"));
    let counts = lab.provider.counts();
    assert_eq!((counts.calls, counts.double_spends), (1, 0));
}

#[tokio::test]
async fn fm10_a_pair_that_is_not_stored_yet_is_kept_however_full_the_cache_is() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let builder = lab.builder(store.clone()).lifetimes(long());
    let regrant = builder.cached_grants(0).start().await.unwrap();
    let gateway = lab.gateway(&regrant);
    let mine = lab.issue(&regrant).await;
    let ask = async |issued: &regrant::Issued| {
        send(&gateway, post(issued.access_token.expose(), ""))
            .await
            .status
    };
    lab.clock.advance(HOUR);
    store.set_read_only(true);
    assert_eq!(ask(&mine).await, StatusCode::OK, "from memory");

    // There is no room in memory for anything else.
    assert_eq!(ask(&mine).await, StatusCode::OK);
    assert!(
        lab.seen()
            .pop()
            .unwrap()
            .bearer()
            .starts_with("upstream-at-1-")
    );
    assert_eq!(lab.provider.counts().calls, 1);
    store.set_read_only(false);
    assert!(regrant.drain(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn fm10_the_predecessor_of_a_pair_that_is_not_stored_yet_is_not_spent_again() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let builder = lab
        .builder(store.clone())
        .lifetimes(long())
        .timings(short());
    let regrant = builder.start().await.unwrap();
    let gateway = lab.gateway(&regrant);
    let issued = lab.issue(&regrant).await;
    let ask = async || {
        send(&gateway, post(issued.access_token.expose(), ""))
            .await
            .status
    };
    lab.clock.advance(HOUR);
    store.set_read_only(true);
    assert_eq!(ask().await, StatusCode::OK, "from memory");

    // The new one has run out as well, and the lease of the old one.
    lab.clock.advance(HOUR);
    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    let claim = async || {
        let claimed = store.claim(grant.credentials[0].id, 0, [7; 16], Duration::ZERO);
        claimed.await.unwrap()
    };
    while claim().await.is_none() {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        assert_eq!(ask().await, StatusCode::SERVICE_UNAVAILABLE);
        lab.clock.advance(Duration::from_secs(120));
    }
    assert_eq!(lab.provider.counts().calls, 1);

    store.set_read_only(false);
    assert!(regrant.drain(Duration::from_secs(10)).await);
    assert_eq!(ask().await, StatusCode::OK);
    assert_eq!(lab.provider.counts().double_spends, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fm02_two_replicas_spend_a_refresh_token_once() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let builder = lab.builder(store.clone()).lifetimes(long());
        replicas.push(builder.start().await.unwrap());
    }
    let issued = lab.issue(&replicas[0]).await;
    lab.clock.advance(HOUR);
    let barrier = Arc::new(tokio::sync::Barrier::new(40));
    let requests = (0..40).map(|number| {
        let gateway = lab.gateway(&replicas[number % 2]);
        let request = post(issued.access_token.expose(), "");
        let barrier = Arc::clone(&barrier);
        tokio::spawn(async move {
            barrier.wait().await;
            send(&gateway, request).await.status
        })
    });
    let statuses = futures_util::future::join_all(requests).await;

    assert!(statuses.into_iter().all(|status| status.unwrap() == 200));
    let counts = lab.provider.counts();
    assert_eq!((counts.calls, counts.double_spends), (1, 0));
}
