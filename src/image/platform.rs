//! The machine that images must be made for.

use std::fmt;

use serde::Deserialize;

/// What an image was made for, as a descriptor or a configuration says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// How well it fits this machine, 0 best; `None` if not at all.
    pub(super) fn rank(&self) -> Option<u32> {
        if self.os != "linux" || self.architecture != this_architecture() {
            return None;
        }
        match (self.architecture.as_str(), self.variant.as_deref()) {
            (_, None | Some("")) => Some(0),
            ("arm64", Some("v8")) | ("amd64", Some("v1")) | ("arm", Some("v7")) => Some(0),
            ("arm", Some("v6")) => Some(1),
            ("arm", Some("v5")) => Some(2),
            _ => None,
        }
    }

    /// The name that is given to what is no image but a statement about one.
    pub(super) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Of this machine.
    pub(super) fn this() -> Self {
        Self {
            architecture: this_architecture().into(),
            os: "linux".into(),
            variant: None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}
