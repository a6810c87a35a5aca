//! The layer: what one route needs, ready to be cloned into every service.

use std::sync::Arc;

use http::HeaderName;
use http::header::AUTHORIZATION;
use tower::Layer;

use crate::classify::Classify;
use crate::error::ConfigError;
use crate::resolve::ResolveGrant;
use crate::route::CredentialForm;
use crate::route::Route;
use crate::service::Refresh;
use crate::state::Core;

/// Wraps a gateway so that expired upstream credentials refresh themselves.
///
/// Made by [`Regrant::layer`](crate::Regrant::layer). Cloning is cheap, and
/// [`Layer::layer`] does nothing but clone: axum calls it once per route.
///
/// ```
/// use std::convert::Infallible;
/// use regrant::{Regrant, replay::ReplayBody};
/// use tower::{ServiceBuilder, ServiceExt as _};
/// # use regrant::{provider::oauth2::OAuth2Provider, seal::Keyring, store::memory::MemoryStore};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let provider = OAuth2Provider::builder("https://idp.example/token", "gateway").build()?;
/// # let regrant = Regrant::builder("https://gateway.example", MemoryStore::new(), Keyring::generate()?)
/// #     .provider("linear", provider).start().await?;
/// let gateway = ServiceBuilder::new()
///     .layer(regrant.layer("linear")?.resource_path("/mcp")?)
///     .service_fn(async |_request: http::Request<ReplayBody<String>>| {
///         Ok::<_, Infallible>(http::Response::new(String::new()))
///     });
///
/// let response = gateway.oneshot(http::Request::new(String::new())).await?;
/// assert_eq!(response.status(), 401);
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct RefreshLayer {
    pub(crate) core: Arc<Core>,
    pub(crate) route: Arc<Route>,
}

impl RefreshLayer {
    pub(crate) fn new(core: Arc<Core>, provider: &str) -> Result<Self, ConfigError> {
        let route = Route::new(&core.public_url, provider)?;
        Ok(Self {
            core,
            route: Arc::new(route),
        })
    }

    /// The path of the protected resource below the public URL, such as `/mcp`:
    /// what its metadata (RFC 9728) is published for and what the grants of
    /// this route are bound to (RFC 8707). The default is the public URL itself.
    ///
    /// # Errors
    ///
    /// If the path does not begin with `/`, or does not fit into a header.
    pub fn resource_path(mut self, path: &str) -> Result<Self, ConfigError> {
        let trimmed = path.trim_end_matches('/');
        if !(path.starts_with('/') && trimmed.bytes().all(is_path_byte)) {
            return Err(ConfigError::new(
                "resource path",
                "must begin with `/` and be a plain path",
            ));
        }
        Arc::make_mut(&mut self.route).at(&self.core.public_url, trimmed)?;
        self.core.add_resource(trimmed, self.route.scope());
        Ok(self)
    }

    /// The scopes that a grant must have here, space-separated. The default is
    /// none.
    ///
    /// # Errors
    ///
    /// If they do not fit into a header.
    pub fn required_scope(mut self, scope: &str) -> Result<Self, ConfigError> {
        if scope.contains(['"', '\\']) {
            return Err(ConfigError::new("required scope", "must not be quoted"));
        }
        Arc::make_mut(&mut self.route).require(&self.core.public_url, scope)?;
        self.core
            .add_resource(self.route.path(), self.route.scope());
        Ok(self)
    }

    /// How many bytes of a request body are kept for a replay. Larger requests
    /// pass, but cannot be replayed. The default is 1 MiB.
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        Arc::make_mut(&mut self.route).replay_limit = bytes;
        self
    }

    /// Whether this layer also answers on the paths of the token and revocation
    /// endpoints. The default is `true`.
    pub fn serve_endpoints(mut self, serve: bool) -> Self {
        Arc::make_mut(&mut self.route).serves_endpoints = serve;
        self
    }

    /// Whether a request without a bearer token reaches the gateway, without a
    /// credential, instead of being challenged. What the gateway answers to it,
    /// its challenge included, is then the gateway's own business. The default
    /// is `false`.
    pub fn pass_through(mut self, pass: bool) -> Self {
        Arc::make_mut(&mut self.route).passes_through = pass;
        self
    }

    /// Whether a gateway access token is also taken as the password of HTTP Basic
    /// (RFC 7617 §2), whatever the user name. `git` sends it so, once a 401 has
    /// asked for it: the 401s of this route then carry a second challenge, for
    /// `Basic`, with the URL of the resource as its realm.
    ///
    /// Any other password is an invalid token; an empty one counts as no token.
    /// The client's Basic never reaches the gateway, not even of a request that
    /// [passes through](Self::pass_through).
    ///
    /// Browsers ask their users for a password upon such a challenge, and send it
    /// again unasked. So a request with an `Origin` header, which is a page's, is
    /// not served by Basic: it counts as one without a token. Not all requests of
    /// a browser have one, so keep this to routes that pages have no business
    /// with. The default is `false`.
    pub fn accept_basic(mut self, accept: bool) -> Self {
        Arc::make_mut(&mut self.route).accept_basic(accept);
        self
    }

    /// Whether pages of any origin may call this route (CORS): their preflights
    /// are answered here, and responses can be read by them, the challenges of
    /// this layer included, unless the gateway sets
    /// `Access-Control-Allow-Origin` itself. No cookie is involved: they still
    /// need a bearer token. What [passes through](Self::pass_through) without
    /// one is left to the gateway. The default is `true`; `false` leaves all of
    /// it to the gateway, or to a layer around this one.
    pub fn cross_origin(mut self, allow: bool) -> Self {
        Arc::make_mut(&mut self.route).cross_origin = allow;
        self
    }

    /// How to tell that the upstream refused the credential. The default is
    /// [`Unauthorized`](crate::classify::Unauthorized): a 401.
    pub fn with_classify(mut self, classify: impl Classify) -> Self {
        Arc::make_mut(&mut self.route).classify = Arc::new(classify);
        self
    }

    /// How the gateway says who is calling, where it authenticates its users
    /// itself ([`resolve`](crate::resolve)). The default is not at all: a token
    /// of ours says so.
    ///
    /// A caller named so is served whatever
    /// [`required_scope`](Self::required_scope) and
    /// [`resource_path`](Self::resource_path) say: these are asked of tokens of
    /// ours.
    pub fn with_resolve_grant(mut self, resolve: impl ResolveGrant) -> Self {
        Arc::make_mut(&mut self.route).resolve = Some(Arc::new(resolve));
        self
    }

    /// The header that carries the credential, and the scheme before it, such
    /// as `token`; without a scheme the header holds the credential alone. The
    /// default is `authorization` with `Bearer`.
    pub fn credential_header(mut self, name: HeaderName, scheme: Option<&str>) -> Self {
        let route = Arc::make_mut(&mut self.route);
        route.credential_header = name;
        route.credential_form = CredentialForm::After(match scheme {
            Some(scheme) => format!("{scheme} ").into(),
            None => "".into(),
        });
        self
    }

    /// Sends the credential as the password of HTTP Basic (RFC 7617 §2) with this
    /// user name, in `authorization`. GitHub takes an installation access token
    /// over git's HTTPS so, with the user name `x-access-token` (GitHub's
    /// documentation, "Authenticating as a GitHub App installation"). This and
    /// [`credential_header`](Self::credential_header) replace each other; the
    /// default is `Bearer`.
    ///
    /// # Errors
    ///
    /// If the user name has a colon or a control character.
    ///
    /// ```
    /// # use regrant::{Regrant, provider::oauth2::OAuth2Provider, seal::Keyring, store::memory::MemoryStore};
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let provider = OAuth2Provider::builder("https://idp.example/token", "gateway").build()?;
    /// # let regrant = Regrant::builder("https://gateway.example", MemoryStore::new(), Keyring::generate()?)
    /// #     .provider("github", provider).start().await?;
    /// let layer = regrant.layer("github")?.accept_basic(true);
    /// let layer = layer.credential_basic("x-access-token")?;
    /// assert!(layer.credential_basic("x:y").is_err());
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(example()).unwrap();
    /// ```
    pub fn credential_basic(mut self, user: &str) -> Result<Self, ConfigError> {
        if user.contains(|char: char| char == ':' || char.is_control()) {
            return Err(ConfigError::new(
                "user name of the credential",
                "must have no colon and no control character: they do not fit into HTTP Basic",
            ));
        }
        let route = Arc::make_mut(&mut self.route);
        route.credential_header = AUTHORIZATION;
        route.credential_form = CredentialForm::Basic(user.into());
        Ok(self)
    }
}

impl<S> Layer<S> for RefreshLayer {
    type Service = Refresh<S>;

    fn layer(&self, inner: S) -> Refresh<S> {
        Refresh::new(inner, self.clone())
    }
}

/// RFC 3986 §3.3, less what would have to be quoted in a challenge.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&byte)
}
