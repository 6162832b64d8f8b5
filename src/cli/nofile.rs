//! The daemon's limit on open files: raised for itself, kept as it was for the containers.

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// RLIMIT_NOFILE as the daemon was started with: what containers get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalNofile {
    pub soft: rlim_t,
    pub hard: rlim_t,
}

/// Raises the soft limit to the hard one and returns the limits as they were.
pub fn raise() -> anyhow::Result<OriginalNofile> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("read the limit on open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit on open files")?;
    }
    Ok(OriginalNofile { soft, hard })
}
