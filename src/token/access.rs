//! Access tokens: verified by the keyring and the salt in the grant's row.

use std::time::Duration;
use std::time::SystemTime;

use aws_lc_rs::hmac;

use super::Kind;
use super::format::HEADER_BYTES;
use super::format::Reader;
use super::format::TAG_BYTES;
use super::format::split;
use super::format::tagged;
use super::format::untagged;
use crate::clock::unix_seconds;
use crate::id::GrantId;
use crate::seal::Key;
use crate::seal::KeyHint;
use crate::seal::Keyring;
use crate::seal::SealError;
use crate::secret::GatewayAccessToken;
use crate::settings::TokenPrefixes;

/// An access token whose tag was right. Its MAC is checked against the row by
/// [`is_of`](Self::is_of).
#[derive(Clone)]
pub(crate) struct AccessClaims {
    pub(crate) id: GrantId,
    pub(crate) generation: u64,
    /// A bit for each scope of the grant, in the order of the row.
    pub(crate) scopes: u64,
    expires: u64,
    hint: KeyHint,
    nonce: [u8; 16],
    mac: [u8; 32],
}

impl AccessClaims {
    /// Refuses whatever this keyring did not issue, in constant time.
    pub(crate) fn verify(token: &str, keyring: &Keyring, prefixes: &TokenPrefixes) -> Option<Self> {
        let found = untagged::<PAYLOAD>(Kind::Access, prefixes, token, keyring)?;
        // Nothing but its key can tell whether it is good.
        let found = found.is_proven.then_some(found)?;
        let mut reader = Reader(found.payload.as_slice());
        let hint = reader.header()?;

        Some(Self {
            id: found.id,
            hint,
            generation: u64::from_be_bytes(reader.take()?),
            expires: u64::from_be_bytes(reader.take()?),
            scopes: u64::from_be_bytes(reader.take()?),
            nonce: reader.take()?,
            mac: reader.take()?,
        })
    }

    /// Whether the MAC was made with the salt of this grant.
    pub(crate) fn is_of(&self, salt: &[u8; 32], keyring: &Keyring) -> bool {
        keyring
            .by_hint(self.hint)
            .and_then(|key| key.access_key(self.id, salt).ok())
            .is_some_and(|key| {
                let message = message(self.generation, self.expires, self.scopes, &self.nonce);
                hmac::verify(&key, &message, &self.mac).is_ok()
            })
    }

    pub(crate) fn expires_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.expires))
            // Only we make these; out of range means a bug, and bugs fail shut.
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// How the row names this token when it alone is revoked: expiry first, so
    /// that what has expired can be dropped by comparing bytes.
    pub(crate) fn revocation_entry(&self) -> [u8; 24] {
        let mut entry = [0; 24];
        let (expires, nonce) = entry.split_at_mut(8);
        expires.copy_from_slice(&self.expires.to_be_bytes());
        nonce.copy_from_slice(&self.nonce);
        entry
    }
}

/// What an access token says.
pub(super) struct Content<'a> {
    pub(super) id: GrantId,
    pub(super) generation: u64,
    pub(super) expires_at: SystemTime,
    pub(super) scopes: u64,
    pub(super) nonce: &'a [u8; 16],
}

impl Content<'_> {
    pub(super) fn issue(
        &self,
        key: &Key,
        prefixes: &TokenPrefixes,
        salt: &[u8; 32],
    ) -> Result<GatewayAccessToken, SealError> {
        let expires = unix_seconds(self.expires_at);
        let mac = hmac::sign(
            &key.access_key(self.id, salt)?,
            &message(self.generation, expires, self.scopes, self.nonce),
        );
        Ok(GatewayAccessToken::new(tagged(
            Kind::Access,
            prefixes,
            key,
            self.id,
            &[
                &self.generation.to_be_bytes(),
                &expires.to_be_bytes(),
                &self.scopes.to_be_bytes(),
                self.nonce,
                mac.as_ref(),
            ],
        )))
    }
}

/// The grant that an access token names, before anything of it is verified.
pub(crate) fn access_grant_id(token: &str, prefixes: &TokenPrefixes) -> Option<GrantId> {
    split(Kind::Access, prefixes, token).map(|(id, _payload)| id)
}

fn message(generation: u64, expires: u64, scopes: u64, nonce: &[u8; 16]) -> Vec<u8> {
    [
        &generation.to_be_bytes(),
        &expires.to_be_bytes(),
        &scopes.to_be_bytes(),
        nonce.as_slice(),
    ]
    .concat()
}

/// The whole scope of the grant.
pub(crate) const ALL_SCOPES: u64 = u64::MAX;
const PAYLOAD: usize = HEADER_BYTES + 8 + 8 + 8 + 16 + 32 + TAG_BYTES;
