//! What one route demands, and the challenges it answers with.

use std::sync::Arc;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::WWW_AUTHENTICATE;
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
    pub(crate) credential_form: CredentialForm,
}

/// How the credential is written into its header.
#[derive(Clone, Debug)]
pub(crate) enum CredentialForm {
    /// With the scheme `Bearer`: that value is made once for each generation.
    Bearer,
    /// After this text: a scheme with its space, or nothing.
    After(Box<str>),
    /// As the password of HTTP Basic (RFC 7617) of this user.
    Basic(Box<str>),
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
            credential_form: CredentialForm::Bearer,
        })
    }

    pub(crate) fn at(&mut self, url: &PublicUrl, path: &str) -> Result<(), ConfigError> {
        self.challenges = Challenges::new(url, path, &self.scope)?.offering(self.accepts_basic());
        self.resource = format!("{}{path}", url.as_str()).into();
        self.path = path.into();
        Ok(())
    }

    pub(crate) fn require(&mut self, url: &PublicUrl, scope: &str) -> Result<(), ConfigError> {
        let words: Vec<_> = scope.split_ascii_whitespace().collect();
        self.scope = words.join(" ").into();
        let challenges = Challenges::new(url, &self.path, &self.scope)?;
        self.challenges = challenges.offering(self.accepts_basic());
        Ok(())
    }

    pub(crate) fn accept_basic(&mut self, accept: bool) {
        self.challenges.offers_basic = accept;
    }

    /// Whether a token of ours may come as the password of HTTP Basic, but for
    /// requests of pages.
    pub(crate) fn accepts_basic(&self) -> bool {
        self.challenges.offers_basic
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

/// The values of `WWW-Authenticate` (RFC 6750 §3, RFC 7617 §2, RFC 9728 §5.1),
/// made once.
#[derive(Clone, Debug)]
pub(crate) struct Challenges {
    /// No token was sent: no `error` (RFC 6750 §3.1).
    pub(crate) no_bearer: HeaderValue,
    pub(crate) invalid_token: HeaderValue,
    pub(crate) insufficient_scope: HeaderValue,
    basic: HeaderValue,
    offers_basic: bool,
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
        let value = |text: String| {
            HeaderValue::try_from(text).map_err(|source| {
                ConfigError::new("resource path or scope", "does not fit into a header")
                    .caused_by(source)
            })
        };
        let bearer = |error: &str| value(format!("Bearer {error}{metadata}{scope}"));
        let realm = quoted(&format!("{}{path}", url.as_str()));

        Ok(Self {
            no_bearer: bearer("")?,
            invalid_token: bearer(r#"error="invalid_token", "#)?,
            insufficient_scope: bearer(r#"error="insufficient_scope", "#)?,
            basic: value(format!(r#"Basic realm={realm}, charset="UTF-8""#))?,
            offers_basic: false,
        })
    }

    fn offering(mut self, basic: bool) -> Self {
        self.offers_basic = basic;
        self
    }

    /// Puts `challenge` in the place of those of an answer. Where Basic is
    /// accepted, a 401 says so too: second, because some clients read the first
    /// value only. A 403 does not, or they would ask for a password that helps
    /// nobody.
    pub(crate) fn put(&self, challenge: &HeaderValue, status: StatusCode, headers: &mut HeaderMap) {
        headers.insert(WWW_AUTHENTICATE, challenge.clone());
        if self.offers_basic && status == StatusCode::UNAUTHORIZED {
            headers.append(WWW_AUTHENTICATE, self.basic.clone());
        }
    }
}

/// A quoted string (RFC 9110 §5.6.4).
fn quoted(text: &str) -> String {
    format!(r#""{}""#, text.replace('\\', r"\\").replace('"', r#"\""#))
}

const DEFAULT_REPLAY_LIMIT: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_cannot_end_its_string() {
        for (text, want) in [
            ("https://gw.example/git", r#""https://gw.example/git""#),
            (r#"a", x="b"#, r#""a\", x=\"b""#),
            (r"a\", r#""a\\""#),
            (r#"a\""#, r#""a\\\"""#),
        ] {
            assert_eq!(quoted(text), want);
        }
    }

    #[test]
    fn settings_in_any_order_make_the_same_challenges() {
        let url = PublicUrl::parse("https://gw.example").unwrap();
        let settings: [fn(&mut Route, &PublicUrl); 3] = [
            |route, _url| route.accept_basic(true),
            |route, url| route.at(url, "/git").unwrap(),
            |route, url| route.require(url, "read").unwrap(),
        ];
        for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1], [1, 0, 2]] {
            let mut route = Route::new(&url, "github").unwrap();
            for index in order {
                settings[index](&mut route, &url);
            }
            let mut headers = HeaderMap::new();
            let Challenges { no_bearer, .. } = &route.challenges;
            let put = |status, headers: &mut HeaderMap| {
                route.challenges.put(no_bearer, status, headers);
                let values = headers.get_all(WWW_AUTHENTICATE).iter();
                values.cloned().collect::<Vec<_>>()
            };

            let of_401 = put(StatusCode::UNAUTHORIZED, &mut headers);
            assert_eq!(of_401.len(), 2, "{order:?}");
            assert_eq!(
                of_401[1],
                r#"Basic realm="https://gw.example/git", charset="UTF-8""#
            );
            assert_eq!(put(StatusCode::FORBIDDEN, &mut headers), of_401[..1]);
        }
    }
}
