//! Who takes part in no history: the provider, and a thief of keys.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use regrant::GrantId;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use sha2::Digest as _;
use sha2::Sha256;

use super::step::KEYS;

/// Counts the refreshes that nobody should ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct Nobody {
    pub(super) calls: Arc<AtomicUsize>,
}

impl Provider for Nobody {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        async { Err(ProviderErrorKind::Transient.into()) }.boxed()
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }
}

/// A keyring of all keys that seals with this one.
pub(super) fn keys(sealing: usize) -> String {
    let key = |index: usize| format!("k{index}:{}", STANDARD.encode(master(index)));
    let others = (0..KEYS).filter(|index| *index != sealing);
    let keys: Vec<_> = std::iter::once(sealing).chain(others).map(key).collect();
    keys.join(",")
}

/// A refresh token that has a true tag and is nobody's: made from the form that
/// the documentation gives, with one of the keys.
pub(super) fn counterfeit(id: GrantId, generation: u64, key: usize) -> String {
    let key = key % KEYS;
    let sign = |key: &[u8], parts: &[&[u8]]| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::sign(&key, &parts.concat())
    };
    let hint = Sha256::digest(format!("k{key}"));
    let secret = Sha256::digest(GrantId::random().unwrap().as_bytes());
    let mut payload = vec![1];
    payload.extend_from_slice(&hint[..4]);
    payload.extend_from_slice(&generation.to_be_bytes());
    payload.extend_from_slice(&secret);
    let tagging = sign(&master(key), &[b"regrant/token-tag/v1"]);
    let tag = sign(tagging.as_ref(), &[b"rgrt_", id.as_bytes(), &payload]);
    payload.extend_from_slice(&tag.as_ref()[..16]);
    format!("rgrt_{id}.{}", URL_SAFE_NO_PAD.encode(payload))
}

fn master(index: usize) -> [u8; 32] {
    [u8::try_from(index).unwrap() + 1; 32]
}
