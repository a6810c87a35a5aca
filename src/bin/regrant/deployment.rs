//! Which deployment a command is about: its database, its keys, its lifetimes.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use clap::Args;
use futures_util::future::BoxFuture;
use regrant::Regrant;
use regrant::StartError;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::seal::Keyring;
use regrant::settings::Lifetimes;
use regrant::settings::Retention;
use regrant::store::Deadlines;
use regrant::store::postgres::PostgresStore;

use crate::output::causes;

#[derive(Args)]
pub(crate) struct Database {
    /// Where grants are kept
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// The same database without a pooler, to migrate and to listen; the default
    /// is the other one
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    database_listen_url: Option<String>,
}

#[derive(Args)]
pub(crate) struct Deployment {
    #[command(flatten)]
    database: Database,
    /// `id:base64-of-32-bytes`, comma-separated; the first one seals (`ps`
    /// shows it: prefer the environment)
    #[arg(long, env, hide_env_values = true, value_name = "KEYS")]
    regrant_keys: Option<String>,
    #[command(flatten)]
    pub(crate) lifetimes: LifetimeArgs,
}

#[derive(Args)]
#[expect(
    clippy::struct_field_names,
    reason = "clap makes flags and variables of the names"
)]
pub(crate) struct LifetimeArgs {
    /// Seconds that an access token lives
    #[arg(long, env, value_parser = seconds, value_name = "S")]
    access_token_ttl: Option<Duration>,
    /// Seconds that an unused refresh token lives
    #[arg(long, env, value_parser = seconds, value_name = "S")]
    refresh_idle_ttl: Option<Duration>,
    /// Seconds that a grant lives
    #[arg(long, env, value_parser = seconds, value_name = "S")]
    refresh_absolute_ttl: Option<Duration>,
}

/// How long grants live, and who says so.
pub(crate) struct Lives {
    pub(crate) refresh_idle: Duration,
    pub(crate) refresh_absolute: Duration,
    pub(crate) direct: Duration,
    /// `deployment`, `settings` or `default`.
    pub(crate) by: &'static str,
}

impl Database {
    pub(crate) fn store(&self) -> Result<PostgresStore, Box<dyn Error>> {
        let url = self
            .database_url
            .as_ref()
            .filter(|url| !url.is_empty())
            .ok_or_else(|| {
                Invalid("DATABASE_URL: is required: the URL of the gateway's database".to_owned())
            })?;
        let store = PostgresStore::connect(url)
            .map_err(|error| Invalid(format!("DATABASE_URL: {error}")))?;
        if let Some(url) = self
            .database_listen_url
            .as_ref()
            .filter(|url| !url.is_empty())
        {
            return store
                .listen_at(url)
                .map_err(|error| Invalid(format!("DATABASE_LISTEN_URL: {error}")).into());
        }
        Ok(store)
    }
}

impl Deployment {
    pub(crate) fn store(&self) -> Result<PostgresStore, Box<dyn Error>> {
        self.database.store()
    }

    pub(crate) async fn regrant(&self, provider: &str) -> Result<Regrant, Box<dyn Error>> {
        self.regrant_on(self.store()?, provider, Retention::default())
            .await
    }

    /// Starts as a gateway does, which checks the keys, and registers the first
    /// one if it is new.
    pub(crate) async fn regrant_on(
        &self,
        store: PostgresStore,
        provider: &str,
        retention: Retention,
    ) -> Result<Regrant, Box<dyn Error>> {
        let keys = self
            .regrant_keys
            .as_ref()
            .filter(|keys| !keys.is_empty())
            .ok_or_else(|| {
                Invalid(
                    "REGRANT_KEYS: is required: the keys of the gateway, or for a new one those \
                     of `regrant keys generate`"
                        .to_owned(),
                )
            })?;
        let keyring =
            Keyring::parse(keys).map_err(|error| Invalid(format!("REGRANT_KEYS: {error}")))?;
        let kept = store.deadlines().await.map_err(StartError::Store)?;
        // No route is served from here, so the public URL is never shown.
        let regrant = Regrant::builder("http://localhost", store, keyring)
            .provider(provider, Elsewhere)
            .lifetimes(self.lifetimes.lifetimes())
            // Nothing but what was asked for.
            .retention(retention.never_sweep())
            .operates(kept)
            .start()
            .await;
        regrant.map_err(|error| match error {
            StartError::Config(error) => Invalid(causes(&error)).into(),
            error @ (StartError::KeyChanged { .. }
            | StartError::KeyMissing { .. }
            | StartError::Store(_)
            | _) => error.into(),
        })
    }
}

impl LifetimeArgs {
    /// What replicas were started with counts, as far as nothing else is said.
    pub(crate) fn lives(&self, kept: Option<Deadlines>) -> Lives {
        let lifetimes = self.lifetimes();
        let is_set = self.refresh_idle_ttl.is_some() || self.refresh_absolute_ttl.is_some();
        Lives {
            refresh_idle: match (self.refresh_idle_ttl, kept) {
                (None, Some(kept)) => kept.refresh_idle,
                _ => lifetimes.refresh_idle,
            },
            refresh_absolute: match (self.refresh_absolute_ttl, kept) {
                (None, Some(kept)) => kept.refresh_absolute,
                _ => lifetimes.refresh_absolute,
            },
            // Zero: of no gateway with repo grants.
            direct: (kept.map(|kept| kept.direct))
                .filter(|direct| !direct.is_zero())
                .unwrap_or(DIRECT),
            by: match kept {
                _ if is_set => "settings",
                Some(_) => "deployment",
                None => "default",
            },
        }
    }

    fn lifetimes(&self) -> Lifetimes {
        let mut lifetimes = Lifetimes::default();
        if let Some(access) = self.access_token_ttl {
            lifetimes = lifetimes.access(access);
        }
        if let Some(idle) = self.refresh_idle_ttl {
            lifetimes = lifetimes.refresh_idle(idle);
        }
        if let Some(absolute) = self.refresh_absolute_ttl {
            lifetimes = lifetimes.refresh_absolute(absolute);
        }
        lifetimes
    }
}

/// A setting that is missing or bad; its value is not repeated.
#[derive(Debug)]
pub(crate) struct Invalid(pub(crate) String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Invalid {}

/// The gateway refreshes and revokes; this command never does.
#[derive(Debug)]
struct Elsewhere;

impl Provider for Elsewhere {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        Box::pin(async { Err(ProviderErrorKind::Unsupported.into()) })
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        // By which it stays due.
        Box::pin(async { Err(ProviderErrorKind::Transient.into()) })
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    text.trim()
        .parse()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number).ok())
        .filter(|time| time.as_secs() < 31_536_000_000)
        .ok_or_else(|| "must be a number of seconds, 0 or more".to_owned())
}

/// As `RepoGrantPolicy` has it.
const DIRECT: Duration = Duration::from_secs(90 * 86_400);
