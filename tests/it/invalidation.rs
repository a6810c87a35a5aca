//! What ends on one replica ends on the others: at once if they listen, within
//! the staleness bound if they do not.

use std::time::Duration;

use http::StatusCode;
use regrant::Issued;
use regrant::Regrant;
use regrant::health::HealthStatus;
use regrant::settings::Timings;
use regrant::store::StoreErrorKind;
use regrant::store::memory::MemoryStore;
use regrant::store::postgres::PostgresStore;
use tower::Layer as _;

use crate::support::HOUR;
use crate::support::Lab;
use crate::support::ask;
use crate::support::database::Database;
use crate::support::database::Outage;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::long;
use crate::support::post;
use crate::support::send;

/// Two replicas, one of which has served a grant and, but for hearing of its
/// end, would go on for an hour.
struct Replicas {
    lab: Lab,
    one: Regrant,
    other: Regrant,
    issued: Issued,
}

impl Replicas {
    async fn start(here: PostgresStore, there: PostgresStore, staleness: Duration) -> Self {
        let lab = Lab::start().await;
        let start = async |store| {
            let timings = Timings::default().staleness(staleness);
            let builder = lab.builder(store).lifetimes(long()).timings(timings);
            // The end of a grant's credential would be told of as well.
            builder.revoke_upstream(false).start().await.unwrap()
        };
        let (one, other) = (start(here).await, start(there).await);
        let issued = lab.issue(&one).await;
        let replicas = Self {
            lab,
            one,
            other,
            issued,
        };
        assert_eq!(replicas.asked(&replicas.other).await, StatusCode::OK);
        replicas
    }

    async fn asked(&self, regrant: &Regrant) -> StatusCode {
        let request = post(self.issued.access_token.expose(), "");
        send(&self.lab.gateway(regrant), request).await.status
    }

    async fn hears(&self, is_heard: bool) {
        while self.other.health().await.listener != Some(is_heard) {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the other replica refuses the grant.
    async fn is_refused(&self) {
        while self.asked(&self.other).await != StatusCode::UNAUTHORIZED {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_grant_that_is_revoked_on_one_replica_is_refused_by_one_that_listens() {
    let database = Database::create().await;
    let (here, there) = (database.store().await, database.store().await);
    let replicas = Replicas::start(here, there, HOUR).await;
    replicas.hears(true).await;
    assert_eq!(replicas.asked(&replicas.other).await, StatusCode::OK);

    let revoked = replicas.one.revoke(replicas.issued.grant_id).await;

    assert!(revoked.unwrap());
    replicas.is_refused().await;
}

#[tokio::test]
async fn an_access_token_that_is_revoked_on_one_replica_is_refused_by_one_that_listens() {
    let database = Database::create().await;
    let (here, there) = (database.store().await, database.store().await);
    let replicas = Replicas::start(here, there, HOUR).await;
    replicas.hears(true).await;
    assert_eq!(replicas.asked(&replicas.other).await, StatusCode::OK);

    let token = replicas.issued.access_token.expose();
    let revoked = ask(&replicas.one, form("/oauth/revoke", &[("token", token)])).await;

    assert_eq!(revoked.status, StatusCode::OK);
    replicas.is_refused().await;
}

#[tokio::test]
async fn a_login_that_the_provider_ended_is_ended_on_replicas_that_listen() {
    let database = Database::create().await;
    let (here, there) = (database.store().await, database.store().await);
    let replicas = Replicas::start(here, there, HOUR).await;
    replicas.hears(true).await;
    assert_eq!(replicas.asked(&replicas.other).await, StatusCode::OK);

    replicas.lab.provider.log_out();
    let asked = replicas.asked(&replicas.one).await;
    assert_eq!(asked, StatusCode::UNAUTHORIZED);

    // The upstream there takes anything: it is not the one that refuses.
    let layer = replicas.other.layer("linear").unwrap();
    let gateway = layer.layer(replicas.lab.witness());
    let token = replicas.issued.access_token.expose();
    while send(&gateway, post(token, "")).await.status != StatusCode::UNAUTHORIZED {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_ended_while_nobody_listened_is_noticed_when_somebody_does_again() {
    let database = Database::create().await;
    let outage = Outage::before_listener(&database).await;
    let here = database.store().await;
    let there = here.clone().listen_at(&outage.url).unwrap();
    let replicas = Replicas::start(here, there, HOUR).await;
    replicas.hears(true).await;
    assert_eq!(replicas.asked(&replicas.other).await, StatusCode::OK);

    outage.begin();
    replicas.hears(false).await;
    let revoked = replicas.one.revoke(replicas.issued.grant_id).await;
    assert!(revoked.unwrap());
    assert_eq!(replicas.asked(&replicas.other).await, StatusCode::OK);
    outage.end();

    replicas.is_refused().await;
}

#[tokio::test]
async fn without_a_listener_the_staleness_bound_holds() {
    let database = Database::create().await;
    let store = database.store().await.without_listener();
    let replicas = Replicas::start(store.clone(), store, Duration::from_secs(5)).await;
    let revoked = replicas.one.revoke(replicas.issued.grant_id).await;
    assert!(revoked.unwrap());
    assert_eq!(replicas.other.health().await.listener, None);

    replicas.lab.clock.advance(Duration::from_millis(4_900));
    assert_eq!(replicas.asked(&replicas.other).await, StatusCode::OK);
    replicas.lab.clock.advance(Duration::from_millis(200));
    assert_eq!(
        replicas.asked(&replicas.other).await,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_strict_gateway_asks_the_store_on_every_request() {
    let database = Database::create().await;
    let store = database.store().await.without_listener();
    let replicas = Replicas::start(store.clone(), store, Duration::ZERO).await;

    let revoked = replicas.one.revoke(replicas.issued.grant_id).await;

    assert!(revoked.unwrap());
    assert_eq!(
        replicas.asked(&replicas.other).await,
        StatusCode::UNAUTHORIZED
    );
}

/// As behind a pooler in transaction mode: `LISTEN` is accepted, and nothing is
/// ever delivered.
#[tokio::test]
async fn a_listener_that_is_never_told_anything_is_noticed_and_the_bound_holds() {
    let (database, elsewhere) = (Database::create().await, Database::create().await);
    let here = database.store().await;
    let there = here.clone().listen_at(&elsewhere.url).unwrap();
    let replicas = Replicas::start(here, there, Duration::from_secs(5)).await;

    loop {
        let listener = replicas.other.health().await.listener;
        assert_ne!(listener, Some(true), "nothing was ever heard");
        if listener == Some(false) {
            break;
        }
        tokio::task::yield_now().await;
    }

    let revoked = replicas.one.revoke(replicas.issued.grant_id).await;
    assert!(revoked.unwrap());
    let health = replicas.other.health().await;
    assert_eq!(health.status, HealthStatus::Ready);
    assert!(health.to_string().contains("staleness bound"), "{health}");
    replicas.lab.clock.advance(Duration::from_secs(6));
    assert_eq!(
        replicas.asked(&replicas.other).await,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_gateway_says_whether_it_serves_from_memory_or_not_at_all() {
    let lab = Lab::start().await;
    let store = FlakyStore::over(MemoryStore::new());
    let builder = lab.builder(store.clone()).lifetimes(long());
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    assert_eq!(regrant.health().await.status, HealthStatus::Ready);

    // Nothing was served yet, so nothing is in memory.
    store.set_down(true);
    let health = regrant.health().await;
    assert_eq!(health.status, HealthStatus::Down);
    assert_eq!(health.store, Some(StoreErrorKind::Unavailable));
    store.set_down(false);
    let ask = async || {
        let request = post(issued.access_token.expose(), "");
        send(&lab.gateway(&regrant), request).await.status
    };
    assert_eq!(ask().await, StatusCode::OK);

    store.set_down(true);
    assert_eq!(regrant.health().await.status, HealthStatus::Degraded);
    assert_eq!(ask().await, StatusCode::OK);
    lab.clock.advance(Duration::from_secs(6));
    assert_eq!(regrant.health().await.status, HealthStatus::Down);
    assert_eq!(ask().await, StatusCode::SERVICE_UNAVAILABLE);
    store.set_down(false);
    assert_eq!(regrant.health().await.status, HealthStatus::Ready);

    assert!(regrant.drain(HOUR).await);
    let health = regrant.health().await;
    assert_eq!(health.status, HealthStatus::Down);
    assert_eq!(health.to_string(), "down: shutting down");
}

#[tokio::test]
async fn a_database_without_its_tables_is_not_healthy() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let regrant = lab.builder(database.store().await).start().await.unwrap();
    let client = database.client().await;
    let sql = "DROP TABLE sealing_keys";
    client.batch_execute(sql).await.unwrap();

    let health = regrant.health().await;

    assert_eq!(health.status, HealthStatus::Down);
    assert_eq!(health.store, Some(StoreErrorKind::Schema));
}
