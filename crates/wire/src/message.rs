//! The messages of the control socket.

use serde::{Deserialize, Serialize};

use crate::{FdIndex, Malformed, ObjectId};

/// From the daemon to a supervisor. Each is answered by one [`Event::Reply`] with the same `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub seq: u32,
    pub body: RequestBody,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Become the pod's supervisor. Answered by [`Reply::Ready`]. Sent again to one that is set up, it
    /// answers the same and does nothing.
    Setup(Setup),
    /// Go on with a container that another supervisor has started and left behind. Before
    /// [`RequestBody::Setup`] it is only taken into the table: nothing of it is read yet.
    Adopt(Adopt),
    /// Clone a process and have it carry out its Plan. Answered when it has exec'd or failed.
    Start(Start),
    /// Send a signal to a running process. [`Reply::NotFound`] if it has exited.
    Signal {
        id: ObjectId,
        signal: i32,
        scope: SignalScope,
    },
    /// Write the container's log to the file beside this message from now on.
    /// Lines already read are written to the old file first.
    ReopenLog { id: ObjectId, log: FdIndex },
    /// Forget a process that has exited: its exit is on record with the daemon.
    Forget { id: ObjectId },
    /// Tell of every process in the table, one [`Event::Entry`] each, then [`Reply::Done`].
    List,
    /// End: refused with [`Reply::Busy`] while a process runs.
    Shutdown,
    /// Before [`RequestBody::Setup`]: make these namespaces (CLONE_NEW*, without CLONE_NEWNS and
    /// CLONE_NEWPID), which the pod will then have. So the network can be worked on while the rest of the
    /// pod is set up. Answered by [`Reply::Done`].
    Unshare { flags: u64 },
    /// Copy a running container's output to these write ends of pipes too, from now on. Nothing waits for
    /// a slow reader: what its pipe does not take it misses. A pipe is closed when its reader has gone, or
    /// when the stream has ended. [`Reply::Full`] if too many are attached.
    Attach {
        id: ObjectId,
        stdout: Option<FdIndex>,
        stderr: Option<FdIndex>,
    },
    /// Close the write end of a container's stdin.
    CloseStdin { id: ObjectId },
    /// Make a TCP socket in the pod's network namespace, where it stays wherever it is used. Answered by
    /// [`Reply::Done`] with the socket beside it, which does not block.
    Socket { family: Family },
    /// As [`RequestBody::Unshare`], but the namespaces belong to a new user namespace, which lives as long
    /// as they do. The supervisor enters them and stays outside of it.
    UnshareUser {
        flags: u64,
        uids: IdRange,
        gids: IdRange,
    },
    /// As [`RequestBody::Setup`], for a pod with a user namespace: its reaper belongs there.
    SetupUser { setup: Setup, namespace: FdIndex },
    /// As [`RequestBody::Start`], in a user namespace.
    StartUser { start: Start, user: UserStart },
    /// Clone the reaper of the pod's shared PID namespace, in this user namespace if the pod has one; nothing if it is
    /// there. Answered by [`Reply::Ready`].
    SharePids { namespace: Option<FdIndex> },
    /// The same, with a reaper that is cloned as process 1 of that namespace, in a mount namespace of its own, and
    /// carries out the Plan, which executes the supervisor's program with the argument [`BE_REAPER`]. Answered by
    /// [`Reply::Ready`], or by what failed.
    SharePidsAs {
        namespace: Option<FdIndex>,
        plan: FdIndex,
    },
}

/// The first argument of a supervisor's program that is to be a pod's reaper; NUL-terminated. Its standard input is then
/// the write end of a pipe, into which it writes [`Reply::Done`].
pub const BE_REAPER: &[u8] = b"--reaper\0";

/// The ids of a user namespace: 0 is `first` outside of it, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub first: u32,
    pub count: u32,
}

/// What else a process needs that is cloned in a user namespace, where it has no right to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserStart {
    /// The user namespace.
    pub namespace: FdIndex,
    /// As [`crate::Step::OomScoreAdj`].
    pub oom_score_adj: i32,
    /// The descriptors (bit = index) that are mounts whose flags nobody in the user namespace is to clear.
    pub locked: [u64; 4],
}

/// Which internet protocol a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl RequestBody {
    /// What a trace calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Setup(_) => "Setup",
            Self::Adopt(_) => "Adopt",
            Self::Start(_) => "Start",
            Self::Signal { .. } => "Signal",
            Self::ReopenLog { .. } => "ReopenLog",
            Self::Forget { .. } => "Forget",
            Self::List => "List",
            Self::Shutdown => "Shutdown",
            Self::Unshare { .. } => "Unshare",
            Self::Attach { .. } => "Attach",
            Self::CloseStdin { .. } => "CloseStdin",
            Self::Socket { .. } => "Socket",
            Self::UnshareUser { .. } => "UnshareUser",
            Self::SetupUser { .. } => "SetupUser",
            Self::StartUser { .. } => "StartUser",
            Self::SharePids { .. } => "SharePids",
            Self::SharePidsAs { .. } => "SharePidsAs",
        }
    }
}

/// How to become a pod's supervisor. The supervisor clones itself with `clone_flags` (and
/// CLONE_PARENT, so that the daemon stays the parent; CLONE_INTO_CGROUP if `cgroup` is given);
/// the clone carries out the Plan, then serves; the original exits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// CLONE_NEW* flags of the pod's own namespaces. CLONE_NEWNS is always among them, except in a
    /// `succession`: then there are none, and the Plan enters the namespaces that are there.
    pub clone_flags: u64,
    /// Cgroup v2 directory of the sandbox. On v1 the Plan's [`crate::Step::JoinTasks`] does this.
    pub cgroup: Option<FdIndex>,
    /// The memfd with the Plan.
    pub plan: FdIndex,
    /// File that [`crate::ExitRecord`]s are appended to (O_APPEND).
    pub exits: FdIndex,
    /// Whether containers share a PID namespace: the supervisor then clones a reaper as its init, unless
    /// it takes one over.
    pub shared_pid_namespace: bool,
    /// For a supervisor that takes the place of one that died.
    pub succession: Option<Succession>,
}

/// What outlived a supervisor and belongs to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// Pid and pidfd of the reaper.
    pub reaper: Option<(u32, FdIndex)>,
}

/// A container's first process that is no child of the supervisor. It may have exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopt {
    pub id: ObjectId,
    pub pid: u32,
    pub started_at: i64,
    /// Indexes into the descriptors beside the message.
    pub held: Held,
}

/// The descriptors that a supervisor holds for a process, by which another could go on in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Held {
    /// Until the process is reaped.
    pub pidfd: Option<FdIndex>,
    /// Read ends of stdout and stderr, or the master of its terminal as the first; none that has ended.
    pub streams: [Option<FdIndex>; 2],
    pub log: Option<FdIndex>,
    /// The write end of its stdin.
    pub stdin: Option<FdIndex>,
}

/// A process to clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub id: ObjectId,
    /// CLONE_NEW* flags, without CLONE_NEWPID (see `pid_namespace`). CLONE_NEWCGROUP without `cgroup`
    /// takes effect behind the Plan's last [`crate::Step::JoinTasks`], so that the namespace is rooted in
    /// the cgroups joined.
    pub clone_flags: u64,
    pub pid_namespace: PidNamespace,
    /// The process whose pidfd [`FdIndex::TARGET`] stands for in the Plan: for an exec its container.
    pub target: Option<ObjectId>,
    /// Cgroup v2 directory to be cloned into.
    pub cgroup: Option<FdIndex>,
    /// The memfd with the Plan.
    pub plan: FdIndex,
    /// What the supervisor itself does with the process's output.
    pub output: Output,
    /// The supervisor keeps this open until the process has exited: the write end of its stdin.
    pub stdin: Option<FdIndex>,
    /// Whether the process is a container's init rather than an exec. An init's exit is written to the
    /// exits file, and it stays in the table until it is forgotten; an exec leaves it once announced.
    pub init: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A new one (CLONE_NEWPID): the process is its init.
    New,
    /// The supervisor's own, which is the host's.
    Host,
    /// The pod's shared one, whose init is the supervisor's reaper.
    Pod,
    /// That of a running process of this pod, entered with setns(2) around the clone.
    Of(ObjectId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Someone else reads it: the daemon, for an exec.
    None,
    /// Read ends of the process's stdout and stderr, pumped into `log` in the CRI's format;
    /// without `log` they are read and thrown away.
    Pipes {
        stdout: FdIndex,
        stderr: FdIndex,
        log: Option<FdIndex>,
    },
    /// The master of its terminal, all of it logged as stdout.
    Terminal {
        master: FdIndex,
        log: Option<FdIndex>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalScope {
    /// The process alone.
    Process,
    /// Its process group.
    Group,
}

/// From a supervisor to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The first message of every connection. Beside it, once the pod is set up, as with
    /// [`Reply::Ready`].
    Hello {
        version: u16,
        /// Pid of the supervisor, in the namespace that the daemon shares with it.
        pid: u32,
        /// Whether [`RequestBody::Setup`] has been carried out.
        ready: bool,
        reaper_pid: Option<u32>,
    },
    Reply {
        seq: u32,
        reply: Reply,
    },
    /// A process has exited, all its children in its PID namespace are reaped, and all that it wrote
    /// is in the log. An init's exit has been appended to the exits file before.
    Exited {
        id: ObjectId,
        /// As `wait(2)` gives it, or [`UNKNOWN_STATUS`].
        wait_status: i32,
        started_at: i64,
        finished_at: i64,
        /// As in [`Entry`].
        dropped_lines: u64,
    },
    /// Part of the answer to [`RequestBody::List`]. Beside it is what [`Entry::held`] names.
    Entry(Entry),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: ObjectId,
    pub init: bool,
    pub pid: u32,
    pub started_at: i64,
    /// Wait status and time of the exit.
    pub exited: Option<(i32, i64)>,
    /// Log lines thrown away because the log could not be written.
    pub dropped_lines: u64,
    pub held: Held,
}

/// The wait status of a process that someone else reaped, on a kernel that does not tell afterwards how it
/// ended (before Linux 6.15). No process ends so.
pub const UNKNOWN_STATUS: i32 = -1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// The pod is set up. Beside it: the pidfd of the supervisor itself, then that of the reaper if there
    /// is one.
    Ready {
        pid: u32,
        reaper_pid: Option<u32>,
    },
    /// The process has exec'd. Beside it: its pidfd.
    Started {
        pid: u32,
        started_at: i64,
    },
    /// A step of the Plan failed; nothing of the process is left.
    StepFailed {
        step: u32,
        errno: i32,
    },
    /// The supervisor's own system call failed.
    CallFailed {
        call: Call,
        errno: i32,
    },
    /// The process ended before it exec'd and before it could tell why: it was killed.
    Died {
        wait_status: i32,
    },
    NotFound,
    /// The id is in the table already.
    Exists,
    /// The table is full: see `MAX_PROCESSES` of the supervisor.
    Full,
    /// Something still runs.
    Busy,
    /// The supervisor could not make sense of the request.
    Malformed,
}

/// The system calls that a supervisor makes on a request's behalf, as errors name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    Clone,
    Setns,
    Pipe,
    Epoll,
    Kill,
    MapPlan,
    Exits,
    Socket,
    /// Making a user namespace, or entering it.
    UserNamespace,
    /// Locking the flags of mounts.
    LockMounts,
}

/// Writes a message into `buffer`.
///
/// # Errors
/// [`Malformed`] if it does not fit.
pub fn encode<'b, T: Serialize>(message: &T, buffer: &'b mut [u8]) -> Result<&'b [u8], Malformed> {
    postcard::to_slice(message, buffer)
        .map(|used| &*used)
        .map_err(|_| Malformed)
}

/// The number of a [`Request`] of which more cannot be read.
#[must_use]
pub fn seq_of(bytes: &[u8]) -> Option<u32> {
    postcard::take_from_bytes(bytes).ok().map(|(seq, _)| seq)
}

/// Reads a message that fills `bytes` exactly.
///
/// # Errors
/// [`Malformed`] for anything else.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(Malformed),
    }
}
