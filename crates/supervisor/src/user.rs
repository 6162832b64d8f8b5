//! Processes in a pod's user namespace, in which the supervisor itself is not.
//!
//! What a container is in (a PID, a mount, a cgroup namespace) has to belong to its pod's user namespace, so
//! whoever clones it has to be in there, and nobody comes back from there. So the supervisor clones a process
//! for it that enters, clones the container as a child of the supervisor (CLONE_PARENT), says its pid, and ends.
//!
//! A mount that is moved into the namespaces of a container is its root's to change. One that is there when
//! the mount namespace is copied from one that belongs to another user namespace is not: the kernel locks its
//! flags. So mounts that are to be locked are attached before, and the container takes copies of them.
//!
//! ```text
//! supervisor ──clone──▶ forerunner: oom_score_adj ▸ mounts to be locked ▸ setns ──clone3(CLONE_PARENT)──▶ container
//!      ◀─────────────────────────────────────────────────────────── pid, and ends          takes copies ▸ Plan
//! ```

use core::ffi::CStr;

use carpel_wire::{Call, FdIndex, IdRange, MAX_FDS, Reply};

use crate::number::Decimal;
use crate::plan;
use crate::start::call_failed;
use crate::sys::{
    self, BorrowedFd, Child, Cloned, Errno, Fd, FdList, FsContext, Resolve, Result, errno,
};

/// How long a process that has said all it had to say may take to end, in milliseconds.
const END: u32 = 1000;

/// How long a forerunner may take, in milliseconds: nothing that it does waits for anybody.
const FORERUN: u32 = 10_000;

/// Where mounts that are to be locked wait, below the supervisor's root.
const WAITING: &CStr = c"/waiting";

/// Makes a user namespace with these ids, in it the namespaces of `flags` (CLONE_NEW*), and enters those.
pub(crate) fn unshare(flags: u64, uids: IdRange, gids: IdRange) -> Result<()> {
    let (mapped, ours) = sys::pipe()?;
    let (made, theirs) = sys::pipe()?;
    let Cloned::Parent { pid, pidfd } = sys::clone(sys::CLONE_NEWUSER, None)? else {
        drop((ours, made));
        make(flags, &mapped, &theirs);
        sys::exit(0);
    };
    drop((mapped, theirs));
    let entered = plan::open_procfs().and_then(|procfs| {
        write_map(procfs.borrow(), pid, b"/uid_map", uids)?;
        write_map(procfs.borrow(), pid, b"/gid_map", gids)?;
        sys::write_whole(ours.borrow(), b"1")?;
        let mut errno = [0; 4];
        match sys::read(made.borrow(), &mut errno)? {
            4 if errno == [0; 4] => {}
            4 => return Err(Errno(u32::from_le_bytes(errno))),
            _ => return Err(Errno(errno::ECHILD)),
        }
        match flags {
            0 => Ok(()),
            flags => sys::enter_namespace(pidfd.borrow(), flags),
        }
    });
    drop(ours);
    reap(pid, &pidfd);
    entered
}

/// In the process that is in the user namespace: once ids are mapped it becomes root there, because what the
/// kernel makes in a namespace (the root of mqueue's) belongs to who made it. Then it stays while it is needed.
fn make(flags: u64, mapped: &Fd, report: &Fd) {
    if sys::read(mapped.borrow(), &mut [0]) != Ok(1) {
        return;
    }
    let made = sys::set_ids(0, 0).and_then(|()| sys::unshare(flags));
    let errno = made.err().map_or(0, |error| error.0);
    if sys::write_whole(report.borrow(), &errno.to_le_bytes()).is_ok() {
        let _ = sys::read(mapped.borrow(), &mut [0]);
    }
}

fn write_map(procfs: BorrowedFd<'_>, pid: u32, file: &[u8], ids: IdRange) -> Result<()> {
    let mut path = Text::default();
    path.push(Decimal::new(i64::from(pid)).bytes());
    path.push(file);
    let mut map = Text::default();
    map.push(b"0 ");
    map.push(Decimal::new(i64::from(ids.first)).bytes());
    map.push(b" ");
    map.push(Decimal::new(i64::from(ids.count)).bytes());
    let file = sys::open_in(procfs, path.terminated(), sys::O_WRONLY, Resolve::PROCFS)?;
    sys::write_whole(file.borrow(), map.bytes())
}

fn reap(pid: u32, pidfd: &Fd) {
    sys::wait_readable(pidfd.borrow(), END);
    sys::wait(Child::Pid(pid), true);
}

/// Where a process is cloned.
pub(crate) struct Place<'a> {
    /// The user namespace.
    pub namespace: BorrowedFd<'a>,
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A process in whose PID namespace it is to be.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    pub procfs: Option<BorrowedFd<'a>>,
    pub oom_score_adj: Option<i32>,
    pub locked: Locked<'a>,
}

impl<'a> Place<'a> {
    pub(crate) fn new(namespace: BorrowedFd<'a>) -> Self {
        Self {
            namespace,
            cgroup: None,
            pid_namespace: None,
            procfs: None,
            oom_score_adj: None,
            locked: Locked(None),
        }
    }
}

/// The mounts whose flags are to be locked.
pub(crate) struct Locked<'a>(Option<(&'a [u64; 4], &'a FdList)>);

impl<'a> Locked<'a> {
    pub(crate) fn new(which: &'a [u64; 4], fds: &'a FdList) -> Self {
        Self(Some((which, fds)).filter(|(which, _)| **which != [0; 4]))
    }
}

fn indexes(which: &[u64; 4]) -> impl Iterator<Item = u16> {
    let which = *which;
    let count = u16::try_from(MAX_FDS).unwrap_or(u16::MAX).min(256);
    (0..count).filter(move |index| which[usize::from(index / 64)] >> (index % 64) & 1 == 1)
}

/// Clones a process into a user namespace. It has no user there yet that it would be known by.
///
/// # Errors
/// The reply that says what failed.
pub(crate) fn clone(flags: u64, place: &Place<'_>) -> core::result::Result<Cloned, Reply> {
    let (answers, answer) = sys::pipe().map_err(call_failed(Call::Pipe))?;
    let forerunner = sys::clone(0, None).map_err(call_failed(Call::Clone))?;
    let Cloned::Parent { pid, pidfd } = forerunner else {
        let reply = match enter_and_clone(flags, place) {
            Ok(Cloned::Child) => return Ok(Cloned::Child),
            Ok(Cloned::Parent { pid, .. }) => Reply::Started { pid, started_at: 0 },
            Err(reply) => reply,
        };
        let mut buffer = [0; 64];
        if let Ok(bytes) = carpel_wire::encode(&reply, &mut buffer) {
            let _ = sys::write(answer.borrow(), bytes);
        }
        sys::exit(0);
    };
    drop(answer);
    if !sys::wait_readable(answers.borrow(), FORERUN) {
        let _ = sys::signal_process(pidfd.borrow(), sys::SIGKILL);
    }
    let mut buffer = [0; 64];
    let length = sys::read(answers.borrow(), &mut buffer).unwrap_or(0);
    reap(pid, &pidfd);
    match carpel_wire::decode(buffer.get(..length).unwrap_or_default()) {
        // A child of ours is there until we reap it, so its pid is nobody else's.
        Ok(Reply::Started { pid, .. }) => match sys::open_pidfd(pid) {
            Ok(pidfd) => Ok(Cloned::Parent { pid, pidfd }),
            Err(error) => Err(call_failed(Call::Clone)(error)),
        },
        Ok(reply) => Err(reply),
        Err(_) => Err(call_failed(Call::Clone)(Errno(errno::ECHILD))),
    }
}

fn enter_and_clone(flags: u64, place: &Place<'_>) -> core::result::Result<Cloned, Reply> {
    if let (Some(value), Some(procfs)) = (place.oom_score_adj, place.procfs) {
        plan::write_oom_score_adj(procfs, value).map_err(call_failed(Call::UserNamespace))?;
    }
    if let Locked(Some((which, fds))) = &place.locked {
        attach_waiting(which, fds).map_err(call_failed(Call::LockMounts))?;
    }
    if let Some(pidfd) = place.pid_namespace {
        sys::enter_namespace(pidfd, sys::CLONE_NEWPID).map_err(not_entered)?;
    }
    sys::enter_namespace(place.namespace, sys::CLONE_NEWUSER)
        .map_err(call_failed(Call::UserNamespace))?;
    sys::clone(flags | sys::CLONE_PARENT, place.cgroup)
        .map_err(|error| not_cloned(error, place.pid_namespace.is_some()))
}

/// Why a PID namespace could not be entered: its first process may be dead.
pub(crate) fn not_entered(error: Errno) -> Reply {
    match error {
        Errno(errno::ESRCH) => Reply::NotFound,
        error => call_failed(Call::Setns)(error),
    }
}

/// Why nothing could be cloned: again, the PID namespace's first process may be dead.
pub(crate) fn not_cloned(error: Errno, entered: bool) -> Reply {
    match error {
        Errno(errno::ENOMEM) if entered => Reply::NotFound,
        error => call_failed(Call::Clone)(error),
    }
}

/// In a mount namespace of its own, attaches each mount under its number.
fn attach_waiting(which: &[u64; 4], fds: &FdList) -> Result<()> {
    sys::unshare(sys::CLONE_NEWNS)?;
    let root = sys::open_root()?;
    match sys::make_directory(root.borrow(), name(WAITING), 0o755) {
        Ok(()) | Err(Errno(errno::EEXIST)) => {}
        Err(error) => return Err(error),
    }
    let room = FsContext::open(c"tmpfs")?;
    room.set(c"mode", c"0755")?;
    let room = room.mount(sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC)?;
    let flags = sys::O_PATH | sys::O_DIRECTORY;
    let place = sys::open_in(root.borrow(), WAITING, flags, Resolve::IN_ROOT_NO_LINKS)?;
    sys::attach(room.borrow(), place.borrow())?;
    for index in indexes(which) {
        let mount = fds.get(FdIndex(index)).ok_or(Errno(errno::EBADF))?;
        let number = Decimal::new(i64::from(index));
        let mut path = Text::default();
        path.push(number.bytes());
        if sys::is_directory(mount)? {
            sys::make_directory(room.borrow(), path.terminated(), 0o755)?;
        } else {
            let mode = sys::S_IFREG | 0o644;
            sys::make_node(room.borrow(), path.terminated(), mode, (0, 0))?;
        }
        let target = sys::open_in(
            room.borrow(),
            path.terminated(),
            sys::O_PATH,
            Resolve::BENEATH,
        )?;
        sys::attach(mount, target.borrow())?;
    }
    Ok(())
}

/// In the process that was cloned: puts copies in the place of the mounts, whose flags are locked.
pub(crate) fn take_locked(which: &[u64; 4], fds: &mut FdList) -> core::result::Result<(), Reply> {
    let mut take = || {
        let root = sys::open_root()?;
        for index in indexes(which) {
            let mut path = Text::default();
            path.push(WAITING.to_bytes());
            path.push(b"/");
            path.push(Decimal::new(i64::from(index)).bytes());
            let flags = sys::O_PATH;
            let resolve = Resolve::IN_ROOT_NO_LINKS;
            let mount = sys::open_in(root.borrow(), path.terminated(), flags, resolve)?;
            fds.replace(FdIndex(index), sys::clone_tree(mount.borrow(), true)?);
        }
        Ok(())
    };
    take().map_err(call_failed(Call::LockMounts))
}

/// The last name of a path.
fn name(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    let start = memchr::memrchr(b'/', bytes).map_or(0, |slash| slash + 1);
    CStr::from_bytes_with_nul(&bytes[start..]).unwrap_or_default()
}

/// A short text with a NUL behind it. What does not fit is left out.
#[derive(Default)]
struct Text {
    bytes: [u8; 32],
    length: usize,
}

impl Text {
    fn push(&mut self, part: &[u8]) {
        let end = self.length + part.len();
        if end < self.bytes.len() {
            self.bytes[self.length..end].copy_from_slice(part);
            self.length = end;
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn terminated(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_indexes() {
        assert_eq!(indexes(&[0; 4]).count(), 0);
        assert_eq!(
            indexes(&[1 | 1 << 63, 1, 0, 1 << 57]).collect::<Vec<_>>(),
            [0, 63, 64, 249]
        );
        // No descriptor has such an index.
        assert_eq!(indexes(&[0, 0, 0, 1 << 58]).count(), 0);
    }

    #[test]
    fn texts_are_terminated() {
        let mut text = Text::default();
        text.push(b"0 ");
        text.push(Decimal::new(4_294_901_760).bytes());
        text.push(b" ");
        text.push(Decimal::new(65_535).bytes());
        assert_eq!(text.terminated(), c"0 4294901760 65535");
        assert_eq!(name(WAITING), c"waiting");
    }
}
