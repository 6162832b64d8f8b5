//! Profiles that an administrator put on the node (Localhost).
//!
//! The form is the OCI runtime's; of Docker's additions `archMap` and the conditions `includes` and
//! `excludes` are understood, because its default profile is the one most often copied.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSyscall};
use serde::Deserialize;

use super::Error;
use crate::spec::capability;

/// The longest profile that is read, in bytes.
const LIMIT: u64 = 4 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Entry>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Vec<Arch>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
    #[serde(flatten)]
    rule: serde_json::Map<String, serde_json::Value>,
}

/// When a rule applies. An empty list says nothing.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Reads the profile at `path` of the host for a process whose bounding set is `capabilities`.
///
/// # Errors
/// [`Error::Read`] if it is no regular file of at most 4 MiB (others are never waited for), [`Error::Parse`]
/// if it is no profile.
pub fn load_profile(path: &Path, capabilities: u64) -> Result<LinuxSeccomp, Error> {
    let text = read(path).map_err(|source| Error::Read {
        path: path.display().to_string(),
        source,
    })?;
    parse(&text, capabilities).map_err(|error| Error::Parse {
        path: path.display().to_string(),
        line: error.line(),
        column: error.column(),
    })
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let invalid =
        |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LIMIT {
        return Err(invalid("longer than 4 MiB"));
    }
    Ok(text)
}

pub(super) fn parse(text: &[u8], capabilities: u64) -> serde_json::Result<LinuxSeccomp> {
    let file: File = serde_json::from_slice(text)?;
    let mut profile: LinuxSeccomp = serde_json::from_value(serde_json::Value::Object(file.rest))?;
    if profile.architectures().as_ref().is_none_or(Vec::is_empty) && !file.arch_map.is_empty() {
        let native = match super::Machine::NATIVE {
            super::Machine::X86_64 => Arch::ScmpArchX86_64,
            super::Machine::Aarch64 => Arch::ScmpArchAarch64,
        };
        let mut architectures = vec![native];
        for map in file.arch_map {
            if map.architecture == native {
                architectures.extend(map.sub_architectures);
            }
        }
        profile.set_architectures(Some(architectures));
    }
    let mut syscalls = Vec::new();
    for entry in file.syscalls {
        let included = entry.includes.is_none_or(|filter| filter.all(capabilities));
        let excluded = entry
            .excludes
            .is_some_and(|filter| filter.any(capabilities));
        if included && !excluded {
            let rule: LinuxSyscall = serde_json::from_value(serde_json::Value::Object(entry.rule))?;
            syscalls.push(rule);
        }
    }
    profile.set_syscalls(Some(syscalls));
    Ok(profile)
}

impl Filter {
    fn holds(name: &str, capabilities: u64) -> bool {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        capability::bit(name).is_some_and(|bit| capabilities & bit != 0)
    }

    fn this_arch(name: &str) -> bool {
        match super::Machine::NATIVE {
            super::Machine::X86_64 => matches!(name, "amd64" | "x86" | "x32"),
            super::Machine::Aarch64 => matches!(name, "arm64" | "arm"),
        }
    }

    /// Everything that it names is so.
    fn all(&self, capabilities: u64) -> bool {
        self.caps.iter().all(|name| Self::holds(name, capabilities))
            && (self.arches.is_empty() || self.arches.iter().any(|name| Self::this_arch(name)))
            && self.min_kernel.as_deref().is_none_or(kernel_is_at_least)
    }

    /// Something that it names is so.
    fn any(&self, capabilities: u64) -> bool {
        self.caps.iter().any(|name| Self::holds(name, capabilities))
            || self.arches.iter().any(|name| Self::this_arch(name))
            || self.min_kernel.as_deref().is_some_and(kernel_is_at_least)
    }
}

/// Compares "major.minor" with the running kernel's. What cannot be read is not reached.
fn kernel_is_at_least(wanted: &str) -> bool {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let running = rustix::system::uname();
    let running = numbers(&running.release().to_string_lossy());
    matches!((running, numbers(wanted)), (Some(running), Some(wanted)) if running >= wanted)
}
