//! Proxies: which one a request goes by, as the environment says, read as programs in Go read it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::origin::RegistryHost;

/// A proxy. Its `Debug` does not show the password.
#[derive(Clone)]
pub(super) struct Proxy {
    pub kind: Kind,
    /// Where it is, with no path: the scheme is that of the connection to it.
    pub uri: Uri,
}

/// How a proxy is spoken to, and who speaks.
#[derive(Clone)]
pub(super) enum Kind {
    /// By HTTP, over TLS if its URI says so.
    Http(Option<HeaderValue>),
    /// By SOCKS 5, with name and password. It looks names up itself.
    Socks(Option<(String, String)>),
}

/// Where SOCKS is spoken, unless it is said.
const SOCKS_PORT: u16 = 1080;

/// A text that names no proxy. It may have a password in it, so it is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not of the form http://[USER:PASSWORD@]HOST[:PORT], with https:// or socks5:// instead of http:// if need be"
)]
pub struct InvalidProxy;

/// A variable of the environment that names no proxy.
#[derive(Debug, thiserror::Error)]
#[error("environment variable {name}: {source}")]
pub struct InvalidVariable {
    name: &'static str,
    source: InvalidProxy,
}

/// What the environment says: a proxy for each scheme, and who is spoken to without.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    direct: Vec<Direct>,
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    All,
    Network(u128, u32),
    Address(IpAddr, Option<u16>),
    Name {
        /// In lower case, without a dot before.
        name: String,
        /// Names below it only.
        below: bool,
        port: Option<u16>,
    },
}

impl FromStr for Proxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (scheme, socks) = match scheme {
            "http" | "https" => (scheme, false),
            "socks5" | "socks5h" => ("http", true),
            _ => return Err(InvalidProxy),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        host.parse::<RegistryHost>().map_err(|_| InvalidProxy)?;
        let uri = |authority: &str| {
            let uri = Uri::builder().scheme(scheme).authority(authority);
            uri.path_and_query("/").build().map_err(|_| InvalidProxy)
        };
        let mut at = uri(host)?;
        if socks && at.port().is_none() {
            at = uri(&format!("{host}:{SOCKS_PORT}"))?;
        }
        let login = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (percent_decode_str(name), percent_decode_str(password))
        });
        let kind = match (login, socks) {
            (Some((name, password)), true) => Kind::Socks(Some((
                name.decode_utf8().map_err(|_| InvalidProxy)?.into_owned(),
                password
                    .decode_utf8()
                    .map_err(|_| InvalidProxy)?
                    .into_owned(),
            ))),
            (Some((name, password)), false) => {
                let pair: Vec<u8> = name.chain([b':']).chain(password).collect();
                let text = format!("Basic {}", STANDARD.encode(pair));
                let mut header = HeaderValue::from_str(&text).map_err(|_| InvalidProxy)?;
                header.set_sensitive(true);
                Kind::Http(Some(header))
            }
            (None, true) => Kind::Socks(None),
            (None, false) => Kind::Http(None),
        };
        Ok(Self { kind, uri: at })
    }
}

impl Proxy {
    /// Whether it is spoken to over TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// What it wants to see with a request that it reads itself.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        match &self.kind {
            Kind::Http(authorization) => authorization.as_ref(),
            Kind::Socks(_) => None,
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl Proxies {
    /// Reads `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, or the same in lower case.
    ///
    /// # Errors
    /// One of them names no proxy.
    pub fn of_environment() -> Result<Self, InvalidVariable> {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidVariable> {
        let text = |names: [&'static str; 2]| {
            let texts = names
                .into_iter()
                .map(|name| (name, get(name).unwrap_or_default()));
            texts.into_iter().find(|(_, text)| !text.is_empty())
        };
        let proxy = |names| {
            let parse = |(name, text): (_, String)| {
                let proxy = text.trim().parse::<Proxy>();
                proxy.map_err(|source| InvalidVariable { name, source })
            };
            text(names).map(parse).transpose()
        };
        let direct = text(["NO_PROXY", "no_proxy"]).map_or_else(String::new, |(_, text)| text);
        Ok(Self {
            http: proxy(["HTTP_PROXY", "http_proxy"])?,
            https: proxy(["HTTPS_PROXY", "https_proxy"])?,
            direct: direct.split(',').filter_map(Direct::parse).collect(),
        })
    }

    /// Whether one of them is spoken to over TLS.
    pub(super) fn has_tls(&self) -> bool {
        let all = [&self.http, &self.https].into_iter().flatten();
        all.into_iter().any(Proxy::is_tls)
    }

    /// The proxy by which a request goes, if it goes by one.
    pub(super) fn find(&self, to: &Uri) -> Option<&Proxy> {
        let tls = to.scheme_str() == Some("https");
        let proxy = if tls { &self.https } else { &self.http }.as_ref()?;
        let port = to.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = to.host()?.trim_matches(['[', ']']).trim_end_matches('.');
        let host = host.to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let own = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let direct = own
            || self
                .direct
                .iter()
                .any(|entry| entry.matches(&host, address, port));
        (!direct).then_some(proxy)
    }
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_ascii_lowercase();
        if entry == "*" {
            return Some(Self::All);
        }
        if let Some((address, length)) = entry.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let length: u32 = length.parse().ok()?;
            let (most, before) = if address.is_ipv4() {
                (32, 96)
            } else {
                (128, 0)
            };
            return (length <= most).then(|| Self::Network(number(address), length + before));
        }
        if let Ok(address) = entry.trim_matches(['[', ']']).parse() {
            return Some(Self::Address(address, None));
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (entry.as_str(), None),
        };
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            return Some(Self::Address(address, port));
        }
        let name = name.strip_prefix('*').unwrap_or(name);
        let below = name.starts_with('.');
        let name = name
            .trim_start_matches('.')
            .trim_end_matches('.')
            .to_owned();
        (!name.is_empty()).then_some(Self::Name { name, below, port })
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, to: u16) -> bool {
        let at = |port: &Option<u16>| port.is_none_or(|port| port == to);
        match self {
            Self::All => true,
            Self::Network(network, length) => address.is_some_and(|address| {
                let differ = network ^ number(address);
                differ.checked_shr(128 - length).unwrap_or(0) == 0
            }),
            Self::Address(own, port) => address == Some(*own) && at(port),
            Self::Name { name, below, port } => {
                let rest = host.strip_suffix(name.as_str());
                let matches = rest.is_some_and(|rest| match rest {
                    "" => !below,
                    rest => rest.ends_with('.'),
                });
                matches && at(port)
            }
        }
    }
}

/// Of an IPv4 address, the one that stands for it among the IPv6 ones.
fn number(address: IpAddr) -> u128 {
    let address: Ipv6Addr = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    address.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies(pairs: &[(&str, &str)]) -> Result<Proxies, InvalidVariable> {
        Proxies::read(|name| {
            let found = pairs.iter().find(|(given, _)| *given == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_scheme_chooses() {
        let both = proxies(&[
            ("HTTP_PROXY", "http://a.example:3128/"),
            ("https_proxy", "b.example"),
        ])
        .unwrap();
        let via = |url: &str| both.find(&url.parse().unwrap()).map(|p| p.uri.to_string());
        assert_eq!(
            via("http://x.example/"),
            Some("http://a.example:3128/".into())
        );
        assert_eq!(via("https://x.example/"), Some("http://b.example/".into()));
        for own in [
            "http://localhost:5000/",
            "https://127.0.0.1/",
            "http://[::1]:1/",
        ] {
            assert_eq!(via(own), None, "{own}");
        }
        let upper = proxies(&[("HTTP_PROXY", "upper"), ("http_proxy", "lower")]).unwrap();
        let to = "http://x.example/".parse().unwrap();
        assert_eq!(upper.find(&to).unwrap().uri, "http://upper/");
    }

    #[test]
    fn a_password_is_sent_and_not_shown() {
        let proxy: Proxy = "http://user:p%40ss@a.example:1".parse().unwrap();
        assert_eq!(proxy.authorization().unwrap(), "Basic dXNlcjpwQHNz");
        assert_eq!(format!("{proxy:?}"), "http://a.example:1/");
        let proxy: Proxy = "socks5h://us%65r:p%40ss@[::1]".parse().unwrap();
        assert_eq!(format!("{proxy:?}"), "http://[::1]:1080/");
        assert!(
            matches!(proxy.kind, Kind::Socks(Some((name, password))) if name == "user" && password == "p@ss")
        );
        let proxy: Proxy = "https://a.example".parse().unwrap();
        assert!(proxy.is_tls() && proxy.authorization().is_none());
        for bad in [
            "",
            "socks4://a",
            "ftp://a",
            "socks5://a/b",
            "http://a/b",
            "http://a:99999",
            "SECRET:x@",
        ] {
            let pairs = [("HTTPS_PROXY", bad)];
            if bad.is_empty() {
                assert!(proxies(&pairs).unwrap().https.is_none());
                continue;
            }
            let error = crate::error::chain(&proxies(&pairs).unwrap_err());
            assert!(
                error.contains("HTTPS_PROXY") && !error.contains("SECRET"),
                "{error}"
            );
        }
    }

    #[test]
    fn some_are_spoken_to_without() {
        let direct = |entry: &str, url: &str| {
            let all = [
                ("HTTP_PROXY", "http://p"),
                ("HTTPS_PROXY", "http://p"),
                ("NO_PROXY", entry),
            ];
            proxies(&all).unwrap().find(&url.parse().unwrap()).is_none()
        };
        for (entry, url, expected) in [
            ("a.example", "http://a.example/", true),
            ("a.example", "http://b.a.example/", true),
            ("a.example", "http://ba.example/", false),
            (".a.example", "http://a.example/", false),
            (".a.example", "http://b.a.example/", true),
            ("*.a.example", "http://b.a.example/", true),
            ("A.Example", "https://a.EXAMPLE/", true),
            ("a.example:5000", "http://a.example:5000/", true),
            ("a.example:5000", "http://a.example/", false),
            ("a.example:443", "https://a.example/", true),
            ("x, 10.0.0.0/8 ,y", "http://10.1.2.3/", true),
            ("10.0.0.0/8", "http://11.1.2.3/", false),
            ("0.0.0.0/0", "http://11.1.2.3/", true),
            ("0.0.0.0/0", "http://[2001:db8::1]/", false),
            ("2001:db8::/32", "http://[2001:db8::1]/", true),
            ("::/0", "http://[2001:db8::1]/", true),
            ("10.0.0.1", "http://10.0.0.1:5000/", true),
            ("10.0.0.1:80", "http://10.0.0.1:5000/", false),
            ("[2001:db8::1]:80", "http://[2001:db8::1]/", true),
            ("*", "http://x.example/", true),
            ("", "http://x.example/", false),
            (",,/,10.0.0.0/99,:x,.", "http://x.example/", false),
        ] {
            assert_eq!(direct(entry, url), expected, "{entry} {url}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(entry: String, proxy: String) {
            let _ = proxy.parse::<Proxy>();
            let to = "http://10.0.0.1:5000/".parse().unwrap();
            let _ = proxies(&[("HTTP_PROXY", "p"), ("NO_PROXY", &entry)]).unwrap().find(&to);
        }
    }
}
