//! The settings of an App, and what they must be for it to work.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::ClientBuilder;
use reqwest::header::HeaderValue;

use super::super::http;
use super::super::http::Reach;
use super::super::http::USER_AGENT;
use super::super::url::safe_url;
use super::super::url::shown;
use super::GitHubApp;
use super::jwt::AppJwt;
use super::key::signing_key;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::error::ConfigError;
use crate::secret::PrivateKey;

/// Settings of a [`GitHubApp`].
///
/// ```
/// use regrant::provider::github::GitHubApp;
/// use regrant::secret::PrivateKey;
///
/// let built = GitHubApp::builder("12345", PrivateKey::new("not a key"))
///     .base_url("https://github.example/api/v3")
///     .build();
/// let error = built.unwrap_err();
/// assert_eq!(error.setting(), "private key");
/// assert!(error.to_string().contains("it has 9 characters, without a PEM header"));
/// ```
#[must_use = "the builder does nothing itself, use `.build()`"]
pub struct GitHubAppBuilder {
    app_id: String,
    key: PrivateKey,
    base_url: String,
    widen: BTreeMap<String, String>,
    revokes: bool,
    timeout: Duration,
    concurrency: usize,
    user_agent: String,
    clock: Arc<dyn Clock>,
    http: Option<ClientBuilder>,
}

impl GitHubAppBuilder {
    pub(super) fn new(app_id: String, key: PrivateKey) -> Self {
        Self {
            app_id,
            key,
            base_url: BASE_URL.to_owned(),
            widen: BTreeMap::new(),
            revokes: true,
            timeout: DEFAULT_TIMEOUT,
            concurrency: DEFAULT_CONCURRENCY,
            user_agent: USER_AGENT.to_owned(),
            clock: Arc::new(SystemClock),
            http: None,
        }
    }

    /// Where the API is. GitHub Enterprise Server has it at
    /// `https://HOST/api/v3`, GitHub Enterprise Cloud with data residency at
    /// `https://api.SUBDOMAIN.ghe.com`. The default is `https://api.github.com`.
    pub fn base_url(mut self, url: impl Into<String>) -> Self {
        self.base_url = url.into();
        self
    }

    /// A permission that tokens are minted with whose stored scope names
    /// permissions and not that one: `("checks", "read")`. Where the
    /// installation was not granted it, they are minted as the scope says, which
    /// stays as it is. Repo grants go by their
    /// [policy](crate::settings::RepoGrantPolicy::widen) instead. The default is
    /// none.
    pub fn widen(mut self, permission: impl Into<String>, access: impl Into<String>) -> Self {
        self.widen.insert(permission.into(), access.into());
        self
    }

    /// Whether a token is ended at GitHub with the login that it was minted for,
    /// instead of living out its hour. If not, revocation is
    /// [`Unsupported`](crate::provider::ProviderErrorKind::Unsupported). The
    /// default is `true`.
    pub fn revoke_tokens(mut self, revokes: bool) -> Self {
        self.revokes = revokes;
        self
    }

    /// How long one refresh or one revocation may take, however many requests it
    /// needs. It should be less than
    /// [`Timings::provider_timeout`](crate::settings::Timings::provider_timeout),
    /// by which the engine gives up and cannot know that nothing was spent. The
    /// default is 9 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many tokens are minted at a time by one process; further ones wait
    /// for their turn, for as long as [`Timings::wait_budget`] lets them. The
    /// default is 100: GitHub's secondary rate limits allow no more requests at
    /// once.
    ///
    /// [`Timings::wait_budget`]: crate::settings::Timings::wait_budget
    pub fn concurrency(mut self, count: usize) -> Self {
        self.concurrency = count;
        self
    }

    /// The `User-Agent`, without which GitHub refuses every request; it asks
    /// for the name of the App. The default is `regrant/` and the version, also
    /// with an HTTP client of the gateway's own.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// The clock by which JWTs are issued. The default is [`SystemClock`].
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The HTTP client to start from: its TLS, proxy and DNS settings are kept.
    /// Redirects are switched off and time-outs set in any case, and plain
    /// `http` to loopback goes through no proxy. The default is
    /// `reqwest::Client::builder()`.
    pub fn with_http_client(mut self, http: ClientBuilder) -> Self {
        self.http = Some(http);
        self
    }

    /// The provider.
    ///
    /// # Errors
    ///
    /// If the App id is empty, the private key does not sign, the base URL is
    /// not `https` (plain `http` is accepted to loopback) or has a query, the
    /// `User-Agent` fits into no header, or TLS cannot be set up.
    pub fn build(self) -> Result<GitHubApp, ConfigError> {
        let app_id = self.app_id.trim().to_owned();
        if app_id.is_empty() {
            return Err(ConfigError::new("App id", "must not be empty"));
        }
        let url = safe_url("base URL", &self.base_url)?;
        if url.query().is_some() {
            return Err(ConfigError::new("base URL", "must have no query"));
        }
        let user_agent = HeaderValue::from_str(&self.user_agent);
        let user_agent = user_agent
            .map_err(|error| ConfigError::new("user agent", "is no value").caused_by(error))?;
        let key = signing_key(&self.key)?;
        let start = self.http.unwrap_or_else(Client::builder);
        let reach = Reach {
            is_this_machine: url.scheme() == "http",
            tenant_domains: Vec::new(),
        };
        Ok(GitHubApp {
            http: http::client(
                Some(start.user_agent(user_agent)),
                self.timeout,
                IDLE_TIMEOUT,
                None,
                reach,
            )?,
            base_url: url.as_str().trim_end_matches('/').to_owned(),
            jwt: Arc::new(AppJwt::new(app_id, key, self.clock)),
            limit: Arc::default(),
            widen: self.widen,
            widen_direct: BTreeMap::new(),
            revokes: self.revokes,
            timeout: self.timeout,
            concurrency: self.concurrency,
        })
    }
}

impl fmt::Debug for GitHubAppBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the HTTP client, whose default headers may hold secrets.
        f.debug_struct("GitHubAppBuilder")
            .field("app_id", &self.app_id)
            .field("base_url", &shown(&self.base_url))
            .field("widen", &self.widen)
            .field("revokes", &self.revokes)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

const BASE_URL: &str = "https://api.github.com";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(9);
/// "No more than 100 concurrent requests are allowed."
const DEFAULT_CONCURRENCY: usize = 100;
/// Minting spends nothing: a request that met a closed connection may be made
/// again, so connections are worth keeping.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
