//! The expiry that a JWT tells about itself (RFC 7519 §4.1.4).

use std::time::Duration;
use std::time::SystemTime;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;
use serde_json::Value;

/// When this access token expires by its own word, if it is a JWT (RFC 9068
/// §2.2 has most of them be one). Nobody verifies the signature: this is a hint
/// of when to refresh, and the upstream still decides what it accepts.
pub(crate) fn jwt_expiry(token: &str) -> Option<SystemTime> {
    // Encrypted ones have five parts and keep their claims to themselves.
    let mut parts = token.split('.');
    let (_header, claims) = (parts.next()?, parts.next()?);
    let (_signature, None) = (parts.next()?, parts.next()) else {
        return None;
    };
    let claims = BASE64.decode(claims).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let seconds = match claims.get("exp")? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.parse().ok()?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let since_epoch = Duration::try_from_secs_f64(seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since_epoch)
}

/// Some issuers pad, though RFC 7515 §2 forbids it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expiry_is_read_from_a_jwt_and_from_nothing_else() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let jwt = |claims: &str| format!("e30.{}.c2ln", BASE64.encode(claims));
        for (token, want) in [
            (jwt(r#"{"exp":1800000000}"#), at(1_800_000_000)),
            (jwt(r#"{"exp":1800000000.0}"#), at(1_800_000_000)),
            (jwt(r#"{"exp":"1800000000"}"#), at(1_800_000_000)),
            (
                jwt(r#"{"exp":1800000000}"#).replace('=', ""),
                at(1_800_000_000),
            ),
            (jwt(r#"{"exp":-1}"#), None),
            (jwt(r#"{"exp":1e300}"#), None),
            (jwt(r#"{"exp":null}"#), None),
            (jwt(r#"{"iat":1800000000}"#), None),
            (jwt("[]"), None),
            (jwt("not JSON"), None),
            (format!("{}.a.b", jwt(r#"{"exp":1800000000}"#)), None),
            ("a.b".to_owned(), None),
            ("opaque".to_owned(), None),
            ("é.é.é".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(jwt_expiry(&token), want, "{token}");
        }
    }
}
