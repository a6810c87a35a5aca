//! Issuing: a login that the gateway completed becomes a grant, at once or when
//! its client redeems a code.

use std::error::Error;
use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::audit::AuditKind;
use crate::disconnect::notice;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::login::Login;
use crate::login::Upstream;
use crate::login::check_texts;
use crate::regrant::Regrant;
use crate::seal::random_bytes;
use crate::secret::AuthorizationCode;
use crate::secret::GatewayAccessToken;
use crate::secret::GatewayRefreshToken;
use crate::state::Core;
use crate::store::Code;
use crate::store::DirectToken;
use crate::store::Grant;
use crate::store::HeldCredential;
use crate::store::StoreError;
use crate::store::StoreErrorKind;
use crate::token;
use crate::token::IssuedPair;
use crate::token::Kind;

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

/// What a client's authorization request said that its redemption must match
/// (RFC 6749 §4.1.1, RFC 7636 §4.3).
///
/// ```
/// use regrant::CodeRequest;
///
/// let request = CodeRequest::new("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM")
///     .redirect_uri("http://127.0.0.1:8976/callback");
/// # let _request = request;
/// ```
#[derive(Clone, Debug)]
#[must_use = "a code request does nothing until a code is issued for it"]
pub struct CodeRequest {
    challenge: String,
    redirect_uri: Option<String>,
}

impl CodeRequest {
    /// With its `code_challenge`, whose `code_challenge_method` must have been
    /// `S256`: refuse every other one.
    pub fn new(code_challenge: impl Into<String>) -> Self {
        Self {
            challenge: code_challenge.into(),
            redirect_uri: None,
        }
    }

    /// Its `redirect_uri`, if it had one: the client must then repeat it.
    pub fn redirect_uri(mut self, uri: impl Into<String>) -> Self {
        self.redirect_uri = Some(uri.into());
        self
    }

    fn challenge(&self) -> Result<[u8; 32], IssueError> {
        let decoded = URL_SAFE_NO_PAD.decode(&self.challenge).ok();
        decoded
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(IssueError::Invalid {
                what: "code challenge",
                reason: "must be the base64url of a SHA-256 (RFC 7636 §4.2)",
            })
    }
}

/// A code that waits to be redeemed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IssuedCode {
    /// The grant that it will become.
    pub grant_id: GrantId,
    /// What the redirect to the client carries as `code`.
    pub code: AuthorizationCode,
    /// How long it can be redeemed.
    pub expires_in: Duration,
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
        let core = &self.core;
        check(core, &login)?;
        let id = GrantId::random().map_err(|_error| IssueError::Crypto)?;
        let confidential = is_confidential(core, &login).await?;
        let now = core.clock.now();
        // The credential first: a grant never refers to what is not there.
        let holder = Holder {
            id,
            credentials: self.link_all(&login, now).await?,
            subject: login.subject.clone(),
            client_id: login.client_id.clone(),
            confidential,
            scope: login.scope.clone(),
            resource: login.resource.clone(),
            direct_hash: None,
        };
        let new = NewGrant::of(core, holder, now)?;
        core.store.insert_grant(new.grant.clone()).await?;
        self.hold(&login, now).await?;
        core.audit(AuditKind::GrantIssued, &new.grant);

        Ok(new.into_issued(core, now))
    }

    /// Deposits a login for the client that asked for it, and gives out the
    /// authorization code that the redirect takes there (RFC 6749 §4.1.2). The
    /// token endpoint redeems it, once.
    ///
    /// The login must name its client.
    ///
    /// # Errors
    ///
    /// As [`issue`](Self::issue); also if the code challenge is not one of
    /// `S256`.
    pub async fn issue_code(
        &self,
        login: Login,
        request: CodeRequest,
    ) -> Result<IssuedCode, IssueError> {
        let core = &self.core;
        check(core, &login)?;
        check_texts(&[("redirect URI", request.redirect_uri.as_deref())])?;
        let challenge = request.challenge()?;
        let client_id = login.client_id.clone().ok_or(IssueError::Invalid {
            what: "client id",
            reason: "must be named: a code is for one client",
        })?;
        let now = core.clock.now();
        let id = GrantId::random().map_err(|_error| IssueError::Crypto)?;
        let key = core
            .keyring
            .sealing()
            .map_err(|_error| IssueError::Crypto)?;
        let (issued, hash) = token::issue_secret(Kind::Code, key, &core.prefixes, id)
            .map_err(|_error| IssueError::Crypto)?;

        // The credential is sealed now, not when the code is redeemed: only so
        // is redeeming one statement, and only so does a second redemption
        // never store it anew.
        let credentials = self.link_all(&login, now).await?;
        core.store
            .insert_code(Code {
                id,
                hash,
                challenge,
                client_id,
                confidential: is_confidential(core, &login).await?,
                redirect_uri: request.redirect_uri,
                subject: login.subject.clone(),
                scope: login.scope.clone(),
                resource: login.resource.clone(),
                credentials,
                expires_at: now + core.lifetimes.code,
            })
            .await?;
        self.hold(&login, now).await?;
        tracing::info!(grant = %id, "authorization code issued");

        Ok(IssuedCode {
            grant_id: id,
            code: AuthorizationCode::new(issued.as_str()),
            expires_in: core.lifetimes.code,
        })
    }

    /// Adds what a further provider gave to a grant, or replaces what the same
    /// provider gave before: routes of that provider are then open to the
    /// grant, here at once, on other replicas within the staleness bound.
    /// `false` if the grant has been revoked or is unknown.
    ///
    /// # Errors
    ///
    /// As [`issue`](Self::issue).
    pub async fn attach(&self, id: GrantId, upstream: Upstream) -> Result<bool, IssueError> {
        let core = &self.core;
        upstream.check()?;
        known(core, &upstream)?;
        // Nothing is stored for a grant that has ended: nobody could use it, and
        // nobody would revoke it.
        let grant = core.store.grant(id).await?;
        let Some(grant) = grant.filter(|grant| grant.revoked.is_none()) else {
            return Ok(false);
        };
        let now = core.clock.now();
        let credential = HeldCredential {
            id: self.link_one(&grant.subject, &upstream, false, now).await?,
            provider: upstream.provider.clone(),
        };
        let replaced = grant.credential(&credential.provider);
        if let Some(replaced) = replaced.filter(|replaced| *replaced != credential.id) {
            self.let_go(replaced, now).await?;
        }
        let attached = core.store.attach(id, credential).await;
        core.cache.forget(id);
        core.refusals.forget(id);
        let attached = attached?;
        if attached {
            self.hold_one(&grant.subject, &upstream, now).await?;
        }
        Ok(attached)
    }

    /// Writes down that a grant is about to have another credential in place of
    /// this one. The outbox looks when that has happened: if it has not, or
    /// somebody else wants the credential, it stays.
    async fn let_go(&self, id: CredentialId, now: SystemTime) -> Result<(), IssueError> {
        let core = &self.core;
        if let Some(row) = core.store.credential(id).await? {
            let due = now + 2 * core.timings.wait_budget;
            core.store
                .insert_grant(notice(core, &row, now, due)?)
                .await?;
        }
        Ok(())
    }

    async fn hold(&self, login: &Login, now: SystemTime) -> Result<(), IssueError> {
        for upstream in login.upstreams() {
            self.hold_one(&login.subject, upstream, now).await?;
        }
        Ok(())
    }

    /// Looks again: somebody may have revoked, or swept away, between linking and
    /// now, what nobody held yet. From now on it is held.
    async fn hold_one(
        &self,
        subject: &str,
        upstream: &Upstream,
        now: SystemTime,
    ) -> Result<(), IssueError> {
        let id = upstream.credential_id(subject);
        let row = self.core.store.credential(id).await?;
        if row.is_none_or(|row| row.is_taken_back()) {
            self.link_one(subject, upstream, false, now).await?;
        }
        Ok(())
    }

    async fn link_all(
        &self,
        login: &Login,
        now: SystemTime,
    ) -> Result<Vec<HeldCredential>, IssueError> {
        let mut credentials = Vec::new();
        for upstream in login.upstreams() {
            credentials.push(HeldCredential {
                provider: upstream.provider.clone(),
                id: self.link_one(&login.subject, upstream, false, now).await?,
            });
        }
        Ok(credentials)
    }
}

/// As it is registered now, not as somebody remembers: it is written down.
async fn is_confidential(core: &Core, login: &Login) -> Result<bool, StoreError> {
    let Some(id) = &login.client_id else {
        return Ok(false);
    };
    let client = core.store.client(id).await?;
    Ok(client.is_some_and(|client| client.is_confidential()))
}

fn check(core: &Core, login: &Login) -> Result<(), IssueError> {
    login.check()?;
    login
        .upstreams()
        .try_for_each(|upstream| known(core, upstream))
}

pub(crate) fn known(core: &Core, upstream: &Upstream) -> Result<(), IssueError> {
    if core.has_provider(&upstream.provider) {
        return Ok(());
    }
    Err(IssueError::Invalid {
        what: "provider",
        reason: "was not added to this gateway",
    })
}

/// Whom a new grant is for, and what it may be used for.
pub(crate) struct Holder {
    pub(crate) id: GrantId,
    pub(crate) credentials: Vec<HeldCredential>,
    pub(crate) subject: String,
    pub(crate) client_id: Option<String>,
    pub(crate) confidential: bool,
    pub(crate) scope: Option<String>,
    pub(crate) resource: Option<String>,
    /// As in [`DirectToken::hash`].
    pub(crate) direct_hash: Option<[u8; 32]>,
}

/// A grant as it will be stored, with its first pair.
pub(crate) struct NewGrant {
    pub(crate) grant: Grant,
    pub(crate) pair: IssuedPair,
}

impl NewGrant {
    pub(crate) fn of(core: &Core, holder: Holder, now: SystemTime) -> Result<Self, IssueError> {
        let salt = random_bytes().map_err(|_error| IssueError::Crypto)?;
        let access_expires_at = core.lifetimes.access_deadline(now, now);
        let key = core
            .keyring
            .sealing()
            .map_err(|_error| IssueError::Crypto)?;
        let pair = token::issue_first(key, &core.prefixes, holder.id, &salt, access_expires_at)
            .map_err(|_error| IssueError::Crypto)?;

        let grant = Grant {
            id: holder.id,
            credentials: holder.credentials,
            subject: holder.subject,
            client_id: holder.client_id,
            confidential: holder.confidential,
            scope: holder.scope,
            resource: holder.resource,
            salt,
            key_id: key.id().to_owned(),
            generation: 0,
            refresh_hash: pair.refresh_hash,
            previous_hash: None,
            superseded_hash: None,
            direct: holder
                .direct_hash
                .map(|hash| DirectToken { hash, used_at: now }),
            rotated_at: None,
            rotations: Vec::new(),
            access_expires_at,
            replays: 0,
            acknowledged: false,
            created_at: now,
            last_used_at: now,
            revoked_access: Vec::new(),
            revoked: None,
            upstream_due: None,
        };
        Ok(Self { grant, pair })
    }

    pub(crate) fn into_issued(self, core: &Core, now: SystemTime) -> Issued {
        Issued {
            grant_id: self.grant.id,
            access_token: self.pair.access,
            refresh_token: self.pair.refresh,
            expires_in: remaining(self.grant.access_expires_at, now),
            refresh_expires_in: remaining(core.lifetimes.refresh_deadline(now, now), now),
        }
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
