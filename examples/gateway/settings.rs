//! Settings, all from the environment; times are in seconds.

use std::env;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::http::Uri;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::seal::Keyring;
use regrant::secret::ClientSecret;
use regrant::settings::Lifetimes;
use regrant::settings::Timings;

pub(crate) struct Settings {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) public_url: Option<String>,
    pub(crate) authorization_endpoint: Option<String>,
    /// `None`: start a demo provider and a demo MCP server.
    pub(crate) upstream: Option<Upstream>,
    /// `None`: keep everything in memory.
    pub(crate) database_url: Option<String>,
    pub(crate) keyring: Keyring,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) timings: Timings,
}

/// An MCP server and the provider of its credentials.
pub(crate) struct Upstream {
    pub(crate) url: Uri,
    pub(crate) token_url: String,
    pub(crate) revocation_url: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_authentication: ClientAuthentication,
    pub(crate) scope: Option<String>,
}

impl Settings {
    pub(crate) fn from_env() -> Result<Self, Invalid> {
        let database_url = text("DATABASE_URL")?;
        let keyring = match text("REGRANT_KEYS")? {
            Some(keys) => Keyring::parse(&keys).map_err(|e| Invalid::new("REGRANT_KEYS", e))?,
            None if database_url.is_some() => {
                return Err(Invalid::new(
                    "REGRANT_KEYS",
                    "is required with DATABASE_URL: make one with `regrant keys generate`",
                ));
            }
            None => Keyring::generate().map_err(|e| Invalid::new("REGRANT_KEYS", e))?,
        };

        Ok(Self {
            listen: parsed("GATEWAY_LISTEN", "an address such as 127.0.0.1:8787")?,
            public_url: text("GATEWAY_PUBLIC_URL")?,
            authorization_endpoint: text("GATEWAY_AUTHORIZATION_ENDPOINT")?,
            upstream: Upstream::from_env()?,
            database_url,
            keyring,
            lifetimes: lifetimes()?,
            timings: timings()?,
        })
    }
}

impl Upstream {
    fn from_env() -> Result<Option<Self>, Invalid> {
        let Some(url) = parsed::<Uri>("GATEWAY_UPSTREAM", "an http or https URL")? else {
            // Half a configuration would look like it works.
            for name in [
                "PROVIDER_TOKEN_URL",
                "PROVIDER_REVOCATION_URL",
                "PROVIDER_CLIENT_ID",
                "PROVIDER_CLIENT_SECRET",
                "PROVIDER_CLIENT_AUTH",
                "PROVIDER_SCOPE",
            ] {
                if text(name)?.is_some() {
                    return Err(Invalid::new(
                        "GATEWAY_UPSTREAM",
                        format!("is required with {name}"),
                    ));
                }
            }
            return Ok(None);
        };
        if url.authority().is_none() || !matches!(url.scheme_str(), Some("http" | "https")) {
            return Err(Invalid::new(
                "GATEWAY_UPSTREAM",
                "must be an http or https URL",
            ));
        }
        let required = |name| {
            text(name)?.ok_or_else(|| Invalid::new(name, "is required with GATEWAY_UPSTREAM"))
        };
        let secret = text("PROVIDER_CLIENT_SECRET")?.map(ClientSecret::new);
        let method = text("PROVIDER_CLIENT_AUTH")?;
        let client_authentication = match (method.as_deref(), secret) {
            (None | Some("client_secret_basic"), Some(secret)) => {
                ClientAuthentication::Basic(secret)
            }
            (Some("client_secret_post"), Some(secret)) => ClientAuthentication::Post(secret),
            (None | Some("none"), None) => ClientAuthentication::None,
            (Some("client_secret_basic" | "client_secret_post"), None) => {
                return Err(Invalid::new(
                    "PROVIDER_CLIENT_SECRET",
                    "is required by PROVIDER_CLIENT_AUTH",
                ));
            }
            (Some("none"), Some(_)) => {
                return Err(Invalid::new(
                    "PROVIDER_CLIENT_SECRET",
                    "is set, yet PROVIDER_CLIENT_AUTH is none",
                ));
            }
            (Some(_), _) => {
                return Err(Invalid::new(
                    "PROVIDER_CLIENT_AUTH",
                    "must be client_secret_basic, client_secret_post or none",
                ));
            }
        };

        Ok(Some(Self {
            url,
            token_url: required("PROVIDER_TOKEN_URL")?,
            revocation_url: text("PROVIDER_REVOCATION_URL")?,
            client_id: required("PROVIDER_CLIENT_ID")?,
            client_authentication,
            scope: text("PROVIDER_SCOPE")?,
        }))
    }
}

fn lifetimes() -> Result<Lifetimes, Invalid> {
    let mut lifetimes = Lifetimes::default();
    for (name, field) in [
        ("ACCESS_TOKEN_TTL", &mut lifetimes.access),
        ("REFRESH_IDLE_TTL", &mut lifetimes.refresh_idle),
        ("REFRESH_ABSOLUTE_TTL", &mut lifetimes.refresh_absolute),
    ] {
        *field = seconds(name)?.unwrap_or(*field);
        if *field < Duration::from_secs(1) {
            return Err(Invalid::new(name, "must be 1 second or more"));
        }
    }
    for (name, field) in [
        ("REUSE_GRACE", &mut lifetimes.reuse_grace),
        ("BURST_GRACE", &mut lifetimes.burst_grace),
        ("ACCESS_TOKEN_LEEWAY", &mut lifetimes.leeway),
    ] {
        *field = seconds(name)?.unwrap_or(*field);
    }
    Ok(lifetimes)
}

fn timings() -> Result<Timings, Invalid> {
    let mut timings = Timings::default();
    for (name, field) in [
        ("EXPIRY_SKEW", &mut timings.expiry_skew),
        ("SOFT_WINDOW", &mut timings.soft_window),
        ("STALENESS", &mut timings.staleness),
        ("PROVIDER_TIMEOUT", &mut timings.provider_timeout),
        ("LEASE", &mut timings.lease),
        ("WAIT_BUDGET", &mut timings.wait_budget),
    ] {
        *field = seconds(name)?.unwrap_or(*field);
    }
    let Timings {
        provider_timeout,
        lease,
        wait_budget,
        ..
    } = timings;
    if provider_timeout.is_zero() {
        return Err(Invalid::new(
            "PROVIDER_TIMEOUT",
            "must be more than 0 seconds",
        ));
    }
    if provider_timeout >= lease {
        let reason = format!(
            "is {} s and must be longer than PROVIDER_TIMEOUT, {} s",
            lease.as_secs_f64(),
            provider_timeout.as_secs_f64()
        );
        return Err(Invalid::new("LEASE", reason));
    }
    if lease > wait_budget {
        let reason = format!(
            "is {} s and must not be shorter than LEASE, {} s",
            wait_budget.as_secs_f64(),
            lease.as_secs_f64()
        );
        return Err(Invalid::new("WAIT_BUDGET", reason));
    }
    Ok(timings)
}

fn seconds(name: &'static str) -> Result<Option<Duration>, Invalid> {
    let number: Option<f64> = parsed(name, "a number of seconds")?;
    number
        .map(|number| {
            Duration::try_from_secs_f64(number)
                .ok()
                // 1000 years: more would overflow the calendar.
                .filter(|time| time.as_secs() < 31_536_000_000)
                .ok_or_else(|| Invalid::new(name, "must be a number of seconds, 0 or more"))
        })
        .transpose()
}

fn parsed<T: FromStr>(name: &'static str, what: &str) -> Result<Option<T>, Invalid> {
    text(name)?
        .map(|text| text.trim().parse())
        .transpose()
        .map_err(|_error| Invalid::new(name, format!("must be {what}")))
}

/// An empty variable counts as unset.
#[expect(clippy::disallowed_methods, reason = "a program reads its environment")]
fn text(name: &'static str) -> Result<Option<String>, Invalid> {
    match env::var(name) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(Invalid::new(name, "is not UTF-8")),
    }
}

/// A setting that is missing or bad. Never shows its value: it may be a secret.
#[derive(Debug)]
pub(crate) struct Invalid {
    name: &'static str,
    reason: String,
}

impl Invalid {
    pub(crate) fn new(name: &'static str, reason: impl fmt::Display) -> Self {
        Self {
            name,
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl std::error::Error for Invalid {}
