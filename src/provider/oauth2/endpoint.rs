//! Endpoints, with a place for the user's tenant where each has its own.
//!
//! A tenant comes from outside, often from the user, and decides where secrets
//! are sent. So it is one DNS label, it may stand in one place only, and what
//! follows it in a host is written by the operator.

use reqwest::Url;

use super::super::ProviderError;
use super::super::ProviderErrorKind;
use super::super::url;
use super::super::url::shown;
use crate::error::ConfigError;

/// The URL of an endpoint, or the template of one.
#[derive(Clone)]
pub(super) enum Endpoint {
    Fixed(Url),
    Template { before: String, after: String },
}

impl Endpoint {
    /// A URL, in which [`PLACEHOLDER`] may be the leftmost label of the host or
    /// a segment of the path.
    pub(super) fn parse(setting: &'static str, text: &str) -> Result<Self, ConfigError> {
        let Some((before, after)) = text.split_once(PLACEHOLDER) else {
            return Ok(Self::Fixed(safe_url(setting, text)?));
        };
        let refused = |reason| Err(ConfigError::new(setting, reason));
        let url = safe_url(setting, &format!("{before}tenant{after}"))?;
        if before == "https://" {
            // `https://{tenant}.com` would be anybody's host, and so would
            // `https://{tenant}.co:8443@evil.example` but for `safe_url`.
            let suffix = after.strip_prefix('.').unwrap_or_default();
            let suffix = suffix.split(['/', '?', '#']).next().unwrap_or_default();
            let labels = suffix.split('.');
            if suffix.split('.').count() < 2
                || !labels.into_iter().all(is_label)
                || url.host_str() != Some(&*format!("tenant.{suffix}"))
            {
                return refused("needs a domain of the provider's own after `{tenant}.`");
            }
        } else {
            let is_in_path = url.path_segments().is_some_and(|mut segments| {
                before.ends_with('/') && segments.any(|segment| segment == "tenant")
            });
            let is_whole = after.is_empty() || after.starts_with(['/', '?']);
            let in_query = before.contains(['?', '#']);
            let in_authority = before.split('/').count() < 4;
            if !is_in_path || !is_whole || in_query || in_authority {
                return refused(
                    "may have `{tenant}` as the first label of an https host, or as a segment of the path",
                );
            }
        }
        Ok(Self::Template {
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    /// Where to send requests of this tenant.
    ///
    /// A tenant that does not fit is no reason to stop asking for all others:
    /// whoever can choose a tenant could then stop the provider for everybody.
    pub(super) fn url(&self, tenant: Option<&str>) -> Result<Url, ProviderError> {
        let (before, after) = match self {
            Self::Fixed(url) => return Ok(url.clone()),
            Self::Template { before, after } => (before, after),
        };
        let refused = |reason| ProviderError::from(ProviderErrorKind::Rejected).with_source(reason);
        let tenant = tenant.ok_or_else(|| refused("the credential has no tenant"))?;
        if !is_label(tenant) {
            return Err(refused("the tenant is not a DNS label in lower case"));
        }
        Url::parse(&format!("{before}{tenant}{after}"))
            .map_err(|error| ProviderError::from(ProviderErrorKind::Rejected).with_source(error))
    }

    /// The domain in which the tenant decides which host is asked.
    pub(super) fn tenant_domain(&self) -> Option<&str> {
        match self {
            Self::Template { before, after } if before == "https://" => {
                after.strip_prefix('.')?.split(['/', '?']).next()
            }
            Self::Template { .. } | Self::Fixed(_) => None,
        }
    }

    /// Whether it is spoken to in clear, which is accepted on this machine only.
    pub(super) fn is_plain(&self) -> bool {
        match self {
            Self::Fixed(url) => url.scheme() == "http",
            Self::Template { before, .. } => before.starts_with("http://"),
        }
    }

    /// Whether both are of one server, whatever the tenant.
    pub(super) fn has_origin_of(&self, other: &Self) -> bool {
        match (self.url(Some("tenant")), other.url(Some("tenant"))) {
            (Ok(this), Ok(other)) => this.origin() == other.origin(),
            (Ok(_) | Err(_), _) => false,
        }
    }

    /// As it was written, but for what `shown` leaves out.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Fixed(url) => shown(url.as_str()),
            Self::Template { before, after } => shown(&format!("{before}{PLACEHOLDER}{after}")),
        }
    }
}

/// The endpoints of a provider, as far as they are known.
pub(super) struct Endpoints {
    pub(super) token: Option<Endpoint>,
    pub(super) refresh: Option<Endpoint>,
    pub(super) revocation: Option<Endpoint>,
}

impl Endpoints {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        [&self.token, &self.refresh, &self.revocation]
            .into_iter()
            .flatten()
    }
}

/// A URL to which secrets may be sent, without somebody else's placeholder.
pub(super) fn safe_url(setting: &'static str, text: &str) -> Result<Url, ConfigError> {
    let url = url::safe_url(setting, text)?;
    if text.contains(['{', '}']) {
        // A host may be spelled so, and somebody else's placeholder would be.
        return Err(ConfigError::new(
            setting,
            "must have no braces but those of one `{tenant}`",
        ));
    }
    Ok(url)
}

/// `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?` (RFC 1123 §2.1): no dots, no port, no
/// user name, no percent, nothing that a URL parser would read otherwise.
fn is_label(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(is_alphanumeric)
        && bytes.last().is_some_and(is_alphanumeric)
        && bytes
            .iter()
            .all(|byte| is_alphanumeric(byte) || *byte == b'-')
}

pub(super) const PLACEHOLDER: &str = "{tenant}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_accepted_to_loopback_only() {
        for (url, want) in [
            ("https://idp.example/token", true),
            ("https://idp.example/token?v=2", true),
            ("http://127.0.0.1:9/token", true),
            ("http://localhost/token", true),
            ("http://[::1]:9/token", true),
            ("http://idp.example/token", false),
            ("http://127.0.0.1.example/token", false),
            ("http://10.0.0.1/token", false),
            ("ftp://127.0.0.1/token", false),
            ("https://user@idp.example/token", false),
            ("https://idp.example/token#here", false),
            ("https://{shop}.idp.example/token", false),
            ("https://idp.example/{realm}/token", false),
            ("not a url", false),
        ] {
            let parsed = Endpoint::parse("token endpoint", url);
            assert_eq!(parsed.is_ok(), want, "{url}");
        }
    }

    #[test]
    fn a_tenant_may_stand_in_few_places() {
        for (template, want) in [
            ("https://{tenant}.zendesk.com/oauth/tokens", true),
            ("https://{tenant}.my.salesforce.com/token", true),
            ("https://idp.example/{tenant}/oauth2/v2.0/token", true),
            ("https://idp.example/{tenant}", true),
            ("http://127.0.0.1:9/{tenant}/token", true),
            ("https://{tenant}/token", false),
            ("https://{tenant}.com/token", false),
            ("https://{tenant}./token", false),
            ("https://{tenant}.1.1/token", false),
            ("https://{tenant}.0.0.1/token", false),
            ("https://{tenant}evil.example/token", false),
            ("https://{tenant}.zendesk.com:8443/token", false),
            ("https://{tenant}@idp.example/token", false),
            ("https://{tenant}.zendesk.com@idp.example/t", false),
            ("https://sso-{tenant}.idp.example/token", false),
            ("https://sso.{tenant}.example/token", false),
            ("https://idp.example:{tenant}/token", false),
            ("http://{tenant}.idp.example/token", false),
            ("https://idp.example/a{tenant}/token", false),
            ("https://idp.example/{tenant}.json", false),
            ("https://idp.example/token?t={tenant}", false),
            ("https://idp.example/token?t=/{tenant}/", false),
            ("https://idp.example/#/{tenant}/", false),
            ("https://{tenant}.idp.example/{tenant}", false),
            ("https://{tenant}.idp.example/{other}", false),
            ("{tenant}", false),
        ] {
            let parsed = Endpoint::parse("token endpoint", template);
            assert_eq!(parsed.is_ok(), want, "{template}");
        }
    }

    #[test]
    fn a_tenant_is_one_dns_label() {
        let template = Endpoint::parse("token endpoint", "https://{tenant}.zendesk.com/t").unwrap();
        let longest = "a".repeat(63);
        for tenant in ["acme", "a", "7", "acme-2", "a--b", &longest] {
            let url = template.url(Some(tenant)).unwrap();
            assert_eq!(
                url.host_str(),
                Some(&*format!("{tenant}.zendesk.com")),
                "{tenant}"
            );
        }
        let too_long = "a".repeat(64);
        for tenant in [
            "", "-a", "a-", "A", "a.b", "a_b", "a/b", "a?b", "a#b", "a:1", "u@a", "a%2e", "%61",
            "a b", " a", "a\n", "a\\b", "é", "ａ", "а", "[::1]", &too_long,
        ] {
            let error = template.url(Some(tenant)).unwrap_err();
            assert_eq!(error.kind(), ProviderErrorKind::Rejected, "{tenant:?}");
        }
        assert!(template.url(None).is_err());
    }
}
