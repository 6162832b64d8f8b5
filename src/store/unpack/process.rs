//! Unpacking in a process of its own, which can do nothing else: what is in a layer may be meant to break whoever reads
//! it.
//!
//! ```text
//! daemon ──Order, descriptors of pipe, folder and skeleton──▶ carpel-unpack ──▶ folder
//!    └──────────────── packed bytes ─pipe───────────────────▶      │
//!    ◀──────────────── Answer ─────────────────────────────────────┘
//! ```
//!
//! What must always hold: the process lives no longer than the call that started it, nor than the daemon. What it
//! answers is a stranger's word: the digest of the packed bytes is computed by the daemon.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde::{Deserialize, Serialize};

use super::{Expected, Limits, Skeleton, Tree, UnpackError, Unpacked, check, unpack};
use crate::store::blobs::{Digest, Hashing, read_some};

/// What tells this program, alone on its command line, that it is to unpack a layer.
pub(super) const ARGUMENT: &str = "--unpack-layer";
/// Bytes of the pipe: that of a layer that is read while the last bytes of it are unpacked.
const PIPE: usize = 1 << 20;
/// Bytes that are passed on at once.
const PIECE: usize = 128 << 10;
/// Bytes of an answer: a layer has names of folders to tell of.
const MOST_ANSWERED: u64 = 512 << 20;
/// Between two looks whether the layer is still wanted, in nanoseconds.
const PAUSE: i64 = 100_000_000;

/// Who unpacks.
#[derive(Debug, Clone)]
pub enum Unpacker {
    /// A process of its own for each layer, made of this program: the daemon's way.
    Confined { program: PathBuf },
    /// The thread that asks: for programs that cannot be run so, such as tests.
    Here,
}

/// What is to be unpacked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Pid of the daemon.
    pub daemon: u32,
    pub diff: Digest,
    pub limits: Limits,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Unpacked(Unpacked),
    Invalid(String),
    Entry { path: String, what: String },
    OtherDiff(Digest),
    Read(String),
    Write { path: String, errno: i32 },
}

impl Unpacker {
    /// As [`unpack`], of the layer's folder `tree` and the empty file `skeleton`.
    ///
    /// # Errors
    /// [`UnpackError`]; [`UnpackError::Ended`] if the process that unpacks was killed.
    pub fn unpack(
        &self,
        packed: impl Read + Send,
        expected: Expected,
        tree: &Tree,
        skeleton: File,
        limits: &Limits,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Unpacked, UnpackError> {
        let Self::Confined { program } = self else {
            let skeleton = Skeleton::new(skeleton);
            return unpack(packed, expected, tree, skeleton, limits, proceed);
        };
        let order = Order {
            daemon: std::process::id(),
            diff: expected.diff,
            limits: limits.clone(),
        };
        let started = Process::start(program, &order, tree, skeleton);
        let mut process = started.map_err(|error| {
            let what = format!("start the process that unpacks: {error}");
            UnpackError::Read(io::Error::new(error.kind(), what))
        })?;
        let mut packed = Hashing::new(packed);
        if expected.packed.is_none() {
            packed.only_count();
        }
        let fed = process.feed(&mut packed, proceed)?;
        let unpacked = process.answer(expected.diff, proceed)?;
        if !fed {
            return Err(UnpackError::invalid("it was not read to its end"));
        }
        if let Some(expected) = expected.packed {
            check("its digest", expected, packed.finish()?.0)?;
        }
        Ok(unpacked)
    }
}

/// A process that unpacks one layer. It ends with this.
struct Process {
    child: Child,
    socket: OwnedFd,
    /// Where the packed bytes go.
    pipe: Option<OwnedFd>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(program: &Path, order: &Order, tree: &Tree, skeleton: File) -> io::Result<Self> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let (packed, pipe) = pipe_with(PipeFlags::CLOEXEC)?;
        // Beyond what a user may have in pipes it stays smaller.
        let _ = fcntl_setpipe_size(&pipe, PIPE);
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let child = Command::new(program)
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .spawn()?;
        let process = Self {
            child,
            socket,
            pipe: Some(pipe),
        };
        let order = serde_json::to_vec(order)?;
        send(
            &process.socket,
            &order,
            &[packed.as_fd(), tree.as_fd(), skeleton.as_fd()],
        )?;
        Ok(process)
    }

    /// Passes the packed bytes on. Whether all of them were taken.
    fn feed(
        &mut self,
        packed: &mut impl Read,
        proceed: &dyn Fn() -> bool,
    ) -> Result<bool, UnpackError> {
        let Some(pipe) = self.pipe.take() else {
            return Ok(true);
        };
        let mut buffer = vec![0; PIECE];
        loop {
            let length = read_some(packed, &mut buffer)?;
            if length == 0 {
                return Ok(true);
            }
            let mut left = &buffer[..length];
            while !left.is_empty() {
                match rustix::io::write(&pipe, left) {
                    Ok(written) => left = &left[written..],
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => self::wait(pipe.as_fd(), PollFlags::OUT, proceed)?,
                    // It has an answer, or is dead.
                    Err(Errno::PIPE) => return Ok(false),
                    Err(error) => return Err(UnpackError::Read(error.into())),
                }
            }
        }
    }

    fn answer(
        &mut self,
        expected: Digest,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Unpacked, UnpackError> {
        wait(self.socket.as_fd(), PollFlags::IN, proceed)?;
        let mut answer = Vec::new();
        let socket = self.socket.try_clone().map_err(UnpackError::Read)?;
        let read = File::from(socket)
            .take(MOST_ANSWERED)
            .read_to_end(&mut answer);
        read.map_err(UnpackError::Read)?;
        if answer.is_empty() {
            let ended = self.child.wait().map_err(UnpackError::Read)?;
            return Err(UnpackError::Ended(ended.to_string()));
        }
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|error| UnpackError::Ended(format!("it answers nonsense: {error}")))?;
        Err(match answer {
            Answer::Unpacked(unpacked) => return Ok(unpacked),
            Answer::Invalid(what) => UnpackError::Invalid(what),
            Answer::Entry { path, what } => UnpackError::Entry { path, what },
            Answer::OtherDiff(actual) => UnpackError::Digest {
                what: "its diff id",
                expected,
                actual,
            },
            Answer::Read(what) => UnpackError::Read(io::Error::other(what)),
            Answer::Write { path, errno } => UnpackError::Write {
                path,
                source: io::Error::from_raw_os_error(errno),
            },
        })
    }
}

impl From<Result<Unpacked, UnpackError>> for Answer {
    fn from(outcome: Result<Unpacked, UnpackError>) -> Self {
        match outcome {
            Ok(unpacked) => Self::Unpacked(unpacked),
            Err(UnpackError::Entry { path, what }) => Self::Entry { path, what },
            Err(UnpackError::Digest { actual, .. }) => Self::OtherDiff(actual),
            Err(UnpackError::Write { path, source }) => Self::Write {
                path,
                errno: source.raw_os_error().unwrap_or(libc::EIO),
            },
            Err(UnpackError::Read(error)) => Self::Read(error.to_string()),
            Err(error) => Self::Invalid(error.to_string()),
        }
    }
}

/// Waits until something is ready, or the layer is not wanted any more.
fn wait(
    fd: BorrowedFd<'_>,
    what: PollFlags,
    proceed: &dyn Fn() -> bool,
) -> Result<(), UnpackError> {
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: PAUSE,
    };
    loop {
        if !proceed() {
            return Err(UnpackError::Cancelled);
        }
        match poll(&mut [PollFd::from_borrowed_fd(fd, what)], Some(&pause)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(UnpackError::Read(error.into())),
        }
    }
}

fn send(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    let sent = sendmsg(
        socket,
        &[IoSlice::new(message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent < message.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
