//! A session over WebSocket, one step at a time: what was seen so far, and what is sent next.

use std::time::Duration;

use super::Outcome;
use super::websocket::{BINARY, CLOSE, WebSocket};
use crate::node::TestNode;

pub const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;
/// The channel of `v5.channel.k8s.io` that half-closes others.
const HALF_CLOSE: u8 = 255;

/// What came on each channel.
#[derive(Debug, Default)]
pub struct Seen {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    error: Vec<u8>,
}

impl Seen {
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// # Panics
    /// As [`Outcome::read`] does.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::read(&self.error)
    }
}

/// A session under way.
pub struct Session {
    socket: WebSocket,
    pub seen: Seen,
}

impl Session {
    /// Connects to a URL that the node has given.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn connect(node: &TestNode, url: &str, protocol: &str) -> Self {
        let socket = WebSocket::connect(&node.net, url, &[protocol]).await;
        let socket = socket.unwrap_or_else(|head| panic!("{head:?}"));
        assert_eq!(socket.protocol, protocol);
        Self {
            socket,
            seen: Seen::default(),
        }
    }

    /// Sends a message on a channel.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.socket.send(channel, bytes).await.expect("a server");
    }

    /// Half-closes a channel (v5).
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn close(&mut self, channel: u8) {
        self.send(HALF_CLOSE, &[channel]).await;
    }

    /// The next message: channel and bytes. `None`: the server has closed the connection.
    ///
    /// # Panics
    /// If something else comes.
    pub async fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let mut frame = self.socket.next().await?;
            match frame.kind {
                CLOSE => return None,
                // An empty one says that the connection stands.
                BINARY if frame.payload.is_empty() => {}
                BINARY => {
                    let channel = frame.payload.remove(0);
                    return Some((channel, frame.payload));
                }
                other => panic!("a frame of type {other}"),
            }
        }
    }

    /// Whether something comes within this time. It is left where it is.
    pub async fn answers_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.socket.stream.peek(&mut [0]))
            .await
            .is_ok()
    }

    /// Reads until `enough` says so of all that was seen, or to the end. Whether it was enough.
    ///
    /// # Panics
    /// If something comes on a channel that is none of a command's output.
    pub async fn read_until(&mut self, enough: impl Fn(&Seen) -> bool) -> bool {
        while !enough(&self.seen) {
            let Some((channel, bytes)) = self.message().await else {
                return false;
            };
            match channel {
                STDOUT => self.seen.stdout.extend(bytes),
                STDERR => self.seen.stderr.extend(bytes),
                ERROR => self.seen.error.extend(bytes),
                other => panic!("channel {other}"),
            }
        }
        true
    }

    /// Reads to the end.
    pub async fn finish(mut self) -> Seen {
        self.read_until(|_| false).await;
        self.seen
    }
}
