//! The servers of one connection string, and how one of them is connected to.
//!
//! tokio-postgres bounds only the TCP connect, so with a server that accepts
//! and then says nothing the next host would never be tried. Here each host has
//! its own time for the whole handshake, and the last good one comes first.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use deadpool_postgres::Connect;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::Config;
use tokio_postgres::NoTls;
use tokio_postgres::config::LoadBalanceHosts;
use tokio_postgres::config::SslMode;
use tokio_postgres::config::TargetSessionAttrs;

use super::connection_string::ConnectionString;
use super::connection_string::refuse;
use super::host::ConnectError;
use super::host::Host;
use super::host::Messages;
use super::tls;
use super::tls::Connector;
use super::trust::Trust;
use crate::BoxError;
use crate::error::ConfigError;

/// The servers of a connection string. Cheap to clone; clones share what they
/// know about the servers.
#[derive(Clone)]
pub(super) struct Hosts {
    all: Arc<[Host]>,
    tls: Option<Connector>,
    /// How long one handshake may take.
    limit: Duration,
    trust: Arc<Trust>,
}

impl Hosts {
    /// Reads the files of certificates that the string names; else no I/O.
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        let string = ConnectionString::parse(url)?;
        let config = string.config;
        let count = config.get_hosts().len().max(config.get_hostaddrs().len());
        if count == 0 {
            return Err(refuse("names no host"));
        }
        let limit = match config.get_connect_timeout() {
            Some(&limit) => limit,
            None if count == 1 => HANDSHAKE,
            None => HANDSHAKE_OF_SEVERAL,
        };
        let mut hosts = (0..count)
            .map(|index| Host::of(&config, index, count, string.tls.mode))
            .collect::<Result<Vec<_>, _>>()?;
        for host in &mut hosts {
            // A name with several addresses: a second one gets its turn.
            host.config.connect_timeout(limit / 2);
            if count > 1 && !string.has_target {
                // A standby is no use.
                host.config
                    .target_session_attrs(TargetSessionAttrs::ReadWrite);
            }
        }
        if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            fastrand::shuffle(&mut hosts);
        }
        let needs_tls = hosts.iter().any(|host| host.has_tls);
        let tls = needs_tls.then(|| tls::connector(&string.tls)).transpose()?;
        Ok(Self {
            all: hosts.into(),
            tls,
            limit,
            trust: Arc::new(Trust::new(count)),
        })
    }

    /// The same servers, with sessions that have these start-up options besides.
    #[cfg_attr(
        not(feature = "rustls"),
        expect(clippy::clone_on_copy, reason = "that of TLS is not `Copy`")
    )]
    pub(super) fn with_options(&self, options: &str) -> Self {
        let mut hosts = self.all.to_vec();
        for host in &mut hosts {
            let given = host.config.get_options();
            let all = given.map_or_else(
                || options.to_owned(),
                // What the operator wrote comes last and wins.
                |given| format!("{options} {given}"),
            );
            host.config.options(all);
        }
        Self {
            all: hosts.into(),
            tls: self.tls.clone(),
            limit: self.limit,
            trust: Arc::clone(&self.trust),
        }
    }

    /// How long [`connect_raw`](Self::connect_raw) may take.
    pub(super) fn limit(&self) -> Duration {
        let hosts = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.limit.saturating_mul(hosts)
    }

    pub(super) fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// A connection to the first host that is as it should be, and what it
    /// says: polling that is what makes the client work. The error is the one of
    /// the host tried last.
    pub(super) async fn connect_raw(&self) -> Result<(Client, Messages), BoxError> {
        self.handshake().await.map_err(Into::into)
    }

    /// A connection that is polled by a task.
    pub(super) async fn connect_polled(&self) -> Result<(Client, JoinHandle<()>), ConnectError> {
        let (client, mut messages) = self.handshake().await?;
        let polled = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                if let Err(error) = message {
                    tracing::debug!(error = &error as &dyn Error, "a connection broke");
                }
            }
        });
        Ok((client, polled))
    }

    async fn handshake(&self) -> Result<(Client, Messages), ConnectError> {
        let mut last = None;
        for index in self.trust.order() {
            let Some(host) = self.all.get(index) else {
                continue;
            };
            let attempt = self.trust.attempt(index);
            match tokio::time::timeout(self.limit, host.handshake(self.tls.as_ref())).await {
                Ok(Ok(connected)) => {
                    attempt.succeeded();
                    return Ok(connected);
                }
                Ok(Err(error)) => last = Some(ConnectError::of(host, error)),
                Err(_elapsed) => last = Some(ConnectError::late(host, self.limit)),
            }
            tracing::debug!(error = ?last, "a database host cannot be used");
        }
        Err(last.unwrap_or_else(ConnectError::nowhere))
    }
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.all.iter().map(|host| &host.name).collect();
        f.debug_struct("Hosts")
            .field("hosts", &names)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// For the pool, which knows no errors but those of tokio-postgres.
impl Connect for Hosts {
    fn connect(
        &self,
        _config: &Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        async {
            match self.connect_polled().await {
                Ok(connected) => Ok(connected),
                Err(error) => Err(broken(io::Error::other(error)).await),
            }
        }
        .boxed()
    }
}

/// The error of a connection that breaks with `error`: tokio-postgres has no
/// other way to make one.
async fn broken(error: io::Error) -> tokio_postgres::Error {
    let mut config = Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    match config.connect_raw(Broken(Some(error)), NoTls).await {
        Ok(_impossible) => tokio_postgres::Error::__private_api_timeout(),
        Err(error) => error,
    }
}

struct Broken(Option<io::Error>);

impl Broken {
    fn poll<T>(&mut self) -> Poll<io::Result<T>> {
        let error = self.0.take();
        Poll::Ready(Err(
            error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
        ))
    }
}

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll()
    }
}

impl AsyncWrite for Broken {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        _bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll()
    }

    fn poll_flush(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll()
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll()
    }
}

const HANDSHAKE: Duration = Duration::from_secs(3);
const HANDSHAKE_OF_SEVERAL: Duration = Duration::from_secs(1);
