//! A provider behind an RFC 6749 token endpoint.
//!
//! 1. Refresh tokens and codes are sent once, in a body, never in a URL.
//! 2. Client authentication goes into the header *or* the body, never both
//!    (RFC 6749 §2.3); see [`ClientAuthentication`].
//! 3. Redirects are not followed: they would hand the secrets to whoever the
//!    redirect names.
//! 4. Plain `http` is refused but to loopback. A host that the user's tenant
//!    chooses is held to the public internet; see
//!    [`OAuth2ProviderBuilder::token_endpoint`].
//! 5. Answers are read leniently, because by then the token is spent; see
//!    [`ResponseShape`].
//! 6. How a provider deviates is data: [`RequestShape`], [`Leg`],
//!    [`ResponseShape`]. For some it is known: [`presets`](super::presets).
//!
//! What no data expresses: refreshes by `GET` or with the parameters in a query
//! string, answers without an access token (a cookie, a header, a bare string),
//! and mutual TLS (RFC 8705) but for the certificate of an HTTP client of the
//! gateway's own. For those, implement [`Provider`].

mod assertion;
mod authentication;
mod builder;
mod discovery;
mod endpoint;
mod request;
mod response;

use std::fmt;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::header::AUTHORIZATION;
use reqwest::header::HeaderMap;

pub use self::assertion::PrivateKeyJwt;
pub use self::assertion::SigningAlgorithm;
use self::authentication::Authenticator;
pub use self::authentication::ClientAuthentication;
pub use self::builder::OAuth2ProviderBuilder;
pub use self::discovery::DiscoveryError;
use self::endpoint::Endpoint;
pub use self::request::Leg;
use self::request::Parameters;
pub use self::request::RequestShape;
pub use self::response::ResponseShape;
use self::response::Sent;
use super::Provider;
use super::ProviderError;
use super::ProviderErrorKind;
use super::RefreshRequest;
use super::RevocationRequest;
use super::TokenResponse;
use super::http;
use super::http::Answer;
use crate::secret::CodeVerifier;
use crate::secret::UpstreamCode;

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
    token_endpoint: Endpoint,
    refresh_endpoint: Option<Endpoint>,
    revocation_endpoint: Option<Endpoint>,
    client_id: String,
    authenticator: Authenticator,
    headers: HeaderMap,
    shape: RequestShape,
    on_exchange: Leg,
    on_refresh: Leg,
    response: ResponseShape,
}

impl OAuth2Provider {
    /// Starts with a public client (`none`) of this id at this token endpoint;
    /// see [`OAuth2ProviderBuilder::token_endpoint`].
    pub fn builder(
        token_endpoint: impl Into<String>,
        client_id: impl Into<String>,
    ) -> OAuth2ProviderBuilder {
        OAuth2ProviderBuilder::new(client_id.into()).token_endpoint(token_endpoint)
    }

    /// Starts with a public client (`none`) of this id at an authorization
    /// server that tells its endpoints (RFC 8414, or OpenID Connect Discovery).
    /// [`build_discovered`](OAuth2ProviderBuilder::build_discovered) asks it.
    ///
    /// ```no_run
    /// use regrant::provider::oauth2::OAuth2Provider;
    ///
    /// # async fn discover() -> Result<(), regrant::provider::oauth2::DiscoveryError> {
    /// let provider = OAuth2Provider::discover("https://idp.example", "my-gateway")
    ///     .build_discovered()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn discover(
        issuer: impl Into<String>,
        client_id: impl Into<String>,
    ) -> OAuth2ProviderBuilder {
        OAuth2ProviderBuilder::new(client_id.into()).issuer(issuer.into())
    }

    /// Redeems an authorization code (RFC 6749 §4.1.3), which is how a login
    /// begins. A code is single-use: it is sent once.
    ///
    /// # Errors
    ///
    /// As for [`Provider::refresh`], of the code.
    pub async fn exchange_code(
        &self,
        request: CodeRequest<'_>,
    ) -> Result<TokenResponse, ProviderError> {
        let mut parameters: Parameters<'_> = vec![
            ("grant_type", "authorization_code".into()),
            ("code", request.code.expose().into()),
        ];
        let redirect_uri = request.redirect_uri.map(Into::into);
        parameters.extend(redirect_uri.map(|uri| ("redirect_uri", uri)));
        let verifier = request
            .code_verifier
            .map(|verifier| verifier.expose().into());
        parameters.extend(verifier.map(|verifier| ("code_verifier", verifier)));
        let parameters = self.on_exchange.parameters(parameters, &self.shape);

        let answer = self.post(&self.token_endpoint, request.tenant, parameters);
        let sent = Sent::Code(request.code.expose());
        self.response.read(answer.await?, sent)
    }

    async fn spend(&self, request: RefreshRequest<'_>) -> Result<TokenResponse, ProviderError> {
        let parameters = vec![
            ("grant_type", "refresh_token".into()),
            ("refresh_token", request.refresh_token.expose().into()),
        ];
        let parameters = self.on_refresh.parameters(parameters, &self.shape);

        let endpoint = self.refresh_endpoint.as_ref();
        let endpoint = endpoint.unwrap_or(&self.token_endpoint);
        let answer = self.post(endpoint, request.tenant, parameters);
        let sent = Sent::RefreshToken(request.refresh_token.expose());
        self.response.read(answer.await?, sent)
    }

    /// RFC 7009 §2.1.
    async fn end(&self, request: RevocationRequest<'_>) -> Result<(), ProviderError> {
        let Some(endpoint) = &self.revocation_endpoint else {
            return Err(ProviderErrorKind::Unsupported.into());
        };
        let parameters = vec![
            ("token", request.refresh_token.expose().into()),
            ("token_type_hint", "refresh_token".into()),
        ];

        let answer = self.post(endpoint, request.tenant, parameters);
        let sent = Sent::RefreshToken(request.refresh_token.expose());
        self.response.read_revocation(&answer.await?, sent)
    }

    async fn post<'a>(
        &'a self,
        endpoint: &Endpoint,
        tenant: Option<&str>,
        mut parameters: Parameters<'a>,
    ) -> Result<Answer, ProviderError> {
        let url = endpoint.url(tenant)?;
        // The audience of assertions, also at the revocation endpoint.
        let token_endpoint = self.token_endpoint.url(tenant)?;
        self.authenticator.authenticate(
            &mut parameters,
            &self.shape.client_id_parameter,
            &self.client_id,
            &token_endpoint,
        )?;
        let mut request = self.http.post(url).headers(self.headers.clone());
        if let Some(value) = self.authenticator.header() {
            request = request.header(AUTHORIZATION, value);
        }
        http::send(request.body(self.shape.body(&parameters))).await
    }
}

impl Provider for OAuth2Provider {
    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        self.spend(request).boxed()
    }

    fn revoke<'a>(
        &'a self,
        request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.end(request).boxed()
    }
}

impl fmt::Debug for OAuth2Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuth2Provider")
            .field("token_endpoint", &self.token_endpoint.text())
            .field(
                "revocation_endpoint",
                &self.revocation_endpoint.as_ref().map(Endpoint::text),
            )
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// A request to redeem an authorization code (RFC 6749 §4.1.3).
///
/// ```
/// use regrant::provider::oauth2::CodeRequest;
/// use regrant::secret::CodeVerifier;
/// use regrant::secret::UpstreamCode;
///
/// let (code, verifier) = (UpstreamCode::new("c"), CodeVerifier::new("v"));
/// let request = CodeRequest::new(&code)
///     .redirect_uri(Some("https://gateway.example/callback"))
///     .code_verifier(Some(&verifier));
/// assert!(!format!("{request:?}").contains("\"v\""));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CodeRequest<'a> {
    /// The code that came to the redirect URI.
    pub code: &'a UpstreamCode,
    /// The redirect URI of the authorization request, if it had one.
    pub redirect_uri: Option<&'a str>,
    /// The verifier of the code challenge, if there was one (RFC 7636 §4.5).
    pub code_verifier: Option<&'a CodeVerifier>,
    /// The user's tenant at the provider, where each has a host of its own.
    pub tenant: Option<&'a str>,
}

impl<'a> CodeRequest<'a> {
    /// A request to redeem this code, with nothing else.
    pub fn new(code: &'a UpstreamCode) -> Self {
        Self {
            code,
            redirect_uri: None,
            code_verifier: None,
            tenant: None,
        }
    }

    /// The redirect URI of the authorization request. The default is none.
    #[must_use]
    pub fn redirect_uri(mut self, redirect_uri: Option<&'a str>) -> Self {
        self.redirect_uri = redirect_uri;
        self
    }

    /// The verifier of the code challenge. The default is none.
    #[must_use]
    pub fn code_verifier(mut self, code_verifier: Option<&'a CodeVerifier>) -> Self {
        self.code_verifier = code_verifier;
        self
    }

    /// The user's tenant at the provider. The default is none.
    #[must_use]
    pub fn tenant(mut self, tenant: Option<&'a str>) -> Self {
        self.tenant = tenant;
        self
    }
}
