//! Client authentication (RFC 6749 §2.3): in the header *or* the body, never
//! both.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::byte_serialize;
use reqwest::Url;
use reqwest::header::HeaderValue;
use zeroize::Zeroizing;

use super::super::ProviderError;
use super::super::ProviderErrorKind;
use super::assertion::PrivateKeyJwt;
use super::assertion::Signer;
use super::request::Parameters;
use crate::error::ConfigError;
use crate::secret::ClientSecret;

/// How the gateway authenticates at the token endpoint (RFC 7591 §2 names).
///
/// ```
/// use regrant::provider::oauth2::ClientAuthentication;
/// use regrant::secret::ClientSecret;
///
/// let authentication = ClientAuthentication::Basic(ClientSecret::new("s"));
/// assert_eq!(format!("{authentication:?}"), "Basic(ClientSecret([redacted]))");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientAuthentication {
    /// `client_secret_basic`: id and secret in the `Authorization` header,
    /// form-encoded first (RFC 6749 §2.3.1).
    Basic(ClientSecret),
    /// The secret as user name of the `Authorization` header, with an empty
    /// password and no client id, as Stripe has it.
    BasicSecretOnly(ClientSecret),
    /// `client_secret_post`: id and secret in the body.
    Post(ClientSecret),
    /// `private_key_jwt`: a signed assertion in the body (RFC 7523 §2.2).
    PrivateKeyJwt(PrivateKeyJwt),
    /// `none`: a public client, its id in the body.
    None,
}

impl ClientAuthentication {
    /// The name that an authorization server advertises it by (RFC 8414 §2).
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Basic(_) | Self::BasicSecretOnly(_) => "client_secret_basic",
            Self::Post(_) => "client_secret_post",
            Self::PrivateKeyJwt(_) => "private_key_jwt",
            Self::None => "none",
        }
    }
}

/// What is added to each request, made ready.
#[derive(Clone)]
pub(super) enum Authenticator {
    Header(HeaderValue),
    Post(ClientSecret),
    Assertion(Box<Signer>),
    None,
}

impl Authenticator {
    pub(super) fn new(
        client_id: &str,
        authentication: ClientAuthentication,
        audience: Option<String>,
    ) -> Result<Self, ConfigError> {
        Ok(match authentication {
            ClientAuthentication::Basic(secret) => Self::Header(basic(client_id, secret.expose())?),
            ClientAuthentication::BasicSecretOnly(secret) => {
                Self::Header(basic(secret.expose(), "")?)
            }
            ClientAuthentication::Post(secret) => Self::Post(secret),
            ClientAuthentication::PrivateKeyJwt(settings) => {
                Self::Assertion(Box::new(settings.signer(audience)?))
            }
            ClientAuthentication::None => Self::None,
        })
    }

    /// The value of `Authorization`.
    pub(super) fn header(&self) -> Option<&HeaderValue> {
        match self {
            Self::Header(value) => Some(value),
            Self::Post(_) | Self::Assertion(_) | Self::None => None,
        }
    }

    /// Adds what goes into the body.
    pub(super) fn authenticate<'a>(
        &'a self,
        parameters: &mut Parameters<'a>,
        client_id_parameter: &'a str,
        client_id: &'a str,
        token_endpoint: &Url,
    ) -> Result<(), ProviderError> {
        // Some providers refuse a request that says it twice, in the header and in
        // the body or as a parameter of the leg's own.
        let is_said = parameters
            .iter()
            .any(|(name, _)| *name == client_id_parameter);
        if !matches!(self, Self::Header(_)) && !is_said {
            parameters.push((client_id_parameter, Cow::Borrowed(client_id)));
        }
        match self {
            Self::Header(_) | Self::None => {}
            Self::Post(secret) => {
                parameters.push(("client_secret", secret.expose().into()));
            }
            Self::Assertion(signer) => {
                let assertion = signer
                    .assertion(client_id, token_endpoint.as_str())
                    .map_err(|error| {
                        ProviderError::from(ProviderErrorKind::Misconfigured).with_source(error)
                    })?;
                parameters.extend([
                    ("client_assertion_type", ASSERTION_TYPE.into()),
                    ("client_assertion", assertion.into()),
                ]);
            }
        }
        Ok(())
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, ConfigError> {
    let mut pair = Zeroizing::new(String::new());
    pair.extend(byte_serialize(user.as_bytes()));
    pair.push(':');
    pair.extend(byte_serialize(password.as_bytes()));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&text).map_err(|error| {
        ConfigError::new("client authentication", "fits no header").caused_by(error)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// RFC 7523 §2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_form_encoded_before_base64() {
        let value = basic("my id", "a:b%é").unwrap();

        let encoded = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        let pair = STANDARD.decode(encoded).unwrap();
        assert_eq!(pair, b"my+id:a%3Ab%25%C3%A9");
        assert!(value.is_sensitive());
    }
}
