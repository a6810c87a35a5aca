//! A proxy in front of the gateway that can lose the answer of a token request
//! after the gateway has given it.
//!
//! It passes bytes on and touches none, so that the client and the gateway see
//! each other as they are.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

pub(super) struct Front {
    pub(super) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    gateway: OnceLock<String>,
    loses_next: AtomicBool,
    lost: AtomicUsize,
    token_requests: AtomicUsize,
}

impl Front {
    pub(super) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&theirs);
                // A connection that broke is what the two ends make of it.
                tokio::spawn(async move { shared.relay(client).await });
            }
        });
        Self { url, shared }
    }

    pub(super) fn leads_to(&self, gateway: &str) {
        let address = gateway.strip_prefix("http://").unwrap().to_owned();
        self.shared.gateway.set(address).unwrap();
    }

    /// The next answer to a token request is lost: the gateway has rotated, the
    /// client sees a reset.
    pub(super) fn lose_next_token_answer(&self) {
        self.shared.loses_next.store(true, Ordering::SeqCst);
    }

    pub(super) fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }

    pub(super) fn token_requests(&self) -> usize {
        self.shared.token_requests.load(Ordering::SeqCst)
    }
}

impl Shared {
    async fn relay(&self, client: TcpStream) -> io::Result<()> {
        let gateway = TcpStream::connect(self.gateway.get().unwrap()).await?;
        client.set_nodelay(true)?;
        gateway.set_nodelay(true)?;
        let is_doomed = AtomicBool::new(false);
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_gateway, mut to_gateway) = gateway.into_split();
        let there = async {
            let mut buffer = vec![0; 65_536];
            loop {
                let count = from_client.read(&mut buffer).await?;
                if count == 0 {
                    return to_gateway.shutdown().await;
                }
                let bytes = &buffer[..count];
                if is_token_request(bytes) {
                    self.token_requests.fetch_add(1, Ordering::SeqCst);
                    let is_lost = self.loses_next.swap(false, Ordering::SeqCst);
                    is_doomed.fetch_or(is_lost, Ordering::SeqCst);
                }
                to_gateway.write_all(bytes).await?;
            }
        };
        let back = async {
            let mut buffer = vec![0; 65_536];
            loop {
                let count = from_gateway.read(&mut buffer).await?;
                if is_doomed.load(Ordering::SeqCst) {
                    self.lost.fetch_add(1, Ordering::SeqCst);
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                if count == 0 {
                    return to_client.shutdown().await;
                }
                to_client.write_all(&buffer[..count]).await?;
            }
        };
        let relayed = tokio::try_join!(there, back);
        if is_doomed.load(Ordering::SeqCst) {
            let client = from_client.reunite(to_client).unwrap();
            // Without lingering, closing sends RST.
            client.set_zero_linger()?;
        }
        relayed.map(|_| ())
    }
}

/// Every client writes the head of a request in one piece.
fn is_token_request(bytes: &[u8]) -> bool {
    [&b"POST /oauth/token "[..], b"POST /token "]
        .iter()
        .any(|head| bytes.starts_with(head))
}
