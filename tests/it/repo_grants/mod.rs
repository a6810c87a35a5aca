//! Repo grants: reference A, one row each, against a GitHub that checks the
//! App's JWT and holds tokens to their installation, repositories and
//! permissions.

mod clocks;
mod crashes;
mod crowd;
mod expiry;
mod limits;
mod mint;
mod misconfigured;
mod proxied;
mod redeem;
mod replicas;
mod revoke;
mod secrecy;
mod stored;
mod turns;
mod widening;

use std::sync::Arc;
use std::time::Duration;

use regrant::Endpoints;
use regrant::Regrant;
use regrant::RegrantBuilder;
use regrant::clock::ManualClock;
use regrant::provider::github::GitHubApp;
use regrant::provider::github::GitHubAppBuilder;
use regrant::repo_grants::MintRequest;
use regrant::repo_grants::Minted;
use regrant::seal::Keyring;
use regrant::secret::PrivateKey;
use regrant::secret::UpstreamAccessToken;
use regrant::settings::RepoGrantPolicy;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;
use tower::ServiceExt as _;

use crate::github::AppKey;
use crate::github::Endpoint;
use crate::github::GitHub;
use crate::support::Answer;
use crate::support::KEYS;
use crate::support::form;

/// A GitHub with one App, installed for acme, whose repository `web` ada uses.
pub(crate) struct World {
    pub(crate) github: GitHub,
    pub(crate) api_url: String,
    pub(crate) clock: ManualClock,
    /// Ada's own token.
    pub(crate) caller: UpstreamAccessToken,
}

impl World {
    pub(crate) async fn start() -> Self {
        let clock = ManualClock::starting_now();
        let key = AppKey::shared().unwrap();
        let github = GitHub::new(APP_ID, key.public_der(), Arc::new(clock.clone()));
        github.install(INSTALLATION, "acme", GRANTED);
        github.add_repository(INSTALLATION, REPOSITORY, "web");
        github.give_access("ada", INSTALLATION, &[REPOSITORY]);
        Self {
            api_url: github.start().await.unwrap(),
            caller: UpstreamAccessToken::new(github.log_in("ada").unwrap()),
            github,
            clock,
        }
    }

    pub(crate) fn app(&self) -> GitHubAppBuilder {
        let key = AppKey::shared().unwrap();
        GitHubApp::builder(APP_ID, PrivateKey::new(key.pkcs1_pem()))
            .base_url(&self.api_url)
            .with_clock(self.clock.clone())
    }

    /// A gateway without repo grants.
    pub(crate) fn bare(&self, store: impl Store) -> RegrantBuilder {
        let keyring = Keyring::parse(KEYS).unwrap();
        Regrant::builder("https://gateway.example/", store, keyring).with_clock(self.clock.clone())
    }

    pub(crate) fn builder(&self, store: impl Store) -> RegrantBuilder {
        let app = self.app().build().unwrap();
        self.bare(store)
            .repo_grants(app, RepoGrantPolicy::new(CLIENT_ID))
    }

    pub(crate) async fn regrant(&self) -> Regrant {
        self.builder(MemoryStore::new()).start().await.unwrap()
    }

    /// A grant for ada.
    pub(crate) async fn mint(&self, regrant: &Regrant) -> Minted {
        let grants = regrant.repo_grants().unwrap();
        grants.mint(&web(), Some(&self.caller)).await.unwrap()
    }

    /// How often GitHub was asked for a token.
    pub(crate) fn mints_asked(&self) -> usize {
        self.github.calls_of(Endpoint::Mint).len()
    }
}

/// Ada's repository.
pub(crate) fn web() -> MintRequest {
    MintRequest::new(INSTALLATION, "acme", "web")
}

pub(crate) async fn post(endpoints: Endpoints, path: &str, pairs: &[(&str, &str)]) -> Answer {
    Answer::of(endpoints.oneshot(form(path, pairs)).await.unwrap()).await
}

pub(crate) async fn redeem(regrant: &Regrant, token: &str) -> Answer {
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", token)];
    post(regrant.endpoints(), TOKEN, &pairs).await
}

pub(crate) async fn revoke(regrant: &Regrant, token: &str) -> Answer {
    post(regrant.endpoints(), REVOKE, &[("token", token)]).await
}

pub(crate) const APP_ID: &str = "123456";
pub(crate) const CLIENT_ID: &str = "Iv1.abc";
pub(crate) const INSTALLATION: u64 = 42;
pub(crate) const REPOSITORY: u64 = 999;
pub(crate) const GRANTED: &[(&str, &str)] = &[
    ("contents", "write"),
    ("pull_requests", "write"),
    ("issues", "write"),
    ("checks", "read"),
];
pub(crate) const TOKEN: &str = "/repo-grant/token";
pub(crate) const REVOKE: &str = "/repo-grant/revoke";
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3_600);
