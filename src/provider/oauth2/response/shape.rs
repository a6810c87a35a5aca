//! How a provider's answers deviate, as data.

use serde_json::Map;
use serde_json::Value;

use super::super::super::Expiry;
use super::super::super::ProviderErrorKind;
use super::body::member;
use super::body::text;
use super::body::word;

/// How answers are read. The default is lenient: JSON or a form, `snake_case`
/// or `camelCase`, at the top or under `data`, expiries as number, string,
/// float, absolute seconds or milliseconds, ISO 8601 or `D:HH:MM`, and errors
/// with status 200. What no guess can find out is set here.
///
/// Where a member is to be found is said by a path such as `data.token`. It is
/// looked at first. An answer to a refresh may have the tokens in the usual
/// places instead; one to a code may not, because there somebody else's may be,
/// such as a bot's beside the user's. Tokens and expiry are taken from one place.
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
    conditional_kinds: Vec<ConditionalKind>,
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
    /// knows is [`Rejected`](ProviderErrorKind::Rejected).
    #[must_use]
    pub fn error_kind(mut self, code: impl Into<String>, kind: ProviderErrorKind) -> Self {
        self.kinds.push((code.into(), kind));
        self
    }

    /// What an error code means if the member at `path` says more: if it is text
    /// that contains `text`, in upper or lower case, a number that is `text`, or
    /// an array of such. It goes before [`error_kind`](Self::error_kind). The
    /// default is that only the code counts.
    ///
    /// ```
    /// use regrant::provider::ProviderErrorKind;
    /// use regrant::provider::oauth2::OAuth2Provider;
    ///
    /// let busy = "is already being processed";
    /// let provider = OAuth2Provider::builder("https://idp.example/token", "gateway")
    ///     .response(|shape| {
    ///         let kind = ProviderErrorKind::Transient;
    ///         shape.error_kind_if("invalid_grant", "error_description", busy, kind)
    ///     })
    ///     .build()?;
    /// # Ok::<_, regrant::error::ConfigError>(())
    /// ```
    #[must_use]
    pub fn error_kind_if(
        mut self,
        code: impl Into<String>,
        path: impl Into<String>,
        text: impl Into<String>,
        kind: ProviderErrorKind,
    ) -> Self {
        self.conditional_kinds.push(ConditionalKind {
            code: code.into(),
            path: path.into(),
            text: text.into().to_ascii_lowercase(),
            kind,
        });
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

    /// Whether the tokens are somewhere else than usual.
    pub(super) fn has_own_places(&self) -> bool {
        self.access_token.is_some() || self.refresh_token.is_some()
    }

    /// The access token, and where what belongs to it is.
    pub(super) fn access_token_of<'a>(
        &'a self,
        members: &Map<String, Value>,
        is_exchange: bool,
    ) -> Option<(String, Place<'a>)> {
        let usual = ["access_token", "accessToken"];
        let Some(path) = self.access_token.as_deref() else {
            let anywhere = Place {
                containers: CONTAINERS.to_vec(),
                is_own: true,
            };
            return Some((text(members, anywhere.paths(&usual))?, anywhere));
        };
        if let Some(token) = text(members, [path].into_iter()) {
            let container = path.rsplit_once('.').map_or("", |(container, _)| container);
            return Some((token, Place::own(container)));
        }
        // Slack has a user's tokens in their own place in the answer to a code,
        // and at the top in the answer to a refresh of them.
        let containers = CONTAINERS.into_iter().filter(|_| !is_exchange);
        containers.map(Place::other).find_map(|place| {
            let token = text(members, place.paths(&usual))?;
            Some((token, place))
        })
    }

    pub(super) fn refresh_token_of(
        &self,
        members: &Map<String, Value>,
        place: &Place<'_>,
        is_exchange: bool,
    ) -> Option<String> {
        if self.ignores_refresh_token {
            return None;
        }
        let own = self.refresh_token.as_deref().filter(|_| place.is_own);
        if own.is_some() && is_exchange {
            return text(members, own.into_iter());
        }
        let usual = place.paths(&["refresh_token", "refreshToken"]);
        text(members, own.map(str::to_owned).into_iter().chain(usual))
    }

    pub(super) fn error_of(&self, members: &Map<String, Value>) -> Option<String> {
        let own = self.error.as_deref();
        // Some number their errors; unasked, a number may as well mean success.
        text(members, own.into_iter()).or_else(|| {
            let usual = ["error", "error.code", "error.type"].into_iter();
            word(members, usual.chain(["error_code", "errorCode"]))
        })
    }

    pub(super) fn own_kind(
        &self,
        code: &str,
        members: &Map<String, Value>,
    ) -> Option<ProviderErrorKind> {
        // The last one said: presets speak first.
        let mut conditional = self.conditional_kinds.iter().rev();
        let conditional = conditional.find(|rule| rule.code == code && rule.holds(members));
        conditional.map(|rule| rule.kind).or_else(|| {
            let mut said = self.kinds.iter().rev();
            said.find(|(known, _)| known == code).map(|(_, kind)| *kind)
        })
    }
}

#[derive(Clone, Debug)]
struct ConditionalKind {
    code: String,
    path: String,
    text: String,
    kind: ProviderErrorKind,
}

impl ConditionalKind {
    fn holds(&self, members: &Map<String, Value>) -> bool {
        match member(members, &self.path) {
            Some(Value::Array(items)) => items.iter().any(|item| self.is_said_by(item)),
            Some(value) => self.is_said_by(value),
            None => false,
        }
    }

    fn is_said_by(&self, value: &Value) -> bool {
        match value {
            Value::String(said) => said.to_ascii_lowercase().contains(&self.text),
            // In 150196 there is no 50196.
            Value::Number(number) => number.to_string() == self.text,
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
        }
    }
}

/// Where in an answer the tokens of one login are, under their usual names.
pub(super) struct Place<'a> {
    containers: Vec<&'a str>,
    /// Whether the paths that were set lead there.
    pub(super) is_own: bool,
}

impl<'a> Place<'a> {
    fn own(container: &'a str) -> Self {
        Self {
            containers: vec![container],
            is_own: true,
        }
    }

    fn other(container: &'a str) -> Self {
        Self {
            containers: vec![container],
            is_own: false,
        }
    }

    /// The paths of a member of these names.
    pub(super) fn paths(&self, names: &[&str]) -> impl Iterator<Item = String> {
        self.containers.iter().flat_map(|container| {
            names.iter().map(move |name| match *container {
                "" => (*name).to_owned(),
                container => format!("{container}.{name}"),
            })
        })
    }
}

/// The top, and what many wrap their answers into.
const CONTAINERS: [&str; 2] = ["", "data"];
