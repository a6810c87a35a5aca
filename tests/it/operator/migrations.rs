//! `regrant migrate` and its `--check`.

use refinery::Target;
use tokio_postgres::Client;

use super::on;
use super::stderr;
use crate::support::database::Database;

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Brings a database to an earlier version.
pub(super) async fn migrate_to(client: &mut Client, version: i32) {
    let runner = embedded::migrations::runner().set_target(Target::Version(version));
    runner.run_async(client).await.unwrap();
}

/// The last version that there is.
pub(super) fn newest() -> i32 {
    let runner = embedded::migrations::runner();
    let versions = runner.get_migrations().iter();
    versions.map(refinery::Migration::version).max().unwrap()
}

#[tokio::test]
async fn a_check_names_what_is_pending_and_changes_nothing() {
    let database = Database::create().await;
    let mut client = database.client().await;
    let names = |text: &[u8]| {
        let text = String::from_utf8(text.to_vec()).unwrap();
        let lines = text.lines();
        let names = lines.map(|line| line.strip_prefix("pending: ").unwrap().to_owned());
        names.collect::<Vec<_>>()
    };

    let output = on(&database, &["migrate", "--check"]).await;
    assert_eq!(output.status.code(), Some(1));
    let all = names(&output.stdout);
    assert_eq!(all.len(), usize::try_from(newest()).unwrap());
    assert_eq!(all[0], "V1__grants_and_credentials");
    assert!(
        stderr(&output).contains("run `regrant migrate`"),
        "{output:?}"
    );
    assert_eq!(tables(&client).await, 0, "a check makes no table");

    migrate_to(&mut client, 3).await;
    let before = tables(&client).await;
    let output = on(&database, &["migrate", "--check"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(names(&output.stdout), all[3..]);
    assert_eq!(tables(&client).await, before);

    let output = on(&database, &["migrate"]).await;
    assert!(output.status.success(), "{output:?}");
    for _ in 0..2 {
        let output = on(&database, &["migrate", "--check"]).await;
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(output.stdout, b"the schema is up to date\n");
    }
}

#[tokio::test]
async fn a_schema_that_is_newer_or_was_changed_is_told_from_one_that_is_old() {
    let database = Database::create().await;
    let client = database.client().await;
    assert!(on(&database, &["migrate"]).await.status.success());
    let sql = "INSERT INTO refinery_schema_history 
         VALUES (99, 'what_is_to_come', '2026-11-22T12:00:00Z', '1')";
    client.batch_execute(sql).await.unwrap();

    for arguments in [&["migrate", "--check"][..], &["migrate"]] {
        let output = on(&database, arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = stderr(&output);
        for want in ["this version does not know", "V99__what_is_to_come"] {
            assert!(said.contains(want), "{arguments:?}: {said}");
        }
        assert!(output.stdout.is_empty(), "{output:?}");
    }

    let sql = "DELETE FROM refinery_schema_history WHERE version = 99;
         UPDATE refinery_schema_history SET checksum = '1' WHERE version = 2";
    client.batch_execute(sql).await.unwrap();
    let output = on(&database, &["migrate", "--check"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("V2__refresh_attempts"),
        "{output:?}"
    );
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_no_old_schema() {
    let url = "postgres://regrant@127.0.0.1:1/regrant";
    let variables = [("DATABASE_URL", url)];
    let output = crate::support::process::regrant(&["migrate", "--check"], &variables, "").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(
        stderr(&output).contains("could not be migrated"),
        "{output:?}"
    );
}

#[tokio::test]
async fn no_time_limit_of_a_session_holds_for_migrations() {
    let database = Database::create().await;
    let client = database.client().await;
    client.batch_execute(NO_LIMIT).await.unwrap();
    let limited = format!("{}?options=-c%20statement_timeout%3D9s", database.direct);
    let migrated = [("DATABASE_URL", limited.as_str())];
    let listening = [
        ("DATABASE_URL", database.url.as_str()),
        ("DATABASE_LISTEN_URL", &*limited),
    ];
    for variables in [&listening[..], &migrated] {
        let output = crate::support::process::regrant(&["migrate"], variables, "").await;
        assert!(output.status.success(), "{output:?}");
        let sql = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
        client.batch_execute(sql).await.unwrap();
    }
}

/// Refuses every change of the schema that might be cut off.
const NO_LIMIT: &str = "
CREATE SCHEMA watch;
CREATE FUNCTION watch.limits() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('statement_timeout') <> '0' AND tg_tag = 'CREATE TABLE' THEN
        RAISE 'a statement may take %', current_setting('statement_timeout');
    END IF;
END $$;
CREATE EVENT TRIGGER limits ON ddl_command_start EXECUTE FUNCTION watch.limits();
";

async fn tables(client: &Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    client.query_one(sql, &[]).await.unwrap().get(0)
}
