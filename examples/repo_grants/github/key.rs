//! The key pair of an App, in the shapes that operators have it in.

use std::sync::LazyLock;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// An RSA key pair of 2048 bits.
pub(crate) struct AppKey {
    pkcs8: Vec<u8>,
    pkcs1: Vec<u8>,
    public: Vec<u8>,
}

impl AppKey {
    /// A new one.
    ///
    /// # Errors
    ///
    /// When the machine has no randomness to give.
    pub(crate) fn generate() -> Result<Self, Unspecified> {
        let pair = KeyPair::generate(KeySize::Rsa2048)?;
        let pkcs8 = pair.as_der()?.as_ref().to_vec();
        let pkcs1 = private_key(&pkcs8).ok_or(Unspecified)?.to_vec();
        let public = pair.public_key().as_ref().to_vec();
        Ok(Self {
            pkcs8,
            pkcs1,
            public,
        })
    }

    /// The same one in all of this process: generating takes a while.
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate).
    pub(crate) fn shared() -> Result<&'static Self, Unspecified> {
        static KEY: LazyLock<Result<AppKey, Unspecified>> = LazyLock::new(AppKey::generate);
        KEY.as_ref().map_err(|error| *error)
    }

    /// As GitHub's settings page hands it out: `BEGIN RSA PRIVATE KEY`.
    pub(crate) fn pkcs1_pem(&self) -> String {
        pem("RSA PRIVATE KEY", &self.pkcs1)
    }

    /// As `openssl pkcs8 -topk8 -nocrypt` makes it: `BEGIN PRIVATE KEY`.
    pub(crate) fn pkcs8_pem(&self) -> String {
        pem("PRIVATE KEY", &self.pkcs8)
    }

    /// PKCS #1 in DER.
    pub(crate) fn pkcs1_der(&self) -> &[u8] {
        &self.pkcs1
    }

    /// PKCS #8 in DER.
    pub(crate) fn pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half, `RSAPublicKey` in DER (RFC 8017 §A.1.1).
    pub(crate) fn public_der(&self) -> &[u8] {
        &self.public
    }
}

/// The `privateKey` of a `PrivateKeyInfo` (RFC 5208 §5): for RSA that is the key
/// in PKCS #1.
fn private_key(pkcs8: &[u8]) -> Option<&[u8]> {
    let (info, _) = element(pkcs8, SEQUENCE)?;
    let (_version, rest) = element(info, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (key, _attributes) = element(rest, OCTET_STRING)?;
    Some(key)
}

/// The content of the DER element at the beginning, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        let fold = |length: usize, byte: &u8| (length << 8) | usize::from(*byte);
        (bytes.iter().fold(0, fold), rest)
    };
    (*first == tag).then(|| rest.split_at_checked(length))?
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let lines: Vec<_> = base64
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
