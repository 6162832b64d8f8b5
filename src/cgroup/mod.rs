//! Cgroups of sandboxes and containers, with the cgroupfs driver: v2, v1 and hybrid.
//!
//! A path such as "/kubepods/pod…/<id>" means the same cgroup in every hierarchy, below what is mounted
//! (in a cgroup namespace, or a container, that is the part which is seen there).
//!
//! ```text
//! create ──▶ join (the process enters while it is cloned) ──▶ kill ──▶ remove
//! ```
//!
//! - A leaf is made new: what an earlier attempt left is removed first. If a limit cannot be set, nothing
//!   stays behind, except parents.
//! - **v2**: cpu, memory and pids are enabled on the way down where that is possible, others when a limit
//!   needs them. That one cannot be enabled (a parent with processes in it, a nested machine) is an
//!   error only for a limit that needs it.
//! - **v1**: a container gets a cgroup in memory, cpu, cpuacct, cpuset, pids, devices, freezer and
//!   hugetlb, as far as they are mounted. In any other hierarchy (blkio, net_cls, name=systemd, …) it
//!   gets one only below a parent that is there already: then whoever made that parent means it to hold
//!   for the pod. Without it there is nothing that a cgroup would add, and each costs time.
//! - **hybrid** is v1. The unified hierarchy beside it is left alone: it has no controllers, and to move
//!   a process in it costs milliseconds (`cgroup.procs` takes a global lock for writing).
//!
//! All calls block for microseconds to milliseconds, but for [`Cgroup::kill`] and [`Cgroup::remove`],
//! which may wait for dying processes, as long as [`PATIENCE`].

mod accounts;
mod change;
mod detect;
mod devices;
mod dir;
mod limits;
mod usage;
mod v1;
mod v2;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use accounts::{
    Accounts, CpuTimes, DeviceAccounts, HugePages, MemoryAccounts, TasksLimit, Throttling,
    huge_page_sizes,
};
pub use devices::{Access, DeviceKind, DevicePolicy, DeviceRule};
pub use usage::{CpuUsage, FileReader, MemoryUsage, Pressure, Stall, SwapUsage, Usage, Wanted};

use crate::spec::config::Resources;
use limits::Limit;

/// The longest that a call waits for processes to die.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Why a cgroup could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cgroup hierarchy is mounted")]
    NotMounted,
    #[error("cgroup path {0:?} is not absolute and normal")]
    Path(String),
    #[error("cgroup {cgroup}: {action}: {source}")]
    Io {
        cgroup: String,
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("cgroup {cgroup}: write {value:?} to {file}: {source}")]
    Write {
        cgroup: String,
        file: String,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "cgroup {cgroup}: {file} needs the controller {controller}, which is not available: {reason}"
    )]
    Controller {
        cgroup: String,
        file: String,
        controller: String,
        reason: String,
    },
    #[error("cgroup setting {key:?}: {reason}")]
    Unified { key: String, reason: &'static str },
    #[error(
        "cgroup {cgroup}: {file} cannot become {value}: {used} bytes are in use and cannot be reclaimed"
    )]
    InUse {
        cgroup: String,
        file: String,
        value: String,
        used: u64,
    },
    #[error("a limit of memory and swap together needs one of memory, of at most as much")]
    Swap,
}

impl Error {
    /// Whether it is the limits that are wrong, and not the machine.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::Controller { .. } | Self::Unified { .. } | Self::Swap => true,
            // What these files say of a value that they do not take. A cpuset beyond its parent's is EACCES.
            Self::Write { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::EINVAL | libc::ERANGE | libc::EACCES | libc::EDOM | libc::EOPNOTSUPP)
            ),
            _ => false,
        }
    }

    /// Whether the cgroup is not there (any more).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Write { source, .. } => dir::is_gone(source),
            _ => false,
        }
    }
}

/// Which interface the controllers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller; also the hybrid.
    V1,
    /// One hierarchy for all.
    V2,
}

/// The machine's cgroup hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroups(Arc<Hierarchies>);

#[derive(Debug)]
enum Hierarchies {
    V1(v1::Mounted),
    V2(v2::Mounted),
}

impl Cgroups {
    /// Finds the hierarchies that are mounted.
    ///
    /// # Errors
    /// [`Error::NotMounted`], or as `open(2)`.
    pub fn detect() -> Result<Self, Error> {
        let path = "/proc/self/mountinfo";
        let table = std::fs::read(path).map_err(|source| Error::Io {
            cgroup: "/".to_owned(),
            action: format!("read {path}"),
            source,
        })?;
        let found = detect::parse(&String::from_utf8_lossy(&table));
        let hierarchies = if found.v1.iter().any(|hierarchy| !hierarchy.is_named()) {
            Hierarchies::V1(v1::Mounted::open(&found.v1)?)
        } else if let Some(path) = found.v2 {
            Hierarchies::V2(v2::Mounted::open(&path)?)
        } else {
            return Err(Error::NotMounted);
        };
        Ok(Self(Arc::new(hierarchies)))
    }

    #[must_use]
    pub fn version(&self) -> Version {
        match *self.0 {
            Hierarchies::V1(_) => Version::V1,
            Hierarchies::V2(_) => Version::V2,
        }
    }

    /// The path of the cgroup `name` below `parent`.
    #[must_use]
    pub fn path(parent: &str, name: &str) -> String {
        format!("{}/{name}", parent.trim_end_matches('/'))
    }

    /// Makes a cgroup, and its parents where they are missing, and gives it its limits and device rules.
    /// One that is there already, without processes, is replaced.
    ///
    /// # Errors
    /// [`Error::Io`] with EBUSY if there is one with processes; [`Error::Controller`] for a limit that
    /// this machine cannot set; [`Error::Write`] for one that the kernel refuses. Nothing stays of the
    /// cgroup then.
    pub fn create(
        &self,
        path: &str,
        resources: Option<&Resources>,
        devices: &DevicePolicy,
    ) -> Result<Cgroup, Error> {
        if !is_normal(path) {
            return Err(Error::Path(path.to_owned()));
        }
        let cgroup = self.open(path);
        let limits = cgroup.limits(resources)?;
        let filled = match &*self.0 {
            Hierarchies::V1(mounted) => {
                mounted.make(path, v1::Occupant::Container)?;
                mounted.fill(path, &limits, devices)
            }
            Hierarchies::V2(mounted) => {
                let refused = mounted.make(path, &limits)?;
                mounted.fill(path, &limits, devices, &refused)
            }
        };
        match filled {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                // It is new, so nothing keeps it. The first error says more than one of this would.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    /// Makes the cgroup of a pod's supervisor, without limits. On v1 it is only in hierarchies that count
    /// or kill.
    ///
    /// # Errors
    /// As [`Cgroups::create`].
    pub fn create_for_supervisor(&self, path: &str) -> Result<(), Error> {
        match &*self.0 {
            Hierarchies::V1(_) if !is_normal(path) => Err(Error::Path(path.to_owned())),
            Hierarchies::V1(mounted) => mounted.make(path, v1::Occupant::Supervisor),
            Hierarchies::V2(_) => self.create(path, None, &DevicePolicy::AllowAll).map(drop),
        }
    }

    /// What a supervisor needs to enter the cgroup that was made for it.
    ///
    /// # Errors
    /// As `open(2)`: `NotFound` if the cgroup is gone.
    pub fn join_as_supervisor(&self, path: &str) -> io::Result<Join> {
        match &*self.0 {
            Hierarchies::V1(mounted) => mounted.join(path, v1::Occupant::Supervisor).map(Join::V1),
            Hierarchies::V2(mounted) => mounted.join(path).map(Join::V2),
        }
    }

    /// A cgroup that is there, or was.
    #[must_use]
    pub fn open(&self, path: &str) -> Cgroup {
        Cgroup {
            hierarchies: self.clone(),
            path: path.to_owned(),
        }
    }
}

/// Whether a path is absolute, without empty parts and dots, and something the kernel takes as a name.
fn is_normal(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|below| {
        below
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\n', '\0']))
    })
}

/// How a process enters a cgroup.
#[derive(Debug)]
pub enum Join {
    /// The cgroup's directory, for `clone3(2)` with CLONE_INTO_CGROUP.
    V2(OwnedFd),
    /// The `tasks` file of each hierarchy: the process writes "0" to it while it has one thread.
    V1(Vec<OwnedFd>),
}

/// A cgroup, by its path.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchies: Cgroups,
    path: String,
}

impl Cgroup {
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    #[must_use]
    pub fn exists(&self) -> bool {
        !matches!(self.join(), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// What a process needs to enter.
    ///
    /// # Errors
    /// As `open(2)`: `NotFound` if the cgroup is gone.
    pub fn join(&self) -> io::Result<Join> {
        match &*self.hierarchies.0 {
            Hierarchies::V1(mounted) => mounted
                .join(&self.path, v1::Occupant::Container)
                .map(Join::V1),
            Hierarchies::V2(mounted) => mounted.join(&self.path).map(Join::V2),
        }
    }

    /// Changes limits while the cgroup is in use. One that is `None` stays as it is.
    ///
    /// # Errors
    /// As [`Cgroups::create`], and [`Error::InUse`]. All limits are as before then.
    pub fn update(&self, resources: &Resources) -> Result<(), Error> {
        let limits = self.limits(Some(resources))?;
        match &*self.hierarchies.0 {
            Hierarchies::V1(mounted) => mounted.update(&self.path, &limits),
            Hierarchies::V2(mounted) => mounted.update(&self.path, &limits),
        }
    }

    /// Sends SIGKILL to every process in the cgroup and below it, also to those that are just being
    /// forked. They may still be dying when this returns. A cgroup that is gone has none: no error.
    ///
    /// # Errors
    /// On v1, `TimedOut` if processes stay alive for [`PATIENCE`] because they cannot be frozen.
    pub fn kill(&self) -> io::Result<()> {
        self.check_not_root()?;
        match &*self.hierarchies.0 {
            Hierarchies::V1(mounted) => mounted.kill(&self.path),
            Hierarchies::V2(mounted) => mounted.kill(&self.path),
        }
    }

    /// The processes in the cgroup and below it, as the daemon's PID namespace numbers them (those
    /// outside of it are left out). Zombies are not among them. None if the cgroup is gone.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        match &*self.hierarchies.0 {
            Hierarchies::V1(mounted) => mounted.pids(&self.path),
            Hierarchies::V2(mounted) => mounted.pids(&self.path),
        }
    }

    /// How many processes of the cgroup the kernel has killed because memory ran out (on v2 also below
    /// it). 0 without a memory controller.
    ///
    /// # Errors
    /// As `read(2)`: `NotFound` if the cgroup is gone.
    pub fn oom_kills(&self) -> io::Result<u64> {
        match &*self.hierarchies.0 {
            Hierarchies::V1(mounted) => mounted.oom_kills(&self.path),
            Hierarchies::V2(mounted) => mounted.oom_kills(&self.path),
        }
    }

    /// What the cgroup and those below it use. Of one that is gone, nothing.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn usage(&self, wanted: Wanted, files: &mut FileReader) -> io::Result<Usage> {
        match &*self.hierarchies.0 {
            Hierarchies::V1(mounted) => mounted.usage(&self.path, wanted, files),
            Hierarchies::V2(mounted) => mounted.usage(&self.path, wanted, files),
        }
    }

    /// What is counted beside that, with the huge pages of these sizes. Of a cgroup that is gone, nothing.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn accounts(&self, sizes: &[String], files: &mut FileReader) -> io::Result<Accounts> {
        match &*self.hierarchies.0 {
            Hierarchies::V1(mounted) => mounted.accounts(&self.path, sizes, files),
            Hierarchies::V2(mounted) => mounted.accounts(&self.path, sizes, files),
        }
    }

    /// Removes the cgroup and all below it, waiting for processes that are just dying. What is gone
    /// already is fine.
    ///
    /// # Errors
    /// `ResourceBusy` if there are processes in it after [`PATIENCE`].
    pub fn remove(&self) -> io::Result<()> {
        self.check_not_root()?;
        let end = Instant::now() + PATIENCE;
        match &*self.hierarchies.0 {
            Hierarchies::V1(mounted) => mounted.remove(&self.path, end),
            Hierarchies::V2(mounted) => mounted.remove(&self.path, end),
        }
    }

    /// What would end the machine is no cgroup of ours.
    fn check_not_root(&self) -> io::Result<()> {
        if is_normal(&self.path) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("cgroup path {:?} is not absolute and normal", self.path),
        ))
    }

    fn limits(&self, resources: Option<&Resources>) -> Result<Vec<Limit>, Error> {
        match resources {
            None => Ok(Vec::new()),
            Some(resources) => match self.hierarchies.version() {
                Version::V1 => limits::v1(resources),
                Version::V2 => limits::v2(resources),
            },
        }
    }
}

/// The lines "key value" of a file such as memory.events: the value of `key`, or 0.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
