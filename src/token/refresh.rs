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

    /// What has become of it after so many rotations, if `is_it` says so.
    ///
    /// Each pair was derived under the key that tagged the one before, and the
    /// row knows but one of those keys: they are tried. While keys are changed
    /// they differ in few places.
    pub(crate) fn descendant(
        &self,
        rotations: u64,
        keyring: &Keyring,
        is_it: &impl Fn(&Self) -> bool,
    ) -> Option<Self> {
        self.descend(rotations, keyring, KEY_CHANGES, is_it)
    }

    fn descend(
        &self,
        rotations: u64,
        keyring: &Keyring,
        changes: u32,
        is_it: &impl Fn(&Self) -> bool,
    ) -> Option<Self> {
        let Some(rotations) = rotations.checked_sub(1) else {
            return is_it(self).then(|| self.clone());
        };
        let secret = self.successor(keyring).ok()?;
        let after = |hint| Self {
            id: self.id,
            generation: self.generation + 1,
            hint,
            secret: secret.clone(),
        };
        let same = after(self.hint).descend(rotations, keyring, changes, is_it);
        same.or_else(|| {
            let changes = changes.checked_sub(1)?;
            let others = keyring.hints().filter(|hint| *hint != self.hint);
            others
                .map(after)
                .find_map(|claims| claims.descend(rotations, keyring, changes, is_it))
        })
    }

    /// Whether the refresh token that follows this one is stored like this.
    pub(crate) fn is_followed_by(&self, stored: &[u8; 32], keyring: &Keyring) -> bool {
        self.successor(keyring).is_ok_and(|secret| {
            let hash: [u8; 32] = Sha256::digest(secret.as_slice()).into();
            verify_slices_are_equal(&hash, stored).is_ok()
        })
    }

    /// The secret of the refresh token that follows this one: derived under the
    /// key that tagged it, so that changing the sealing key between a rotation
    /// and its replay changes nothing.
    fn successor(&self, keyring: &Keyring) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let deriving = keyring.by_hint(self.hint).ok_or(SealError::Crypto)?;
        deriving.successor(&self.secret, self.id, self.generation + 1, b"refresh")
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
    let secret = presented.successor(keyring)?;
    let deriving = keyring.by_hint(presented.hint).ok_or(SealError::Crypto)?;
    // Narrowed tokens are tokens of their own: each can be revoked alone.
    let purpose = [b"access".as_slice(), &scopes.to_be_bytes()].concat();
    let nonce = deriving.successor::<16>(&presented.secret, presented.id, generation, &purpose)?;
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

/// How often the key may have changed between a token and its descendant:
/// replicas that are given a new one take turns for a moment.
const KEY_CHANGES: u32 = 2;
const PAYLOAD: usize = HEADER_BYTES + 8 + 32 + TAG_BYTES;
