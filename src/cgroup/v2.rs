//! The one hierarchy of cgroup v2.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use rustix::io::Errno;

use super::accounts::{self, Accounts};
use super::change;
use super::devices::{DevicePolicy, program};
use super::dir::{Dir, is_gone};
use super::limits::Limit;
use super::usage::{self, FileReader, Usage, Wanted};
use super::{Error, PATIENCE, keyed};
use crate::sys::{attach_device_program, load_device_program};

/// What every container's cgroup has, where it can be had: limits may come later.
const BASE: [&str; 3] = ["cpu", "memory", "pids"];

/// The hierarchy.
#[derive(Debug)]
pub(super) struct Mounted {
    root: Dir,
    /// What the hierarchy has at all: for the others there is nothing to enable.
    offered: BTreeSet<String>,
    /// The device program without rules of its own: nearly every container's.
    default_program: OnceLock<OwnedFd>,
}

impl Mounted {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let root = Dir::open(path)?;
        // Unreadable is as good as empty: then every limit tells what it lacks.
        let offered = root.read("cgroup.controllers").unwrap_or_default();
        Ok(Self {
            root,
            offered: offered.split_whitespace().map(str::to_owned).collect(),
            default_program: OnceLock::new(),
        })
    }

    /// Makes a cgroup, anew. Returns why a controller could not be enabled, or nothing.
    pub fn make(&self, path: &str, limits: &[Limit]) -> Result<String, Error> {
        let wanted = BASE.into_iter().chain(self.needed(limits));
        let refused = self.enable(path, &wanted.collect())?;
        let made = match self.root.mkdir(path).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let removed = self.root.remove(path, Instant::now() + PATIENCE);
                removed.and_then(|()| Ok(self.root.mkdir(path)?))
            }
            made => made,
        };
        made.map_err(|error| failed(path, "mkdir", error))?;
        Ok(refused)
    }

    /// Writes the limits and attaches the device rules.
    pub fn fill(
        &self,
        path: &str,
        limits: &[Limit],
        devices: &DevicePolicy,
        refused: &str,
    ) -> Result<(), Error> {
        let dir = self
            .root
            .child(path)
            .map_err(|error| failed(path, "open", error))?;
        write(&dir, path, limits, refused)?;
        let DevicePolicy::Rules(rules) = devices else {
            return Ok(());
        };
        let load = || {
            load_device_program(&program(rules))
                .map_err(|error| failed(path, "load the device program", error))
        };
        let attach = |program: &OwnedFd| {
            attach_device_program(dir.as_fd(), program.as_fd())
                .map_err(|error| failed(path, "attach the device program", error))
        };
        if !rules.is_empty() {
            return attach(&load()?);
        }
        match self.default_program.get() {
            Some(program) => attach(program),
            None => {
                let program = load()?;
                attach(self.default_program.get_or_init(|| program))
            }
        }
    }

    pub fn update(&self, path: &str, limits: &[Limit]) -> Result<(), Error> {
        let refused = self.enable(path, &self.needed(limits).collect())?;
        let dir = self
            .root
            .child(path)
            .map_err(|error| failed(path, "open", error))?;
        let places: Vec<_> = limits.iter().map(|limit| (limit, &dir)).collect();
        change::apply(path, &places, |limit| {
            missing_file(&dir, path, limit, &refused)
        })
    }

    /// The controllers of these limits that there are.
    fn needed<'a>(&'a self, limits: &'a [Limit]) -> impl Iterator<Item = &'a str> {
        let controllers = limits.iter().map(|limit| limit.controller.as_str());
        controllers.filter(|controller| self.offered.contains(*controller))
    }

    /// Sees to it that the cgroup at `path` has the controllers `wanted`: makes its parents and enables
    /// what is missing in them. Returns why that was refused, if it was.
    fn enable(&self, path: &str, wanted: &BTreeSet<&str>) -> Result<String, Error> {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        // As a rule all is there.
        if let Ok(dir) = self.root.child(parent)
            && let Ok(enabled) = dir.read("cgroup.subtree_control")
            && missing(&enabled, wanted).is_empty()
        {
            return Ok(String::new());
        }
        let mut refused = String::new();
        let mut at = String::new();
        let mut parts = parent.split('/').filter(|part| !part.is_empty());
        loop {
            let dir = match self.root.child(&at) {
                Err(Errno::NOENT) => {
                    match self.root.mkdir(&at) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(failed(&at, "mkdir", error)),
                    }
                    self.root.child(&at)
                }
                other => other,
            }
            .map_err(|error| failed(&at, "open", error))?;
            if let Err(error) = enable_in(&dir, wanted)
                && refused.is_empty()
            {
                refused = format!("enable it in {}: {error}", dir.path);
            }
            match parts.next() {
                Some(part) => at = format!("{at}/{part}"),
                None => return Ok(refused),
            }
        }
    }

    pub fn join(&self, path: &str) -> io::Result<OwnedFd> {
        Ok(self.root.child(path)?.into())
    }

    pub fn kill(&self, path: &str) -> io::Result<()> {
        // Linux 5.14.
        let killed = self
            .root
            .child(path)
            .and_then(|dir| dir.write("cgroup.kill", "1"));
        match killed.map_err(io::Error::from) {
            Err(error) if is_gone(&error) => Ok(()),
            other => other,
        }
    }

    pub fn pids(&self, path: &str) -> io::Result<Vec<u32>> {
        match self.root.child(path) {
            Ok(dir) => dir.pids(),
            Err(Errno::NOENT) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    pub fn oom_kills(&self, path: &str) -> io::Result<u64> {
        match self.root.child(path)?.read("memory.events") {
            Ok(events) => Ok(keyed(&events, "oom_kill")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    pub fn usage(&self, path: &str, wanted: Wanted, files: &mut FileReader) -> io::Result<Usage> {
        match self.root.child(path) {
            Ok(dir) => usage::v2::read(&dir, wanted, files),
            Err(Errno::NOENT) => Ok(Usage::default()),
            Err(error) => Err(error.into()),
        }
    }

    pub fn accounts(
        &self,
        path: &str,
        sizes: &[String],
        files: &mut FileReader,
    ) -> io::Result<Accounts> {
        match self.root.child(path) {
            Ok(dir) => accounts::v2::read(&dir, sizes, files),
            Err(Errno::NOENT) => Ok(Accounts::default()),
            Err(error) => Err(error.into()),
        }
    }

    pub fn remove(&self, path: &str, end: Instant) -> io::Result<()> {
        self.root.remove(path, end)
    }
}

fn failed(path: &str, action: &str, error: impl Into<io::Error>) -> Error {
    Error::Io {
        cgroup: path.to_owned(),
        action: action.to_owned(),
        source: error.into(),
    }
}

/// Enables in one cgroup what is `wanted` there and not enabled yet. Without all of it, as much as can be.
fn enable_in(dir: &Dir, wanted: &BTreeSet<&str>) -> io::Result<()> {
    let offered = dir.read("cgroup.controllers")?;
    let missing = missing(&dir.read("cgroup.subtree_control")?, wanted);
    let missing: Vec<_> = missing
        .into_iter()
        .filter(|name| offered.split_whitespace().any(|other| other == *name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Beside processes the kernel would enable cpu and pids, which know threads, but then no process
    // could enter what is below. The machine's root is exempt, and alone has no type.
    if dir.read("cgroup.type").is_ok() && !dir.read("cgroup.procs")?.is_empty() {
        return Err(Errno::BUSY.into());
    }
    let all: Vec<_> = missing.iter().map(|name| format!("+{name}")).collect();
    if dir.write("cgroup.subtree_control", &all.join(" ")).is_ok() {
        return Ok(());
    }
    let mut result = Ok(());
    for name in &all {
        result = result.and(dir.write("cgroup.subtree_control", name));
    }
    Ok(result?)
}

fn missing<'a>(enabled: &str, wanted: &BTreeSet<&'a str>) -> Vec<&'a str> {
    let is_enabled = |name: &&str| enabled.split_whitespace().any(|other| other == *name);
    wanted
        .iter()
        .filter(|name| !is_enabled(name))
        .copied()
        .collect()
}

fn write(dir: &Dir, path: &str, limits: &[Limit], refused: &str) -> Result<(), Error> {
    for limit in limits {
        match dir.write(&limit.file, &limit.value) {
            Ok(()) => {}
            Err(Errno::NOENT) if limit.optional => {}
            Err(Errno::NOENT) => return Err(missing_file(dir, path, limit, refused)),
            Err(error) => {
                return Err(Error::Write {
                    cgroup: path.to_owned(),
                    file: limit.file.clone(),
                    value: limit.value.clone(),
                    source: error.into(),
                });
            }
        }
    }
    Ok(())
}

/// Why a cgroup does not have a limit's file.
fn missing_file(dir: &Dir, path: &str, limit: &Limit, refused: &str) -> Error {
    let reason = match (refused, dir.read("cgroup.controllers")) {
        (_, Ok(has)) if has.split_whitespace().any(|name| name == limit.controller) => {
            "this kernel has no such file"
        }
        ("", _) => "this machine does not offer it",
        (refused, _) => refused,
    };
    Error::Controller {
        cgroup: path.to_owned(),
        file: limit.file.clone(),
        controller: limit.controller.clone(),
        reason: reason.to_owned(),
    }
}
