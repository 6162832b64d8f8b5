//! Exec and attach: a command's streams over a client's connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::backend::Backend;
use super::link::{Link, Source};
use super::spdy::{self, Headers, Stream, StreamReader, StreamWriter};
use super::status::Outcome;
use super::upgrade::Status;
use super::websocket::{self, ChannelWriter, Coding};
use super::{Wanted, resize};
use crate::container::ClientStreams;
use crate::error::Error;
use crate::ids::ContainerId;

/// What a client is told that is still there when the daemon ends. For what it runs it has gone.
const ENDING: &str =
    "carpel is being stopped, which ends this session; what it runs goes on without it";
/// Sizes that wait to be looked at.
const SIZES: usize = 4;
/// The channels of a WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// What a client has come for.
pub enum Task {
    Exec {
        container: ContainerId,
        command: Vec<String>,
    },
    Attach {
        container: ContainerId,
    },
}

impl Task {
    async fn run(self, backend: &impl Backend, tty: bool, client: ClientStreams) -> Outcome {
        match self {
            Self::Exec { container, command } => {
                match backend.exec(&container, command, tty, client).await {
                    Ok(0) => Outcome::Success,
                    Ok(code) => Outcome::ExitCode(code),
                    Err(error) => failed("error executing command in container", &error),
                }
            }
            Self::Attach { container } => match backend.attach(&container, client).await {
                Ok(()) => Outcome::Success,
                Err(error) => failed("error attaching to container", &error),
            },
        }
    }
}

fn failed(what: &str, error: &Error) -> Outcome {
    Outcome::Failed(format!("{what}: {error}"))
}

/// The client's streams, in whatever protocol.
struct Streams<I, O> {
    stdin: Option<I>,
    stdout: Option<O>,
    stderr: Option<O>,
    resize: Option<I>,
}

/// Runs the task, and passes the terminal's sizes on meanwhile.
async fn run<I, O>(
    backend: &impl Backend,
    link: &Link,
    task: Task,
    tty: bool,
    streams: Streams<I, O>,
) -> Outcome
where
    I: AsyncRead + Send + Unpin + 'static,
    O: AsyncWrite + Send + Unpin + 'static,
{
    let (sender, sizes) = mpsc::channel(SIZES);
    let from = streams.resize;
    let client = ClientStreams {
        stdin: streams.stdin.map(|stream| Box::new(stream) as _),
        stdout: streams.stdout.map(|stream| Box::new(stream) as _),
        stderr: streams.stderr.map(|stream| Box::new(stream) as _),
        resize: (tty && from.is_some()).then_some(sizes),
        gone: link.gone.clone(),
    };
    let passing = async {
        if let Some(from) = from {
            resize::pass_on(from, sender.clone()).await;
        }
        // A terminal that is never told a size again is a terminal still: the sender stays.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = task.run(backend, tty, client) => outcome,
        // To kubectl a connection that ends without a word is a command that has succeeded.
        () = link.ending.cancelled() => Outcome::Failed(ENDING.into()),
        () = passing => unreachable!("it never ends"),
    }
}

/// Over WebSocket: each stream has a channel.
pub async fn over_websocket(
    backend: &impl Backend,
    link: &Link,
    source: Source,
    task: Task,
    wanted: Wanted,
    (how, coding): (Status, Coding),
) {
    let mut listening = [false; RESIZE as usize + 1];
    listening[usize::from(STDIN)] = wanted.stdin;
    listening[usize::from(RESIZE)] = wanted.tty;
    let (mut reader, mut inboxes) = websocket::begin(link, source, coding, &listening);
    let writer = |channel| ChannelWriter::new(link, coding, channel);
    let streams = Streams {
        stdin: inboxes[usize::from(STDIN)].take(),
        stdout: wanted.stdout.then(|| writer(STDOUT)),
        stderr: wanted.stderr.then(|| writer(STDERR)),
        resize: inboxes[usize::from(RESIZE)].take(),
    };
    let mut errors = writer(ERROR);
    let work = async {
        let first = streams.stdout.as_ref().or(streams.stderr.as_ref());
        if first.unwrap_or(&errors).hello().await.is_err() {
            return;
        }
        let outcome = run(backend, link, task, wanted.tty, streams).await;
        // Who does not get it is gone.
        let _ = errors.write_all(&outcome.encode(how)).await;
    };
    link.drive(&mut reader, work).await;
}

/// Over SPDY: the client opens a stream for each, in `creation`.
pub async fn over_spdy(
    backend: &impl Backend,
    link: &Link,
    source: Source,
    task: Task,
    wanted: Wanted,
    (how, resizes): (Status, bool),
    creation: Duration,
) {
    let (mut reader, mut incoming) = spdy::begin(link, source, is_of_command);
    let work = async {
        let mut opened = Opened::new(wanted, wanted.tty && resizes);
        let complete = tokio::select! {
            () = opened.collect(&mut incoming) => true,
            () = tokio::time::sleep(creation) => false,
            () = link.gone.cancelled() => return,
        };
        // Whatever is opened later is reset.
        drop(incoming);
        let outcome = if complete {
            run(backend, link, task, wanted.tty, opened.streams()).await
        } else {
            Outcome::Failed(format!(
                "the client has not opened all of its streams within {} s",
                creation.as_secs()
            ))
        };
        // Who does not get it is gone.
        let _ = opened.end(&outcome.encode(how)).await;
    };
    link.drive(&mut reader, work).await;
}

fn kind(headers: &Headers) -> &str {
    headers.get("streamtype").unwrap_or_default()
}

fn is_of_command(headers: &Headers) -> bool {
    ["error", "stdin", "stdout", "stderr", "resize"].contains(&kind(headers))
}

/// The streams that a client has opened so far.
struct Opened {
    missing: Vec<&'static str>,
    stdin: Option<StreamReader>,
    resize: Option<StreamReader>,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    error: Option<StreamWriter>,
    /// The sending sides of all of them: none ends before the outcome is told.
    all: Vec<StreamWriter>,
}

impl Opened {
    fn new(wanted: Wanted, resizes: bool) -> Self {
        let missing = [
            ("error", true),
            ("stdin", wanted.stdin),
            ("stdout", wanted.stdout),
            ("stderr", wanted.stderr),
            ("resize", resizes),
        ];
        let missing = missing.iter().filter(|(_, wanted)| *wanted);
        Self {
            missing: missing.map(|&(kind, _)| kind).collect(),
            stdin: None,
            resize: None,
            stdout: None,
            stderr: None,
            error: None,
            all: Vec::new(),
        }
    }

    /// Waits for all of them. One that was not asked for, or comes twice, is reset.
    async fn collect(&mut self, incoming: &mut mpsc::Receiver<Stream>) {
        while !self.missing.is_empty() {
            let Some(stream) = incoming.recv().await else {
                return std::future::pending().await;
            };
            let found = self
                .missing
                .iter()
                .position(|&missing| missing == kind(&stream.headers));
            if let Some(index) = found {
                let kind = self.missing.swap_remove(index);
                self.add(kind, stream);
            }
        }
    }

    fn add(&mut self, kind: &'static str, stream: Stream) {
        let Stream { reader, writer, .. } = stream;
        self.all.push(writer.clone());
        match kind {
            "stdin" => self.stdin = Some(reader),
            "resize" => self.resize = Some(reader),
            "stdout" => self.stdout = Some(writer),
            "stderr" => self.stderr = Some(writer),
            _ => self.error = Some(writer),
        }
    }

    fn streams(&mut self) -> Streams<StreamReader, StreamWriter> {
        Streams {
            stdin: self.stdin.take(),
            stdout: self.stdout.take(),
            stderr: self.stderr.take(),
            resize: self.resize.take(),
        }
    }

    /// Tells the outcome, and ends every stream.
    async fn end(mut self, outcome: &[u8]) -> io::Result<()> {
        if let Some(error) = &mut self.error {
            error.write_all(outcome).await?;
        }
        for stream in &mut self.all {
            stream.shutdown().await?;
            stream.release();
        }
        Ok(())
    }
}
