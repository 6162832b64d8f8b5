//! The machines that images are made for, and those that they are wanted for.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// What an image was made for, as a descriptor or a configuration says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
}

/// For which machines images are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Platforms {
    #[default]
    This,
    One(Platform),
    /// All that run Linux.
    All,
}

/// A text that is no platform that images are taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be linux/ARCHITECTURE[/VARIANT], such as linux/arm64 or linux/arm/v7")]
pub struct InvalidPlatform;

const LINUX: &str = "linux";
const LONGEST: usize = 64;

impl Platform {
    /// How well it fits this machine, 0 best; `None` if not at all.
    pub(super) fn rank(&self) -> Option<u32> {
        self.rank_for(&Self::this())
    }

    /// How well it fits a machine.
    fn rank_for(&self, wanted: &Self) -> Option<u32> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        let (own, most) = (self.variant(), wanted.variant());
        if own == most {
            return Some(0);
        }
        // What is made for an older variant runs on a newer one.
        let number = |variant: &str| variant.strip_prefix('v')?.parse::<u32>().ok();
        number(&most)?.checked_sub(number(&own)?)
    }

    /// The variant; the usual one, if it does not say.
    fn variant(&self) -> String {
        match (self.variant.as_deref(), self.architecture.as_str()) {
            (Some(variant), _) if !variant.is_empty() => variant.to_owned(),
            (_, "arm64") => "v8".into(),
            (_, "arm") => "v7".into(),
            (_, "amd64") => "v1".into(),
            _ => String::new(),
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
            os: LINUX.into(),
            variant: None,
        }
    }
}

impl Platforms {
    /// How well an image fits, 0 best; `None` if it is not wanted.
    pub(super) fn rank(&self, platform: &Platform) -> Option<u32> {
        match self {
            Self::This => platform.rank(),
            Self::One(wanted) => platform.rank_for(wanted),
            Self::All => (platform.os == LINUX).then_some(0),
        }
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let is_word = |word: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            !word.is_empty() && word.bytes().all(plain)
        };
        let words: Vec<_> = text.split('/').collect();
        let (architecture, variant) = match words[..] {
            [LINUX, architecture] => (architecture, None),
            [LINUX, architecture, variant] => (architecture, Some(variant)),
            _ => return Err(InvalidPlatform),
        };
        if text.len() > LONGEST || !words.iter().all(|word| is_word(word)) {
            return Err(InvalidPlatform);
        }
        // As the kernel calls them.
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            architecture: architecture.into(),
            os: LINUX.into(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::This => Platform::this().fmt(f),
            Self::One(platform) => platform.fmt(f),
            Self::All => f.write_str(LINUX),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_which_machine() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        for (image, machine, expected) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64/v1", "linux/amd64", Some(0)),
            ("linux/amd64/v2", "linux/amd64", None),
            ("linux/amd64/v2", "linux/x86_64/v3", Some(1)),
            ("linux/amd64", "linux/amd64/v3", Some(2)),
            ("linux/arm64", "linux/amd64", None),
            ("linux/arm64/v8", "linux/aarch64", Some(0)),
            ("linux/arm64/v9", "linux/arm64", None),
            ("linux/arm/v6", "linux/arm", Some(1)),
            ("linux/arm/v6", "linux/arm/v7", Some(1)),
            ("linux/arm", "linux/arm/v6", None),
            ("linux/arm/v8", "linux/arm", None),
            ("linux/s390x", "linux/s390x", Some(0)),
            ("linux/ppc64le/power9", "linux/ppc64le", None),
            ("linux/ppc64le/power9", "linux/ppc64le/power9", Some(0)),
        ] {
            let rank = platform(image).rank_for(&platform(machine));
            assert_eq!(rank, expected, "{image} on {machine}");
        }
        for bad in [
            "",
            "linux",
            "arm64",
            "windows/amd64",
            "linux/",
            "linux/a/b/c",
            "linux/a b",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
        let windows = Platform {
            os: "windows".into(),
            ..Platform::this()
        };
        assert_eq!(Platforms::All.rank(&windows), None);
        assert_eq!(Platforms::All.rank(&platform("linux/s390x")), Some(0));
    }
}
