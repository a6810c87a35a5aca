//! Where grants lie, and what seals them there.

use std::error::Error;

use regrant::Regrant;
use regrant::RegrantBuilder;
use regrant::StartError;
use regrant::seal::Keyring;
use regrant::settings::Timings;
use regrant::store::memory::MemoryStore;
use regrant::store::postgres::PostgresStore;

use crate::environment::Invalid;
use crate::environment::chain;
use crate::environment::text;

/// `DATABASE_URL`, `DATABASE_LISTEN_URL` and `REGRANT_KEYS`.
pub(crate) struct Storage {
    /// `None`: keep everything in memory.
    database_url: Option<String>,
    /// To the same database, without a pooler.
    listen_url: Option<String>,
    keyring: Keyring,
}

impl Storage {
    pub(crate) fn from_env() -> Result<Self, Invalid> {
        let database_url = text("DATABASE_URL")?;
        let keyring = match text("REGRANT_KEYS")? {
            Some(keys) => Keyring::parse(&keys).map_err(|e| Invalid::new("REGRANT_KEYS", e))?,
            None if database_url.is_some() => {
                return Err(Invalid::new(
                    "REGRANT_KEYS",
                    "is required with DATABASE_URL: make one with `regrant keys generate`",
                ));
            }
            None => Keyring::generate().map_err(|e| Invalid::new("REGRANT_KEYS", e))?,
        };
        Ok(Self {
            database_url,
            listen_url: text("DATABASE_LISTEN_URL")?,
            keyring,
        })
    }

    /// Starts what `configure` makes of a builder.
    pub(crate) async fn start(
        self,
        public_url: &str,
        timings: Timings,
        configure: impl FnOnce(RegrantBuilder) -> RegrantBuilder,
    ) -> Result<Regrant, Invalid> {
        let Some(url) = &self.database_url else {
            let builder = Regrant::builder(public_url, MemoryStore::new(), self.keyring);
            return configure(builder.timings(timings))
                .start()
                .await
                .map_err(|error| Invalid::new("GATEWAY_PUBLIC_URL", chain(&error)));
        };

        let invalid = |error: &dyn Error| Invalid::new("DATABASE_URL", chain(error));
        let mut store = PostgresStore::connect(url)
            .map_err(|error| invalid(&error))?
            .budget(timings.wait_budget);
        if let Some(url) = &self.listen_url {
            let invalid = |error| Invalid::new("DATABASE_LISTEN_URL", chain(&error));
            store = store.listen_at(url).map_err(invalid)?;
        }
        store.migrate().await.map_err(|error| invalid(&error))?;
        let builder = Regrant::builder(public_url, store, self.keyring).timings(timings);
        configure(builder).start().await.map_err(|error| {
            let name = if matches!(
                error,
                StartError::KeyMissing { .. } | StartError::KeyChanged { .. }
            ) {
                "REGRANT_KEYS"
            } else if matches!(error, StartError::Config(_)) {
                "GATEWAY_PUBLIC_URL"
            } else {
                "DATABASE_URL"
            };
            Invalid::new(name, chain(&error))
        })
    }
}
