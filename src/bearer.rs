//! The gateway access token of a request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::header::ORIGIN;
use zeroize::Zeroizing;

use crate::rejection::Rejection;
use crate::secret::GatewayAccessToken;

/// A gateway access token as it came, unverified.
pub(crate) enum AccessToken<'a> {
    /// Borrowed: what most requests bring is not copied.
    Bearer(&'a str),
    /// Of HTTP Basic, decoded.
    Password(GatewayAccessToken),
}

impl AccessToken<'_> {
    pub(crate) fn expose(&self) -> &str {
        match self {
            Self::Bearer(token) => token,
            Self::Password(token) => token.expose(),
        }
    }
}

/// RFC 6750 §2.1, and RFC 7617 §2 where Basic is accepted. One header, one token;
/// the query string is not looked at.
///
/// Browsers keep a password and send it unasked, with requests of any page (the
/// Fetch standard, "authentication entries"): with an `Origin` it is nobody's
/// intent, and no token.
pub(crate) fn access_token(
    headers: &HeaderMap,
    accepts_basic: bool,
) -> Result<AccessToken<'_>, Rejection> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Rejection::NoBearer)?;
    if values.next().is_some() || value.len() > LONGEST_AUTHORIZATION {
        return Err(Rejection::InvalidToken);
    }
    if let Some(token) = after(b"bearer ", value.as_bytes()) {
        return std::str::from_utf8(token)
            .map(|token| AccessToken::Bearer(token.trim()))
            .map_err(|_error| Rejection::InvalidToken);
    }
    if accepts_basic
        && !headers.contains_key(ORIGIN)
        && let Some(encoded) = after(b"basic ", value.as_bytes())
    {
        return password(encoded).map(AccessToken::Password);
    }
    Err(Rejection::NoBearer)
}

/// Whether there is something of HTTP Basic, well-formed or not.
pub(crate) fn is_basic(headers: &HeaderMap) -> bool {
    headers
        .get(AUTHORIZATION)
        .is_some_and(|value| after(b"basic", value.as_bytes().trim_ascii_start()).is_some())
}

/// The password of Basic credentials. User names may be in any charset and have no
/// colon.
fn password(encoded: &[u8]) -> Result<GatewayAccessToken, Rejection> {
    let decoded = STANDARD.decode(encoded.trim_ascii());
    let pair = Zeroizing::new(decoded.map_err(|_error| Rejection::InvalidToken)?);
    let password = pair.splitn(2, |byte| *byte == b':').nth(1);
    let password = password.ok_or(Rejection::InvalidToken)?;
    if password.is_empty() {
        return Err(Rejection::NoBearer);
    }
    std::str::from_utf8(password)
        .map(GatewayAccessToken::new)
        .map_err(|_error| Rejection::InvalidToken)
}

/// What comes after this scheme, in whatever case it is written.
fn after<'a>(scheme: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (found, rest) = value.split_at_checked(scheme.len())?;
    found.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Ours are under 200 bytes; the rest of the room is for other people's.
const LONGEST_AUTHORIZATION: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        values
            .iter()
            .map(|value| (AUTHORIZATION, HeaderValue::from_bytes(value).unwrap()))
            .collect()
    }

    fn basic(pair: &[u8]) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn a_bearer_token_is_found_and_everything_else_told_apart() {
        for accepts_basic in [false, true] {
            for value in [b"Bearer abc".as_slice(), b"bEARER  abc "] {
                let headers = headers(&[value]);
                let token = access_token(&headers, accepts_basic).unwrap();
                assert_eq!(token.expose(), "abc");
                assert!(matches!(token, AccessToken::Bearer(_)), "it is not copied");
            }
            for none in [&[][..], &[b"Digest abc".as_slice()], &[b"Bearer"], &[b""]] {
                let headers = headers(none);
                let token = access_token(&headers, accepts_basic);
                assert!(matches!(token, Err(Rejection::NoBearer)));
            }
            let long = [b"Bearer ".as_slice(), &[b'a'; LONGEST_AUTHORIZATION]].concat();
            for bad in [
                &[b"Bearer abc".as_slice(), b"Bearer abc"][..],
                &[b"Bearer abc", b"Basic YTpi"],
                &[b"Bearer \xff\xfe"],
                &[&long],
            ] {
                let headers = headers(bad);
                let token = access_token(&headers, accepts_basic);
                assert!(matches!(token, Err(Rejection::InvalidToken)));
            }
        }
    }

    #[test]
    fn the_password_of_basic_is_a_token_only_where_that_is_accepted() {
        for pair in [
            b"x-access-token:abc".as_slice(),
            b":abc",
            b"\xff\xfe:abc",
            "zo\u{eb}:abc".as_bytes(),
        ] {
            let value = basic(pair);
            let headers = headers(&[value.as_bytes()]);
            let token = access_token(&headers, false);
            assert!(matches!(token, Err(Rejection::NoBearer)));
            assert_eq!(access_token(&headers, true).unwrap().expose(), "abc");
        }
        // The scheme is written in any case; the first colon parts the two.
        for (value, want) in [("bASIC  YTpiOmM= ", "b:c"), ("BASIC YTpi", "b")] {
            let headers = headers(&[value.as_bytes()]);
            assert_eq!(access_token(&headers, true).unwrap().expose(), want);
        }
    }

    #[test]
    fn a_page_brings_its_token_as_a_bearer_or_not_at_all() {
        for origin in ["https://page.example", "null", ""] {
            for (value, want) in [
                (basic(b"x-access-token:abc"), None),
                ("Basic *".to_owned(), None),
                ("Bearer abc".to_owned(), Some("abc")),
            ] {
                let mut headers = headers(&[value.as_bytes()]);
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
                let token = access_token(&headers, true);
                match want {
                    Some(want) => assert_eq!(token.unwrap().expose(), want),
                    None => assert!(matches!(token, Err(Rejection::NoBearer)), "{value}"),
                }
            }
        }
    }

    #[test]
    fn basic_without_a_password_is_none_and_what_cannot_be_read_is_invalid() {
        for none in [basic(b"rgat_x:"), basic(b":"), "Basic".into()] {
            let headers = headers(&[none.as_bytes()]);
            let token = access_token(&headers, true);
            assert!(matches!(token, Err(Rejection::NoBearer)), "{none}");
        }
        let long = basic(&[b':'; LONGEST_AUTHORIZATION]);
        for bad in [
            &[basic(b"no colon").as_str()][..],
            &["Basic "],
            &["Basic YTpi YTpi"],
            &["Basic *"],
            &[&basic(b"a:\xff\xfe")],
            &[&basic(b"a:b"), &basic(b"a:b")],
            &[&long],
        ] {
            let values: Vec<_> = bad.iter().map(|value| value.as_bytes()).collect();
            let headers = headers(&values);
            let token = access_token(&headers, true);
            assert!(matches!(token, Err(Rejection::InvalidToken)), "{bad:?}");
        }
    }

    #[test]
    fn basic_is_told_by_its_scheme_alone() {
        for (value, want) in [
            (b"Basic YTpi".as_slice(), true),
            (b"bASIC\tYTpi", true),
            (b"Basic", true),
            (b"Bearer abc", false),
            (b"Bas", false),
        ] {
            assert_eq!(is_basic(&headers(&[value])), want, "{value:?}");
        }
        assert!(!is_basic(&HeaderMap::new()));
    }
}
