//! Assertions by which the gateway authenticates with a private key (RFC 7523
//! §2.2 and §3): short-lived, and a new one for every call, because servers
//! refuse a `jti` that they have seen.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::Header;
use serde_json::json;

use super::super::signature::signed;
use crate::BoxError;
use crate::clock::Clock as _;
use crate::clock::SystemClock;
use crate::clock::unix_seconds;
use crate::error::ConfigError;
use crate::seal::random_bytes;
use crate::secret::PrivateKey;

/// Settings of `private_key_jwt`.
///
/// ```
/// use regrant::provider::oauth2::ClientAuthentication;
/// use regrant::provider::oauth2::PrivateKeyJwt;
/// use regrant::provider::oauth2::SigningAlgorithm;
/// use regrant::secret::PrivateKey;
///
/// let key = PrivateKey::new("-----BEGIN PRIVATE KEY-----…");
/// let settings = PrivateKeyJwt::new(SigningAlgorithm::Es256, key)
///     .key_id("2026-10")
///     .audience("https://idp.example");
/// let authentication = ClientAuthentication::PrivateKeyJwt(settings);
/// ```
#[derive(Clone, Debug)]
pub struct PrivateKeyJwt {
    algorithm: SigningAlgorithm,
    key: PrivateKey,
    key_id: Option<String>,
    audience: Option<String>,
}

impl PrivateKeyJwt {
    /// Signs with this key, PEM in PKCS #8 (for RSA also PKCS #1). Whether the
    /// key fits the algorithm is found when the provider is built.
    pub fn new(algorithm: SigningAlgorithm, key: PrivateKey) -> Self {
        Self {
            algorithm,
            key,
            key_id: None,
            audience: None,
        }
    }

    /// The `kid` by which the provider finds the public key. The default is to
    /// send none.
    #[must_use]
    pub fn key_id(mut self, key_id: impl Into<String>) -> Self {
        self.key_id = Some(key_id.into());
        self
    }

    /// The `aud` of the assertions: some providers want their issuer
    /// identifier. The default is the issuer where it was discovered, else the
    /// URL of the token endpoint (RFC 7523 §3).
    #[must_use]
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    pub(super) fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    pub(super) fn has_audience(&self) -> bool {
        self.audience.is_some()
    }

    /// The signer, of this audience unless one was set.
    pub(super) fn signer(self, audience: Option<String>) -> Result<Signer, ConfigError> {
        let unusable = |error: BoxError| {
            ConfigError::new(
                "private key",
                format!("cannot sign by {}", self.algorithm.name()),
            )
            .caused_by(error)
        };
        let pem = self.key.expose().as_bytes();
        let key = match self.algorithm {
            SigningAlgorithm::Rs256 => EncodingKey::from_rsa_pem(pem),
            SigningAlgorithm::Es256 => EncodingKey::from_ec_pem(pem),
            SigningAlgorithm::EdDsa => EncodingKey::from_ed_pem(pem),
        };
        let signer = Signer {
            key: key.map_err(|error| unusable(error.into()))?,
            algorithm: self.algorithm,
            key_id: self.key_id,
            audience: self.audience.or(audience),
        };
        // The curve, the size and the halves of the key are looked at only when
        // it signs; better now than at the first refresh.
        signer.assertion("test", "test").map_err(unusable)?;
        Ok(signer)
    }
}

/// How assertions are signed (RFC 7518 §3.1, RFC 8037 §3.1).
///
/// ```
/// use regrant::provider::oauth2::PrivateKeyJwt;
/// use regrant::provider::oauth2::SigningAlgorithm;
/// use regrant::secret::PrivateKey;
///
/// let settings = PrivateKeyJwt::new(SigningAlgorithm::EdDsa, PrivateKey::new("…"));
/// assert!(format!("{settings:?}").contains("EdDsa"));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum SigningAlgorithm {
    /// `RS256`: RSA, at least 2048 bits.
    Rs256,
    /// `ES256`: ECDSA on the curve P-256.
    Es256,
    /// `EdDSA`: Ed25519.
    EdDsa,
}

impl SigningAlgorithm {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// A key that has proved to work.
#[derive(Clone)]
pub(super) struct Signer {
    key: EncodingKey,
    algorithm: SigningAlgorithm,
    key_id: Option<String>,
    audience: Option<String>,
}

impl Signer {
    /// A new assertion that this client is who it says.
    pub(super) fn assertion(
        &self,
        client_id: &str,
        token_endpoint: &str,
    ) -> Result<String, BoxError> {
        let algorithm = match self.algorithm {
            SigningAlgorithm::Rs256 => Algorithm::RS256,
            SigningAlgorithm::Es256 => Algorithm::ES256,
            SigningAlgorithm::EdDsa => Algorithm::EdDSA,
        };
        let mut header = Header::new(algorithm);
        header.kid.clone_from(&self.key_id);
        let now = unix_seconds(SystemClock.now());
        let claims = json!({
            "iss": client_id,
            "sub": client_id,
            "aud": self.audience.as_deref().unwrap_or(token_endpoint),
            "jti": URL_SAFE_NO_PAD.encode(random_bytes::<16>()?),
            "iat": now,
            "exp": now + LIFETIME.as_secs(),
        });
        signed(&header, &claims, &self.key)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("algorithm", &self.algorithm)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// Long enough for clocks that differ, and no longer.
const LIFETIME: Duration = Duration::from_secs(180);
