//! The hierarchies of cgroup v1, each with one controller or a few.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::accounts::{self, Accounts};
use super::change;
use super::detect;
use super::devices::{DevicePolicy, DeviceRule, lines};
use super::dir::Dir;
use super::limits::Limit;
use super::usage::{self, FileReader, Usage, Wanted};
use super::{Error, PATIENCE, keyed};

/// The controllers that every container gets a cgroup of: those that are limited or asked, now or
/// later. For the others see the module above.
const NEEDED: [&str; 8] = [
    "memory", "cpu", "cpuacct", "cpuset", "pids", "devices", "freezer", "hugetlb",
];

/// What a supervisor gets no cgroup of: those only restrict, and it is the runtime's own.
const RESTRICTING: [&str; 3] = ["cpuset", "devices", "hugetlb"];

/// Who a cgroup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occupant {
    Supervisor,
    Container,
}

/// How long a frozen cgroup may take to stand still, before its processes are killed as they are.
const FREEZE: Duration = Duration::from_millis(100);

/// The hierarchies.
#[derive(Debug)]
pub(super) struct Mounted(Vec<Hierarchy>);

#[derive(Debug)]
struct Hierarchy {
    root: Dir,
    controllers: Vec<String>,
    needed: bool,
}

impl Hierarchy {
    fn is_for(&self, occupant: Occupant) -> bool {
        let restricts = |name: &String| RESTRICTING.contains(&name.as_str());
        occupant == Occupant::Container || !self.controllers.iter().any(restricts)
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

impl Mounted {
    pub fn open(found: &[detect::Hierarchy]) -> Result<Self, Error> {
        let open = |hierarchy: &detect::Hierarchy| {
            Ok(Hierarchy {
                root: Dir::open(&hierarchy.mounted_on)?,
                controllers: hierarchy.controllers.clone(),
                needed: hierarchy
                    .controllers
                    .iter()
                    .any(|name| NEEDED.contains(&name.as_str())),
            })
        };
        found.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    fn with(&self, controller: &str) -> Option<&Hierarchy> {
        self.0.iter().find(|hierarchy| hierarchy.has(controller))
    }

    /// The hierarchy that says which processes there are.
    fn main(&self) -> Option<&Hierarchy> {
        ["freezer", "pids", "memory", "cpu"]
            .into_iter()
            .find_map(|controller| self.with(controller))
            .or(self.0.first())
    }

    /// Makes a cgroup in every hierarchy where it belongs, anew.
    pub fn make(&self, path: &str, occupant: Occupant) -> Result<(), Error> {
        let mut made: Vec<&Hierarchy> = Vec::new();
        for hierarchy in self.0.iter().filter(|one| one.is_for(occupant)) {
            match hierarchy.mkdir(path) {
                Ok(true) => made.push(hierarchy),
                Ok(false) => {}
                Err(source) => {
                    for hierarchy in made {
                        // It is new, so nothing keeps it.
                        let _ = hierarchy.root.remove(path, Instant::now());
                    }
                    return Err(Error::Io {
                        cgroup: path.to_owned(),
                        action: format!("mkdir in {}", hierarchy.root.path),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Writes the limits and the device rules of a new cgroup.
    pub fn fill(&self, path: &str, limits: &[Limit], devices: &DevicePolicy) -> Result<(), Error> {
        if let Some(cpuset) = self.with("cpuset") {
            cpuset.fill_cpuset(path, limits)?;
        }
        self.set(path, limits)?;
        match devices {
            DevicePolicy::AllowAll => Ok(()),
            DevicePolicy::Rules(rules) => self.restrict_devices(path, rules),
        }
    }

    fn restrict_devices(&self, path: &str, rules: &[DeviceRule]) -> Result<(), Error> {
        let hierarchy = self.with("devices").ok_or_else(|| Error::Controller {
            cgroup: path.to_owned(),
            file: "devices.deny".to_owned(),
            controller: "devices".to_owned(),
            reason: NOT_MOUNTED.to_owned(),
        })?;
        let dir = hierarchy.child(path)?;
        let failed = |file: &str, value: &str, error: Errno| Error::Write {
            cgroup: path.to_owned(),
            file: file.to_owned(),
            value: value.to_owned(),
            source: error.into(),
        };
        dir.write("devices.deny", "a")
            .map_err(|error| failed("devices.deny", "a", error))?;
        let allow = dir
            .file("devices.allow")
            .map_err(|error| failed("devices.allow", "", error))?;
        for line in lines(rules) {
            match rustix::io::write(&allow, line.text.as_bytes()) {
                Err(Errno::PERM) if line.default => {}
                Err(error) => return Err(failed("devices.allow", &line.text, error)),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Writes the limits of a new cgroup.
    fn set(&self, path: &str, limits: &[Limit]) -> Result<(), Error> {
        let mut again: Vec<(&Limit, &Dir)> = Vec::new();
        let dirs = self.dirs(path, limits)?;
        for (limit, dir) in self.places(path, limits, &dirs)? {
            match dir.write(&limit.file, &limit.value) {
                // Two limits of a controller may not contradict each other at any time (quota and
                // period together against the parent's): if not in this order, then in the other.
                Err(Errno::INVAL) => again.push((limit, dir)),
                result => check(path, limit, result)?,
            }
        }
        for (limit, dir) in again {
            check(path, limit, dir.write(&limit.file, &limit.value))?;
        }
        Ok(())
    }

    /// Changes the limits of a cgroup in use; if one cannot be changed, none is.
    pub fn update(&self, path: &str, limits: &[Limit]) -> Result<(), Error> {
        let dirs = self.dirs(path, limits)?;
        let places = self.places(path, limits, &dirs)?;
        change::apply(path, &places, |limit| Error::Controller {
            cgroup: path.to_owned(),
            file: limit.file.clone(),
            controller: limit.controller.clone(),
            reason: NO_SUCH_FILE.to_owned(),
        })
    }

    /// The cgroup's directory for each controller that these limits are of, as far as it is mounted.
    fn dirs(&self, path: &str, limits: &[Limit]) -> Result<Vec<(String, Dir)>, Error> {
        let mut dirs: Vec<(String, Dir)> = Vec::new();
        for limit in limits {
            let known = dirs.iter().any(|(name, _)| *name == limit.controller);
            if let Some(hierarchy) = self.with(&limit.controller)
                && !known
            {
                dirs.push((limit.controller.clone(), hierarchy.child(path)?));
            }
        }
        Ok(dirs)
    }

    /// Where each limit is written. One that may be missing, and whose controller is, has no place.
    fn places<'a>(
        &self,
        path: &str,
        limits: &'a [Limit],
        dirs: &'a [(String, Dir)],
    ) -> Result<Vec<(&'a Limit, &'a Dir)>, Error> {
        let mut places = Vec::with_capacity(limits.len());
        for limit in limits {
            match dirs.iter().find(|(name, _)| *name == limit.controller) {
                Some((_, dir)) => places.push((limit, dir)),
                None if limit.optional => {}
                None => {
                    return Err(Error::Controller {
                        cgroup: path.to_owned(),
                        file: limit.file.clone(),
                        controller: limit.controller.clone(),
                        reason: NOT_MOUNTED.to_owned(),
                    });
                }
            }
        }
        Ok(places)
    }

    pub fn join(&self, path: &str, occupant: Occupant) -> io::Result<Vec<OwnedFd>> {
        let mut tasks = Vec::with_capacity(self.0.len());
        let file = format!("{}/tasks", path.trim_start_matches('/'));
        for hierarchy in self.0.iter().filter(|one| one.is_for(occupant)) {
            match hierarchy.root.file(&file) {
                Ok(fd) => tasks.push(fd),
                Err(Errno::NOENT) if !hierarchy.needed => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(tasks)
    }

    /// Freezes the processes, so that none forks, kills them, and thaws them to die.
    pub fn kill(&self, path: &str) -> io::Result<()> {
        // Freezing patches the running kernel: not for a cgroup that is empty, as most are by now.
        if self.all_pids(path)?.is_empty() {
            return Ok(());
        }
        let end = Instant::now() + PATIENCE;
        let own = std::process::id();
        let freezer = match self.with("freezer").map(|freezer| freezer.root.child(path)) {
            None | Some(Err(Errno::NOENT)) => None,
            Some(dir) => Some(dir?),
        };
        loop {
            let still = freezer.as_ref().is_some_and(freeze);
            let frozen = freezer.as_ref().map_or(Ok(Vec::new()), Dir::pids);
            let all = self.all_pids(path);
            for pid in all.iter().flatten().filter(|pid| **pid != own) {
                if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                    // One that is gone is dead.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            if let Some(freezer) = &freezer {
                thaw(freezer)?;
            }
            let (frozen, all) = (frozen?, all?);
            // One that has not entered the freezer's hierarchy (yet) may have forked.
            if all.is_empty() || still && all.iter().all(|pid| frozen.contains(pid)) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The processes that are in the cgroup in any hierarchy.
    fn all_pids(&self, path: &str) -> io::Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        for hierarchy in &self.0 {
            match hierarchy.root.child(path) {
                Ok(dir) => pids.extend(dir.pids()?),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(pids)
    }

    pub fn pids(&self, path: &str) -> io::Result<Vec<u32>> {
        match self.main().map(|main| main.root.child(path)) {
            Some(Ok(dir)) => dir.pids(),
            None | Some(Err(Errno::NOENT)) => Ok(Vec::new()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    pub fn oom_kills(&self, path: &str) -> io::Result<u64> {
        match self.with("memory") {
            None => Ok(0),
            Some(memory) => Ok(keyed(
                &memory.root.child(path)?.read("memory.oom_control")?,
                "oom_kill",
            )),
        }
    }

    pub fn usage(&self, path: &str, wanted: Wanted, files: &mut FileReader) -> io::Result<Usage> {
        let root = |controller| self.with(controller).map(|hierarchy| &hierarchy.root);
        let roots = usage::v1::Roots {
            cpuacct: root("cpuacct"),
            memory: root("memory"),
            pids: root("pids"),
        };
        usage::v1::read(roots, path, wanted, files)
    }

    pub fn accounts(
        &self,
        path: &str,
        sizes: &[String],
        files: &mut FileReader,
    ) -> io::Result<Accounts> {
        let root = |controller| self.with(controller).map(|hierarchy| &hierarchy.root);
        let roots = accounts::v1::Roots {
            cpu: root("cpu"),
            cpuacct: root("cpuacct"),
            memory: root("memory"),
            pids: root("pids"),
            blkio: root("blkio"),
            hugetlb: root("hugetlb"),
        };
        accounts::v1::read(roots, path, sizes, files)
    }

    pub fn remove(&self, path: &str, end: Instant) -> io::Result<()> {
        let mut result = Ok(());
        for hierarchy in &self.0 {
            result = result.and(hierarchy.root.remove(path, end));
        }
        result
    }
}

const NOT_MOUNTED: &str = "this machine has not mounted it";
const NO_SUCH_FILE: &str = "this kernel has no such file";

impl Hierarchy {
    /// Makes a cgroup, anew. Says whether it was made: only below a parent that is there, if this
    /// hierarchy is not needed.
    fn mkdir(&self, path: &str) -> io::Result<bool> {
        match self.root.mkdir(path) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                self.root.remove(path, Instant::now() + PATIENCE)?;
                self.root.mkdir(path)?;
                Ok(true)
            }
            Err(Errno::NOENT) if !self.needed => Ok(false),
            Err(Errno::NOENT) => {
                self.make_parents(path)?;
                self.root.mkdir(path)?;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn make_parents(&self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            let parent = &path[..at];
            match self.root.mkdir(parent) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives a new cpuset the parent's CPUs and memory nodes where no limit says otherwise: without any
    /// no process may enter.
    fn fill_cpuset(&self, path: &str, limits: &[Limit]) -> Result<(), Error> {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let limited = limits.iter().any(|limit| limit.file == file);
            let path = if limited { parent(path) } else { path };
            self.inherit(path, file).map_err(|source| Error::Io {
                cgroup: path.to_owned(),
                action: format!("copy the parent's {file}"),
                source,
            })?;
        }
        Ok(())
    }

    /// The value of a file; one that is empty, here or above, is given the parent's.
    fn inherit(&self, path: &str, file: &str) -> io::Result<String> {
        let dir = self.root.child(path)?;
        let value = dir.read(file)?.trim().to_owned();
        if !value.is_empty() || path.trim_matches('/').is_empty() {
            return Ok(value);
        }
        let value = self.inherit(parent(path), file)?;
        dir.write(file, &value)?;
        Ok(value)
    }

    fn child(&self, path: &str) -> Result<Dir, Error> {
        self.root.child(path).map_err(|error| Error::Io {
            cgroup: path.to_owned(),
            action: format!("open in {}", self.root.path),
            source: error.into(),
        })
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Freezes a cgroup and waits until it stands still. Says whether it does.
fn freeze(dir: &Dir) -> bool {
    let end = Instant::now() + FREEZE;
    loop {
        // To be written again each time: a process that was forked meanwhile is frozen by it.
        if dir.write("freezer.state", "FROZEN").is_err() {
            return false;
        }
        match dir.read("freezer.state") {
            Ok(state) if state.trim() == "FROZEN" => return true,
            Ok(_) if Instant::now() < end => std::thread::sleep(Duration::from_micros(200)),
            _ => return false,
        }
    }
}

/// Also what the container itself has frozen below: it could not die.
fn thaw(dir: &Dir) -> io::Result<()> {
    dir.walk(|dir| Ok(dir.write("freezer.state", "THAWED")?))
}

fn check(path: &str, limit: &Limit, result: rustix::io::Result<()>) -> Result<(), Error> {
    match result {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) if limit.optional => Ok(()),
        Err(Errno::NOENT) => Err(Error::Controller {
            cgroup: path.to_owned(),
            file: limit.file.clone(),
            controller: limit.controller.clone(),
            reason: NO_SUCH_FILE.to_owned(),
        }),
        Err(error) => Err(Error::Write {
            cgroup: path.to_owned(),
            file: limit.file.clone(),
            value: limit.value.clone(),
            source: error.into(),
        }),
    }
}
