//! Where things lie on disk.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};

/// How the names of our network namespaces begin, in a folder that others use, too.
const PIN_PREFIX: &str = "carpel-";

#[derive(Debug, Clone)]
pub struct Paths {
    /// Durable: /var/lib/carpel.
    pub root: PathBuf,
    /// Volatile: /run/carpel.
    pub state: PathBuf,
    /// Where network namespaces are pinned: /run/netns.
    pub netns: PathBuf,
}

impl Paths {
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.to_string())
    }

    #[must_use]
    pub fn sandbox_record(&self, id: &SandboxId) -> PathBuf {
        self.sandbox(id).join("record")
    }

    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    #[must_use]
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.to_string())
    }

    #[must_use]
    pub fn container_record(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("record")
    }

    /// What a container's hooks find its spec in.
    #[must_use]
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.state.join("bundles").join(id.to_string())
    }

    /// Records that could not be read.
    #[must_use]
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    #[must_use]
    pub fn pod_states(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// A pod's volatile state: control socket and exits.
    #[must_use]
    pub fn pod_state(&self, id: &SandboxId) -> PathBuf {
        self.pod_states().join(id.to_string())
    }

    #[must_use]
    pub fn exits(&self, id: &SandboxId) -> PathBuf {
        self.pod_state(id).join("exits")
    }

    #[must_use]
    pub fn netns(&self, id: &SandboxId) -> PathBuf {
        self.netns.join(format!("{PIN_PREFIX}{id}"))
    }

    /// The sandbox whose network namespace is pinned at `path`, if it is a name that carpel gives.
    #[must_use]
    pub fn pinned(&self, path: &Path) -> Option<SandboxId> {
        let name = path.strip_prefix(&self.netns).ok()?.to_str()?;
        name.strip_prefix(PIN_PREFIX)?.parse().ok()
    }

    /// Whether state can be written down: a file system that has failed is often mounted read-only by the
    /// kernel.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] with the folder that cannot be written to.
    pub fn check_writable(&self) -> Result<(), Error> {
        for dir in [&self.root, &self.state] {
            rustix::fs::access(dir, Access::WRITE_OK).map_err(|error| {
                let dir = dir.display();
                let why = std::io::Error::from(error);
                Error::FailedPrecondition(format!("cannot write to {dir}: {why}"))
            })?;
        }
        Ok(())
    }

    /// Makes the folders that are always there.
    ///
    /// # Errors
    /// As `mkdir(2)`.
    pub fn make(&self) -> std::io::Result<()> {
        for dir in [
            self.sandboxes(),
            self.containers(),
            self.quarantine(),
            self.pod_states(),
            self.state.join("bundles"),
        ] {
            super::make_dir(&dir)?;
        }
        // Others keep their namespaces here too: `ip netns` has made it world-readable since ever.
        let made: &Path = &self.netns;
        std::fs::create_dir_all(made)
    }
}
