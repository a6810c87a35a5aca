//! How a gateway is set up: settings with defaults, checked together when it
//! starts.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use quick_cache::sync::Cache;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::audit::Audit;
use crate::audit::Tracing;
use crate::cache::GrantCache;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::endpoint::metadata::Advertised;
use crate::error::ConfigError;
use crate::invalidation;
use crate::invalidation::Listening;
use crate::jitter::Jitter;
use crate::journal::Journal;
use crate::keep_alive;
use crate::provider::Provider;
#[cfg(feature = "reqwest")]
use crate::provider::github::GitHubApp;
use crate::refresh::Breakers;
use crate::refresh::Flights;
use crate::refusals::Refusals;
use crate::regrant::Regrant;
#[cfg(feature = "reqwest")]
use crate::repo_grants::is_given;
use crate::resource;
use crate::retention;
use crate::revocation;
use crate::seal::Keyring;
use crate::settings::Lifetimes;
use crate::settings::RepoGrantPolicy;
use crate::settings::Retention;
use crate::settings::Timings;
use crate::settings::TokenPrefixes;
use crate::start::StartError;
use crate::start::check_keys;
use crate::state::Core;
use crate::state::PublicUrl;
use crate::store::Deadlines;
use crate::store::RotationPolicy;
use crate::store::Store;

/// Settings of a [`Regrant`].
#[derive(Debug)]
#[must_use = "the builder does nothing itself, use `.start()`"]
pub struct RegrantBuilder {
    public_url: String,
    store: Arc<dyn Store>,
    keyring: Keyring,
    providers: BTreeMap<Box<str>, Arc<dyn Provider>>,
    clock: Arc<dyn Clock>,
    audit: Arc<dyn Audit>,
    revoke_upstream: bool,
    lifetimes: Lifetimes,
    timings: Timings,
    retention: Retention,
    keep_alive: BTreeMap<Box<str>, Duration>,
    prefixes: TokenPrefixes,
    rotation: RotationPolicy,
    cached_grants: usize,
    advertised: Advertised,
    repo_grants: Option<RepoGrantPolicy>,
    #[cfg(feature = "reqwest")]
    github_app: Option<GitHubApp>,
    role: Role,
    /// Names that were given more than once.
    replaced: BTreeSet<Box<str>>,
    jitter_seed: Option<u64>,
}

impl RegrantBuilder {
    pub(crate) fn new(public_url: String, store: Arc<dyn Store>, keyring: Keyring) -> Self {
        Self {
            public_url,
            store,
            keyring,
            providers: BTreeMap::new(),
            clock: Arc::new(SystemClock),
            audit: Arc::new(Tracing),
            revoke_upstream: true,
            lifetimes: Lifetimes::default(),
            timings: Timings::default(),
            retention: Retention::default(),
            keep_alive: BTreeMap::new(),
            prefixes: TokenPrefixes::default(),
            rotation: RotationPolicy::default(),
            cached_grants: DEFAULT_CACHED_GRANTS,
            advertised: Advertised::default(),
            repo_grants: None,
            role: Role::Gateway,
            #[cfg(feature = "reqwest")]
            github_app: None,
            replaced: BTreeSet::new(),
            jitter_seed: None,
        }
    }

    /// Adds a provider under a short name such as `linear`, in place of the one of
    /// that name if there is one.
    pub fn provider(mut self, name: impl Into<Box<str>>, provider: impl Provider) -> Self {
        let name = name.into();
        let before = self.providers.insert(name.clone(), Arc::new(provider));
        self.replaced.extend(before.map(|_provider| name));
        self
    }

    /// Adds a GitHub App as a provider, and serves the two endpoints of
    /// [repo grants](crate::repo_grants).
    #[cfg(feature = "reqwest")]
    pub fn repo_grants(mut self, app: GitHubApp, policy: RepoGrantPolicy) -> Self {
        let app = app.widening(policy.widening.clone());
        self.github_app = Some(app.clone());
        let name = policy.provider.clone();
        self.repo_grants = Some(policy);
        self.provider(name, app)
    }

    /// How long tokens live. The default is [`Lifetimes::default`].
    pub fn lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.lifetimes = lifetimes;
        self
    }

    /// How long refreshing may take. The default is [`Timings::default`].
    pub fn timings(mut self, timings: Timings) -> Self {
        self.timings = timings;
        self
    }

    /// How long rows stay that nobody can use any more. The default is
    /// [`Retention::default`].
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Refreshes the credentials of a provider that nobody has refreshed for
    /// this long, as long as a grant that lives or a user refers to them: for
    /// providers whose refresh tokens end when they are not used. Well below the
    /// time after which they do, because a replica looks every hour at most, and
    /// refreshes about five in a second. The default is not to: where refresh
    /// tokens live on by themselves, it only spends them.
    pub fn keep_alive(mut self, provider: impl Into<Box<str>>, after: Duration) -> Self {
        self.keep_alive.insert(provider.into(), after);
        self
    }

    /// What the gateway's tokens begin with. The default is
    /// [`TokenPrefixes::default`].
    pub fn token_prefixes(mut self, prefixes: TokenPrefixes) -> Self {
        self.prefixes = prefixes;
        self
    }

    /// What the replays of clients mean that are not registered. The default is
    /// [`RotationPolicy::Default`].
    pub fn rotation(mut self, policy: RotationPolicy) -> Self {
        self.rotation = policy;
        self
    }

    /// Replaces the clock. The default is [`SystemClock`].
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Where the gateway lets users log in (RFC 6749 §3.1): an absolute URL,
    /// which is advertised with the `authorization_code` grant. What it does
    /// there ends in [`Regrant::issue_code`]. The default is none: clients get
    /// their first tokens some other way.
    ///
    /// Official MCP clients refuse metadata without it.
    pub fn authorization_endpoint(mut self, url: impl Into<Box<str>>) -> Self {
        self.advertised.authorization_endpoint = Some(url.into());
        self
    }

    /// Advertises something else that the gateway itself serves, such as
    /// `registration_endpoint` (RFC 7591) or `scopes_supported`. What this
    /// crate says about itself cannot be replaced.
    pub fn metadata(mut self, member: impl Into<String>, value: impl Into<Value>) -> Self {
        self.advertised.further.insert(member.into(), value.into());
        self
    }

    /// Whether registered resource servers may ask about tokens (RFC 7662); see
    /// [`Client::introspects`](crate::Client::introspects). The default is
    /// `false`.
    pub fn introspection(mut self, is_on: bool) -> Self {
        self.advertised.introspection = is_on;
        self
    }

    /// Where audit events go. The default is [`Tracing`].
    pub fn with_audit(mut self, audit: impl Audit) -> Self {
        self.audit = Arc::new(audit);
        self
    }

    /// Whether a provider is told (RFC 7009) when the last grant has ended that
    /// used a login there: afterwards, and until it has heard. The default is
    /// `true`; all replicas should say the same.
    ///
    /// At some providers that ends every login of the user through this
    /// gateway's client, also those that are kept elsewhere.
    pub fn revoke_upstream(mut self, is_wanted: bool) -> Self {
        self.revoke_upstream = is_wanted;
        self
    }

    /// How many grants are kept in memory. The default is 100,000.
    pub fn cached_grants(mut self, count: usize) -> Self {
        self.cached_grants = count;
        self
    }

    /// For a tool of the operator's, which is no gateway: what it is started with
    /// says nothing of the deployment. It tells the store no lifetimes, by which a
    /// sweep would judge logins, retires no key, and leaves telling providers of
    /// what has ended to those who know them. `kept` is what gateways have told
    /// the store, if any has ([`Upkeep::raise_deadlines`]).
    ///
    /// [`Upkeep::raise_deadlines`]: crate::store::Upkeep::raise_deadlines
    pub fn operates(mut self, kept: Option<Deadlines>) -> Self {
        self.role = Role::Operator(kept);
        self
    }

    /// Makes waiting times repeatable. The default is to draw them anew.
    #[cfg(any(test, feature = "test-util"))]
    pub fn jitter_seed(mut self, seed: u64) -> Self {
        self.jitter_seed = Some(seed);
        self
    }

    /// Checks the settings and, against the store, that it can be reached, has
    /// the schema of this version and needs no key that is missing here.
    ///
    /// # Errors
    ///
    /// [`StartError`] says which of these does not hold.
    pub async fn start(self) -> Result<Regrant, StartError> {
        let public_url = self.check().map_err(StartError::Config)?;
        let (store, lifetimes) = (&*self.store, &self.lifetimes);
        store.ping().await.map_err(StartError::Store)?;
        let is_gateway = matches!(self.role, Role::Gateway);
        let keyring = check_keys(store, self.keyring, &*self.clock, lifetimes, is_gateway).await?;
        let own = retention::deadlines_of(lifetimes, self.repo_grants.as_ref());
        let deadlines = match self.role {
            Role::Gateway => store.upkeep().raise_deadlines(own).await,
            Role::Operator(kept) => Ok(kept.map_or(own, |kept| own.or_longer(kept))),
        };
        let deadlines = deadlines.map_err(StartError::Store)?;

        let turns = self.providers.iter().filter_map(|(name, provider)| {
            let count = provider.concurrency();
            (count < Semaphore::MAX_PERMITS).then(|| (name.clone(), Semaphore::new(count.max(1))))
        });
        let core = Arc::new(Core {
            turns: turns.collect(),
            public_url,
            store: self.store,
            refusals: Refusals::new(&self.clock),
            keyring,
            providers: self.providers,
            clock: self.clock,
            audit: self.audit,
            lifetimes: self.lifetimes,
            timings: self.timings,
            retention: self.retention,
            deadlines: Mutex::new(deadlines),
            keep_alive: self.keep_alive,
            prefixes: self.prefixes,
            rotation: self.rotation,
            cache: GrantCache::new(self.cached_grants),
            listening: Listening::default(),
            journal: Journal::default(),
            clients: Cache::new(CACHED_CLIENTS),
            flights: Flights::default(),
            breakers: Breakers::default(),
            jitter: Jitter::new(self.jitter_seed),
            revoke_upstream: self.revoke_upstream,
            revoking: Semaphore::new(revocation::AT_ONCE),
            tasks: TaskTracker::new(),
            resources: Mutex::new(Vec::new()),
            advertised: self.advertised,
            repo_grants: self.repo_grants,
            #[cfg(feature = "reqwest")]
            github_app: self.github_app,
        });
        if is_gateway {
            revocation::watch(&core);
        }
        invalidation::watch(&core);
        retention::watch(&core);
        keep_alive::watch(&core);
        Ok(Regrant { core })
    }

    /// Of the settings: what needs no store. The public URL, parsed.
    fn check(&self) -> Result<PublicUrl, ConfigError> {
        self.timings.check()?;
        self.lifetimes.check()?;
        self.prefixes.check()?;
        self.retention.check()?;
        self.check_keep_alive()?;
        if let Some(url) = &self.advertised.authorization_endpoint
            && !resource::is_absolute(url)
        {
            return Err(ConfigError::new(
                "authorization endpoint",
                "must be an absolute http or https URL (RFC 8414 §2)",
            ));
        }
        if let Some(policy) = &self.repo_grants {
            self.check_repo_grants(policy)?;
        }
        if self.store.is_durable() && self.keyring.is_generated() {
            return Err(ConfigError::new(
                "keyring",
                "was generated: what it seals in a durable store could not be opened after a \
                 restart; give keys of your own",
            ));
        }
        PublicUrl::parse(&self.public_url)
    }

    fn check_repo_grants(&self, policy: &RepoGrantPolicy) -> Result<(), ConfigError> {
        policy.check()?;
        // The other one would be sent what mints, and its word would end grants.
        if self.replaced.contains(policy.provider.as_str()) {
            return Err(ConfigError::new(
                "provider",
                format!(
                    "`{}` is the App of repo grants and was added twice: give the other \
                     one another name",
                    policy.provider
                ),
            ));
        }
        #[cfg(feature = "reqwest")]
        if let Some((permission, access)) = &policy.widening
            && !is_given(permission, access)
        {
            return Err(ConfigError::new(
                "widening of repo grants",
                "is by a permission that is not given to them",
            ));
        }
        if !self.store.is_durable() {
            tracing::warn!("repo grants are kept in memory: they end with this process");
        }
        Ok(())
    }

    fn check_keep_alive(&self) -> Result<(), ConfigError> {
        let app = self.repo_grants.as_ref().map(|policy| &*policy.provider);
        keep_alive::check(&self.keep_alive, &self.providers, app)
    }
}

/// What a process is for.
#[derive(Clone, Copy, Debug)]
enum Role {
    Gateway,
    /// With the deadlines that gateways have told, if any has.
    Operator(Option<Deadlines>),
}

const CACHED_CLIENTS: usize = 10_000;
const DEFAULT_CACHED_GRANTS: usize = 100_000;
