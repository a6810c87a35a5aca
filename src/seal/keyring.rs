//! The keys of a deployment and what is derived from each.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf;
use aws_lc_rs::hmac;
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::Digest as _;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::KeySource;
use super::SealError;
use super::SealingKey;
use crate::BoxError;
use crate::id::GrantId;

/// The keys of a deployment: the first one seals, all of them open.
///
/// Cheap to clone. To change keys, first give every replica the new key in
/// second place, then move it to the first. Then
/// [re-seal](crate::Regrant::rotate_keys) what is stored under the old one, and
/// remove it once [nothing uses it](crate::Regrant::key_status): a gateway does
/// not start without a key that is in use.
#[derive(Clone)]
pub struct Keyring {
    keys: Arc<[Key]>,
    generated: bool,
    /// Those that tagged tokens once and are not here any more.
    retired: Arc<[KeyHint]>,
}

impl Keyring {
    /// Reads `id:base64-of-32-bytes[,id:…]`. Ids are 1 to 32 characters of
    /// `[A-Za-z0-9_-]`. Tokens name their key by four bytes of its id's SHA-256;
    /// of two ids that share those, one is refused.
    ///
    /// # Errors
    ///
    /// Names the first entry that is not of that form, by its position or id,
    /// never by its content.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut keys = Vec::new();
        for (index, entry) in text.split(',').map(str::trim).enumerate() {
            let (id, encoded) = entry.split_once(':').ok_or(KeyringError::Malformed {
                position: index + 1,
            })?;
            let named = |reason| KeyringError::Key {
                id: id.to_owned(),
                reason,
            };
            if !is_key_id(id) {
                // The text before the colon may be a key whose id was left out.
                return Err(KeyringError::Malformed {
                    position: index + 1,
                });
            }
            let bytes = Zeroizing::new(
                STANDARD
                    .decode(encoded)
                    .map_err(|_error| named("is not standard base64"))?,
            );
            let master = <[u8; KEY_BYTES]>::try_from(bytes.as_slice())
                .map_err(|_error| named("is not 32 bytes long"))?;
            keys.push(SealingKey::new(id, master));
        }
        Self::of(keys)
    }

    /// Fetches the keys from where they are kept; the first one seals.
    ///
    /// # Errors
    ///
    /// [`KeyringError::Source`] if they cannot be fetched, or as
    /// [`parse`](Self::parse).
    pub async fn load(source: &dyn KeySource) -> Result<Self, KeyringError> {
        let keys = source.keys().await.map_err(KeyringError::Source)?;
        Self::of(keys)
    }

    fn of(given: Vec<SealingKey>) -> Result<Self, KeyringError> {
        let mut keys: Vec<Key> = Vec::new();
        for (index, SealingKey { id, master }) in given.into_iter().enumerate() {
            if !is_key_id(&id) {
                return Err(KeyringError::Malformed {
                    position: index + 1,
                });
            }
            let key = Key::new(&id, &master);
            let refused = |reason| {
                Err(KeyringError::Key {
                    id: id.into(),
                    reason,
                })
            };
            if keys.iter().any(|known| known.id == key.id) {
                return refused("given twice");
            }
            if keys.iter().any(|known| known.hint == key.hint) {
                return refused("cannot be told from another one by tokens: give it another id");
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(KeyringError::Empty);
        }
        Ok(Self {
            keys: keys.into(),
            generated: false,
            retired: Arc::default(),
        })
    }

    /// The same keyring, which knows by their ids what other keys there were.
    pub(crate) fn with_retired(self, ids: &[&str]) -> Self {
        let absent = ids.iter().filter(|id| self.by_id(id).is_none());
        Self {
            retired: absent.map(|id| KeyHint::of(id)).collect(),
            ..self
        }
    }

    /// Whether a key that is not here any more tagged what has this hint.
    pub(crate) fn is_retired(&self, hint: KeyHint) -> bool {
        self.retired.contains(&hint)
    }

    /// A keyring with one random key that lives as long as this process.
    ///
    /// Fine beside a `MemoryStore`. A durable store refuses it: what it seals
    /// could never be opened again.
    ///
    /// # Errors
    ///
    /// [`KeyringError::Random`] if the operating system has no randomness.
    pub fn generate() -> Result<Self, KeyringError> {
        let master = Zeroizing::new(random_bytes::<KEY_BYTES>()?);

        Ok(Self {
            keys: [Key::new("generated", &master)].into(),
            generated: true,
            retired: Arc::default(),
        })
    }

    /// The ids of the keys, the sealing one first.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| &*key.id)
    }

    /// Whether this came from [`generate`](Self::generate).
    pub fn is_generated(&self) -> bool {
        self.generated
    }

    pub(crate) fn sealing(&self) -> Result<&Key, SealError> {
        self.keys.first().ok_or(SealError::Crypto)
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<&Key> {
        self.keys.iter().find(|key| *key.id == *id)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    pub(crate) fn hints(&self) -> impl Iterator<Item = KeyHint> {
        self.keys.iter().map(|key| key.hint)
    }

    pub(crate) fn by_hint(&self, hint: KeyHint) -> Option<&Key> {
        self.keys.iter().find(|key| key.hint == hint)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The ids only: keys are secrets.
        f.debug_tuple("Keyring")
            .field(&self.key_ids().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// One key of the keyring, with what is derived from it once.
pub(crate) struct Key {
    id: Box<str>,
    hint: KeyHint,
    master: Zeroizing<[u8; KEY_BYTES]>,
    sealing: hkdf::Prk,
    tagging: hmac::Key,
}

impl Key {
    fn new(id: &str, master: &Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self {
            id: id.into(),
            hint: KeyHint::of(id),
            master: master.clone(),
            sealing: hkdf::Salt::new(hkdf::HKDF_SHA256, b"regrant/seal/v1")
                .extract(master.as_slice()),
            tagging: hmac::Key::new(
                hmac::HMAC_SHA256,
                hmac::sign(
                    &hmac::Key::new(hmac::HMAC_SHA256, master.as_slice()),
                    b"regrant/token-tag/v1",
                )
                .as_ref(),
            ),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn hint(&self) -> KeyHint {
        self.hint
    }

    /// The key of the short tag that every gateway token ends with.
    pub(crate) fn tagging(&self) -> &hmac::Key {
        &self.tagging
    }

    /// Proves possession of this key without telling it, so that a key that
    /// was replaced under the same id is noticed at start.
    pub(crate) fn check_value(&self) -> [u8; 32] {
        let mut value = [0; 32];
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.master.as_slice());
        value.copy_from_slice(hmac::sign(&key, b"regrant/key-check/v1").as_ref());
        value
    }

    /// The key that authenticates the access tokens of one grant: it takes
    /// both this keyring key and the salt in the grant's row.
    pub(crate) fn access_key(&self, id: GrantId, salt: &[u8; 32]) -> Result<hmac::Key, SealError> {
        let bytes = Zeroizing::new(expand::<32>(
            &hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(self.master.as_slice()),
            &[b"regrant/access/v1", id.as_bytes()],
        )?);
        Ok(hmac::Key::new(hmac::HMAC_SHA256, bytes.as_slice()))
    }

    /// What a rotation hands out, derived from the refresh token that was
    /// presented: the same question has the same answer on every replica, and
    /// without the presented token there is no answer.
    pub(crate) fn successor<const N: usize>(
        &self,
        presented: &[u8; 32],
        id: GrantId,
        generation: u64,
        purpose: &[u8],
    ) -> Result<Zeroizing<[u8; N]>, SealError> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, self.master.as_slice()).extract(presented);
        expand(
            &prk,
            &[
                b"regrant/successor/v1",
                purpose,
                id.as_bytes(),
                &generation.to_be_bytes(),
            ],
        )
        .map(Zeroizing::new)
    }

    pub(super) fn row_key(&self, row_id: &[u8; 16]) -> Result<aead::LessSafeKey, SealError> {
        let bytes = Zeroizing::new(expand::<32>(&self.sealing, &[b"row", row_id])?);
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, bytes.as_slice())?;
        Ok(aead::LessSafeKey::new(key))
    }
}

/// Four bytes by which a token names the key that tagged it. Not secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct KeyHint(pub(crate) [u8; 4]);

impl KeyHint {
    fn of(id: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(id.as_bytes()).into();
        let [a, b, c, d, ..] = digest;
        Self([a, b, c, d])
    }
}

/// Why a [`Keyring`] cannot be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyringError {
    /// There is no key.
    Empty,
    /// The entry at this position (from 1) is not `id:base64`.
    Malformed {
        /// The position in the list, from 1.
        position: usize,
    },
    /// The key of this id cannot be used.
    Key {
        /// The id that was given.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The operating system gave no random bytes.
    Random,
    /// The [`KeySource`] failed.
    Source(BoxError),
}

impl fmt::Display for KeyringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("there is no key: give one that seals"),
            Self::Malformed { position } => write!(
                f,
                "key {position} is not of the form `id:base64-of-32-bytes` \
                 (an id is 1 to 32 of A-Z a-z 0-9 _ -)"
            ),
            Self::Key { id, reason } => write!(f, "key `{id}` {reason}"),
            Self::Random => f.write_str("the operating system gave no random bytes"),
            Self::Source(_) => f.write_str("the keys could not be fetched from where they are"),
        }
    }
}

impl std::error::Error for KeyringError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Source(error) => Some(&**error),
            Self::Empty | Self::Malformed { .. } | Self::Key { .. } | Self::Random => None,
        }
    }
}

/// `N` bytes from the operating system.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], KeyringError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|Unspecified| KeyringError::Random)?;
    Ok(bytes)
}

fn expand<const N: usize>(prk: &hkdf::Prk, info: &[&[u8]]) -> Result<[u8; N], SealError> {
    let mut output = [0; N];
    prk.expand(info, OutputBytes(N))?.fill(&mut output)?;
    Ok(output)
}

struct OutputBytes(usize);

impl hkdf::KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

pub(super) fn is_key_id(id: &str) -> bool {
    (1..=32).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

const KEY_BYTES: usize = 32;
