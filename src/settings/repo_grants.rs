//! How repo grants are redeemed.

use std::time::Duration;
use std::time::SystemTime;

use super::LONGEST;
use super::SECOND;
use crate::error::ConfigError;

/// Settings of [repo grants](crate::repo_grants).
///
/// ```
/// use std::time::Duration;
/// use regrant::settings::RepoGrantPolicy;
///
/// let policy = RepoGrantPolicy::new("Iv1.0123456789abcdef")
///     .lifetime(Duration::from_secs(30 * 24 * 3600));
/// assert_eq!(policy.provider, "github-app");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RepoGrantPolicy {
    /// What clients are told, and may send, as `client_id`.
    pub client_id: String,
    /// The name that the GitHub App has among the providers.
    pub provider: String,
    /// Of a grant that is not redeemed; each redemption begins it anew.
    pub lifetime: Duration,
    /// A permission that tokens are minted with although their grant was made
    /// without it, and the access to it; where the installation does not have it,
    /// they are minted as the grant says. It is never stored with the grant.
    pub widening: Option<(String, String)>,
}

impl RepoGrantPolicy {
    /// The policy for clients that are told this `client_id`: that of the GitHub
    /// App, say. They are public ones; what counts is their token.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            provider: "github-app".to_owned(),
            lifetime: DEFAULT_LIFETIME,
            widening: Some(("checks".to_owned(), "read".to_owned())),
        }
    }

    /// The name of the GitHub App among the providers, for
    /// [`Regrant::layer`](crate::Regrant::layer). The default is `github-app`; users
    /// log in to `github` by another provider.
    #[must_use]
    pub fn provider(mut self, name: impl Into<String>) -> Self {
        self.provider = name.into();
        self
    }

    /// The lifetime of a grant that is not redeemed. Its pair, which goes through
    /// the layer, has the [`Lifetimes`](super::Lifetimes) of every pair. The
    /// default is 90 d.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// The permission that tokens of grants without it are widened by, one of
    /// those that repo grants may have. The default is `checks: read`.
    #[must_use]
    pub fn widen(mut self, permission: impl Into<String>, access: impl Into<String>) -> Self {
        self.widening = Some((permission.into(), access.into()));
        self
    }

    /// Mints tokens as their grant says, and never with more.
    #[must_use]
    pub fn never_widen(mut self) -> Self {
        self.widening = None;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.client_id.is_empty() || self.provider.is_empty() {
            return Err(ConfigError::new(
                "repo grants",
                "need a client id and the name of a provider",
            ));
        }
        if !(SECOND..=LONGEST).contains(&self.lifetime) {
            return Err(ConfigError::new(
                "repo grant lifetime",
                "must be between 1 s and 1000 years",
            ));
        }
        Ok(())
    }

    /// When a grant expires that was last redeemed at this time.
    pub(crate) fn deadline(&self, last_used_at: SystemTime) -> SystemTime {
        last_used_at + self.lifetime
    }
}

const DEFAULT_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3_600);
