//! The store: grants and credentials, shared by every replica.
//!
//! 1. Every operation addresses one row by its primary key. There is nothing
//!    to lock and no transaction to hold open.
//! 2. What may race is a compare-and-swap: [`rotate`](Store::rotate) on the
//!    grant's generation, [`claim`](Store::claim) on the credential's
//!    generation, [`settle`](Store::settle) on generation *and* fence. Exactly
//!    one caller wins; the others are told so and read again.
//! 3. Nothing is upserted: what was revoked or has ended cannot come back.
//! 4. Secrets arrive sealed. A store never sees an upstream token in clear, nor
//!    a gateway token in any form but its SHA-256.
//! 5. Leases run by the store's own time, which all replicas share.
//!
//! [`PostgresStore`](postgres::PostgresStore) is for deployments,
//! [`MemoryStore`](memory::MemoryStore) for examples, tests and gateways of one
//! process. A store of your own passes the suite in `store::conformance`
//! (feature `test-util`).

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;

use std::error::Error;
use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::future::BoxFuture;

use crate::BoxError;
use crate::id::CredentialId;
use crate::id::GrantId;

/// Where grants and credentials live.
///
/// Implementations bound every call in time by themselves: a store that hangs
/// must come back as [`StoreErrorKind::Unavailable`].
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Whether rows outlive this process. A durable store refuses a generated
    /// keyring.
    fn is_durable(&self) -> bool;

    /// Records that `key` seals from now on; does nothing if its id is known.
    fn register_key(&self, key: KeyRecord) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Every key that rows may be sealed under.
    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>, StoreError>>;

    /// Adds a credential. [`StoreErrorKind::Conflict`] if its id is taken.
    fn insert_credential(&self, credential: Credential) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads a credential; `None` if there is none.
    fn credential(&self, id: CredentialId)
    -> BoxFuture<'_, Result<Option<Credential>, StoreError>>;

    /// Claims the right to refresh a credential until `lease` has passed, for
    /// `holder`, which stands for one attempt.
    ///
    /// Wins, in one step, if the credential is at `generation`, has not ended
    /// and no lease of another holder is running; adds one to the fence and
    /// returns the row as it then is. `None` otherwise: read again.
    ///
    /// A lease is the written intent to spend. If the claim takes one over that
    /// another holder let run out, it adds one to
    /// [`unsettled`](Credential::unsettled).
    fn claim(
        &self,
        id: CredentialId,
        generation: u64,
        holder: LeaseHolder,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>>;

    /// Ends a claim with its outcome, if the credential is still at the
    /// generation and the fence of `claim`. `false` if it is not.
    fn settle(&self, claim: Claim, outcome: Settlement) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Puts other tokens into a credential that is at `generation`: one more
    /// generation, one more fence, and nothing left of leases, failures or an
    /// end that the provider made to the tokens before. `false` if it is not at
    /// that generation: read again.
    fn replace(
        &self,
        id: CredentialId,
        generation: u64,
        tokens: Replacement,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Adds a grant. [`StoreErrorKind::Conflict`] if its id is taken.
    fn insert_grant(&self, grant: Grant) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads a grant; `None` if there is none.
    fn grant(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Grant>, StoreError>>;

    /// Replaces the refresh token, if the grant is at `rotation.generation`,
    /// holds `rotation.presented_hash` and is not revoked. `false` if not:
    /// read again.
    fn rotate(&self, rotation: Rotation) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Counts one replay of the predecessor of `generation`, if fewer than
    /// `cap` were counted and the grant is not revoked. `false` if not.
    fn count_replay(
        &self,
        id: GrantId,
        generation: u64,
        cap: u32,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Notes that one half of the pair of `generation` has been used.
    fn acknowledge(&self, id: GrantId, generation: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends a grant for good. `false` if it had ended before or is unknown; the
    /// first reason stays.
    fn revoke_grant(
        &self,
        id: GrantId,
        at: SystemTime,
        reason: RevocationReason,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Ends one access token, named by 24 bytes that begin with its expiry.
    /// Entries below `expired_below`, compared as bytes, may be dropped.
    fn revoke_access(
        &self,
        id: GrantId,
        entry: [u8; 24],
        expired_below: [u8; 24],
    ) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// The stored authorization of one client.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct Grant {
    /// Primary key; every token of the grant carries it.
    pub id: GrantId,
    /// What the grant's requests are served with.
    pub credential_id: CredentialId,
    /// The provider of that credential.
    pub provider: String,
    /// The user.
    pub subject: String,
    /// The client that may use the grant (RFC 6749 §1.1); any if `None`.
    pub client_id: Option<String>,
    /// Space-separated (RFC 6749 §3.3).
    pub scope: Option<String>,
    /// The one resource it is good for (RFC 8707); all if `None`.
    pub resource: Option<String>,
    /// Random; access tokens are authenticated with it.
    pub salt: [u8; 32],
    /// The keyring key under which the present pair was issued.
    pub key_id: String,
    /// Rotations so far.
    pub generation: u64,
    /// SHA-256 of the present refresh token's secret.
    pub refresh_hash: [u8; 32],
    /// SHA-256 of its predecessor's.
    pub previous_hash: Option<[u8; 32]>,
    /// When the predecessor was first rotated away.
    pub rotated_at: Option<SystemTime>,
    /// When the access token of the present pair expires.
    pub access_expires_at: SystemTime,
    /// How often the predecessor was replayed.
    pub replays: u32,
    /// Whether one half of the present pair has been seen.
    pub acknowledged: bool,
    /// The absolute deadline counts from here.
    pub created_at: SystemTime,
    /// The idle deadline counts from here.
    pub last_used_at: SystemTime,
    /// Single access tokens that were revoked.
    pub revoked_access: Vec<[u8; 24]>,
    /// When and why it ended.
    pub revoked: Option<(SystemTime, RevocationReason)>,
}

/// Why a grant ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RevocationReason {
    /// The client asked for it (RFC 7009).
    Client,
    /// An operator asked for it.
    Operator,
    /// A refresh token came back that had long been rotated away (RFC 9700 §4.14).
    Reuse,
}

impl RevocationReason {
    /// The word that stores and logs use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Operator => "operator",
            Self::Reuse => "reuse",
        }
    }

    /// The reason that [`as_str`](Self::as_str) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Client, Self::Operator, Self::Reuse]
            .into_iter()
            .find(|reason| reason.as_str() == text)
    }
}

/// What a provider gave us, sealed. Many grants may refer to one.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct Credential {
    /// Primary key.
    pub id: CredentialId,
    /// The provider that issued it.
    pub provider: String,
    /// The user it stands for.
    pub subject: String,
    /// Refreshes so far.
    pub generation: u64,
    /// The sealed tokens; bound to id, generation and provider.
    pub sealed: Vec<u8>,
    /// When the access token expires; `None` if nobody knows.
    pub expires_at: Option<SystemTime>,
    /// When the access token was issued.
    pub refreshed_at: SystemTime,
    /// No attempt to refresh before this time.
    pub not_before: Option<SystemTime>,
    /// When an upstream's 401 last caused a refresh.
    pub forced_at: Option<SystemTime>,
    /// How many claims there were; proves which one is the latest.
    pub fence: u64,
    /// How many attempts at this generation were cut off after they may have
    /// spent the refresh token.
    pub unsettled: u32,
    /// How many attempts in a row came to nothing.
    pub failures: u32,
    /// Why it ended: the provider's error, or [`LOST_IN_FLIGHT`].
    pub terminal: Option<String>,
}

/// Why a credential ended whose refresh token was spent by an attempt of ours
/// that never heard the answer.
pub const LOST_IN_FLIGHT: &str = "lost_in_flight";

/// Who holds a lease: one attempt of one replica, by sixteen random bytes.
pub type LeaseHolder = [u8; 16];

/// The proof of a won [`claim`](Store::claim).
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an argument of a trait that others implement"
)]
pub struct Claim {
    /// The credential.
    pub id: CredentialId,
    /// Its generation when it was claimed.
    pub generation: u64,
    /// The fence that the claim was given.
    pub fence: u64,
}

/// How a refresh ended.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a store must handle every settlement: a new one is a breaking change"
)]
pub enum Settlement {
    /// New tokens: the generation goes up by one.
    Refreshed {
        /// Sealed for the next generation.
        sealed: Vec<u8>,
        /// When the new access token expires.
        expires_at: Option<SystemTime>,
        /// When it was issued.
        refreshed_at: SystemTime,
        /// The same, if an upstream's 401 was the cause; `None` leaves the
        /// row's `forced_at` as it is.
        forced_at: Option<SystemTime>,
        /// No attempt to refresh again before this time.
        not_before: Option<SystemTime>,
    },
    /// The provider ended it, with this error.
    Terminal {
        /// The provider's error code.
        reason: String,
    },
    /// Nothing came of it; no attempt before this time.
    Released {
        /// When the next attempt may be made.
        not_before: SystemTime,
        /// What [`Credential::unsettled`] is from now on.
        unsettled: u32,
        /// What [`Credential::failures`] is from now on.
        failures: u32,
    },
}

/// Tokens that came another way than by a [`claim`](Store::claim): a new login,
/// or an answer that was late.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an argument of a trait that others implement"
)]
pub struct Replacement {
    /// Sealed for the next generation.
    pub sealed: Vec<u8>,
    /// When the access token expires; `None` if nobody knows.
    pub expires_at: Option<SystemTime>,
    /// When the access token was issued.
    pub refreshed_at: SystemTime,
}

/// The replacement of a refresh token by its successor.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an argument of a trait that others implement"
)]
pub struct Rotation {
    /// The grant.
    pub id: GrantId,
    /// The generation of the token that was presented.
    pub generation: u64,
    /// Its hash, which becomes the predecessor's.
    pub presented_hash: [u8; 32],
    /// The hash of the successor.
    pub refresh_hash: [u8; 32],
    /// The key under which the successor pair is issued.
    pub key_id: String,
    /// The time of the rotation.
    pub at: SystemTime,
    /// When the successor's access token expires.
    pub access_expires_at: SystemTime,
}

/// A key that rows may be sealed under.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct KeyRecord {
    /// Its id in the keyring.
    pub id: String,
    /// Proves which key it is without telling it.
    pub check_value: [u8; 32],
}

/// Why a store could not answer. No kind of it ever means that a row is absent.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<BoxError>,
}

impl StoreError {
    /// An error of this kind, with what caused it.
    pub fn new(kind: StoreErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }

    /// What to do about it.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl From<StoreErrorKind> for StoreError {
    fn from(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            StoreErrorKind::Unavailable => "the store cannot be reached",
            StoreErrorKind::Conflict => "a row with this id exists already",
            StoreErrorKind::Schema => {
                "the store's schema is not the one of this version: run the migrations"
            }
            StoreErrorKind::Corrupt => "a stored row cannot be read",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// What to do about a [`StoreError`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Try again: the store is away, slow or in the middle of a failover.
    Unavailable,
    /// The id is taken.
    Conflict,
    /// Run the migrations.
    Schema,
    /// A row holds what this version cannot read.
    Corrupt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trait_is_dyn_compatible() {
        fn _takes(_store: &dyn Store) {}
    }

    #[test]
    fn a_reason_is_read_back_as_it_was_written() {
        for reason in [
            RevocationReason::Client,
            RevocationReason::Operator,
            RevocationReason::Reuse,
        ] {
            assert_eq!(RevocationReason::parse(reason.as_str()), Some(reason));
        }
        assert_eq!(RevocationReason::parse("whim"), None);
    }
}
