//! `regrant migrate --citus`, against stand-ins for what Citus brings.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::on;
use super::stderr;
use crate::support::database::Database;

#[tokio::test]
async fn plain_postgresql_is_refused_with_what_to_do() {
    let database = Database::create().await;
    let output = on(&database, &["migrate", "--citus"]).await;

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"the schema is up to date\n");
    let said = stderr(&output);
    for want in [
        "the extension citus is not installed",
        "CREATE EXTENSION citus",
    ] {
        assert!(said.contains(want), "{said}");
    }
}

#[tokio::test]
async fn every_table_is_distributed_once_and_copies_go_first() {
    let database = Database::create().await;
    let client = citus(&database).await;
    for _ in 0..2 {
        let output = on(&database, &["migrate", "--citus"]).await;
        assert!(output.status.success(), "{output:?}");
    }

    let calls: Vec<String> = column(&client, "SELECT said FROM calls ORDER BY number").await;
    let want = [
        "reference sealing_keys",
        "reference deadlines",
        "hash grants id",
        "hash codes id",
        "hash credentials id",
        "hash clients id",
    ];
    assert_eq!(calls, want);
    let named = calls.iter().map(|call| call.split(' ').nth(1).unwrap());
    assert_eq!(
        named.map(str::to_owned).collect::<BTreeSet<_>>(),
        tables(&client).await.into_iter().collect(),
        "a table that is not distributed lies on the coordinator alone"
    );
    let modes: Vec<String> = column(&client, "SELECT DISTINCT mode FROM calls").await;
    assert_eq!(modes, ["sequential"]);
}

#[tokio::test]
async fn a_distribution_that_broke_off_is_completed_and_another_one_is_refused() {
    let database = Database::create().await;
    let client = citus(&database).await;
    assert!(on(&database, &["migrate"]).await.status.success());
    let sql = "SELECT create_distributed_table('grants', 'id')";
    client.batch_execute(sql).await.unwrap();
    assert!(
        on(&database, &["migrate", "--citus"])
            .await
            .status
            .success()
    );
    let grants = "SELECT said FROM calls WHERE said LIKE '% grants %'";
    assert_eq!(column::<String>(&client, grants).await.len(), 1);

    let sql = "DELETE FROM pg_dist_partition WHERE logicalrelid = 'deadlines'::regclass;
         UPDATE pg_dist_partition SET partmethod = 'r' WHERE logicalrelid = 'codes'::regclass";
    client.batch_execute(sql).await.unwrap();
    let before = column::<String>(&client, "SELECT said FROM calls").await;
    let output = on(&database, &["migrate", "--citus"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("undistribute_table('codes')"),
        "{output:?}"
    );
    let after = column::<String>(&client, "SELECT said FROM calls").await;
    assert_eq!(after, before, "all or nothing");
}

#[tokio::test]
async fn nothing_in_the_schema_is_what_citus_refuses() {
    let database = Database::create().await;
    let _store = database.store().await;
    let client = database.client().await;

    // Unique only by the column that rows are distributed by.
    let unique = "SELECT DISTINCT pg_get_indexdef(indexrelid) FROM pg_index
         JOIN pg_class ON pg_class.oid = indrelid
         WHERE indisunique AND relnamespace = 'public'::regnamespace
             AND relname <> 'refinery_schema_history'
             AND NOT (indisprimary AND indnkeyatts = 1 AND indkey[0] =
                 (SELECT attnum FROM pg_attribute WHERE attrelid = indrelid AND attname = 'id'))";
    assert_eq!(column::<String>(&client, unique).await, [""; 0]);
    let others = "SELECT relname::text FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('r', 'i')
         UNION ALL SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal
         UNION ALL SELECT conname::text FROM pg_constraint
         WHERE connamespace = 'public'::regnamespace AND contype NOT IN ('p', 'n')";
    assert_eq!(column::<String>(&client, others).await, [""; 0]);
    let without = "SELECT relname::text FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
             AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)";
    assert_eq!(column::<String>(&client, without).await, [""; 0]);
}

/// What looks like Citus, in a schema of its own.
async fn citus(database: &Database) -> Client {
    let client = database.client().await;
    let setting: Vec<String> = column(&client, "SELECT current_database()::text").await;
    client
        .batch_execute(&format!(
            "CREATE SCHEMA stub;
             ALTER DATABASE {name} SET search_path = public, stub;
             SET search_path = public, stub;
             CREATE TABLE stub.pg_dist_partition (logicalrelid regclass, partmethod \"char\");
             CREATE TABLE stub.calls (number serial, said text, mode text);
             CREATE FUNCTION stub.create_distributed_table(regclass, text) RETURNS void
             LANGUAGE sql AS $$
                 INSERT INTO stub.calls (said, mode) VALUES ('hash ' || $1 || ' ' || $2,
                     current_setting('citus.multi_shard_modify_mode', true));
                 INSERT INTO stub.pg_dist_partition VALUES ($1, 'h') $$;
             CREATE FUNCTION stub.create_reference_table(regclass) RETURNS void
             LANGUAGE sql AS $$
                 INSERT INTO stub.calls (said, mode) VALUES ('reference ' || $1,
                     current_setting('citus.multi_shard_modify_mode', true));
                 INSERT INTO stub.pg_dist_partition VALUES ($1, 'n') $$;",
            name = setting[0]
        ))
        .await
        .unwrap();
    client
}

async fn tables(client: &Client) -> Vec<String> {
    let sql = "SELECT relname::text FROM pg_class WHERE relkind = 'r'
         AND relnamespace = 'public'::regnamespace AND relname <> 'refinery_schema_history'";
    column(client, sql).await
}

async fn column<T: for<'a> tokio_postgres::types::FromSql<'a>>(
    client: &Client,
    sql: &str,
) -> Vec<T> {
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}
