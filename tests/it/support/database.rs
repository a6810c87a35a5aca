//! A database of its own for each test, on the server of `tests/run`.

use std::path::PathBuf;
use std::thread;

use regrant::store::postgres::PostgresStore;
use tokio_postgres::Client;
use tokio_postgres::NoTls;

/// A database that is dropped with this value.
pub(crate) struct Database {
    pub(crate) url: String,
    name: String,
}

impl Database {
    /// An empty one.
    pub(crate) async fn create() -> Self {
        let id = regrant::GrantId::random().unwrap();
        let name = format!("t_{id}");
        let admin = connect(&admin_url()).await;
        let sql = format!("CREATE DATABASE {name}");
        admin.batch_execute(&sql).await.unwrap();
        let (server, _database) = admin_url()
            .rsplit_once('/')
            .map(|(server, database)| (server.to_owned(), database.to_owned()))
            .expect("TEST_DATABASE_URL ends in /database");
        Self {
            url: format!("{server}/{name}"),
            name,
        }
    }

    /// A store on it, migrated.
    pub(crate) async fn store(&self) -> PostgresStore {
        let store = PostgresStore::connect(&self.url).unwrap();
        store.migrate().await.unwrap();
        store
    }

    /// A connection, for looking behind the store's back.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.url).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // The test's runtime may be on its way out.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { connect(&admin_url()).await.batch_execute(&sql).await })
        });
        if !thread::panicking() {
            dropped.join().unwrap().unwrap();
        }
    }
}

/// The path of a PostgreSQL client program.
pub(crate) fn program(name: &str) -> PathBuf {
    match std::env::var_os("PG_BIN") {
        Some(bin) => PathBuf::from(bin).join(name),
        None => PathBuf::from(name),
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("the PostgreSQL of TEST_DATABASE_URL");
    tokio::spawn(connection);
    client
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn admin_url() -> String {
    std::env::var("TEST_DATABASE_URL").expect(
        "TEST_DATABASE_URL is not set: run the tests with `tests/run`, which starts a PostgreSQL, \
         or set it to a server on which databases may be created",
    )
}
