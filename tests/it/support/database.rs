//! A database of its own for each test, on the server of `tests/run`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;

use regrant::store::postgres::PostgresStore;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::Config;
use tokio_postgres::NoTls;
use tokio_postgres::config::Host;

/// A database that is dropped with this value.
pub(crate) struct Database {
    /// As a gateway is given it: through the pooler, if there is one.
    pub(crate) url: String,
    /// Without it.
    pub(crate) direct: String,
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
        let direct = named(&admin_url(), &name);
        Self {
            url: pooler_url().map_or_else(|| direct.clone(), |url| named(&url, &name)),
            direct,
            name,
        }
    }

    /// A store on it, migrated.
    pub(crate) async fn store(&self) -> PostgresStore {
        let store = self.connect();
        store.migrate().await.unwrap();
        store
    }

    /// A store on it as it is.
    pub(crate) fn connect(&self) -> PostgresStore {
        let store = PostgresStore::connect(&self.url).unwrap();
        store.listen_at(&self.direct).unwrap()
    }

    /// A connection, for looking behind the store's back.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.direct).await
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

/// Stands between a store and the server, and can cut them off.
#[derive(Clone)]
pub(crate) struct Outage {
    pub(crate) url: String,
    is_up: watch::Sender<bool>,
    refused: Arc<AtomicUsize>,
}

impl Outage {
    /// A proxy to this database, up at first.
    pub(crate) async fn before(database: &Database) -> Self {
        let server: Config = database.url.parse().unwrap();
        let user = server.get_user().unwrap_or("postgres").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_up, refused) = (watch::Sender::new(true), Arc::new(AtomicUsize::new(0)));
        let (up, count) = (is_up.clone(), Arc::clone(&refused));
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *up.borrow() {
                    tokio::spawn(relay(client, server.clone(), up.subscribe()));
                } else {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self {
            url: format!("postgres://{user}@{address}/{}", database.name),
            is_up,
            refused,
        }
    }

    /// Breaks every connection and refuses new ones.
    pub(crate) fn begin(&self) {
        self.refused.store(0, Ordering::SeqCst);
        self.is_up.send_replace(false);
    }

    pub(crate) fn end(&self) {
        self.is_up.send_replace(true);
    }

    /// Waits until somebody has been refused.
    pub(crate) async fn was_noticed(&self) {
        while self.refused.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn relay(mut client: TcpStream, server: Config, mut up: watch::Receiver<bool>) {
    let port = server.get_ports().first().copied().unwrap_or(5432);
    let relayed = async {
        match &server.get_hosts()[0] {
            Host::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{port}"));
                let mut server = UnixStream::connect(path).await.unwrap();
                copy_bidirectional(&mut client, &mut server).await
            }
            Host::Tcp(host) => {
                let mut server = TcpStream::connect((host.as_str(), port)).await.unwrap();
                copy_bidirectional(&mut client, &mut server).await
            }
        }
    };
    tokio::select! {
        _ended = relayed => {}
        _down = up.wait_for(|up| !up) => {}
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

/// The same server's database of this name.
fn named(url: &str, name: &str) -> String {
    let (server, _database) = url.rsplit_once('/').expect("a URL that ends in /database");
    format!("{server}/{name}")
}

/// The address without the pooler, of one that leads through it.
pub(crate) fn without_pooler(url: &str) -> Option<String> {
    let (server, database) = url.rsplit_once('/')?;
    let pooler = pooler_url()?;
    let (pooler, _database) = pooler.rsplit_once('/')?;
    (server == pooler).then(|| named(&admin_url(), database))
}

/// The pooler before the server of [`admin_url`], if the tests are to go through
/// one.
#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn pooler_url() -> Option<String> {
    std::env::var("TEST_POOLER_URL").ok()
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn admin_url() -> String {
    std::env::var("TEST_DATABASE_URL").expect(
        "TEST_DATABASE_URL is not set: run the tests with `tests/run`, which starts a PostgreSQL, \
         or set it to a server on which databases may be created",
    )
}
