//! A client is connected with a running container's own streams.
//!
//! Output comes through pipes that the container's supervisor copies it to ([`carpel_wire::RequestBody::Attach`]).
//! They are the client's buffer: what they do not take while the client is slow, it misses. Input goes straight
//! to the container's stdin, or its terminal. If the supervisor is replaced, the session goes on with the next, and
//! misses what comes in between.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use carpel_wire::{Reply, RequestBody};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::copy::{self, InputEnd, Outputs};
use super::streams::ClientStreams;
use super::{Container, Kept};
use crate::error::Error;
use crate::ids::ContainerId;
use crate::node::Node;
use crate::supervisor::{self, Supervisor};

/// Room for what a client has not taken yet; pages are taken only when used. More than this an ordinary
/// user's pipe may not have.
const PIPE_SIZE: usize = 1 << 20;

/// How often, and how long apart, a supervisor is asked until there is one that has the container: another
/// takes the place of one that died within milliseconds.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(50);

type Input = Box<dyn AsyncRead + Send + Unpin>;
type Client = Box<dyn AsyncWrite + Send + Unpin>;

impl Node {
    /// Connects a client with a running container's streams until it exits, the client goes or, as with containerd, the
    /// client's input ends: with its end crictl says that the keys were typed that leave a terminal. Only one client's
    /// input (`stdin_once` without a terminal) ends the container's instead.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if the container does not run; [`Error::ResourceExhausted`] if too many
    /// clients are attached.
    pub async fn attach(
        self: &Arc<Self>,
        id: &ContainerId,
        client: ClientStreams,
    ) -> Result<(), Error> {
        let container = self.require_container(id)?;
        let running = container.require_running()?;
        let session = Session {
            container,
            kept: running.kept,
        };
        // A task of its own: its end is part of it. That the client is gone is told by its streams.
        let run = tokio::spawn(async move { session.run(client).await });
        run.await.map_err(Error::at("attach"))?
    }
}

struct Session {
    container: Arc<Container>,
    kept: Arc<Kept>,
}

impl Session {
    async fn run(&self, client: ClientStreams) -> Result<(), Error> {
        let ClientStreams {
            stdin,
            stdout,
            stderr,
            resize,
            gone,
        } = client;
        let wrote = stdin.is_some();
        // So that the client misses no answer to what it says.
        let attached = CancellationToken::new();
        let input = async {
            attached.cancelled().await;
            self.input(stdin).await
        };
        let sizes = async {
            if let (Some(sizes), true, Some(terminal)) =
                (resize, self.container.config.tty, self.kept.terminal())
            {
                copy::sizes(sizes, terminal).await;
            }
            std::future::pending().await
        };
        let said = async {
            tokio::select! {
                // What is typed is typed at the terminal's new size.
                biased;
                ended = sizes => ended,
                ended = input => ended,
            }
        };
        let ended = tokio::select! {
            ended = self.output(stdout, stderr, &attached) => ended,
            ended = said => ended,
            () = gone.cancelled() => Ok(()),
        };
        if wrote && ended.is_ok() && self.ends_with_its_client() {
            return self.close_stdin().await;
        }
        ended
    }

    /// Whether the container's stdin is for one client only.
    fn ends_with_its_client(&self) -> bool {
        let config = &self.container.config;
        config.stdin && config.stdin_once && !config.tty
    }

    /// Copies the client's input. Returns if that ends the session.
    async fn input(&self, from: Option<Input>) -> Result<(), Error> {
        let config = &self.container.config;
        let to = match (from, config.stdin, config.tty) {
            (Some(from), true, true) => self
                .kept
                .terminal()
                .map(|to| (from, to.try_clone_to_owned())),
            (Some(from), true, false) => self.kept.stdin().map(|to| (from, to.try_clone())),
            _ => None,
        };
        if let Some((from, to)) = to {
            let at = || format!("stdin of container {}", self.container.id);
            let to = to.map_err(Error::at(at()))?;
            let end = tokio::select! {
                end = copy::input(from, to) => end.map_err(Error::at(at()))?,
                () = self.kept.stdin_closed() => InputEnd::Process,
            };
            if end == InputEnd::Client && self.ends_with_its_client() {
                self.close_stdin().await?;
            } else if end == InputEnd::Client {
                return Ok(());
            }
        }
        std::future::pending().await
    }

    /// Copies output to the client until the container has exited and all of it is copied. Says when that
    /// has begun.
    async fn output(
        &self,
        stdout: Option<Client>,
        stderr: Option<Client>,
        attached: &CancellationToken,
    ) -> Result<(), Error> {
        let mut clients = [stdout, stderr];
        if clients.iter().all(Option::is_none) {
            attached.cancel();
            self.exited().await;
            return Ok(());
        }
        let mut tries = TRIES;
        while let Some(running) = self.container.running() {
            let supervisor = &running.supervisor;
            let wanted = clients.each_ref().map(Option::is_some);
            let Some(pipes) = self.pipes(supervisor, wanted).await? else {
                tries = tries.checked_sub(1).ok_or_else(|| self.lost())?;
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            tries = TRIES;
            attached.cancel();
            let mut outputs = Outputs::new(pipes, clients).map_err(Error::at(format!(
                "output of container {}",
                self.container.id
            )))?;
            outputs.copy().await;
            clients = outputs.into_clients();
            if clients.iter().all(Option::is_none) {
                // The client takes no more.
                return Ok(());
            }
            tokio::select! {
                () = self.exited() => {}
                () = supervisor.gone() => {}
            }
        }
        Ok(())
    }

    async fn exited(&self) {
        let mut exited = self.container.exited.subscribe();
        // The sender is the container's.
        let _ = exited.wait_for(|exited| *exited).await;
    }

    /// Has a supervisor copy the container's output to pipes, for each stream that is wanted.
    /// `None`: it does not have the container, or is gone itself.
    async fn pipes(
        &self,
        supervisor: &Supervisor,
        wanted: [bool; 2],
    ) -> Result<Option<[Option<OwnedFd>; 2]>, Error> {
        let id = self.container.id;
        let at = || format!("attach to container {id}");
        let (mut ours, mut theirs) = ([None, None], Vec::new());
        let mut indexes = [None; 2];
        for ((wanted, ours), index) in wanted.into_iter().zip(&mut ours).zip(&mut indexes) {
            if wanted {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)
                    .map_err(|error| Error::wrap(at(), std::io::Error::from(error)))?;
                // Over the user's limit it stays as it is.
                let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
                *index = Some(crate::node::index(theirs.len()));
                (*ours, _) = (Some(read), theirs.push(write));
            }
        }
        let [stdout, stderr] = indexes;
        let body = RequestBody::Attach {
            id: id.object(),
            stdout,
            stderr,
        };
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        match supervisor.request(body, &fds).await {
            Ok((Reply::Done, _)) => Ok(Some(ours)),
            Ok((Reply::NotFound, _)) | Err(supervisor::Error::Gone) => Ok(None),
            Ok((Reply::Full, _)) => Err(Error::ResourceExhausted(format!(
                "{}: too many clients are attached",
                at()
            ))),
            Ok((Reply::Malformed, _)) => Err(Error::Unimplemented(format!(
                "{}: the pod's supervisor is of an older version, and cannot",
                at()
            ))),
            Ok((reply, _)) => Err(Error::wrap(at(), supervisor::Error::Refused(reply))),
            Err(error) => Err(Error::wrap(at(), error)),
        }
    }

    /// Closes the container's stdin, here and at its supervisor.
    async fn close_stdin(&self) -> Result<(), Error> {
        let id = self.container.id;
        // One that takes its supervisor's place from now on is not given it.
        self.kept.close_stdin();
        for _ in 0..TRIES {
            let Some(running) = self.container.running() else {
                return Ok(());
            };
            let body = RequestBody::CloseStdin { id: id.object() };
            match running.supervisor.request(body, &[]).await {
                Ok((Reply::Done, _)) => return Ok(()),
                Ok((Reply::NotFound, _)) | Err(supervisor::Error::Gone) => {
                    tokio::time::sleep(PAUSE).await;
                }
                Ok((reply, _)) => {
                    let error = supervisor::Error::Refused(reply);
                    return Err(Error::wrap(format!("close stdin of container {id}"), error));
                }
                Err(error) => {
                    return Err(Error::wrap(format!("close stdin of container {id}"), error));
                }
            }
        }
        Err(self.lost())
    }

    fn lost(&self) -> Error {
        Error::Internal(format!(
            "container {} has no supervisor: attach anew",
            self.container.id
        ))
    }
}
