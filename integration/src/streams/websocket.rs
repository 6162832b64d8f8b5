//! A WebSocket client (RFC 6455), with the channels of Kubernetes' protocols or as a tunnel.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;

use super::{Head, Ran, request, soon};
use crate::host::HostNet;

/// The example of RFC 6455: a key, and what a server makes of it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A connection.
pub struct WebSocket {
    pub stream: TcpStream,
    /// What the server agreed to.
    pub protocol: String,
    masks: u32,
}

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub payload: Vec<u8>,
}

impl WebSocket {
    /// Asks for an upgrade.
    ///
    /// # Errors
    /// The answer, if it is another.
    ///
    /// # Panics
    /// If there is none, or not a right one.
    pub async fn connect(net: &HostNet, url: &str, protocols: &[&str]) -> Result<Self, Head> {
        let protocols = protocols.join(", ");
        let mut headers = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ];
        if !protocols.is_empty() {
            headers.push(("Sec-WebSocket-Protocol", &protocols));
        }
        let (head, stream) = request(net, "GET", url, &headers).await;
        if head.status != 101 {
            return Err(head);
        }
        assert!(
            head.header("upgrade").eq_ignore_ascii_case("websocket"),
            "{head:?}"
        );
        assert!(
            head.header("connection").eq_ignore_ascii_case("upgrade"),
            "{head:?}"
        );
        assert_eq!(head.header("sec-websocket-accept"), ACCEPT);
        Ok(Self {
            stream,
            protocol: head.header("sec-websocket-protocol").to_owned(),
            masks: 0x0102_0304,
        })
    }

    /// Sends a frame, masked.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn frame(&mut self, kind: u8, fin: bool, payload: &[u8]) -> std::io::Result<()> {
        self.masks = self
            .masks
            .wrapping_mul(0x0019_660d)
            .wrapping_add(0x3c6e_f35f);
        let mask = self.masks.to_be_bytes();
        let mut bytes = vec![u8::from(fin) << 7 | kind];
        match payload.len() {
            length @ 0..126 => bytes.push(0x80 | length as u8),
            length @ 126..0x1_0000 => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask);
        bytes.extend(
            payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        self.stream.write_all(&bytes).await
    }

    /// Sends a message on a channel.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, channel: u8, payload: &[u8]) -> std::io::Result<()> {
        let message = [&[channel], payload].concat();
        self.frame(BINARY, true, &message).await
    }

    /// The next frame; `None`: the connection ended.
    ///
    /// # Panics
    /// If none comes soon, or it is not as a server may send it.
    pub async fn next(&mut self) -> Option<Frame> {
        let frame = tokio::time::timeout(soon(), receive(&mut self.stream)).await;
        frame.expect("a frame soon").ok()
    }

    /// Reads messages on channels until the server closes the connection, and answers that. The channels are those of
    /// commands.
    ///
    /// # Panics
    /// If anything else comes, or the connection is not closed in order.
    pub async fn run(mut self) -> Ran {
        let mut channels = [const { Vec::new() }; 5];
        loop {
            let frame = self.next().await.expect("a closing handshake");
            match (frame.kind, &frame.payload[..]) {
                (BINARY, [channel, bytes @ ..]) => {
                    channels[usize::from(*channel)].extend_from_slice(bytes);
                }
                (CLOSE, [3, 0xe8, ..]) => break,
                _ => panic!("{frame:?}"),
            }
        }
        self.frame(CLOSE, true, &[3, 0xe8]).await.expect("a server");
        assert_eq!(self.next().await, None);
        let [stdin, stdout, stderr, status, resize] = channels;
        assert!(stdin.is_empty() && resize.is_empty());
        Ran {
            stdout,
            stderr,
            status,
        }
    }

    /// A stream of bytes through the connection: what is written to it goes in binary messages.
    #[must_use]
    pub fn into_tunnel(self) -> DuplexStream {
        let (outside, inside) = duplex(256 << 10);
        let (mut from, to) = self.stream.into_split();
        let (mut local_from, mut local_to) = tokio::io::split(inside);
        tokio::spawn(async move {
            while let Ok(frame) = receive(&mut from).await {
                match frame.kind {
                    BINARY => {
                        if local_to.write_all(&frame.payload).await.is_err() {
                            return;
                        }
                    }
                    CLOSE => break,
                    other => panic!("a frame of type {other}"),
                }
            }
            let _ = local_to.shutdown().await;
        });
        tokio::spawn(async move {
            let mut to = to;
            let mut bytes = vec![0; 32 << 10];
            while let Ok(count @ 1..) = local_from.read(&mut bytes).await {
                // A mask of zeros is a mask.
                let mut head = vec![0x82, 0x80 | 126];
                head.extend_from_slice(&(count as u16).to_be_bytes());
                if count < 126 {
                    head = vec![0x82, 0x80 | count as u8];
                }
                head.extend_from_slice(&[0; 4]);
                head.extend_from_slice(&bytes[..count]);
                if to.write_all(&head).await.is_err() {
                    return;
                }
            }
        });
        outside
    }
}

async fn receive(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<Frame> {
    let first = stream.read_u8().await?;
    assert_eq!(first & 0xf0, 0x80, "a whole message without extensions");
    let second = stream.read_u8().await?;
    assert!(second < 0x80, "a server does not mask");
    let length = match second {
        126 => stream.read_u16().await?.into(),
        127 => stream.read_u64().await?,
        short => short.into(),
    };
    let mut payload = vec![0; usize::try_from(length).expect("it fits in memory")];
    stream.read_exact(&mut payload).await?;
    Ok(Frame {
        kind: first & 0x0f,
        payload,
    })
}
