//! Issuing: a login that the gateway completed becomes a grant.

use std::error::Error;
use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use crate::credential;
use crate::credential::Secrets;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::provider::Expiry;
use crate::regrant::Regrant;
use crate::resource;
use crate::seal::random_bytes;
use crate::secret::GatewayAccessToken;
use crate::secret::GatewayRefreshToken;
use crate::secret::UpstreamAccessToken;
use crate::secret::UpstreamRefreshToken;
use crate::store::Credential;
use crate::store::Grant;
use crate::store::Replacement;
use crate::store::StoreError;
use crate::store::StoreErrorKind;
use crate::token;

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
    provider: String,
    subject: String,
    access_token: UpstreamAccessToken,
    refresh_token: Option<UpstreamRefreshToken>,
    expiry: Expiry,
    tenant: Option<String>,
    client_id: Option<String>,
    scope: Option<String>,
    resource: Option<String>,
}

impl Login {
    /// A login of `subject` at `provider`, which gave `access_token`.
    pub fn new(
        provider: impl Into<String>,
        subject: impl Into<String>,
        access_token: UpstreamAccessToken,
    ) -> Self {
        Self {
            provider: provider.into(),
            subject: subject.into(),
            access_token,
            refresh_token: None,
            expiry: Expiry::Unknown,
            tenant: None,
            client_id: None,
            scope: None,
            resource: None,
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

    /// The client that may use the grant. The default is any.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = Some(client_id.into());
        self
    }

    /// The scope, space-separated (RFC 6749 §3.3). The default is none.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// The URL of the one resource that the grant is good for (RFC 8707). The
    /// default is every resource of this gateway.
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// The first text that a database would refuse or that must not be empty.
    fn check(&self) -> Result<(), IssueError> {
        let access_token = Some(self.access_token.expose());
        for (name, text) in [
            ("provider", Some(self.provider.as_str())),
            ("subject", Some(self.subject.as_str())),
            ("access token", access_token),
            (
                "refresh token",
                self.refresh_token
                    .as_ref()
                    .map(UpstreamRefreshToken::expose),
            ),
            ("tenant", self.tenant.as_deref()),
            ("client id", self.client_id.as_deref()),
            ("scope", self.scope.as_deref()),
            ("resource", self.resource.as_deref()),
        ] {
            if text.is_some_and(|text| text.is_empty() || text.contains('\0')) {
                return Err(IssueError::Invalid {
                    what: name,
                    reason: "must neither be empty nor contain NUL",
                });
            }
        }
        if let Some(resource) = &self.resource
            && !resource::is_absolute(resource)
        {
            return Err(IssueError::Invalid {
                what: "resource",
                reason: "must be an absolute http or https URL (RFC 8707 §2)",
            });
        }
        let is_scope = |byte: u8| matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~');
        if !self.scope.iter().all(|scope| scope.bytes().all(is_scope)) {
            return Err(IssueError::Invalid {
                what: "scope",
                reason: "must be printable ASCII without quotes (RFC 6749 §3.3)",
            });
        }
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

/// A grant that was issued, with the pair that the client gets.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Issued {
    /// The grant.
    pub grant_id: GrantId,
    /// The client's access token.
    pub access_token: GatewayAccessToken,
    /// The client's refresh token.
    pub refresh_token: GatewayRefreshToken,
    /// How long the access token lives.
    pub expires_in: Duration,
    /// How long the refresh token lives if it is not used.
    pub refresh_expires_in: Duration,
}

impl Regrant {
    /// Stores a login as a grant and gives out its first pair of tokens.
    ///
    /// Logins of one subject at one provider for the same scope share one
    /// credential, which is the newest: a subject must be one user of the
    /// provider. If the provider had ended the one before, all grants that use
    /// it work again.
    ///
    /// # Errors
    ///
    /// If a text of the login cannot be stored, or the store cannot be reached;
    /// nothing can be done with a half-stored login.
    pub async fn issue(&self, login: Login) -> Result<Issued, IssueError> {
        login.check()?;
        let core = &self.core;
        if !core.has_provider(&login.provider) {
            return Err(IssueError::Invalid {
                what: "provider",
                reason: "was not added to this gateway",
            });
        }
        let crypto = |_error| IssueError::Crypto;
        let now = core.clock.now();
        let grant_id = GrantId::random().map_err(crypto)?;
        let salt = random_bytes().map_err(crypto)?;
        let access_expires_at = core.lifetimes.access_deadline(now, now);
        let key = core
            .keyring
            .sealing()
            .map_err(|_error| IssueError::Crypto)?;
        let pair = token::issue_first(key, grant_id, &salt, access_expires_at)
            .map_err(|_error| IssueError::Crypto)?;

        // The credential first: a grant never refers to what is not there.
        let credential_id = self.link(&login, now).await?;
        core.store
            .insert_grant(Grant {
                id: grant_id,
                credential_id,
                provider: login.provider,
                subject: login.subject,
                client_id: login.client_id,
                scope: login.scope,
                resource: login.resource,
                salt,
                key_id: key.id().to_owned(),
                generation: 0,
                refresh_hash: pair.refresh_hash,
                previous_hash: None,
                rotated_at: None,
                access_expires_at,
                replays: 0,
                acknowledged: false,
                created_at: now,
                last_used_at: now,
                revoked_access: Vec::new(),
                revoked: None,
            })
            .await?;
        tracing::info!(grant = %grant_id, "grant issued");

        Ok(Issued {
            grant_id,
            access_token: pair.access,
            refresh_token: pair.refresh,
            expires_in: remaining(access_expires_at, now),
            refresh_expires_in: remaining(core.lifetimes.refresh_deadline(now, now), now),
        })
    }
}

impl Regrant {
    /// Stores the credential of a login: a new one, or in place of the one that
    /// the same login gave before. All grants of the subject then use it, and
    /// what the provider had ended lives again.
    async fn link(&self, login: &Login, now: SystemTime) -> Result<CredentialId, IssueError> {
        let core = &self.core;
        let id = login.credential_id();
        let secrets = Secrets {
            access_token: login.access_token.clone(),
            refresh_token: login.refresh_token.clone(),
            tenant: login.tenant.clone(),
        };
        let seal = |secrets: &Secrets, generation| {
            secrets
                .seal(&core.keyring, id, &login.provider, generation)
                .map_err(|_error| IssueError::Crypto)
        };
        let mut row = Credential {
            id,
            provider: login.provider.clone(),
            subject: login.subject.clone(),
            generation: 0,
            sealed: Vec::new(),
            expires_at: login.expiry.of_login(&login.access_token, now),
            refreshed_at: now,
            not_before: None,
            forced_at: None,
            fence: 0,
            unsettled: 0,
            failures: 0,
            terminal: None,
        };
        for _ in 0..LINK_TRIES {
            let Some(known) = core.store.credential(id).await? else {
                (row.generation, row.sealed) = (0, seal(&secrets, 0)?);
                match core.store.insert_credential(row.clone()).await {
                    Err(error) if error.kind() != StoreErrorKind::Conflict => {
                        return Err(error.into());
                    }
                    // Read again: where an answer was lost, the row may be
                    // somebody else's.
                    Ok(()) | Err(_) => continue,
                }
            };
            let is_ours = known.sealed == row.sealed;
            let (snapshot, spendable) = credential::open(core, &known)
                .map_err(|error| StoreError::new(StoreErrorKind::Corrupt, error))?;
            // Some providers give a refresh token at the first login only. One
            // that works is not thrown away for none, nor taken out of the
            // hands of somebody who is just spending it.
            let is_better =
                login.refresh_token.is_none() && spendable.is_some() && !snapshot.terminal;
            if is_ours || is_better {
                core.cache.credential(id, snapshot);
                return Ok(id);
            }
            row.generation = known.generation + 1;
            row.sealed = seal(&secrets, row.generation)?;
            let tokens = Replacement {
                sealed: row.sealed.clone(),
                expires_at: row.expires_at,
                refreshed_at: row.refreshed_at,
            };
            // Whoever won, the next look tells.
            core.store.replace(id, known.generation, tokens).await?;
        }
        Err(StoreError::from(StoreErrorKind::Unavailable).into())
    }
}

impl Login {
    /// One login of one subject at one provider, for the same scopes, is one
    /// credential, however many clients of the subject use it: some providers
    /// keep only the last few (GitHub ten), and each one that is spent
    /// separately is one more that can be lost.
    fn credential_id(&self) -> CredentialId {
        let mut scope: Vec<_> = self.scope.iter().flat_map(|s| s.split(' ')).collect();
        scope.sort_unstable();
        scope.dedup();
        let scope = scope.join(" ");
        let tenant = self.tenant.as_deref().unwrap_or_default();
        CredentialId::of(&[&self.provider, &self.subject, tenant, scope.trim()])
    }
}

pub(crate) fn remaining(until: SystemTime, now: SystemTime) -> Duration {
    until.duration_since(now).unwrap_or_default()
}

/// Why a login was not issued.
#[derive(Debug)]
#[non_exhaustive]
pub enum IssueError {
    /// The crypto library or the operating system's randomness failed.
    Crypto,
    /// A part of the login cannot be used.
    Invalid {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The store did not take it.
    Store(StoreError),
}

impl From<StoreError> for IssueError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crypto => f.write_str("the system's cryptography or randomness failed"),
            Self::Invalid { what, reason } => write!(f, "{what} {reason}"),
            Self::Store(error) if error.kind() == StoreErrorKind::Unavailable => {
                f.write_str("the login could not be stored, try again")
            }
            Self::Store(_) => f.write_str("the login could not be stored"),
        }
    }
}

impl Error for IssueError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Crypto | Self::Invalid { .. } => None,
        }
    }
}

/// Two are enough but for a refresh that is stored in between.
const LINK_TRIES: usize = 8;
