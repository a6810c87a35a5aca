//! What an in-process handler learns about the caller, and how it gets the
//! credential that it calls the upstream with.

use std::fmt;
use std::sync::Arc;

use crate::authenticate;
use crate::authenticate::Authenticated;
use crate::authenticate::By;
use crate::error::RefreshError;
use crate::id::GrantId;
use crate::refresh;
use crate::refresh::Want;
use crate::secret::UpstreamAccessToken;
use crate::state::Core;

/// Who is calling, in the extensions of every request that the layer let
/// through. Key sessions by [`id`](Self::id): the bearer changes, the grant
/// stays.
///
/// ```
/// use regrant::GrantContext;
///
/// fn handler<B>(request: &http::Request<B>) -> Option<String> {
///     let grant = request.extensions().get::<GrantContext>()?;
///     Some(format!("{} for {}", grant.id(), grant.subject()))
/// }
/// # assert_eq!(handler(&http::Request::new(())), None);
/// ```
///
/// A handler that calls the upstream itself, or for longer than a credential
/// lives:
///
/// ```
/// use regrant::{GrantContext, error::RefreshError};
/// # async fn call(_token: &str) -> u16 { 200 }
///
/// async fn upstream(grant: &GrantContext) -> Result<u16, RefreshError> {
///     let mut grant = grant.fresh().await?;
///     let status = call(grant.access_token().expose()).await;
///     if status != 401 {
///         return Ok(status);
///     }
///     grant.report_expired();
///     Ok(call(grant.fresh().await?.access_token().expose()).await)
/// }
/// # let _unused = upstream;
/// ```
#[derive(Clone)]
pub struct GrantContext {
    core: Arc<Core>,
    authenticated: Authenticated,
    is_reported: bool,
}

impl GrantContext {
    pub(crate) fn new(core: &Arc<Core>, authenticated: &Authenticated) -> Self {
        Self {
            core: Arc::clone(core),
            authenticated: authenticated.clone(),
            is_reported: false,
        }
    }

    /// The grant: the same for all its tokens, before and after any refresh.
    ///
    /// Whom the [gateway named](crate::resolve) has no grant, and is called
    /// what his credential is: the same for the same subject, provider, tenant
    /// and upstream scope, on every replica. A name, not a secret: whoever knows
    /// these can make it.
    pub fn id(&self) -> GrantId {
        match &self.authenticated.by {
            By::Token { entry, .. } => entry.grant.id,
            By::Name(named) => GrantId::from_bytes(*named.cell.id.as_bytes()),
        }
    }

    /// The user.
    pub fn subject(&self) -> &str {
        match &self.authenticated.by {
            By::Token { entry, .. } => &entry.grant.subject,
            By::Name(named) => &named.subject,
        }
    }

    /// The client that the grant was issued to, if to one.
    pub fn client_id(&self) -> Option<&str> {
        match &self.authenticated.by {
            By::Token { entry, .. } => entry.grant.client_id.as_deref(),
            By::Name(_) => None,
        }
    }

    /// The scope of the access token of ours, space-separated.
    pub fn scope(&self) -> Option<&str> {
        match &self.authenticated.by {
            By::Token { entry, narrowed } => narrowed.as_deref().or(entry.grant.scope.as_deref()),
            By::Name(_) => None,
        }
    }

    /// How often the credential of this request had been refreshed.
    pub fn credential_generation(&self) -> u64 {
        self.authenticated.snapshot.generation
    }

    /// The credential of this request, for a handler that calls the upstream
    /// itself. It does not change: [`fresh`](Self::fresh) has the present one.
    pub fn access_token(&self) -> &UpstreamAccessToken {
        &self.authenticated.snapshot.access_token
    }

    /// Says that the upstream refused [`access_token`](Self::access_token), and
    /// has it refreshed, at most once a minute for one credential. Nothing
    /// happens if it has been refreshed since.
    pub fn report_expired(&mut self) {
        self.is_reported = true;
        let Authenticated { cell, snapshot, .. } = &self.authenticated;
        refresh::forced(&self.core, cell, snapshot.generation);
    }

    /// The same grant with a credential that is good now: the present one, or
    /// after it expired or was [reported](Self::report_expired) a new one.
    ///
    /// # Errors
    ///
    /// If there is none to be had within the
    /// [wait budget](crate::settings::Timings::wait_budget);
    /// [`RefreshErrorKind`](crate::error::RefreshErrorKind) says who must act.
    /// A grant that has been revoked or has expired is as good as a login that
    /// has ended, and so is a user who was disconnected.
    pub async fn fresh(&self) -> Result<Self, RefreshError> {
        let authenticated = authenticate::still_granted(&self.core, &self.authenticated).await?;
        let is_same = authenticated.cell.id == self.authenticated.cell.id;
        let want = if self.is_reported && is_same {
            Want::NewerThan(self.authenticated.snapshot.generation)
        } else {
            Want::Usable
        };
        let mut fresh = Self::new(&self.core, &authenticated);
        fresh.authenticated.snapshot =
            refresh::refreshed(&self.core, &authenticated.cell, want).await?;
        Ok(fresh)
    }
}

impl fmt::Debug for GrantContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantContext")
            .field("id", &self.id())
            .field("credential_generation", &self.credential_generation())
            .finish_non_exhaustive()
    }
}
