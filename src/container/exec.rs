//! A command in a running container: with a client's streams, or with its output and exit code collected
//! (ExecSync).
//!
//! A command does not die with its client, as with the peers. But its pipes are closed then, so that it has
//! no more input and is told when it writes; and so is its terminal, which hangs its session up.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carpel_wire::{Output, SignalScope, Start};
use tokio::io::AsyncWrite;
use tracing::Instrument;

use super::copy::{self, Collected, Outputs};
use super::exit::exit_code;
use super::processes::{Descriptors, Made, Owner, Streams};
use super::start::refused;
use super::streams::{ClientStreams, TerminalSize};
use super::{Container, Running};
use crate::error::Error;
use crate::ids::{ContainerId, ExecId};
use crate::node::{Node, orphans};
use crate::spec::plan;
use crate::supervisor::{self, Exit, Lost, REPLY_TIMEOUT, Started, Supervisor};

/// Most bytes kept of each stream; the rest is read and thrown away, as the peers do.
const OUTPUT_LIMIT: usize = 16 << 20;
/// How long a terminal's first size is waited for. Clients send it as soon as they have their streams; a program that
/// looked before would find a terminal of no size.
const FIRST_SIZE: Duration = Duration::from_millis(100);
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
        let exec = self.new_exec(id, command).await?;
        let node = Arc::clone(self);
        // A task of its own: a client that goes away leaves no process behind that nobody waits for.
        let run = async move { exec.collect(&node, timeout).await };
        let run = tokio::spawn(run.in_current_span());
        run.await.map_err(Error::at("run the command"))?
    }

    /// Runs a command with a client's streams; the command's exit code.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if the container does not run, or the client goes.
    pub async fn exec(
        self: &Arc<Self>,
        id: &ContainerId,
        command: Vec<String>,
        tty: bool,
        client: ClientStreams,
    ) -> Result<i32, Error> {
        let exec = self.new_exec(id, command).await?;
        let node = Arc::clone(self);
        // As above; that the client is gone is told by its streams.
        let run = async move { exec.connect(&node, tty, client).await };
        let run = tokio::spawn(run.in_current_span());
        run.await.map_err(Error::at("run the command"))?
    }

    async fn new_exec(&self, id: &ContainerId, command: Vec<String>) -> Result<Exec, Error> {
        let container = self.require_container(id)?;
        let running = container.require_running()?;
        let supervisor = self.supervisor_of(&container).await?;
        let namespace = self.sandbox_of(&container)?.config.user_namespace;
        let owner = Owner::of(&container.user, namespace);
        Ok(Exec {
            id: ExecId::random(),
            container,
            running,
            supervisor,
            command,
            owner,
        })
    }
}

struct Exec {
    id: ExecId,
    container: Arc<Container>,
    running: Running,
    supervisor: Supervisor,
    command: Vec<String>,
    owner: Owner,
}

/// Our ends of a command's streams.
enum Ours {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal(OwnedFd),
}

impl Ours {
    /// Takes where input goes, and the terminal again for its size.
    fn for_input(&mut self) -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        Ok(match self {
            Self::Pipes { stdin, .. } => (stdin.take(), None),
            Self::Terminal(master) => (Some(master.try_clone()?), Some(master.try_clone()?)),
        })
    }
}

impl Exec {
    async fn collect(self, node: &Node, timeout: Option<Duration>) -> Result<ExecOutput, Error> {
        let streams =
            Streams::pipes(false, self.owner).map_err(Error::at(self.at("make the pipes")))?;
        let begin = Instant::now();
        let (mut started, ours) = self.start(node, streams, false, timeout).await?;
        let to = [OUTPUT_LIMIT; 2].map(Collected::new);
        let mut outputs = self.outputs(ours, to)?;
        let finished = outputs.until_exit(&mut started.exit);
        let exit = match timeout {
            None => finished.await,
            Some(limit) => {
                let left = limit.saturating_sub(begin.elapsed());
                match tokio::time::timeout(left, finished).await {
                    Ok(exit) => exit,
                    Err(_) => return Err(self.kill(&mut started, limit).await),
                }
            }
        };
        let exit = self.known(exit, &started).await?;
        outputs.drain().await;
        let bytes = |client: Option<Collected>| client.map(|client| client.bytes);
        let [stdout, stderr] = outputs.into_clients().map(bytes);
        Ok(ExecOutput {
            stdout: stdout.unwrap_or_default(),
            stderr: stderr.unwrap_or_default(),
            exit_code: exit_code(exit.wait_status),
        })
    }

    async fn connect(self, node: &Node, tty: bool, client: ClientStreams) -> Result<i32, Error> {
        let ClientStreams {
            stdin,
            stdout,
            stderr,
            mut resize,
            gone,
        } = client;
        let streams = if tty {
            let first = async { resize.as_mut()?.recv().await };
            let size = tokio::select! {
                size = tokio::time::timeout(FIRST_SIZE, first) => size.ok().flatten(),
                () = gone.cancelled() => None,
            };
            self.terminal(size)?
        } else {
            Streams::pipes(stdin.is_some(), self.owner)
                .map_err(Error::at(self.at("make the pipes")))?
        };
        let (mut started, mut ours) = self.start(node, streams, tty, None).await?;
        let (stdin_to, terminal) = ours
            .for_input()
            .map_err(Error::at(self.at("open the streams")))?;
        let nowhere = || Box::new(tokio::io::sink()) as Box<dyn AsyncWrite + Send + Unpin>;
        let to = [stdout, stderr].map(|client| client.unwrap_or_else(nowhere));
        let mut outputs = self.outputs(ours, to)?;
        let input = async {
            if let (Some(from), Some(to)) = (stdin, stdin_to)
                && let Err(error) = copy::input(from, to).await
            {
                tracing::warn!(container.id = %self.container.id, %error, "input of a command");
            }
        };
        let sizes = async {
            if let (Some(sizes), Some(terminal)) = (resize, terminal) {
                copy::sizes(sizes, terminal).await;
            }
        };
        let work = async {
            let exit = outputs.until_exit(&mut started.exit).await;
            let exit = self.known(exit, &started).await?;
            outputs.drain().await;
            Ok(exit_code(exit.wait_status))
        };
        tokio::select! {
            ended = work => ended,
            ended = beside(async { tokio::join!(biased; sizes, input) }) => ended,
            () = gone.cancelled() => {
                Err(Error::FailedPrecondition(self.at("the client is gone")))
            }
        }
    }

    /// "make the pipes of a command in container …".
    fn at(&self, doing: &str) -> String {
        format!("{doing} of a command in container {}", self.container.id)
    }

    /// A terminal that has its size before a program can ask for it.
    fn terminal(&self, size: Option<TerminalSize>) -> Result<Streams, Error> {
        let streams = Streams::terminal_of(
            &self.running,
            self.owner,
            self.container.source.mount_label(),
        )?;
        if let (Streams::Terminal { master, .. }, Some(size)) = (&streams, size) {
            copy::set_size(master, size);
        }
        Ok(streams)
    }

    /// Starts the command, whose whole run may take so long. One that has not begun by then never runs.
    async fn start(
        &self,
        node: &Node,
        mut streams: Streams,
        tty: bool,
        limit: Option<Duration>,
    ) -> Result<(Started, Ours), Error> {
        let compiled = plan::compile_exec(&self.container.source, &self.command, tty, &node.host);
        let compiled = compiled.map_err(|error| {
            Error::InvalidArgument(format!("container {}: {error}", self.container.id))
        })?;
        let join = node
            .cgroups
            .open(&self.container.cgroup)
            .join()
            .map_err(Error::at(self.at("open the cgroup")))?;
        let made = Made::default();
        let descriptors = Descriptors::open(&compiled, made, &join, &mut streams, None)?;
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
        let within = limit.unwrap_or(REPLY_TIMEOUT);
        let started = self
            .supervisor
            .start_within(message, None, &descriptors.borrow(), within)
            .await;
        let started = match started {
            Ok(started) => started,
            Err(supervisor::Error::Silent) => {
                // Its cgroup is frozen, or its folder hangs.
                let gone = self.supervisor.discard(self.id.object()).await;
                return Err(self.too_long(within, gone));
            }
            Err(error) => return Err(refused(&self.container, &compiled.steps, error)),
        };
        match streams {
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
                ..
            } => Ok((
                started,
                Ours::Pipes {
                    stdin,
                    stdout,
                    stderr,
                },
            )),
            Streams::Terminal { master, .. } => Ok((started, Ours::Terminal(master))),
            Streams::None => Err(Error::Internal(
                "bug in carpel: exec without streams".into(),
            )),
        }
    }

    fn outputs<W: AsyncWrite + Unpin>(&self, ours: Ours, to: [W; 2]) -> Result<Outputs<W>, Error> {
        let from = match ours {
            Ours::Pipes { stdout, stderr, .. } => [Some(stdout), Some(stderr)],
            Ours::Terminal(master) => [Some(master), None],
        };
        Outputs::new(from, to.map(Some)).map_err(Error::at(self.at("read the output")))
    }

    /// The exit; or the command is killed if nobody can tell it any more.
    async fn known(&self, exit: Result<Exit, Lost>, started: &Started) -> Result<Exit, Error> {
        match exit {
            Ok(exit) => Ok(exit),
            Err(lost) => {
                orphans::end(&started.pidfd).await;
                let text = format!("command in container {}", self.container.id);
                Err(Error::wrap(text, lost))
            }
        }
    }

    /// Kills the command with its process group, and waits until it is reaped.
    async fn kill(&self, started: &mut Started, limit: Duration) -> Error {
        let killed = self
            .supervisor
            .signal(self.id.object(), libc::SIGKILL, SignalScope::Group)
            .await;
        if killed.is_err() {
            orphans::end(&started.pidfd).await;
        }
        let gone = tokio::time::timeout(DEATH, started.exit.wait())
            .await
            .is_ok();
        self.too_long(limit, gone)
    }

    fn too_long(&self, limit: Duration, gone: bool) -> Error {
        let stuck = if gone { "" } else { ", and does not die" };
        Error::DeadlineExceeded(format!(
            "command {:?} in container {} took longer than {} s{stuck}",
            self.command.join(" "),
            self.container.id,
            limit.as_secs()
        ))
    }
}

/// What goes on beside the work that decides, and never ends it.
async fn beside<T>(work: impl Future) -> T {
    work.await;
    std::future::pending().await
}
