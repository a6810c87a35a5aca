//! The names of grants and credentials: sixteen bytes each.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;
use sha2::Sha256;

use crate::seal::KeyringError;
use crate::seal::random_bytes;

/// The stable name of a grant: it outlives every rotation of its tokens.
///
/// ```
/// use regrant::GrantId;
///
/// let id: GrantId = "000102030405060708090a0b0c0d0e0f".parse()?;
/// assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0e0f");
/// # Ok::<_, regrant::id::ParseIdError>(())
/// ```
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GrantId([u8; 16]);

/// The name of a credential: a provider's tokens, which many grants may share.
///
/// ```
/// use regrant::CredentialId;
///
/// let id: CredentialId = "000102030405060708090a0b0c0d0e0f".parse()?;
/// assert_eq!(id.as_bytes()[1], 1);
/// # Ok::<_, regrant::id::ParseIdError>(())
/// ```
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CredentialId([u8; 16]);

impl CredentialId {
    /// The name of what these parts are about: the same for the same parts.
    pub(crate) fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new_with_prefix(b"regrant credential");
        for part in parts {
            // With their lengths, so that no two lists of parts read the same.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut id = [0; 16];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(id)
    }
}

/// Two names of sixteen random bytes that must not be mistaken for each other.
macro_rules! random_id {
    ($($name:ident)+) => {$(
        impl $name {
            /// Sixteen random bytes.
            ///
            /// # Errors
            ///
            /// [`KeyringError::Random`] if the operating system has none.
            pub fn random() -> Result<Self, KeyringError> {
                random_bytes().map(Self)
            }

            /// The id that these bytes are.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The id that this text is; `None` if it is none.
            pub(crate) fn parse(text: &str) -> Option<Self> {
                parse_hex(text.as_bytes()).map(Self)
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text).ok_or(ParseIdError(()))
            }
        }
    )+};
}

random_id! { GrantId CredentialId }

/// The text is not 32 lower-case hexadecimal digits.
#[derive(Debug)]
pub struct ParseIdError(());

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id is 32 lower-case hexadecimal digits")
    }
}

impl std::error::Error for ParseIdError {}

fn parse_hex(text: &[u8]) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = text.try_into().ok()?;
    let (pairs, _none_left) = digits.as_chunks::<2>();
    let mut bytes = [0; 16];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        // Lower case only: a token has one spelling.
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
