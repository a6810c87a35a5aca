//! Rate limits, told apart from refusals.
//!
//! GitHub answers 403 to both ("Rate limits for the REST API"): with
//! `X-RateLimit-Remaining: 0` where the quota of the hour is used up, with or
//! without `Retry-After` where a secondary limit was met. Read as a refusal, a
//! busy hour would look like a user without rights.

use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use reqwest::StatusCode;
use reqwest::header::DATE;
use reqwest::header::HeaderMap;
use reqwest::header::RETRY_AFTER;
use serde_json::Value;

use super::super::http::LONGEST;
use super::super::http::retry_after;
use crate::sync::lock;

/// How long to leave GitHub alone, if this answer is of a rate limit.
pub(super) fn limit(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> Option<Duration> {
    let is_used_up = text(headers, "x-ratelimit-remaining") == Some("0");
    let is_limited = match status {
        StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::FORBIDDEN => {
            headers.contains_key(RETRY_AFTER) || is_used_up || tells_of_a_limit(body)
        }
        _ => false,
    };
    if !is_limited {
        return None;
    }
    let until_reset = || {
        let reset = text(headers, "x-ratelimit-reset")?;
        let reset = Duration::from_secs(reset.parse().ok()?);
        // By GitHub's own clock, where the answer says what that shows.
        let now = text(headers, DATE.as_str())
            .and_then(|date| httpdate::parse_http_date(date).ok())
            .unwrap_or(now);
        let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(reset.saturating_sub(now).min(LONGEST))
    };
    let after = retry_after(headers).or_else(|| is_used_up.then(until_reset).flatten());
    Some(after.unwrap_or(UNTOLD))
}

/// The limit that the App has met. It is the App's, whichever installation it was
/// asked for, and asking on while it lasts makes it worse.
#[derive(Default)]
pub(super) struct Limit(Mutex<Option<SystemTime>>);

impl Limit {
    pub(super) fn meet(&self, wait: Option<Duration>, now: SystemTime) {
        let until = now.checked_add(wait.unwrap_or(UNTOLD).min(LONGEST_LIMIT));
        let mut known = lock(&self.0);
        *known = until.max(*known);
    }

    /// How long it lasts yet. Further away than anybody sets it, a clock was set
    /// back.
    pub(super) fn remaining(&self, now: SystemTime) -> Option<Duration> {
        let wait = (*lock(&self.0))?.duration_since(now).ok()?;
        (!wait.is_zero() && wait <= LONGEST_LIMIT).then_some(wait)
    }
}

/// A message of GitHub's: what its API has in every error, and few others have.
pub(super) fn message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body.get("message")?.as_str()?.to_owned())
}

fn tells_of_a_limit(body: &[u8]) -> bool {
    let message = message(body).unwrap_or_default().to_ascii_lowercase();
    ["rate limit", "abuse"]
        .iter()
        .any(|words| message.contains(words))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// "Otherwise, wait for at least one minute before retrying."
const UNTOLD: Duration = Duration::from_secs(60);
/// The quota is one of an hour.
const LONGEST_LIMIT: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderName;

    use super::*;

    type Row<'a> = (u16, &'a [(&'a str, &'a str)], &'a str, Option<u64>);

    #[test]
    fn a_limit_is_told_from_a_refusal_and_how_long_it_lasts() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let later = "1800000100";
        // Ten seconds before `now`.
        let date = "Fri, 15 Jan 2027 07:59:50 GMT";
        let secondary = r#"{"message":"You have exceeded a secondary rate limit."}"#;
        let abuse = r#"{"message":"You have triggered an abuse detection mechanism."}"#;
        let denial = r#"{"message":"Resource not accessible by integration"}"#;
        let (after, remaining, reset) =
            ("retry-after", "x-ratelimit-remaining", "x-ratelimit-reset");
        let rows: [Row<'_>; 20] = [
            (403, &[], denial, None),
            (403, &[], "rate limit", None),
            (403, &[(remaining, "1"), (reset, later)], denial, None),
            (403, &[(after, "7")], denial, Some(7)),
            (403, &[(after, "soon")], denial, Some(60)),
            (403, &[(remaining, "0"), (reset, later)], denial, Some(100)),
            (
                403,
                &[(remaining, "0"), (reset, later), ("date", date)],
                "",
                Some(110),
            ),
            (
                403,
                &[(remaining, "0"), (reset, later), ("date", "?")],
                "",
                Some(100),
            ),
            (
                403,
                &[(remaining, "0"), (reset, later), (after, "7")],
                "",
                Some(7),
            ),
            (403, &[(remaining, "0"), (reset, "1700000000")], "", Some(0)),
            (403, &[(remaining, "0"), (reset, "later")], "", Some(60)),
            (403, &[(remaining, "0")], "", Some(60)),
            (
                403,
                &[(remaining, "4"), (reset, later)],
                secondary,
                Some(60),
            ),
            (403, &[], abuse, Some(60)),
            (429, &[], "", Some(60)),
            (429, &[(after, "7")], "", Some(7)),
            (429, &[(remaining, "0"), (reset, later)], "", Some(100)),
            (404, &[(remaining, "0"), (after, "7")], secondary, None),
            (401, &[(remaining, "0"), (reset, later)], "", None),
            (200, &[(remaining, "0"), (reset, later)], "", None),
        ];
        for (status, headers, body, want) in rows {
            let row = format!("{status} {headers:?} {body}");
            let pairs = headers.iter().map(|(name, value)| {
                let name: HeaderName = name.parse().unwrap();
                (name, value.parse().unwrap())
            });
            let headers: HeaderMap = pairs.collect();
            let status = StatusCode::from_u16(status).unwrap();
            let told = limit(status, &headers, body.as_bytes(), now);
            assert_eq!(told, want.map(Duration::from_secs), "{row}");
        }
    }
}
