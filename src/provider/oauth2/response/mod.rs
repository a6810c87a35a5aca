//! Reads what token endpoints really answer (RFC 6749 §5), leniently.
//!
//! By the time there is an answer the refresh token may be spent, so whatever
//! can be understood is. JSON or form-encoded, `snake_case` or `camelCase`, expiries
//! as number, string, float, absolute seconds or milliseconds, and errors with
//! status 200 all occur.

use std::time::Duration;
use std::time::SystemTime;

use reqwest::StatusCode;
use serde_json::Map;
use serde_json::Value;

use super::Expiry;
use super::ProviderError;
use super::ProviderErrorKind;
use super::TokenResponse;
use crate::secret::UpstreamAccessToken;
use crate::secret::UpstreamRefreshToken;

pub(super) fn read(status: StatusCode, body: &[u8]) -> Result<TokenResponse, ProviderError> {
    let members = members(body).unwrap_or_default();
    if let Some(code) = text(&members, &["error"]) {
        return Err(error(status, code));
    }
    if !status.is_success() {
        return Err(unreadable_error(status));
    }
    let Some(access_token) = text(&members, &["access_token", "accessToken"]) else {
        // A success that cannot be read: the refresh token is probably spent.
        return Err(ProviderError::from(ProviderErrorKind::Ambiguous)
            .with_source("a success without an access token"));
    };

    let mut response = TokenResponse::new(UpstreamAccessToken::new(access_token));
    response.refresh_token =
        text(&members, &["refresh_token", "refreshToken"]).map(UpstreamRefreshToken::new);
    response.expiry = expiry(&members);
    Ok(response)
}

/// The table of RFC 6749 §5.2, by who must act.
fn error(status: StatusCode, code: &str) -> ProviderError {
    let kind = match code {
        // Only a refusal ends a login: servers in trouble, and limiters, say
        // `invalid_grant` with other statuses too.
        "invalid_grant" if matches!(status.as_u16(), 200 | 400 | 401 | 403) => {
            ProviderErrorKind::Terminal
        }
        "invalid_client"
        | "unauthorized_client"
        | "unsupported_grant_type"
        | "invalid_scope"
        | "invalid_request"
        | "invalid_target"
            if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS =>
        {
            ProviderErrorKind::Misconfigured
        }
        // `temporarily_unavailable`, `server_error`, `slow_down`, and words that
        // nobody knows: those never end a login.
        _ => ProviderErrorKind::Transient,
    };
    ProviderError::from(kind).with_code(printable(code))
}

fn unreadable_error(status: StatusCode) -> ProviderError {
    ProviderError::from(ProviderErrorKind::Transient)
        .with_source(format!("status {status} without an OAuth error"))
}

/// What the provider wrote goes into logs: RFC 6749 §5.2 allows printable ASCII.
fn printable(code: &str) -> String {
    code.chars()
        .filter(|c| matches!(c, ' '..='~'))
        .take(64)
        .collect()
}

fn members(body: &[u8]) -> Option<Map<String, Value>> {
    if let Ok(Value::Object(members)) = serde_json::from_slice(body) {
        return Some(members);
    }
    let text = std::str::from_utf8(body).ok()?;
    // HTML and plain text would parse as a form of sorts.
    (text.contains('=') && !text.contains('<')).then(|| {
        form_urlencoded::parse(text.trim().as_bytes())
            .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
            .collect()
    })
}

/// The first of these members that is a non-empty string. An empty or null
/// refresh token means "keep the old one", never "erase it".
fn text<'a>(members: &'a Map<String, Value>, names: &[&str]) -> Option<&'a str> {
    names
        .iter()
        .filter_map(|name| members.get(*name)?.as_str())
        // No token has space around it; a line's end is easily sent along.
        .map(str::trim)
        .find(|text| !text.is_empty())
}

fn expiry(members: &Map<String, Value>) -> Expiry {
    let number = |names: &[&str]| {
        names
            .iter()
            .filter_map(|name| number(members.get(*name)?))
            // Zero and less are what providers send that do not know.
            .find(|number| *number > 0.0)
    };
    if let Some(after) = number(&["expires_in", "expiresIn"]) {
        if after >= LEAST_EPOCH_SECONDS {
            return epoch(after);
        }
        return Duration::try_from_secs_f64(after).map_or(Expiry::Unknown, Expiry::After);
    }
    number(&["expires_at", "expiresAt"]).map_or(Expiry::Unknown, epoch)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
    .filter(|number| number.is_finite())
}

/// A point in time in seconds, or in milliseconds if it is too large for those.
fn epoch(number: f64) -> Expiry {
    let seconds = if number >= LEAST_EPOCH_MILLISECONDS {
        number / 1_000.0
    } else {
        number
    };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
        .map_or(Expiry::Unknown, Expiry::At)
}

/// 2001: no lifetime is that long, no token endpoint that old.
const LEAST_EPOCH_SECONDS: f64 = 1e9;
/// As seconds this is in the year 5138.
const LEAST_EPOCH_MILLISECONDS: f64 = 1e11;

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(body: &str) -> TokenResponse {
        read(StatusCode::OK, body.as_bytes()).unwrap()
    }

    fn failed(status: u16, body: &str) -> ProviderErrorKind {
        read(StatusCode::from_u16(status).unwrap(), body.as_bytes())
            .unwrap_err()
            .kind()
    }

    #[test]
    fn expiry_is_read_in_every_unit_and_never_invented() {
        let after = |seconds: f64| Expiry::After(Duration::from_secs_f64(seconds));
        let at = |seconds| Expiry::At(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        for (member, want) in [
            (r#""expires_in":3600"#, after(3600.0)),
            (r#""expires_in":"3600""#, after(3600.0)),
            (r#""expires_in":" 3600 ""#, after(3600.0)),
            (r#""expires_in":3599.5"#, after(3599.5)),
            (r#""expiresIn":60"#, after(60.0)),
            (r#""expires_in":1800000000"#, at(1_800_000_000)),
            (r#""expires_in":1800000000000"#, at(1_800_000_000)),
            (r#""expires_at":1800000000"#, at(1_800_000_000)),
            (r#""expires_at":"1800000000000""#, at(1_800_000_000)),
            (r#""expires_in":0"#, Expiry::Unknown),
            (r#""expires_in":-1"#, Expiry::Unknown),
            (r#""expires_in":null"#, Expiry::Unknown),
            (r#""expires_in":"soon""#, Expiry::Unknown),
            (r#""expires_in":"NaN""#, Expiry::Unknown),
            (r#""expires_in":[60]"#, Expiry::Unknown),
            (r#""expires_in":1e300"#, Expiry::Unknown),
            (r#""token_type":"x""#, Expiry::Unknown),
        ] {
            let response = ok(&format!(r#"{{"access_token":"a",{member}}}"#));
            assert_eq!(response.expiry, want, "{member}");
        }
    }

    #[test]
    fn tokens_are_found_in_either_spelling_and_encoding() {
        for body in [
            r#"{"access_token":"a","refresh_token":"r"}"#,
            r#"{"accessToken":"a","refreshToken":"r"}"#,
            r#"{"access_token":" a\n","refresh_token":"r\n"}"#,
            "access_token=a&refresh_token=r",
        ] {
            let response = ok(body);
            assert_eq!(response.access_token.expose(), "a");
            assert_eq!(response.refresh_token.unwrap().expose(), "r");
        }
    }

    #[test]
    fn an_omitted_refresh_token_is_none_not_blank() {
        for body in [
            r#"{"access_token":"a"}"#,
            r#"{"access_token":"a","refresh_token":""}"#,
            r#"{"access_token":"a","refresh_token":null}"#,
        ] {
            assert!(ok(body).refresh_token.is_none(), "{body}");
        }
    }

    #[test]
    fn only_a_refusal_by_invalid_grant_ends_a_login() {
        use ProviderErrorKind::Ambiguous;
        use ProviderErrorKind::Misconfigured;
        use ProviderErrorKind::Terminal;
        use ProviderErrorKind::Transient;

        for (status, body, want) in [
            (400, r#"{"error":"invalid_grant"}"#, Terminal),
            (401, r#"{"error":"invalid_grant"}"#, Terminal),
            (403, r#"{"error":"invalid_grant"}"#, Terminal),
            (200, r#"{"error":"invalid_grant"}"#, Terminal),
            (500, r#"{"error":"invalid_grant"}"#, Transient),
            (429, r#"{"error":"invalid_grant"}"#, Transient),
            (404, r#"{"error":"invalid_grant"}"#, Transient),
            (401, r#"{"error":"invalid_client"}"#, Misconfigured),
            (400, r#"{"error":"unauthorized_client"}"#, Misconfigured),
            (503, r#"{"error":"invalid_client"}"#, Transient),
            (400, r#"{"error":"something_new"}"#, Transient),
            (400, "<html>Bad Request</html>", Transient),
            (401, "", Transient),
            (302, "", Transient),
            (429, "", Transient),
            (502, "<html></html>", Transient),
            (200, "<html>maintenance=1</html>", Ambiguous),
            (200, r#"{"access_tok"#, Ambiguous),
            (200, "[]", Ambiguous),
        ] {
            assert_eq!(failed(status, body), want, "{status} {body}");
        }
    }
}
