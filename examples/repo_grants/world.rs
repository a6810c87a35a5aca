//! A GitHub on this machine: one App, installed for acme, and a user of it.

use std::error::Error;
use std::sync::Arc;

use regrant::clock::SystemClock;
use regrant::provider::github::GitHubApp;
use regrant::secret::PrivateKey;
use regrant::settings::RepoGrantPolicy;

use crate::github::AppKey;
use crate::github::GitHub;

pub(crate) struct World {
    pub(crate) github: GitHub,
    pub(crate) api_url: String,
    /// Ada's own token, who can reach both repositories.
    pub(crate) caller: String,
}

impl World {
    pub(crate) async fn start() -> Result<Self, Box<dyn Error>> {
        let key = AppKey::shared()?;
        let github = GitHub::new(APP_ID, key.public_der(), Arc::new(SystemClock));
        let world = Self {
            api_url: github.start().await?,
            caller: github.log_in("ada")?,
            github,
        };
        world.install();
        Ok(world)
    }

    /// Installs the App for acme.
    pub(crate) fn install(&self) {
        self.github.install(INSTALLATION, OWNER, GRANTED);
        for (id, name) in [(1, REPOSITORY), (2, OTHER_REPOSITORY)] {
            self.github.add_repository(INSTALLATION, id, name);
        }
        self.github.give_access("ada", INSTALLATION, &[1, 2]);
    }

    /// What repo grants are minted by.
    pub(crate) fn app(&self) -> Result<(GitHubApp, RepoGrantPolicy), Box<dyn Error>> {
        let key = PrivateKey::new(AppKey::shared()?.pkcs1_pem());
        let app = GitHubApp::builder(APP_ID, key).base_url(&self.api_url);
        Ok((app.build()?, RepoGrantPolicy::new(self.github.client_id())))
    }
}

pub(crate) const INSTALLATION: u64 = 42;
pub(crate) const OWNER: &str = "acme";
pub(crate) const REPOSITORY: &str = "web";
pub(crate) const OTHER_REPOSITORY: &str = "vault";
const APP_ID: &str = "123456";
const GRANTED: &[(&str, &str)] = &[
    ("contents", "write"),
    ("pull_requests", "write"),
    ("issues", "write"),
    ("checks", "read"),
];
