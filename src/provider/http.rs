//! One HTTP exchange, and what is known when it fails: whether anything was
//! sent, and whether there was an answer.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::ClientBuilder;
use reqwest::RequestBuilder;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::dns::Resolve;
use reqwest::header::DATE;
use reqwest::header::HeaderMap;
use reqwest::header::RETRY_AFTER;
use reqwest::redirect;
use reqwest::retry;
use zeroize::Zeroizing;

use super::ProviderError;
use super::ProviderErrorKind;
use super::resolver::PublicOnly;
use crate::BoxError;
use crate::clock::Clock as _;
use crate::clock::SystemClock;
use crate::error::ConfigError;

/// An answer as far as it came. The status is known even if the body is not.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Body,
}

/// What came of a body, and why that may not be all.
pub(super) struct Body {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) broken: Option<BoxError>,
}

/// Sends a request once.
pub(super) async fn send(request: RequestBuilder) -> Result<Answer, ProviderError> {
    let response = request.send().await.map_err(transport_error)?;
    Ok(Answer {
        status: response.status(),
        retry_after: retry_after(response.headers()),
        body: collect(response, RESPONSE_LIMIT).await,
    })
}

/// The body, as far as it comes and is of a sensible size.
pub(super) async fn collect(mut response: Response, limit: usize) -> Body {
    let mut bytes = Zeroizing::new(Vec::new());
    let broken: Option<BoxError> = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => break None,
            Err(error) => break Some(error.without_url().into()),
        }
        if bytes.len() > limit {
            // How much more of it is here is chance.
            bytes.clear();
            break Some(format!("an answer of more than {limit} bytes").into());
        }
    };
    Body { bytes, broken }
}

/// What the gateway's client settings may not change. A connection is kept for
/// the next request no longer than `idle`.
pub(super) fn client(
    start: Option<ClientBuilder>,
    timeout: Duration,
    idle: Duration,
    resolver: Option<Arc<dyn Resolve>>,
    reach: Reach,
) -> Result<Client, ConfigError> {
    let mut builder = start
        .unwrap_or_else(|| Client::builder().user_agent(USER_AGENT))
        // They would hand the secrets to whoever the redirect names.
        .redirect(redirect::Policy::none())
        // A request that was sent must not be sent again by the client.
        .retry(retry::never())
        // It would log every byte that is sent.
        .connection_verbose(false)
        .pool_idle_timeout(idle)
        // Before the other one, which cannot tell that nothing was sent.
        .connect_timeout(CONNECT_TIMEOUT.min(timeout / 2))
        .timeout(timeout);
    if reach.is_this_machine {
        // Plain http is accepted because it does not leave this machine; by a
        // proxy it would.
        builder = builder.no_proxy();
    }
    if !reach.tenant_domains.is_empty() {
        builder = builder.dns_resolver(PublicOnly::new(resolver, reach.tenant_domains));
    } else if let Some(resolver) = resolver {
        builder = builder.dns_resolver(resolver);
    }
    builder
        .build()
        .map_err(|error| ConfigError::new("HTTP client", "cannot be set up").caused_by(error))
}

/// Where the endpoints of a client are.
pub(super) struct Reach {
    /// One of them is spoken to in plain http, or tells more of them from this
    /// machine.
    pub(super) is_this_machine: bool,
    /// The domains under which tenants choose hosts.
    pub(super) tenant_domains: Vec<String>,
}

fn transport_error(error: reqwest::Error) -> ProviderError {
    let kind = if error.is_connect() {
        // No address, no connection, no TLS: nothing was sent.
        ProviderErrorKind::Transient
    } else if error.is_builder() {
        ProviderErrorKind::Misconfigured
    } else {
        ProviderErrorKind::Ambiguous
    };
    // The URL may hold what an operator put into its query.
    ProviderError::from(kind).with_source(error.without_url())
}

/// `Retry-After` in either form (RFC 9110 §10.2.3). A date is measured against
/// the server's own clock, if it says what that shows.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let value = text(RETRY_AFTER)?;
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than a number holds is very long, and not nothing at all.
        let seconds = value.parse().map_or(LONGEST, Duration::from_secs);
        return Some(seconds.min(LONGEST));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    let now = now.unwrap_or_else(|| SystemClock.now());
    until.duration_since(now).ok()
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Some answers hold the rights of a user one by one. A larger one costs a login.
const RESPONSE_LIMIT: usize = 1024 * 1024;
/// Who waits decides how much of it; this only fits every clock.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);
pub(super) const USER_AGENT: &str = concat!("regrant/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date_and_garbage_is_ignored() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (value, date, want) in [
            ("120", "", Some(120)),
            (" 0 ", "", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", date, Some(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", date, Some(30)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", date, None),
            // By the system clock it is long past.
            ("Sun, 06 Nov 1994 08:50:07 GMT", "", None),
            ("Sun, 06 Nov 1994 08:50:07 GMT", "yesterday", None),
            ("-1", date, None),
            ("1.5", date, None),
            ("99999999999999999999", date, Some(LONGEST.as_secs())),
            ("18446744073709551615", date, Some(LONGEST.as_secs())),
            ("+1", date, None),
            ("soon", date, None),
            ("", date, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            if !date.is_empty() {
                headers.insert(DATE, date.parse().unwrap());
            }
            let want = want.map(Duration::from_secs);
            assert_eq!(retry_after(&headers), want, "{value} {date}");
        }
    }

    #[test]
    fn without_a_date_header_the_system_clock_counts() {
        let until = SystemClock.now() + Duration::from_secs(60);
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, httpdate::fmt_http_date(until).parse().unwrap());

        let after = retry_after(&headers).unwrap();

        assert!(after > Duration::from_secs(30) && after <= Duration::from_secs(60));
    }
}
