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
as_string!(AbsolutePath, Endpoint, CgroupParent);

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
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
