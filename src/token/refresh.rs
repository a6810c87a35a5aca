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

/// A refresh token whose tag was right, or was made with a key that is gone.
/// Whether it counts, the row says.
#[derive(Clone)]
pub(crate) struct RefreshClaims {
    pub(crate) id: GrantId,
    /// As the token says, until it is [known](Self::at).
    pub(crate) generation: u64,
    /// Whether the tag was right: without a row that holds its hash, anybody may
    /// have written the others.
    pub(crate) is_proven: bool,
    hint: KeyHint,
    secret: Zeroizing<[u8; 32]>,
}

impl RefreshClaims {
    /// Refuses whatever this keyring did not issue, nor a key that was removed
    /// from it, in constant time.
    pub(crate) fn verify(token: &str, keyring: &Keyring, prefixes: &TokenPrefixes) -> Option<Self> {
        let found = untagged::<PAYLOAD>(Kind::Refresh, prefixes, token, keyring)?;
        let mut reader = Reader(found.payload.as_slice());
        let hint = reader.header()?;

        Some(Self {
            id: found.id,
            is_proven: found.is_proven,
            hint,
            generation: u64::from_be_bytes(reader.take()?),
            secret: Zeroizing::new(reader.take()?),
        })
    }

    /// The same token, which is of this generation by its row.
    pub(crate) fn at(&self, generation: u64) -> Self {
        Self {
            generation,
            ..self.clone()
        }
    }

    /// What the row holds of this token.
    pub(crate) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_slice()).into()
    }

    /// What has become of it after so many rotations at most, if `is_it` says so.
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
        if is_it(self) {
            return Some(self.clone());
        }
        let rotations = rotations.checked_sub(1)?;
        let generation = self.generation.checked_add(1)?;
        let deriving = keyring.by_hint(self.hint)?;
        let secret = self.successor(deriving, generation).ok()?;
        let after = |hint| Self {
            generation,
            hint,
            secret: secret.clone(),
            ..*self
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

    /// The key under which the pair that follows this token is derived: the one
    /// that tagged it, so that changing the sealing key between a rotation and
    /// its replay changes nothing; or else the one that seals.
    pub(crate) fn deriving<'k>(&self, keyring: &'k Keyring) -> Result<&'k Key, SealError> {
        keyring
            .by_hint(self.hint)
            .map_or_else(|| keyring.sealing(), Ok)
    }

    /// The key under which the refresh token that follows this one, and is stored
    /// like this, was derived. `None` if it is gone.
    pub(crate) fn derived<'k>(&self, stored: &[u8; 32], keyring: &'k Keyring) -> Option<&'k Key> {
        let generation = self.generation.checked_add(1)?;
        keyring.keys().find(|key| {
            self.successor(key, generation).is_ok_and(|secret| {
                let hash: [u8; 32] = Sha256::digest(secret.as_slice()).into();
                verify_slices_are_equal(&hash, stored).is_ok()
            })
        })
    }

    /// The secret of the refresh token that follows this one.
    fn successor(&self, key: &Key, generation: u64) -> Result<Zeroizing<[u8; 32]>, SealError> {
        key.successor(&self.secret, self.id, generation, b"refresh")
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

/// The pair that follows `presented` as the one of this generation, derived under
/// one key and issued under another: the same pair whenever it is asked for with
/// the same arguments.
pub(crate) fn issue_successor(
    presented: &RefreshClaims,
    generation: u64,
    keys: &SuccessorKeys<'_>,
    prefixes: &TokenPrefixes,
    salt: &[u8; 32],
    expires_at: SystemTime,
    scopes: u64,
) -> Result<IssuedPair, SealError> {
    let deriving = keys.deriving;
    let secret = presented.successor(deriving, generation)?;
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

    issue(keys.issuing, prefixes, salt, &secret, &access)
}

/// The keys of a pair that follows another.
pub(crate) struct SuccessorKeys<'a> {
    /// What it is derived under: as the pair before says.
    pub(crate) deriving: &'a Key,
    /// What it is tagged and authenticated with: the sealing key of its time.
    pub(crate) issuing: &'a Key,
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
