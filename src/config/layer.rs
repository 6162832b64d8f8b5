//! One layer of configuration, as a file or the flags give it: every key may be left out.

use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU32};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::value::{
    AbsolutePath, CgroupParent, Collector, Endpoint, LogFormat, LogLevel, Ratio, SearchPath,
};
use crate::image::pinned::NamePattern;
use crate::image::registry::RegistryHost;

/// Why a configuration does not count.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}:{line}: {message}", .path.display())]
    Invalid {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        message: String,
    },
}

/// What one file, or the command line, says. The fields are those of [`super::Config`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub root: Option<AbsolutePath>,
    pub state: Option<AbsolutePath>,
    pub listen: Option<Endpoint>,
    pub workers: Option<NonZeroU8>,
    #[serde(default)]
    pub cgroup: CgroupLayer,
    #[serde(default)]
    pub runtime: RuntimeLayer,
    #[serde(default)]
    pub cdi: CdiLayer,
    #[serde(default)]
    pub nri: NriLayer,
    #[serde(default)]
    pub network: NetworkLayer,
    #[serde(default)]
    pub image: ImageLayer,
    #[serde(default)]
    pub registry: RegistryLayer,
    #[serde(default)]
    pub streaming: StreamingLayer,
    #[serde(default)]
    pub libexec: LibexecLayer,
    #[serde(default)]
    pub log: LogLayer,
    #[serde(default)]
    pub telemetry: TelemetryLayer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupLayer {
    pub parent: Option<CgroupParent>,
    pub pids_limit: Option<NonZeroU32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeLayer {
    pub selinux: Option<bool>,
    pub base_spec: Option<AbsolutePath>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdiLayer {
    pub dirs: Option<Vec<AbsolutePath>>,
    pub annotations: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NriLayer {
    pub enabled: Option<bool>,
    pub socket: Option<AbsolutePath>,
    pub plugin_dir: Option<AbsolutePath>,
    pub config_dir: Option<AbsolutePath>,
    pub registration_timeout_seconds: Option<NonZeroU8>,
    pub request_timeout_seconds: Option<NonZeroU8>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkLayer {
    pub conf_dir: Option<AbsolutePath>,
    pub bin_dirs: Option<Vec<AbsolutePath>>,
    pub default_network: Option<bool>,
    pub conf_template: Option<AbsolutePath>,
    pub timeout_seconds: Option<NonZeroU32>,
    pub retry_seconds: Option<NonZeroU32>,
    pub netns_dir: Option<AbsolutePath>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageLayer {
    pub pinned: Option<Vec<NamePattern>>,
    pub signature_policy: Option<AbsolutePath>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryLayer {
    pub plain_http: Option<Vec<RegistryHost>>,
    pub token_hosts: Option<Vec<RegistryHost>>,
    pub config_path: Option<SearchPath>,
    pub auth_files: Option<Vec<AbsolutePath>>,
    pub parallel_layers: Option<NonZeroU8>,
    pub timeout_seconds: Option<NonZeroU32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamingLayer {
    pub address: Option<SocketAddr>,
    pub tls: Option<TlsLayer>,
}

/// One value: a certificate is of no use with another key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsLayer {
    pub certificate: AbsolutePath,
    pub key: AbsolutePath,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibexecLayer {
    pub daemon: Option<AbsolutePath>,
    pub supervisor: Option<AbsolutePath>,
    pub cni: Option<AbsolutePath>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLayer {
    pub level: Option<LogLevel>,
    pub format: Option<LogFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryLayer {
    pub metrics: Option<SocketAddr>,
    pub traces: Option<Collector>,
    pub sampling_ratio: Option<Ratio>,
}

impl Layer {
    /// Reads a file.
    ///
    /// # Errors
    /// As [`super::Config::load`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        parse(path, &text)
    }
}

/// Reads a text as TOML; an error names the line of `path` that it is in.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        invalid(path, text, offset, &error.message().replace('\n', ", "))
    })
}

/// What is wrong at an offset of a file's text.
pub(crate) fn invalid(path: &Path, text: &str, offset: usize, message: &str) -> ConfigError {
    let before = &text.as_bytes()[..offset.min(text.len())];
    ConfigError::Invalid {
        path: path.to_owned(),
        line: before.iter().filter(|b| **b == b'\n').count() + 1,
        message: message.to_owned(),
    }
}

/// The files that count, in the order in which they are laid over each other.
pub(super) fn files(asked: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let main = asked.unwrap_or(Path::new(super::DEFAULT_FILE));
    let mut files = Vec::new();
    if asked.is_some() || main.exists() {
        files.push(main.to_owned());
    }
    let drop_ins = main.parent().unwrap_or(Path::new("/")).join("conf.d");
    files.extend(toml_files(&drop_ins).map_err(|source| ConfigError::Read {
        path: drop_ins,
        source,
    })?);
    Ok(files)
}

/// The `*.toml` in `dir` in lexical order; none if there is no such folder.
fn toml_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
