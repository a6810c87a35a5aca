//! How a token is written, and how one that we did not write is told.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::Kind;
use crate::id::GrantId;
use crate::seal::Key;
use crate::seal::KeyHint;
use crate::seal::Keyring;
use crate::settings::TokenPrefixes;

pub(super) fn tagged(
    kind: Kind,
    prefixes: &TokenPrefixes,
    key: &Key,
    id: GrantId,
    parts: &[&[u8]],
) -> String {
    let mut payload = Zeroizing::new(vec![TOKEN_VERSION]);
    payload.extend_from_slice(&key.hint().0);
    for part in parts {
        payload.extend_from_slice(part);
    }
    let tag = tag(kind, key, id, &payload);
    payload.extend(tag.as_ref().iter().take(TAG_BYTES));

    format!(
        "{}{id}.{}",
        prefixes.of(kind),
        URL_SAFE_NO_PAD.encode(payload.as_slice())
    )
}

/// A token that may be ours.
pub(super) struct Untagged {
    pub(super) id: GrantId,
    /// Without the tag.
    pub(super) payload: Zeroizing<Vec<u8>>,
    /// Whether the tag is right. `false`: nobody can tell, because it names a key
    /// that was removed.
    pub(super) is_proven: bool,
}

/// Refuses whatever this keyring, or a key that was removed from it, cannot have
/// tagged. `N` counts the payload with its tag.
pub(super) fn untagged<const N: usize>(
    kind: Kind,
    prefixes: &TokenPrefixes,
    token: &str,
    keyring: &Keyring,
) -> Option<Untagged> {
    let (id, encoded) = split(kind, prefixes, token)?;
    if encoded.len() != (N * 4).div_ceil(3) {
        return None;
    }
    let mut payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).ok()?);
    let split = N.checked_sub(TAG_BYTES)?;
    let (before, presented) = payload.split_at_checked(split)?;
    let hint = Reader(before).header()?;
    let is_proven = keyring.by_hint(hint).is_some_and(|key| {
        let tag = tag(kind, key, id, before);
        let tag = tag.as_ref().get(..TAG_BYTES);
        tag.is_some_and(|tag| verify_slices_are_equal(tag, presented).is_ok())
    });
    if !is_proven && !keyring.is_retired(hint) {
        return None;
    }
    payload.truncate(split);

    Some(Untagged {
        id,
        payload,
        is_proven,
    })
}

/// The id that a token of this kind names, and the rest, unverified.
pub(super) fn split<'a>(
    kind: Kind,
    prefixes: &TokenPrefixes,
    token: &'a str,
) -> Option<(GrantId, &'a str)> {
    let rest = token
        .strip_prefix(prefixes.of(kind))
        // Tokens from before the gateway was given prefixes of its own.
        .or_else(|| token.strip_prefix(kind.label()))?;
    let (id, encoded) = rest.split_once('.')?;
    Some((GrantId::parse(id)?, encoded))
}

/// Over the kind, not the prefix: prefixes may change, and are public anyway.
fn tag(kind: Kind, key: &Key, id: GrantId, payload: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key.tagging());
    context.update(kind.label().as_bytes());
    context.update(id.as_bytes());
    context.update(payload);
    context.sign()
}

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn header(&mut self) -> Option<KeyHint> {
        (self.take::<1>()? == [TOKEN_VERSION]).then_some(())?;
        self.take().map(KeyHint)
    }

    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }
}

const TOKEN_VERSION: u8 = 1;
pub(super) const HEADER_BYTES: usize = 1 + 4;
pub(super) const TAG_BYTES: usize = 16;
