//! What the parts of a gateway share.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use http::Uri;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::audit;
use crate::audit::Audit;
use crate::audit::AuditEvent;
use crate::audit::AuditKind;
use crate::audit::Whose;
use crate::cache::GrantCache;
use crate::client::KnownClient;
use crate::clock::Clock;
use crate::endpoint::metadata::Advertised;
use crate::error::ConfigError;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::invalidation::Listening;
use crate::jitter::Jitter;
use crate::journal::Entry;
use crate::journal::Journal;
use crate::provider::Provider;
#[cfg(feature = "reqwest")]
use crate::provider::github::GitHubApp;
use crate::refresh::Breakers;
use crate::refresh::Flights;
use crate::refusals::Refusals;
use crate::revocation;
use crate::seal::Keyring;
use crate::settings::Lifetimes;
use crate::settings::RepoGrantPolicy;
use crate::settings::Retention;
use crate::settings::Timings;
use crate::settings::TokenPrefixes;
use crate::store::Deadlines;
use crate::store::Grant;
use crate::store::RevocationReason;
use crate::store::RotationPolicy;
use crate::store::Store;
use crate::store::StoreError;
use crate::sync::lock;

/// What layers, endpoints and flights share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) public_url: PublicUrl,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keyring: Keyring,
    pub(crate) providers: BTreeMap<Box<str>, Arc<dyn Provider>>,
    /// How many more may ask a provider at once, where that is limited.
    pub(crate) turns: BTreeMap<Box<str>, Semaphore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) audit: Arc<dyn Audit>,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) timings: Timings,
    pub(crate) retention: Retention,
    /// How long what is issued may live, as the store said last.
    pub(crate) deadlines: Mutex<Deadlines>,
    /// Providers whose credentials are refreshed when nobody has for so long.
    pub(crate) keep_alive: BTreeMap<Box<str>, Duration>,
    pub(crate) prefixes: TokenPrefixes,
    /// Of clients that are not registered.
    pub(crate) rotation: RotationPolicy,
    pub(crate) cache: GrantCache,
    /// Whether ends elsewhere are heard of.
    pub(crate) listening: Listening,
    /// What was written lately.
    pub(crate) journal: Journal,
    pub(crate) refusals: Refusals,
    /// By `client_id`.
    pub(crate) clients: Cache<Box<str>, KnownClient>,
    pub(crate) flights: Flights,
    pub(crate) breakers: Breakers,
    pub(crate) jitter: Jitter,
    /// Whether providers are told of grants that have ended.
    pub(crate) revoke_upstream: bool,
    /// How many more may be told at once.
    pub(crate) revoking: Semaphore,
    /// Spends and writes that must not be lost.
    pub(crate) tasks: TaskTracker,
    /// The resources that layers protect.
    pub(crate) resources: Mutex<Vec<Resource>>,
    pub(crate) advertised: Advertised,
    /// `None`: there are no repo grants.
    pub(crate) repo_grants: Option<RepoGrantPolicy>,
    /// What mints for them first.
    #[cfg(feature = "reqwest")]
    pub(crate) github_app: Option<GitHubApp>,
}

/// A protected resource, for its metadata.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resource {
    /// Below the public URL; empty for the gateway as a whole.
    pub(crate) path: String,
    /// What its routes demand.
    pub(crate) scopes: BTreeSet<String>,
}

impl Core {
    pub(crate) fn provider(&self, name: &str) -> Result<&Arc<dyn Provider>, RefreshError> {
        self.providers.get(name).ok_or_else(|| {
            RefreshError::new(
                RefreshErrorKind::Misconfigured,
                format!("no provider `{name}` was added to this gateway"),
            )
        })
    }

    pub(crate) fn has_provider(&self, name: &str) -> bool {
        self.providers.contains_key(name)
    }

    /// Ends a grant. Its provider is told afterwards: nobody waits for that.
    pub(crate) async fn revoke_grant(
        self: &Arc<Self>,
        whose: impl Into<Whose>,
        reason: RevocationReason,
    ) -> Result<bool, StoreError> {
        let whose = whose.into();
        let id = whose.grant;
        let now = self.clock.now();
        let revoked = self.store.revoke_grant(id, now, reason).await;
        // Also when the write failed: it may have gone through unnoticed.
        self.cache.forget(id);
        if matches!(revoked, Ok(true)) {
            self.wrote(Entry::Revoked(id, now, reason));
            self.note_end(whose, reason);
        }
        revoked
    }

    /// Ends a direct grant that nobody used for too long. `false` if somebody did
    /// after all.
    pub(crate) async fn expire_grant(self: &Arc<Self>, grant: &Grant) -> Result<bool, StoreError> {
        let Some(direct) = &grant.direct else {
            return Ok(false);
        };
        let (id, redeemed_at, last_used_at) = (grant.id, direct.used_at, grant.last_used_at);
        let now = self.clock.now();
        let expired = self.store.expire_grant(id, redeemed_at, last_used_at, now);
        let expired = expired.await;
        self.cache.forget(id);
        if matches!(expired, Ok(true)) {
            self.note_end(grant.into(), RevocationReason::Expired);
        }
        expired
    }

    fn note_end(self: &Arc<Self>, whose: Whose, reason: RevocationReason) {
        let id = whose.grant;
        self.refusals.note_revoked(id);
        self.audit(AuditKind::GrantRevoked { reason }, whose);
        revocation::begin(self, id);
    }

    /// Records what happened to a grant.
    pub(crate) fn audit(&self, kind: AuditKind, whose: impl Into<Whose>) {
        audit::record(&*self.audit, &AuditEvent::of(kind, whose));
    }

    pub(crate) fn add_resource(&self, path: &str, scope: &str) {
        let mut resources = lock(&self.resources);
        let words = || {
            let words = scope.split_ascii_whitespace();
            // It is not a scope of any resource (RFC 9728, OpenID Connect Core §11).
            words
                .filter(|word| *word != "offline_access")
                .map(str::to_owned)
        };
        match resources.iter_mut().find(|known| known.path == path) {
            Some(known) => known.scopes.extend(words()),
            None => resources.push(Resource {
                path: path.to_owned(),
                scopes: words().collect(),
            }),
        }
    }

    pub(crate) fn resources(&self) -> Vec<Resource> {
        lock(&self.resources).clone()
    }
}

/// The public base URL: issuer, and what resources and endpoints begin with.
/// Kept as given but for a trailing slash, because clients compare bytes.
#[derive(Clone, Debug)]
pub(crate) struct PublicUrl {
    text: Box<str>,
    origin: Box<str>,
    path: Box<str>,
}

impl PublicUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let refuse = |reason| ConfigError::new("public URL", reason);
        let text = text.trim_end_matches('/');
        let uri: Uri = text
            .parse()
            .map_err(|error: http::uri::InvalidUri| refuse("is not a URL").caused_by(error))?;
        let (Some(scheme @ ("https" | "http")), Some(authority)) =
            (uri.scheme_str(), uri.authority())
        else {
            return Err(refuse("must be an absolute http or https URL"));
        };
        if uri.query().is_some() || text.contains(['#', '"', '\\', '@']) {
            return Err(refuse("must have no query, fragment or user"));
        }

        Ok(Self {
            origin: format!("{scheme}://{authority}").into(),
            path: uri.path().trim_end_matches('/').into(),
            text: text.into(),
        })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Scheme and authority.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The path of the base URL without a trailing slash; often empty.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_url_is_kept_but_for_its_trailing_slash() {
        let url = PublicUrl::parse("https://Gateway.example:8443/base/").unwrap();
        assert_eq!(url.as_str(), "https://Gateway.example:8443/base");
        assert_eq!(url.origin(), "https://Gateway.example:8443");
        assert_eq!(url.path(), "/base");

        for bad in [
            "gateway.example",
            "/mcp",
            "ftp://x",
            "https://x/?q",
            "",
            "http://a b",
        ] {
            assert!(PublicUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
