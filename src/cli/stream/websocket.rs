//! A WebSocket (RFC 6455) from the client's side, to the URL that a runtime gave.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming as Body;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tls;

/// How long it may take to be connected.
const CONNECT: Duration = Duration::from_secs(30);
/// Most bytes of a message: many times what runtimes send.
const MAX_MESSAGE: usize = 16 << 20;
/// Most bytes of why we were refused.
const MAX_REFUSAL: usize = 4 << 10;
const READ: usize = 64 << 10;
/// What the standard has a server hash with our key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The side that is read.
pub struct Incoming {
    io: ReadHalf<TokioIo<Upgraded>>,
    buffer: BytesMut,
    /// Of a message in parts, those that came.
    parts: Option<BytesMut>,
}

/// The side that is written.
pub struct Outgoing(WriteHalf<TokioIo<Upgraded>>);

/// What a server sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    Data(Bytes),
    /// To be answered by a pong with the same.
    Ping(Bytes),
}

/// What a client sends.
#[derive(Debug)]
pub enum Frame {
    /// A message that begins with this byte.
    Data(u8, Bytes),
    Pong(Bytes),
    Close,
}

/// Connects and agrees on one of `protocols`, the best first.
///
/// # Errors
/// Nobody listens there, or we are refused.
pub async fn connect(
    url: &str,
    protocols: &[&'static str],
) -> anyhow::Result<(&'static str, Incoming, Outgoing)> {
    let connected = tokio::time::timeout(CONNECT, upgrade(url, protocols)).await;
    let (protocol, upgraded) = connected
        .with_context(|| format!("{}: no answer", place(url)))?
        .with_context(|| format!("connect to the runtime's stream server at {}", place(url)))?;
    let (read, write) = tokio::io::split(TokioIo::new(upgraded));
    let incoming = Incoming {
        io: read,
        buffer: BytesMut::new(),
        parts: None,
    };
    Ok((protocol, incoming, Outgoing(write)))
}

/// Scheme and address of a URL, without the path: that is a secret.
fn place(url: &str) -> String {
    let end = url.find("://").map_or(0, |at| at + 3);
    let path = url[end..].find('/').map_or(url.len(), |at| end + at);
    url[..path].to_owned()
}

async fn upgrade(
    url: &str,
    protocols: &[&'static str],
) -> anyhow::Result<(&'static str, Upgraded)> {
    let uri: Uri = url.parse().context("not a URL")?;
    let secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => bail!("neither http nor https"),
    };
    let authority = uri.authority().context("a URL without a host")?;
    let port = authority
        .port_u16()
        .unwrap_or(if secure { 443 } else { 80 });
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let mut sender = match secure {
        true => client(secured(host, stream).await?).await?,
        false => client(stream).await?,
    };
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, authority.as_str())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, protocols.join(", "))
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        bail!(refusal(response).await);
    }
    let header = |name| response.headers().get(name).map(|value| value.as_bytes());
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    if header(SEC_WEBSOCKET_ACCEPT) != Some(STANDARD.encode(accept).as_bytes()) {
        bail!("it does not answer as a WebSocket");
    }
    let agreed = header(SEC_WEBSOCKET_PROTOCOL).unwrap_or_default();
    let protocol = protocols
        .iter()
        .find(|protocol| protocol.as_bytes() == agreed)
        .context("it speaks none of our protocols")?;
    Ok((protocol, hyper::upgrade::on(response).await?))
}

type Client = http1::SendRequest<Empty<Bytes>>;

async fn client(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> anyhow::Result<Client> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

async fn secured(host: &str, stream: TcpStream) -> anyhow::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned())?;
    let connector = TlsConnector::from(Arc::new(tls::client()?));
    connector.connect(name, stream).await.context(
        "its certificate is not trusted here; name a file of it, or of its authority, in SSL_CERT_FILE",
    )
}

async fn refusal(response: Response<Body>) -> String {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_REFUSAL)
        .collect()
        .await;
    let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    match text.unwrap_or_default().trim() {
        "" => format!("refused: {status}"),
        text => format!("refused: {status}: {text}"),
    }
}

impl Incoming {
    /// The next message. `None`: the server has closed the connection, or it broke.
    ///
    /// # Errors
    /// What comes is no WebSocket's.
    pub async fn message(&mut self) -> anyhow::Result<Option<Message>> {
        loop {
            let Some((first, payload)) = self.frame().await? else {
                return Ok(None);
            };
            let fin = first & FIN != 0;
            let kind = first & !FIN;
            let begun = match (kind, self.parts.take()) {
                (CLOSE, _) => return Ok(None),
                (PING, parts) => {
                    self.parts = parts;
                    return Ok(Some(Message::Ping(payload)));
                }
                (PONG, parts) => {
                    self.parts = parts;
                    continue;
                }
                (TEXT | BINARY, None) if fin => return Ok(Some(Message::Data(payload))),
                (TEXT | BINARY, None) => BytesMut::from(payload),
                (CONTINUATION, Some(mut parts)) => {
                    parts.extend_from_slice(&payload);
                    parts
                }
                _ => bail!("the runtime sends what no WebSocket does"),
            };
            if begun.len() > MAX_MESSAGE {
                bail!("the runtime sends a message that is too long");
            }
            if fin {
                return Ok(Some(Message::Data(begun.freeze())));
            }
            self.parts = Some(begun);
        }
    }

    /// A frame's first byte and its payload. Nothing is taken before all of it is there, so the wait may be
    /// broken off.
    async fn frame(&mut self) -> anyhow::Result<Option<(u8, Bytes)>> {
        if !self.fill(2).await {
            return Ok(None);
        }
        let (first, short) = (self.buffer[0], self.buffer[1]);
        let head = match short {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        if short & MASKED != 0 || first & 0x70 != 0 {
            bail!("the runtime sends what no WebSocket does");
        }
        if !self.fill(head).await {
            return Ok(None);
        }
        let mut long = &self.buffer[2..head];
        let length = match head {
            4 => u64::from(long.get_u16()),
            10 => long.get_u64(),
            _ => u64::from(short),
        };
        let length = usize::try_from(length).ok().filter(|l| *l <= MAX_MESSAGE);
        let length = length.context("the runtime sends a message that is too long")?;
        if !self.fill(head + length).await {
            return Ok(None);
        }
        self.buffer.advance(head);
        Ok(Some((first, self.buffer.split_to(length).freeze())))
    }

    /// Reads until so many bytes are there. `false`: they do not come.
    async fn fill(&mut self, count: usize) -> bool {
        while self.buffer.len() < count {
            self.buffer.reserve(count.max(READ) - self.buffer.len());
            if !matches!(self.io.read_buf(&mut self.buffer).await, Ok(1..)) {
                return false;
            }
        }
        true
    }
}

impl Outgoing {
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, frame: Frame) -> std::io::Result<()> {
        let bytes = match &frame {
            Frame::Data(channel, bytes) => encode(BINARY, Some(*channel), bytes),
            Frame::Pong(bytes) => encode(PONG, None, bytes),
            Frame::Close => encode(CLOSE, None, &1000_u16.to_be_bytes()),
        };
        self.0.write_all(&bytes).await?;
        self.0.flush().await
    }
}

/// A message in one frame, masked as a client's must be.
fn encode(kind: u8, channel: Option<u8>, bytes: &[u8]) -> Vec<u8> {
    let mask: [u8; 4] = rand::random();
    let length = bytes.len() + usize::from(channel.is_some());
    let mut frame = Vec::with_capacity(length + 14);
    frame.push(FIN | kind);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => frame.push(MASKED | short),
        (_, Ok(middle)) => {
            frame.push(MASKED | 126);
            frame.extend(middle.to_be_bytes());
        }
        _ => {
            frame.push(MASKED | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    let payload = frame.len();
    frame.extend(channel);
    frame.extend_from_slice(bytes);
    for (byte, mask) in frame[payload..].iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the mask off a frame and checks that it has one.
    fn unmasked(frame: &[u8], head: usize) -> (Vec<u8>, Vec<u8>) {
        assert_ne!(frame[1] & MASKED, 0);
        let (head, rest) = frame.split_at(head);
        let (mask, payload) = rest.split_at(4);
        let payload = payload.iter().zip(mask.iter().cycle());
        (
            head.to_vec(),
            payload.map(|(byte, mask)| byte ^ mask).collect(),
        )
    }

    #[test]
    fn frames_are_as_the_standard_has_them() {
        let (head, payload) = unmasked(&encode(BINARY, Some(4), b"hello"), 2);
        assert_eq!((head, payload), (vec![0x82, 0x86], b"\x04hello".to_vec()));
        let long = vec![7; 125];
        let (head, payload) = unmasked(&encode(BINARY, Some(0), &long), 4);
        assert_eq!((head, payload.len()), (vec![0x82, 0xfe, 0, 126], 126));
        let longer = vec![7; 65_535];
        let (head, payload) = unmasked(&encode(BINARY, Some(0), &longer), 10);
        assert_eq!(head, [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(payload[1..], longer);
        let (head, payload) = unmasked(&encode(PONG, None, b"x"), 2);
        assert_eq!((head, payload), (vec![0x8a, 0x81], b"x".to_vec()));
    }

    #[test]
    fn a_url_is_told_without_its_secret() {
        assert_eq!(
            place("http://127.0.0.1:99/exec/secret"),
            "http://127.0.0.1:99"
        );
        assert_eq!(place("http://[::1]:99"), "http://[::1]:99");
    }
}
