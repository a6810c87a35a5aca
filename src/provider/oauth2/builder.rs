//! The settings of a provider, and what they must be for it to work.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::dns::Resolve;

use super::super::http;
use super::super::http::Reach;
use super::super::url::shown;
use super::OAuth2Provider;
use super::authentication::Authenticator;
use super::authentication::ClientAuthentication;
use super::endpoint::Endpoint;
use super::endpoint::Endpoints;
use super::request::Leg;
use super::request::RequestShape;
use super::response::ResponseShape;
use crate::error::ConfigError;

/// Settings of an [`OAuth2Provider`].
///
/// ```
/// use std::time::Duration;
/// use regrant::provider::oauth2::OAuth2Provider;
///
/// let provider = OAuth2Provider::builder("https://idp.example/token", "my-gateway")
///     .revocation_endpoint("https://idp.example/revoke")
///     .timeout(Duration::from_secs(5))
///     .build()?;
/// # Ok::<_, regrant::error::ConfigError>(())
/// ```
#[must_use = "the builder does nothing itself, use `.build()`"]
pub struct OAuth2ProviderBuilder {
    pub(super) issuer: Option<String>,
    token_endpoint: Option<String>,
    refresh_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    client_id: String,
    pub(super) authentication: ClientAuthentication,
    shape: RequestShape,
    on_exchange: Leg,
    on_refresh: Leg,
    response: ResponseShape,
    timeout: Duration,
    resolver: Option<Arc<dyn Resolve>>,
    http: Option<reqwest::ClientBuilder>,
}

impl OAuth2ProviderBuilder {
    pub(super) fn new(client_id: String) -> Self {
        Self {
            issuer: None,
            token_endpoint: None,
            refresh_endpoint: None,
            revocation_endpoint: None,
            client_id,
            authentication: ClientAuthentication::None,
            shape: RequestShape::default(),
            on_exchange: Leg::default(),
            on_refresh: Leg::default(),
            response: ResponseShape::default(),
            timeout: DEFAULT_TIMEOUT,
            resolver: None,
            http: None,
        }
    }

    pub(super) fn issuer(mut self, issuer: String) -> Self {
        self.issuer = Some(issuer);
        self
    }

    /// Another token endpoint. Where each tenant has its own, `{tenant}` stands
    /// for the tenant of the credential, as the first label of the host
    /// (`https://{tenant}.zendesk.com/oauth/tokens`) or as a segment of the path
    /// (`https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token`).
    ///
    /// A tenant is one DNS label in lower case: letters, digits, hyphens. With
    /// any other, or with none, nothing is sent and the refresh is
    /// [`Rejected`](crate::provider::ProviderErrorKind::Rejected). A host that a tenant chose is connected to only if it
    /// resolves to public addresses; through a proxy, that is for the proxy to
    /// check. The default is what the constructor was given.
    ///
    /// ```
    /// use regrant::provider::oauth2::OAuth2Provider;
    ///
    /// let build = |url| OAuth2Provider::builder(url, "gateway").build();
    /// assert!(build("https://{tenant}.zendesk.com/oauth/tokens").is_ok());
    /// assert!(build("https://{tenant}/oauth/tokens").is_err());
    /// ```
    pub fn token_endpoint(mut self, url: impl Into<String>) -> Self {
        self.token_endpoint = Some(url.into());
        self
    }

    /// Where refreshes go, for providers that have another URL for those than
    /// for codes, with `{tenant}` as in [`token_endpoint`](Self::token_endpoint).
    /// The default is the token endpoint.
    pub fn refresh_endpoint(mut self, url: impl Into<String>) -> Self {
        self.refresh_endpoint = Some(url.into());
        self
    }

    /// Where logins are ended (RFC 7009), with `{tenant}` as in
    /// [`token_endpoint`](Self::token_endpoint). The default is the one that was
    /// discovered, or else none, with which revocation is
    /// [`Unsupported`](crate::provider::ProviderErrorKind::Unsupported).
    pub fn revocation_endpoint(mut self, url: impl Into<String>) -> Self {
        self.revocation_endpoint = Some(url.into());
        self
    }

    /// How to authenticate. The default is [`ClientAuthentication::None`].
    pub fn client_authentication(mut self, authentication: ClientAuthentication) -> Self {
        self.authentication = authentication;
        self
    }

    /// The `scope` to send with every refresh. The default is to send none, by
    /// which the scope stays as it was granted (RFC 6749 §6).
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.on_refresh(|leg| leg.scope(scope))
    }

    /// Changes what a refresh sends. The default is [`Leg::default`].
    pub fn on_refresh(mut self, change: impl FnOnce(Leg) -> Leg) -> Self {
        self.on_refresh = change(self.on_refresh);
        self
    }

    /// Changes what the exchange of a code sends. The default is
    /// [`Leg::default`].
    pub fn on_exchange(mut self, change: impl FnOnce(Leg) -> Leg) -> Self {
        self.on_exchange = change(self.on_exchange);
        self
    }

    /// Changes how requests are written. The default is
    /// [`RequestShape::default`].
    pub fn request(mut self, change: impl FnOnce(RequestShape) -> RequestShape) -> Self {
        self.shape = change(self.shape);
        self
    }

    /// Changes how answers are read. The default is [`ResponseShape::default`].
    pub fn response(mut self, change: impl FnOnce(ResponseShape) -> ResponseShape) -> Self {
        self.response = change(self.response);
        self
    }

    /// How long one call may take. It should not exceed
    /// [`Timings::provider_timeout`](crate::settings::Timings::provider_timeout), by which
    /// the engine gives up on a call: only this one can tell a request that was
    /// not sent from one that got no answer. For the same reason connecting
    /// (name, TCP, TLS) has a limit of its own, half of this and at most 3 s: a
    /// provider that is away is then
    /// [`Transient`](crate::provider::ProviderErrorKind::Transient), not
    /// [`Ambiguous`](crate::provider::ProviderErrorKind::Ambiguous). The default
    /// is 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Who resolves host names. The default is the resolver of the HTTP client,
    /// and for hosts that a tenant chooses that of the operating system.
    pub fn dns_resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// The HTTP client to start from: its TLS and proxy settings are kept, and
    /// its DNS settings too, except that the resolver for hosts that a tenant
    /// chooses is that of [`dns_resolver`](Self::dns_resolver). Redirects are
    /// switched off and time-outs set in any case, and plain `http` to loopback
    /// goes through no proxy, nor then does anything else of this provider. The
    /// default is `reqwest::Client::builder()` with a `User-Agent` of
    /// `regrant/` and the version.
    pub fn with_http_client(mut self, http: reqwest::ClientBuilder) -> Self {
        self.http = Some(http);
        self
    }

    /// The provider.
    ///
    /// # Errors
    ///
    /// If an endpoint is not an `https` URL (plain `http` is accepted to
    /// loopback) or not known before discovery, `{tenant}` stands where it may
    /// not, the client id is empty, a private key cannot sign, its assertions
    /// would go to two servers with one audience, a parameter would be sent
    /// twice, or TLS cannot be set up.
    pub fn build(mut self) -> Result<OAuth2Provider, ConfigError> {
        let endpoints = self.parse_endpoints()?;
        let http = self.client(&endpoints, false)?;
        self.assemble(http, endpoints, None)
    }

    /// The endpoints that were set.
    pub(super) fn parse_endpoints(&self) -> Result<Endpoints, ConfigError> {
        let parse = |setting, url: &Option<String>| {
            let url = url.as_deref();
            url.map(|url| Endpoint::parse(setting, url)).transpose()
        };
        Ok(Endpoints {
            token: parse("token endpoint", &self.token_endpoint)?,
            refresh: parse("refresh endpoint", &self.refresh_endpoint)?,
            revocation: parse("revocation endpoint", &self.revocation_endpoint)?,
        })
    }

    /// The HTTP client to ask these endpoints with.
    pub(super) fn client(
        &mut self,
        endpoints: &Endpoints,
        is_this_machine: bool,
    ) -> Result<Client, ConfigError> {
        let (start, resolver) = (self.http.take(), self.resolver.take());
        let domains = endpoints.iter().filter_map(Endpoint::tenant_domain);
        let reach = Reach {
            is_this_machine: is_this_machine || endpoints.iter().any(Endpoint::is_plain),
            tenant_domains: domains.map(str::to_owned).collect(),
        };
        http::client(start, self.timeout, IDLE_TIMEOUT, resolver, reach)
    }

    pub(super) fn assemble(
        self,
        http: Client,
        endpoints: Endpoints,
        audience: Option<String>,
    ) -> Result<OAuth2Provider, ConfigError> {
        let token_endpoint = endpoints.token.ok_or_else(|| {
            ConfigError::new(
                "token endpoint",
                "must be discovered: use `build_discovered`",
            )
        })?;
        if self.client_id.is_empty() {
            return Err(ConfigError::new("client id", "must not be empty"));
        }
        self.on_exchange.check("code exchange")?;
        self.on_refresh.check("refresh")?;
        if let ClientAuthentication::PrivateKeyJwt(settings) = &self.authentication
            && audience.is_none()
            && !settings.has_audience()
        {
            for (setting, endpoint) in [
                ("refresh endpoint", &endpoints.refresh),
                ("revocation endpoint", &endpoints.revocation),
            ] {
                // It would hold assertions that are good at the token endpoint.
                if let Some(endpoint) = endpoint
                    && !endpoint.has_origin_of(&token_endpoint)
                {
                    let reason = "is of another server than the token endpoint: set the audience of assertions";
                    return Err(ConfigError::new(setting, reason));
                }
            }
        }

        Ok(OAuth2Provider {
            http,
            token_endpoint,
            refresh_endpoint: endpoints.refresh,
            revocation_endpoint: endpoints.revocation,
            authenticator: Authenticator::new(&self.client_id, self.authentication, audience)?,
            client_id: self.client_id,
            headers: self.shape.headers()?,
            shape: self.shape,
            on_exchange: self.on_exchange,
            on_refresh: self.on_refresh,
            response: self.response,
        })
    }
}

impl fmt::Debug for OAuth2ProviderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = |url: &Option<String>| url.as_deref().map(shown);
        // Not the HTTP client, whose default headers may hold secrets.
        f.debug_struct("OAuth2ProviderBuilder")
            .field("issuer", &url(&self.issuer))
            .field("token_endpoint", &url(&self.token_endpoint))
            .field("refresh_endpoint", &url(&self.refresh_endpoint))
            .field("revocation_endpoint", &url(&self.revocation_endpoint))
            .field("client_id", &self.client_id)
            .field("authentication", &self.authentication)
            .field("shape", &self.shape)
            .field("on_exchange", &self.on_exchange)
            .field("on_refresh", &self.on_refresh)
            .field("response", &self.response)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that closes an idle connection just when we write to it leaves us
/// guessing whether it read the refresh token.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::ClientSecret;

    #[test]
    fn debug_tells_no_secret() {
        let builder = OAuth2Provider::builder("https://idp.example/token?key=canary", "gateway")
            .refresh_endpoint("https://{tenant}.idp.example/refresh?key=canary")
            .revocation_endpoint("https://idp.example/{tenant}?key=canary")
            .client_authentication(ClientAuthentication::Post(ClientSecret::new("canary")))
            .on_refresh(|leg| leg.parameter("api_key", "canary"))
            .request(|shape| shape.header("x-api-key", "canary"));
        assert!(!format!("{builder:?}").contains("canary"));
        let provider = builder.build().unwrap();
        assert!(!format!("{provider:?} {:?}", provider.headers).contains("canary"));
        for url in [
            "https://u:canary@idp.example/",
            "https://idp.example/#canary",
        ] {
            let refused = OAuth2Provider::discover(url, "gateway").token_endpoint(url);
            let told = format!("{refused:?}");
            assert!(told.contains("https://idp.example/") && !told.contains("canary"));
        }
    }

    #[test]
    fn settings_that_cannot_work_are_found_at_once() {
        type Change = fn(OAuth2ProviderBuilder) -> OAuth2ProviderBuilder;
        let changes: [(Change, &str); 10] = [
            (
                |b| b.token_endpoint("http://idp.example/t"),
                "token endpoint must be https",
            ),
            (
                |b| b.refresh_endpoint("http://idp.example/r"),
                "refresh endpoint must be https",
            ),
            (
                |b| b.revocation_endpoint("ftp://idp.example/r"),
                "revocation endpoint must be https",
            ),
            (
                |b| b.on_refresh(|l| l.parameter("grant_type", "x")),
                "refresh would send the parameter `grant_type` twice",
            ),
            (
                |b| b.on_exchange(|l| l.parameter("a", "1").parameter("a", "2")),
                "code exchange would send",
            ),
            (
                |b| b.on_refresh(|l| l.parameter("client_secret", "x")),
                "refresh would send",
            ),
            (
                |b| b.request(|r| r.header("authorization", "x")),
                "header `authorization` is not for",
            ),
            (
                |b| b.request(|r| r.header("x y", "x")),
                "header `x y` is no name",
            ),
            (
                |b| b.request(|r| r.header("x", "a\nb")),
                "header `x` has a value",
            ),
            (
                |b| OAuth2ProviderBuilder {
                    client_id: String::new(),
                    ..b
                },
                "client id must not be empty",
            ),
        ];
        for (change, want) in changes {
            let builder = OAuth2Provider::builder("https://idp.example/token", "gateway");
            let error = change(builder).build().unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
        let renamed = OAuth2Provider::builder("https://idp.example/token", "gateway")
            .on_refresh(|leg| leg.without("grant_type").parameter("grant_type", "renew"));
        assert!(renamed.build().is_ok());
        let undiscovered = OAuth2Provider::discover("https://idp.example", "gateway").build();
        assert!(
            undiscovered
                .unwrap_err()
                .to_string()
                .contains("build_discovered")
        );
    }
}
