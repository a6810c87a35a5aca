//! What is sent, as data: parameters, headers, form or JSON.

use std::borrow::Cow;
use std::fmt;

use reqwest::header::ACCEPT;
use reqwest::header::ACCEPT_ENCODING;
use reqwest::header::AUTHORIZATION;
use reqwest::header::CONTENT_LENGTH;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HOST;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderName;
use reqwest::header::HeaderValue;
use reqwest::header::TRANSFER_ENCODING;
use serde_json::Map;
use serde_json::Value;

use crate::error::ConfigError;

/// The parameters of one request, in the order of sending.
pub(super) type Parameters<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// What one leg, code exchange or refresh, sends beyond RFC 6749's minimum.
/// Providers differ by leg: some refuse `resource` on refresh, some require it.
///
/// ```
/// use regrant::provider::oauth2::OAuth2Provider;
///
/// let provider = OAuth2Provider::builder("https://idp.example/token", "gateway")
///     .on_exchange(|leg| leg.resource("https://mcp.example"))
///     .on_refresh(|leg| leg.scope("read offline_access").parameter("expires_in", "1800"))
///     .build()?;
/// # Ok::<_, regrant::error::ConfigError>(())
/// ```
#[derive(Clone, Default)]
pub struct Leg {
    scope: Option<String>,
    resource: Option<String>,
    audience: Option<String>,
    parameters: Vec<(String, String)>,
    omitted: Vec<String>,
}

impl Leg {
    /// The `scope` to send, its items separated by spaces. The default is to
    /// send none, by which the scope stays as it was granted (RFC 6749 §6).
    #[must_use]
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// The `resource` to send (RFC 8707 §2). The default is to send none.
    #[must_use]
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// The `audience` to send. The default is to send none.
    #[must_use]
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// Adds a parameter. The default is to add none.
    #[must_use]
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.parameters.push((name.into(), value.into()));
        self
    }

    /// Leaves out a parameter of RFC 6749, which
    /// [`parameter`](Self::parameter) may then give another value. The default
    /// is to leave out none.
    ///
    /// ```
    /// use regrant::provider::oauth2::OAuth2Provider;
    ///
    /// let basecamp = OAuth2Provider::builder("https://launchpad.37signals.com/authorization/token", "id")
    ///     .on_refresh(|leg| leg.without("grant_type").parameter("type", "refresh"))
    ///     .build()?;
    /// # Ok::<_, regrant::error::ConfigError>(())
    /// ```
    #[must_use]
    pub fn without(mut self, name: impl Into<String>) -> Self {
        self.omitted.push(name.into());
        self
    }

    /// What this leg sends, after these parameters of the protocol's.
    pub(super) fn parameters<'a>(
        &'a self,
        protocol: Parameters<'a>,
        shape: &RequestShape,
    ) -> Parameters<'a> {
        let mut parameters = protocol;
        parameters.retain(|(name, _)| !self.omitted.iter().any(|omitted| omitted == name));
        if let Some(scope) = &self.scope {
            let scope = match shape.scope_separator {
                ' ' => Cow::Borrowed(&**scope),
                separator => Cow::Owned(scope.replace(' ', separator.encode_utf8(&mut [0; 4]))),
            };
            parameters.push(("scope", scope));
        }
        for (name, value) in [("resource", &self.resource), ("audience", &self.audience)] {
            parameters.extend(value.as_deref().map(|value| (name, value.into())));
        }
        let added = self.parameters.iter();
        parameters.extend(added.map(|(name, value)| (&**name, (&**value).into())));
        parameters
    }

    /// A parameter must not be sent twice (RFC 6749 §3.2).
    pub(super) fn check(&self, setting: &'static str) -> Result<(), ConfigError> {
        let mut names = vec!["grant_type", "refresh_token", "redirect_uri"];
        names.extend(["code", "code_verifier"]);
        names.retain(|name| !self.omitted.iter().any(|omitted| omitted == name));
        names.extend(["client_secret", "client_assertion", "client_assertion_type"]);
        names.extend(self.scope.as_ref().map(|_| "scope"));
        names.extend(self.resource.as_ref().map(|_| "resource"));
        names.extend(self.audience.as_ref().map(|_| "audience"));
        for (name, _) in &self.parameters {
            if name.is_empty() || names.contains(&&**name) {
                let reason = format!("would send the parameter `{name}` twice");
                return Err(ConfigError::new(setting, reason));
            }
            names.push(name);
        }
        Ok(())
    }
}

/// Values may be secrets: providers have keys of many names.
impl fmt::Debug for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let added = self.parameters.iter();
        f.debug_struct("Leg")
            .field("scope", &self.scope)
            .field("resource", &self.resource)
            .field("audience", &self.audience)
            .field(
                "parameters",
                &added.map(|(name, _)| name).collect::<Vec<_>>(),
            )
            .field("omitted", &self.omitted)
            .finish()
    }
}

/// How requests are written. The default is what RFC 6749 says.
///
/// ```
/// use regrant::provider::oauth2::OAuth2Provider;
///
/// let provider = OAuth2Provider::builder("https://idp.example/token", "gateway")
///     .request(|shape| shape.json().client_id_parameter("client_key").scope_separator(','))
///     .build()?;
/// # Ok::<_, regrant::error::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct RequestShape {
    is_json: bool,
    scope_separator: char,
    pub(super) client_id_parameter: String,
    headers: Vec<(String, String)>,
}

impl RequestShape {
    /// Sends a JSON object. The default is a form (RFC 6749 §4.1.3).
    #[must_use]
    pub fn json(mut self) -> Self {
        self.is_json = true;
        self
    }

    /// What stands between the items of a scope. The default is a space
    /// (RFC 6749 §3.3).
    #[must_use]
    pub fn scope_separator(mut self, separator: char) -> Self {
        self.scope_separator = separator;
        self
    }

    /// The name of the parameter with the client id. The default is
    /// `client_id`.
    #[must_use]
    pub fn client_id_parameter(mut self, name: impl Into<String>) -> Self {
        self.client_id_parameter = name.into();
        self
    }

    /// Adds a header to every request. The default is to add none.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The headers of every request but `Authorization`.
    pub(super) fn headers(&self) -> Result<HeaderMap, ConfigError> {
        let content_type = if self.is_json {
            "application/json"
        } else {
            "application/x-www-form-urlencoded"
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // Without it any coding is acceptable (RFC 9110 §12.5.3), and an answer
        // that cannot be decoded has spent the token all the same.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        for (name, value) in &self.headers {
            let unusable = |reason| ConfigError::new("header", format!("`{name}` {reason}"));
            let parsed = HeaderName::try_from(name)
                .map_err(|error| unusable("is no name of a header").caused_by(error))?;
            // The message of this error does not repeat the value.
            let mut value = HeaderValue::try_from(value)
                .map_err(|error| unusable("has a value that fits no header").caused_by(error))?;
            if [
                AUTHORIZATION,
                CONTENT_LENGTH,
                CONTENT_TYPE,
                HOST,
                TRANSFER_ENCODING,
            ]
            .contains(&parsed)
            {
                return Err(unusable("is not for settings to change"));
            }
            value.set_sensitive(true);
            headers.insert(parsed, value);
        }
        Ok(headers)
    }

    pub(super) fn body(&self, parameters: &Parameters<'_>) -> String {
        if self.is_json {
            let members = parameters.iter();
            let members: Map<String, Value> = members
                .map(|(name, value)| ((*name).to_owned(), Value::from(&**value)))
                .collect();
            return Value::Object(members).to_string();
        }
        form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish()
    }
}

impl Default for RequestShape {
    fn default() -> Self {
        Self {
            is_json: false,
            scope_separator: ' ',
            client_id_parameter: "client_id".to_owned(),
            headers: Vec::new(),
        }
    }
}

/// Values of headers may be secrets.
impl fmt::Debug for RequestShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = self.headers.iter();
        f.debug_struct("RequestShape")
            .field("is_json", &self.is_json)
            .field("scope_separator", &self.scope_separator)
            .field("client_id_parameter", &self.client_id_parameter)
            .field(
                "headers",
                &headers.map(|(name, _)| name).collect::<Vec<_>>(),
            )
            .finish()
    }
}
