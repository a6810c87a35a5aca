//! The store: grants, credentials, codes and clients, shared by every replica.
//!
//! 1. Every operation addresses one row by its primary key, but for those of the
//!    upstream revocations, which nobody waits for. There is nothing to lock and
//!    no transaction to hold open.
//! 2. What may race is a compare-and-swap: [`rotate`](Store::rotate) on the
//!    grant's generation, [`claim`](Store::claim) on the credential's
//!    generation, [`settle`](Store::settle) on generation *and* fence. Exactly
//!    one caller wins; the others are told so and read again.
//! 3. Nothing that can end is upserted: what was revoked or has ended cannot
//!    come back.
//! 4. Secrets arrive sealed. A store never sees an upstream token in clear, nor
//!    a gateway token in any form but its SHA-256.
//! 5. Leases run by the store's own time, which all replicas share.
//! 6. What no request waits for is an [`Upkeep`]: pages of rows.
//!
//! [`PostgresStore`](postgres::PostgresStore) is for deployments,
//! [`MemoryStore`](memory::MemoryStore) for examples, tests and gateways of one
//! process. A store of your own passes the suite in `store::conformance`
//! (feature `test-util`).

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
mod error;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
mod row;
mod upkeep;

use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use futures_util::stream::BoxStream;

pub use self::error::StoreError;
pub use self::error::StoreErrorKind;
pub use self::row::Claim;
pub use self::row::ClientRecord;
pub use self::row::Code;
pub use self::row::Credential;
pub use self::row::DISCONNECTED;
pub use self::row::DirectToken;
pub use self::row::Grant;
pub use self::row::HeldCredential;
pub use self::row::KeyRecord;
pub use self::row::LOST_IN_FLIGHT;
pub use self::row::LeaseHolder;
pub use self::row::REVOKED;
pub use self::row::Replacement;
pub use self::row::RevocationReason;
pub use self::row::Rotation;
pub use self::row::RotationPolicy;
pub use self::row::Settlement;
pub use self::upkeep::CredentialFilter;
pub use self::upkeep::Deadlines;
pub use self::upkeep::GrantFilter;
pub use self::upkeep::KeyUsage;
pub use self::upkeep::Outlived;
pub use self::upkeep::Page;
pub use self::upkeep::Swept;
pub use self::upkeep::Upkeep;
use crate::id::CredentialId;
use crate::id::GrantId;

/// Where grants, credentials, codes and clients live.
///
/// Implementations bound every call in time by themselves: a store that hangs
/// must come back as [`StoreErrorKind::Unavailable`].
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Whether rows outlive this process. A durable store refuses a generated
    /// keyring.
    fn is_durable(&self) -> bool;

    /// The part that no request waits for.
    fn upkeep(&self) -> &dyn Upkeep;

    /// Whether it answers. The default asks for the [`keys`](Self::keys).
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.keys().map(|keys| keys.map(drop)).boxed()
    }

    /// What ends through other processes, as it happens. Never ends itself: it
    /// connects again by itself, and says when it hears nothing. The default
    /// never says anything, which is right for a store of one process; with it
    /// other processes notice within the staleness bound.
    fn changes(&self) -> BoxStream<'static, Change> {
        stream::pending().boxed()
    }

    /// Records that `key` seals from now on. If its id is known with the same
    /// check value, nothing of that changes, unless the key was
    /// [retired](Upkeep::retire_key): then it no longer is, and was registered
    /// now. If its id is known with another one, it does nothing.
    fn register_key(&self, key: KeyRecord) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Every key that rows are or were sealed under, retired ones included.
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
    /// holds `rotation.replaced_hash` and is not revoked, and nobody has used its
    /// pair where `rotation.unless_used` says so. `false` if not: read again.
    fn rotate(&self, rotation: Rotation) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Counts one replay of the predecessor of `generation`, which is a use of
    /// the grant, if fewer than `cap` were counted and the grant is not revoked.
    /// `false` if not.
    fn count_replay(
        &self,
        id: GrantId,
        generation: u64,
        cap: u32,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Notes that one half of the pair of `generation` has been used.
    fn acknowledge(&self, id: GrantId, generation: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Puts a credential into a grant that is not revoked, in place of the one
    /// of the same provider if it has one. `false` if it is revoked or unknown.
    fn attach(
        &self,
        id: GrantId,
        credential: HeldCredential,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Ends a grant for good, and makes its upstream revocation due. `false` if
    /// it had ended before or is unknown; the first reason stays.
    fn revoke_grant(
        &self,
        id: GrantId,
        at: SystemTime,
        reason: RevocationReason,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Notes a use of the direct token of a grant that is not revoked, unless a
    /// later one is noted. `false` if it is revoked, has none or is unknown.
    fn slide(&self, id: GrantId, at: SystemTime) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Ends a direct grant for good as [`RevocationReason::Expired`], as
    /// [`revoke_grant`](Self::revoke_grant) does, unless its token was used after
    /// `redeemed_at` or its pair after `last_used_at`. `false` if one was, if it
    /// had ended before, is no direct grant or is unknown.
    fn expire_grant(
        &self,
        id: GrantId,
        redeemed_at: SystemTime,
        last_used_at: SystemTime,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Ends one access token, named by 24 bytes that begin with its expiry.
    /// Entries below `expired_below`, compared as bytes, may be dropped.
    fn revoke_access(
        &self,
        id: GrantId,
        entry: [u8; 24],
        expired_below: [u8; 24],
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Some of the grants whose upstream revocation is due at `now`, at most
    /// `limit`.
    fn due_revocations(
        &self,
        now: SystemTime,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<GrantId>, StoreError>>;

    /// Takes on the upstream revocation of a grant, if it is due at `now`, and
    /// makes it due again at `next`, should it not be
    /// [finished](Self::finish_revocation). `None` if it is not due.
    fn take_revocation(
        &self,
        id: GrantId,
        now: SystemTime,
        next: SystemTime,
    ) -> BoxFuture<'_, Result<Option<Grant>, StoreError>>;

    /// Notes that the upstream revocation of a grant is done.
    fn finish_revocation(&self, id: GrantId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Whether a grant refers to this credential that is not revoked, was
    /// created after `created_after` and last used after `used_after`.
    fn is_held(
        &self,
        id: CredentialId,
        created_after: SystemTime,
        used_after: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Whether a code refers to this credential that can still be redeemed at
    /// `now`.
    fn is_awaited(
        &self,
        id: CredentialId,
        now: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Adds a code. [`StoreErrorKind::Conflict`] if its id is taken.
    fn insert_code(&self, code: Code) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads a code; `None` if there is none.
    fn code(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Code>, StoreError>>;

    /// Registers a client, in place of what was registered under its id.
    fn register_client(&self, client: ClientRecord) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads a client; `None` if it is not registered.
    fn client<'a>(&'a self, id: &'a str)
    -> BoxFuture<'a, Result<Option<ClientRecord>, StoreError>>;
}

/// What a store has to say about what other processes did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "an answer: what nobody handles is a revocation that is late"
)]
pub enum Change {
    /// From now on every end is told of. What was read before may have ended
    /// since.
    Listening,
    /// Until further notice none is.
    Deaf,
    /// This grant, or one of its access tokens, was revoked.
    Grant(GrantId),
    /// This credential has ended.
    Credential(CredentialId),
}

/// How many rotations a grant remembers the time of: more than clients can
/// have under way at once.
pub const ROTATIONS_KEPT: u8 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trait_is_dyn_compatible() {
        fn _takes(_store: &dyn Store) {}
    }
}
