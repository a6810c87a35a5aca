//! Providers: the upstream authorization servers (RFC 6749 §1.1).
//!
//! A [`Provider`] does one thing, [`refresh`](Provider::refresh), and tells
//! precisely how that ended. The promise of this crate hangs on the difference:
//!
//! | kind of error | the refresh token | what we do |
//! |---|---|---|
//! | [`Terminal`](ProviderErrorKind::Terminal) | is dead | record it, never send it again |
//! | [`Misconfigured`](ProviderErrorKind::Misconfigured) | is fine | alarm; 503 |
//! | [`Transient`](ProviderErrorKind::Transient) | is fine | try later |
//! | [`Rejected`](ProviderErrorKind::Rejected) | is fine | try later; the provider is not to blame |
//! | [`Ambiguous`](ProviderErrorKind::Ambiguous) | may be spent | read the store again, try later |
//! | [`Unsupported`](ProviderErrorKind::Unsupported) | there is no such thing | serve until the access token expires |
//!
//! [`OAuth2Provider`](oauth2::OAuth2Provider) (feature `reqwest`) speaks to any
//! RFC 6749 token endpoint; [`presets`] know how some providers deviate.
//! [`GitHubApp`](github::GitHubApp) mints the tokens of a GitHub App.

#[cfg(feature = "reqwest")]
pub mod github;
#[cfg(feature = "reqwest")]
mod http;
mod jwt;
#[cfg(feature = "reqwest")]
pub mod oauth2;
#[cfg(feature = "reqwest")]
pub mod presets;
#[cfg(feature = "reqwest")]
mod resolver;
#[cfg(feature = "reqwest")]
mod signature;
#[cfg(feature = "reqwest")]
mod url;

use std::error::Error;
use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::future::BoxFuture;

pub(crate) use self::jwt::jwt_expiry;
use crate::BoxError;
use crate::secret::UpstreamAccessToken;
use crate::secret::UpstreamRefreshToken;

/// An upstream authorization server.
pub trait Provider: fmt::Debug + Send + Sync + 'static {
    /// Asks for a new access token (RFC 6749 §6). It *spends* the refresh
    /// token, which may be single-use: implementations send it once and do not
    /// retry by themselves.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind`] says what became of the refresh token.
    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>>;

    /// Ends a login at the provider (RFC 7009 §2.1). A token that the provider
    /// does not know counts as ended.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Unsupported`] if the provider has no such thing;
    /// the other kinds as for [`refresh`](Self::refresh).
    fn revoke<'a>(
        &'a self,
        request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>>;

    /// How many refreshes it takes at a time from one process; further ones wait
    /// for their turn before they begin. The default is as many as there are.
    fn concurrency(&self) -> usize {
        usize::MAX
    }

    /// Whether a refresh may spend the token that is sent. If not, an attempt that
    /// was cut off has lost nothing. The default is `true`.
    fn spends(&self) -> bool {
        true
    }
}

/// A request for a new access token (RFC 6749 §6).
///
/// ```
/// use regrant::provider::RefreshRequest;
/// use regrant::secret::UpstreamRefreshToken;
///
/// let token = UpstreamRefreshToken::new("rt-1");
/// let request = RefreshRequest::new(&token).tenant(Some("acme"));
/// assert_eq!(request.tenant, Some("acme"));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RefreshRequest<'a> {
    /// The token to spend.
    pub refresh_token: &'a UpstreamRefreshToken,
    /// The user's tenant at the provider, where each has a host of its own.
    pub tenant: Option<&'a str>,
}

impl<'a> RefreshRequest<'a> {
    /// A request that spends this token, of no tenant.
    pub fn new(refresh_token: &'a UpstreamRefreshToken) -> Self {
        Self {
            refresh_token,
            tenant: None,
        }
    }

    /// The user's tenant at the provider. The default is none.
    #[must_use]
    pub fn tenant(mut self, tenant: Option<&'a str>) -> Self {
        self.tenant = tenant;
        self
    }
}

/// A request to end a login at the provider (RFC 7009 §2.1).
///
/// ```
/// use regrant::provider::RevocationRequest;
/// use regrant::secret::UpstreamRefreshToken;
///
/// let token = UpstreamRefreshToken::new("rt-1");
/// assert_eq!(RevocationRequest::new(&token).tenant, None);
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RevocationRequest<'a> {
    /// The token whose login is to end.
    pub refresh_token: &'a UpstreamRefreshToken,
    /// The newest access token of that login, for providers that end each by
    /// itself.
    pub access_token: Option<&'a UpstreamAccessToken>,
    /// The user's tenant at the provider, where each has a host of its own.
    pub tenant: Option<&'a str>,
}

impl<'a> RevocationRequest<'a> {
    /// A request to revoke this token, of no tenant.
    pub fn new(refresh_token: &'a UpstreamRefreshToken) -> Self {
        Self {
            refresh_token,
            access_token: None,
            tenant: None,
        }
    }

    /// The newest access token of the login. The default is none.
    #[must_use]
    pub fn access_token(mut self, token: Option<&'a UpstreamAccessToken>) -> Self {
        self.access_token = token;
        self
    }

    /// The user's tenant at the provider. The default is none.
    #[must_use]
    pub fn tenant(mut self, tenant: Option<&'a str>) -> Self {
        self.tenant = tenant;
        self
    }
}

/// What a provider answered (RFC 6749 §5.1).
///
/// ```
/// use regrant::provider::{Expiry, TokenResponse};
/// use regrant::secret::UpstreamAccessToken;
///
/// let mut response = TokenResponse::new(UpstreamAccessToken::new("at-1"));
/// assert_eq!(response.expiry, Expiry::Unknown);
/// response.expiry = Expiry::Never;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TokenResponse {
    /// The new access token.
    pub access_token: UpstreamAccessToken,
    /// The new refresh token; `None` if the old one stays valid (RFC 6749 §6).
    pub refresh_token: Option<UpstreamRefreshToken>,
    /// When the access token expires.
    pub expiry: Expiry,
    /// When the refresh token expires, where the provider says it.
    pub refresh_expiry: Expiry,
}

impl TokenResponse {
    /// An answer with this access token, no new refresh token and no expiry.
    pub fn new(access_token: UpstreamAccessToken) -> Self {
        Self {
            access_token,
            refresh_token: None,
            expiry: Expiry::Unknown,
            refresh_expiry: Expiry::Unknown,
        }
    }
}

/// When a token expires. What a provider does not say is not invented.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// use regrant::provider::Expiry;
///
/// let minute = Duration::from_secs(60);
/// assert_eq!(Expiry::After(minute).at(UNIX_EPOCH), Some(UNIX_EPOCH + minute));
/// assert_eq!(Expiry::Unknown.at(UNIX_EPOCH), None);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Expiry {
    /// This long after it was issued.
    After(Duration),
    /// At this time.
    At(SystemTime),
    /// By the provider's word, not at all.
    Never,
    /// Nobody knows: the token itself may tell (a JWT's `exp`), or an
    /// upstream's 401.
    Unknown,
}

impl Expiry {
    /// The time of expiry of a token issued at `issued_at`; `None` if nobody
    /// knows it, or if what was said makes no sense: a token that expired
    /// before it was issued would be refreshed on every request, and a year
    /// after 9999 is more than databases hold.
    pub fn at(self, issued_at: SystemTime) -> Option<SystemTime> {
        match self {
            Self::After(lifetime) => issued_at.checked_add(lifetime),
            Self::At(time) => Some(time),
            Self::Never | Self::Unknown => None,
        }
        .filter(|time| *time > issued_at && *time < SystemTime::UNIX_EPOCH + YEAR_9999)
    }

    /// The same for a token that was handed over at `now`: it may have expired
    /// before, and nobody may have looked whether it tells.
    pub(crate) fn of_login(
        self,
        token: &UpstreamAccessToken,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let expiry = match self {
            Self::Unknown => jwt_expiry(token.expose()).map_or(self, Self::At),
            Self::After(_) | Self::At(_) | Self::Never => self,
        };
        if matches!(expiry, Self::At(time) if time <= now) {
            return Some(now);
        }
        expiry.at(now)
    }
}

/// Why a provider gave no access token.
///
/// ```
/// use regrant::provider::{ProviderError, ProviderErrorKind};
///
/// let error = ProviderError::from(ProviderErrorKind::Terminal).with_code("invalid_grant");
/// assert_eq!(error.to_string(), "the provider ended the login (`invalid_grant`)");
/// ```
#[derive(Debug)]
pub struct ProviderError {
    kind: ProviderErrorKind,
    code: Option<String>,
    retry_after: Option<Duration>,
    source: Option<BoxError>,
}

impl ProviderError {
    /// What became of the refresh token.
    pub fn kind(&self) -> ProviderErrorKind {
        self.kind
    }

    /// The `error` code of the answer (RFC 6749 §5.2), if there was one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// How long the provider asked to be left alone (`Retry-After`).
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Adds the `error` code of the answer.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Adds the provider's `Retry-After`.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// Adds what caused it. It must not contain a token.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl From<ProviderErrorKind> for ProviderError {
    fn from(kind: ProviderErrorKind) -> Self {
        Self {
            kind,
            code: None,
            retry_after: None,
            source: None,
        }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ProviderErrorKind::Ambiguous => "no answer after the refresh token was sent",
            ProviderErrorKind::Misconfigured => {
                "the provider refuses this gateway: check client id, secret and client authentication"
            }
            ProviderErrorKind::Terminal => "the provider ended the login",
            ProviderErrorKind::Transient => "the provider cannot answer now",
            ProviderErrorKind::Rejected => "the request for this credential is refused",
            ProviderErrorKind::Unsupported => "the provider cannot refresh",
        })?;
        match &self.code {
            Some(code) => write!(f, " (`{code}`)"),
            None => Ok(()),
        }
    }
}

impl Error for ProviderError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// What became of the refresh token.
///
/// ```
/// use regrant::provider::{ProviderError, ProviderErrorKind};
///
/// let error = ProviderError::from(ProviderErrorKind::Transient);
/// assert_eq!(error.kind(), ProviderErrorKind::Transient);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ProviderErrorKind {
    /// It was sent and the outcome is unknown: it may be spent.
    Ambiguous,
    /// It was not looked at: the provider refuses this gateway's own credentials.
    Misconfigured,
    /// It is dead: the provider or the user ended the login (`invalid_grant`).
    Terminal,
    /// It is untouched: the provider is away, busy or limiting us.
    Transient,
    /// It is untouched: the request for this credential cannot be made (its
    /// tenant is none), or is refused without a word on the token. That says
    /// nothing of other credentials.
    Rejected,
    /// This provider has no such thing.
    Unsupported,
}

const YEAR_9999: Duration = Duration::from_secs(253_370_764_800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_that_makes_no_sense_is_unknown() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let second = Duration::from_secs(1);
        for (expiry, want) in [
            (Expiry::After(second), Some(now + second)),
            (Expiry::At(now + second), Some(now + second)),
            (Expiry::Unknown, None),
            (Expiry::After(Duration::ZERO), None),
            (Expiry::After(Duration::MAX), None),
            (Expiry::After(YEAR_9999), None),
            (Expiry::At(now - second), None),
        ] {
            assert_eq!(expiry.at(now), want, "{expiry:?}");
        }
    }

    #[test]
    fn the_trait_is_dyn_compatible() {
        fn _takes(_provider: &dyn Provider) {}
    }
}
