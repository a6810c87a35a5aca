//! Clients: how those that are registered authenticate, and what their replays
//! mean. Whoever is not registered is a public client (RFC 6749 §2.1), held to
//! its `client_id`.

use std::sync::Arc;
use std::time::SystemTime;

use jsonwebtoken::jwk::JwkSet;
use sha2::Digest as _;
use sha2::Sha256;

use crate::issue::IssueError;
use crate::login::check_texts;
use crate::regrant::Regrant;
use crate::secret::ClientSecret;
use crate::state::Core;
use crate::store::ClientRecord;
use crate::store::RotationPolicy;
use crate::store::StoreError;

/// A client to be registered (RFC 6749 §2).
///
/// ```
/// use regrant::Client;
/// use regrant::secret::ClientSecret;
/// use regrant::store::RotationPolicy;
///
/// let worker = Client::new("worker").secret(&ClientSecret::generate()?);
/// let forgetful = Client::new("forgetful").rotation(RotationPolicy::Sticky);
/// # let _clients = (worker, forgetful);
/// # Ok::<_, regrant::seal::KeyringError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a client does nothing until it is registered"]
pub struct Client {
    record: ClientRecord,
    shortest_secret: Option<usize>,
}

impl Client {
    /// A public client. With a [`secret`](Self::secret) or
    /// [`keys`](Self::keys) it is a confidential one.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            record: ClientRecord {
                id: client_id.into(),
                secret_hashes: Vec::new(),
                keys: None,
                rotation: RotationPolicy::Default,
                introspects: false,
                registered_at: SystemTime::UNIX_EPOCH,
            },
            shortest_secret: None,
        }
    }

    /// A secret that it may authenticate with, by `client_secret_basic` or
    /// `client_secret_post` (RFC 6749 §2.3.1). Several are all good, so that
    /// one can be exchanged for another. Only its SHA-256 is kept.
    pub fn secret(mut self, secret: &ClientSecret) -> Self {
        let text = secret.expose();
        self.record
            .secret_hashes
            .push(Sha256::digest(text.as_bytes()).into());
        let shortest = self.shortest_secret.unwrap_or(usize::MAX);
        self.shortest_secret = Some(shortest.min(text.len()));
        self
    }

    /// The JWK Set (RFC 7517 §5, JSON) of the public keys that it may
    /// authenticate with, by `private_key_jwt` (RFC 7523 §2.2).
    pub fn keys(mut self, jwks: impl Into<String>) -> Self {
        self.record.keys = Some(jwks.into());
        self
    }

    /// How long a refresh token that was rotated away still gets its
    /// successor. The default is [`RotationPolicy::Default`].
    pub fn rotation(mut self, policy: RotationPolicy) -> Self {
        self.record.rotation = policy;
        self
    }

    /// Lets it introspect tokens (RFC 7662): it is a resource server. It must
    /// be able to authenticate.
    pub fn introspects(mut self) -> Self {
        self.record.introspects = true;
        self
    }

    fn check(&self) -> Result<(), IssueError> {
        let refuse = |what, reason| Err(IssueError::Invalid { what, reason });
        check_texts(&[
            ("client id", Some(self.record.id.as_str())),
            ("client keys", self.record.keys.as_deref()),
        ])?;
        if self.record.id.len() > LONGEST_ID {
            return refuse("client id", "must not be longer than 1024 bytes");
        }
        if self
            .shortest_secret
            .is_some_and(|length| length < SHORTEST_SECRET)
        {
            // It is hashed fast, so it must not be guessable.
            return refuse(
                "client secret",
                "must have 32 characters or more: use `ClientSecret::generate`",
            );
        }
        let is_key_set =
            |text: &str| serde_json::from_str::<JwkSet>(text).is_ok_and(|set| !set.keys.is_empty());
        if !self.record.keys.as_deref().is_none_or(is_key_set) {
            return refuse("client keys", "must be a JWK Set with a key (RFC 7517 §5)");
        }
        if self.record.introspects && !self.record.is_confidential() {
            return refuse("client", "must have a secret or keys to introspect tokens");
        }
        Ok(())
    }
}

impl Regrant {
    /// Registers a client, in place of what was registered under its id; other
    /// replicas take notice within the staleness bound.
    ///
    /// There is no expiry and no way to unregister: a registration outlives all
    /// grants of its client.
    ///
    /// # Errors
    ///
    /// If the client cannot work as it is, or the store cannot be reached.
    pub async fn register_client(&self, client: Client) -> Result<(), IssueError> {
        client.check()?;
        let mut record = client.record;
        record.registered_at = self.core.clock.now();
        let id = record.id.clone();
        let registered = self.core.store.register_client(record).await;
        self.core.clients.remove(id.as_str());
        Ok(registered?)
    }
}

/// A client as it was read.
#[derive(Clone, Debug)]
pub(crate) struct KnownClient {
    /// `None` if it is not registered.
    record: Option<Arc<ClientRecord>>,
    read_at: SystemTime,
}

impl Core {
    /// What is registered of this client, read within the staleness bound.
    pub(crate) async fn client(&self, id: &str) -> Result<Option<Arc<ClientRecord>>, StoreError> {
        let now = self.clock.now();
        let is_current = |known: &KnownClient| {
            now.duration_since(known.read_at)
                .is_ok_and(|age| age < self.timings.staleness)
        };
        if let Some(known) = self.clients.get(id).filter(is_current) {
            return Ok(known.record);
        }
        // What cannot be registered: a database may not even take the question.
        if id.len() > LONGEST_ID || id.contains('\0') {
            return Ok(None);
        }
        let record = self.store.client(id).await?.map(Arc::new);
        let known = KnownClient {
            record: record.clone(),
            read_at: now,
        };
        self.clients.insert(id.into(), known);
        Ok(record)
    }
}

/// It is an index's key.
const LONGEST_ID: usize = 1024;
const SHORTEST_SECRET: usize = 32;
