//! A provider behind an RFC 6749 token endpoint.
//!
//! 1. The refresh token is sent once, in a form body, never in a URL.
//! 2. Client authentication goes into the header *or* the body, never both
//!    (RFC 6749 §2.3); for `client_secret_basic` both parts are form-encoded
//!    first (§2.3.1).
//! 3. Redirects are not followed: they would hand the secrets to whoever the
//!    redirect names.
//! 4. Plain `http` is refused but to loopback.
//! 5. Answers are read leniently, because by then the token is spent: see
//!    `response.rs`.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::byte_serialize;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::header::ACCEPT;
use reqwest::header::AUTHORIZATION;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HeaderValue;
use reqwest::header::RETRY_AFTER;
use zeroize::Zeroizing;

use super::Provider;
use super::ProviderError;
use super::ProviderErrorKind;
use super::RefreshRequest;
use super::RevocationRequest;
use super::TokenResponse;
use super::response;
use crate::error::ConfigError;
use crate::secret::ClientSecret;
use crate::secret::UpstreamRefreshToken;

/// Refreshes at the token endpoint of an OAuth 2.0 authorization server.
///
/// ```
/// use regrant::provider::oauth2::ClientAuthentication;
/// use regrant::provider::oauth2::OAuth2Provider;
/// use regrant::secret::ClientSecret;
///
/// let secret = ClientSecret::new("…");
/// let provider = OAuth2Provider::builder("https://idp.example/token", "my-gateway")
///     .client_authentication(ClientAuthentication::Basic(secret))
///     .build()?;
/// # Ok::<_, regrant::error::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct OAuth2Provider {
    http: reqwest::Client,
    token_endpoint: reqwest::Url,
    client_id: String,
    authentication: ClientAuthentication,
    scope: Option<String>,
}

impl OAuth2Provider {
    /// Starts with a public client (`none`) of this id at this token endpoint.
    pub fn builder(
        token_endpoint: impl Into<String>,
        client_id: impl Into<String>,
    ) -> OAuth2ProviderBuilder {
        OAuth2ProviderBuilder {
            token_endpoint: token_endpoint.into(),
            client_id: client_id.into(),
            authentication: ClientAuthentication::None,
            scope: None,
            timeout: DEFAULT_TIMEOUT,
            http: None,
        }
    }

    async fn send(
        &self,
        refresh_token: &UpstreamRefreshToken,
    ) -> Result<TokenResponse, ProviderError> {
        let mut request = self
            .http
            .post(self.token_endpoint.clone())
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let ClientAuthentication::Basic(secret) = &self.authentication {
            request = request.header(AUTHORIZATION, basic(&self.client_id, secret)?);
        }
        let mut answer = request
            .body(self.form(refresh_token))
            .send()
            .await
            .map_err(transport_error)?;
        let status = answer.status();
        let retry_after = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(transport_error)? {
            body.extend_from_slice(&chunk);
            if body.len() > RESPONSE_LIMIT {
                return Err(ProviderError::from(ProviderErrorKind::Ambiguous)
                    .with_source(format!("an answer of more than {RESPONSE_LIMIT} bytes")));
            }
        }

        response::read(status, &body).map_err(|error| error.with_retry_after(retry_after))
    }

    fn form(&self, refresh_token: &UpstreamRefreshToken) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", refresh_token.expose());
        if let Some(scope) = &self.scope {
            form.append_pair("scope", scope);
        }
        match &self.authentication {
            // In the header; some providers refuse a request that says it twice.
            ClientAuthentication::Basic(_) => {}
            ClientAuthentication::Post(secret) => {
                form.append_pair("client_id", &self.client_id)
                    .append_pair("client_secret", secret.expose());
            }
            ClientAuthentication::None => {
                form.append_pair("client_id", &self.client_id);
            }
        }
        form.finish()
    }
}

impl Provider for OAuth2Provider {
    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        self.send(request.refresh_token).boxed()
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }
}

impl fmt::Debug for OAuth2Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuth2Provider")
            .field("token_endpoint", &self.token_endpoint.as_str())
            .field("client_id", &self.client_id)
            .field("authentication", &self.authentication)
            .finish_non_exhaustive()
    }
}

/// How the gateway authenticates at the token endpoint (RFC 7591 §2 names).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientAuthentication {
    /// `client_secret_basic`: id and secret in the `Authorization` header.
    Basic(ClientSecret),
    /// `client_secret_post`: id and secret in the form.
    Post(ClientSecret),
    /// `none`: a public client, its id in the form.
    None,
}

/// Settings of an [`OAuth2Provider`].
#[derive(Debug)]
#[must_use = "the builder does nothing itself, use `.build()`"]
pub struct OAuth2ProviderBuilder {
    token_endpoint: String,
    client_id: String,
    authentication: ClientAuthentication,
    scope: Option<String>,
    timeout: Duration,
    http: Option<reqwest::ClientBuilder>,
}

impl OAuth2ProviderBuilder {
    /// How to authenticate. The default is [`ClientAuthentication::None`].
    pub fn client_authentication(mut self, authentication: ClientAuthentication) -> Self {
        self.authentication = authentication;
        self
    }

    /// The `scope` to send with every refresh. The default is to send none, by
    /// which the scope stays as it was granted (RFC 6749 §6).
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// How long one call may take. The default is 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The HTTP client to start from: its TLS, proxy and DNS settings are kept.
    /// Redirects are switched off and time-outs set in any case. The default is
    /// `reqwest::Client::builder()`.
    pub fn with_http_client(mut self, http: reqwest::ClientBuilder) -> Self {
        self.http = Some(http);
        self
    }

    /// The provider.
    ///
    /// # Errors
    ///
    /// If the token endpoint is not an `https` URL (plain `http` is accepted to
    /// loopback), the client id is empty, or TLS cannot be set up.
    pub fn build(self) -> Result<OAuth2Provider, ConfigError> {
        let token_endpoint = reqwest::Url::parse(&self.token_endpoint)
            .map_err(|error| ConfigError::new("token endpoint", "is not a URL").caused_by(error))?;
        if !is_safe(&token_endpoint) {
            return Err(ConfigError::new(
                "token endpoint",
                "must be https (plain http is accepted to loopback only)",
            ));
        }
        if self.client_id.is_empty() {
            return Err(ConfigError::new("client id", "must not be empty"));
        }
        let http = self
            .http
            .unwrap_or_else(reqwest::Client::builder)
            .redirect(reqwest::redirect::Policy::none())
            // A request that was sent must not be sent again by the client.
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT.min(self.timeout))
            .timeout(self.timeout)
            .build()
            .map_err(|error| {
                ConfigError::new("HTTP client", "cannot be set up").caused_by(error)
            })?;

        Ok(OAuth2Provider {
            http,
            token_endpoint,
            client_id: self.client_id,
            authentication: self.authentication,
            scope: self.scope,
        })
    }
}

/// `https`, or `http` that does not leave this machine.
fn is_safe(url: &reqwest::Url) -> bool {
    let loopback = || match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback())
}

fn basic(client_id: &str, secret: &ClientSecret) -> Result<HeaderValue, ProviderError> {
    let mut pair = Zeroizing::new(String::new());
    pair.extend(byte_serialize(client_id.as_bytes()));
    pair.push(':');
    pair.extend(byte_serialize(secret.expose().as_bytes()));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&text).map_err(|error| {
        ProviderError::from(ProviderErrorKind::Misconfigured).with_source(error)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn transport_error(error: reqwest::Error) -> ProviderError {
    let kind = if error.is_connect() {
        // No connection, no TLS: nothing was sent.
        ProviderErrorKind::Transient
    } else if error.is_builder() {
        ProviderErrorKind::Misconfigured
    } else {
        ProviderErrorKind::Ambiguous
    };
    // The URL may hold what an operator put into its query.
    ProviderError::from(kind).with_source(error.without_url())
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const RESPONSE_LIMIT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_accepted_to_loopback_only() {
        for (url, want) in [
            ("https://idp.example/token", true),
            ("http://127.0.0.1:9/token", true),
            ("http://localhost/token", true),
            ("http://[::1]:9/token", true),
            ("http://idp.example/token", false),
            ("http://127.0.0.1.example/token", false),
            ("http://10.0.0.1/token", false),
            ("ftp://127.0.0.1/token", false),
            ("not a url", false),
        ] {
            let built = OAuth2Provider::builder(url, "gateway").build();
            assert_eq!(built.is_ok(), want, "{url}: {built:?}");
        }
    }

    #[test]
    fn basic_credentials_are_form_encoded_before_base64() {
        let value = basic("my id", &ClientSecret::new("a:b%é")).unwrap();

        let encoded = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        let pair = STANDARD.decode(encoded).unwrap();
        assert_eq!(pair, b"my+id:a%3Ab%25%C3%A9");
        assert!(value.is_sensitive());
    }

    #[test]
    fn debug_tells_no_secret() {
        let provider = OAuth2Provider::builder("https://idp.example/token", "gateway")
            .client_authentication(ClientAuthentication::Post(ClientSecret::new("canary")))
            .build()
            .unwrap();
        assert!(!format!("{provider:?}").contains("canary"));
    }
}
