//! Sealing: what is secret in the store is encrypted and bound to its row.
//!
//! 1. AES-256-GCM under a key derived (HKDF-SHA-256, RFC 5869) from a keyring
//!    key and the row id, with a random nonce.
//! 2. The associated data names the table, the row id, the generation, the
//!    provider and the key id. A ciphertext that was copied to another row, put
//!    back from an earlier generation or handed to another provider does not
//!    open.
//! 3. Each ciphertext names its key id. A [`Keyring`] holds several keys; the
//!    first seals, all open.
//!
//! Failing to open is never read as *absent*: it is an alarm and a 503.
//!
//! ```
//! use regrant::seal::Keyring;
//!
//! // `id:base64-of-32-bytes`, comma-separated; the first one seals.
//! let keyring = Keyring::parse("2026b:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")?;
//! assert_eq!(keyring.key_ids().collect::<Vec<_>>(), ["2026b"]);
//! # Ok::<_, regrant::seal::KeyringError>(())
//! ```

mod keyring;
mod source;

use std::fmt;

use aws_lc_rs::aead;
use aws_lc_rs::error::Unspecified;
use zeroize::Zeroizing;

pub(crate) use self::keyring::Key;
pub(crate) use self::keyring::KeyHint;
pub use self::keyring::Keyring;
pub use self::keyring::KeyringError;
use self::keyring::is_key_id;
pub(crate) use self::keyring::random_bytes;
pub use self::source::KeySource;
pub use self::source::SealingKey;

impl Keyring {
    /// Seals `plaintext` for `row`: `1 | id length | id | nonce | ciphertext | tag`.
    pub(crate) fn seal(&self, row: &Row<'_>, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let key = self.sealing()?;
        let nonce = random_bytes::<NONCE_BYTES>().map_err(|_error| SealError::Crypto)?;
        let mut sealed = Zeroizing::new(plaintext.to_vec());
        key.row_key(row.id)?.seal_in_place_append_tag(
            aead::Nonce::assume_unique_for_key(nonce),
            aead::Aad::from(row.associated_data(key.id())),
            &mut *sealed,
        )?;

        let id_length = u8::try_from(key.id().len()).map_err(|_error| SealError::Crypto)?;
        let mut output = vec![SEAL_VERSION, id_length];
        output.extend_from_slice(key.id().as_bytes());
        output.extend_from_slice(&nonce);
        output.extend_from_slice(&sealed);
        Ok(output)
    }

    /// Opens what [`seal`](Self::seal) made for the same row.
    pub(crate) fn open(
        &self,
        row: &Row<'_>,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (id, rest) = split_key_id(sealed).ok_or(SealError::Tampered)?;
        let key = self
            .by_id(id)
            .ok_or_else(|| SealError::KeyMissing { id: id.to_owned() })?;
        let (nonce, ciphertext) = rest
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(SealError::Tampered)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let length = key
            .row_key(row.id)?
            .open_in_place(
                aead::Nonce::assume_unique_for_key(*nonce),
                aead::Aad::from(row.associated_data(id)),
                &mut buffer,
            )
            .map_err(|Unspecified| SealError::Tampered)?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// Where a ciphertext belongs. All of it is authenticated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) table: &'static str,
    pub(crate) id: &'a [u8; 16],
    pub(crate) generation: u64,
    pub(crate) provider: &'a str,
}

impl Row<'_> {
    fn associated_data(&self, key_id: &str) -> Vec<u8> {
        let mut data = b"regrant/seal/v1".to_vec();
        for part in [
            self.table.as_bytes(),
            self.id,
            &self.generation.to_be_bytes(),
            self.provider.as_bytes(),
            key_id.as_bytes(),
        ] {
            // Lengths keep ("ab", "c") and ("a", "bc") apart.
            data.extend_from_slice(&(part.len() as u64).to_be_bytes());
            data.extend_from_slice(part);
        }
        data
    }
}

/// Why sealed bytes do not open.
#[derive(Debug)]
pub(crate) enum SealError {
    /// They name a key that the keyring does not hold.
    KeyMissing { id: String },
    /// They were changed, or belong to another row, generation or provider.
    Tampered,
    /// The crypto library refused.
    Crypto,
}

impl From<Unspecified> for SealError {
    fn from(Unspecified: Unspecified) -> Self {
        Self::Crypto
    }
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyMissing { id } => write!(
                f,
                "sealed under key `{id}`, which the keyring does not hold: add it back"
            ),
            Self::Tampered => f.write_str(
                "sealed bytes do not belong to this row or were changed: \
                 restore the row or have the user log in again",
            ),
            Self::Crypto => f.write_str("the crypto library refused"),
        }
    }
}

impl std::error::Error for SealError {}

/// The id of the key that these bytes, the [`sealed`](crate::store::Credential::sealed)
/// ones of a row, were sealed under: `1 | id length | id | …`. `None` if they are
/// not of that form.
///
/// ```
/// assert_eq!(regrant::seal::key_id(b"\x01\x052026b..."), Some("2026b"));
/// assert_eq!(regrant::seal::key_id(b"2026b"), None);
/// ```
pub fn key_id(sealed: &[u8]) -> Option<&str> {
    split_key_id(sealed).map(|(id, _rest)| id)
}

fn split_key_id(sealed: &[u8]) -> Option<(&str, &[u8])> {
    let [SEAL_VERSION, id_length, rest @ ..] = sealed else {
        return None;
    };
    let (id, rest) = rest.split_at_checked(usize::from(*id_length))?;
    let id = std::str::from_utf8(id).ok().filter(|id| is_key_id(id))?;
    Some((id, rest))
}

const NONCE_BYTES: usize = aead::NONCE_LEN;
const SEAL_VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "one:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const TWO: &str = "two:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    fn row(id: &[u8; 16]) -> Row<'_> {
        Row {
            table: "credentials",
            id,
            generation: 3,
            provider: "linear",
        }
    }

    #[test]
    fn what_was_sealed_opens_for_the_same_row_only() {
        let keyring = Keyring::parse(ONE).unwrap();
        let (mine, theirs) = ([1; 16], [2; 16]);
        let sealed = keyring.seal(&row(&mine), b"secret").unwrap();

        assert_eq!(&*keyring.open(&row(&mine), &sealed).unwrap(), b"secret");

        for elsewhere in [
            row(&theirs),
            Row {
                table: "grants",
                ..row(&mine)
            },
            Row {
                generation: 2,
                ..row(&mine)
            },
            Row {
                provider: "evil",
                ..row(&mine)
            },
        ] {
            assert!(
                matches!(keyring.open(&elsewhere, &sealed), Err(SealError::Tampered)),
                "{elsewhere:?}"
            );
        }
    }

    #[test]
    fn no_single_changed_byte_opens() {
        let keyring = Keyring::parse(&format!("{ONE},{TWO}")).unwrap();
        let id = [1; 16];
        let sealed = keyring.seal(&row(&id), b"secret").unwrap();

        for index in 0..sealed.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = sealed.clone();
                changed[index] ^= flip;
                assert!(keyring.open(&row(&id), &changed).is_err(), "byte {index}");
            }
        }
        for length in 0..sealed.len() {
            assert!(keyring.open(&row(&id), &sealed[..length]).is_err());
        }
    }

    #[test]
    fn a_second_key_opens_what_it_sealed_when_it_was_first() {
        let id = [1; 16];
        let old = Keyring::parse(ONE).unwrap();
        let both = Keyring::parse(&format!("{TWO},{ONE}")).unwrap();
        let new = Keyring::parse(TWO).unwrap();
        let sealed = old.seal(&row(&id), b"secret").unwrap();

        assert_eq!(&*both.open(&row(&id), &sealed).unwrap(), b"secret");
        let error = new.open(&row(&id), &sealed).unwrap_err();
        assert!(matches!(&error, SealError::KeyMissing { id } if id == "one"));
        assert!(error.to_string().contains("`one`"), "{error}");
    }

    #[test]
    fn a_bad_keyring_is_named_without_telling_the_key() {
        let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        for (text, want) in [
            (String::new(), "key 1 is not of the form"),
            (key.to_owned(), "key 1 is not of the form"),
            (format!("{key}:one"), "key 1 is not of the form"),
            (format!("one:{key},{key}"), "key 2 is not of the form"),
            (format!("one:{key},one:{key}"), "key `one` given twice"),
            ("one:AQEB".to_owned(), "key `one` is not 32 bytes long"),
            ("one:?".to_owned(), "key `one` is not standard base64"),
            // Their SHA-256 begins with the same four bytes.
            (
                format!("k153629:{key},k164064:{key}"),
                "key `k164064` cannot be told from another one",
            ),
        ] {
            let error = Keyring::parse(&text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
            assert!(!error.contains(key), "{error}");
        }
    }

    #[test]
    fn debug_names_the_keys_and_tells_none() {
        let keyring = Keyring::parse(ONE).unwrap();
        assert_eq!(format!("{keyring:?}"), r#"Keyring(["one"], ..)"#);
    }
}
