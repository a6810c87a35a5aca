//! The bearer token of a request.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::rejection::Rejection;

/// RFC 6750 §2.1. One header, one token; the query string is not looked at.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&str, Rejection> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Rejection::NoBearer)?;
    if values.next().is_some() || value.len() > LONGEST_AUTHORIZATION {
        return Err(Rejection::InvalidToken);
    }
    let Some((scheme, token)) = value.as_bytes().split_at_checked(7) else {
        return Err(Rejection::NoBearer);
    };
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return Err(Rejection::NoBearer);
    }
    std::str::from_utf8(token)
        .map(str::trim)
        .map_err(|_error| Rejection::InvalidToken)
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

    #[test]
    fn a_bearer_token_is_found_and_everything_else_told_apart() {
        assert_eq!(bearer(&headers(&[b"Bearer abc"])).unwrap(), "abc");
        assert_eq!(bearer(&headers(&[b"bEARER  abc "])).unwrap(), "abc");

        for none in [&[][..], &[b"Basic abc".as_slice()], &[b"Bearer"], &[b""]] {
            assert!(matches!(bearer(&headers(none)), Err(Rejection::NoBearer)));
        }
        let long = [b"Bearer ".as_slice(), &[b'a'; LONGEST_AUTHORIZATION]].concat();
        for bad in [
            &[b"Bearer abc".as_slice(), b"Bearer abc"][..],
            &[b"Bearer \xff\xfe"],
            &[&long],
        ] {
            assert!(matches!(
                bearer(&headers(bad)),
                Err(Rejection::InvalidToken)
            ));
        }
    }
}
