//! Settings, all from the environment.

use std::net::SocketAddr;

use regrant::provider::github::GitHubApp;
use regrant::secret::UpstreamAccessToken;
use regrant::settings::RepoGrantPolicy;
use regrant::settings::Timings;

use crate::app;
use crate::environment::Invalid;
use crate::environment::parsed;
use crate::environment::text;
use crate::storage::Storage;

pub(crate) struct Settings {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) public_url: Option<String>,
    pub(crate) storage: Storage,
    pub(crate) timings: Timings,
    /// `None`: start a GitHub of our own.
    pub(crate) repo_grants: Option<(GitHubApp, RepoGrantPolicy)>,
    /// Who is calling where a request does not say.
    pub(crate) caller: Option<UpstreamAccessToken>,
}

impl Settings {
    pub(crate) fn from_env() -> Result<Self, Invalid> {
        let timings = Timings::default();
        let repo_grants = app::from_env(timings.provider_timeout)?;
        let caller = text("GITHUB_CALLER_TOKEN")?.map(UpstreamAccessToken::new);
        if caller.is_some() && repo_grants.is_none() {
            return Err(Invalid::new(
                "GITHUB_APP_ID",
                "is required with GITHUB_CALLER_TOKEN",
            ));
        }
        Ok(Self {
            listen: parsed("GATEWAY_LISTEN", "an address such as 127.0.0.1:8788")?,
            public_url: text("GATEWAY_PUBLIC_URL")?,
            storage: Storage::from_env()?,
            timings,
            repo_grants,
            caller,
        })
    }
}
