//! Signed tokens by which the gateway says who it is (RFC 7515 §3.1).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::Header;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use serde_json::Value;

use crate::BoxError;

/// The compact form of these claims, signed by the algorithm of the header.
pub(super) fn signed(
    header: &Header,
    claims: &Value,
    key: &EncodingKey,
) -> Result<String, BoxError> {
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(header)?),
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims)?),
    );
    // Not `jsonwebtoken::encode`: its process-wide default panics where the
    // gateway has another crate switch on a second backend.
    let signer = (DEFAULT_PROVIDER.signer_factory)(&header.alg, key)?;
    let signature = signer.try_sign(message.as_bytes())?;

    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
