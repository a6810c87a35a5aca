//! Refresh tokens that die when nobody uses them.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use regrant::Login;
use regrant::Regrant;
use regrant::RegrantBuilder;
use regrant::StartError;
use regrant::Upstream;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::Credential;
use regrant::store::CredentialFilter;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;

use super::DAY;
use super::Generous;
use super::MINUTE;
use super::RuntimeClock;
use super::SECOND;
use super::login;
use crate::support::HOUR;
use crate::support::KEYS;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn keep_alive_is_off_unless_asked_for() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store).start().await.unwrap();
    lab.issue(&regrant).await;
    lab.clock.advance(29 * DAY);

    regrant.keep_alive_due().await;

    assert_eq!(lab.faults.requests().len(), 0);
}

#[tokio::test]
async fn what_nobody_has_refreshed_for_so_long_is_refreshed() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = keeping(&lab, store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let gateway = lab.gateway(&regrant);
    for (advanced, refreshes) in [(7 * DAY, 0), (SECOND, 1), (7 * DAY, 1), (SECOND, 2)] {
        lab.clock.advance(advanced);
        for _ in 0..2 {
            regrant.keep_alive_due().await;
            assert_eq!(lab.provider.counts().refreshes, refreshes);
        }
    }
    assert_eq!(rows(&store).await[0].generation, 2);

    let rotated = refresh(&regrant, issued.refresh_token.expose()).await;
    let request = post(&rotated.text("access_token"), "");
    assert_eq!(send(&gateway, request).await.status, StatusCode::OK);
    let counts = lab.provider.counts();
    assert_eq!((counts.refreshes, counts.double_spends), (2, 0));
    assert_eq!(lab.seen().len(), 1, "no 401 on the way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_look_at_once_spend_each_token_once() {
    once_each(MemoryStore::new()).await;
    let database = Database::create().await;
    once_each(database.store().await).await;
}

async fn once_each(store: impl Store + Clone) {
    let lab = Lab::start().await;
    let start = async || keeping(&lab, store.clone()).start().await.unwrap();
    let replicas = [start().await, start().await];
    for number in 0..6 {
        let login = lab.login_of(&format!("user-{number}"));
        replicas[0].issue(login).await.unwrap();
    }
    lab.clock.advance(8 * DAY);

    join_all(replicas.iter().map(Regrant::keep_alive_due)).await;

    let counts = lab.provider.counts();
    assert_eq!((counts.refreshes, counts.double_spends), (6, 0));
    assert!(rows(&store).await.iter().all(|row| row.generation == 1));
}

#[tokio::test]
async fn only_what_somebody_wants_is_kept_alive() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let builder = keeping(&lab, store.clone()).provider("notion", lab.oauth2());
    let regrant = builder.revoke_upstream(false).start().await.unwrap();
    regrant.issue(lab.login_of("expired")).await.unwrap();
    lab.clock.advance(20 * DAY);
    let revoked = regrant.issue(lab.login_of("revoked")).await.unwrap();
    assert!(regrant.revoke(revoked.grant_id).await.unwrap());
    regrant.issue(lab.login_of("held")).await.unwrap();
    let tokens = lab.provider.log_in("linked");
    let linked = Upstream::new("linear", UpstreamAccessToken::new(tokens.access))
        .refresh_token(UpstreamRefreshToken::new(tokens.refresh));
    regrant.link("linked", linked).await.unwrap();
    let none = Login::new("linear", "without", UpstreamAccessToken::new("at"));
    regrant.issue(none).await.unwrap();
    let notion = Login::new("notion", "other", UpstreamAccessToken::new("at"));
    let notion = notion.refresh_token(UpstreamRefreshToken::new("rt"));
    regrant.issue(notion).await.unwrap();
    lab.clock.advance(11 * DAY);

    regrant.keep_alive_due().await;

    let refreshed = rows(&store).await.into_iter();
    let refreshed = refreshed.filter(|row| row.generation > 0);
    let mut subjects: Vec<_> = refreshed.map(|row| row.subject).collect();
    subjects.sort();
    assert_eq!(subjects, ["held", "linked"]);
    assert_eq!(lab.faults.requests().len(), 2);
}

#[tokio::test]
async fn trouble_is_for_the_next_pass_and_an_end_is_an_end() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = keeping(&lab, store.clone()).start().await.unwrap();
    lab.issue(&regrant).await;
    lab.clock.advance(8 * DAY);
    lab.faults.answer_next(503, "");

    regrant.keep_alive_due().await;
    assert_eq!(lab.faults.requests().len(), 1);
    let row = rows(&store).await.remove(0);
    assert_eq!((row.generation, row.terminal), (0, None));
    regrant.keep_alive_due().await;
    assert_eq!(
        lab.faults.requests().len(),
        1,
        "it is left alone for a while"
    );
    lab.clock.advance(HOUR);
    regrant.keep_alive_due().await;
    assert_eq!(lab.provider.counts().refreshes, 1);

    lab.provider.log_out();
    lab.clock.advance(8 * DAY);
    for _ in 0..2 {
        regrant.keep_alive_due().await;
        assert_eq!(lab.faults.requests().len(), 3, "asked once");
        let row = rows(&store).await.remove(0);
        assert_eq!(row.terminal.as_deref(), Some("invalid_grant"));
    }
}

#[tokio::test]
async fn a_request_that_comes_meanwhile_is_served() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let builder = keeping(&lab, store.clone()).lifetimes(long().access(20 * DAY));
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.clock.advance(8 * DAY);
    lab.faults.hold();
    let keeping = tokio::spawn({
        let regrant = regrant.clone();
        async move { regrant.keep_alive_due().await }
    });
    lab.faults.arrived(1).await;

    let gateway = lab.gateway(&regrant);
    let request = post(issued.access_token.expose(), "");
    let served = tokio::spawn(async move { send(&gateway, request).await.status });
    tokio::task::yield_now().await;
    lab.faults.release();

    assert_eq!(served.await.unwrap(), StatusCode::OK);
    keeping.await.unwrap();
    let counts = lab.provider.counts();
    assert_eq!((counts.refreshes, counts.double_spends), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_by_itself_until_the_gateway_is_drained() {
    let store = MemoryStore::new();
    let keyring = Keyring::parse(KEYS).unwrap();
    let regrant = Regrant::builder("https://gateway.example", store.clone(), keyring)
        .provider("linear", Generous)
        .with_clock(RuntimeClock::starting_now())
        .keep_alive("linear", 7 * DAY)
        .start()
        .await
        .unwrap();
    regrant.issue(login("ada")).await.unwrap();

    tokio::time::sleep(28 * DAY).await;
    // Each at most an hour late.
    assert_eq!(rows(&store).await[0].generation, 3);
    tokio::time::sleep(4 * HOUR).await;
    assert_eq!(rows(&store).await[0].generation, 4);
    assert!(regrant.drain(MINUTE).await);
    tokio::time::sleep(20 * DAY).await;
    assert_eq!(rows(&store).await[0].generation, 4);
}

#[tokio::test]
async fn what_cannot_be_kept_alive_stops_the_start() {
    let lab = Lab::start().await;
    for (provider, after) in [("notion", DAY), ("linear", Duration::ZERO)] {
        let builder = lab.builder(MemoryStore::new());
        let error = builder.keep_alive(provider, after).start().await;
        let Err(StartError::Config(error)) = error else {
            panic!("{provider}: {error:?}");
        };
        assert!(error.to_string().contains(provider), "{error}");
    }
}

fn keeping(lab: &Lab, store: impl Store) -> RegrantBuilder {
    lab.builder(store).keep_alive("linear", 7 * DAY)
}

/// All credentials of the store.
async fn rows(store: &dyn Store) -> Vec<Credential> {
    let filter = CredentialFilter::default();
    let page = store.upkeep().credentials(filter, None, 100);
    page.await.unwrap().rows
}
