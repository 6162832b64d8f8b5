//! Starting a process: the clone, and what its two sides do next.

use carpel_wire::{
    Call, FdIndex, MAX_FDS, MAX_PLAN, Output, PidNamespace, Reply, Start, UserStart,
};

use crate::frame::StreamName;
use crate::log::Log;
use crate::plan::{self, Purpose, Resources};
use crate::serve::{Supervisor, Token};
use crate::setup::{cgroup_namespace, step_failed};
use crate::sys::{self, BorrowedFd, Cloned, Errno, Fd, FdList, Mapping, READABLE, errno};
use crate::table::{Phase, Process, Stream};
use crate::user;

/// Exit status of a process that could not be started: as containerd gives it.
const NOT_STARTED: i32 = 128;

type Answer<T> = Result<T, Reply>;

/// What the supervisor keeps of a start's descriptors.
struct Kept {
    streams: [Option<Fd>; 2],
    log: Option<Fd>,
    stdin: Option<Fd>,
}

impl Kept {
    fn take(start: &Start, fds: &mut FdList) -> Answer<Self> {
        let mut take = |index| fds.take(index).ok_or(Reply::Malformed);
        let (streams, log) = match start.output {
            Output::None => ([None, None], None),
            Output::Pipes {
                stdout,
                stderr,
                log,
            } => ([Some(take(stdout)?), Some(take(stderr)?)], log),
            Output::Terminal { master, log } => ([Some(take(master)?), None], log),
        };
        let log = log.map(&mut take).transpose()?;
        let stdin = start.stdin.map(&mut take).transpose()?;
        for stream in streams.iter().flatten() {
            sys::set_nonblocking(stream.borrow()).map_err(|_| Reply::Malformed)?;
        }
        Ok(Self {
            streams,
            log,
            stdin,
        })
    }
}

pub(crate) fn call_failed(call: Call) -> impl Fn(Errno) -> Reply {
    move |error| Reply::CallFailed {
        call,
        errno: error.number(),
    }
}

impl Supervisor {
    /// Clones a process. What becomes of it is answered later, unless the clone itself fails.
    pub(crate) fn start(
        &mut self,
        seq: u32,
        start: &Start,
        user: Option<&UserStart>,
        mut fds: FdList,
    ) -> Answer<()> {
        if self.pod.is_none() || start.clone_flags & !sys::CLONE_NAMESPACES != 0 {
            return Err(Reply::Malformed);
        }
        if self.memory.table.find(&start.id).is_some() {
            return Err(Reply::Exists);
        }
        let key = self.memory.table.next_key().ok_or(Reply::Full)?;
        let kept = Kept::take(start, &mut fds)?;
        if fds.get(start.plan).is_none() {
            return Err(Reply::Malformed);
        }
        let (report, reporter) = sys::pipe().map_err(call_failed(Call::Pipe))?;
        sys::set_nonblocking(report.borrow()).map_err(call_failed(Call::Pipe))?;

        let names = [StreamName::Stdout, StreamName::Stderr];
        let watched = names
            .iter()
            .zip(&kept.streams)
            .try_for_each(|(name, stream)| match stream {
                Some(fd) => {
                    self.streams
                        .add(fd.borrow(), READABLE, Token::Stream(key, *name).to_bits())
                }
                None => Ok(()),
            });
        let watched = watched.and_then(|()| {
            self.epoll
                .add(report.borrow(), READABLE, Token::Report(key).to_bits())
        });
        let cloned = match watched {
            Ok(()) => self.clone_into(start, user, &mut fds, reporter),
            Err(error) => Err(call_failed(Call::Epoll)(error)),
        };
        let (pid, pidfd) = cloned.inspect_err(|_| {
            for stream in kept.streams.iter().flatten() {
                self.streams.remove(stream.borrow());
            }
            self.epoll.remove(report.borrow());
        })?;
        let process = Process {
            id: start.id,
            init: start.init,
            adopted: false,
            pid,
            pidfd: Some(pidfd),
            exited_pidfd: None,
            started_at: sys::now(),
            phase: Phase::Starting {
                seq: Some(seq),
                report,
            },
            streams: kept.streams.map(Stream::new),
            log: Log::new(kept.log),
            stdin: kept.stdin,
        };
        self.memory.table.insert(key, process);
        Ok(())
    }

    fn pidfd_of(&self, id: &carpel_wire::ObjectId) -> Answer<BorrowedFd<'_>> {
        let key = self.memory.table.find(id).ok_or(Reply::NotFound)?;
        let process = self.memory.table.get(key).ok_or(Reply::NotFound)?;
        process
            .pidfd
            .as_ref()
            .map(Fd::borrow)
            .ok_or(Reply::NotFound)
    }

    /// Clones into the namespaces and the cgroup of `start`. The child does not return.
    fn clone_into(
        &mut self,
        start: &Start,
        user: Option<&UserStart>,
        fds: &mut FdList,
        report: Fd,
    ) -> Answer<(u32, Fd)> {
        let pod = self.pod.as_ref().ok_or(Reply::Malformed)?;
        let target = start
            .target
            .as_ref()
            .map(|id| self.pidfd_of(id))
            .transpose()?;
        let cgroup = match start.cgroup {
            Some(index) => Some(fds.get(index).ok_or(Reply::Malformed)?),
            None => None,
        };
        let (mut flags, unshare_cgroup) = cgroup_namespace(start.clone_flags, cgroup.is_some());
        let entered = match &start.pid_namespace {
            PidNamespace::New => {
                flags |= sys::CLONE_NEWPID;
                None
            }
            PidNamespace::Host => None,
            PidNamespace::Pod => Some(pod.reaper.as_ref().ok_or(Reply::NotFound)?.pidfd.borrow()),
            PidNamespace::Of(id) => Some(self.pidfd_of(id)?),
        };
        let cloned = match user {
            None => clone_here(flags, cgroup, entered, pod.pidfd.borrow())?,
            Some(user) => {
                let place = user::Place {
                    namespace: fds.get(user.namespace).ok_or(Reply::Malformed)?,
                    cgroup,
                    pid_namespace: entered,
                    procfs: pod.procfs.as_ref().map(Fd::borrow),
                    oom_score_adj: Some(user.oom_score_adj),
                    locked: user::Locked::new(&user.locked, fds),
                };
                user::clone(flags, &place)?
            }
        };
        if let Cloned::Parent { pid, pidfd } = cloned {
            return Ok((pid, pidfd));
        }
        let target = target.map(|pidfd| sys::duplicate(pidfd));
        let procfs = self.pod.as_mut().and_then(|pod| pod.procfs.take());
        let locked = user.map_or(Ok(()), |user| user::take_locked(&user.locked, fds));
        run(
            start.plan,
            fds,
            target.and_then(Result::ok),
            procfs,
            &report,
            locked.map(|()| unshare_cgroup),
        );
    }
}

/// Clones, in the PID namespace of the process `entered` if there is one; `own` is the way back.
fn clone_here(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    entered: Option<BorrowedFd<'_>>,
    own: BorrowedFd<'_>,
) -> Answer<Cloned> {
    if let Some(pidfd) = entered {
        sys::enter_namespace(pidfd, sys::CLONE_NEWPID).map_err(user::not_entered)?;
    }
    let cloned = sys::clone(flags, cgroup);
    if entered.is_some() && !matches!(cloned, Ok(Cloned::Child)) {
        // Its own namespace is always there to go back to.
        sys::enter_namespace(own, sys::CLONE_NEWPID).map_err(call_failed(Call::Setns))?;
    }
    cloned.map_err(|error| user::not_cloned(error, entered.is_some()))
}

/// The child's side: carries out the Plan, or says what failed and ends.
pub(crate) fn run(
    plan: FdIndex,
    fds: &mut FdList,
    target: Option<Fd>,
    procfs: Option<Fd>,
    report: &Fd,
    unshare_cgroup: Answer<bool>,
) -> ! {
    let mut keep = [BorrowedFd::STDERR; MAX_FDS + 3];
    let others = [Some(report), target.as_ref(), procfs.as_ref()];
    let others = others.into_iter().flatten().map(Fd::borrow);
    for (place, fd) in keep.iter_mut().zip(others.chain(fds.iter())) {
        *place = fd;
    }
    sys::close_all_but(&mut keep);
    sys::reset_signals(false);
    let memfd = fds.take(plan).ok_or(Errno(errno::EBADF));
    let steps = memfd.and_then(|memfd| Mapping::new(memfd.borrow(), MAX_PLAN));
    let steps = steps.map_err(call_failed(Call::MapPlan));
    let reply = match steps.and_then(|steps| Ok((steps, unshare_cgroup?))) {
        Ok((steps, unshare_cgroup)) => {
            let target = target.as_ref().map(Fd::borrow);
            let resources = Resources {
                fds,
                target,
                procfs,
                unshare_cgroup,
            };
            plan::carry_out(steps.bytes(), Purpose::Process, resources)
                .err()
                .map(step_failed)
        }
        Err(reply) => Some(reply),
    };
    let mut buffer = [0; 64];
    if let Ok(bytes) = carpel_wire::encode(&reply.unwrap_or(Reply::Malformed), &mut buffer) {
        let _ = sys::write(report.borrow(), bytes);
    }
    sys::exit(NOT_STARTED)
}
