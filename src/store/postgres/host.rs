//! One server of a connection string: its settings, whether it is spoken to with
//! TLS, and the handshake.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream;
use futures_util::stream::BoxStream;
use tokio_postgres::AsyncMessage;
use tokio_postgres::Client;
use tokio_postgres::Config;
use tokio_postgres::NoTls;
use tokio_postgres::Socket;
use tokio_postgres::config::Host as Address;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::MakeTlsConnect;

use super::connection_string::TlsMode;
use super::connection_string::refuse;
use super::tls::Connector;
use crate::error::ConfigError;

/// What the server says; ends with the connection.
pub(super) type Messages = BoxStream<'static, Result<AsyncMessage, tokio_postgres::Error>>;

/// One server, with the settings for it alone.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) config: Config,
    pub(super) has_tls: bool,
}

impl Host {
    pub(super) fn of(
        all: &Config,
        index: usize,
        count: usize,
        mode: TlsMode,
    ) -> Result<Self, ConfigError> {
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
    pub(super) async fn handshake(
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
    pub(super) fn of(host: &Host, error: tokio_postgres::Error) -> Self {
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

    pub(super) fn late(host: &Host, limit: Duration) -> Self {
        let name = &host.name;
        Self {
            reason: format!("the database host {name} did not finish a handshake in {limit:?}"),
            source: None,
        }
    }

    pub(super) fn nowhere() -> Self {
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

const DEFAULT_PORT: u16 = 5432;
/// tokio-postgres' words for the server's `N`.
const HAS_NO_TLS: &str = "server does not support TLS";
