//! A WebSocket client of the streaming protocols, as far as tests need it. Written against RFC 6455 and the
//! channels of `v5.channel.k8s.io`, so it shares nothing with the server.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::node::TestNode;

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came on each channel, up to the end of the connection.
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

    /// The status document.
    #[must_use]
    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.error).unwrap_or(Value::Null)
    }

    /// The exit code that the status tells.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        let status = self.status();
        match status["status"].as_str()? {
            "Success" => Some(0),
            _ => status["details"]["causes"][0]["message"]
                .as_str()?
                .parse()
                .ok(),
        }
    }
}

/// A connection.
pub struct WebSocket {
    stream: TcpStream,
    pub protocol: String,
    pub seen: Seen,
}

impl WebSocket {
    /// Connects to a URL that the node has given, and asks for these protocols.
    ///
    /// # Panics
    /// If it is refused.
    #[must_use]
    pub fn connect(node: &TestNode, url: &str, protocols: &str) -> Self {
        let rest = url.strip_prefix("http://").expect("an http URL");
        let (host, path) = rest.split_once('/').expect("a path");
        let mut stream = node.net.run(|| TcpStream::connect(host)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let header = |name: &str| {
            let line = head.lines().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found
                    .eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            });
            line.unwrap_or_default()
        };
        // What RFC 6455 gives as the answer to that key.
        assert_eq!(
            header("sec-websocket-accept"),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        Self {
            protocol: header("sec-websocket-protocol"),
            stream,
            seen: Seen::default(),
        }
    }

    /// Sends a message on a channel.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() + 1;
        let mut frame = vec![0x82];
        match length {
            0..126 => frame.push(0x80 | length as u8),
            126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        // A mask of zeros is one, too.
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend_from_slice(bytes);
        self.stream.write_all(&frame)
    }

    /// Half-closes a channel (v5).
    ///
    /// # Panics
    /// If the connection is gone.
    pub fn close(&mut self, channel: u8) {
        self.send(255, &[channel]).unwrap();
    }

    /// The next message: channel and bytes. `None`: the connection has ended.
    pub fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).ok()?;
        let mut length = u64::from(head[1]);
        if length >= 126 {
            let mut bytes = [0; 8];
            let from = if length == 126 { 6 } else { 0 };
            self.stream.read_exact(&mut bytes[from..]).ok()?;
            length = u64::from_be_bytes(bytes);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut bytes).ok()?;
        match head[0] {
            0x88 => None,
            0x82 | 0x81 if !bytes.is_empty() => {
                let channel = bytes.remove(0);
                Some((channel, bytes))
            }
            0x82 | 0x81 | 0x89 => self.message(),
            other => panic!("frame of type {other:#x}"),
        }
    }

    /// Whether something comes within this time.
    #[must_use]
    pub fn answers_within(&self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let answers = self.stream.peek(&mut [0]).is_ok();
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        answers
    }

    /// Reads until `enough` says so of all that was seen, or to the end. Whether it was enough.
    pub fn read_until(&mut self, enough: impl Fn(&Seen) -> bool) -> bool {
        while !enough(&self.seen) {
            let Some((channel, bytes)) = self.message() else {
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
    #[must_use]
    pub fn finish(mut self) -> Seen {
        self.read_until(|_| false);
        self.seen
    }
}
