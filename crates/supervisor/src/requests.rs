//! What the daemon asks for, but for setting up and starting.

use carpel_wire::{Call, FdIndex, ObjectId, Reply, Request, RequestBody, SignalScope, decode};

use crate::outbox::Item;
use crate::serve::Supervisor;
use crate::sys::{self, Errno, FdList, errno};
use crate::table::Phase;

impl Supervisor {
    /// Carries out the request whose first `length` bytes are in the message buffer.
    pub(crate) fn handle(&mut self, length: usize, mut fds: FdList) {
        let Ok(Request { seq, body }) = decode(&self.buffers.message()[..length]) else {
            return self.refuse(length);
        };
        let reply = match body {
            RequestBody::Setup(setup) => self.set_up(seq, &setup, None, fds).err(),
            RequestBody::Adopt(adopt) => Some(self.adopt(&adopt, fds)),
            RequestBody::Start(start) => self.start(seq, &start, None, fds).err(),
            RequestBody::Signal { id, signal, scope } => Some(self.signal(&id, signal, scope)),
            RequestBody::ReopenLog { id, log } => Some(self.reopen_log(&id, log, &mut fds)),
            RequestBody::Forget { id } => Some(self.forget(&id)),
            RequestBody::List => return self.tell(Item::List { seq, next: 0 }),
            RequestBody::Shutdown => self.shut_down(seq).err(),
            RequestBody::Unshare { flags } => Some(self.unshare(flags, None)),
            RequestBody::Attach { id, stdout, stderr } => {
                Some(self.attach(&id, [stdout, stderr], &mut fds))
            }
            RequestBody::CloseStdin { id } => Some(self.close_stdin(&id)),
            RequestBody::Socket { family } => return self.tell(Item::Socket { seq, family }),
            RequestBody::UnshareUser { flags, uids, gids } => {
                Some(self.unshare(flags, Some((uids, gids))))
            }
            RequestBody::SetupUser { setup, namespace } => {
                self.set_up(seq, &setup, Some(namespace), fds).err()
            }
            RequestBody::StartUser { start, user } => {
                self.start(seq, &start, Some(&user), fds).err()
            }
            RequestBody::SharePids { namespace } => match self.share_pids(namespace, &fds) {
                Ok(()) => return self.tell(Item::Ready { seq }),
                Err(reply) => Some(reply),
            },
            RequestBody::SharePidsAs { namespace, plan } => {
                match self.share_pids_as(namespace, plan, fds) {
                    Ok(()) => return self.tell(Item::Ready { seq }),
                    Err(reply) => Some(reply),
                }
            }
        };
        if let Some(reply) = reply {
            self.reply(seq, reply);
        }
    }

    /// Answers a message that makes no sense, by its number if that much of it can be read.
    pub(crate) fn refuse(&mut self, length: usize) {
        let seq = carpel_wire::seq_of(&self.buffers.message()[..length]).unwrap_or(0);
        self.reply(seq, Reply::Malformed);
    }

    fn signal(&self, id: &ObjectId, signal: i32, scope: SignalScope) -> Reply {
        let process = self
            .memory
            .table
            .find(id)
            .and_then(|key| self.memory.table.get(key));
        let Some((process, pidfd)) =
            process.and_then(|process| Some((process, process.pidfd.as_ref()?)))
        else {
            return Reply::NotFound;
        };
        let sent = match scope {
            SignalScope::Process => sys::signal_process(pidfd.borrow(), signal),
            SignalScope::Group => sys::signal_group(process.pid, signal),
        };
        match sent {
            Ok(()) => Reply::Done,
            Err(Errno(errno::ESRCH)) => Reply::NotFound,
            Err(error) => Reply::CallFailed {
                call: Call::Kill,
                errno: error.number(),
            },
        }
    }

    fn reopen_log(&mut self, id: &ObjectId, log: FdIndex, fds: &mut FdList) -> Reply {
        let Some(log) = fds.take(log) else {
            return Reply::Malformed;
        };
        let table = &mut self.memory.table;
        let Some(process) = table.find(id).and_then(|key| table.get_mut(key)) else {
            return Reply::NotFound;
        };
        process.log.reopen(log);
        Reply::Done
    }

    fn close_stdin(&mut self, id: &ObjectId) -> Reply {
        let table = &mut self.memory.table;
        let Some(process) = table.find(id).and_then(|key| table.get_mut(key)) else {
            return Reply::NotFound;
        };
        process.stdin = None;
        Reply::Done
    }

    fn forget(&mut self, id: &ObjectId) -> Reply {
        let Some(key) = self.memory.table.find(id) else {
            return Reply::NotFound;
        };
        match self.memory.table.get(key).map(|process| &process.phase) {
            Some(Phase::Exited { .. }) => {
                self.remove(key);
                Reply::Done
            }
            _ => Reply::Busy,
        }
    }

    /// Ends the supervisor, after the answer.
    fn shut_down(&mut self, seq: u32) -> Result<(), Reply> {
        let runs = |phase: &Phase| !matches!(phase, Phase::Exited { .. });
        // Before it is set up, what it has adopted is not its own yet.
        if self.pod.is_some()
            && self
                .memory
                .table
                .iter()
                .any(|(_, process)| runs(&process.phase))
        {
            return Err(Reply::Busy);
        }
        if let Some(pod) = &mut self.pod {
            pod.end_reaper();
        }
        self.reply(seq, Reply::Done);
        sys::exit(0)
    }
}
