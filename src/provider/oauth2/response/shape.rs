//! How a provider's answers deviate, as data.

use serde_json::Map;
use serde_json::Value;

use super::super::super::Expiry;
use super::super::super::ProviderErrorKind;
use super::body::text;
use super::body::word;

/// How answers are read. The default is lenient: JSON or a form, `snake_case`
/// or `camelCase`, at the top or under `data`, expiries as number, string,
/// float, absolute seconds or milliseconds, ISO 8601 or `D:HH:MM`, and errors
/// with status 200. What no guess can find out is set here.
///
/// Where a member is to be found is said by a path such as `data.token`. It is
/// looked at first; the usual places still count.
///
/// ```
/// use std::time::Duration;
/// use regrant::provider::Expiry;
/// use regrant::provider::ProviderErrorKind;
/// use regrant::provider::oauth2::OAuth2Provider;
///
/// let provider = OAuth2Provider::builder("https://idp.example/token", "gateway")
///     .response(|shape| {
///         shape
///             .access_token("result.token")
///             .expiry_if_missing(Expiry::After(Duration::from_secs(7_200)))
///             .error_kind("token_revoked", ProviderErrorKind::Terminal)
///     })
///     .build()?;
/// # Ok::<_, regrant::error::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ResponseShape {
    access_token: Option<String>,
    refresh_token: Option<String>,
    error: Option<String>,
    pub(super) expiry: Option<String>,
    pub(super) counts_milliseconds: bool,
    pub(super) expiry_if_missing: Option<Expiry>,
    pub(super) expiry_always: Option<Expiry>,
    ignores_refresh_token: bool,
    kinds: Vec<(String, ProviderErrorKind)>,
}

impl ResponseShape {
    /// Where the access token is. The default is `access_token`.
    #[must_use]
    pub fn access_token(mut self, path: impl Into<String>) -> Self {
        self.access_token = Some(path.into());
        self
    }

    /// Where the refresh token is. The default is `refresh_token`.
    #[must_use]
    pub fn refresh_token(mut self, path: impl Into<String>) -> Self {
        self.refresh_token = Some(path.into());
        self
    }

    /// Keeps the old refresh token whatever the answer says, for providers that
    /// return one which does not work. The default is to take what is returned.
    #[must_use]
    pub fn ignore_refresh_token(mut self) -> Self {
        self.ignores_refresh_token = true;
        self
    }

    /// Where the code of an error is. The default is `error`.
    #[must_use]
    pub fn error(mut self, path: impl Into<String>) -> Self {
        self.error = Some(path.into());
        self
    }

    /// What an error code means, against or beyond RFC 6749 §5.2. Whatever it
    /// says, a status of 408, 429 or 5xx is transient, and only an answer of
    /// 200, 400, 401 or 403 ends a login. The default is that a code nobody
    /// knows is transient.
    #[must_use]
    pub fn error_kind(mut self, code: impl Into<String>, kind: ProviderErrorKind) -> Self {
        self.kinds.push((code.into(), kind));
        self
    }

    /// Where the expiry is. The default is `expires_in` or `expires_at`.
    #[must_use]
    pub fn expiry_at(mut self, path: impl Into<String>) -> Self {
        self.expiry = Some(path.into());
        self
    }

    /// Lifetimes are in milliseconds, which no number tells by itself. The
    /// default is seconds (RFC 6749 §5.1).
    #[must_use]
    pub fn milliseconds(mut self) -> Self {
        self.counts_milliseconds = true;
        self
    }

    /// The expiry of tokens whose answer has none:
    /// [`After`](Expiry::After) where the provider documents a lifetime,
    /// [`Never`](Expiry::Never) where it documents that such tokens live on. The
    /// default is [`Unknown`](Expiry::Unknown).
    #[must_use]
    pub fn expiry_if_missing(mut self, expiry: Expiry) -> Self {
        self.expiry_if_missing = Some(expiry);
        self
    }

    /// The expiry of every token, for providers whose answers say what is not
    /// true. The default is to believe the answer.
    #[must_use]
    pub fn expiry_always(mut self, expiry: Expiry) -> Self {
        self.expiry_always = Some(expiry);
        self
    }

    pub(super) fn access_token_of(&self, members: &Map<String, Value>) -> Option<String> {
        let usual = ["access_token", "accessToken"].into_iter();
        let nested = ["data.access_token", "data.accessToken"];
        let paths = self.access_token.as_deref().into_iter();
        text(members, paths.chain(usual).chain(nested))
    }

    pub(super) fn refresh_token_of(&self, members: &Map<String, Value>) -> Option<String> {
        if self.ignores_refresh_token {
            return None;
        }
        let usual = ["refresh_token", "refreshToken"].into_iter();
        let nested = ["data.refresh_token", "data.refreshToken"];
        let paths = self.refresh_token.as_deref().into_iter();
        text(members, paths.chain(usual).chain(nested))
    }

    pub(super) fn error_of(&self, members: &Map<String, Value>) -> Option<String> {
        let own = self.error.as_deref();
        // Some number their errors; unasked, a number may as well mean success.
        text(members, own.into_iter()).or_else(|| {
            let usual = ["error", "error.code", "error.type"].into_iter();
            word(members, usual.chain(["error_code", "errorCode"]))
        })
    }

    pub(super) fn own_kind(&self, code: &str) -> Option<ProviderErrorKind> {
        // The last one said: presets speak first.
        let mut said = self.kinds.iter().rev();
        said.find(|(known, _)| known == code).map(|(_, kind)| *kind)
    }
}
