//! Many reads on few connections.

use std::sync::Arc;

use futures_util::future::join_all;
use regrant::GrantId;
use regrant::store::Store as _;
use regrant::store::conformance;
use regrant::store::postgres::PostgresStore;
use tokio_postgres::Client;

use crate::support::Lab;
use crate::support::database::Database;

struct Readers {
    store: PostgresStore,
    id: GrantId,
    admin: Client,
    _database: Database,
}

impl Readers {
    /// A store that has connected to nothing yet.
    async fn start() -> Self {
        let lab = Lab::start().await;
        let database = Database::create().await;
        let other = database.store().await;
        let regrant = lab.builder(other).start().await.unwrap();
        let id = lab.issue(&regrant).await.grant_id;
        drop(regrant);
        let url = format!("{}?application_name=readers", database.direct);
        Self {
            store: PostgresStore::connect(&url).unwrap(),
            id,
            admin: database.client().await,
            _database: database,
        }
    }

    async fn read(&self, times: usize) {
        for read in join_all((0..times).map(|_| self.store.grant(self.id))).await {
            assert_eq!(read.unwrap().unwrap().id, self.id);
        }
    }

    async fn sessions(&self) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'readers'
                   AND datname = current_database()";
        let rows = self.admin.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test]
async fn two_hundred_reads_at_once_use_two_connections() {
    let readers = Readers::start().await;
    for _ in 0..3 {
        readers.read(200).await;
        assert_eq!(readers.sessions().await.len(), 2);
    }
}

#[tokio::test]
async fn no_read_fails_when_the_server_ends_the_shared_connections() {
    let readers = Readers::start().await;
    readers.read(2).await;
    let before = readers.sessions().await;
    assert_eq!(before.len(), 2);

    // What they read stands still, so that all are under way when they lose
    // their connections.
    readers
        .admin
        .batch_execute("BEGIN; LOCK TABLE grants IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let kill = async {
        let waiting = "SELECT pid FROM pg_stat_activity WHERE application_name = 'readers'
                       AND datname = current_database() AND wait_event_type = 'Lock'";
        while readers.admin.query(waiting, &[]).await.unwrap().len() < 2 {
            // Statistics stand still within a transaction.
            let sql = "SELECT pg_stat_clear_snapshot()";
            readers.admin.batch_execute(sql).await.unwrap();
        }
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = 'readers' AND datname = current_database()";
        let killed = readers.admin.query(sql, &[]).await.unwrap().len();
        readers.admin.batch_execute("COMMIT").await.unwrap();
        killed
    };
    let (killed, ()) = tokio::join!(kill, readers.read(100));

    assert_eq!(killed, 2);
    let after = readers.sessions().await;
    assert_eq!(after.len(), 2, "and no herd took their place");
    assert!(after.iter().all(|pid| !before.contains(pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_prepared_statements_keeps_the_contract() {
    let database = Database::create().await;
    let _migrated = database.store().await;
    // A pooler of this age would hand out what others prepared.
    let store = PostgresStore::connect(&database.direct).unwrap();
    let store = store.prepared_statements();
    conformance::check(Arc::new(store)).await;
}

#[tokio::test]
async fn prepared_statements_survive_a_table_that_changes_under_them() {
    let readers = Readers::start().await;
    let store = readers.store.clone().prepared_statements();
    for _ in 0..4 {
        assert!(store.grant(readers.id).await.unwrap().is_some());
    }

    // `SELECT *` has another result now, which a prepared one refuses to have.
    let sql = "ALTER TABLE grants ADD COLUMN later int";
    readers.admin.batch_execute(sql).await.unwrap();

    for _ in 0..4 {
        assert!(store.grant(readers.id).await.unwrap().is_some());
    }
}
