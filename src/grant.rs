//! What an in-process handler learns about the caller.

use std::fmt;
use std::sync::Arc;

use crate::authenticate::Authenticated;
use crate::cache::Entry;
use crate::credential::Snapshot;
use crate::id::GrantId;
use crate::secret::UpstreamAccessToken;

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
#[derive(Clone)]
pub struct GrantContext {
    entry: Arc<Entry>,
    snapshot: Arc<Snapshot>,
}

impl GrantContext {
    pub(crate) fn new(authenticated: &Authenticated) -> Self {
        Self {
            entry: Arc::clone(&authenticated.entry),
            snapshot: Arc::clone(&authenticated.snapshot),
        }
    }

    /// The grant: the same for all its tokens, before and after any refresh.
    pub fn id(&self) -> GrantId {
        self.entry.grant.id
    }

    /// The user.
    pub fn subject(&self) -> &str {
        &self.entry.grant.subject
    }

    /// The client that the grant was issued to, if to one.
    pub fn client_id(&self) -> Option<&str> {
        self.entry.grant.client_id.as_deref()
    }

    /// The granted scope, space-separated.
    pub fn scope(&self) -> Option<&str> {
        self.entry.grant.scope.as_deref()
    }

    /// How often the credential of this request had been refreshed.
    pub fn credential_generation(&self) -> u64 {
        self.snapshot.generation
    }

    /// The credential of this request, for a handler that calls the upstream
    /// itself.
    pub fn access_token(&self) -> &UpstreamAccessToken {
        &self.snapshot.access_token
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
