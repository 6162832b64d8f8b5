//! The reaper: process 1 of a pod's shared PID namespace.
//!
//! It is a clone of the supervisor that gives everything up. Where the pod has SELinux labels it is what its Plan makes
//! of it: policies let a process take another label only as it executes a program, so it executes the supervisor's
//! again, from a root that has the label of the pod's files.
//!
//! ```text
//! supervisor ──clone──▶ shuts itself in, sleeps
//!            ──clone──▶ Plan: root ▸ program ▸ no capabilities ▸ user ▸ label ▸ exec "--reaper" ──▶ sleeps
//! ```

use core::ffi::CStr;

use carpel_wire::{Call, FdIndex, Reply};

use crate::plan;
use crate::serve::Supervisor;
use crate::setup::Pod;
use crate::start::{self, call_failed};
use crate::sys::{self, BorrowedFd, Cloned, Errno, Fd, FdList, FsContext, Result, errno};
use crate::user;

pub struct Reaper {
    pub pid: u32,
    pub pidfd: Fd,
}

impl Pod {
    /// One that an earlier supervisor made is no child of this one, which is not told of its end.
    fn has_reaper(&self) -> bool {
        let ended = |reaper: &Reaper| sys::wait_readable(reaper.pidfd.borrow(), 0);
        !self.reaper.as_ref().is_none_or(ended)
    }
}

impl Supervisor {
    /// Sees to it that the pod has a shared PID namespace.
    pub(crate) fn share_pids(
        &mut self,
        user: Option<FdIndex>,
        fds: &FdList,
    ) -> core::result::Result<(), Reply> {
        let pod = self.pod.as_mut().ok_or(Reply::Malformed)?;
        let user = found(user, fds)?;
        if !pod.has_reaper() {
            pod.reaper = Some(Reaper::spawn(user)?);
        }
        Ok(())
    }

    /// The same, with a reaper that carries out a Plan.
    pub(crate) fn share_pids_as(
        &mut self,
        user: Option<FdIndex>,
        plan: FdIndex,
        mut fds: FdList,
    ) -> core::result::Result<(), Reply> {
        let pod = self.pod.as_mut().ok_or(Reply::Malformed)?;
        let user = found(user, &fds)?;
        found(Some(plan), &fds)?;
        if pod.has_reaper() {
            return Ok(());
        }
        let (answers, answer) = sys::pipe().map_err(call_failed(Call::Pipe))?;
        let Cloned::Parent { pid, pidfd } = clone(user)? else {
            // What it says as its own program goes the same way, which is then its standard input.
            let procfs = match pod.procfs.take() {
                Some(procfs) => Some(procfs),
                None => plan::open_procfs().ok(),
            };
            let ready = sys::duplicate_onto(answer.borrow(), BorrowedFd::STDIN);
            let ready = ready.map_err(call_failed(Call::Pipe)).map(|()| false);
            start::run(plan, &mut fds, None, procfs, &answer, ready);
        };
        drop(answer);
        let mut buffer = [0; 64];
        let length = sys::read(answers.borrow(), &mut buffer).unwrap_or(0);
        match carpel_wire::decode(buffer.get(..length).unwrap_or_default()) {
            Ok(Reply::Done) => {
                pod.reaper = Some(Reaper { pid, pidfd });
                Ok(())
            }
            Ok(reply) => Err(reply),
            Err(_) => Err(call_failed(Call::Clone)(Errno(errno::ECHILD))),
        }
    }
}

fn found(
    index: Option<FdIndex>,
    fds: &FdList,
) -> core::result::Result<Option<BorrowedFd<'_>>, Reply> {
    index
        .map(|index| fds.get(index).ok_or(Reply::Malformed))
        .transpose()
}

/// Clones process 1 of a new PID namespace, in the user namespace `user` if there is one.
fn clone(user: Option<BorrowedFd<'_>>) -> core::result::Result<Cloned, Reply> {
    let flags = sys::CLONE_NEWPID | sys::CLONE_NEWNS;
    match user {
        None => sys::clone(flags, None).map_err(call_failed(Call::Clone)),
        Some(namespace) => user::clone(flags, &user::Place::new(namespace)),
    }
}

impl Reaper {
    /// Waits until it has shut itself in.
    pub fn spawn(user: Option<BorrowedFd<'_>>) -> core::result::Result<Self, Reply> {
        let (shut_in, report) = sys::pipe().map_err(call_failed(Call::Pipe))?;
        let Cloned::Parent { pid, pidfd } = clone(user)? else {
            let failed = live(&report, user.is_some());
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
fn live(report: &Fd, in_user_namespace: bool) -> Result<()> {
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

/// The argument by which a program is a reaper that its Plan has shut in.
pub fn is_asked_for(argument: Option<&CStr>) -> bool {
    argument.is_some_and(|argument| argument.to_bytes_with_nul() == carpel_wire::BE_REAPER)
}

/// The rest of what a reaper does, in the program that its Plan has executed: the kernel has taken back what may not
/// outlive that, or policies may have. Its standard input takes the answer.
pub fn live_on() -> ! {
    sys::reset_signals(true);
    sys::ignore_children();
    let mut buffer = [0; 8];
    let ready = sys::set_not_dumpable()
        .and_then(|()| sys::set_no_new_privileges())
        .and_then(|()| {
            carpel_wire::encode(&Reply::Done, &mut buffer).map_err(|_| Errno(errno::EIO))
        })
        .and_then(|answer| sys::write_whole(BorrowedFd::STDIN, answer));
    if ready.is_err() {
        sys::exit(1);
    }
    sys::close_all();
    sys::sleep_forever()
}
