//! Which hosts have the images of a registry: containerd's folder of `hosts.toml` files, read as containerd does.
//!
//! ```text
//! DIR/HOST_PORT_ | DIR/HOST:PORT | DIR/HOST | DIR/_default ─▶ hosts.toml, else *.crt, *.cert with *.key
//! ```
//!
//! What must always hold: the hosts are in the file's order and the registry itself comes last, unless it is among them. A file with an error in
//! it is an error, and never half read. Nothing is kept between two pulls, so that a change counts at once.

mod duration;
mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::HeaderMap;
use http::uri::{PathAndQuery, Uri};

use super::error::SetupError;
use super::origin::RegistryHost;
use super::proxy::Proxy;
use crate::config::ConfigError;

/// A host that has the images of a registry.
#[derive(Debug, Clone, Default)]
pub(super) struct Host {
    /// `None`: the registry itself.
    pub place: Option<Place>,
    /// May be asked for what a digest names.
    pub pull: bool,
    /// May say what a tag stands for.
    pub resolve: bool,
    pub tls: TlsFiles,
    pub headers: HeaderMap,
    pub dial_timeout: Option<Duration>,
    pub proxy: Option<Proxy>,
}

/// Where a host's API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub host: RegistryHost,
    pub plain: bool,
    /// The path that all others begin with, without a slash at its end.
    pub root: String,
}

/// Files for TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    /// Trusted beside what the machine trusts.
    pub ca: Vec<PathBuf>,
    /// Certificates and their keys; without a second file both are in the first.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
}

/// Where the API is unless a host says otherwise.
pub(super) const ROOT: &str = "/v2";
const FILE: &str = "hosts.toml";
const DEFAULT: &str = "_default";
/// Bytes of a file.
const MOST_BYTES: u64 = 1 << 20;

impl TlsFiles {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Host {
    /// The registry itself, with nothing special.
    fn own() -> Self {
        Self {
            pull: true,
            resolve: true,
            ..Self::default()
        }
    }
}

impl Place {
    fn parse(url: &str, override_path: bool) -> Result<Self, &'static str> {
        let url = match url.contains("://") {
            true => url.to_owned(),
            false => format!("https://{url}"),
        };
        let uri: Uri = url.parse().map_err(|_| "a malformed URL")?;
        let plain = match uri.scheme_str() {
            Some("http") => true,
            Some("https") => false,
            _ => return Err("neither http nor https"),
        };
        let authority = uri.authority().ok_or("a URL without a host")?;
        let host = authority.as_str().parse();
        let host = host.map_err(|_| "not of the form http[s]://HOST[:PORT][/PATH]")?;
        if uri.query().is_some() || url.contains('#') {
            return Err("a URL with a query or fragment");
        }
        let parts = uri
            .path()
            .split('/')
            .filter(|part| !matches!(*part, "" | "."));
        let parts: Vec<_> = parts.collect();
        if parts.contains(&"..") {
            return Err("a path with \"..\"");
        }
        let mut root: String = parts.iter().flat_map(|part| ["/", part]).collect();
        if !override_path && parts.last() != Some(&"v2") {
            root.push_str(ROOT);
        }
        let is_path = root.is_empty() || root.parse::<PathAndQuery>().is_ok();
        match is_path {
            true => Ok(Self { host, plain, root }),
            false => Err("a malformed path"),
        }
    }
}

/// The hosts for the images of a domain, in the order in which they are asked. Reads files.
///
/// # Errors
/// What in the files is wrong, or that they cannot be read.
pub(super) fn read(dirs: &[PathBuf], domain: &str) -> Result<Vec<Host>, SetupError> {
    let Some(dir) = find(dirs, domain)? else {
        return Ok(vec![Host::own()]);
    };
    let path = dir.join(FILE);
    match std::fs::metadata(&path) {
        Ok(file) if file.len() > MOST_BYTES => {
            let why = format!("more than {MOST_BYTES} bytes");
            return Err(SetupError::Unfit { path, why });
        }
        Ok(file) if file.len() > 0 => {
            let text = std::fs::read_to_string(&path).map_err(unreadable(&path))?;
            return Ok(file::parse(&path, &text)?);
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(&path)(error).into()),
    }
    let tls = certificates(&dir)?;
    Ok(vec![Host { tls, ..Host::own() }])
}

/// The folder of a domain.
fn find(dirs: &[PathBuf], domain: &str) -> Result<Option<PathBuf>, ConfigError> {
    let with_port = domain.rsplit_once(':').filter(|(_, port)| {
        // The last colon of an IPv6 address without a port is none of a port.
        port.bytes().all(|b| b.is_ascii_digit())
    });
    let underscored = with_port.map(|(host, port)| format!("{host}_{port}_"));
    let names = underscored.iter().map(String::as_str);
    let names: Vec<_> = names.chain([domain, DEFAULT]).collect();
    for dir in dirs {
        for name in &names {
            let path = dir.join(name);
            match std::fs::metadata(&path) {
                Ok(_) => return Ok(Some(path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(&path)(error)),
            }
        }
    }
    Ok(None)
}

/// Certificates as docker has them: `*.crt` to trust, `*.cert` with `*.key` to show.
fn certificates(dir: &Path) -> Result<TlsFiles, ConfigError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable(dir))? {
        files.push(entry.map_err(unreadable(dir))?.path());
    }
    files.sort();
    let mut tls = TlsFiles::default();
    for path in &files {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(path.clone()),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = files.contains(&key).then_some(key);
                tls.client.push((path.clone(), key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> ConfigError {
    let path = path.to_owned();
    |source| ConfigError::Read { path, source }
}

/// For the fuzzer and its corpus.
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        file::fuzz(text);
    }
}
