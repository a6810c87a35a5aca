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
    /// Of HTTP Basic (RFC 6749 §2.3.1).
    basic: Option<Basic>,
}

/// A user name and a password, encoded as forms are, as RFC 6749 has it, or
/// not at all, as some clients do.
struct Basic {
    ids: Vec<String>,
    secrets: Vec<Zeroizing<String>>,
}

impl Form {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.parameters
            .get(name)
            .map(|value| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// From the form or the header, whose may mean one of two.
    ///
    /// # Errors
    ///
    /// If the two disagree.
    pub(super) fn client_ids(&self) -> Result<Vec<&str>, OAuthError> {
        let ids = self.basic.iter().flat_map(|basic| &basic.ids);
        let ids: Vec<_> = ids.map(String::as_str).collect();
        match self.text("client_id") {
            Some(form) if !ids.is_empty() && !ids.contains(&form) => Err(
                OAuthError::invalid_request("client_id differs between header and body"),
            ),
            Some(id) => Ok(vec![id]),
            None => Ok(ids),
        }
    }

    /// What the password of the header may have meant; none if there is none.
    pub(super) fn basic_secrets(&self) -> Vec<&str> {
        let secrets = self.basic.iter().flat_map(|basic| &basic.secrets);
        secrets.map(|secret| secret.as_str()).collect()
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
    let body = pin!(body);
    let bytes = tokio::time::timeout(BODY_TIMEOUT, collect(body, BODY_LIMIT))
        .await
        .map_err(|_elapsed| OAuthError::too_slow())??;
    // Where nothing is sent, nobody says what it is.
    if !bytes.is_empty() && !is_form(&head.headers) {
        return Err(OAuthError::invalid_request(
            "Content-Type must be application/x-www-form-urlencoded",
        ));
    }

    Ok(Form {
        parameters: parse(&bytes)?,
        basic: basic(&head.headers),
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

fn basic(headers: &HeaderMap) -> Option<Basic> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = Zeroizing::new(STANDARD.decode(encoded.trim()).ok()?);
    let mut halves = pair.splitn(2, |byte| *byte == b':');
    let (id, secret) = (halves.next()?, halves.next().unwrap_or_default());
    let plain = std::str::from_utf8(secret).ok()?;
    let mut secrets = Vec::new();
    if !plain.is_empty() {
        secrets.extend(decode(secret).ok().filter(|decoded| **decoded != *plain));
        secrets.push(Zeroizing::new(plain.to_owned()));
    }
    let mut ids = vec![std::str::from_utf8(id).ok()?.to_owned()];
    ids.extend(decode(id).ok().map(|id| id.to_string()));
    ids.dedup();
    // An empty one counts as absent.
    ids.retain(|id| !id.is_empty() && !id.contains('\0'));
    Some(Basic { ids, secrets })
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
