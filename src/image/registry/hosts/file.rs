//! `hosts.toml`: what it says, checked.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{Host, Place, TlsFiles, duration};
use crate::config::{self, ConfigError};
use crate::image::registry::proxy::Proxy;

/// The hosts of a file, in the order in which they are asked.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Host>, ConfigError> {
    let File {
        server,
        hosts,
        options,
    } = config::parse(path, text)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let place = |url: &Spanned<String>, options: &Options| {
        let place = Place::parse(url.get_ref(), options.override_path);
        place.map_err(|why| {
            let message = format!("{:?}: {why}", url.get_ref());
            config::invalid(path, text, url.span().start, &message)
        })
    };
    let mut all = Vec::with_capacity(hosts.len() + 1);
    for (url, options) in hosts {
        let place = place(&url, &options)?;
        options.warn(path);
        all.push(options.into_host(Some(place), dir));
    }
    let server = server.filter(|server| !server.get_ref().is_empty());
    let place = server.map(|server| place(&server, &options)).transpose()?;
    options.warn(path);
    let server = options.into_host(place, dir);
    // Named again below what is said of it there, it would only be asked once more, without its certificates.
    let is_same = |host: &Host| host.place == server.place && host.pull && host.resolve;
    let is_bare = server.tls.is_empty()
        && server.headers.is_empty()
        && server.proxy.is_none()
        && server.dial_timeout.is_none();
    if server.place.is_none() || !is_bare || !all.iter().any(is_same) {
        all.push(server);
    }
    Ok(all)
}

/// As the file has it: the mirrors in the order in which they are first named, and what is at the top for the server.
#[derive(Default)]
struct File {
    server: Option<Spanned<String>>,
    hosts: Vec<(Spanned<String>, Options)>,
    options: Options,
}

/// What can be said of a mirror and of the server.
#[derive(Default)]
struct Options {
    capabilities: Vec<Capability>,
    ca: Vec<String>,
    client: Vec<Pair>,
    skip_verify: bool,
    headers: HeaderMap,
    override_path: bool,
    dial_timeout: Option<Duration>,
    proxy: Option<Proxy>,
    unknown: Vec<String>,
}

impl Options {
    /// Takes the value of a key.
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "capabilities" => self.capabilities = map.next_value()?,
            "ca" => self.ca = map.next_value::<Texts>()?.0,
            "client" => self.client = map.next_value::<Pairs>()?.0,
            "skip_verify" => self.skip_verify = map.next_value()?,
            "header" => self.headers = map.next_value::<Headers>()?.0,
            "override_path" => self.override_path = map.next_value()?,
            "dial_timeout" => self.dial_timeout = map.next_value::<Timeout>()?.0,
            "proxy" => self.proxy = Some(map.next_value::<OwnProxy>()?.0),
            // containerd reads over them, and forks of it have keys of their own.
            unknown => {
                map.next_value::<IgnoredAny>()?;
                self.unknown.push(unknown.to_owned());
            }
        }
        Ok(())
    }

    fn warn(&self, path: &Path) {
        for key in &self.unknown {
            tracing::warn!(file = %path.display(), key, "unknown key is not looked at");
        }
    }

    fn into_host(self, place: Option<Place>, dir: &Path) -> Host {
        let can = |what| self.capabilities.is_empty() || self.capabilities.contains(&what);
        let path = |text: &String| dir.join(text);
        let pair = |Pair(certificate, key): &Pair| (path(certificate), key.as_ref().map(path));
        Host {
            pull: can(Capability::Pull),
            resolve: can(Capability::Resolve),
            tls: TlsFiles {
                ca: self.ca.iter().map(path).collect(),
                client: self.client.iter().map(pair).collect(),
                skip_verify: self.skip_verify,
            },
            place,
            headers: self.headers,
            dial_timeout: self.dial_timeout,
            proxy: self.proxy,
        }
    }
}

#[derive(PartialEq)]
enum Capability {
    Pull,
    Resolve,
    Push,
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match text.to_ascii_lowercase().as_str() {
            "pull" => Ok(Self::Pull),
            "resolve" => Ok(Self::Resolve),
            "push" => Ok(Self::Push),
            _ => Err(D::Error::custom(format!(
                "unknown capability {text:?}, expected pull, resolve or push"
            ))),
        }
    }
}

struct Timeout(Option<Duration>);

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let wrong =
            || D::Error::custom(format!("{text:?} is no time such as \"1.5s\" or \"300ms\""));
        match text.is_empty() {
            true => Ok(Self(None)),
            false => duration::parse(&text).map(Some).map(Self).ok_or_else(wrong),
        }
    }
}

struct OwnProxy(Proxy);

impl<'de> Deserialize<'de> for OwnProxy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// One text, or a list of them.
struct Texts(Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        from.deserialize_any(Reader)
    }
}

/// Files of a certificate and its key; with no second one both are in the first.
struct Pair(String, Option<String>);

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pair;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a pair of strings")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Pair, E> {
                Ok(Pair(text.to_owned(), None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pair, A::Error> {
                let mut next = |at| {
                    let text = list.next_element::<String>()?;
                    text.ok_or_else(|| A::Error::invalid_length(at, &self))
                };
                let (certificate, key) = (next(0)?, next(1)?);
                match list.next_element::<IgnoredAny>()? {
                    Some(_) => Err(A::Error::invalid_length(3, &self)),
                    None => Ok(Pair(certificate, Some(key).filter(|key| !key.is_empty()))),
                }
            }
        }
        from.deserialize_any(Reader)
    }
}

/// One file, or a list of files and pairs.
struct Pairs(Vec<Pair>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings and pairs of strings")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Pairs, E> {
                Ok(Pairs(vec![Pair(text.to_owned(), None)]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = list.next_element()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_any(Reader)
    }
}

struct Headers(HeaderMap);

/// What the transfer itself has to say.
const OWN_HEADERS: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::RANGE,
    header::UPGRADE,
];

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Headers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of headers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = HeaderMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let parsed = HeaderName::from_bytes(name.as_bytes());
                    let Some(parsed) = parsed.ok().filter(|name| !OWN_HEADERS.contains(name))
                    else {
                        return Err(A::Error::custom(format!("{name:?} cannot be a header")));
                    };
                    for value in map.next_value::<Texts>()?.0 {
                        // It may be a secret: it is not shown.
                        let wrong =
                            |_| A::Error::custom(format!("header {name:?} has a malformed value"));
                        let mut value = HeaderValue::from_str(&value).map_err(wrong)?;
                        value.set_sensitive(true);
                        headers.append(&parsed, value);
                    }
                }
                Ok(Headers(headers))
            }
        }
        from.deserialize_map(Reader)
    }
}

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Options;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the table of a host")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Options, A::Error> {
                let mut options = Options::default();
                while let Some(key) = map.next_key::<String>()? {
                    options.take(&key, &mut map)?;
                }
                Ok(options)
            }
        }
        from.deserialize_map(Reader)
    }
}

/// The tables of the mirrors.
struct Hosts(Vec<(Spanned<String>, Options)>);

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Hosts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of hosts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Hosts, A::Error> {
                let mut hosts: Vec<(Spanned<String>, Options)> = Vec::new();
                while let Some(host) = map.next_entry()? {
                    hosts.push(host);
                }
                // The parser sorts them by name.
                hosts.sort_by_key(|(url, _)| url.span().start);
                Ok(Hosts(hosts))
            }
        }
        from.deserialize_map(Reader)
    }
}

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = File;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the hosts of a registry")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<File, A::Error> {
                let mut file = File::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "server" => file.server = Some(map.next_value()?),
                        "host" => file.hosts = map.next_value::<Hosts>()?.0,
                        key => file.options.take(key, &mut map)?,
                    }
                }
                Ok(file)
            }
        }
        from.deserialize_map(Reader)
    }
}

/// Whatever is in a file, it is read or refused.
pub(super) fn fuzz(text: &str) {
    let path = PathBuf::from("/hosts.toml");
    if let Ok(hosts) = parse(&path, text) {
        assert!(!hosts.is_empty());
        for host in hosts {
            assert!(
                host.place
                    .is_none_or(|place| place.root.is_empty() || place.root.starts_with('/'))
            );
        }
    }
}
