//! URLs to which secrets are sent, and how they are shown.

use std::net::Ipv4Addr;

use reqwest::Url;

use crate::error::ConfigError;

/// A URL to which secrets may be sent: `https`, or `http` that does not leave
/// this machine; no user name in it, which would become an `Authorization`
/// header, and no fragment (RFC 6749 §3.2).
pub(super) fn safe_url(setting: &'static str, text: &str) -> Result<Url, ConfigError> {
    let url = Url::parse(text)
        .map_err(|error| ConfigError::new(setting, "is not a URL").caused_by(error))?;
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
        return Err(ConfigError::new(
            setting,
            "must be https (plain http is accepted to loopback only)",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(ConfigError::new(
            setting,
            "must have no user name, password or fragment",
        ));
    }
    Ok(url)
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

/// A URL for logs: operators put keys into queries, and passwords before hosts.
pub(super) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (_user, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
            format!("{scheme}://{rest}")
        }
        None => url.to_owned(),
    }
}
