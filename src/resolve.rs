//! Gateways that authenticate their users themselves, by a JWT or a session of
//! their own: they name who is calling, and the layer finds the credential.
//!
//! What [`RefreshLayer::with_resolve_grant`](crate::RefreshLayer::with_resolve_grant)
//! is given comes first. If it names a caller:
//!
//! 1. The credential is that of (subject, provider of the route), and of the
//!    tenant and the upstream scope if the caller has these. It was stored by
//!    [`Regrant::link`](crate::Regrant::link), or along with a grant.
//! 2. The client's `Authorization` is removed all the same: it is the
//!    gateway's, and the upstream must not see it.
//! 3. Resource and scope that the layer requires are asked of tokens of ours
//!    only: what the gateway let through is the gateway's own decision.
//! 4. Where there is no credential, or it has ended, the answer is 403 without a
//!    challenge, and so is what the upstream last refused with 401. A 401 would
//!    speak of the client's token, which is good: the client would log in at the
//!    gateway again, for nothing, and again.
//!
//! If it names none, a bearer token of ours is looked for, as ever.

use std::fmt;

use http::request::Parts;

use crate::id::CredentialId;
use crate::login;

/// Says who is calling. Asked for every request, before anything else: what
/// takes long, or can fail, belongs into a layer outside, which leaves what it
/// found in the request's extensions.
///
/// ```
/// use http::request::Parts;
/// use regrant::resolve::{Caller, ResolveGrant};
///
/// /// What the gateway's own middleware leaves in the extensions.
/// #[derive(Clone)]
/// struct Session {
///     user: String,
/// }
///
/// #[derive(Debug)]
/// struct BySession;
///
/// impl ResolveGrant for BySession {
///     fn resolve(&self, request: &Parts) -> Option<Caller> {
///         let session = request.extensions.get::<Session>()?;
///         Some(Caller::new(&session.user))
///     }
/// }
/// # let mut request = http::Request::new(());
/// # request.extensions_mut().insert(Session { user: "ada".to_owned() });
/// # assert_eq!(BySession.resolve(&request.into_parts().0).unwrap().subject(), "ada");
/// ```
pub trait ResolveGrant: fmt::Debug + Send + Sync + 'static {
    /// Whose credential this request is to be served with; `None` if that is
    /// not known, and a token of ours decides.
    fn resolve(&self, request: &Parts) -> Option<Caller>;
}

/// Takes a [`Caller`] out of the request's extensions, if one is there.
///
/// ```
/// use regrant::resolve::{Caller, FromExtensions, ResolveGrant as _};
///
/// let (mut head, ()) = http::Request::new(()).into_parts();
/// assert!(FromExtensions.resolve(&head).is_none());
///
/// head.extensions.insert(Caller::new("user-1"));
/// assert_eq!(FromExtensions.resolve(&head), Some(Caller::new("user-1")));
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "users name the value; it will never hold anything"
)]
pub struct FromExtensions;

impl ResolveGrant for FromExtensions {
    fn resolve(&self, request: &Parts) -> Option<Caller> {
        request.extensions.get::<Caller>().cloned()
    }
}

/// Whose credential a request is served with. Together with a provider it names
/// exactly one: that of a [`Regrant::link`](crate::Regrant::link) or
/// [`Login`](crate::Login) with the same subject, tenant and upstream scope.
///
/// ```
/// use regrant::resolve::Caller;
///
/// let caller = Caller::new("user-1").tenant("acme").upstream_scope("read write");
/// assert_eq!(caller.subject(), "user-1");
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use = "a caller does nothing until it is resolved"]
pub struct Caller {
    subject: String,
    tenant: Option<String>,
    scope: Option<String>,
}

impl Caller {
    /// `subject` is calling: by the same name as when the credential was
    /// stored.
    pub fn new(subject: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            tenant: None,
            scope: None,
        }
    }

    /// As [`Upstream::tenant`](crate::Upstream::tenant). The default is none.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// As [`Upstream::scope`](crate::Upstream::scope): which of the subject's
    /// credentials, in any order of its words. The default is none.
    pub fn upstream_scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// The user.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    pub(crate) fn credential_id(&self, provider: &str) -> CredentialId {
        let (tenant, scope) = (self.tenant.as_deref(), self.scope.as_deref());
        login::credential_id(provider, &self.subject, tenant, scope)
    }
}
