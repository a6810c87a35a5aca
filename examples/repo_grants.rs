//! An MCP server whose tool `MINT_REPO_TOKEN` hands out GitHub tokens for one
//! repository, and the endpoints that redeem and revoke their refresh tokens.
//! Copy it to start your own.
//!
//! ```sh
//! cargo run --example repo_grants            # with a GitHub of its own
//! cargo run --example repo_grants -- demo    # takes the tour by itself
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
#[path = "repo_grants/client.rs"]
mod client;
#[path = "gateway/environment.rs"]
mod environment;
#[path = "repo_grants/github/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod github;
#[path = "gateway/program.rs"]
mod program;
#[path = "gateway/serving.rs"]
mod serving;
#[path = "repo_grants/settings.rs"]
mod settings;
#[path = "gateway/storage.rs"]
mod storage;
#[path = "repo_grants/tool.rs"]
mod tool;
#[path = "repo_grants/tour.rs"]
mod tour;
#[path = "repo_grants/world.rs"]
mod world;

use std::error::Error;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::process::ExitCode;

use axum::Router;
use axum::http::Uri;
use regrant::Regrant;
use regrant::secret::UpstreamAccessToken;
use tokio::net::TcpListener;

use crate::environment::Invalid;
use crate::settings::Settings;
use crate::tool::Tools;
use crate::world::World;

/// The tool and the two endpoints: all that hands out repository tokens.
fn server(
    regrant: &Regrant,
    caller: Option<UpstreamAccessToken>,
    public_url: &Uri,
) -> Result<Router, Box<dyn Error>> {
    let tools = Tools::new(regrant.repo_grants()?, caller);
    let host = public_url.host().unwrap_or_default();
    let base = public_url.path().trim_end_matches('/');
    let mut paths = vec![""];
    if !base.is_empty() {
        // A proxy in front may strip the path of the public URL, or not.
        paths.push(base);
    }

    let mut router = Router::new();
    for base in paths {
        router = router.merge(tools.clone().router(&format!("{base}/mcp"), host));
        for endpoint in ["token", "revoke"] {
            let path = format!("{base}/repo-grant/{endpoint}");
            router = router.route_service(&path, regrant.endpoints());
        }
    }
    Ok(router)
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(USAGE, serve, tour::take).await
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let running = Running::start(Settings::from_env()?, DEFAULT_LISTEN).await?;
    println!("listening on http://{}", running.address);
    if let Some(world) = &running.world {
        print_usage(&running.public_url, world);
    }
    running.until_terminated().await
}

/// A server that accepts connections.
pub(crate) struct Running {
    listener: TcpListener,
    router: Router,
    regrant: Regrant,
    pub(crate) address: SocketAddr,
    pub(crate) public_url: String,
    /// The GitHub of its own, if it has one.
    pub(crate) world: Option<World>,
}

impl Running {
    pub(crate) async fn start(
        settings: Settings,
        listen: SocketAddr,
    ) -> Result<Self, Box<dyn Error>> {
        let listener = serving::bind(settings.listen.unwrap_or(listen)).await?;
        let address = listener.local_addr()?;
        if settings.caller.is_some() && !address.ip().is_loopback() {
            eprintln!("GITHUB_CALLER_TOKEN: whoever reaches {address} mints with it");
        }
        let public_url = settings
            .public_url
            .unwrap_or_else(|| format!("http://{address}"));
        let (world, (app, policy)) = if let Some(real) = settings.repo_grants {
            (None, real)
        } else {
            let world = World::start().await?;
            let app = world.app()?;
            (Some(world), app)
        };
        let regrant = settings
            .storage
            .start(&public_url, settings.timings, |builder| {
                builder.repo_grants(app, policy)
            })
            .await?;
        let uri = public_url
            .parse()
            .map_err(|_error| Invalid::new("GATEWAY_PUBLIC_URL", "must be a URL"))?;

        Ok(Self {
            router: server(&regrant, settings.caller, &uri)?,
            listener,
            regrant,
            address,
            public_url,
            world,
        })
    }

    /// Serves until SIGTERM or SIGINT, then finishes what is under way.
    pub(crate) async fn until_terminated(self) -> Result<(), Box<dyn Error>> {
        Ok(serving::until_terminated(self.listener, self.router, &self.regrant).await?)
    }
}

fn print_usage(public_url: &str, world: &World) {
    let World {
        api_url, caller, ..
    } = world;
    println!(
        "
A GitHub of our own is at {api_url}. Mint a token as ada, a user of it:

  MINTED=$(curl -sH 'Authorization: Bearer {caller}' -H 'Content-Type: application/json' \
-H 'Accept: application/json, text/event-stream' -d '{}' {public_url}/mcp); echo \"$MINTED\"

Redeem the refresh token in it for another one, as often as you like.

  REFRESH=$(echo \"$MINTED\" | grep -o 'ghr_[A-Za-z0-9._-]*' | head -n 1)
  curl -d grant_type=refresh_token -d refresh_token=$REFRESH {public_url}/repo-grant/token

End the grant; then it redeems no more.

  curl -d token=$REFRESH {public_url}/repo-grant/revoke
",
        client::mint_body(),
    );
}

const USAGE: &str = "usage: repo_grants [demo]: settings are environment variables, see README";
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8788);
