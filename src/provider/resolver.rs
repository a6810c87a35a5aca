//! Keeps hosts that a tenant chose out of the private network.
//!
//! `acme.idp.example` may be a name of the attacker's making that resolves to
//! the cloud's metadata service or to the database next door. The check is here,
//! on the addresses that are connected to, because a check beforehand could be
//! told another answer.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::ToSocketAddrs as _;
use std::sync::Arc;

use reqwest::dns::Addrs;
use reqwest::dns::Name;
use reqwest::dns::Resolve;
use reqwest::dns::Resolving;

/// Resolves names in these domains to public addresses only. Other names, such
/// as that of a proxy, are the operator's own and may lead anywhere.
pub(super) struct PublicOnly {
    inner: Arc<dyn Resolve>,
    domains: Vec<String>,
}

impl PublicOnly {
    /// Asks `inner`, or the operating system if there is none.
    pub(super) fn new(inner: Option<Arc<dyn Resolve>>, domains: Vec<String>) -> Self {
        Self {
            inner: inner.unwrap_or_else(|| Arc::new(System)),
            domains,
        }
    }

    fn guards(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let mut domains = self.domains.iter();
        domains.any(|domain| {
            let label = name.strip_suffix(domain.as_str());
            label.is_some_and(|label| label.ends_with('.'))
        })
    }
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let is_guarded = self.guards(name.as_str());
        let resolving = self.inner.resolve(name);
        if !is_guarded {
            return resolving;
        }
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = resolving.await?.collect();
            // One private address among public ones is no accident either.
            if !addresses.iter().all(|address| is_public(address.ip())) {
                return Err(NotPublic.into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The resolver of the operating system.
struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let resolving = move || (name.as_str(), 0).to_socket_addrs();
            let addresses = tokio::task::spawn_blocking(resolving).await??;
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

/// Why a host was not connected to. Which address it was is not told: it would
/// let a tenant map the network by its error messages.
#[derive(Debug)]
struct NotPublic;

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host is not on the public internet")
    }
}

impl Error for NotPublic {}

/// Whether the address is of the public internet, by the IANA registries of
/// special-purpose addresses (RFC 6890).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let is_special = address.is_private()
        || address.is_loopback()
        // 169.254.169.254 is the metadata service of most clouds.
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation();
    !is_special
        && match address.octets() {
            // RFC 6598 is for carriers, and for a metadata service
            // (100.100.100.200); the last one is another, on a public address.
            [0 | 240..=255, ..]
            | [192, 0, 0, _]
            | [198, 18..=19, ..]
            | [100, 64..=127, ..]
            | [168, 63, 129, 16] => false,
            _ => true,
        }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Those that carry an IPv4 address: mapped, NAT64 and 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => {
            let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
            is_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        // Teredo, ORCHID, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // All that was ever given out (RFC 4291 §2.4). The rest is loopback,
        // unspecified, unique local, link local, multicast or of the future.
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Says(&'static [&'static str]);

    impl Resolve for Says {
        fn resolve(&self, _name: Name) -> Resolving {
            let says = self.0.iter();
            let addresses: Vec<SocketAddr> = says
                .map(|ip| SocketAddr::new(ip.parse().unwrap(), 443))
                .collect();
            Box::pin(async move { Ok(Box::new(addresses.into_iter()) as Addrs) })
        }
    }

    #[tokio::test]
    async fn a_tenants_name_with_any_private_address_is_refused_and_no_other() {
        for (addresses, want) in [
            (&["93.184.216.34"][..], true),
            (&["93.184.216.34", "2606:2800:220:1::1"], true),
            (&["93.184.216.34", "10.0.0.1"], false),
            (&["127.0.0.1"], false),
        ] {
            let domains = vec!["zendesk.com".to_owned(), "idp.example".to_owned()];
            let guard = PublicOnly::new(Some(Arc::new(Says(addresses))), domains);
            for name in ["acme.idp.example", "ACME.idp.example", "acme.idp.example."] {
                let answer = guard.resolve(name.parse().unwrap()).await;
                assert_eq!(answer.is_ok(), want, "{name} {addresses:?}");
            }
            for name in ["proxy.internal", "idp.example", "evil-idp.example"] {
                let answer = guard.resolve(name.parse().unwrap()).await;
                assert!(answer.is_ok(), "{name} is no tenant's: {addresses:?}");
            }
        }
    }

    #[test]
    fn only_addresses_of_the_public_internet_pass() {
        for (address, want) in [
            ("8.8.8.8", true),
            ("93.184.216.34", true),
            ("100.63.255.255", true),
            ("100.128.0.1", true),
            ("172.32.0.1", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.100.100.200", false),
            ("127.0.0.1", false),
            ("168.63.129.16", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("192.0.0.192", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("203.0.113.1", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700:4700::1111", true),
            ("2002:808:808::1", true),
            ("64:ff9b::8.8.8.8", true),
            ("::ffff:8.8.8.8", true),
            ("::", false),
            ("::1", false),
            ("::127.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("64:ff9b::10.0.0.1", false),
            ("64:ff9b:1::1", false),
            ("2002:7f00:1::1", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), want, "{address}");
        }
    }
}
