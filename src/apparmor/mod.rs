//! AppArmor: which profiles the kernel has, and the one that carpel brings along.
//!
//! A profile is a name that a process gives the kernel before it executes a program. So all that is to be
//! known here is whether the kernel has one of that name, and all that is to be done is to load carpel's
//! own. That takes apparmor_parser, which turns text into what the kernel reads: without it the profile
//! can be loaded by other means, and nobody who asks for it in so many words runs without it.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::error::Error;
use crate::spec::config::AppArmorProfile;

/// What a container gets that asks for nothing, or for the runtime's default.
pub const DEFAULT: &str = "carpel-default";
const POLICY: &str = include_str!("default.profile");

const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
const PARSER: &str = "apparmor_parser";
/// Compiling the policy takes a tenth of a second.
const PARSER_LIMIT: Duration = Duration::from_secs(60);
/// Most of the parser's complaint that is passed on.
const COMPLAINT: usize = 512;

/// Whether profiles can be used: the kernel enforces them and tells which it has. In a container that is a
/// node itself they are the outer machine's, as the peers see it, and so there are none.
#[must_use]
pub fn is_enabled() -> bool {
    let switch = std::fs::read("/sys/module/apparmor/parameters/enabled");
    switch.is_ok_and(|switch| switch.first() == Some(&b'Y'))
        && std::env::var_os("container").is_none_or(|name| name.is_empty())
        && std::fs::File::open(PROFILES).is_ok()
}

/// Whether carpel's own profile can be loaded here.
#[must_use]
pub fn has_parser() -> bool {
    parser().is_some()
}

/// The kernel's profiles, as one daemon uses them.
#[derive(Debug, Default)]
pub struct AppArmor {
    /// Held while the parser runs, so that it runs once.
    loading: Mutex<()>,
}

impl AppArmor {
    /// What of a request's profile can be had: a profile that the kernel has, or none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a profile that is not loaded, [`Error::FailedPrecondition`] if
    /// carpel's own was asked for and cannot be loaded.
    pub async fn available(&self, wanted: AppArmorProfile) -> Result<AppArmorProfile, Error> {
        match &wanted {
            AppArmorProfile::Unconfined => Ok(wanted),
            AppArmorProfile::Localhost(name) => match is_loaded(name) {
                Ok(true) => Ok(wanted),
                Ok(false) => Err(Error::InvalidArgument(format!(
                    "config.linux.security_context: AppArmor profile {name:?} is not loaded on this node"
                ))),
                Err(cause) => Err(Error::wrap("read the AppArmor profiles", cause)),
            },
            AppArmorProfile::Default { asked_for } => match self.load_default().await {
                Ok(()) => Ok(wanted),
                Err(cause) if *asked_for => Err(Error::FailedPrecondition(format!(
                    "AppArmor profile {DEFAULT:?}, the runtime's default, cannot be loaded: {cause}"
                ))),
                // Told at the daemon's start.
                Err(_) => Ok(AppArmorProfile::Unconfined),
            },
        }
    }

    /// Loads carpel's own profile, unless the kernel has it.
    ///
    /// # Errors
    /// There is no parser, or it refuses.
    pub async fn load_default(&self) -> io::Result<()> {
        if is_loaded(DEFAULT)? {
            return Ok(());
        }
        let _loading = self.loading.lock().await;
        if is_loaded(DEFAULT)? {
            return Ok(());
        }
        let parser = parser()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "apparmor_parser not found"))?;
        let run = tokio::time::timeout(PARSER_LIMIT, parse(&parser, POLICY)).await;
        run.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "apparmor_parser takes too long"))?
    }
}

async fn parse(parser: &Path, policy: &str) -> io::Result<()> {
    // The node's cache of compiled policy is its administrator's.
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends before it has read all says why.
        let _ = stdin.write_all(policy.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint: String = complaint.trim().chars().take(COMPLAINT).collect();
    Err(io::Error::other(format!(
        "apparmor_parser: {}: {complaint:?}",
        output.status
    )))
}

fn parser() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(usual)
        .map(|folder| folder.join(PARSER))
        .find(|program| program.is_file())
}

/// Whether the kernel has a profile of this name.
fn is_loaded(name: &str) -> io::Result<bool> {
    Ok(names(&std::fs::read_to_string(PROFILES)?).any(|loaded| loaded == name))
}

/// The names in the kernel's list: lines like "carpel-default (enforce)".
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole() {
        let list = "carpel-default (enforce)\n/usr/bin/man (complain)\na b (c) (kill)\nbroken\n";
        let names: Vec<_> = names(list).collect();
        assert_eq!(names, ["carpel-default", "/usr/bin/man", "a b (c)"]);
    }

    #[test]
    fn the_policy_has_the_name_that_containers_use() {
        assert!(POLICY.contains(&format!("\nprofile {DEFAULT} ")));
        let names = POLICY.matches("peer=").count();
        let own = POLICY.matches(&format!("peer={DEFAULT},")).count();
        assert_eq!(own, names - POLICY.matches("peer=unconfined,").count());
    }
}
