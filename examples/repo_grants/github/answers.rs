//! How GitHub answers: errors, pages, times, and the headers of every answer.

use std::time::SystemTime;

use axum::Json;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::http::header::DATE;
use axum::http::header::HOST;
use axum::http::header::LINK;
use axum::response::IntoResponse;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;

use super::calls::Limit;

/// An answer that only says what is wrong.
#[derive(Clone, Copy)]
pub(super) struct Refusal(StatusCode, &'static str);

impl Refusal {
    pub(super) const NOT_FOUND: Self = Self(StatusCode::NOT_FOUND, "Not Found");

    pub(super) fn new(status: StatusCode, message: &'static str) -> Self {
        Self(status, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        error(self.0, self.1)
    }
}

pub(super) fn error(status: StatusCode, message: &str) -> Response {
    let body = json!({
        "message": message,
        "documentation_url": "https://docs.github.com/rest",
        "status": status.as_str(),
    });
    (status, Json(body)).into_response()
}

/// One page of a list, with the `Link` to the others
/// (<https://docs.github.com/en/rest/using-the-rest-api/using-pagination-in-the-rest-api>).
pub(super) fn page(uri: &Uri, headers: &HeaderMap, name: &str, items: &[Value]) -> Response {
    let asked = |name: &str| {
        let query = uri.query().unwrap_or_default();
        let value = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
        value.and_then(|(_, value)| value.parse().ok().filter(|number| *number > 0_usize))
    };
    let per_page = asked("per_page")
        .unwrap_or(DEFAULT_PER_PAGE)
        .min(MAX_PER_PAGE);
    let number = asked("page").unwrap_or(1);
    let last = items.len().div_ceil(per_page).max(1);
    let skipped = (number - 1).saturating_mul(per_page);
    let shown: Vec<_> = items.iter().skip(skipped).take(per_page).collect();
    let mut body = json!({ "total_count": items.len() });
    if let Some(body) = body.as_object_mut() {
        body.insert(name.to_owned(), json!(shown));
    }

    let host = super::text(headers, HOST.as_str()).unwrap_or("api.github.com");
    let link = |page: usize, relation: &str| {
        let path = uri.path();
        format!("<http://{host}{path}?per_page={per_page}&page={page}>; rel=\"{relation}\"")
    };
    let mut links = Vec::new();
    if number > 1 {
        links.push(link((number - 1).min(last), "prev"));
    }
    if number < last {
        links.push(link(number + 1, "next"));
        links.push(link(last, "last"));
    }
    if number > 1 {
        links.push(link(1, "first"));
    }
    let mut response = Json(body).into_response();
    if let (false, Ok(links)) = (links.is_empty(), HeaderValue::try_from(links.join(", "))) {
        response.headers_mut().insert(LINK, links);
    }
    response
}

/// The headers of every answer, but for those that a fault has set.
pub(super) fn stamp(headers: &mut HeaderMap, now: SystemTime, limit: &Limit) {
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
        headers.entry(DATE).or_insert(date);
    }
    for (name, value) in [
        ("x-ratelimit-limit", limit.total),
        ("x-ratelimit-remaining", limit.remaining),
        ("x-ratelimit-reset", limit.reset_at),
    ] {
        let name = HeaderName::from_static(name);
        headers.entry(name).or_insert(HeaderValue::from(value));
    }
}

/// Such as `2026-01-01T00:00:00Z`; fractions of a second are cut.
pub(super) fn iso_8601(time: SystemTime) -> String {
    let days = unix_seconds(time) / DAY;
    let seconds = unix_seconds(time) % DAY;
    // Howard Hinnant's `civil_from_days`: years begin in March, so that leap days
    // come last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

const DAY: u64 = 86_400;
const DEFAULT_PER_PAGE: usize = 30;
const MAX_PER_PAGE: usize = 100;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_iso_8601() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(iso_8601(time), want);
        }
    }
}
