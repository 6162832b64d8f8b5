//! From an OCI spec to a Plan: the steps of a process, in words and as the supervisor reads them, and the
//! descriptors that it needs.
//!
//! The order of a container's steps is that of its dangers: where it belongs while it can still see the
//! host; the file system from the root outwards; what is hidden and made read-only when all of it is
//! there; the session; and its privileges, one after the other as the kernel lets go of them:
//!
//! ```text
//! cgroup ▸ oom score (▸ root of the user namespace) ▸ pod's /dev/shm ▸ root ▸ mounts ▸ devices ▸ working directory
//!   ▸ read-only, masks ▸ session, streams, limits ▸ bounding set ▸ user ▸ capabilities + SYS_ADMIN ▸ chdir
//!   ▸ AppArmor or SELinux ▸ seccomp ▸ capabilities ▸ ambient ones ▸ no_new_privs (▸ seccomp, if it may load only now) ▸ exec
//! ```

mod compose;
mod failure;
mod filesystem;
mod hooks;
mod privileges;
mod reaper;
mod sandbox;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use carpel_wire::{FdIndex, PidNamespace, Step, UserStart};
use oci_spec::runtime::{LinuxNamespaceType, Process};

use self::compose::Composer;
use super::config::PidScope;
use super::host::{CgroupLayout, HostFacts};
use super::oci::{self, Source};
use crate::seccomp;
use crate::store::bind::BindMount;

pub use failure::describe_failure;
pub use reaper::compile_reaper;
pub use sandbox::{
    Namespace, compile_sandbox, compile_succession, sandbox_namespaces, sysctl_step,
};

/// CLONE_NEW* of `clone(2)`.
const CLONE_NEWNS: u64 = 0x0002_0000;
const CLONE_NEWCGROUP: u64 = 0x0200_0000;
const CLONE_NEWUTS: u64 = 0x0400_0000;
const CLONE_NEWIPC: u64 = 0x0800_0000;
const CLONE_NEWUSER: u64 = 0x1000_0000;
const CLONE_NEWNET: u64 = 0x4000_0000;

/// Why a spec makes no Plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Command(#[from] oci::Error),
    #[error("{0:?} holds a NUL byte")]
    Nul(String),
    #[error("mounts: {path}: {reason}")]
    Mount { path: String, reason: String },
    #[error("mounts: {count} need a file descriptor each, {most} can be had")]
    TooManyMounts { count: usize, most: usize },
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccomp::Error),
    #[error("arguments, environment and mounts take {0} bytes, more than the {most} of a plan", most = carpel_wire::MAX_PLAN)]
    TooLong(usize),
    #[error("spec: {0} is missing")]
    Missing(&'static str),
}

/// A descriptor that a Plan refers to. The caller opens it and sends it in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FdSource {
    /// The Plan itself, in a sealed memfd.
    Plan,
    /// The supervisor's program, in a sealed memfd.
    Program,
    /// The root file system, a detached mount.
    Rootfs,
    /// The v2 cgroup's directory.
    CgroupDir,
    /// The `tasks` file of the cgroup's n-th v1 hierarchy. There is one for each hierarchy of the machine:
    /// if the cgroup is in fewer, /dev/null stands for the rest (what the step writes there has no effect).
    CgroupTasks(usize),
    /// A clone of something of the host's, detached.
    Mount(BindMount),
    /// One of the container's image volumes, with these MOUNT_ATTR_* bits.
    Image {
        volume: usize,
        attrs: u64,
    },
    /// The pod's user namespace.
    UserNamespace,
    /// A namespace, opened at this path.
    Namespace(PathBuf),
    /// The devpts that the process's terminal is in, a detached mount.
    Devpts,
    /// The process's ends of its streams; /dev/null for a stdin that is not wanted.
    Stdin,
    Stdout,
    Stderr,
    /// The process's end of the socket on which it waits for hooks.
    HookChannel,
    /// The container's state for its hooks, before and after it is created.
    HookState {
        created: bool,
    },
    /// What takes the output of hooks.
    HookOutput,
    /// A copy of the host's mounts, for hooks of a pod with a user namespace: its root is the host's.
    HostMounts,
    /// A file system with the bundle in it, that covers what such hooks may not pass.
    BundleCover,
    /// The process's end of its terminal, which is number 0 of its devpts.
    TerminalSlave,
}

/// A Plan, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// CLONE_NEW* flags, without CLONE_NEWPID.
    pub clone_flags: u64,
    pub pid_namespace: PidNamespace,
    /// Of a process that is cloned in the pod's user namespace.
    pub user: Option<UserStart>,
    pub plan: Vec<u8>,
    /// What each step does, for [`describe_failure`].
    pub steps: Vec<String>,
    /// In the order of their indexes.
    pub fds: Vec<FdSource>,
}

/// The Plan of a container's first process.
///
/// # Errors
/// [`Error`] for what the user can change: too many mounts, an option that no mount has, …
pub fn compile_container(source: &Source, host: &HostFacts) -> Result<Compiled, Error> {
    let process = process(source)?;
    let mut composer = Composer::new();
    composer.join_cgroup(host);
    if source.in_user_namespace() {
        composer.enter_user_namespace(process);
    } else {
        composer.oom_score(process);
    }
    // While the process still sees the supervisor's own procfs.
    let linux = source.spec.linux().as_ref();
    let sysctls = linux.and_then(|linux| linux.sysctl().clone());
    for (key, value) in BTreeMap::from_iter(sysctls.unwrap_or_default()) {
        sandbox::sysctl(&mut composer, &key, &value, None)?;
    }
    filesystem::compose(&mut composer, source, host)?;
    let tty = process.terminal().unwrap_or(false);
    composer.streams(process, tty);
    privileges::compose(&mut composer, source, host)?;
    hooks::before_exec(&mut composer, source)?;
    composer.exec(source, process.args().as_deref().unwrap_or_default(), &[])?;
    let own = |typ| {
        let namespaces = source
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        namespaces
            .into_iter()
            .flatten()
            .any(|namespace| namespace.typ() == typ)
    };
    let cgroup = if own(LinuxNamespaceType::Cgroup) {
        CLONE_NEWCGROUP
    } else {
        0
    };
    let pid_namespace = match source.pid {
        PidScope::Container => PidNamespace::New,
        PidScope::Pod => PidNamespace::Pod,
        PidScope::Node => PidNamespace::Host,
        PidScope::Target(id) => PidNamespace::Of(id.object()),
    };
    composer.finish(CLONE_NEWNS | cgroup, pid_namespace)
}

/// The Plan of a command that runs in a container beside its first process: in the same namespaces and
/// cgroup, with the same rights, environment and working directory.
///
/// # Errors
/// As [`compile_container`].
pub fn compile_exec(
    source: &Source,
    command: &[String],
    tty: bool,
    host: &HostFacts,
) -> Result<Compiled, Error> {
    oci::check_command(command)?;
    let process = process(source)?;
    let mut composer = Composer::new();
    composer.join_cgroup(host);
    composer.oom_score(process);
    // Whatever its first process is in by now.
    let mut flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP;
    if source.in_user_namespace() {
        flags |= CLONE_NEWUSER;
    }
    let pidfd = FdIndex::TARGET;
    composer.step(
        "enter the container's namespaces",
        &Step::SetNs { pidfd, flags },
    );
    composer.streams(process, tty);
    privileges::compose(&mut composer, source, host)?;
    let term: &[&str] = if tty { &["TERM=xterm"] } else { &[] };
    composer.exec(source, command, term)?;
    let pid_namespace = match source.pid {
        PidScope::Container | PidScope::Target(_) => PidNamespace::Of(source.id.object()),
        PidScope::Pod => PidNamespace::Pod,
        PidScope::Node => PidNamespace::Host,
    };
    composer.finish(0, pid_namespace)
}

fn process(source: &Source) -> Result<&Process, Error> {
    source
        .spec
        .process()
        .as_ref()
        .ok_or(Error::Missing("process"))
}

/// How many hierarchies a process joins by itself.
fn hierarchies(host: &HostFacts) -> usize {
    match &host.cgroups {
        CgroupLayout::V2 => 0,
        CgroupLayout::V1(hierarchies) => hierarchies.len(),
    }
}
