//! What no request waits for: listing, sweeping, sealing anew.
//!
//! All of it works by pages of the primary key. A page looks at so many rows and
//! no more, holds no lock that a request could meet, and says where the next one
//! begins: whoever is interrupted goes on from there, or begins again.

use std::time::Duration;
use std::time::SystemTime;

use futures_util::future::BoxFuture;

use super::Claim;
use super::Credential;
use super::Grant;
use super::StoreError;
use crate::id::CredentialId;
use crate::id::GrantId;

/// The part of a [`Store`](super::Store) that operators and background work use.
///
/// Pages are in the order of the primary key, of rows after `after`; `limit` is
/// how many rows are looked at, however many of them are wanted.
pub trait Upkeep: Send + Sync {
    /// Those of a page of grants that `filter` admits.
    fn grants(
        &self,
        filter: GrantFilter,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Page<Grant, GrantId>, StoreError>>;

    /// Those of a page of credentials that `filter` admits.
    fn credentials(
        &self,
        filter: CredentialFilter,
        after: Option<CredentialId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Page<Credential, CredentialId>, StoreError>>;

    /// How many rows each key is used by. Looks at every row, page by page.
    fn key_usage(&self) -> BoxFuture<'_, Result<Vec<KeyUsage>, StoreError>>;

    /// Puts the same tokens, sealed anew, into a credential that is at
    /// `generation` and holds `before` to the byte: it is neither a claim nor a
    /// refresh. `false` if it is or holds anything else.
    fn reseal(
        &self,
        id: CredentialId,
        generation: u64,
        before: Vec<u8>,
        after: Vec<u8>,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Notes that a [registered](super::Store::register_key) key is no longer in
    /// use, unless that is noted already. Does nothing if it is not registered.
    fn retire_key<'a>(
        &'a self,
        id: &'a str,
        at: SystemTime,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Raises the deadlines that are kept to these, where they are longer. The
    /// ones that are kept then.
    fn raise_deadlines(&self, deadlines: Deadlines)
    -> BoxFuture<'_, Result<Deadlines, StoreError>>;

    /// Deletes those of a page of grants that have `outlived` everything and
    /// whose upstream revocation is not due. A grant that somebody else is at is
    /// left for the next time.
    fn sweep_grants(
        &self,
        outlived: Outlived,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Swept<GrantId>, StoreError>>;

    /// Deletes those of a page of codes that expired before this time.
    fn sweep_codes(
        &self,
        expired_before: SystemTime,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Swept<GrantId>, StoreError>>;

    /// Those of these credentials that any grant or code names, whatever became of
    /// it. Others may be in the answer too.
    fn referred_to(
        &self,
        ids: Vec<CredentialId>,
    ) -> BoxFuture<'_, Result<Vec<CredentialId>, StoreError>>;

    /// Deletes those of these credentials that have ended, are not linked and are
    /// at this generation and fence. How many it were; one that somebody is at may
    /// be left for the next time.
    fn delete_credentials(&self, ended: Vec<Claim>) -> BoxFuture<'_, Result<u64, StoreError>>;
}

/// A page of rows.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an answer: stores outside this crate must be able to give it"
)]
pub struct Page<T, Id> {
    /// Those that were wanted.
    pub rows: Vec<T>,
    /// After which row the next page begins; `None` if this was the last.
    pub next: Option<Id>,
}

/// What sweeping a page came to.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an answer: stores outside this crate must be able to give it"
)]
pub struct Swept<Id> {
    /// How many rows were deleted.
    pub deleted: u64,
    /// After which row the next page begins; `None` if this was the last.
    pub next: Option<Id>,
}

/// Which grants are wanted; all that match what is `Some`.
#[derive(Clone, Debug, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an argument of a trait that others implement"
)]
pub struct GrantFilter {
    /// Of this user.
    pub subject: Option<String>,
    /// Bound to this client.
    pub client_id: Option<String>,
    /// With a credential of this provider.
    pub provider: Option<String>,
}

impl GrantFilter {
    /// Whether it wants this grant.
    pub fn admits(&self, grant: &Grant) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.is_none() || wanted.as_deref() == found
        };
        is(&self.subject, Some(&grant.subject))
            && is(&self.client_id, grant.client_id.as_deref())
            && (self.provider.as_deref()).is_none_or(|name| grant.credential(name).is_some())
    }
}

/// Which credentials are wanted; all that match what is `Some`.
#[derive(Clone, Debug, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an argument of a trait that others implement"
)]
pub struct CredentialFilter {
    /// Of this user.
    pub subject: Option<String>,
    /// Of this provider.
    pub provider: Option<String>,
    /// Refreshed before this time.
    pub refreshed_before: Option<SystemTime>,
    /// Sealed under another key than this one
    /// ([`key_id`](crate::seal::key_id)).
    pub not_sealed_under: Option<String>,
}

impl CredentialFilter {
    /// Whether it wants this credential.
    pub fn admits(&self, credential: &Credential) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        is(&self.subject, &credential.subject)
            && is(&self.provider, &credential.provider)
            && (self.refreshed_before).is_none_or(|time| credential.refreshed_at < time)
            && (self.not_sealed_under.as_deref())
                .is_none_or(|key| crate::seal::key_id(&credential.sealed) != Some(key))
    }
}

/// What a key is used for.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an answer: stores outside this crate must be able to give it"
)]
pub struct KeyUsage {
    /// Its id in the keyring.
    pub id: String,
    /// How many credentials are sealed under it.
    pub credentials: u64,
    /// How many grants that were not revoked have a pair that was issued under
    /// it.
    pub grants: u64,
    /// When the last access token of those pairs expires.
    pub access_until: Option<SystemTime>,
}

/// How long what is issued may live, in whole seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a row: stores outside this crate must be able to build one"
)]
pub struct Deadlines {
    /// A refresh token that is not used.
    pub refresh_idle: Duration,
    /// A grant, however much it is used.
    pub refresh_absolute: Duration,
    /// The refresh token of a direct grant that is not used.
    pub direct: Duration,
    /// An authorization code.
    pub code: Duration,
}

impl Deadlines {
    /// Of each the longer one.
    #[must_use]
    pub fn or_longer(self, other: Self) -> Self {
        Self {
            refresh_idle: self.refresh_idle.max(other.refresh_idle),
            refresh_absolute: self.refresh_absolute.max(other.refresh_absolute),
            direct: self.direct.max(other.direct),
            code: self.code.max(other.code),
        }
    }
}

/// What a grant must have outlived before its row may go: each of these times.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "an argument of a trait that others implement"
)]
pub struct Outlived {
    /// Its newest access token expired before this time.
    pub access: SystemTime,
    /// It was used before this time, or created before [`absolute`](Self::absolute).
    pub idle: SystemTime,
    /// See [`idle`](Self::idle).
    pub absolute: SystemTime,
    /// It was created before this time: no code can make it again.
    pub code: SystemTime,
    /// Its direct token, if it has one, was used before this time.
    pub direct: SystemTime,
}

impl Outlived {
    /// Whether the row of this grant may go.
    pub fn is_by(&self, grant: &Grant) -> bool {
        let is_over = grant.last_used_at < self.idle || grant.created_at < self.absolute;
        is_over
            && grant.access_expires_at < self.access
            && grant.created_at < self.code
            && (grant.direct.as_ref()).is_none_or(|direct| direct.used_at < self.direct)
            && grant.upstream_due.is_none()
    }
}
