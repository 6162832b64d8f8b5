//! What a process of a container needs before it can be cloned: its descriptors, in the order of its Plan.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use carpel_wire::{FdIndex, Held, Output, Start};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::Running;
use super::hooks::HookFds;
use super::kept::Kept;
use crate::cgroup::Join;
use crate::error::Error;
use crate::node::orphans;
use crate::spec::config::UserNamespace;
use crate::spec::mounts::TTY;
use crate::spec::plan::{Compiled, FdSource};
use crate::spec::user::User;
use crate::store::bind::{self, Terminal};
use crate::store::memfd;

/// Twice the throughput of the default 64 KiB (see the kernel notes); pages are taken only when used.
const PIPE_SIZE: usize = 256 << 10;

/// The standard streams: the process's ends and ours.
pub(crate) enum Streams {
    /// A supervisor has none.
    None,
    Pipes {
        child: [Option<OwnedFd>; 3],
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        devpts: Option<OwnedFd>,
        slave: Option<OwnedFd>,
        master: OwnedFd,
    },
}

/// Who standard streams belong to, in the host's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: u32,
    /// The group of terminals.
    pub(crate) tty: u32,
}

impl Owner {
    /// The user of a container's processes. Where no group of terminals is mapped, root's takes its place.
    pub(crate) fn of(user: &User, namespace: Option<UserNamespace>) -> Self {
        let Some(ids) = namespace else {
            return Self {
                user: user.uid,
                tty: TTY,
            };
        };
        Self {
            user: ids.uids.to_host(user.uid).unwrap_or(ids.uids.host),
            tty: ids.gids.to_host(TTY).unwrap_or(ids.gids.host),
        }
    }

    fn give(self, pipe: &OwnedFd) -> io::Result<()> {
        if self.user == 0 {
            return Ok(());
        }
        let user = rustix::fs::Uid::from_raw(self.user);
        Ok(rustix::fs::fchown(pipe, Some(user), None)?)
    }
}

impl Streams {
    /// Pipes for stdout and stderr, and for stdin if it is `wanted`; else /dev/null. Their owner may open them
    /// anew, as /dev/stdout.
    ///
    /// # Errors
    /// As `pipe2(2)`.
    pub(crate) fn pipes(stdin_wanted: bool, owner: Owner) -> io::Result<Self> {
        let (stdout, stdout_child) = pipe()?;
        let (stderr, stderr_child) = pipe()?;
        owner.give(&stdout_child)?;
        owner.give(&stderr_child)?;
        let (stdin_child, stdin) = if stdin_wanted {
            let (child, ours) = pipe()?;
            owner.give(&child)?;
            (child, Some(ours))
        } else {
            (File::open("/dev/null")?.into(), None)
        };
        let child = [Some(stdin_child), Some(stdout_child), Some(stderr_child)];
        Ok(Self::Pipes {
            child,
            stdin,
            stdout,
            stderr,
        })
    }

    /// A new terminal, of a devpts of its own with this SELinux label. Its user may open it anew by name.
    ///
    /// # Errors
    /// As `fsopen(2)`, `open(2)`, `chown(2)`.
    pub(crate) fn terminal(owner: Owner, label: Option<&str>) -> Result<Self, Error> {
        let Terminal {
            devpts,
            master,
            slave,
            ..
        } = bind::terminal(owner.tty, label).map_err(Error::at("make the terminal"))?;
        Self::new_terminal(Some(devpts), slave, master, owner)
    }

    /// A new terminal for a process in a container that runs: of the container's devpts, so that its programs
    /// find it by name, or, if there is none, of one of its own.
    ///
    /// # Errors
    /// As [`Streams::terminal`].
    pub(crate) fn terminal_of(
        running: &Running,
        owner: Owner,
        label: Option<&str>,
    ) -> Result<Self, Error> {
        match terminal_below_root(running) {
            Ok((master, slave)) => Self::new_terminal(None, slave, master, owner),
            Err(error) => {
                let error = crate::error::chain(&*error);
                tracing::debug!(
                    pid = running.pid,
                    error,
                    "terminal without a name in its container"
                );
                Self::terminal(owner, label)
            }
        }
    }

    fn new_terminal(
        devpts: Option<OwnedFd>,
        slave: OwnedFd,
        master: OwnedFd,
        owner: Owner,
    ) -> Result<Self, Error> {
        let user = rustix::fs::Uid::from_raw(owner.user);
        let group = rustix::fs::Gid::from_raw(owner.tty);
        rustix::fs::fchown(&slave, Some(user), Some(group))
            .map_err(Error::at("make the terminal"))?;
        Ok(Self::Terminal {
            devpts,
            slave: Some(slave),
            master,
        })
    }

    fn take(&mut self, source: &FdSource) -> Option<OwnedFd> {
        match (self, source) {
            (Self::Pipes { child, .. }, FdSource::Stdin) => child[0].take(),
            (Self::Pipes { child, .. }, FdSource::Stdout) => child[1].take(),
            (Self::Pipes { child, .. }, FdSource::Stderr) => child[2].take(),
            (Self::Terminal { devpts, .. }, FdSource::Devpts) => devpts.take(),
            (Self::Terminal { slave, .. }, FdSource::TerminalSlave) => slave.take(),
            _ => None,
        }
    }
}

fn terminal_below_root(
    running: &Running,
) -> Result<(OwnedFd, OwnedFd), Box<dyn std::error::Error>> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = format!("/proc/{}/root", running.pid);
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    // Or else the pid may have been another's.
    if orphans::has_ended(&running.pidfd) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH).into());
    }
    Ok(bind::terminal_below(root.as_fd())?)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Over the user's limit it stays as it is: only slower.
    let _ = fcntl_setpipe_size(&read, PIPE_SIZE);
    Ok((read, write))
}

/// The descriptors of one request, with the indexes that the request names them by.
pub(crate) struct Descriptors {
    fds: Vec<OwnedFd>,
    pub(crate) plan: FdIndex,
    pub(crate) cgroup: Option<FdIndex>,
}

/// What was made before for a container, mounts that have no path, or for a reaper.
#[derive(Default)]
pub(crate) struct Made {
    /// The supervisor's program.
    pub(crate) program: Option<OwnedFd>,
    pub(crate) rootfs: Option<OwnedFd>,
    /// Its image volumes.
    pub(crate) images: Vec<Option<OwnedFd>>,
    pub(crate) hooks: HookFds,
}

impl Made {
    fn take_hook(&mut self, source: &FdSource) -> Option<OwnedFd> {
        let hooks = &mut self.hooks;
        match source {
            FdSource::HookChannel => hooks.channel.take(),
            FdSource::HookState { created: false } => hooks.creating.take(),
            FdSource::HookState { created: true } => hooks.created.take(),
            FdSource::HostMounts => hooks.host_mounts.take(),
            FdSource::BundleCover => hooks.cover.take(),
            // One for each point that has hooks.
            FdSource::HookOutput => hooks.output.as_ref()?.try_clone().ok(),
            _ => None,
        }
    }

    fn take_image(&mut self, volume: usize, attrs: u64) -> Result<Option<OwnedFd>, Error> {
        let Some(mount) = self.images.get_mut(volume).and_then(Option::take) else {
            return Ok(None);
        };
        bind::set_attrs(mount.as_fd(), attrs, false).map_err(Error::at(format_args!(
            "{}: set options",
            super::volumes::FAILED
        )))?;
        Ok(Some(mount))
    }
}

impl Descriptors {
    /// Opens everything that the Plan wants, in its order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a mount whose source is not there or not as it must be.
    pub(crate) fn open(
        compiled: &Compiled,
        mut made: Made,
        join: &Join,
        streams: &mut Streams,
        user_namespace: Option<&OwnedFd>,
    ) -> Result<Self, Error> {
        let mut descriptors = Self {
            fds: Vec::new(),
            plan: FdIndex(0),
            cgroup: None,
        };
        for source in &compiled.fds {
            let index = crate::node::index(descriptors.fds.len());
            let opened = match source {
                FdSource::Plan => {
                    descriptors.plan = index;
                    let plan = memfd::sealed(c"plan", &compiled.plan);
                    Some(plan.map_err(Error::at("write the plan"))?)
                }
                FdSource::Program => made.program.take(),
                FdSource::Rootfs => made.rootfs.take(),
                FdSource::Image { volume, attrs } => made.take_image(*volume, *attrs)?,
                FdSource::CgroupDir => {
                    descriptors.cgroup = Some(index);
                    join_fd(join, source)?
                }
                FdSource::CgroupTasks(_) => join_fd(join, source)?,
                FdSource::Mount(mount) => {
                    let clone = bind::clone_mount_for(mount, user_namespace.map(AsFd::as_fd));
                    Some(clone.map_err(|error| {
                        let text = format!(
                            "mount {}: {}",
                            mount.source.display(),
                            crate::error::chain(&error)
                        );
                        Error::InvalidArgument(text)
                    })?)
                }
                FdSource::UserNamespace => {
                    let namespace = user_namespace.map(OwnedFd::try_clone).transpose();
                    namespace.map_err(Error::at("duplicate a descriptor"))?
                }
                FdSource::Namespace(path) => {
                    let opened = File::open(path).map_err(Error::at("open a namespace"))?;
                    Some(opened.into())
                }
                other => made.take_hook(other).or_else(|| streams.take(other)),
            };
            let missing = || {
                Error::Internal(format!(
                    "bug in carpel: nothing to give the plan for {source:?}"
                ))
            };
            descriptors.fds.push(opened.ok_or_else(missing)?);
        }
        Ok(descriptors)
    }

    /// Adds a descriptor that is the supervisor's own affair.
    pub(crate) fn add(&mut self, fd: OwnedFd) -> FdIndex {
        let index = crate::node::index(self.fds.len());
        self.fds.push(fd);
        index
    }

    pub(crate) fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }

    /// What is kept of them while the process runs; the rest is closed.
    pub(crate) fn keep(self, held: &Held) -> Kept {
        Kept::new(held, self.fds).1
    }
}

/// Which of a start's descriptors its supervisor holds on to.
pub(crate) fn held(start: &Start) -> Held {
    let (streams, log) = match start.output {
        Output::None => ([None, None], None),
        Output::Pipes {
            stdout,
            stderr,
            log,
        } => ([Some(stdout), Some(stderr)], log),
        Output::Terminal { master, log } => ([Some(master), None], log),
    };
    Held {
        pidfd: None,
        streams,
        log,
        stdin: start.stdin,
    }
}

/// What a Plan needs to enter a cgroup. It has one step for every hierarchy that is mounted; where the
/// cgroup has no part in one, the step writes to /dev/null.
pub(crate) fn join_fd(join: &Join, source: &FdSource) -> Result<Option<OwnedFd>, Error> {
    let fd = match (join, source) {
        (Join::V2(directory), FdSource::CgroupDir) => directory,
        (Join::V1(tasks), FdSource::CgroupTasks(n)) => match tasks.get(*n) {
            Some(tasks) => tasks,
            None => {
                let null = File::options().write(true).open("/dev/null");
                return null
                    .map(|null| Some(null.into()))
                    .map_err(Error::at("open /dev/null"));
            }
        },
        _ => return Ok(None),
    };
    fd.try_clone()
        .map(Some)
        .map_err(Error::at("duplicate a descriptor"))
}
