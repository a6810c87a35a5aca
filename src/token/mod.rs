//! The gateway's own tokens: `<prefix><grant id: 32 hex>.<payload: base64url>`.
//!
//! | part of the payload | refresh | access |
//! |---|---|---|
//! | version, key hint | 1 + 4 bytes | 1 + 4 bytes |
//! | generation | 8 bytes | 8 bytes |
//! | expiry, Unix seconds | – | 8 bytes |
//! | secret | 32 bytes | nonce 16 + MAC 32 bytes |
//! | tag over all before it | 16 bytes | 16 bytes |
//!
//! 1. The tag is keyed by the keyring alone, so garbage and forgeries are
//!    refused **without the store**, and a genuine token of *any* old
//!    generation is told from noise: reuse detection needs no row per token.
//! 2. A refresh token is stored as the SHA-256 of its secret, never itself.
//! 3. An access token is stored nowhere. Its MAC takes a keyring key *and* the
//!    salt in the grant's row; forging one takes both.
//! 4. The pair that a rotation hands out is derived from the refresh token that
//!    was presented, so a repeated request gets the same
//!    refresh token back, from any replica.
//!
//! Prefixes are fixed strings that secret scanners can look for.

use std::time::Duration;
use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::Digest as _;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::clock::unix_seconds;
use crate::id::GrantId;
use crate::seal::Key;
use crate::seal::KeyHint;
use crate::seal::Keyring;
use crate::seal::KeyringError;
use crate::seal::SealError;
use crate::seal::random_bytes;
use crate::secret::GatewayAccessToken;
use crate::secret::GatewayRefreshToken;

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
    pub(crate) fn verify(token: &str, keyring: &Keyring) -> Option<Self> {
        let (id, payload) = untagged::<REFRESH_PAYLOAD>(REFRESH_PREFIX, token, keyring)?;
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

    pub(crate) fn is_hashed_to(&self, stored: &[u8; 32]) -> bool {
        verify_slices_are_equal(&self.hash(), stored).is_ok()
    }
}

/// An access token whose tag was right. Its MAC is checked against the row by
/// [`is_of`](Self::is_of).
#[derive(Clone)]
pub(crate) struct AccessClaims {
    pub(crate) id: GrantId,
    pub(crate) generation: u64,
    expires: u64,
    hint: KeyHint,
    nonce: [u8; 16],
    mac: [u8; 32],
}

impl AccessClaims {
    /// Refuses whatever this keyring did not issue, in constant time.
    pub(crate) fn verify(token: &str, keyring: &Keyring) -> Option<Self> {
        let (id, payload) = untagged::<ACCESS_PAYLOAD>(ACCESS_PREFIX, token, keyring)?;
        let mut reader = Reader(payload.as_slice());
        let hint = reader.header()?;

        Some(Self {
            id,
            hint,
            generation: u64::from_be_bytes(reader.take()?),
            expires: u64::from_be_bytes(reader.take()?),
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
                let message = access_message(self.generation, self.expires, &self.nonce);
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

/// A pair as it is handed to a client, and what the row must hold of it.
pub(crate) struct IssuedPair {
    pub(crate) access: GatewayAccessToken,
    pub(crate) refresh: GatewayRefreshToken,
    pub(crate) refresh_hash: [u8; 32],
}

/// The first pair of a grant: random.
pub(crate) fn issue_first(
    key: &Key,
    id: GrantId,
    salt: &[u8; 32],
    expires_at: SystemTime,
) -> Result<IssuedPair, SealError> {
    let random = |_error: KeyringError| SealError::Crypto;
    let secret = Zeroizing::new(random_bytes::<32>().map_err(random)?);
    let nonce = random_bytes::<16>().map_err(random)?;

    issue(key, id, salt, 0, &secret, &nonce, expires_at)
}

/// The pair that follows `presented`: the same one whenever it is asked for
/// with the same `key` and `expires_at`.
pub(crate) fn issue_successor(
    presented: &RefreshClaims,
    keyring: &Keyring,
    key: &Key,
    salt: &[u8; 32],
    expires_at: SystemTime,
) -> Result<IssuedPair, SealError> {
    let generation = presented.generation + 1;
    // Derived under the key that tagged the presented token, so that changing
    // the sealing key between a rotation and its replay changes nothing.
    let deriving = keyring.by_hint(presented.hint).ok_or(SealError::Crypto)?;
    let secret =
        deriving.successor::<32>(&presented.secret, presented.id, generation, b"refresh")?;
    let nonce = deriving.successor::<16>(&presented.secret, presented.id, generation, b"access")?;

    issue(
        key,
        presented.id,
        salt,
        generation,
        &secret,
        &nonce,
        expires_at,
    )
}

fn issue(
    key: &Key,
    id: GrantId,
    salt: &[u8; 32],
    generation: u64,
    secret: &[u8; 32],
    nonce: &[u8; 16],
    expires_at: SystemTime,
) -> Result<IssuedPair, SealError> {
    let expires = unix_seconds(expires_at);
    let mac = hmac::sign(
        &key.access_key(id, salt)?,
        &access_message(generation, expires, nonce),
    );
    let generation = generation.to_be_bytes();

    Ok(IssuedPair {
        access: GatewayAccessToken::new(tagged(
            ACCESS_PREFIX,
            key,
            id,
            &[&generation, &expires.to_be_bytes(), nonce, mac.as_ref()],
        )),
        refresh: GatewayRefreshToken::new(tagged(REFRESH_PREFIX, key, id, &[&generation, secret])),
        refresh_hash: Sha256::digest(secret).into(),
    })
}

/// The grant that an access token names, before anything of it is verified.
pub(crate) fn access_grant_id(token: &str) -> Option<GrantId> {
    let (id, _payload) = token.strip_prefix(ACCESS_PREFIX)?.split_once('.')?;
    GrantId::parse(id)
}

/// Eight characters by which a log may name a token without telling it.
pub(crate) fn fingerprint(token: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    digest
        .iter()
        .take(4)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn access_message(generation: u64, expires: u64, nonce: &[u8; 16]) -> Vec<u8> {
    [
        &generation.to_be_bytes(),
        &expires.to_be_bytes(),
        nonce.as_slice(),
    ]
    .concat()
}

fn tagged(prefix: &str, key: &Key, id: GrantId, parts: &[&[u8]]) -> String {
    let mut payload = Zeroizing::new(vec![TOKEN_VERSION]);
    payload.extend_from_slice(&key.hint().0);
    for part in parts {
        payload.extend_from_slice(part);
    }
    let tag = tag(prefix, key, id, &payload);
    payload.extend(tag.as_ref().iter().take(TAG_BYTES));

    format!(
        "{prefix}{id}.{}",
        URL_SAFE_NO_PAD.encode(payload.as_slice())
    )
}

/// The payload of a token whose tag is right, without the tag. `N` counts it.
fn untagged<const N: usize>(
    prefix: &str,
    token: &str,
    keyring: &Keyring,
) -> Option<(GrantId, Zeroizing<Vec<u8>>)> {
    let rest = token.strip_prefix(prefix)?;
    let (id, encoded) = rest.split_once('.')?;
    let id = GrantId::parse(id)?;
    if encoded.len() != (N * 4).div_ceil(3) {
        return None;
    }
    let mut payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).ok()?);
    let split = N.checked_sub(TAG_BYTES)?;
    let (before, presented) = payload.split_at_checked(split)?;
    let key = keyring.by_hint(Reader(before).header()?)?;
    let tag = tag(prefix, key, id, before);
    verify_slices_are_equal(tag.as_ref().get(..TAG_BYTES)?, presented).ok()?;
    payload.truncate(split);

    Some((id, payload))
}

fn tag(prefix: &str, key: &Key, id: GrantId, payload: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key.tagging());
    // The prefix keeps an access token from passing as a refresh token.
    context.update(prefix.as_bytes());
    context.update(id.as_bytes());
    context.update(payload);
    context.sign()
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn header(&mut self) -> Option<KeyHint> {
        (self.take::<1>()? == [TOKEN_VERSION]).then_some(())?;
        self.take().map(KeyHint)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }
}

const ACCESS_PREFIX: &str = "rgat_";
const REFRESH_PREFIX: &str = "rgrt_";
const TOKEN_VERSION: u8 = 1;
const TAG_BYTES: usize = 16;
const REFRESH_PAYLOAD: usize = 1 + 4 + 8 + 32 + TAG_BYTES;
const ACCESS_PAYLOAD: usize = 1 + 4 + 8 + 8 + 16 + 32 + TAG_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: [u8; 32] = [7; 32];

    fn keyring() -> Keyring {
        Keyring::parse("one:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap()
    }

    fn pair(keyring: &Keyring) -> IssuedPair {
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let id = GrantId::from_bytes([0xab; 16]);
        issue_first(keyring.sealing().unwrap(), id, &SALT, expires_at).unwrap()
    }

    #[test]
    fn an_issued_pair_verifies_and_says_what_it_is_for() {
        let keyring = keyring();
        let pair = pair(&keyring);

        let refresh = RefreshClaims::verify(pair.refresh.expose(), &keyring).unwrap();
        assert_eq!(
            (refresh.id, refresh.generation),
            (GrantId::from_bytes([0xab; 16]), 0)
        );
        assert!(refresh.is_hashed_to(&pair.refresh_hash));
        assert!(!refresh.is_hashed_to(&[0; 32]));

        let access = AccessClaims::verify(pair.access.expose(), &keyring).unwrap();
        assert_eq!(access.id, GrantId::from_bytes([0xab; 16]));
        assert_eq!(unix_seconds(access.expires_at()), 1_000);
        assert!(access.is_of(&SALT, &keyring));
        assert!(!access.is_of(&[8; 32], &keyring));
    }

    #[test]
    fn no_token_with_one_changed_character_verifies() {
        let keyring = keyring();
        let pair = pair(&keyring);

        for token in [pair.access.expose(), pair.refresh.expose()] {
            for index in 0..token.len() {
                for replacement in ['A', '0', 'b', '.', '_'] {
                    let mut changed: Vec<char> = token.chars().collect();
                    if changed[index] == replacement {
                        continue;
                    }
                    changed[index] = replacement;
                    let changed: String = changed.into_iter().collect();
                    assert!(AccessClaims::verify(&changed, &keyring).is_none());
                    assert!(RefreshClaims::verify(&changed, &keyring).is_none());
                }
            }
        }
    }

    #[test]
    fn one_kind_of_token_never_passes_as_the_other() {
        let keyring = keyring();
        let pair = pair(&keyring);
        let access = pair.access.expose();
        let refresh = pair.refresh.expose();

        assert!(RefreshClaims::verify(access, &keyring).is_none());
        assert!(AccessClaims::verify(refresh, &keyring).is_none());
        let disguised = refresh.replace(REFRESH_PREFIX, ACCESS_PREFIX);
        assert!(AccessClaims::verify(&disguised, &keyring).is_none());
    }

    #[test]
    fn the_successor_is_the_same_for_whoever_asks_again() {
        let keyring = keyring();
        let first = pair(&keyring);
        let presented = RefreshClaims::verify(first.refresh.expose(), &keyring).unwrap();
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000);
        let key = keyring.sealing().unwrap();
        let ask = || issue_successor(&presented, &keyring, key, &SALT, expires_at).unwrap();

        let (one, two) = (ask(), ask());

        assert_eq!(one.access.expose(), two.access.expose());
        assert_eq!(one.refresh.expose(), two.refresh.expose());
        assert_ne!(one.refresh.expose(), first.refresh.expose());
        let next = RefreshClaims::verify(one.refresh.expose(), &keyring).unwrap();
        assert_eq!(next.generation, 1);
        assert!(next.is_hashed_to(&one.refresh_hash));
    }

    #[test]
    fn a_token_of_another_keyring_is_refused() {
        let pair = pair(&keyring());
        let other = Keyring::generate().unwrap();

        assert!(AccessClaims::verify(pair.access.expose(), &other).is_none());
        assert!(RefreshClaims::verify(pair.refresh.expose(), &other).is_none());
    }
}
