//! Hosts and origins: what a credential is bound to, and how a redirect is understood.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use serde::{Deserialize, Serialize};

/// A host, perhaps with a port: `registry.example`, `10.0.0.1:5000`, `[::1]:5000`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryHost {
    /// In lower case; an IPv6 address in brackets.
    name: String,
    port: Option<u16>,
}

/// A string that is no host with or without a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form HOST or HOST:PORT")]
pub struct InvalidHost(String);

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    tls: bool,
    host: String,
    port: u16,
}

/// Something to request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub origin: Origin,
    pub path: PathAndQuery,
}

const HTTP: u16 = 80;
const HTTPS: u16 = 443;

impl RegistryHost {
    /// The registry of the images that name no domain.
    pub(super) fn docker() -> Self {
        Self {
            name: "registry-1.docker.io".into(),
            port: None,
        }
    }

    /// Without the port.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.name == "localhost" || address(&self.name).is_some_and(|address| address.is_loopback())
    }
}

impl FromStr for RegistryHost {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = || InvalidHost(text.chars().take(100).collect());
        let authority: Authority = text.parse().map_err(|_| invalid())?;
        let name = authority.host().to_ascii_lowercase();
        let port = authority.port_u16();
        let given_port = text.len() > name.len();
        if text.contains('@') || name.is_empty() || given_port != port.is_some() {
            return Err(invalid());
        }
        Ok(Self { name, port })
    }
}

impl TryFrom<String> for RegistryHost {
    type Error = InvalidHost;

    fn try_from(text: String) -> Result<Self, InvalidHost> {
        text.parse()
    }
}

impl From<RegistryHost> for String {
    fn from(host: RegistryHost) -> Self {
        host.to_string()
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Origin {
    /// A host, over http or https, at the usual port unless it names one.
    #[must_use]
    pub fn of(host: RegistryHost, plain: bool) -> Self {
        let default = if plain { HTTP } else { HTTPS };
        Self {
            tls: !plain,
            port: host.port.unwrap_or(default),
            host: host.name,
        }
    }

    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// In lower case; an IPv6 address in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is this machine or its link: what nobody else may send a request to.
    pub(super) fn is_local(&self) -> bool {
        let name = self.host.trim_end_matches('.');
        if name == "localhost" || name.ends_with(".localhost") {
            return true;
        }
        match address(&self.host).map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => is_local_v4(address),
            Some(IpAddr::V6(address)) => is_local_v6(address),
            // The resolver takes numbers in other notations for addresses, too.
            None => name.rsplit('.').next().is_some_and(is_number),
        }
    }

    /// Whether both belong to whoever owns the domain: one host, or two below one registrable domain.
    pub(super) fn is_same_site(&self, other: &Self) -> bool {
        if self.host == other.host {
            return true;
        }
        let is_name = |origin: &Self| address(&origin.host).is_none() && !origin.is_local();
        if !is_name(self) || !is_name(other) {
            return false;
        }
        let (one, two) = (site(&self.host), site(&other.host));
        one.is_some() && one == two
    }

    /// The scheme, and the host with its port unless that is the scheme's.
    fn parts(&self) -> (&'static str, String) {
        let (scheme, default) = match self.tls {
            true => ("https", HTTPS),
            false => ("http", HTTP),
        };
        let authority = match self.port == default {
            true => self.host.clone(),
            false => format!("{}:{}", self.host, self.port),
        };
        (scheme, authority)
    }

    pub(super) fn target(&self, path: &str) -> Result<Target, http::uri::InvalidUri> {
        Ok(Target {
            origin: self.clone(),
            path: path.parse()?,
        })
    }

    /// What an absolute URL points to.
    pub(super) fn parse(url: &str) -> Result<Target, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "a malformed URL")?;
        let plain = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => false,
            Some(scheme) if *scheme == Scheme::HTTP => true,
            _ => return Err("a URL that is neither http nor https"),
        };
        let authority = uri.authority().ok_or("a URL without a host")?.as_str();
        let host = authority.parse().map_err(|_| "a malformed URL")?;
        let path = uri.path_and_query().cloned();
        Ok(Target {
            origin: Self::of(host, plain),
            path: path.unwrap_or(PathAndQuery::from_static("/")),
        })
    }
}

impl Target {
    /// What a redirect from here points to.
    pub(super) fn join(&self, location: &str) -> Result<Self, &'static str> {
        if location.starts_with('/') && !location.starts_with("//") {
            let path = location.parse().map_err(|_| "a malformed URL")?;
            let origin = self.origin.clone();
            return Ok(Self { origin, path });
        }
        // The fragment is for whoever reads the answer.
        let url = location.split('#').next().unwrap_or_default();
        Origin::parse(url)
    }

    pub(super) fn uri(&self) -> Result<Uri, http::Error> {
        // As it is shown: a URL that is signed is signed with a host that has no needless port.
        let (scheme, authority) = self.origin.parts();
        Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query(self.path.clone())
            .build()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, authority) = self.parts();
        write!(f, "{scheme}://{authority}")
    }
}

fn address(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    inner.unwrap_or(host).parse().ok()
}

fn is_local_v4(address: Ipv4Addr) -> bool {
    address.is_loopback() || address.is_link_local() || address.octets()[0] == 0
}

fn is_local_v6(address: Ipv6Addr) -> bool {
    address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified()
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").unwrap_or("x");
    let of = |digits: &str, radix| digits.chars().all(|c| c.is_digit(radix));
    !label.is_empty() && (of(label, 10) || of(hex, 16))
}

/// The registrable domain of a name, as well as one can tell without a list: two labels, or three below a country's
/// second level such as co.uk.
fn site(name: &str) -> Option<&str> {
    let name = name.trim_end_matches('.');
    let mut dots = name.rmatch_indices('.').map(|(at, _)| at);
    let top = dots.next()?;
    let second = dots.next();
    let label = &name[second.map_or(0, |dot| dot + 1)..top];
    let is_category = name.len() - top == 3 && label.len() <= 3;
    match (second, is_category) {
        (None, true) => None,
        (None, false) => Some(name),
        (Some(second), false) => Some(&name[second + 1..]),
        (Some(_), true) => Some(&name[dots.next().map_or(0, |dot| dot + 1)..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::parse(url).unwrap().origin
    }

    #[test]
    fn hosts_have_a_name_and_perhaps_a_port() {
        for (text, name, port, loopback) in [
            ("localhost", "localhost", None, true),
            ("LOCALHOST:5000", "localhost", Some(5000), true),
            ("127.3.0.1:5000", "127.3.0.1", Some(5000), true),
            ("[::1]:5000", "[::1]", Some(5000), true),
            ("10.0.0.1", "10.0.0.1", None, false),
            ("a.example:80", "a.example", Some(80), false),
            ("localhost.example", "localhost.example", None, false),
        ] {
            let host: RegistryHost = text.parse().unwrap();
            assert_eq!((host.name(), host.port), (name, port));
            assert_eq!(host.is_loopback(), loopback, "{text}");
            assert_eq!(host.to_string(), text.to_lowercase());
        }
        for bad in [
            "", ":5000", "a:", "a:b", "a:70000", "a/b", "u@a", "http://a", "a b",
        ] {
            assert!(bad.parse::<RegistryHost>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn redirects_are_joined() {
        let from = Origin::parse("https://a.example/v2/x?y=1").unwrap();
        let join = |location: &str| {
            let target = from.join(location).unwrap();
            target.uri().unwrap().to_string()
        };
        assert_eq!(join("/b?c=d"), "https://a.example/b?c=d");
        assert_eq!(join("https://b.example/c#d"), "https://b.example/c");
        assert_eq!(join("http://[::1]:99"), "http://[::1]:99/");
        for bad in [
            "",
            "b",
            "//b.example/c",
            "ftp://b.example/",
            "https://u:p@b.example/",
            "https:///c",
        ] {
            assert!(from.join(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_local_is_told_in_every_notation() {
        for local in [
            "http://localhost",
            "https://127.0.0.1:1",
            "http://[::1]",
            "http://169.254.169.254",
            "http://[fe80::1]",
            "http://0.0.0.0",
            "http://[::ffff:127.0.0.1]",
            "http://2130706433",
            "http://0x7f000001",
            "http://127.1",
            "http://a.localhost",
            "http://[::]",
        ] {
            assert!(origin(local).is_local(), "{local}");
        }
        for far in [
            "http://10.0.0.1",
            "https://a.example",
            "http://[2001:db8::1]",
            "http://0x.example",
        ] {
            assert!(!origin(far).is_local(), "{far}");
        }
    }

    #[test]
    fn a_site_is_what_one_owner_has() {
        for (one, two, same) in [
            ("https://registry.a.example", "https://auth.a.example", true),
            ("https://a.example", "https://auth.a.example:99", true),
            ("https://a.example", "https://b.example", false),
            ("https://a.co.uk", "https://b.co.uk", false),
            ("https://r.a.co.uk", "https://t.a.co.uk", true),
            ("https://a.io", "https://auth.a.io", false),
            ("https://abcd.io", "https://auth.abcd.io", true),
            ("https://registry", "https://auth", false),
            ("http://127.0.0.1:1", "http://127.0.0.1:2", true),
            ("http://10.0.0.1", "http://10.0.0.2", false),
            ("http://127.0.0.1", "http://localhost", false),
        ] {
            assert_eq!(origin(one).is_same_site(&origin(two)), same, "{one} {two}");
        }
    }
}
