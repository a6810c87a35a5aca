//! Errors: by who must act, with a kind to match on and a source to log.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::BoxError;

/// Why a request could not be given an upstream credential.
///
/// The layer turns it into an HTTP answer and puts it into the extensions of
/// that response, so that an outer layer can log it.
#[derive(Clone, Debug)]
pub struct RefreshError {
    kind: RefreshErrorKind,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl RefreshError {
    pub(crate) fn new(kind: RefreshErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            retry_after: None,
            source: Some(Arc::from(source.into())),
        }
    }

    pub(crate) fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// Who must act.
    pub fn kind(&self) -> RefreshErrorKind {
        self.kind
    }

    /// How long to wait before asking again, if somebody said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl From<RefreshErrorKind> for RefreshError {
    fn from(kind: RefreshErrorKind) -> Self {
        Self {
            kind,
            retry_after: None,
            source: None,
        }
    }
}

impl fmt::Display for RefreshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            RefreshErrorKind::Misconfigured => "the provider refuses this gateway",
            RefreshErrorKind::NotRefreshable => {
                "the upstream refuses the access token and it cannot be refreshed"
            }
            RefreshErrorKind::Provider => "the provider cannot be asked now",
            RefreshErrorKind::Sealed => "the stored credential does not open",
            RefreshErrorKind::Store => "the store cannot be asked now",
            RefreshErrorKind::Terminal => "the provider ended the login",
        })
    }
}

impl Error for RefreshError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// Who must act on a [`RefreshError`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RefreshErrorKind {
    /// The operator: the provider refuses the gateway's own client credentials.
    Misconfigured,
    /// Nobody yet: there is no refresh token, or the upstream refused a token
    /// that had only just been refreshed.
    NotRefreshable,
    /// Time: the provider is away, busy or limiting us.
    Provider,
    /// The operator: a stored credential was changed, or its key is missing.
    Sealed,
    /// Time: the store is away.
    Store,
    /// The user: only a new login helps.
    Terminal,
}

/// A setting that cannot work, found when it was given.
#[derive(Debug)]
pub struct ConfigError {
    setting: &'static str,
    reason: String,
    source: Option<BoxError>,
}

impl ConfigError {
    pub(crate) fn new(setting: &'static str, reason: impl Into<String>) -> Self {
        Self {
            setting,
            reason: reason.into(),
            source: None,
        }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The name of the setting.
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.setting, self.reason)
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}
