//! Becoming a pod's supervisor.
//!
//! The process that the daemon spawned clones itself into the pod's namespaces and ends; its clone,
//! a child of the daemon like it, carries out the Plan and goes on with the same socket. The successor of
//! a supervisor that died does the same, only that its Plan enters namespaces that are there; what it has
//! adopted before is watched from then on.

use carpel_wire::{Call, FdIndex, IdRange, MAX_PLAN, Reply, Setup, Succession};

use crate::outbox::Item;
use crate::plan::{self, Failure, Purpose, Resources};
use crate::reaper::Reaper;
use crate::serve::Supervisor;
use crate::sys::{self, BorrowedFd, Child, Cloned, Errno, Fd, FdList, Mapping};
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
