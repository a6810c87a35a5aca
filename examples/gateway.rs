//! A gateway for MCP: a reverse proxy whose upstream credentials refresh
//! themselves. Copy it to start your own.
//!
//! ```sh
//! cargo run --example gateway            # with a demo provider and MCP server
//! cargo run --example gateway -- demo    # takes the tour by itself
//! ```
//!
//! The settings are environment variables; README lists them.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program speaks to its user"
)]

#[path = "repo_grants/app.rs"]
mod app;
#[path = "gateway/environment.rs"]
mod environment;
#[path = "gateway/program.rs"]
mod program;
#[path = "gateway/provider.rs"]
mod provider;
#[path = "gateway/proxy.rs"]
mod proxy;
#[path = "gateway/serving.rs"]
mod serving;
#[path = "gateway/settings.rs"]
mod settings;
#[path = "gateway/storage.rs"]
mod storage;
#[path = "gateway/tour.rs"]
mod tour;
#[path = "gateway/upstream.rs"]
mod upstream;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::http::Uri;
use axum::routing::any;
use regrant::Issued;
use regrant::Login;
use regrant::Regrant;
use regrant::error::ConfigError;
use regrant::provider::Expiry;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use tokio::net::TcpListener;

use crate::environment::Invalid;
use crate::environment::chain;
use crate::proxy::Proxy;
use crate::settings::Settings;
use crate::settings::Upstream;

/// The layer and the proxy: all that makes a gateway of an axum router.
fn gateway(regrant: &Regrant, upstream: Uri, base: &str) -> Result<Router, Box<dyn Error>> {
    let refresh = regrant.layer(PROVIDER)?.resource_path("/mcp")?;
    let mut router = Router::new().route("/mcp", any(proxy::forward));
    if !base.is_empty() {
        // A proxy in front may strip the path of the public URL, or not.
        router = router.route(&format!("{base}/mcp"), any(proxy::forward));
    }

    Ok(router.with_state(Proxy::new(upstream)).layer(refresh))
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(USAGE, serve, tour::take).await
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let settings = Settings::from_env()?;
    let running = Running::start(settings, DEFAULT_LISTEN).await?;
    println!("listening on http://{}", running.address);
    if let Some(demo) = &running.demo {
        demo.print_usage(&running.public_url, &demo.log_in(&running.regrant).await?);
    }
    running.until_terminated().await
}

/// A gateway that accepts connections.
pub(crate) struct Running {
    listener: TcpListener,
    router: Router,
    pub(crate) address: SocketAddr,
    pub(crate) public_url: String,
    pub(crate) regrant: Regrant,
    pub(crate) demo: Option<Demo>,
}

impl Running {
    pub(crate) async fn start(
        settings: Settings,
        listen: SocketAddr,
    ) -> Result<Self, Box<dyn Error>> {
        let listener = serving::bind(settings.listen.unwrap_or(listen)).await?;
        let address = listener.local_addr()?;
        let public_url = settings
            .public_url
            .clone()
            .unwrap_or_else(|| format!("http://{address}"));

        let (upstream, provider, demo) = if let Some(upstream) = &settings.upstream {
            let provider = provider_of(upstream, settings.timings.provider_timeout)
                .map_err(|error| Invalid::new("PROVIDER_TOKEN_URL", chain(&error)))?;
            (upstream.url.clone(), provider, None)
        } else {
            let demo = Demo::start().await?;
            let provider = OAuth2Provider::builder(&demo.token_url, "demo-gateway")
                .revocation_endpoint(&demo.revocation_url)
                .build()?;
            (demo.mcp_url.parse()?, provider, Some(demo))
        };
        let regrant = start_regrant(settings, &public_url, provider).await?;

        let base = public_url
            .parse::<Uri>()?
            .path()
            .trim_end_matches('/')
            .to_owned();

        Ok(Self {
            router: gateway(&regrant, upstream, &base)?,
            listener,
            address,
            public_url,
            regrant,
            demo,
        })
    }

    /// Serves until SIGTERM or SIGINT, then finishes what is under way.
    pub(crate) async fn until_terminated(self) -> Result<(), Box<dyn Error>> {
        Ok(serving::until_terminated(self.listener, self.router, &self.regrant).await?)
    }
}

fn provider_of(upstream: &Upstream, timeout: Duration) -> Result<OAuth2Provider, ConfigError> {
    let mut provider = OAuth2Provider::builder(&upstream.token_url, &upstream.client_id)
        .client_authentication(upstream.client_authentication.clone())
        .timeout(timeout);
    if let Some(scope) = &upstream.scope {
        provider = provider.scope(scope);
    }
    if let Some(url) = &upstream.revocation_url {
        provider = provider.revocation_endpoint(url);
    }
    provider.build()
}

async fn start_regrant(
    settings: Settings,
    public_url: &str,
    provider: OAuth2Provider,
) -> Result<Regrant, Invalid> {
    let storage = settings.storage;
    storage
        .start(public_url, settings.timings, |builder| {
            let mut builder = builder
                .provider(PROVIDER, provider)
                .lifetimes(settings.lifetimes);
            if let Some(url) = settings.authorization_endpoint {
                builder = builder.authorization_endpoint(url);
            }
            // The layer serves their endpoints too.
            if let Some((app, policy)) = settings.repo_grants {
                builder = builder.repo_grants(app, policy);
            }
            builder
        })
        .await
}

/// A provider and an MCP server on loopback.
pub(crate) struct Demo {
    pub(crate) provider: provider::Provider,
    pub(crate) upstream: upstream::Upstream,
    provider_url: String,
    token_url: String,
    revocation_url: String,
    mcp_url: String,
}

impl Demo {
    async fn start() -> Result<Self, Box<dyn Error>> {
        let provider = provider::Provider::new(DEMO_LIFETIME);
        let upstream = upstream::Upstream::new(provider.clone());
        let provider_url = spawn(provider.router()).await?;
        Ok(Self {
            token_url: format!("{provider_url}/token"),
            revocation_url: format!("{provider_url}/revoke"),
            mcp_url: format!("{}/mcp", spawn(upstream.router()).await?),
            provider_url,
            provider,
            upstream,
        })
    }

    /// What a gateway does when its own login flow has come to an end.
    pub(crate) async fn log_in(&self, regrant: &Regrant) -> Result<Issued, Box<dyn Error>> {
        let tokens = self.provider.log_in("ada");
        let login = Login::new(PROVIDER, "ada", UpstreamAccessToken::new(tokens.access))
            .refresh_token(UpstreamRefreshToken::new(tokens.refresh))
            .expiry(Expiry::After(Duration::from_secs(tokens.expires_in)));
        Ok(regrant.issue(login).await?)
    }

    fn print_usage(&self, public_url: &str, issued: &Issued) {
        let access = issued.access_token.expose();
        let refresh = issued.refresh_token.expose();
        println!(
            "
A demo login for you. Its upstream access tokens live {} s:

  access token   {access}
  refresh token  {refresh}

Call a tool; wait, and call again: the upstream token has expired, you do not notice.

  {}

Have the provider revoke its access tokens early, then call the tool again.

  curl -X POST {}/revoke-access-tokens

Rotate the pair; then end the login.

  curl -d grant_type=refresh_token -d refresh_token={refresh} {public_url}/oauth/token
  curl -d token={refresh} {public_url}/oauth/revoke
",
            DEMO_LIFETIME.as_secs(),
            tour::curl(public_url, access),
            self.provider_url,
        );
    }
}

async fn spawn(router: Router) -> Result<String, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}"))
}

const USAGE: &str = "usage: gateway [demo]: settings are environment variables, see README";
const PROVIDER: &str = "default";
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8787);
const DEMO_LIFETIME: Duration = Duration::from_secs(6);
