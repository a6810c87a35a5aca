//! Form bodies (RFC 6749 Appendix B): counted, timed, each parameter once.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::time::Duration;

use http::HeaderMap;
use http::Request;
use http::header::AUTHORIZATION;
use http::header::CONTENT_TYPE;
use http_body::Body;
use zeroize::Zeroizing;

use super::collect;
use super::error::OAuthError;
use crate::BoxError;

/// The parameters of a request; empty ones count as absent (RFC 6749 §3.1).
pub(super) struct Form {
    parameters: BTreeMap<String, Zeroizing<String>>,
    /// The user name of HTTP Basic, which some public clients send as well.
    basic_client_id: Option<String>,
}

impl Form {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.parameters
            .get(name)
            .map(|value| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// From the form or the header.
    ///
    /// # Errors
    ///
    /// If the two disagree.
    pub(super) fn client_id(&self) -> Result<Option<&str>, OAuthError> {
        match (self.text("client_id"), self.basic_client_id.as_deref()) {
            (Some(form), Some(header)) if form != header => Err(OAuthError::invalid_request(
                "client_id differs between header and body",
            )),
            (Some(id), _) | (None, Some(id)) => Ok(Some(id)),
            (None, None) => Ok(None),
        }
    }
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values are tokens more often than not.
        f.debug_set().entries(self.parameters.keys()).finish()
    }
}

pub(super) async fn read<B>(request: Request<B>) -> Result<Form, OAuthError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let (head, body) = request.into_parts();
    if !is_form(&head.headers) {
        return Err(OAuthError::invalid_request(
            "Content-Type must be application/x-www-form-urlencoded",
        ));
    }
    let body = pin!(body);
    let bytes = tokio::time::timeout(BODY_TIMEOUT, collect(body, BODY_LIMIT))
        .await
        .map_err(|_elapsed| OAuthError::too_slow())??;

    Ok(Form {
        parameters: parse(&bytes)?,
        basic_client_id: basic_client_id(&head.headers),
    })
}

fn is_form(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media| {
            media
                .trim()
                .eq_ignore_ascii_case("application/x-www-form-urlencoded")
        })
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Zeroizing<String>>, OAuthError> {
    let mut parameters = BTreeMap::new();
    for pair in bytes.split(|byte| *byte == b'&').filter(|p| !p.is_empty()) {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let name = decode(halves.next().unwrap_or_default())?;
        let value = decode(halves.next().unwrap_or_default())?;
        // RFC 6749 §3.2: parameters must not be included more than once.
        if parameters.insert(name.to_string(), value).is_some() {
            return Err(OAuthError::invalid_request("a parameter is repeated"));
        }
    }
    Ok(parameters)
}

/// Decodes strictly: a broken escape or a stray byte would otherwise turn into
/// a token that nobody issued, and `invalid_grant` is not the word for that.
fn decode(text: &[u8]) -> Result<Zeroizing<String>, OAuthError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                let byte = digit(high)
                    .zip(digit(low))
                    .and_then(|(high, low)| u8::try_from(high * 16 + low).ok())
                    .ok_or_else(malformed)?;
                bytes.push(byte);
                tail
            }
            (b'%', _) => return Err(malformed()),
            (b'+', _) => {
                bytes.push(b' ');
                tail
            }
            (byte, _) => {
                bytes.push(*byte);
                tail
            }
        };
    }
    let decoded = std::str::from_utf8(&bytes)
        .ok()
        // PostgreSQL's text cannot hold it.
        .filter(|text| !text.contains('\0'))
        .ok_or_else(malformed)?;
    Ok(Zeroizing::new(decoded.to_owned()))
}

fn malformed() -> OAuthError {
    OAuthError::invalid_request("the form is malformed")
}

fn basic_client_id(headers: &HeaderMap) -> Option<String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = Zeroizing::new(STANDARD.decode(encoded.trim()).ok()?);
    let id = pair.split(|byte| *byte == b':').next()?;
    decode(id).ok().map(|id| id.to_string())
}

const BODY_LIMIT: usize = 8 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded_strictly() {
        let form = parse(b"a=1&b=x%20y+z&&c=&d").unwrap();
        let pairs: Vec<_> = form
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(pairs, [("a", "1"), ("b", "x y z"), ("c", ""), ("d", "")]);

        for bad in [
            b"a=%".as_slice(),
            b"a=%4",
            b"a=%zz",
            b"a=%00",
            b"a=%ff",
            b"a=1&a=2",
            b"a=&%61=2",
            b"\xff=1",
        ] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
