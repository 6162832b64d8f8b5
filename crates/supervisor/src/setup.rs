//! Becoming a pod's supervisor.
//!
//! The process that the daemon spawned clones itself into the pod's namespaces and ends; its clone,
//! a child of the daemon like it, carries out the Plan and goes on with the same socket. The successor of
//! a supervisor that died does the same, only that its Plan enters namespaces that are there; what it has
//! adopted before is watched from then on.

use carpel_wire::{Call, FdIndex, IdRange, MAX_PLAN, Reply, Setup, Succession};

use crate::outbox::Item;
use crate::plan::{self, Failure, Purpose, Resources};
use crate::serve::Supervisor;
use crate::sys::{
    self, BorrowedFd, Child, Cloned, Errno, Fd, FdList, FsContext, Mapping, Result, errno,
};
use crate::user;

/// What a supervisor has once it is set up.
pub struct Pod {
    /// Where exits are written down.
    pub exits: Fd,
    /// The supervisor's own.
    pub pidfd: Fd,
    /// A procfs of the supervisor's PID namespace; a child takes it along.
    pub procfs: Option<Fd>,
    /// Process 1 of the shared PID namespace.
    pub reaper: Option<Reaper>,
}

pub struct Reaper {
    pub pid: u32,
    pub pidfd: Fd,
}

impl Pod {
    #[must_use]
    pub fn reaper_pid(&self) -> Option<u32> {
        self.reaper.as_ref().map(|reaper| reaper.pid)
    }

    /// Its own pidfd, then that of the reaper if there is one.
    #[must_use]
    pub fn pidfds(&self) -> ([BorrowedFd<'_>; 2], usize) {
        let own = self.pidfd.borrow();
        match &self.reaper {
            Some(reaper) => ([own, reaper.pidfd.borrow()], 2),
            None => ([own, own], 1),
        }
    }

    /// Kills the reaper, and with it all that is left in its PID namespace. Waits a second at most.
    pub fn end_reaper(&mut self) {
        if let Some(reaper) = self.reaper.take() {
            let _ = sys::signal_process(reaper.pidfd.borrow(), sys::SIGKILL);
            sys::wait_readable(reaper.pidfd.borrow(), 1000);
            while sys::wait(Child::Any, true).is_some() {}
        }
    }
}

fn call_failed(call: Call) -> impl Fn(Errno) -> Reply {
    move |error| Reply::CallFailed {
        call,
        errno: error.number(),
    }
}

impl Supervisor {
    /// Makes namespaces for the pod that this process will be set up as.
    pub(crate) fn unshare(&self, flags: u64, user: Option<(IdRange, IdRange)>) -> Reply {
        let possible = sys::CLONE_NEWNET | sys::CLONE_NEWIPC | sys::CLONE_NEWUTS;
        if self.pod.is_some() || flags & !possible != 0 {
            return Reply::Malformed;
        }
        let (made, call) = match user {
            None => (sys::unshare(flags), Call::Clone),
            Some((uids, gids)) => (user::unshare(flags, uids, gids), Call::UserNamespace),
        };
        match made {
            Ok(()) => Reply::Done,
            Err(error) => call_failed(call)(error),
        }
    }

    /// Does not return where the process is not the pod's supervisor afterwards.
    pub(crate) fn set_up(
        &mut self,
        seq: u32,
        setup: &Setup,
        user: Option<FdIndex>,
        mut fds: FdList,
    ) -> core::result::Result<(), Reply> {
        if self.pod.is_some() {
            self.tell(Item::Ready { seq });
            return Ok(());
        }
        let known = setup.clone_flags & !sys::CLONE_NAMESPACES == 0;
        let namespaces = match &setup.succession {
            Some(_) => setup.clone_flags == 0,
            None => setup.clone_flags & sys::CLONE_NEWNS != 0,
        };
        let cgroup = match setup.cgroup {
            Some(index) => Some(fds.get(index).ok_or(Reply::Malformed)?),
            None => None,
        };
        let missing = |index| fds.get(index).is_none();
        if !known
            || !namespaces
            || missing(setup.plan)
            || missing(setup.exits)
            || user.is_some_and(missing)
        {
            return Err(Reply::Malformed);
        }
        let (flags, unshare_cgroup) = cgroup_namespace(setup.clone_flags, cgroup.is_some());
        let cloned = sys::clone(flags | sys::CLONE_PARENT, cgroup);
        match cloned.map_err(call_failed(Call::Clone))? {
            Cloned::Parent { .. } => sys::exit(0),
            Cloned::Child => {}
        }
        match self.become_pod(setup, user, &mut fds, unshare_cgroup) {
            Ok(()) => self.tell(Item::Ready { seq }),
            Err(reply) => {
                self.reply(seq, reply);
                sys::exit(1);
            }
        }
        Ok(())
    }

    fn become_pod(
        &mut self,
        setup: &Setup,
        user: Option<FdIndex>,
        fds: &mut FdList,
        unshare_cgroup: bool,
    ) -> core::result::Result<(), Reply> {
        self.renew().map_err(call_failed(Call::Epoll))?;
        sys::adopt_orphans().map_err(call_failed(Call::Clone))?;
        let memfd = fds.take(setup.plan).ok_or(Reply::Malformed)?;
        let exits = fds.take(setup.exits).ok_or(Reply::Malformed)?;
        let steps = Mapping::new(memfd.borrow(), MAX_PLAN).map_err(call_failed(Call::MapPlan))?;
        let resources = Resources {
            fds,
            target: None,
            procfs: None,
            unshare_cgroup,
        };
        plan::carry_out(steps.bytes(), Purpose::Setup, resources).map_err(step_failed)?;
        let pidfd = sys::open_pidfd(sys::own_pid()).map_err(call_failed(Call::Clone))?;
        let reaper = match &setup.succession {
            Some(Succession {
                reaper: Some((pid, pidfd)),
            }) => Some(Reaper {
                pid: *pid,
                pidfd: fds.take(*pidfd).ok_or(Reply::Malformed)?,
            }),
            _ if setup.shared_pid_namespace => {
                let user = user.and_then(|index| fds.get(index));
                Some(Reaper::spawn(user)?)
            }
            _ => None,
        };
        let procfs = plan::open_procfs().ok();
        self.pod = Some(Pod {
            exits,
            pidfd,
            procfs,
            reaper,
        });
        Ok(())
    }

    /// Sees to it that the pod has a shared PID namespace.
    pub(crate) fn share_pids(
        &mut self,
        user: Option<FdIndex>,
        fds: &FdList,
    ) -> core::result::Result<(), Reply> {
        let pod = self.pod.as_mut().ok_or(Reply::Malformed)?;
        let user = match user {
            Some(index) => Some(fds.get(index).ok_or(Reply::Malformed)?),
            None => None,
        };
        // One that an earlier supervisor made is no child of this one, which is not told of its end.
        let ended = |reaper: &Reaper| sys::wait_readable(reaper.pidfd.borrow(), 0);
        if pod.reaper.as_ref().is_none_or(ended) {
            pod.reaper = Some(Reaper::spawn(user)?);
        }
        Ok(())
    }

    /// An unknown child has ended. If it was the reaper, the shared PID namespace is gone.
    pub(crate) fn reaper_ended(&mut self, pid: u32) {
        if let Some(pod) = &mut self.pod
            && pod.reaper_pid() == Some(pid)
        {
            pod.reaper = None;
        }
    }
}

pub(crate) fn step_failed(failure: Failure) -> Reply {
    Reply::StepFailed {
        step: failure.step,
        errno: failure.errno.number(),
    }
}

/// A cgroup namespace is rooted where its maker is at that moment: right at the clone into a cgroup,
/// too early where the Plan joins cgroups. The flags for the clone, and whether to unshare it later.
pub(crate) fn cgroup_namespace(flags: u64, into_cgroup: bool) -> (u64, bool) {
    if into_cgroup {
        (flags, false)
    } else {
        (
            flags & !sys::CLONE_NEWCGROUP,
            flags & sys::CLONE_NEWCGROUP != 0,
        )
    }
}

impl Reaper {
    /// Clones process 1 of a new PID namespace, in the user namespace `user` if there is one, and waits
    /// until it has shut itself in.
    fn spawn(user: Option<BorrowedFd<'_>>) -> core::result::Result<Self, Reply> {
        let (shut_in, report) = sys::pipe().map_err(call_failed(Call::Pipe))?;
        let flags = sys::CLONE_NEWPID | sys::CLONE_NEWNS;
        let cloned = match user {
            None => sys::clone(flags, None).map_err(call_failed(Call::Clone))?,
            Some(namespace) => user::clone(flags, &user::Place::new(namespace))?,
        };
        let Cloned::Parent { pid, pidfd } = cloned else {
            let failed = live_as_reaper(&report, user.is_some());
            sys::exit(failed.map_or(1, |()| 0));
        };
        drop(report);
        match sys::read(shut_in.borrow(), &mut [0]) {
            Ok(1) => Ok(Self { pid, pidfd }),
            _ => Err(call_failed(Call::Clone)(Errno(errno::ECHILD))),
        }
    }
}

/// Who the reaper is, as the pause processes of other runtimes are.
const NOBODY: u32 = 65535;

/// Process 1 of the shared PID namespace: it has no files, no capabilities and an empty root, so that a container that may
/// look into it sees nothing, and no way to any right again, so that one that may trace it (CAP_SYS_PTRACE) gains nothing.
/// The kernel reaps for it. It outlives a supervisor that is killed, as the containers do.
fn live_as_reaper(report: &Fd, in_user_namespace: bool) -> Result<()> {
    sys::ignore_children();
    if in_user_namespace {
        sys::set_ids(0, 0)?;
    }
    let empty = FsContext::open(c"tmpfs")?;
    empty.set(c"nr_inodes", c"1")?;
    let empty =
        empty.mount(sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC)?;
    sys::attach(empty.borrow(), sys::open_root()?.borrow())?;
    sys::change_directory(empty.borrow())?;
    sys::pivot_to_working_directory()?;
    sys::set_no_new_privileges()?;
    sys::limit_bounding_set(0)?;
    match sys::set_groups(&[]).and_then(|()| sys::set_ids(NOBODY, NOBODY)) {
        // A pod's user namespace may have fewer ids.
        Err(Errno(errno::EINVAL)) if in_user_namespace => {}
        other => other?,
    }
    sys::set_capabilities(0, 0, 0)?;
    sys::write_whole(report.borrow(), b"1")?;
    sys::close_all_but(&mut []);
    sys::sleep_forever()
}
