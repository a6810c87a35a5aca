//! Refresh tokens, and the pairs that are issued with them.

use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use sha2::Digest as _;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Kind;
use super::access::ALL_SCOPES;
use super::access::Content;
use super::format::HEADER_BYTES;
use super::format::Reader;
use super::format::TAG_BYTES;
use super::format::tagged;
use super::format::untagged;
use crate::id::GrantId;
use crate::seal::Key;
use crate::seal::KeyHint;
use crate::seal::Keyring;
use crate::seal::KeyringError;
use crate::seal::SealError;
use crate::seal::random_bytes;
use crate::secret::GatewayAccessToken;
use crate::secret::GatewayRefreshToken;
use crate::settings::TokenPrefixes;

/// A refresh token whose tag was right. Whether it still counts, the row says.
#[derive(Clone)]
pub(crate) struct RefreshClaims {
    pub(crate) id: GrantId,
    pub(crate) generation: u64,
    hint: KeyHint,
    secret: Zeroizing<[u8; 32]>,
}

impl RefreshClaims {
    /// Refuses whatever this keyring did not issue, in constant time.
    pub(crate) fn verify(token: &str, keyring: &Keyring, prefixes: &TokenPrefixes) -> Option<Self> {
        let (id, payload) = untagged::<PAYLOAD>(Kind::Refresh, prefixes, token, keyring)?;
        let mut reader = Reader(payload.as_slice());
        let hint = reader.header()?;

        Some(Self {
            id,
            hint,
            generation: u64::from_be_bytes(reader.take()?),
            secret: Zeroizing::new(reader.take()?),
        })
    }

    /// What the row holds of this token.
    pub(crate) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_slice()).into()
    }

    /// What has become of it after so many rotations, all of them under the key
    /// of this id. Whoever asks checks the hash: that it was another key is rare.
    pub(crate) fn descendant(
        &self,
        rotations: u64,
        keyring: &Keyring,
        key_id: &str,
    ) -> Option<Self> {
        let mut claims = self.clone();
        for _ in 0..rotations {
            let generation = claims.generation + 1;
            claims.secret = keyring
                .by_hint(claims.hint)?
                .successor(&claims.secret, claims.id, generation, b"refresh")
                .ok()?;
            claims.generation = generation;
            claims.hint = keyring.by_id(key_id)?.hint();
        }
        Some(claims)
    }

    pub(crate) fn is_hashed_to(&self, stored: &[u8; 32]) -> bool {
        verify_slices_are_equal(&self.hash(), stored).is_ok()
    }
}

/// A pair as it is handed to a client, and what the row must hold of it.
pub(crate) struct IssuedPair {
    pub(crate) access: GatewayAccessToken,
    pub(crate) refresh: GatewayRefreshToken,
    pub(crate) refresh_hash: [u8; 32],
}

/// The first pair of a grant: random.
pub(crate) fn issue_first(
    key: &Key,
    prefixes: &TokenPrefixes,
    id: GrantId,
    salt: &[u8; 32],
    expires_at: SystemTime,
) -> Result<IssuedPair, SealError> {
    let random = |_error: KeyringError| SealError::Crypto;
    let secret = Zeroizing::new(random_bytes::<32>().map_err(random)?);
    let nonce = random_bytes::<16>().map_err(random)?;
    let access = Content {
        id,
        generation: 0,
        expires_at,
        scopes: ALL_SCOPES,
        nonce: &nonce,
    };

    issue(key, prefixes, salt, &secret, &access)
}

/// The pair that follows `presented`: the same one whenever it is asked for
/// with the same `key`, `expires_at` and `scopes`.
pub(crate) fn issue_successor(
    presented: &RefreshClaims,
    keyring: &Keyring,
    key: &Key,
    prefixes: &TokenPrefixes,
    salt: &[u8; 32],
    expires_at: SystemTime,
    scopes: u64,
) -> Result<IssuedPair, SealError> {
    let generation = presented.generation + 1;
    // Derived under the key that tagged the presented token, so that changing
    // the sealing key between a rotation and its replay changes nothing.
    let deriving = keyring.by_hint(presented.hint).ok_or(SealError::Crypto)?;
    let derive = (&presented.secret, presented.id, generation);
    let secret = deriving.successor::<32>(derive.0, derive.1, derive.2, b"refresh")?;
    // Narrowed tokens are tokens of their own: each can be revoked alone.
    let purpose = [b"access".as_slice(), &scopes.to_be_bytes()].concat();
    let nonce = deriving.successor::<16>(derive.0, derive.1, derive.2, &purpose)?;
    let access = Content {
        id: presented.id,
        generation,
        expires_at,
        scopes,
        nonce: &nonce,
    };

    issue(key, prefixes, salt, &secret, &access)
}

fn issue(
    key: &Key,
    prefixes: &TokenPrefixes,
    salt: &[u8; 32],
    secret: &[u8; 32],
    access: &Content<'_>,
) -> Result<IssuedPair, SealError> {
    let generation = access.generation.to_be_bytes();
    let refresh = tagged(
        Kind::Refresh,
        prefixes,
        key,
        access.id,
        &[&generation, secret],
    );

    Ok(IssuedPair {
        access: access.issue(key, prefixes, salt)?,
        refresh: GatewayRefreshToken::new(refresh),
        refresh_hash: Sha256::digest(secret).into(),
    })
}

const PAYLOAD: usize = HEADER_BYTES + 8 + 32 + TAG_BYTES;
