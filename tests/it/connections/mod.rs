//! Connections to PostgreSQL that have to survive production: hosts that hang,
//! freeze and change roles, crowds of readers, TLS.

mod hosts;
mod reads;
mod retries;
mod roles;
mod tls;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::support::database::Database;

/// What a host does with those who connect to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manner {
    /// Passes everything on to the database.
    Works,
    /// Accepts, and says nothing more; nor do the connections it has.
    Frozen,
    /// Accepts and hangs up.
    Resets,
}

/// A host of a database, at a port of its own.
struct Front {
    address: String,
    manner: watch::Sender<Manner>,
    accepted: Arc<AtomicUsize>,
}

impl Front {
    /// Two, for the hosts of one connection string.
    async fn two(database: &Database, manners: [Manner; 2]) -> [Self; 2] {
        let [first, second] = manners;
        [
            Self::before(database, first).await,
            Self::before(database, second).await,
        ]
    }

    async fn before(database: &Database, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server: Config = database.url.parse().unwrap();
        let Host::Unix(directory) = &server.get_hosts()[0] else {
            panic!("the tests' server is at a socket");
        };
        let port = server.get_ports().first().copied().unwrap_or(5432);
        let socket = directory.join(format!(".s.PGSQL.{port}"));
        let manner = watch::Sender::new(manner);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (manners, count) = (manner.clone(), Arc::clone(&accepted));
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                if *manners.borrow() == Manner::Resets {
                    continue;
                }
                let (from_client, to_client) = client.into_split();
                let server = UnixStream::connect(&socket).await.unwrap();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, manners.subscribe()));
                tokio::spawn(pass(from_server, to_client, manners.subscribe()));
            }
        });
        Self {
            address,
            manner,
            accepted,
        }
    }

    fn becomes(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// A connection string of these hosts, in this order.
fn url(database: &Database, fronts: &[&Front]) -> String {
    let hosts: Vec<_> = fronts.iter().map(|front| front.address.as_str()).collect();
    let config: Config = database.url.parse().unwrap();
    let (user, name) = (config.get_user().unwrap(), config.get_dbname().unwrap());
    format!("postgres://{user}@{}/{name}", hosts.join(","))
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut manner: watch::Receiver<Manner>,
) {
    let mut bytes = [0; 8_192];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        let thaws = manner.wait_for(|manner| *manner != Manner::Frozen);
        let is_over = thaws.await.is_err() || read == 0;
        if is_over || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
