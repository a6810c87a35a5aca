//! Resource indicators (RFC 8707): URLs that name the same resource.

/// Whether two URLs name one resource: scheme and host in any case, with or
/// without the scheme's own port and a trailing slash.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    canonical(one) == canonical(other)
}

/// Whether a URL names something at or below `base`.
pub(crate) fn is_below(url: &str, base: &str) -> bool {
    canonical(url)
        .strip_prefix(&canonical(base))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether this is an http or https URL with a host and without a fragment.
pub(crate) fn is_absolute(url: &str) -> bool {
    !url.contains('#')
        && url.parse().is_ok_and(|uri: http::Uri| {
            uri.authority().is_some() && matches!(uri.scheme_str(), Some("http" | "https"))
        })
}

fn canonical(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let authority_end = url
        .find("://")
        .and_then(|scheme_end| {
            let after = scheme_end + 3;
            url.get(after..)?.find('/').map(|slash| after + slash)
        })
        .unwrap_or(url.len());
    let (authority, path) = url.split_at_checked(authority_end).unwrap_or((url, ""));

    let mut authority = authority.to_ascii_lowercase();
    for (scheme, port) in [("https://", ":443"), ("http://", ":80")] {
        if authority.starts_with(scheme) && authority.ends_with(port) {
            authority.truncate(authority.len() - port.len());
        }
    }
    authority + path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_of_the_host_and_a_trailing_slash_do_not_matter_but_the_path_does() {
        for (one, other, want) in [
            ("https://gw.example/mcp", "HTTPS://GW.example/mcp/", true),
            ("https://gw.example", "https://gw.example/", true),
            ("https://gw.example:443/mcp", "https://gw.example/mcp", true),
            ("https://gw.example:80/mcp", "https://gw.example/mcp", false),
            ("https://gw.example/mcp", "https://gw.example/MCP", false),
            ("https://gw.example/mcp", "https://gw.example/mcp2", false),
            ("https://gw.example/mcp", "http://gw.example/mcp", false),
            (
                "https://gw.example/mcp",
                "https://gw.example.evil/mcp",
                false,
            ),
            ("nonsense", "nonsense/", true),
        ] {
            assert_eq!(is_same(one, other), want, "{one} {other}");
        }
    }

    #[test]
    fn below_means_the_same_origin_and_whole_path_segments() {
        for (url, want) in [
            ("https://gw.example", true),
            ("https://GW.example/mcp/", true),
            ("https://gw.example.evil/mcp", false),
            ("https://gw.example:444/mcp", false),
        ] {
            assert_eq!(is_below(url, "https://gw.example/"), want, "{url}");
        }
    }
}
