//! A connection to one supervisor: requests with their replies, and the exits it announces.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carpel_wire::{
    Adopt, Entry, Event, ExitRecord, FdIndex, Held, MAX_MESSAGE, ObjectId, Reply, Request,
    RequestBody, SignalScope, Start, UserStart,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::oneshot;
use tracing::{Instrument, debug_span, field};

use super::socket::Connection;
use crate::failpoint;
use crate::telemetry::trace;

/// The longest wait for a supervisor's reply. It never blocks, so this is only passed when the machine
/// stands still.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(10);
/// Between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("supervisor is gone")]
    Gone,
    #[error("supervisor does not answer")]
    Silent,
    #[error("supervisor speaks version {0} of the protocol, not {ours}", ours = carpel_wire::VERSION)]
    Version(u16),
    #[error("supervisor answers {0:?}")]
    Refused(Reply),
    #[error(transparent)]
    Failpoint(crate::error::Error),
    #[error("talk to supervisor")]
    Io(#[from] io::Error),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As `wait(2)` returns it, or [`carpel_wire::UNKNOWN_STATUS`].
    pub wait_status: i32,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    pub finished_at: i64,
    /// Lines of output that could not be written to the log. Not known of an exit that was only on file.
    pub dropped_lines: u64,
}

impl From<ExitRecord> for Exit {
    fn from(record: ExitRecord) -> Self {
        let ExitRecord {
            wait_status,
            started_at,
            finished_at,
            ..
        } = record;
        Self {
            wait_status,
            started_at,
            finished_at,
            dropped_lines: 0,
        }
    }
}

/// The supervisor died before it told of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pod's supervisor died")]
pub struct Lost;

/// A process that a supervisor has started.
#[derive(Debug)]
pub struct Started {
    pub pid: u32,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    pub pidfd: OwnedFd,
    /// Ends when the process has exited and its output is in its log.
    pub exit: ExitWait,
}

/// A wait for one exit.
#[derive(Debug)]
pub struct ExitWait(oneshot::Receiver<Exit>);

impl ExitWait {
    /// Waits for the exit.
    ///
    /// # Errors
    /// [`Lost`] if the supervisor is gone.
    pub async fn wait(&mut self) -> Result<Exit, Lost> {
        (&mut self.0).await.map_err(|_| Lost)
    }
}

/// A handle to a supervisor; clones share the connection.
#[derive(Clone)]
pub struct Supervisor(Arc<Shared>);

struct Shared {
    connection: Connection,
    /// Changes once, when the supervisor clones itself to be the pod's.
    pid: AtomicU32,
    ready: bool,
    own: Mutex<Own>,
    next: AtomicU32,
    waiting: Mutex<Waiting>,
    gone: tokio::sync::watch::Sender<bool>,
}

/// What a supervisor is known by.
#[derive(Default)]
struct Own {
    pidfd: Option<Arc<OwnedFd>>,
    reaper: Option<Reaper>,
}

/// The first process of a pod's shared PID namespace. It outlives its supervisor.
#[derive(Debug, Clone)]
pub struct Reaper {
    pub pid: u32,
    pub pidfd: Arc<OwnedFd>,
}

impl Own {
    fn new(reaper_pid: Option<u32>, pidfds: Vec<OwnedFd>) -> Self {
        let mut pidfds = pidfds.into_iter().map(Arc::new);
        let pidfd = pidfds.next();
        let reaper = reaper_pid.zip(pidfds.next());
        let reaper = reaper.map(|(pid, pidfd)| Reaper { pid, pidfd });
        Self { pidfd, reaper }
    }
}

#[derive(Default)]
struct Waiting {
    /// Set when the connection has ended: nothing will be delivered any more.
    closed: bool,
    replies: HashMap<u32, oneshot::Sender<(Reply, Vec<OwnedFd>)>>,
    exits: HashMap<ObjectId, oneshot::Sender<Exit>>,
    entries: Vec<Listed>,
}

/// A process in a supervisor's table.
#[derive(Debug)]
pub struct Listed {
    pub entry: Entry,
    /// What [`Entry::held`] names.
    pub fds: Vec<OwnedFd>,
    /// Of one that has not exited yet. It was registered when the entry came, so that the exit right after
    /// it is not missed.
    pub exit: ExitWait,
}

impl Listed {
    /// Whether all came that a process which runs is known by: the kernel leaves out what the daemon has no room for.
    fn is_whole(&self) -> bool {
        let Held {
            pidfd,
            streams: [stdout, stderr],
            log,
            stdin,
        } = self.entry.held;
        let named = [pidfd, stdout, stderr, log, stdin];
        let mut named = named.into_iter().flatten();
        self.entry.exited.is_some()
            || named.all(|FdIndex(index)| usize::from(index) < self.fds.len())
    }
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Supervisor({})", self.pid())
    }
}

impl Supervisor {
    /// Connects to the supervisor that listens in the pod's state folder `dir`, which may take so long to greet.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is none; [`Error::Silent`] if it does not greet, or has long not looked at who wants to.
    pub async fn connect(dir: &Path, limit: Duration) -> Result<Self, Error> {
        let connection = Connection::connect(dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::Gone,
            io::ErrorKind::WouldBlock => Error::Silent,
            _ => Error::Io(error),
        })?;
        let hello = connection.receive(|message, pidfds| (carpel_wire::decode(message), pidfds));
        let (hello, pidfds) = tokio::time::timeout(limit, hello)
            .await
            .map_err(|_| Error::Silent)??
            .ok_or(Error::Gone)?;
        let (pid, ready, reaper_pid) = match hello {
            Ok(Event::Hello {
                version: carpel_wire::VERSION,
                pid,
                ready,
                reaper_pid,
            }) => (pid, ready, reaper_pid),
            Ok(Event::Hello { version, .. }) => return Err(Error::Version(version)),
            _ => return Err(Error::Version(0)),
        };
        if ready && pidfds.len() < 1 + usize::from(reaper_pid.is_some()) {
            return Err(no_room());
        }
        let mut own = Own::new(reaper_pid, pidfds);
        if !ready {
            // It lives, as it has just spoken.
            let pid = Pid::from_raw(pid.cast_signed()).ok_or(Error::Gone)?;
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?;
            own.pidfd = Some(Arc::new(pidfd));
        }
        let shared = Arc::new(Shared {
            connection,
            pid: AtomicU32::new(pid),
            ready,
            own: Mutex::new(own),
            next: AtomicU32::new(1),
            waiting: Mutex::default(),
            gone: tokio::sync::watch::Sender::new(false),
        });
        tokio::spawn(read_events(Arc::clone(&shared)));
        Ok(Self(shared))
    }

    /// Pid of the supervisor.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid.load(Ordering::Relaxed)
    }

    /// Its pidfd. None only if one that is set up did not give it.
    #[must_use]
    pub fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.0.own().pidfd.clone()
    }

    /// The pod's reaper, if its containers share a PID namespace.
    #[must_use]
    pub fn reaper(&self) -> Option<Reaper> {
        self.0.own().reaper.clone()
    }

    /// Whether both are handles to the same supervisor.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the pod had been set up when this connection was made.
    #[must_use]
    pub fn was_ready(&self) -> bool {
        self.0.ready
    }

    /// Ends when the supervisor has gone.
    pub async fn gone(&self) {
        let mut gone = self.0.gone.subscribe();
        // The sender lives as long as `self`.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Whether the connection stands.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !*self.0.gone.borrow()
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// [`Error::Gone`] if the supervisor dies meanwhile.
    pub async fn request(
        &self,
        body: RequestBody,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let span = self.span(&body);
        let request = async { trace::note(self.send(body, fds).await?.wait(self).await) };
        request.instrument(span).await
    }

    fn span(&self, body: &RequestBody) -> tracing::Span {
        debug_span!(
            "supervisor",
            otel.name = format!("supervisor {}", body.name()),
            otel.kind = "client",
            process.pid = self.pid(),
            error = field::Empty,
        )
    }

    async fn send(&self, body: RequestBody, fds: &[BorrowedFd<'_>]) -> Result<Pending, Error> {
        let seq = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        {
            let mut waiting = self.0.lock();
            if waiting.closed {
                return Err(Error::Gone);
            }
            waiting.replies.insert(seq, sender);
        }
        let sent = async {
            let message = encode(&Request { seq, body })?;
            Ok(self.0.connection.send(&message, fds).await?)
        };
        // One that reads nothing has no room for more at some time.
        let sent = tokio::time::timeout(REPLY_TIMEOUT, sent).await;
        if let Err(error) = sent.unwrap_or(Err(Error::Silent)) {
            self.0.lock().replies.remove(&seq);
            return Err(match error {
                Error::Io(error)
                    if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) =>
                {
                    Error::Gone
                }
                other => other,
            });
        }
        Ok(Pending { seq, reply })
    }

    /// Starts a process, in a user namespace if `user` says so; its exit will come through the answer.
    ///
    /// # Errors
    /// [`Error::Refused`] with the supervisor's reply if it did not start.
    pub async fn start(
        &self,
        start: Start,
        user: Option<UserStart>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Started, Error> {
        self.start_within(start, user, fds, REPLY_TIMEOUT).await
    }

    /// As [`Supervisor::start`], of a process that may take so long until its program runs.
    ///
    /// # Errors
    /// As [`Supervisor::start`]; [`Error::Silent`] if it takes longer. [`Supervisor::discard`] ends it then.
    pub async fn start_within(
        &self,
        start: Start,
        user: Option<UserStart>,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Started, Error> {
        let id = start.id;
        let exit = self.expect_exit(id);
        let body = match user {
            None => RequestBody::Start(start),
            Some(user) => RequestBody::StartUser { start, user },
        };
        let span = self.span(&body);
        let request = async {
            let pending = self.send(body, fds).await?;
            failpoint::hit("start:sent").map_err(Error::Failpoint)?;
            pending.wait_for(self, limit).await
        };
        let reply = async { trace::note(request.await) }.instrument(span).await;
        match reply {
            Ok((Reply::Started { pid, started_at }, mut fds)) if fds.len() == 1 => Ok(Started {
                pid,
                started_at,
                pidfd: fds.remove(0),
                exit,
            }),
            other => {
                self.0.lock().exits.remove(&id);
                Err(match other {
                    Ok((reply, _)) => Error::Refused(reply),
                    Err(error) => error,
                })
            }
        }
    }

    /// Kills a process that nobody waits for any more, and has it forgotten. Whether it is gone; that is not
    /// awaited for ever.
    pub async fn discard(&self, id: ObjectId) -> bool {
        self.0.lock().exits.remove(&id);
        let gone = async {
            loop {
                let killed = self.signal(id, libc::SIGKILL, SignalScope::Process).await;
                let forgotten = self.request(RequestBody::Forget { id }, &[]).await;
                match (killed, forgotten) {
                    (Ok(_), Ok((Reply::Busy, _))) => tokio::time::sleep(PAUSE).await,
                    (_, Ok((Reply::Done | Reply::NotFound, _))) => return true,
                    _ => return false,
                }
            }
        };
        tokio::time::timeout(DEATH, gone).await.unwrap_or(false)
    }

    /// Hands a container over that another supervisor has started, with the descriptors that `adopt` names.
    ///
    /// # Errors
    /// [`Error::Refused`] with the supervisor's reply if it does not take it.
    pub async fn adopt(&self, adopt: Adopt, fds: &[BorrowedFd<'_>]) -> Result<ExitWait, Error> {
        let exit = self.expect_exit(adopt.id);
        self.expect(RequestBody::Adopt(adopt), fds, |reply| {
            *reply == Reply::Done
        })
        .await?;
        Ok(exit)
    }

    fn expect_exit(&self, id: ObjectId) -> ExitWait {
        self.0.lock().expect_exit(id)
    }

    /// Every process in the supervisor's table, with what it holds for those that run.
    ///
    /// # Errors
    /// As [`Supervisor::request`], and if descriptors of a process that runs did not come. Only one may be under way
    /// at a time.
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        self.0.lock().entries.clear();
        self.expect(RequestBody::List, &[], |reply| *reply == Reply::Done)
            .await?;
        let listed = std::mem::take(&mut self.0.lock().entries);
        if listed.iter().all(Listed::is_whole) {
            Ok(listed)
        } else {
            Err(no_room())
        }
    }

    /// Sends a signal. `false`: the process has exited.
    ///
    /// # Errors
    /// As [`Supervisor::request`].
    pub async fn signal(
        &self,
        id: ObjectId,
        signal: i32,
        scope: SignalScope,
    ) -> Result<bool, Error> {
        let body = RequestBody::Signal { id, signal, scope };
        let known = |reply: &Reply| matches!(reply, Reply::Done | Reply::NotFound);
        Ok(self.expect(body, &[], known).await? == Reply::Done)
    }

    /// Sends a request that `wanted` knows the good replies to.
    ///
    /// # Errors
    /// [`Error::Refused`] with any other reply.
    pub async fn expect(
        &self,
        body: RequestBody,
        fds: &[BorrowedFd<'_>],
        wanted: impl Fn(&Reply) -> bool,
    ) -> Result<Reply, Error> {
        let (reply, _) = self.request(body, fds).await?;
        if wanted(&reply) {
            Ok(reply)
        } else {
            Err(Error::Refused(reply))
        }
    }
}

/// A request that has been sent.
struct Pending {
    seq: u32,
    reply: oneshot::Receiver<(Reply, Vec<OwnedFd>)>,
}

impl Pending {
    async fn wait(self, supervisor: &Supervisor) -> Result<(Reply, Vec<OwnedFd>), Error> {
        self.wait_for(supervisor, REPLY_TIMEOUT).await
    }

    async fn wait_for(
        self,
        supervisor: &Supervisor,
        limit: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        match tokio::time::timeout(limit, self.reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(Error::Gone),
            Err(_) => {
                supervisor.0.lock().replies.remove(&self.seq);
                Err(Error::Silent)
            }
        }
    }
}

impl Waiting {
    fn expect_exit(&mut self, id: ObjectId) -> ExitWait {
        let (sender, receiver) = oneshot::channel();
        if !self.closed {
            self.exits.insert(id, sender);
        }
        ExitWait(receiver)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, event: Event, mut fds: Vec<OwnedFd>) {
        let mut waiting = self.lock();
        match event {
            Event::Hello { .. } => {}
            Event::Reply { seq, reply } => {
                if let Reply::Ready { pid, reaper_pid } = reply {
                    self.pid.store(pid, Ordering::Relaxed);
                    *self.own() = Own::new(reaper_pid, std::mem::take(&mut fds));
                }
                if let Some(waiter) = waiting.replies.remove(&seq) {
                    let _ = waiter.send((reply, fds));
                }
            }
            Event::Exited {
                id,
                wait_status,
                started_at,
                finished_at,
                dropped_lines,
            } => {
                if let Some(waiter) = waiting.exits.remove(&id) {
                    let _ = waiter.send(Exit {
                        wait_status,
                        started_at,
                        finished_at,
                        dropped_lines,
                    });
                }
            }
            Event::Entry(entry) => {
                let exit = match entry.exited {
                    None => waiting.expect_exit(entry.id),
                    Some(_) => ExitWait(oneshot::channel().1),
                };
                waiting.entries.push(Listed { entry, fds, exit });
            }
        }
    }
}

/// What the kernel would say if it did not leave out descriptors that there is no room for.
fn no_room() -> Error {
    Error::Io(io::Error::from_raw_os_error(libc::EMFILE))
}

/// A request as it is sent, no longer than it must be: whoever sends it may have to wait.
fn encode(request: &Request) -> io::Result<Vec<u8>> {
    let mut buffer = [0; MAX_MESSAGE];
    match carpel_wire::encode(request, &mut buffer) {
        Ok(message) => Ok(message.to_vec()),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
    }
}

/// Delivers what the supervisor says, until the connection ends. It keeps the connection open by itself:
/// whoever waits for an exit need not hold a [`Supervisor`].
async fn read_events(shared: Arc<Shared>) {
    let deliver = |message: &[u8], fds| match carpel_wire::decode(message) {
        Ok(event) => shared.deliver(event, fds),
        Err(error) => {
            tracing::warn!(supervisor.pid = shared.pid.load(Ordering::Relaxed), %error, "message ignored");
        }
    };
    loop {
        match shared.connection.receive(deliver).await {
            Ok(Some(())) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(supervisor.pid = shared.pid.load(Ordering::Relaxed), %error, "connection lost");
                break;
            }
        }
    }
    {
        let mut waiting = shared.lock();
        waiting.closed = true;
        waiting.replies.clear();
        waiting.exits.clear();
    }
    shared.gone.send_replace(true);
}
