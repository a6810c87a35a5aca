//! What is tried again, and what is said of it.

use std::time::Duration;

use futures_util::future::join_all;
use metrics_util::debugging::DebugValue;
use metrics_util::debugging::DebuggingRecorder;
use metrics_util::debugging::Snapshotter;
use regrant::clock::Clock as _;
use regrant::store::Store as _;
use regrant::store::StoreErrorKind;
use regrant::store::postgres::PostgresStore;

use crate::support::Lab;
use crate::support::database::Database;

/// What was counted up to now; reading it takes it away.
pub(super) struct Counted(Vec<(String, Vec<String>, DebugValue)>);

impl Counted {
    pub(super) fn by(metrics: &Snapshotter) -> Self {
        let all = metrics.snapshot().into_vec().into_iter();
        let counted = all.map(|(key, _, _, value)| {
            let key = key.key();
            let labels = key.labels().map(|label| label.value().to_owned());
            (key.name().to_owned(), labels.collect(), value)
        });
        Self(counted.collect())
    }

    fn find(&self, name: &str, label: &str) -> &DebugValue {
        let mut all = self.0.iter();
        let found = all.find(|(its_name, labels, _)| {
            its_name == name && (label.is_empty() || labels.iter().any(|its| its == label))
        });
        &found.unwrap_or_else(|| panic!("no {name} {label}")).2
    }

    /// How many kinds of it were counted.
    pub(super) fn all(&self, name: &str) -> usize {
        self.0
            .iter()
            .filter(|(its_name, ..)| its_name == name)
            .count()
    }

    pub(super) fn counter(&self, name: &str, label: &str) -> u64 {
        let DebugValue::Counter(count) = self.find(name, label) else {
            panic!("{name} is something else");
        };
        *count
    }

    fn gauge(&self, name: &str, label: &str) -> String {
        let DebugValue::Gauge(gauge) = self.find(name, label) else {
            panic!("{name} is something else");
        };
        gauge.to_string()
    }

    fn values(&self, name: &str, label: &str) -> usize {
        let DebugValue::Histogram(values) = self.find(name, label) else {
            panic!("{name} is something else");
        };
        values.len()
    }
}

#[tokio::test]
async fn updates_that_cannot_be_serialized_are_tried_again_until_all_are_counted() {
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let lab = Lab::start().await;
    let database = Database::create().await;
    let regrant = lab.builder(database.store().await).start().await.unwrap();
    let id = lab.issue(&regrant).await.grant_id;
    let (_, name) = database.url.rsplit_once('/').unwrap();
    let sql = format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'");
    let admin = database.client().await;
    admin.batch_execute(&sql).await.unwrap();
    // A pooler may have sessions of before.
    let store = PostgresStore::connect(&database.direct).unwrap();
    // All wait for the same row, and but one of them are too late for it.
    admin
        .batch_execute(&format!(
            "BEGIN; UPDATE grants SET replays = 0 WHERE id = '{id}'"
        ))
        .await
        .unwrap();
    let now = lab.clock.now();
    let release = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                       AND datname = current_database()";
        let watcher = database.client().await;
        while watcher
            .query_one(waiting, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            < 8
        {}
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let counts = join_all((0..8).map(|_| store.count_replay(id, 0, 100, now)));

    let (counts, ()) = tokio::join!(counts, release);

    for counted in counts {
        assert!(counted.unwrap());
    }
    let grant = store.grant(id).await.unwrap().unwrap();
    assert_eq!(grant.replays, 8);
    let counted = Counted::by(&metrics);
    assert!(counted.counter("regrant_store_errors_total", "contention") >= 8);
    // None of the connections was thrown away for it.
    assert_eq!(counted.gauge("regrant_store_connections", "idle"), "8");
}

#[tokio::test]
async fn a_store_says_how_its_connections_do() {
    let database = Database::create().await;
    let _migrated = database.store().await;
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let store = database.connect();
    for keys in join_all((0..4).map(|_| store.keys())).await {
        keys.unwrap();
    }
    let id = regrant::GrantId::random().unwrap();
    assert!(store.grant(id).await.unwrap().is_none());
    assert!(!store.slide(id, std::time::UNIX_EPOCH).await.unwrap());

    let counted = Counted::by(&metrics);
    for (state, count) in [("idle", "4"), ("busy", "0"), ("max", "16")] {
        assert_eq!(counted.gauge("regrant_store_connections", state), count);
    }
    assert_eq!(counted.gauge("regrant_store_waiting", ""), "0");
    assert_eq!(counted.values("regrant_store_seconds", "read"), 5);
    assert_eq!(counted.values("regrant_store_seconds", "write"), 1);
    let empty = Database::create().await;
    let error = PostgresStore::connect(&empty.url).unwrap().keys().await;
    assert_eq!(error.unwrap_err().kind(), StoreErrorKind::Schema);
    let counted = Counted::by(&metrics);
    assert_eq!(counted.counter("regrant_store_errors_total", "schema"), 1);
}

#[tokio::test]
async fn a_pool_of_the_callers_without_time_outs_ends_within_the_budget() {
    let database = Database::create().await;
    let _migrated = database.store().await;
    let config: tokio_postgres::Config = database.url.parse().unwrap();
    let manager = deadpool_postgres::Manager::new(config, tokio_postgres::NoTls);
    let pool = deadpool_postgres::Pool::builder(manager)
        .max_size(1)
        .build()
        .unwrap();
    let store = PostgresStore::new(pool.clone()).budget(Duration::from_millis(300));
    store.keys().await.unwrap();
    let id = regrant::GrantId::random().unwrap();
    for _ in 0..2 {
        assert!(store.grant(id).await.unwrap().is_none());
    }

    let _exhausted = pool.get().await.unwrap();
    let error = store.keys().await.unwrap_err();

    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(store.grant(id).await.unwrap().is_none(), "reads go on");
}
