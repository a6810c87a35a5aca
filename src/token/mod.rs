//! The gateway's own tokens: `<prefix><grant id: 32 hex>.<payload: base64url>`.
//!
//! | part of the payload | refresh | access | code, direct refresh |
//! |---|---|---|---|
//! | version, key hint | 1 + 4 bytes | 1 + 4 bytes | 1 + 4 bytes |
//! | generation | 8 bytes | 8 bytes | – |
//! | expiry, Unix seconds | – | 8 bytes | – |
//! | scopes, one bit each | – | 8 bytes | – |
//! | secret | 32 bytes | nonce 16 + MAC 32 bytes | 32 bytes |
//! | tag over all before it | 16 bytes | 16 bytes | 16 bytes |
//!
//! 1. The tag is keyed by the keyring alone, so garbage and forgeries are
//!    refused **without the store**, and a genuine token of *any* old
//!    generation is told from noise: reuse detection needs no row per token.
//! 2. A refresh token or code is stored as the SHA-256 of its secret, never
//!    itself.
//! 3. An access token is stored nowhere. Its MAC takes a keyring key *and* the
//!    salt in the grant's row; forging one takes both.
//! 4. The pair that a rotation hands out is derived from the refresh token that
//!    was presented, so a repeated request gets the same pair back, from any
//!    replica.
//! 5. When a key was removed from the keyring, what it tagged is told from
//!    nothing any more: a refresh token or code of it counts if the row holds its
//!    hash, and nothing else that it says does. An access token of it is refused:
//!    a gateway does not start without a key whose access tokens may live.

mod access;
mod format;
mod refresh;
mod secret;

use sha2::Digest as _;
use sha2::Sha256;

pub(crate) use self::access::ALL_SCOPES;
pub(crate) use self::access::AccessClaims;
pub(crate) use self::access::access_grant_id;
pub(crate) use self::refresh::IssuedPair;
pub(crate) use self::refresh::RefreshClaims;
pub(crate) use self::refresh::SuccessorKeys;
pub(crate) use self::refresh::issue_first;
pub(crate) use self::refresh::issue_successor;
pub(crate) use self::secret::SecretClaims;
pub(crate) use self::secret::issue_secret;

/// What a token is. The tag covers it, so that one kind never passes as another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Access,
    Code,
    /// The refresh token of a direct grant.
    Direct,
    Refresh,
}

impl Kind {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Access => "rgat_",
            Self::Code => "rgac_",
            // As GitHub begins its own: secret scanners look for it.
            Self::Direct => "ghr_",
            Self::Refresh => "rgrt_",
        }
    }
}

/// Eight characters by which a log may name a token without telling it.
pub(crate) fn fingerprint(token: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    digest
        .iter()
        .take(4)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;
    use std::time::SystemTime;

    use super::*;
    use crate::clock::unix_seconds;
    use crate::id::GrantId;
    use crate::seal::Keyring;
    use crate::settings::TokenPrefixes;

    const SALT: [u8; 32] = [7; 32];

    fn keyring() -> Keyring {
        Keyring::parse("one:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap()
    }

    fn pair(keyring: &Keyring) -> IssuedPair {
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let id = GrantId::from_bytes([0xab; 16]);
        issue_first(
            keyring.sealing().unwrap(),
            &TokenPrefixes::default(),
            id,
            &SALT,
            expires_at,
        )
        .unwrap()
    }

    #[test]
    fn an_issued_pair_verifies_and_says_what_it_is_for() {
        let keyring = keyring();
        let pair = pair(&keyring);

        let presented = refresh(pair.refresh.expose(), &keyring).unwrap();
        assert_eq!(
            (presented.id, presented.generation),
            (GrantId::from_bytes([0xab; 16]), 0)
        );
        assert!(presented.is_hashed_to(&pair.refresh_hash));
        assert!(!presented.is_hashed_to(&[0; 32]));

        let access = access(pair.access.expose(), &keyring).unwrap();
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
                    assert!(access(&changed, &keyring).is_none());
                    assert!(refresh(&changed, &keyring).is_none());
                }
            }
        }
    }

    #[test]
    fn one_kind_of_token_never_passes_as_the_other() {
        let keyring = keyring();
        let pair = pair(&keyring);
        let access_token = pair.access.expose();
        let refresh_token = pair.refresh.expose();

        assert!(refresh(access_token, &keyring).is_none());
        assert!(access(refresh_token, &keyring).is_none());
        let disguised = refresh_token.replace("rgrt_", "rgat_");
        assert!(access(&disguised, &keyring).is_none());
    }

    #[test]
    fn the_successor_is_the_same_for_whoever_asks_again() {
        let keyring = keyring();
        let first = pair(&keyring);
        let presented = refresh(first.refresh.expose(), &keyring).unwrap();
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000);
        let key = keyring.sealing().unwrap();
        let keys = SuccessorKeys {
            deriving: presented.deriving(&keyring).unwrap(),
            issuing: key,
        };
        let prefixes = TokenPrefixes::default();
        let ask = |scopes| {
            issue_successor(&presented, 1, &keys, &prefixes, &SALT, expires_at, scopes).unwrap()
        };

        let (one, two) = (ask(ALL_SCOPES), ask(ALL_SCOPES));

        assert_eq!(one.access.expose(), two.access.expose());
        assert_eq!(one.refresh.expose(), two.refresh.expose());
        assert_ne!(one.refresh.expose(), first.refresh.expose());
        let next = refresh(one.refresh.expose(), &keyring).unwrap();
        assert_eq!(next.generation, 1);
        assert!(next.is_hashed_to(&one.refresh_hash));

        // A narrower one has another access token, and the same refresh token.
        let narrow = ask(0b1);
        assert_eq!(narrow.refresh.expose(), one.refresh.expose());
        let (narrow, whole) = (
            access(narrow.access.expose(), &keyring).unwrap(),
            access(one.access.expose(), &keyring).unwrap(),
        );
        assert_eq!((narrow.scopes, whole.scopes), (0b1, ALL_SCOPES));
        assert!(narrow.is_of(&SALT, &keyring));
        assert_ne!(narrow.revocation_entry(), whole.revocation_entry());
    }

    #[test]
    fn a_code_or_direct_refresh_token_verifies_and_is_nothing_else() {
        let keyring = keyring();
        let prefixes = TokenPrefixes::default();
        let id = GrantId::from_bytes([0xcd; 16]);
        let verify = |kind, token: &str| SecretClaims::verify(kind, token, &keyring, &prefixes);
        for (kind, other, prefix) in [
            (Kind::Code, Kind::Direct, "rgac_"),
            (Kind::Direct, Kind::Code, "ghr_"),
        ] {
            let key = keyring.sealing().unwrap();
            let (token, hash) = issue_secret(kind, key, &prefixes, id).unwrap();

            let claims = verify(kind, &token).unwrap();
            assert_eq!(claims.id, id);
            assert!(token.starts_with(&format!("{prefix}{id}.")));
            assert!(claims.is_hashed_to(&hash));
            assert!(!claims.is_hashed_to(&[0; 32]));
            assert!(verify(other, &token).is_none());
            assert!(refresh(&token, &keyring).is_none());
            let disguised = token.replace(prefix, other.label());
            assert!(verify(other, &disguised).is_none());
            let disguised = token.replace(prefix, "rgrt_");
            assert!(refresh(&disguised, &keyring).is_none());
            let disguised = pair(&keyring).refresh.expose().replace("rgrt_", prefix);
            assert!(verify(kind, &disguised).is_none());
        }
    }

    #[test]
    fn a_new_prefix_leaves_the_tokens_of_before_good() {
        let keyring = keyring();
        let before = pair(&keyring);
        let prefixes = TokenPrefixes::default().access("acme_at_");
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let id = GrantId::from_bytes([0xab; 16]);
        let key = keyring.sealing().unwrap();
        let new = issue_first(key, &prefixes, id, &SALT, expires_at).unwrap();

        assert!(new.access.expose().starts_with("acme_at_"));
        for token in [new.access.expose(), before.access.expose()] {
            assert!(AccessClaims::verify(token, &keyring, &prefixes).is_some());
        }
        assert!(access(new.access.expose(), &keyring).is_none());
    }

    #[test]
    fn a_token_of_another_keyring_is_refused() {
        let pair = pair(&keyring());
        let other = Keyring::generate().unwrap();

        assert!(access(pair.access.expose(), &other).is_none());
        assert!(refresh(pair.refresh.expose(), &other).is_none());
    }

    #[test]
    fn what_a_removed_key_tagged_is_unproven_and_its_access_tokens_are_refused() {
        let old = keyring();
        let issued = pair(&old);
        let new = Keyring::parse("two:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=").unwrap();
        let aware = new.clone().with_retired(&["one", "two"]);

        assert!(refresh(issued.refresh.expose(), &new).is_none());
        let claims = refresh(issued.refresh.expose(), &aware).unwrap();
        assert!(!claims.is_proven);
        assert!(claims.is_hashed_to(&issued.refresh_hash));
        assert!(access(issued.access.expose(), &aware).is_none());

        // What a key that is there did not tag is refused as ever.
        let forged = Keyring::parse("two:AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=").unwrap();
        let forged = pair(&forged);
        assert!(refresh(forged.refresh.expose(), &aware).is_none());
    }

    fn access(token: &str, keyring: &Keyring) -> Option<AccessClaims> {
        AccessClaims::verify(token, keyring, &TokenPrefixes::default())
    }

    fn refresh(token: &str, keyring: &Keyring) -> Option<RefreshClaims> {
        RefreshClaims::verify(token, keyring, &TokenPrefixes::default())
    }
}
