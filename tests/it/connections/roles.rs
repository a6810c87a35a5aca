//! A primary and a standby that change roles.

use futures_util::future::join_all;
use regrant::store::Store as _;
use regrant::store::postgres::PostgresStore;

use crate::support::cluster::Cluster;

/// Two clusters that hold the same, as far as this can tell.
async fn pair() -> (Cluster, Cluster) {
    let clusters = [
        Cluster::start_on_tcp(&[]).await,
        Cluster::start_on_tcp(&[]).await,
    ];
    for cluster in &clusters {
        let store = PostgresStore::connect(&cluster.url).unwrap();
        store.migrate().await.unwrap();
    }
    let [first, second] = clusters;
    (first, second)
}

/// It takes no more writes, on old connections either.
async fn demote(cluster: &Cluster, read_only: bool) {
    let client = cluster.client().await;
    let sql = format!("ALTER SYSTEM SET default_transaction_read_only = {read_only}");
    client
        .batch_execute("SET transaction_read_only = off")
        .await
        .unwrap();
    client.batch_execute(&sql).await.unwrap();
    client
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    let expected = if read_only { "on" } else { "off" };
    loop {
        // A new session, to see what others see.
        let sql = "SHOW default_transaction_read_only";
        let row = cluster.client().await.query_one(sql, &[]).await.unwrap();
        if row.get::<_, &str>(0) == expected {
            return;
        }
    }
}

fn url(first: &Cluster, second: &Cluster, more: &str) -> String {
    let (first, second) = (first.port, second.port);
    format!("postgres://regrant@127.0.0.1:{first},127.0.0.1:{second}/postgres{more}")
}

async fn sessions(cluster: &Cluster) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity
               WHERE backend_type = 'client backend' AND client_addr IS NOT NULL";
    cluster
        .client()
        .await
        .query_one(sql, &[])
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn a_standby_is_passed_over_unless_the_string_says_otherwise() {
    let (standby, primary) = pair().await;
    demote(&standby, true).await;

    for (more, at_standby) in [
        ("", 0),
        ("?target_session_attrs=read-write", 0),
        ("?target_session_attrs=any", 1),
    ] {
        let store = PostgresStore::connect(&url(&standby, &primary, more)).unwrap();
        store.keys().await.unwrap();
        assert_eq!(sessions(&standby).await, at_standby, "{more}");
    }
}

#[tokio::test]
async fn a_primary_that_becomes_a_standby_is_left_and_writes_succeed_on_the_other() {
    let (first, second) = pair().await;
    demote(&second, true).await;
    let store = PostgresStore::connect(&url(&first, &second, "")).unwrap();
    for keys in join_all((0..16).map(|_| store.keys())).await {
        keys.unwrap();
    }
    assert!(sessions(&first).await >= 8);

    demote(&first, true).await;
    demote(&second, false).await;
    let key = |id: &str| regrant::store::KeyRecord {
        id: id.to_owned(),
        check_value: [7; 32],
        registered_at: None,
        retired_at: None,
    };
    let writes = (0..8).map(|n| store.register_key(key(&n.to_string())));
    for written in join_all(writes).await {
        written.unwrap();
    }

    let sql = "SELECT count(*) FROM sealing_keys";
    let client = second.client().await;
    let keys: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(keys, 8);
}
