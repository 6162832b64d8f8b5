//! What happens to a process after its clone: its start succeeds or fails, it exits, that is written
//! down, and told.

use core::ffi::CStr;

use carpel_wire::{ExitRecord, Reply, decode};

use crate::frame::StreamName;
use crate::number::Decimal;
use crate::outbox::Item;
use crate::serve::Supervisor;
use crate::sys::{self, BorrowedFd, Errno, Resolve, errno};
use crate::table::{Exit, Key, Phase, Process};

/// The most that a terminal holds for its reader, in bytes.
const TERMINAL_CAPACITY: usize = 128 * 1024;

/// How a start that failed is answered while its process still ends: with its wait status, once known.
const DIED: Reply = Reply::Died { wait_status: 0 };

impl Supervisor {
    /// Learns whether a start has succeeded, if it is decided.
    pub(crate) fn read_report(&mut self, key: Key) {
        let Some(process) = self.memory.table.get_mut(key) else {
            return;
        };
        let Phase::Starting { seq, report } = &process.phase else {
            return;
        };
        let seq = *seq;
        let mut buffer = [0; 64];
        let reply = match sys::read(report.borrow(), &mut buffer) {
            Err(Errno(errno::EAGAIN | errno::EINTR)) => return,
            Ok(0) => {
                let procfs = self.pod.as_ref().and_then(|pod| pod.procfs.as_ref());
                let execed = procfs.is_none_or(|procfs| has_execed(procfs.borrow(), process.pid));
                if execed { None } else { Some(DIED) }
            }
            Ok(length) => Some(decode(&buffer[..length]).unwrap_or(DIED)),
            Err(_) => Some(DIED),
        };
        self.epoll.remove(report.borrow());
        match reply {
            Some(reply) => process.phase = Phase::Failing { seq, reply },
            None => {
                process.phase = Phase::Running;
                if let Some(seq) = seq {
                    self.tell(Item::Started { seq, key });
                }
            }
        }
    }

    /// A process has ended and is reaped.
    pub(crate) fn exited(&mut self, key: Key, wait_status: i32) {
        let Some(process) = self.memory.table.get_mut(key) else {
            return;
        };
        let unsaid = process.init || !self.memory.outbox.is_empty();
        process.exited_pidfd = process.pidfd.take().filter(|_| unsaid);
        process.stdin = None;
        let exit = Exit {
            wait_status,
            finished_at: sys::now(),
        };
        match process.phase {
            Phase::Failing {
                seq: Some(seq),
                reply,
            } => {
                let reply = if reply == DIED {
                    Reply::Died { wait_status }
                } else {
                    reply
                };
                self.remove(key);
                self.reply(seq, reply);
            }
            // The daemon that asked for an exec is gone, and its exec with it.
            Phase::Failing { .. } if !process.init => self.remove(key),
            _ => {
                process.phase = Phase::Draining {
                    exit,
                    left: outstanding(process),
                }
            }
        }
    }

    /// All that an exited process wrote has been read.
    pub(crate) fn conclude(&mut self, key: Key, exit: Exit) {
        let buffers = &mut self.buffers;
        let Some(process) = self.memory.table.get_mut(key) else {
            return;
        };
        for stream in [StreamName::Stdout, StreamName::Stderr] {
            buffers.finish(key.index(), process, stream);
        }
        process.phase = Phase::Exited {
            exit,
            recorded: !process.init,
        };
        self.record_exits();
        self.tell(Item::Exited { key });
    }

    /// Writes exits down that are not yet. One that cannot be written is tried again later.
    pub(crate) fn record_exits(&mut self) {
        let Some(pod) = &self.pod else {
            return;
        };
        self.memory.table.for_each_mut(|_, process| {
            let Phase::Exited {
                exit,
                recorded: recorded @ false,
            } = &mut process.phase
            else {
                return;
            };
            let record = ExitRecord {
                id: process.id,
                wait_status: exit.wait_status,
                pid: process.pid,
                started_at: process.started_at,
                finished_at: exit.finished_at,
            };
            *recorded = sys::write_whole(pod.exits.borrow(), &record.to_bytes()).is_ok();
        });
    }
}

/// How much of each stream may still be a process's own: what the pipe holds. Others may go on writing.
fn outstanding(process: &Process) -> [usize; 2] {
    let capacity = |which: usize| {
        let fd = process.streams[which].fd.as_ref()?;
        Some(sys::pipe_capacity(fd.borrow()).unwrap_or(TERMINAL_CAPACITY))
    };
    [capacity(0).unwrap_or(0), capacity(1).unwrap_or(0)]
}

/// Whether a child, alive or a zombie, has exec'd since it was cloned: flag PF_FORKNOEXEC in its stat.
/// An unreadable one is taken to have done so.
fn has_execed(procfs: BorrowedFd<'_>, pid: u32) -> bool {
    const FORKED_WITHOUT_EXEC: u64 = 0x40;
    read_flags(procfs, pid).is_none_or(|flags| flags & FORKED_WITHOUT_EXEC == 0)
}

fn read_flags(procfs: BorrowedFd<'_>, pid: u32) -> Option<u64> {
    let mut stat = [0; STAT];
    number(after_name(read_stat(procfs, pid, &mut stat)?)?.nth(6)?)
}

/// Room for a `/proc/PID/stat`, in bytes.
const STAT: usize = 1024;

fn read_stat<'b>(procfs: BorrowedFd<'_>, pid: u32, buffer: &'b mut [u8; STAT]) -> Option<&'b [u8]> {
    let mut path = [0; 32];
    let digits = Decimal::new(i64::from(pid));
    let (start, rest) = path.split_at_mut_checked(digits.bytes().len())?;
    start.copy_from_slice(digits.bytes());
    rest[..5].copy_from_slice(b"/stat");
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    let file = sys::open_in(procfs, path, sys::O_RDONLY, Resolve::PROCFS).ok()?;
    let length = sys::read(file.borrow(), buffer).ok()?;
    buffer.get(..length)
}

/// The fields of a `/proc/PID/stat` from the third on. The second, the name, may hold anything, also ")".
fn after_name(stat: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let name_end = memchr::memrchr(b')', stat)?;
    let fields = stat.get(name_end + 2..)?;
    Some(fields.split(|byte| byte.is_ascii_whitespace()))
}

/// The wait status of a zombie, which is the last field.
pub(crate) fn status_of_zombie(procfs: BorrowedFd<'_>, pid: u32) -> Option<i32> {
    let mut stat = [0; STAT];
    status_of_stat(read_stat(procfs, pid, &mut stat)?)
}

fn status_of_stat(stat: &[u8]) -> Option<i32> {
    let mut fields = after_name(stat)?;
    if !matches!(fields.next()?, b"Z" | b"X") {
        return None;
    }
    number(fields.nth(48)?).and_then(|status| i32::try_from(status).ok())
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_whatever_the_name() {
        let stat = b"17 (a) (b 1 2) Z 1 2 3 0 -1 4194372 0 0";
        let flags = |stat| number(after_name(stat)?.nth(6)?);
        assert_eq!(flags(stat), Some(4_194_372));
        assert_eq!(flags(b"17 (x) Z 1 2"), None);
        assert_eq!(flags(b"17 (x) Z 1 2 3 0 -1 x9 "), None);
        assert_eq!(flags(b""), None);
    }

    #[test]
    fn only_a_zombie_has_a_status() {
        let stat = |state: &str, status: &str| {
            let fields = ["0"; 48].join(" ");
            format!("17 (a) b) {state} {fields} {status}\n").into_bytes()
        };
        assert_eq!(status_of_stat(&stat("Z", "1792")), Some(1792));
        assert_eq!(status_of_stat(&stat("Z", "9")), Some(9));
        assert_eq!(status_of_stat(&stat("S", "0")), None);
        assert_eq!(status_of_stat(&stat("Z", "")), None);
        assert_eq!(status_of_stat(b"17 (x) Z 1 2"), None);
    }

    #[test]
    fn this_process_has_execed() {
        let procfs = crate::plan::open_procfs().unwrap();
        assert_eq!(
            read_flags(procfs.borrow(), sys::own_pid()).unwrap() & 0x40,
            0
        );
        assert!(has_execed(procfs.borrow(), sys::own_pid()));
    }
}
