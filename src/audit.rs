//! Audit events: what an operator wants to know of a grant's life afterwards.
//!
//! An event names a grant, its subject and its client as far as they are known,
//! and carries no token. What is recorded has happened: an attempt that came to
//! nothing, or that somebody else had made before, is no event.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

use crate::id::GrantId;
use crate::store::Code;
use crate::store::Grant;
use crate::store::RevocationReason;

/// Where audit events go.
///
/// ```
/// use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
/// use regrant::audit::{Audit, AuditEvent, AuditKind};
/// use regrant::provider::oauth2::OAuth2Provider;
/// use regrant::seal::Keyring;
/// use regrant::secret::UpstreamAccessToken;
/// use regrant::store::memory::MemoryStore;
/// use regrant::{Login, Regrant};
///
/// /// Hands events to a thread that writes them down.
/// #[derive(Debug)]
/// struct Ledger(SyncSender<AuditEvent>);
///
/// impl Audit for Ledger {
///     fn record(&self, event: &AuditEvent) {
///         // Never waits: if the writer is that far behind, the event is lost.
///         let _lost = self.0.try_send(event.clone());
///     }
/// }
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let (ledger, events): (_, Receiver<AuditEvent>) = sync_channel(1_000);
/// let linear = OAuth2Provider::builder("https://idp.example/token", "my-gateway").build()?;
/// let regrant = Regrant::builder("https://gateway.example", MemoryStore::new(), Keyring::generate()?)
///     .provider("linear", linear)
///     .with_audit(Ledger(ledger))
///     .start()
///     .await?;
///
/// regrant.issue(Login::new("linear", "ada", UpstreamAccessToken::new("at"))).await?;
///
/// let event = events.try_recv()?;
/// assert_eq!(event.kind, AuditKind::GrantIssued);
/// assert_eq!(event.subject.as_deref(), Some("ada"));
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(example()).unwrap();
/// ```
pub trait Audit: fmt::Debug + Send + Sync + 'static {
    /// Takes note of an event. It is called on the way of requests, so it must
    /// not block; a panic is contained.
    fn record(&self, event: &AuditEvent);
}

/// What happened, and to whom.
///
/// ```
/// use regrant::audit::{AuditEvent, AuditKind};
///
/// let event = AuditEvent::new(AuditKind::GrantIssued);
/// assert_eq!((event.kind.as_str(), event.grant), ("grant_issued", None));
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct AuditEvent {
    /// What happened.
    pub kind: AuditKind,
    /// The grant that it happened to.
    pub grant: Option<GrantId>,
    /// The user that the grant is for.
    pub subject: Option<String>,
    /// The client of the grant, or the one that a request said it was from.
    pub client_id: Option<String>,
}

impl AuditEvent {
    /// An event that concerns nobody in particular.
    pub fn new(kind: AuditKind) -> Self {
        Self {
            kind,
            grant: None,
            subject: None,
            client_id: None,
        }
    }

    pub(crate) fn of(kind: AuditKind, whose: impl Into<Whose>) -> Self {
        let whose = whose.into();
        Self {
            kind,
            grant: Some(whose.grant),
            subject: Some(whose.subject),
            client_id: whose.client_id,
        }
    }

    pub(crate) fn of_client(kind: AuditKind, client_id: &str) -> Self {
        Self {
            client_id: Some(client_id.to_owned()),
            ..Self::new(kind)
        }
    }
}

/// What happened.
///
/// ```
/// use regrant::audit::AuditKind;
///
/// assert_eq!(AuditKind::CodeReused.as_str(), "code_reused");
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AuditKind {
    /// An access token was revoked by its client (RFC 7009); the grant lives.
    AccessTokenRevoked,
    /// A confidential client did not prove who it is (RFC 6749 §2.3).
    ClientAuthenticationFailed,
    /// An authorization code was redeemed: its grant begins.
    CodeRedeemed,
    /// An authorization code was redeemed a second time (RFC 6749 §4.1.2): its
    /// grant has ended.
    CodeReused,
    /// A login became a grant.
    GrantIssued,
    /// A direct grant was redeemed: its client was given an upstream access
    /// token.
    GrantRedeemed,
    /// A grant has ended.
    #[non_exhaustive]
    GrantRevoked {
        /// Why.
        reason: RevocationReason,
    },
    /// A refresh token came back that had long been rotated away (RFC 9700
    /// §4.14.2): its grant has ended.
    #[non_exhaustive]
    TokenReused {
        /// The generation of the token that came back.
        presented: u64,
        /// The generation of the one that was good.
        current: u64,
    },
    /// A provider ended the login behind a grant that had ended.
    #[non_exhaustive]
    UpstreamRevoked {
        /// Which one.
        provider: String,
    },
    /// A login behind a grant that had ended may live on at its provider, which
    /// could not be told for a day.
    #[non_exhaustive]
    UpstreamRevocationGivenUp {
        /// Which one.
        provider: String,
    },
}

impl AuditKind {
    /// The word that logs use.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::AccessTokenRevoked => "access_token_revoked",
            Self::ClientAuthenticationFailed => "client_authentication_failed",
            Self::CodeRedeemed => "code_redeemed",
            Self::CodeReused => "code_reused",
            Self::GrantIssued => "grant_issued",
            Self::GrantRedeemed => "grant_redeemed",
            Self::GrantRevoked { .. } => "grant_revoked",
            Self::TokenReused { .. } => "token_reused",
            Self::UpstreamRevoked { .. } => "upstream_revoked",
            Self::UpstreamRevocationGivenUp { .. } => "upstream_revocation_given_up",
        }
    }

    /// Whether somebody should look at it.
    const fn is_alarming(&self) -> bool {
        matches!(
            self,
            Self::CodeReused | Self::TokenReused { .. } | Self::UpstreamRevocationGivenUp { .. }
        )
    }
}

/// Whose event it is.
pub(crate) struct Whose {
    pub(crate) grant: GrantId,
    subject: String,
    client_id: Option<String>,
}

impl From<&Grant> for Whose {
    fn from(grant: &Grant) -> Self {
        Self {
            grant: grant.id,
            subject: grant.subject.clone(),
            client_id: grant.client_id.clone(),
        }
    }
}

impl From<&Code> for Whose {
    fn from(code: &Code) -> Self {
        Self {
            grant: code.id,
            subject: code.subject.clone(),
            client_id: Some(code.client_id.clone()),
        }
    }
}

/// Hands an event over. What it concerns is done, so a ledger that panics
/// changes nothing any more.
pub(crate) fn record(audit: &dyn Audit, event: &AuditEvent) {
    if catch_unwind(AssertUnwindSafe(|| audit.record(event))).is_err() {
        tracing::error!(
            event = event.kind.as_str(),
            "an audit event was not recorded"
        );
    }
}

/// The default: events are logged at the target `regrant::audit`, as warnings
/// where somebody should look.
///
/// ```
/// use regrant::audit::{Audit as _, AuditEvent, AuditKind, Tracing};
///
/// Tracing.record(&AuditEvent::new(AuditKind::GrantIssued));
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "there is nothing to add")]
pub struct Tracing;

impl Audit for Tracing {
    fn record(&self, event: &AuditEvent) {
        let (mut reason, mut provider, mut generations) = (None, None, None);
        match &event.kind {
            AuditKind::GrantRevoked { reason: why } => reason = Some(why.as_str()),
            AuditKind::TokenReused { presented, current } => {
                generations = Some((*presented, *current));
            }
            AuditKind::UpstreamRevoked { provider: of }
            | AuditKind::UpstreamRevocationGivenUp { provider: of } => provider = Some(&**of),
            AuditKind::AccessTokenRevoked
            | AuditKind::ClientAuthenticationFailed
            | AuditKind::CodeRedeemed
            | AuditKind::CodeReused
            | AuditKind::GrantIssued
            | AuditKind::GrantRedeemed => {}
        }
        // A macro, because the level of an event must be a constant.
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "regrant::audit",
                    grant = event.grant.map(tracing::field::display),
                    subject = event.subject,
                    client_id = event.client_id,
                    reason,
                    provider,
                    presented = generations.map(|(presented, _)| presented),
                    current = generations.map(|(_, current)| current),
                    "{}",
                    event.kind.as_str()
                )
            };
        }
        if event.kind.is_alarming() {
            log!(warn);
        } else {
            log!(info);
        }
    }
}
