//! The handle: everything that lives as long as the gateway.
//!
//! One [`Regrant`] holds the store, the keyring, the providers and what is
//! cached of them; layers and endpoints are made from it and share it.

use std::sync::Arc;
use std::time::Duration;

use crate::builder::RegrantBuilder;
use crate::endpoint::Endpoints;
use crate::error::ConfigError;
use crate::id::GrantId;
#[cfg(any(test, feature = "test-util"))]
use crate::keep_alive;
use crate::layer::RefreshLayer;
#[cfg(any(test, feature = "test-util"))]
use crate::revocation;
use crate::seal::Keyring;
use crate::state::Core;
use crate::store::RevocationReason;
use crate::store::Store;
use crate::store::StoreError;

/// The handle of a gateway. Cheap to clone; clones are the same gateway.
///
/// ```
/// use regrant::Regrant;
/// use regrant::provider::oauth2::OAuth2Provider;
/// use regrant::seal::Keyring;
/// use regrant::store::memory::MemoryStore;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let linear = OAuth2Provider::builder("https://idp.example/token", "my-gateway").build()?;
/// let regrant = Regrant::builder("https://gateway.example", MemoryStore::new(), Keyring::generate()?)
///     .provider("linear", linear)
///     .start()
///     .await?;
/// let layer = regrant.layer("linear")?;
/// # let _layer = layer;
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Regrant {
    pub(crate) core: Arc<Core>,
}

impl Regrant {
    /// Starts with the public base URL of the gateway (its OAuth issuer), the
    /// store and the keys that secrets in it are sealed with.
    pub fn builder(
        public_url: impl Into<String>,
        store: impl Store,
        keyring: Keyring,
    ) -> RegrantBuilder {
        RegrantBuilder::new(public_url.into(), Arc::new(store), keyring)
    }

    /// The layer for a route whose upstream takes the credentials of this
    /// provider.
    ///
    /// # Errors
    ///
    /// If no provider of this name was added.
    pub fn layer(&self, provider: &str) -> Result<RefreshLayer, ConfigError> {
        if !self.core.has_provider(provider) {
            return Err(ConfigError::new(
                "provider",
                format!("`{provider}` was not added"),
            ));
        }
        RefreshLayer::new(Arc::clone(&self.core), provider)
    }

    /// The token and revocation endpoints alone, to be mounted elsewhere.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints::new(Arc::clone(&self.core))
    }

    /// Ends a grant on behalf of an operator: all its tokens die, here at once,
    /// on other replicas within the staleness bound. `false` if it had ended
    /// before or is unknown.
    ///
    /// # Errors
    ///
    /// If the store cannot be reached.
    pub async fn revoke(&self, id: GrantId) -> Result<bool, StoreError> {
        let Some(grant) = self.core.store.grant(id).await? else {
            return Ok(false);
        };
        self.core
            .revoke_grant(&grant, RevocationReason::Operator)
            .await
    }

    /// Tells providers of all that has ended and is due to be told, as is done
    /// every half minute.
    #[cfg(any(test, feature = "test-util"))]
    pub async fn revoke_due(&self) {
        while revocation::sweep(&self.core).await {}
    }

    /// Refreshes what [`RegrantBuilder::keep_alive`] asks for, as is done now and
    /// then.
    #[cfg(any(test, feature = "test-util"))]
    pub async fn keep_alive_due(&self) {
        keep_alive::refresh_due(&self.core).await;
    }

    /// Waits until everything under way is done, refreshes above all: call it
    /// when the server has stopped accepting requests. `false` if `limit`
    /// passed first.
    pub async fn drain(&self, limit: Duration) -> bool {
        let tasks = &self.core.tasks;
        tasks.close();
        let is_done = tokio::time::timeout(limit, tasks.wait()).await.is_ok();
        if !is_done {
            tracing::error!(
                unfinished = tasks.len(),
                "giving up on refreshes that are not stored yet"
            );
        }
        is_done
    }
}
