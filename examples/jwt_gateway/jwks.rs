//! Verifies JWTs (RFC 7519, RFC 9068) by the keys that their issuer publishes
//! (RFC 7517).
//!
//! 1. One algorithm, issuer and audience: never what the token asks for.
//! 2. Keys are fetched when a token names one that is not known, at most once in
//!    a while, however many such tokens come; and anew when they are old, so that
//!    a key which the issuer took back ends here too.
//! 3. An issuer that cannot be reached says nothing of a token, nor does one that
//!    was asked a moment too early: known keys are good a while longer, and an
//!    unknown one is not refused.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use jsonwebtoken::Algorithm;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::Validation;
use jsonwebtoken::jwk::JwkSet;
use reqwest::Client;
use serde_json::Value;
use tokio::sync::RwLock;

/// Why a token is not known to be good.
#[derive(Debug)]
pub(crate) enum Unverified {
    /// It is not.
    Token,
    /// The issuer's keys are not to be had.
    NoKeys,
}

/// Clones share the keys.
#[derive(Clone)]
pub(crate) struct Verifier {
    http: Client,
    jwks_url: String,
    validation: Arc<Validation>,
    /// How long to wait between two fetches.
    interval: Duration,
    keys: Arc<RwLock<Keys>>,
}

#[derive(Default)]
struct Keys {
    known: Option<(JwkSet, Instant)>,
    asked_at: Option<Instant>,
    /// The issuer did not answer when it was last asked.
    is_away: bool,
}

impl Verifier {
    pub(crate) fn new(http: Client, jwks_url: &str, issuer: &str, audience: &str) -> Self {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        Self {
            http,
            jwks_url: jwks_url.to_owned(),
            validation: Arc::new(validation),
            interval: Duration::from_secs(30),
            keys: Arc::default(),
        }
    }

    pub(crate) fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// The subject of a token that is good.
    pub(crate) async fn verify(&self, token: &str) -> Result<String, Unverified> {
        let header = jsonwebtoken::decode_header(token).map_err(|_error| Unverified::Token)?;
        let key_id = header.kid.ok_or(Unverified::Token)?;
        let key = self.key(&key_id).await?;
        let claims = jsonwebtoken::decode::<Value>(token, &key, &self.validation)
            .map_err(|_error| Unverified::Token)?
            .claims;
        let subject = claims.get("sub").and_then(Value::as_str);
        subject.map(str::to_owned).ok_or(Unverified::Token)
    }

    async fn key(&self, id: &str) -> Result<DecodingKey, Unverified> {
        if let Some(key) = self.keys.read().await.current(id) {
            return Ok(key);
        }
        // One asks, the others wait for what it gets.
        let mut keys = self.keys.write().await;
        if let Some(key) = keys.current(id) {
            return Ok(key);
        }
        let is_due = keys
            .asked_at
            .is_none_or(|asked_at| asked_at.elapsed() >= self.interval);
        if is_due {
            keys.asked_at = Some(Instant::now());
            match self.fetch().await {
                Ok(set) => {
                    keys.known = Some((set, Instant::now()));
                    keys.is_away = false;
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "no keys from the issuer"
                    );
                    keys.is_away = true;
                }
            }
        }
        match keys.find(id, GOOD_FOR) {
            Some(key) => Ok(key),
            // Not asked just now: it may have a new one.
            None if keys.is_away || !is_due => Err(Unverified::NoKeys),
            None => Err(Unverified::Token),
        }
    }

    async fn fetch(&self) -> Result<JwkSet, reqwest::Error> {
        let request = self.http.get(&self.jwks_url).timeout(TIMEOUT);
        request.send().await?.error_for_status()?.json().await
    }
}

impl Keys {
    fn current(&self, id: &str) -> Option<DecodingKey> {
        self.find(id, FRESH_FOR)
    }

    fn find(&self, id: &str, at_most: Duration) -> Option<DecodingKey> {
        let (set, fetched_at) = self.known.as_ref()?;
        let key = set.find(id).filter(|_| fetched_at.elapsed() < at_most)?;
        DecodingKey::from_jwk(key).ok()
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);
/// Without asking again.
const FRESH_FOR: Duration = Duration::from_secs(600);
/// With the issuer away.
const GOOD_FOR: Duration = Duration::from_secs(3_600);
