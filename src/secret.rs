//! Secrets as types: they cannot be printed, and their memory is wiped.
//!
//! No secret here implements `Display` or `Serialize`; `Debug` prints
//! `[redacted]`. The one way to the text is `expose()`, which is easy to find
//! in a review.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::seal::KeyringError;
use crate::seal::random_bytes;

/// A function cannot declare a type, and eight hand-written copies would drift
/// apart in the one property that matters.
macro_rules! secret {
    ($($(#[$doc:meta])* $name:ident)+) => {$(
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Zeroizing<String>);

        impl $name {
            /// Wraps the text of the secret.
            pub fn new(text: impl Into<String>) -> Self {
                Self(Zeroizing::new(text.into()))
            }

            /// The text, to be sent to whoever it belongs to and nowhere else.
            pub fn expose(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "([redacted])"))
            }
        }
    )+};
}

secret! {
    /// An access token of a provider (RFC 6749 §1.4): what the upstream accepts.
    ///
    /// ```
    /// let token = regrant::secret::UpstreamAccessToken::new("at-1");
    /// assert_eq!(token.expose(), "at-1");
    /// assert_eq!(format!("{token:?}"), "UpstreamAccessToken([redacted])");
    /// ```
    UpstreamAccessToken

    /// A refresh token of a provider (RFC 6749 §1.5). Treated as single-use.
    ///
    /// ```
    /// let token = regrant::secret::UpstreamRefreshToken::new("rt-1");
    /// assert_eq!(format!("{token:?}"), "UpstreamRefreshToken([redacted])");
    /// ```
    UpstreamRefreshToken

    /// An authorization code of ours (RFC 6749 §1.3.1): what the gateway's
    /// redirect carries back to the client.
    ///
    /// ```
    /// let code = regrant::secret::AuthorizationCode::new("rgac_x");
    /// assert_eq!(format!("{code:?}"), "AuthorizationCode([redacted])");
    /// ```
    AuthorizationCode

    /// An access token of ours: what a client sends to the gateway.
    ///
    /// ```
    /// let token = regrant::secret::GatewayAccessToken::new("rgat_x");
    /// assert_eq!(format!("{token:?}"), "GatewayAccessToken([redacted])");
    /// ```
    GatewayAccessToken

    /// A refresh token of ours: what a client sends to our token endpoint.
    ///
    /// ```
    /// let token = regrant::secret::GatewayRefreshToken::new("rgrt_x");
    /// assert_eq!(format!("{token:?}"), "GatewayRefreshToken([redacted])");
    /// ```
    GatewayRefreshToken

    /// The secret with which a client authenticates (RFC 6749 §2.3.1): the
    /// gateway to a provider, or a client to the gateway.
    ///
    /// ```
    /// let secret = regrant::secret::ClientSecret::new("s");
    /// assert_eq!(format!("{secret:?}"), "ClientSecret([redacted])");
    /// ```
    ClientSecret

    /// The private key, in PEM, with which the gateway signs its assertions to
    /// a provider (RFC 7523 §2.2).
    ///
    /// ```
    /// let key = regrant::secret::PrivateKey::new("-----BEGIN PRIVATE KEY-----…");
    /// assert_eq!(format!("{key:?}"), "PrivateKey([redacted])");
    /// ```
    PrivateKey

    /// An authorization code of a provider (RFC 6749 §1.3.1): single-use.
    ///
    /// ```
    /// let code = regrant::secret::UpstreamCode::new("c");
    /// assert_eq!(format!("{code:?}"), "UpstreamCode([redacted])");
    /// ```
    UpstreamCode

    /// The secret that proves who asked for an authorization code (RFC 7636
    /// §4.1).
    ///
    /// ```
    /// let verifier = regrant::secret::CodeVerifier::new("v");
    /// assert_eq!(format!("{verifier:?}"), "CodeVerifier([redacted])");
    /// ```
    CodeVerifier
}
impl ClientSecret {
    /// A new secret: 32 random bytes in base64url, 43 characters. It is shown
    /// once, to be given to the client.
    ///
    /// # Errors
    ///
    /// [`KeyringError::Random`] if the operating system has no randomness.
    ///
    /// ```
    /// let secret = regrant::secret::ClientSecret::generate()?;
    /// assert_eq!(secret.expose().len(), 43);
    /// # Ok::<_, regrant::seal::KeyringError>(())
    /// ```
    pub fn generate() -> Result<Self, KeyringError> {
        let bytes = Zeroizing::new(random_bytes::<32>()?);
        Ok(Self::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
    }
}
