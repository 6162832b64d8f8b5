//! The values of a configuration that are more than a number or a string. Each has one check, used
//! alike for files and flags.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest path that a unix socket's address holds, in bytes (`unix(7)`: 108 with a NUL).
const MAX_SOCKET_PATH: usize = 107;

/// A value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {expected}")]
pub struct InvalidValue {
    given: String,
    expected: &'static str,
}

fn invalid(given: &str, expected: &'static str) -> InvalidValue {
    InvalidValue {
        given: given.to_owned(),
        expected,
    }
}

/// An absolute path without `..` and NUL bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct AbsolutePath(PathBuf);

impl FromStr for AbsolutePath {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let path = Path::new(text);
        if !path.is_absolute() {
            return Err(invalid(text, "an absolute path"));
        }
        if text.contains('\0') || path.components().any(|part| part == Component::ParentDir) {
            return Err(invalid(text, "a normal path, without \"..\""));
        }
        // Collected from its components, a path has no doubled slashes and no ".".
        Ok(Self(path.components().collect()))
    }
}

impl From<AbsolutePath> for PathBuf {
    fn from(path: AbsolutePath) -> Self {
        path.0
    }
}

/// Folders that are searched one after the other, written `/a:/b`. Empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SearchPath(Vec<PathBuf>);

impl SearchPath {
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.0
    }
}

impl FromStr for SearchPath {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let parts = text.split(':').filter(|_| !text.is_empty());
        let dirs = parts.map(|part| part.parse::<AbsolutePath>().map(PathBuf::from));
        Ok(Self(dirs.collect::<Result<_, _>>()?))
    }
}

impl TryFrom<String> for SearchPath {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl From<SearchPath> for String {
    fn from(path: SearchPath) -> Self {
        let dirs = path.0.iter().map(|dir| dir.display().to_string());
        dirs.collect::<Vec<_>>().join(":")
    }
}

/// The unix socket that the daemon listens on, written `unix:///run/carpel/carpel.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint(PathBuf);

impl Endpoint {
    /// Path of the socket file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Endpoint {
    fn default() -> Self {
        Self("/run/carpel/carpel.sock".into())
    }
}

impl FromStr for Endpoint {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        let Ok(AbsolutePath(path)) = path.parse() else {
            return Err(invalid(
                text,
                "the address of a unix socket, such as unix:///run/carpel/carpel.sock",
            ));
        };
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(invalid(text, "short enough for a socket (107 bytes)"));
        }
        Ok(Self(path))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// A cgroup by its path in the hierarchy: absolute and normal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupParent(String);

impl CgroupParent {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for CgroupParent {
    fn default() -> Self {
        Self("/carpel".to_owned())
    }
}

impl FromStr for CgroupParent {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text.parse() {
            Ok(AbsolutePath(path)) => Ok(Self(path.display().to_string())),
            Err(_) => Err(invalid(
                text,
                "an absolute path in the cgroup hierarchy, such as /carpel",
            )),
        }
    }
}

impl fmt::Display for CgroupParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A collector of traces that speaks OTLP over gRPC, written `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Collector(String);

impl Collector {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Collector {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let uri = text.parse::<http::Uri>().ok().filter(|uri| {
            uri.scheme() == Some(&http::uri::Scheme::HTTP)
                && uri.port_u16().is_some()
                && uri.host().is_some_and(|host| !host.is_empty())
                && uri.authority().is_some_and(|at| !at.as_str().contains('@'))
                && uri.path() == "/"
                && uri.query().is_none()
        });
        uri.map(|uri| Self(uri.to_string().trim_end_matches('/').to_owned()))
            .ok_or_else(|| {
                invalid(
                    text,
                    "the address of a collector (OTLP over gRPC, without TLS), such as http://127.0.0.1:4317",
                )
            })
    }
}

/// Some of all, between 0 and 1, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(u32);

impl Ratio {
    pub const ALL: Self = Self(1_000_000);

    /// Whether the trace of this id is one of these. All who ask with the same ratio say the same: a trace is whole.
    #[must_use]
    pub fn takes(self, trace: [u8; 16]) -> bool {
        // The last 7 bytes are random, as the W3C says.
        let [.., a, b, c, d, e, f, g] = trace;
        let chance = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
        u128::from(chance) * 1_000_000 < u128::from(self.0) << 56
    }
}

impl TryFrom<f64> for Ratio {
    type Error = InvalidValue;

    fn try_from(ratio: f64) -> Result<Self, InvalidValue> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(invalid(&ratio.to_string(), "a number between 0 and 1"));
        }
        // Between 0 and a million: nothing is cut off.
        Ok(Self((ratio * 1e6).round() as u32))
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> Self {
        Self::from(ratio.0) / 1e6
    }
}

/// serde wants these to read and write a value as a string.
macro_rules! as_string {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = InvalidValue;

            fn try_from(text: String) -> Result<Self, InvalidValue> {
                text.parse()
            }
        }
    )*};
}
as_string!(AbsolutePath, Endpoint, CgroupParent, Collector);

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl From<Collector> for String {
    fn from(collector: Collector) -> Self {
        collector.0
    }
}

impl From<CgroupParent> for String {
    fn from(parent: CgroupParent) -> Self {
        parent.0
    }
}

/// How much the daemon writes to its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}
