//! The rows of a store, and what is done to them.

use std::time::SystemTime;

use crate::id::CredentialId;
use crate::id::GrantId;

/// The stored authorization of one client.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct Grant {
    /// Primary key; every token of the grant carries it.
    pub id: GrantId,
    /// What the grant's requests are served with: at least one, and one of
    /// each provider.
    pub credentials: Vec<HeldCredential>,
    /// The user.
    pub subject: String,
    /// The client that may use the grant (RFC 6749 §1.1); any if `None`.
    pub client_id: Option<String>,
    /// Whether that client must authenticate, whatever its registration says.
    pub confidential: bool,
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
    /// SHA-256 of the one that was replaced before anybody used it, if the last
    /// rotation replaced one.
    pub superseded_hash: Option<[u8; 32]>,
    /// Its direct refresh token; `None` if it is not a direct grant.
    pub direct: Option<DirectToken>,
    /// When the predecessor was first rotated away.
    pub rotated_at: Option<SystemTime>,
    /// When the last [`ROTATIONS_KEPT`](super::ROTATIONS_KEPT) generations were
    /// rotated away, the predecessor first: for requests that were overtaken.
    pub rotations: Vec<SystemTime>,
    /// When the access token of the present pair expires.
    pub access_expires_at: SystemTime,
    /// How often the predecessor was replayed.
    pub replays: u32,
    /// Whether one half of the present pair has been seen.
    pub acknowledged: bool,
    /// The absolute deadline counts from here.
    pub created_at: SystemTime,
    /// The idle deadline of the pair counts from here.
    pub last_used_at: SystemTime,
    /// Single access tokens that were revoked.
    pub revoked_access: Vec<[u8; 24]>,
    /// When and why it ended.
    pub revoked: Option<(SystemTime, RevocationReason)>,
    /// When the provider should be told next that it ended; `None` if that is
    /// done, or the grant lives.
    pub upstream_due: Option<SystemTime>,
}

impl Grant {
    /// The credential of this provider, if the grant has one.
    pub fn credential(&self, provider: &str) -> Option<CredentialId> {
        self.credentials
            .iter()
            .find(|held| held.provider == provider)
            .map(|held| held.id)
    }
}

/// The refresh token of a direct grant. It is never rotated, and lives apart from
/// the grant's pair.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct DirectToken {
    /// SHA-256 of its secret.
    pub hash: [u8; 32],
    /// When it was redeemed last, or issued. Its lifetime counts from here.
    pub used_at: SystemTime,
}

/// A credential that a grant refers to.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct HeldCredential {
    /// Its provider.
    pub provider: String,
    /// Which one.
    pub id: CredentialId,
}

/// Why a grant ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RevocationReason {
    /// The client asked for it (RFC 7009).
    Client,
    /// Its authorization code was redeemed a second time (RFC 6749 §4.1.2).
    CodeReuse,
    /// The user was disconnected from the provider.
    Disconnected,
    /// It is a direct grant that was not redeemed for too long.
    Expired,
    /// An operator asked for it.
    Operator,
    /// It is a direct grant whose provider ended it.
    Provider,
    /// A refresh token came back that had long been rotated away (RFC 9700 §4.14).
    Reuse,
}

impl RevocationReason {
    /// The word that stores and logs use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::CodeReuse => "code_reuse",
            Self::Disconnected => "disconnected",
            Self::Expired => "expired",
            Self::Operator => "operator",
            Self::Provider => "provider",
            Self::Reuse => "reuse",
        }
    }

    /// The reason that [`as_str`](Self::as_str) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Client,
            Self::CodeReuse,
            Self::Disconnected,
            Self::Expired,
            Self::Operator,
            Self::Provider,
            Self::Reuse,
        ]
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
    /// Why it ended: the provider's error, [`LOST_IN_FLIGHT`], [`REVOKED`] or
    /// [`DISCONNECTED`].
    pub terminal: Option<String>,
    /// Whether it belongs to its subject without any grant: then no client's
    /// revocation ends it.
    pub linked: bool,
}

impl Credential {
    /// Whether it ended as [`REVOKED`] or [`DISCONNECTED`]: here, and not by a
    /// provider's word.
    pub fn is_taken_back(&self) -> bool {
        matches!(self.terminal.as_deref(), Some(REVOKED | DISCONNECTED))
    }
}

/// Why a credential ended whose refresh token was spent by an attempt of ours
/// that never heard the answer.
pub const LOST_IN_FLIGHT: &str = "lost_in_flight";

/// Why a credential ended that nobody here wants any more.
pub const REVOKED: &str = "revoked";

/// Why a credential ended that its user took back: whoever else uses it.
pub const DISCONNECTED: &str = "disconnected";

/// Who holds a lease: one attempt of one replica, by sixteen random bytes.
pub type LeaseHolder = [u8; 16];

/// The proof of a won [`claim`](super::Store::claim).
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

/// Tokens that came another way than by a [`claim`](super::Store::claim): a new login,
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
    /// Whether [`Credential::linked`] is set from now on; `false` leaves it.
    pub linked: bool,
    /// Not if it [was taken back](Credential::is_taken_back): older tokens do not
    /// undo that.
    pub unless_revoked: bool,
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
    /// The generation of the grant, which goes up by one.
    pub generation: u64,
    /// The hash of the token that was presented, which becomes the
    /// predecessor's.
    pub presented_hash: [u8; 32],
    /// The hash of the present refresh token: nearly always the same one.
    pub replaced_hash: [u8; 32],
    /// Only if nobody has used the present pair.
    pub unless_used: bool,
    /// The hash of the successor.
    pub refresh_hash: [u8; 32],
    /// The key under which the successor pair is issued.
    pub key_id: String,
    /// The time of the rotation.
    pub at: SystemTime,
    /// When the successor's access token expires.
    pub access_expires_at: SystemTime,
}

/// A login that waits for its client to redeem an authorization code (RFC 6749
/// §4.1). Never changed: the code is redeemed by inserting the grant.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct Code {
    /// Primary key; the id of the grant that it becomes.
    pub id: GrantId,
    /// SHA-256 of the code's secret.
    pub hash: [u8; 32],
    /// The `code_challenge` of method S256 (RFC 7636 §4.2), decoded.
    pub challenge: [u8; 32],
    /// The client that asked for it.
    pub client_id: String,
    /// As in [`Grant::confidential`].
    pub confidential: bool,
    /// What the authorization request named, if it did.
    pub redirect_uri: Option<String>,
    /// The user.
    pub subject: String,
    /// As in [`Grant::scope`].
    pub scope: Option<String>,
    /// As in [`Grant::resource`].
    pub resource: Option<String>,
    /// As in [`Grant::credentials`].
    pub credentials: Vec<HeldCredential>,
    /// When the code expires.
    pub expires_at: SystemTime,
}

/// A client that was registered. Those that were not are public.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct ClientRecord {
    /// Primary key: its `client_id`.
    pub id: String,
    /// SHA-256 of each secret that it may authenticate with.
    pub secret_hashes: Vec<[u8; 32]>,
    /// The JWK Set (RFC 7517 §5) of the keys that it may authenticate with.
    pub keys: Option<String>,
    /// What its replays mean.
    pub rotation: RotationPolicy,
    /// Whether it may introspect tokens (RFC 7662).
    pub introspects: bool,
    /// When it was registered.
    pub registered_at: SystemTime,
}

impl ClientRecord {
    /// Whether it must authenticate (RFC 6749 §2.1).
    pub fn is_confidential(&self) -> bool {
        !self.secret_hashes.is_empty() || self.keys.is_some()
    }
}

/// How long a refresh token that was rotated away still gets its successor.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum RotationPolicy {
    /// Within the reuse grace, and for as long as nobody has used the
    /// successor: clients race, and answers get lost.
    #[default]
    Default,
    /// Never: each refresh token works once, and using it again ends the grant.
    /// A lost answer is a lost login.
    Strict,
    /// Until the successor is used at the token endpoint, at most to the
    /// absolute deadline: for clients that never store what they are given.
    Sticky,
}

impl RotationPolicy {
    /// The word that stores and logs use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Strict => "strict",
            Self::Sticky => "sticky",
        }
    }

    /// The policy that [`as_str`](Self::as_str) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Default, Self::Strict, Self::Sticky]
            .into_iter()
            .find(|policy| policy.as_str() == text)
    }
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
    /// When it was registered; `None` if nobody wrote that down.
    pub registered_at: Option<SystemTime>,
    /// When it was found to be no longer in use and no longer in the keyring.
    /// Tokens that it tagged are still out there.
    pub retired_at: Option<SystemTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_read_back_as_it_was_written() {
        for reason in [
            RevocationReason::Client,
            RevocationReason::CodeReuse,
            RevocationReason::Disconnected,
            RevocationReason::Expired,
            RevocationReason::Operator,
            RevocationReason::Provider,
            RevocationReason::Reuse,
        ] {
            assert_eq!(RevocationReason::parse(reason.as_str()), Some(reason));
        }
        assert_eq!(RevocationReason::parse("whim"), None);
    }

    #[test]
    fn a_policy_is_read_back_as_it_was_written() {
        for policy in [
            RotationPolicy::Default,
            RotationPolicy::Strict,
            RotationPolicy::Sticky,
        ] {
            assert_eq!(RotationPolicy::parse(policy.as_str()), Some(policy));
        }
        assert_eq!(RotationPolicy::parse("lenient"), None);
    }
}
