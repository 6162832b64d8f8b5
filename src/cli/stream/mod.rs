//! A person's side of exec and attach: keys to the other side, its output here.

pub mod keys;
pub mod terminal;
pub mod websocket;

use std::io;
use std::time::Duration;

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use self::keys::DetachKeys;
use self::terminal::Raw;
use self::websocket::{Frame, Incoming, Message, Outgoing};

/// The protocols of exec and attach. Only the first can tell the other side that its input has ended.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Most bytes of the status.
const MAX_STATUS: usize = 1 << 20;
/// Bytes of input that are read at a time, and how many of those may wait to be sent.
const READ: usize = 32 << 10;
const WAITING: usize = 4;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// What is connected with the other side.
pub struct Streams {
    /// `None`: it has no input from here.
    pub stdin: Option<Reader>,
    pub stdout: Writer,
    pub stderr: Writer,
    /// The other side has a terminal. Ours, if there is one, is raw meanwhile.
    pub tty: bool,
    /// Whether Ctrl-P Ctrl-Q ends the session.
    pub detach: bool,
}

impl Streams {
    /// Those of this program.
    pub fn own(stdin: bool, tty: bool) -> Self {
        Self {
            stdin: stdin.then(|| Box::new(tokio::io::stdin()) as Reader),
            stdout: Box::new(tokio::io::stdout()),
            stderr: Box::new(tokio::io::stderr()),
            tty,
            detach: false,
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Exit(i32),
    /// The runtime says why.
    Failed(String),
    Detached,
    /// We were asked to end by a signal of this number.
    Signalled(i32),
    /// The connection ended without a word.
    Broken,
}

/// Has a session at the URL that a runtime gave.
///
/// # Errors
/// It cannot be connected to, or our own streams fail.
pub async fn run(url: &str, streams: Streams) -> anyhow::Result<End> {
    let (protocol, mut incoming, mut outgoing) = websocket::connect(url, &PROTOCOLS).await?;
    let raw = match streams.tty && streams.stdin.is_some() && terminal::is_there() {
        true => Some(Raw::enter().context("make the terminal raw")?),
        false => None,
    };
    let (to_send, mut sending) = mpsc::channel(WAITING);
    let (mut stdout, mut stderr) = (streams.stdout, streams.stderr);
    let send = async {
        while let Some(frame) = sending.recv().await {
            if outgoing.send(frame).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        end = receive(&mut incoming, &to_send, &mut stdout, &mut stderr) => end?,
        end = input(streams.stdin, streams.detach && streams.tty, protocol, &to_send) => end?,
        end = signals(streams.tty, raw.as_ref(), &to_send) => end?,
        () = send => End::Broken,
    };
    drop(raw);
    farewell(&mut outgoing).await;
    Ok(end)
}

async fn farewell(outgoing: &mut Outgoing) {
    let _ = tokio::time::timeout(FAREWELL, outgoing.send(Frame::Close)).await;
}

/// Output, until the end.
async fn receive(
    incoming: &mut Incoming,
    to_send: &mpsc::Sender<Frame>,
    stdout: &mut Writer,
    stderr: &mut Writer,
) -> anyhow::Result<End> {
    let mut status = BytesMut::new();
    while let Some(message) = incoming.message().await? {
        let mut bytes = match message {
            Message::Data(bytes) => bytes,
            Message::Ping(bytes) => {
                // One that does not fit is answered with the next.
                let _ = to_send.try_send(Frame::Pong(bytes));
                continue;
            }
        };
        if bytes.is_empty() {
            continue;
        }
        let rest = bytes.split_off(1);
        match bytes[0] {
            STDOUT => write(stdout, &rest).await?,
            // What is said is shown even if there is nobody for the errors.
            STDERR => drop(write(stderr, &rest).await),
            STATUS if status.len() + rest.len() <= MAX_STATUS => status.put(rest),
            _ => {}
        }
    }
    Ok(end_of(&status))
}

async fn write(to: &mut Writer, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// What a status document says.
fn end_of(status: &[u8]) -> End {
    let Ok(document) = serde_json::from_slice::<Value>(status) else {
        let text = String::from_utf8_lossy(status).trim().to_owned();
        return match text.is_empty() {
            true => End::Broken,
            false => End::Failed(text),
        };
    };
    if document["status"] == "Success" {
        return End::Exit(0);
    }
    let causes = document["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find_map(|cause| {
        let is_code = cause["reason"] == "ExitCode";
        cause["message"].as_str().filter(|_| is_code)?.parse().ok()
    });
    match code {
        Some(code) => End::Exit(code),
        None => End::Failed(
            document["message"]
                .as_str()
                .unwrap_or("no reason")
                .to_owned(),
        ),
    }
}

/// Input, until the keys that end the session. The end of it is no end of the session.
async fn input(
    from: Option<Reader>,
    detach: bool,
    protocol: &str,
    to_send: &mpsc::Sender<Frame>,
) -> anyhow::Result<End> {
    if let Some(mut from) = from {
        let mut keys = DetachKeys::default();
        loop {
            let mut typed = BytesMut::with_capacity(READ);
            if from.read_buf(&mut typed).await.context("read the input")? == 0 {
                break;
            }
            let (typed, detached) = match detach {
                true => keys.filter(&typed),
                false => (typed.into(), false),
            };
            if !typed.is_empty() {
                let _ = to_send.send(Frame::Data(STDIN, typed.into())).await;
            }
            if detached {
                return Ok(End::Detached);
            }
        }
        if protocol == PROTOCOLS[0] {
            let closed = Bytes::from_static(&[STDIN]);
            let _ = to_send.send(Frame::Data(CLOSE, closed)).await;
        }
    }
    std::future::pending().await
}

/// The sizes of our terminal, and what asks us to end while it is raw.
async fn signals(
    tty: bool,
    raw: Option<&Raw>,
    to_send: &mpsc::Sender<Frame>,
) -> anyhow::Result<End> {
    if !tty {
        return std::future::pending().await;
    }
    let listen = |kind| signal(kind).context("handle signals");
    let mut resized = listen(SignalKind::window_change())?;
    let mut continued = listen(SignalKind::from_raw(libc::SIGCONT))?;
    let mut ends: [(i32, Signal); 4] = [
        (libc::SIGINT, listen(SignalKind::interrupt())?),
        (libc::SIGTERM, listen(SignalKind::terminate())?),
        (libc::SIGHUP, listen(SignalKind::hangup())?),
        (libc::SIGQUIT, listen(SignalKind::quit())?),
    ];
    loop {
        if let Some((columns, rows)) = terminal::size() {
            let size = format!(r#"{{"Width":{columns},"Height":{rows}}}"#);
            let _ = to_send.send(Frame::Data(RESIZE, size.into())).await;
        }
        let [int, term, hup, quit] = &mut ends;
        tokio::select! {
            _ = resized.recv() => {}
            _ = continued.recv() => if let Some(raw) = raw {
                raw.again().context("make the terminal raw")?;
            },
            _ = int.1.recv() => return Ok(End::Signalled(int.0)),
            _ = term.1.recv() => return Ok(End::Signalled(term.0)),
            _ = hup.1.recv() => return Ok(End::Signalled(hup.0)),
            _ = quit.1.recv() => return Ok(End::Signalled(quit.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_understood() {
        let failed = |text: &str| End::Failed(text.to_owned());
        for (status, end) in [
            (r#"{"status":"Success"}"#, End::Exit(0)),
            (
                r#"{"status":"Failure","reason":"NonZeroExitCode","message":"m",
                    "details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#,
                End::Exit(3),
            ),
            (
                r#"{"status":"Failure","reason":"InternalError","message":"no such file","code":500}"#,
                failed("no such file"),
            ),
            (
                r#"{"status":"Failure","message":"m","details":{"causes":[{"reason":"X","message":"3"}]}}"#,
                failed("m"),
            ),
            ("{}", failed("no reason")),
            ("a plain sentence\n", failed("a plain sentence")),
            ("", End::Broken),
        ] {
            assert_eq!(end_of(status.as_bytes()), end, "{status}");
        }
    }
}
