//! Tokens that are a secret and nothing more: authorization codes, and the
//! refresh tokens of direct grants, which are never rotated.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use sha2::Digest as _;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Kind;
use super::format::HEADER_BYTES;
use super::format::Reader;
use super::format::TAG_BYTES;
use super::format::tagged;
use super::format::untagged;
use crate::id::GrantId;
use crate::seal::Key;
use crate::seal::Keyring;
use crate::seal::KeyringError;
use crate::seal::SealError;
use crate::seal::random_bytes;
use crate::settings::TokenPrefixes;

/// A token whose tag was right, or was made with a key that is gone. Whether it
/// counts, the row says.
pub(crate) struct SecretClaims {
    /// Of its grant; of a code, the grant that it becomes.
    pub(crate) id: GrantId,
    /// Whether the tag was right: without a row that holds its hash, anybody may
    /// have written the others.
    pub(crate) is_proven: bool,
    secret: Zeroizing<[u8; 32]>,
}

impl SecretClaims {
    /// Refuses whatever this keyring did not issue as this kind, nor a key that
    /// was removed from it, in constant time.
    pub(crate) fn verify(
        kind: Kind,
        token: &str,
        keyring: &Keyring,
        prefixes: &TokenPrefixes,
    ) -> Option<Self> {
        let found = untagged::<PAYLOAD>(kind, prefixes, token, keyring)?;
        let mut reader = Reader(found.payload.as_slice());
        reader.header()?;

        Some(Self {
            id: found.id,
            is_proven: found.is_proven,
            secret: Zeroizing::new(reader.take()?),
        })
    }

    pub(crate) fn is_hashed_to(&self, stored: &[u8; 32]) -> bool {
        let hash: [u8; 32] = Sha256::digest(self.secret.as_slice()).into();
        verify_slices_are_equal(&hash, stored).is_ok()
    }
}

/// A random token for this grant, and what the row must hold of it.
pub(crate) fn issue_secret(
    kind: Kind,
    key: &Key,
    prefixes: &TokenPrefixes,
    id: GrantId,
) -> Result<(Zeroizing<String>, [u8; 32]), SealError> {
    let random = |_error: KeyringError| SealError::Crypto;
    let secret = Zeroizing::new(random_bytes::<32>().map_err(random)?);
    let hash = Sha256::digest(secret.as_slice()).into();
    let token = tagged(kind, prefixes, key, id, &[secret.as_slice()]);

    Ok((Zeroizing::new(token), hash))
}

const PAYLOAD: usize = HEADER_BYTES + 32 + TAG_BYTES;
