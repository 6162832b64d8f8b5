//! ExecSync: a command in a running container, its output and its exit code.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use carpel_wire::{Output, SignalScope, Start};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tracing::Instrument;

use super::Container;
use super::exit::exit_code;
use super::processes::{Descriptors, Streams};
use super::start::refused;
use crate::error::Error;
use crate::ids::{ContainerId, ExecId};
use crate::node::{Node, orphans};
use crate::spec::plan::{self, Compiled};
use crate::supervisor::{Started, Supervisor};

/// Most bytes kept of each stream; the rest is read and thrown away, as the peers do.
const OUTPUT_LIMIT: usize = 16 << 20;
/// How long output that is still in the pipes is waited for after the command's exit. A child that it
/// left in the background may hold them open for ever.
const DRAIN: Duration = Duration::from_millis(200);
/// How long a killed command may take to be reaped.
const DEATH: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

impl Node {
    /// Runs a command in a container and waits for it.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] if it takes longer than `timeout` (none: it may take for ever); the
    /// command is dead and reaped then. [`Error::FailedPrecondition`] if the container does not run.
    pub async fn exec_sync(
        self: &Arc<Self>,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let container = self.require_container(id)?;
        if container.running().is_none() {
            return Err(Error::FailedPrecondition(format!(
                "container {id} is not running"
            )));
        }
        let supervisor = self.supervisor_of(&container).await?;
        let exec = Exec {
            id: ExecId::random(),
            container,
            supervisor,
            command,
        };
        let node = Arc::clone(self);
        // A task of its own: a client that goes away leaves no process behind that nobody waits for.
        let run = async move { exec.run(&node, timeout).await };
        let run = tokio::spawn(run.in_current_span());
        run.await.map_err(Error::at("run the command"))?
    }
}

struct Exec {
    id: ExecId,
    container: Arc<Container>,
    supervisor: Supervisor,
    command: Vec<String>,
}

impl Exec {
    async fn run(self, node: &Node, timeout: Option<Duration>) -> Result<ExecOutput, Error> {
        let compiled = plan::compile_exec(&self.container.source, &self.command, false, &node.host)
            .map_err(|error| {
                Error::InvalidArgument(format!("container {}: {error}", self.container.id))
            })?;
        let (mut started, stdout, stderr) = self.start(node, &compiled).await?;
        let mut output = Collected::new(stdout, stderr)?;
        let finished = async {
            tokio::select! {
                exit = started.exit.wait() => exit,
                // The output may end long before the command does, and the other way round.
                () = output.collect() => started.exit.wait().await,
            }
        };
        let exit = match timeout {
            None => finished.await,
            Some(limit) => match tokio::time::timeout(limit, finished).await {
                Ok(exit) => exit,
                Err(_) => return Err(self.kill(&mut started, limit).await),
            },
        };
        let exit = match exit {
            Ok(exit) => exit,
            Err(lost) => {
                orphans::end(&started.pidfd).await;
                let text = format!("command in container {}", self.container.id);
                return Err(Error::wrap(text, lost));
            }
        };
        let _ = tokio::time::timeout(DRAIN, output.collect()).await;
        Ok(ExecOutput {
            stdout: output.stdout.bytes,
            stderr: output.stderr.bytes,
            exit_code: exit_code(exit.wait_status),
        })
    }

    async fn start(
        &self,
        node: &Node,
        compiled: &Compiled,
    ) -> Result<(Started, OwnedFd, OwnedFd), Error> {
        let at = |doing: &str| format!("{doing} of a command in container {}", self.container.id);
        let join = node
            .cgroups
            .open(&self.container.cgroup)
            .join()
            .map_err(Error::at(at("open the cgroup")))?;
        let mut streams = Streams::pipes(false).map_err(Error::at(at("make the pipes")))?;
        let descriptors = Descriptors::open(compiled, None, &join, &mut streams)?;
        let message = Start {
            id: self.id.object(),
            clone_flags: compiled.clone_flags,
            pid_namespace: compiled.pid_namespace,
            target: Some(self.container.id.object()),
            cgroup: descriptors.cgroup,
            plan: descriptors.plan,
            output: Output::None,
            stdin: None,
            init: false,
        };
        let started = self
            .supervisor
            .start(message, &descriptors.borrow())
            .await
            .map_err(|error| refused(&self.container, &compiled.steps, error))?;
        match streams {
            Streams::Pipes { stdout, stderr, .. } => Ok((started, stdout, stderr)),
            Streams::None | Streams::Terminal { .. } => Err(Error::Internal(
                "bug in carpel: exec with a terminal".into(),
            )),
        }
    }

    /// Kills the command with its process group, and waits until it is reaped.
    async fn kill(&self, started: &mut Started, limit: Duration) -> Error {
        let killed = self
            .supervisor
            .signal(self.id.object(), libc::SIGKILL, SignalScope::Group)
            .await;
        if let Err(error) = killed {
            return Error::wrap(
                format!("kill a command in container {}", self.container.id),
                error,
            );
        }
        let gone = tokio::time::timeout(DEATH, started.exit.wait())
            .await
            .is_ok();
        let stuck = if gone { "" } else { ", and does not die" };
        Error::DeadlineExceeded(format!(
            "command {:?} in container {} took longer than {} s{stuck}",
            self.command.join(" "),
            self.container.id,
            limit.as_secs()
        ))
    }
}

/// What has been read so far; collecting can be broken off and taken up again.
struct Collected {
    stdout: Stream,
    stderr: Stream,
}

struct Stream {
    pipe: pipe::Receiver,
    bytes: Vec<u8>,
    ended: bool,
}

impl Collected {
    fn new(stdout: OwnedFd, stderr: OwnedFd) -> Result<Self, Error> {
        Ok(Self {
            stdout: Stream::new(stdout)?,
            stderr: Stream::new(stderr)?,
        })
    }

    /// Reads both streams to their end.
    async fn collect(&mut self) {
        tokio::join!(self.stdout.collect(), self.stderr.collect());
    }
}

impl Stream {
    fn new(fd: OwnedFd) -> Result<Self, Error> {
        let pipe = rustix::io::ioctl_fionbio(&fd, true)
            .map_err(std::io::Error::from)
            .and_then(|()| pipe::Receiver::from_owned_fd_unchecked(fd))
            .map_err(Error::at("read a command's output"))?;
        Ok(Self {
            pipe,
            bytes: Vec::new(),
            ended: false,
        })
    }

    async fn collect(&mut self) {
        let mut rest = [0; 4096];
        while !self.ended {
            let room = OUTPUT_LIMIT - self.bytes.len();
            let read = if room > 0 {
                self.bytes.reserve(room.min(8192));
                (&mut self.pipe)
                    .take(room as u64)
                    .read_buf(&mut self.bytes)
                    .await
            } else {
                self.pipe.read(&mut rest).await
            };
            self.ended = !matches!(read, Ok(1..));
        }
    }
}
