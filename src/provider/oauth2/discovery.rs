//! Endpoints from an authorization server's own metadata (RFC 8414, OpenID
//! Connect Discovery 1.0).
//!
//! The document decides where secrets go, so it counts only if it says that it
//! is of the very issuer that was asked for (RFC 8414 §3.3), came without a
//! redirect, and names endpoints as safe as the issuer itself.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::net::Ipv6Addr;

use reqwest::Client;
use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::ACCEPT;
use reqwest::header::ACCEPT_ENCODING;
use serde_json::Value;

use super::super::http::collect;
use super::super::resolver::is_public;
use super::super::url::is_loopback;
use super::OAuth2Provider;
use super::authentication::ClientAuthentication;
use super::builder::OAuth2ProviderBuilder;
use super::endpoint::Endpoint;
use super::endpoint::safe_url;
use crate::BoxError;
use crate::error::ConfigError;

impl OAuth2ProviderBuilder {
    /// The provider, with the endpoints that its authorization server tells. An
    /// endpoint that was set is kept.
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build); and if the server does not answer, no
    /// document is of this issuer, or it does not support the client
    /// authentication that was set.
    pub async fn build_discovered(mut self) -> Result<OAuth2Provider, DiscoveryError> {
        let issuer = self.issuer.take().ok_or_else(|| {
            ConfigError::new("issuer", "is not known: use `OAuth2Provider::discover`")
        })?;
        let url = safe_url("issuer", &issuer)?;
        if url.query().is_some() {
            // RFC 8414 §2.
            return Err(ConfigError::new("issuer", "must have no query").into());
        }
        let mut endpoints = self.parse_endpoints()?;
        // One on this machine may name endpoints here, in plain http.
        let http = self.client(&endpoints, is_loopback(&url))?;
        let metadata = find(&http, &issuer, &url).await?;
        check_authentication(&metadata, &self.authentication)?;
        if endpoints.token.is_none() {
            endpoints.token = endpoint(&metadata, &url, "token_endpoint", "token endpoint")?;
        }
        if endpoints.revocation.is_none() {
            let setting = "revocation endpoint";
            endpoints.revocation = endpoint(&metadata, &url, "revocation_endpoint", setting)?;
        }
        if endpoints.token.is_none() {
            return Err(ConfigError::new("token endpoint", "is not in the metadata").into());
        }
        // An issuer could name somebody else's token endpoint: an assertion for
        // that one is then in the hands of this one's revocation endpoint.
        Ok(self.assemble(http, endpoints, Some(issuer))?)
    }
}

/// Why a provider could not be discovered.
///
/// ```
/// use regrant::provider::oauth2::DiscoveryError;
/// use regrant::provider::oauth2::OAuth2Provider;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let builder = OAuth2Provider::discover("http://idp.example", "my-gateway");
/// let error = builder.build_discovered().await.unwrap_err();
/// assert!(matches!(error, DiscoveryError::Config(_)), "not https");
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// A setting, or what the metadata says about it, cannot work.
    Config(ConfigError),
    /// None of the well-known places has metadata of this issuer.
    NotFound {
        /// The issuer that was asked for.
        issuer: String,
        /// What came closest.
        source: BoxError,
    },
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(_) => f.write_str("the provider cannot be used as it is set up"),
            Self::NotFound { issuer, .. } => write!(f, "no metadata of the issuer {issuer}"),
        }
    }
}

impl Error for DiscoveryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::NotFound { source, .. } => Some(&**source),
        }
    }
}

impl From<ConfigError> for DiscoveryError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

async fn find(http: &Client, issuer: &str, url: &Url) -> Result<Value, DiscoveryError> {
    let mut closest: Option<BoxError> = None;
    for place in places(url) {
        match fetch(http, place, issuer).await {
            Ok(metadata) => return Ok(metadata),
            // A document that is there and wrong tells more than one that is not.
            Err(Miss::Absent(reason)) => closest = closest.or(Some(reason.into())),
            Err(Miss::Wrong(reason)) => closest = Some(reason),
        }
    }
    Err(DiscoveryError::NotFound {
        issuer: issuer.to_owned(),
        source: closest.unwrap_or_else(|| "nowhere to look".into()),
    })
}

/// `https://idp.example/a` has its metadata at
/// `/.well-known/oauth-authorization-server/a` (RFC 8414 §3.1), at
/// `/.well-known/openid-configuration/a` (§5), or at
/// `/a/.well-known/openid-configuration` (OpenID Connect Discovery §4.1).
fn places(issuer: &Url) -> impl Iterator<Item = Url> {
    let path = issuer.path().trim_end_matches('/').to_owned();
    let paths = [
        format!("/.well-known/oauth-authorization-server{path}"),
        format!("{path}/.well-known/openid-configuration"),
        format!("/.well-known/openid-configuration{path}"),
    ];
    let count = if path.is_empty() { 2 } else { 3 };
    let issuer = issuer.clone();
    paths.into_iter().take(count).map(move |path| {
        let mut url = issuer.clone();
        url.set_path(&path);
        url
    })
}

enum Miss {
    Absent(String),
    Wrong(BoxError),
}

async fn fetch(http: &Client, place: Url, issuer: &str) -> Result<Value, Miss> {
    let at = place.to_string();
    let wrong = |error: reqwest::Error| Miss::Wrong(error.into());
    let request = http
        .get(place)
        .header(ACCEPT, "application/json")
        .header(ACCEPT_ENCODING, "identity");
    let response = request.send().await.map_err(wrong)?;
    if response.status() != StatusCode::OK {
        return Err(Miss::Absent(format!("{at} answers {}", response.status())));
    }
    let body = collect(response, DOCUMENT_LIMIT).await;
    if let Some(error) = body.broken {
        return Err(Miss::Wrong(error));
    }
    let metadata: Value = serde_json::from_slice(&body.bytes)
        .map_err(|_not_json| Miss::Absent(format!("{at} is not JSON")))?;
    // RFC 8414 §3.3: byte for byte, or the document MUST NOT be used.
    match metadata.get("issuer").and_then(Value::as_str) {
        Some(found) if found == issuer => Ok(metadata),
        found => {
            let found: String = found.unwrap_or("nobody").chars().take(200).collect();
            let reason = format!("{at} is of the issuer {found:?}");
            Err(Miss::Wrong(reason.into()))
        }
    }
}

/// An endpoint of the document, as safe as the issuer: one on the internet has
/// nothing to say about this machine or its network.
fn endpoint(
    metadata: &Value,
    issuer: &Url,
    name: &str,
    setting: &'static str,
) -> Result<Option<Endpoint>, ConfigError> {
    let Some(text) = metadata.get(name).and_then(Value::as_str) else {
        return Ok(None);
    };
    let url = safe_url(setting, text)?;
    if distance(&url) < distance(issuer) {
        return Err(ConfigError::new(
            setting,
            "is on this machine or in its network, and the issuer is not",
        ));
    }
    Ok(Some(Endpoint::Fixed(url)))
}

#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Distance {
    Machine,
    Network,
    Internet,
}

/// How far away a host is, as far as its name tells.
fn distance(url: &Url) -> Distance {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    if host == "localhost" || host.ends_with(".localhost") {
        // RFC 6761 §6.3.
        return Distance::Machine;
    }
    let literal = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let address: Option<IpAddr> = match literal {
        // An IPv4 address may be dressed up as one.
        Some(literal) => literal.parse().ok().map(|ip: Ipv6Addr| ip.to_canonical()),
        None => host.parse().ok(),
    };
    match address {
        Some(ip) if ip.is_loopback() || ip.is_unspecified() => Distance::Machine,
        Some(ip) if !is_public(ip) => Distance::Network,
        Some(_) | None => Distance::Internet,
    }
}

/// RFC 8414 §2 has `client_secret_basic` for a document that does not say;
/// many that do not say accept more, so those are believed to.
fn check_authentication(
    metadata: &Value,
    authentication: &ClientAuthentication,
) -> Result<(), ConfigError> {
    let supports = |member: &str, wanted: &str| {
        let Some(supported) = metadata.get(member).and_then(Value::as_array) else {
            return Ok(());
        };
        let supported: Vec<&str> = supported.iter().filter_map(Value::as_str).collect();
        if supported.contains(&wanted) {
            return Ok(());
        }
        let supported = supported.join(", ");
        Err(ConfigError::new(
            "client authentication",
            format!("is {wanted}, and the provider supports {supported}"),
        ))
    };
    supports(
        "token_endpoint_auth_methods_supported",
        authentication.name(),
    )?;
    if let ClientAuthentication::PrivateKeyJwt(settings) = authentication {
        supports(
            "token_endpoint_auth_signing_alg_values_supported",
            settings.algorithm().name(),
        )?;
    }
    Ok(())
}

const DOCUMENT_LIMIT: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_issuer_names_no_endpoint_that_is_closer_than_itself() {
        for (issuer, url, want) in [
            ("https://idp.example", "https://login.idp.example/t", true),
            ("https://idp.example", "https://localhost/t", false),
            ("https://idp.example", "http://127.0.0.1/t", false),
            ("https://idp.example", "https://app.localhost/t", false),
            ("https://idp.example", "https://localhost./t", false),
            ("https://idp.example", "https://127.1/t", false),
            ("https://idp.example", "https://0.0.0.0/t", false),
            ("https://idp.example", "https://[::]/t", false),
            ("https://idp.example", "https://[::1]/t", false),
            ("https://idp.example", "https://[::ffff:127.0.0.1]/t", false),
            ("https://idp.example", "https://[::ffff:10.0.0.1]/t", false),
            ("https://idp.example", "https://10.0.0.1/t", false),
            ("https://idp.example", "https://169.254.169.254/t", false),
            ("https://idp.example", "https://[fd00:ec2::254]/t", false),
            ("https://idp.example", "https://[fe80::1]/t", false),
            ("https://idp.example", "https://8.8.8.8/t", true),
            ("https://idp.example", "https://localhost.example/t", true),
            ("https://10.0.0.1", "https://10.0.0.2/t", true),
            ("https://10.0.0.1", "https://127.0.0.1/t", false),
            ("https://10.0.0.1", "https://[::ffff:127.0.0.1]/t", false),
            ("http://127.0.0.1", "http://127.0.0.1/t", true),
            ("http://127.0.0.1", "https://idp.example/t", true),
            ("http://127.0.0.1", "http://idp.example/t", false),
        ] {
            let metadata = json!({"token_endpoint": url});
            let issuer = Url::parse(issuer).unwrap();
            let found = endpoint(&metadata, &issuer, "token_endpoint", "token endpoint");
            assert_eq!(found.is_ok(), want, "{url}");
        }
    }
}
