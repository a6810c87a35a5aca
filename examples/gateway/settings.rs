//! Settings, all from the environment; times are in seconds.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::Uri;
use regrant::provider::github::GitHubApp;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::secret::ClientSecret;
use regrant::settings::Lifetimes;
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
    pub(crate) authorization_endpoint: Option<String>,
    /// `None`: start a demo provider and a demo MCP server.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) storage: Storage,
    /// `None`: hand out no repository tokens.
    pub(crate) repo_grants: Option<(GitHubApp, RepoGrantPolicy)>,
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
        let timings = timings()?;
        Ok(Self {
            listen: parsed("GATEWAY_LISTEN", "an address such as 127.0.0.1:8787")?,
            public_url: text("GATEWAY_PUBLIC_URL")?,
            authorization_endpoint: text("GATEWAY_AUTHORIZATION_ENDPOINT")?,
            upstream: Upstream::from_env()?,
            storage: Storage::from_env()?,
            repo_grants: app::from_env(timings.provider_timeout)?,
            lifetimes: lifetimes()?,
            timings,
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
