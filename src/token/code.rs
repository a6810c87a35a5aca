//! Authorization codes: good for one grant, once.

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
use crate::secret::AuthorizationCode;
use crate::settings::TokenPrefixes;

/// A code whose tag was right.
pub(crate) struct CodeClaims {
    /// Of the code, and of the grant that it becomes.
    pub(crate) id: GrantId,
    secret: Zeroizing<[u8; 32]>,
}

impl CodeClaims {
    /// Refuses whatever this keyring did not issue, in constant time.
    pub(crate) fn verify(code: &str, keyring: &Keyring, prefixes: &TokenPrefixes) -> Option<Self> {
        let (id, payload) = untagged::<PAYLOAD>(Kind::Code, prefixes, code, keyring)?;
        let mut reader = Reader(payload.as_slice());
        reader.header()?;

        Some(Self {
            id,
            secret: Zeroizing::new(reader.take()?),
        })
    }

    pub(crate) fn is_hashed_to(&self, stored: &[u8; 32]) -> bool {
        let hash: [u8; 32] = Sha256::digest(self.secret.as_slice()).into();
        verify_slices_are_equal(&hash, stored).is_ok()
    }
}

/// A random code for this grant, and what the row must hold of it.
pub(crate) fn issue_code(
    key: &Key,
    prefixes: &TokenPrefixes,
    id: GrantId,
) -> Result<(AuthorizationCode, [u8; 32]), SealError> {
    let random = |_error: KeyringError| SealError::Crypto;
    let secret = Zeroizing::new(random_bytes::<32>().map_err(random)?);
    let hash = Sha256::digest(secret.as_slice()).into();
    let code = tagged(Kind::Code, prefixes, key, id, &[secret.as_slice()]);

    Ok((AuthorizationCode::new(code), hash))
}

const PAYLOAD: usize = HEADER_BYTES + 32 + TAG_BYTES;
