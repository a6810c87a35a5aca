//! The servers of one connection string, and how one of them is connected to.
//!
//! tokio-postgres bounds only the TCP connect, so with a server that accepts
//! and then says nothing the next host would never be tried. Here each host has
//! its own time for the whole handshake, and the last good one comes first.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use deadpool_postgres::Connect;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use futures_util::stream::BoxStream;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::task::JoinHandle;
use tokio_postgres::AsyncMessage;
use tokio_postgres::Client;
use tokio_postgres::Config;
use tokio_postgres::NoTls;
use tokio_postgres::Socket;
use tokio_postgres::config::Host as Address;
use tokio_postgres::config::LoadBalanceHosts;
use tokio_postgres::config::SslMode;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::tls::MakeTlsConnect;

use super::connection_string::ConnectionString;
use super::connection_string::TlsMode;
use super::connection_string::refuse;
use super::tls;
use super::tls::Connector;
use super::trust::Trust;
use crate::BoxError;
use crate::error::ConfigError;

/// What the server says; ends with the connection.
pub(super) type Messages = BoxStream<'static, Result<AsyncMessage, tokio_postgres::Error>>;

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

/// One server, with the settings for it alone.
#[derive(Clone)]
struct Host {
    name: String,
    config: Config,
    has_tls: bool,
}

impl Host {
    fn of(all: &Config, index: usize, count: usize, mode: TlsMode) -> Result<Self, ConfigError> {
        let (names, addresses) = (all.get_hosts(), all.get_hostaddrs());
        let differ = |given: usize| given > 1 && given != count;
        if differ(all.get_ports().len())
            || (!names.is_empty() && !addresses.is_empty() && names.len() != addresses.len())
        {
            return Err(refuse(
                "has another number of ports or addresses than hosts",
            ));
        }
        let port = match all.get_ports() {
            [port] => *port,
            ports => ports.get(index).copied().unwrap_or(DEFAULT_PORT),
        };
        let address = addresses.get(index);
        // A certificate may be for an address.
        let by_address = || address.map(|address| Address::Tcp(address.to_string()));
        let host = names.get(index).cloned().or_else(by_address);
        let Some(host) = host else {
            return Err(refuse("names no host"));
        };

        let mut config = settings(all);
        config.port(port);
        if let Some(&address) = address {
            config.hostaddr(address);
        }
        let (name, is_socket, is_local) = match &host {
            Address::Tcp(name) => {
                config.host(name);
                let is_local = match address {
                    Some(address) => address.is_loopback(),
                    None => is_loopback(name),
                };
                (name.clone(), false, is_local)
            }
            Address::Unix(directory) => {
                config.host_path(directory);
                (directory.display().to_string(), true, true)
            }
        };
        let has_tls = match mode {
            // As PostgreSQL's own clients do: a socket never leaves the machine.
            _ if is_socket => false,
            TlsMode::Unsaid => !is_local,
            TlsMode::Disable => false,
            TlsMode::VerifyFull => true,
        };
        config.ssl_mode(if has_tls {
            SslMode::Require
        } else {
            SslMode::Disable
        });
        Ok(Self {
            name: format!("{name}:{port}"),
            config,
            has_tls,
        })
    }

    #[cfg_attr(
        not(feature = "rustls"),
        expect(clippy::clone_on_copy, reason = "that of TLS is not `Copy`")
    )]
    async fn handshake(
        &self,
        tls: Option<&Connector>,
    ) -> Result<(Client, Messages), tokio_postgres::Error> {
        match tls.filter(|_| self.has_tls) {
            Some(tls) => self.handshake_with(tls.clone()).boxed().await,
            None => self.handshake_with(NoTls).boxed().await,
        }
    }

    async fn handshake_with<T>(&self, tls: T) -> Result<(Client, Messages), tokio_postgres::Error>
    where
        T: MakeTlsConnect<Socket>,
        T::Stream: Send + 'static,
    {
        let (client, mut connection) = self.config.connect(tls).await?;
        let mut is_over = false;
        let messages = stream::poll_fn(move |context| {
            if is_over {
                return Poll::Ready(None);
            }
            let message = connection.poll_message(context);
            is_over = matches!(message, Poll::Ready(None | Some(Err(_))));
            message
        });
        Ok((client, messages.boxed()))
    }
}

/// All of `all` but its hosts.
fn settings(all: &Config) -> Config {
    let mut config = Config::new();
    if let Some(user) = all.get_user() {
        config.user(user);
    }
    if let Some(password) = all.get_password() {
        config.password(password);
    }
    if let Some(name) = all.get_dbname() {
        config.dbname(name);
    }
    if let Some(options) = all.get_options() {
        config.options(options);
    }
    if let Some(name) = all.get_application_name() {
        config.application_name(name);
    }
    if let Some(&timeout) = all.get_tcp_user_timeout() {
        config.tcp_user_timeout(timeout);
    }
    config.keepalives(all.get_keepalives());
    config.keepalives_idle(all.get_keepalives_idle());
    if let Some(interval) = all.get_keepalives_interval() {
        config.keepalives_interval(interval);
    }
    if let Some(retries) = all.get_keepalives_retries() {
        config.keepalives_retries(retries);
    }
    config.ssl_negotiation(all.get_ssl_negotiation());
    config.target_session_attrs(all.get_target_session_attrs());
    config.channel_binding(all.get_channel_binding());
    config.load_balance_hosts(all.get_load_balance_hosts());
    config
}

fn is_loopback(name: &str) -> bool {
    name == "localhost"
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Why no host could be connected to: what the last one said.
#[derive(Debug)]
pub(super) struct ConnectError {
    reason: String,
    source: Option<tokio_postgres::Error>,
}

impl ConnectError {
    fn of(host: &Host, error: tokio_postgres::Error) -> Self {
        let has_no_tls = host.has_tls
            && error
                .source()
                .is_some_and(|source| source.to_string() == HAS_NO_TLS);
        let name = &host.name;
        let reason = if has_no_tls {
            format!(
                "the database host {name} has no TLS: set it up there, or write sslmode=disable \
                 on a network that you trust"
            )
        } else {
            format!("the database host {name} cannot be used")
        };
        Self {
            reason,
            source: Some(error),
        }
    }

    fn late(host: &Host, limit: Duration) -> Self {
        let name = &host.name;
        Self {
            reason: format!("the database host {name} did not finish a handshake in {limit:?}"),
            source: None,
        }
    }

    fn nowhere() -> Self {
        Self {
            reason: "there is no database host".to_owned(),
            source: None,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
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
const DEFAULT_PORT: u16 = 5432;
/// tokio-postgres' words for the server's `N`.
const HAS_NO_TLS: &str = "server does not support TLS";
