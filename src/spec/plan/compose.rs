//! A Plan being written, with the words for each step and the list of descriptors.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use carpel_wire::{
    FdIndex, MAX_FDS, MAX_PLAN, NulList, PidNamespace, PlanWriter, Step, UserStart, encode_nul_list,
};
use oci_spec::runtime::{PosixRlimitType, Process};

use super::{CgroupLayout, Compiled, Error, FdSource, HostFacts, Source, hierarchies};
use crate::spec::config::Propagation;
use crate::spec::env::DEFAULT_PATH;

/// Descriptors that travel in the same message and are not the Plan's: ends of pipes, the log, exits.
const RESERVED: usize = 8;

/// umask of a process, unless its spec says another.
const UMASK: u32 = 0o022;

pub(super) struct Composer {
    writer: PlanWriter,
    steps: Vec<String>,
    fds: Vec<FdSource>,
    user: Option<UserStart>,
}

impl Composer {
    pub(super) fn new() -> Self {
        Self {
            writer: PlanWriter::default(),
            steps: Vec::new(),
            fds: vec![FdSource::Plan],
            user: None,
        }
    }

    pub(super) fn step(&mut self, what: impl Into<String>, step: &Step<'_>) {
        self.writer.push(step);
        self.steps.push(what.into());
    }

    /// A number too large for an index is refused in [`Composer::finish`].
    pub(super) fn fd(&mut self, source: FdSource) -> FdIndex {
        self.fds.push(source);
        FdIndex(u16::try_from(self.fds.len() - 1).unwrap_or(u16::MAX - 1))
    }

    pub(super) fn join_cgroup(&mut self, host: &HostFacts) {
        if host.cgroups == CgroupLayout::V2 {
            self.fd(FdSource::CgroupDir);
        }
        for number in 0..hierarchies(host) {
            let tasks = self.fd(FdSource::CgroupTasks(number));
            self.step("join the cgroup", &Step::JoinTasks { tasks });
        }
    }

    /// While the process still sees the supervisor's own procfs.
    pub(super) fn oom_score(&mut self, process: &Process) {
        if let Some(value) = process.oom_score_adj() {
            self.step(
                format!("set oom_score_adj to {value}"),
                &Step::OomScoreAdj { value },
            );
        }
    }

    /// The process is cloned in the user namespace, where it becomes root: what it makes belongs to that one.
    /// Its score is set on the way, by who still may.
    pub(super) fn enter_user_namespace(&mut self, process: &Process) {
        self.user = Some(UserStart {
            namespace: self.fd(FdSource::UserNamespace),
            oom_score_adj: process.oom_score_adj().unwrap_or(0),
            locked: [0; 4],
        });
        let step = Step::Ids { uid: 0, gid: 0 };
        self.step("become root of the user namespace", &step);
    }

    /// Session, streams, umask and limits.
    pub(super) fn streams(&mut self, process: &Process, tty: bool) {
        self.step("make a session", &Step::SetSid);
        let (stdin, stdout, stderr) = if tty {
            let slave = self.fd(FdSource::TerminalSlave);
            (slave, slave, slave)
        } else {
            let stdin = self.fd(FdSource::Stdin);
            (stdin, self.fd(FdSource::Stdout), self.fd(FdSource::Stderr))
        };
        self.step(
            "set up the standard streams",
            &Step::Stdio {
                stdin,
                stdout,
                stderr,
            },
        );
        if tty {
            self.step("take the terminal", &Step::ControllingTerminal);
        }
        let mask = process.user().umask().unwrap_or(UMASK);
        self.step("set the umask", &Step::Umask { mask });
        for limit in process.rlimits().iter().flatten() {
            let (soft, hard) = (limit.soft(), limit.hard());
            let resource = resource(limit.typ());
            self.step(
                format!("set {} to {soft}, {hard}", limit.typ()),
                &Step::Rlimit {
                    resource,
                    soft,
                    hard,
                },
            );
        }
    }

    /// The end: `command`, looked up in the PATH of its environment. `defaults` are "NAME=value" for
    /// variables that it does not have.
    pub(super) fn exec(
        &mut self,
        source: &Source,
        command: &[String],
        defaults: &[&str],
    ) -> Result<(), Error> {
        let process = super::process(source)?;
        let mut env = source
            .binary_env
            .merge(process.env().as_deref().unwrap_or_default());
        for default in defaults {
            let name = &default[..=default.find('=').unwrap_or(default.len() - 1)];
            if !env
                .iter()
                .any(|variable| variable.starts_with(name.as_bytes()))
            {
                env.push(default.as_bytes().to_vec());
            }
        }
        let program = command.first().ok_or(crate::spec::oci::Error::NoCommand)?;
        let candidates = nul_list(&candidates(program, &env))?;
        let arguments = nul_list(command)?;
        let environment = nul_list(&env)?;
        let list = |bytes| NulList::new(bytes).expect("an encoded list ends with a NUL");
        let step = Step::Exec {
            candidates: list(&candidates),
            arguments: list(&arguments),
            environment: list(&environment),
        };
        self.step(format!("exec: {program:?}"), &step);
        Ok(())
    }

    pub(super) fn finish(
        mut self,
        clone_flags: u64,
        pid_namespace: PidNamespace,
    ) -> Result<Compiled, Error> {
        let most = MAX_FDS - RESERVED;
        let is_mount =
            |source: &&FdSource| matches!(source, FdSource::Mount(_) | FdSource::Image { .. });
        if self.fds.len() > most {
            let count = self.fds.iter().filter(is_mount).count();
            return Err(Error::TooManyMounts {
                count,
                most: most - (self.fds.len() - count),
            });
        }
        if let Some(user) = &mut self.user {
            user.locked = locked(&self.fds);
        }
        let plan = self.writer.bytes().to_vec();
        if plan.len() > MAX_PLAN {
            return Err(Error::TooLong(plan.len()));
        }
        Ok(Compiled {
            clone_flags,
            pid_namespace,
            user: self.user,
            plan,
            steps: self.steps,
            fds: self.fds,
        })
    }
}

/// The mounts whose flags root of a user namespace must not be able to clear. What is mounted by the container
/// and then seen by the host cannot be copied for this.
fn locked(fds: &[FdSource]) -> [u64; 4] {
    let mut bits = [0; 4];
    for (index, source) in fds.iter().enumerate() {
        let to_lock = match source {
            FdSource::Mount(mount) => mount.propagation != Propagation::Bidirectional,
            FdSource::HostMounts => true,
            _ => false,
        };
        if to_lock {
            bits[index / 64] |= 1 << (index % 64);
        }
    }
    bits
}

/// Where a program may be: itself if it is a path, else in each folder of PATH.
fn candidates(program: &str, env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if program.contains('/') {
        return vec![program.as_bytes().to_vec()];
    }
    let path = env
        .iter()
        .find_map(|variable| variable.strip_prefix(b"PATH="));
    let path = path
        .filter(|path| !path.is_empty())
        .unwrap_or(DEFAULT_PATH.as_bytes());
    path.split(|byte| *byte == b':')
        .map(|folder| {
            // An empty one means the working directory.
            let folder = if folder.is_empty() { b"." } else { folder };
            [folder, b"/", program.as_bytes()].concat()
        })
        .collect()
}

fn nul_list<S: AsRef<[u8]>>(strings: &[S]) -> Result<Vec<u8>, Error> {
    encode_nul_list(strings.iter().map(AsRef::as_ref))
        .map_err(|string| Error::Nul(String::from_utf8_lossy(string).into_owned()))
}

/// A path or name as the kernel reads it.
pub(super) fn terminated(text: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
    let bytes = text.as_ref().as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(Error::Nul(text.as_ref().display().to_string()));
    }
    Ok([bytes, &[0]].concat())
}

/// RLIMIT_* of `setrlimit(2)`.
fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
