//! The names that people give images: parsed once, and then in one form only.
//!
//! ```text
//! [domain[:port]/]path[:tag][@sha256:…]      busybox → docker.io/library/busybox:latest
//! ```
//!
//! What must always hold: two spellings of one name give equal references, and what [`Reference`] prints parses to
//! itself. The colon of a port is no tag.

use std::fmt;
use std::str::FromStr;

use crate::store::blobs::Digest;

/// A checked name in its normal form. It has a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A domain and a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    domain: String,
    path: String,
}

/// A string that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image name {name:?}: {why}")]
pub struct InvalidReference {
    name: String,
    why: &'static str,
}

const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Bytes of domain and path.
const LONGEST: usize = 255;
const LONGEST_TAG: usize = 128;

impl Reference {
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `repository:tag`, if there is a tag.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        let tag = self.tag.as_ref()?;
        Some(format!("{}:{tag}", self.repository))
    }

    /// `repository@digest`, if there is a digest.
    #[must_use]
    pub fn digested(&self) -> Option<String> {
        Some(self.repository.with(self.digest?))
    }
}

impl Repository {
    /// Host and port of the registry.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `repository@digest`.
    #[must_use]
    pub fn with(&self, digest: Digest) -> String {
        format!("{self}@{digest}")
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(name: &str) -> Result<Self, InvalidReference> {
        parse(name).map_err(|why| InvalidReference {
            name: name.chars().take(300).collect(),
            why,
        })
    }
}

fn parse(name: &str) -> Result<Reference, &'static str> {
    if name.is_empty() {
        return Err("empty");
    }
    if name.len() > LONGEST + LONGEST_TAG + 80 {
        return Err("too long");
    }
    let id = name.strip_prefix("sha256:").unwrap_or(name);
    if id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("an image's id cannot be its name");
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest
                .parse()
                .map_err(|_| "its digest is not sha256:<64 hex digits>")?;
            (rest, Some(digest))
        }
        None => (name, None),
    };
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (repository, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("malformed tag");
    }
    let tag = match (tag, digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(Reference {
        repository: parse_repository(repository)?,
        tag: tag.map(str::to_owned),
        digest,
    })
}

fn parse_repository(name: &str) -> Result<Repository, &'static str> {
    let is_host = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest.to_owned()),
        _ => (DEFAULT_DOMAIN, name.to_owned()),
    };
    let domain = match domain {
        "index.docker.io" => DEFAULT_DOMAIN,
        domain => domain,
    };
    if !is_domain(domain) {
        return Err("malformed domain");
    }
    if !path.split('/').all(is_component) {
        return Err(
            "malformed path: only lower-case letters and digits, separated by . _ __ - and /",
        );
    }
    let path = match domain == DEFAULT_DOMAIN && !path.contains('/') {
        true => format!("library/{path}"),
        false => path,
    };
    if domain.len() + 1 + path.len() > LONGEST {
        return Err("longer than 255 characters");
    }
    let domain = domain.to_owned();
    Ok(Repository { domain, path })
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => {
                let port = match rest.strip_prefix(':') {
                    Some(port) => Some(port),
                    None if rest.is_empty() => None,
                    None => return false,
                };
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return false;
                }
                (None, port)
            }
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let is_port =
        |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    host.is_none_or(|host| host.split('.').all(is_label)) && port.is_none_or(is_port)
}

fn is_label(label: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !label.is_empty()
        && label.bytes().all(plain)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !word(first) || !word(last) {
        return false;
    }
    bytes.split(|&b| word(b)).all(|separator| match separator {
        b"" | b"." | b"_" | b"__" => true,
        dashes => dashes.iter().all(|&b| b == b'-'),
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= LONGEST_TAG
        && bytes.first().is_some_and(|&b| word(b))
        && bytes.iter().all(|&b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_take_one_form() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        for (given, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            (
                "index.docker.io/library/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("user/app:v1", "docker.io/user/app:v1"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("127.0.0.1:5000/x:5000", "127.0.0.1:5000/x:5000"),
            ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
            ("Host/app", "Host/app:latest"),
            ("a.b/c__d/e--f.g_h", "a.b/c__d/e--f.g_h:latest"),
            ("x:A_b.c-D", "docker.io/library/x:A_b.c-D"),
        ] {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), expected);
        }
        let both: Reference = format!("busybox:1@{digest}").parse().unwrap();
        assert_eq!(
            both.to_string(),
            format!("docker.io/library/busybox:1@{digest}")
        );
        assert_eq!(both.tagged().unwrap(), "docker.io/library/busybox:1");
        let only: Reference = format!("busybox@{digest}").parse().unwrap();
        assert_eq!(only.tag(), None);
        assert_eq!(
            only.digested().unwrap(),
            format!("docker.io/library/busybox@{digest}")
        );
    }

    #[test]
    fn what_names_nothing_is_refused() {
        let hex = "a".repeat(64);
        for bad in [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "a:",
            "a:-b",
            "a:b:c",
            "a b",
            "a\n",
            "a\0",
            "../a",
            "a/../b",
            "a/./b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "a@",
            "a@sha256:",
            &format!("a@sha256:{}", "A".repeat(64)),
            &format!("a@sha512:{}", "a".repeat(128)),
            &format!("a@sha256:{hex}@sha256:{hex}"),
            &hex,
            &format!("sha256:{hex}"),
            "-x.io/a",
            "x..io/a",
            "x.io:/a",
            "x.io:port/a",
            "[::1/a",
            "[zz]/a",
            "[::1]x/a",
            "http://x.io/a",
            "ünï",
            &"a".repeat(256),
            &format!("a:{}", "b".repeat(129)),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_itself(
            domain in "([a-z]{1,5}\\.[a-z]{2,3}(:[0-9]{1,5})?/)?",
            path in "[a-z0-9]{1,6}(-[a-z0-9]{1,6}){0,2}(/[a-z0-9]{1,6}([._][a-z0-9]{1,6}){0,2}){0,2}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
            digest in "(@sha256:[0-9a-f]{64})?",
        ) {
            let parsed: Reference = format!("{domain}{path}{tag}{digest}").parse().unwrap();
            let again: Reference = parsed.to_string().parse().unwrap();
            prop_assert_eq!(&again, &parsed);
            prop_assert!(parsed.tag().is_some() || parsed.digest().is_some());
        }

        #[test]
        fn no_name_makes_it_panic(name: String) {
            let _ = name.parse::<Reference>();
        }
    }
}
