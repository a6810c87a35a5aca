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
mod error;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
mod row;

use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::future::BoxFuture;

pub use self::error::StoreError;
pub use self::error::StoreErrorKind;
pub use self::row::Claim;
pub use self::row::Credential;
pub use self::row::Grant;
pub use self::row::KeyRecord;
pub use self::row::LOST_IN_FLIGHT;
pub use self::row::LeaseHolder;
pub use self::row::Replacement;
pub use self::row::RevocationReason;
pub use self::row::Rotation;
pub use self::row::Settlement;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trait_is_dyn_compatible() {
        fn _takes(_store: &dyn Store) {}
    }
}
