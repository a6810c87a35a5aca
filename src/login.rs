//! Logins: what providers gave the gateway, for whom, and through which client.

use std::time::SystemTime;

use crate::id::CredentialId;
use crate::issue::IssueError;
use crate::provider::Expiry;
use crate::resource;
use crate::secret::UpstreamAccessToken;
use crate::secret::UpstreamRefreshToken;

/// What one provider gave us.
///
/// ```
/// use std::time::Duration;
/// use regrant::Upstream;
/// use regrant::provider::Expiry;
/// use regrant::secret::{UpstreamAccessToken, UpstreamRefreshToken};
///
/// let github = Upstream::new("github", UpstreamAccessToken::new("at"))
///     .refresh_token(UpstreamRefreshToken::new("rt"))
///     .expiry(Expiry::After(Duration::from_secs(8 * 3600)));
/// # let _github = github;
/// ```
#[derive(Clone, Debug)]
#[must_use = "tokens do nothing until they are issued or linked"]
pub struct Upstream {
    pub(crate) provider: String,
    pub(crate) access_token: UpstreamAccessToken,
    pub(crate) refresh_token: Option<UpstreamRefreshToken>,
    expiry: Expiry,
    pub(crate) tenant: Option<String>,
    scope: Option<String>,
}

impl Upstream {
    /// `provider` gave `access_token`.
    pub fn new(provider: impl Into<String>, access_token: UpstreamAccessToken) -> Self {
        Self {
            provider: provider.into(),
            access_token,
            refresh_token: None,
            expiry: Expiry::Unknown,
            tenant: None,
            scope: None,
        }
    }

    /// The upstream refresh token. The default is none: the login then ends
    /// when the access token expires.
    pub fn refresh_token(mut self, token: UpstreamRefreshToken) -> Self {
        self.refresh_token = Some(token);
        self
    }

    /// When the upstream access token expires. The default is
    /// [`Expiry::Unknown`].
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.expiry = expiry;
        self
    }

    /// The user's tenant at the provider, where each has a host of its own. The
    /// default is none.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// The scope that the provider granted, space-separated: tokens of one
    /// subject for different scopes are different credentials. The default is
    /// none.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    pub(crate) fn expires_at(&self, now: SystemTime) -> Option<SystemTime> {
        self.expiry.of_login(&self.access_token, now)
    }

    pub(crate) fn credential_id(&self, subject: &str) -> CredentialId {
        let (tenant, scope) = (self.tenant.as_deref(), self.scope.as_deref());
        credential_id(&self.provider, subject, tenant, scope)
    }

    pub(crate) fn check(&self) -> Result<(), IssueError> {
        let access_token = Some(self.access_token.expose());
        let refresh_token = self.refresh_token.as_ref();
        check_texts(&[
            ("provider", Some(self.provider.as_str())),
            ("access token", access_token),
            (
                "refresh token",
                refresh_token.map(UpstreamRefreshToken::expose),
            ),
            ("tenant", self.tenant.as_deref()),
        ])?;
        check_scope(self.scope.as_deref())?;
        // It goes into a header: better refused now than on every request.
        if !self
            .access_token
            .expose()
            .bytes()
            .all(|b| b.is_ascii_graphic())
        {
            return Err(IssueError::Invalid {
                what: "access token",
                reason: "must be printable ASCII without spaces (RFC 6750 §2.1)",
            });
        }
        Ok(())
    }
}

/// A login: what the provider gave us, and for whom.
///
/// ```
/// use std::time::Duration;
/// use regrant::Login;
/// use regrant::provider::Expiry;
/// use regrant::secret::{UpstreamAccessToken, UpstreamRefreshToken};
///
/// let login = Login::new("linear", "user-1", UpstreamAccessToken::new("at"))
///     .refresh_token(UpstreamRefreshToken::new("rt"))
///     .expiry(Expiry::After(Duration::from_secs(3600)))
///     .client_id("claude");
/// # let _login = login;
/// ```
#[derive(Clone, Debug)]
#[must_use = "a login does nothing until it is issued"]
pub struct Login {
    pub(crate) subject: String,
    first: Upstream,
    further: Vec<Upstream>,
    pub(crate) client_id: Option<String>,
    pub(crate) scope: Option<String>,
    pub(crate) resource: Option<String>,
}

impl Login {
    /// A login of `subject` at `provider`, which gave `access_token`.
    pub fn new(
        provider: impl Into<String>,
        subject: impl Into<String>,
        access_token: UpstreamAccessToken,
    ) -> Self {
        Self {
            subject: subject.into(),
            first: Upstream::new(provider, access_token),
            further: Vec::new(),
            client_id: None,
            scope: None,
            resource: None,
        }
    }

    /// As [`Upstream::refresh_token`].
    pub fn refresh_token(mut self, token: UpstreamRefreshToken) -> Self {
        self.first = self.first.refresh_token(token);
        self
    }

    /// As [`Upstream::expiry`].
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.first = self.first.expiry(expiry);
        self
    }

    /// As [`Upstream::tenant`].
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.first = self.first.tenant(tenant);
        self
    }

    /// What a further provider gave for the same subject: routes of that
    /// provider are then open to the grant too.
    pub fn and(mut self, upstream: Upstream) -> Self {
        self.further.push(upstream);
        self
    }

    /// The client that may use the grant. The default is any.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = Some(client_id.into());
        self
    }

    /// The scope of the grant, space-separated (RFC 6749 §3.3). The default is
    /// none.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        let scope = scope.into();
        self.first = self.first.scope(scope.clone());
        self.scope = Some(scope);
        self
    }

    /// The URL of the one resource that the grant is good for (RFC 8707). The
    /// default is every resource of this gateway.
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        std::iter::once(&self.first).chain(&self.further)
    }

    /// What could not be stored, or not be used.
    pub(crate) fn check(&self) -> Result<(), IssueError> {
        check_texts(&[
            ("subject", Some(self.subject.as_str())),
            ("client id", self.client_id.as_deref()),
            ("scope", self.scope.as_deref()),
            ("resource", self.resource.as_deref()),
        ])?;
        let mut providers = Vec::new();
        for upstream in self.upstreams() {
            upstream.check()?;
            if providers.contains(&&upstream.provider) {
                return Err(IssueError::Invalid {
                    what: "provider",
                    reason: "must not be named twice",
                });
            }
            providers.push(&upstream.provider);
        }
        if let Some(resource) = &self.resource
            && !resource::is_absolute(resource)
        {
            return Err(IssueError::Invalid {
                what: "resource",
                reason: "must be an absolute http or https URL (RFC 8707 §2)",
            });
        }
        check_scope(self.scope.as_deref())
    }
}

/// One login of one subject at one provider, for the same scopes, is one
/// credential, however many clients of the subject use it: some providers keep
/// only the last few (GitHub ten), and each one that is spent separately is one
/// more that can be lost.
pub(crate) fn credential_id(
    provider: &str,
    subject: &str,
    tenant: Option<&str>,
    scope: Option<&str>,
) -> CredentialId {
    let mut scope: Vec<_> = scope.iter().flat_map(|s| s.split(' ')).collect();
    scope.sort_unstable();
    scope.dedup();
    let scope = scope.join(" ");
    CredentialId::of(&[provider, subject, tenant.unwrap_or_default(), scope.trim()])
}

/// What a database would refuse, or what must not be empty.
pub(crate) fn check_texts(texts: &[(&'static str, Option<&str>)]) -> Result<(), IssueError> {
    let is_bad = |text: &str| text.is_empty() || text.contains('\0');
    match texts.iter().find(|(_name, text)| text.is_some_and(is_bad)) {
        None => Ok(()),
        Some((what, _text)) => Err(IssueError::Invalid {
            what,
            reason: "must neither be empty nor contain NUL",
        }),
    }
}

fn check_scope(scope: Option<&str>) -> Result<(), IssueError> {
    let is_scope = |byte: u8| matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~');
    if scope.is_some_and(|scope| !scope.bytes().all(is_scope)) {
        return Err(IssueError::Invalid {
            what: "scope",
            reason: "must be printable ASCII without quotes (RFC 6749 §3.3)",
        });
    }
    Ok(())
}
