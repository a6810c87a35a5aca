//! What one route demands, and the challenges it answers with.

use std::sync::Arc;

use http::HeaderName;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use http::request::Parts;

use crate::classify::Classify;
use crate::classify::Unauthorized;
use crate::error::ConfigError;
use crate::rejection::Rejection;
use crate::resolve::Caller;
use crate::resolve::ResolveGrant;
use crate::resource;
use crate::scope;
use crate::state::PublicUrl;
use crate::store::Grant;

/// The configuration of a layer, shared by its clones.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) provider: Box<str>,
    /// The path of the protected resource below the public URL.
    path: Box<str>,
    /// Its URL (RFC 9728).
    resource: Box<str>,
    scope: Box<str>,
    pub(crate) challenges: Challenges,
    pub(crate) replay_limit: usize,
    pub(crate) serves_endpoints: bool,
    pub(crate) passes_through: bool,
    pub(crate) cross_origin: bool,
    pub(crate) classify: Arc<dyn Classify>,
    pub(crate) resolve: Option<Arc<dyn ResolveGrant>>,
    pub(crate) credential_header: HeaderName,
    pub(crate) credential_scheme: Option<Box<str>>,
}

impl Route {
    pub(crate) fn new(url: &PublicUrl, provider: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            provider: provider.into(),
            path: "".into(),
            resource: url.as_str().into(),
            scope: "".into(),
            challenges: Challenges::new(url, "", "")?,
            replay_limit: DEFAULT_REPLAY_LIMIT,
            serves_endpoints: true,
            passes_through: false,
            cross_origin: true,
            classify: Arc::new(Unauthorized),
            resolve: None,
            credential_header: AUTHORIZATION,
            credential_scheme: None,
        })
    }

    pub(crate) fn at(&mut self, url: &PublicUrl, path: &str) -> Result<(), ConfigError> {
        self.challenges = Challenges::new(url, path, &self.scope)?;
        self.resource = format!("{}{path}", url.as_str()).into();
        self.path = path.into();
        Ok(())
    }

    pub(crate) fn require(&mut self, url: &PublicUrl, scope: &str) -> Result<(), ConfigError> {
        let words: Vec<_> = scope.split_ascii_whitespace().collect();
        self.scope = words.join(" ").into();
        self.challenges = Challenges::new(url, &self.path, &self.scope)?;
        Ok(())
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn scope(&self) -> &str {
        &self.scope
    }

    /// Whom the gateway says is calling.
    pub(crate) fn caller(&self, head: &Parts) -> Option<Caller> {
        self.resolve.as_ref()?.resolve(head)
    }

    /// Whether a grant is good here.
    /// `narrowed` is the scope of the token, if it is less than the grant's.
    pub(crate) fn admits(&self, grant: &Grant, narrowed: Option<&str>) -> Result<(), Rejection> {
        if grant.credential(&self.provider).is_none() {
            return Err(Rejection::OtherProvider);
        }
        if let Some(resource) = &grant.resource
            && !resource::is_same(resource, &self.resource)
        {
            return Err(Rejection::InvalidToken);
        }
        let granted = narrowed.or(grant.scope.as_deref()).unwrap_or_default();
        if scope::covers(granted, &self.scope) {
            Ok(())
        } else {
            Err(Rejection::InsufficientScope)
        }
    }
}

/// The values of `WWW-Authenticate` (RFC 6750 §3, RFC 9728 §5.1), made once.
#[derive(Clone, Debug)]
pub(crate) struct Challenges {
    /// No token was sent: no `error` (RFC 6750 §3.1).
    pub(crate) no_bearer: HeaderValue,
    pub(crate) invalid_token: HeaderValue,
    pub(crate) insufficient_scope: HeaderValue,
}

impl Challenges {
    fn new(url: &PublicUrl, path: &str, scope: &str) -> Result<Self, ConfigError> {
        let metadata = format!(
            r#"resource_metadata="{}/.well-known/oauth-protected-resource{}{path}""#,
            url.origin(),
            url.path(),
        );
        let scope = if scope.is_empty() {
            String::new()
        } else {
            format!(r#", scope="{scope}""#)
        };
        let value = |error: &str| {
            HeaderValue::try_from(format!("Bearer {error}{metadata}{scope}")).map_err(|source| {
                ConfigError::new("resource path or scope", "does not fit into a header")
                    .caused_by(source)
            })
        };

        Ok(Self {
            no_bearer: value("")?,
            invalid_token: value(r#"error="invalid_token", "#)?,
            insufficient_scope: value(r#"error="insufficient_scope", "#)?,
        })
    }
}

const DEFAULT_REPLAY_LIMIT: usize = 1024 * 1024;
