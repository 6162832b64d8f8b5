//! A WebSocket connection from the server's side: channels for a command's streams or for ports, or one stream of
//! bytes that is a tunnel.
//!
//! There is no flow control but the socket's: a channel that is not read holds up all of them once its inbox is full.

mod channels;
pub mod frame;

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::AsyncWrite;

pub use self::channels::{Coding, Demux, Said};
use self::frame::{Decoder, Event, Head, MAX_HEAD};
use super::inbox::{Inbox, InboxReader, Intake};
use super::link::{Connection, Ended, Link, Source};
use super::outbound::{Outbound, Outgoing};

/// Most bytes of one message. In base64 a third more is written.
const MAX_MESSAGE: usize = 64 << 10;

/// A connection, to be read until its end.
pub struct Reader {
    source: Source,
    buffer: BytesMut,
    decoder: Decoder,
    outbound: Arc<Outbound>,
    intake: Arc<Intake>,
    to: To,
}

enum To {
    /// By channel; `None`: nobody listens there.
    Channels(Demux, Vec<Option<Arc<Inbox>>>),
    Tunnel(Arc<Inbox>),
}

/// Channels that a client sends on, by number.
pub type Listening = Vec<Option<InboxReader>>;

/// Begins a connection with channels. `listening`: which ones the client may send on.
pub fn begin(
    link: &Link,
    source: Source,
    coding: Coding,
    listening: &[bool],
) -> (Reader, Listening) {
    let intake = Arc::default();
    let inboxes: Vec<_> = listening
        .iter()
        .map(|&listens| listens.then(|| Inbox::new(&intake)))
        .collect();
    let readers = inboxes
        .iter()
        .map(|inbox| inbox.clone().map(InboxReader))
        .collect();
    let to = To::Channels(Demux::new(coding), inboxes);
    (Reader::new(link, source, intake, to), readers)
}

/// Begins a connection whose messages are pieces of one stream of bytes.
pub fn tunnel(link: &Link, source: Source) -> (Reader, InboxReader, TunnelWriter) {
    let intake = Arc::default();
    let inbox = Inbox::new(&intake);
    let reader = InboxReader(Arc::clone(&inbox));
    let writer = TunnelWriter(Arc::clone(&link.outbound));
    let to = To::Tunnel(inbox);
    (Reader::new(link, source, intake, to), reader, writer)
}

impl Connection for Reader {
    async fn run(&mut self) -> Ended {
        let ended = self.read().await;
        self.end();
        ended
    }

    fn farewell(&mut self, good: bool) {
        self.outbound.try_frame(&frame::close(good));
    }

    fn source(&mut self) -> &mut Source {
        &mut self.source
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end();
    }
}

impl Reader {
    fn new(link: &Link, source: Source, intake: Arc<Intake>, to: To) -> Self {
        Self {
            source,
            buffer: BytesMut::new(),
            decoder: Decoder::default(),
            outbound: Arc::clone(&link.outbound),
            intake,
            to,
        }
    }

    fn end(&self) {
        let kind = ErrorKind::ConnectionAborted;
        match &self.to {
            To::Channels(_, inboxes) => inboxes.iter().flatten().for_each(|inbox| {
                inbox.break_off(kind);
            }),
            // What came before the end is a whole connection's.
            To::Tunnel(inbox) => inbox.finish(),
        }
    }

    async fn read(&mut self) -> Ended {
        loop {
            let taken = match self.decoder.next(&mut self.buffer) {
                Ok(Some(event)) => self.take(event).await,
                Ok(None) => self.source.fill(&mut self.buffer).await,
                Err(fault) => return Ended::Fault(fault.to_string()),
            };
            if let Err(ended) = taken {
                return ended;
            }
        }
    }

    async fn take(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Data { first, bytes, last } => match &mut self.to {
                To::Tunnel(inbox) => {
                    inbox.put(bytes);
                    self.source.room(&self.intake, inbox).await
                }
                To::Channels(demux, inboxes) => {
                    let said = demux.take(first, bytes, last);
                    match said.map_err(|fault| Ended::Fault(fault.to_string()))? {
                        Said::Nothing => Ok(()),
                        Said::Close { channel } => {
                            if let Some(inbox) = listener(inboxes, channel) {
                                inbox.finish();
                            }
                            Ok(())
                        }
                        Said::Data { channel, bytes } => match listener(inboxes, channel) {
                            Some(inbox) => {
                                inbox.put(bytes);
                                self.source.room(&self.intake, inbox).await
                            }
                            None => Ok(()),
                        },
                    }
                }
            },
            Event::Ping(payload) => {
                let answered = self.outbound.answer(&frame::pong(&payload)).await;
                answered.map_err(|_| Ended::Gone)
            }
            Event::Pong => Ok(()),
            Event::Close => {
                self.outbound.try_frame(&frame::close(true));
                Err(Ended::Closed)
            }
        }
    }
}

fn listener(inboxes: &[Option<Arc<Inbox>>], channel: u8) -> Option<&Arc<Inbox>> {
    inboxes.get(usize::from(channel))?.as_ref()
}

/// Each write is a message on one channel.
pub struct ChannelWriter {
    outbound: Arc<Outbound>,
    coding: Coding,
    channel: u8,
}

impl ChannelWriter {
    pub fn new(link: &Link, coding: Coding, channel: u8) -> Self {
        Self {
            outbound: Arc::clone(&link.outbound),
            coding,
            channel,
        }
    }

    /// Sends an empty message: by it a client sees that the connection stands.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn hello(&self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_message(context, &[])).await
    }

    fn poll_message(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<()>> {
        let (first, encoded) = channels::encode(self.coding, self.channel, bytes);
        let payload = encoded.as_ref().map_or(bytes, String::as_bytes);
        let head = Head::message(self.coding.base64, payload.len() + 1);
        let (bytes, mut both) = (head.bytes(), [0; MAX_HEAD + 1]);
        both[..bytes.len()].copy_from_slice(bytes);
        both[bytes.len()] = first;
        self.outbound
            .poll_frame(context, &both[..=bytes.len()], payload)
    }
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(MAX_MESSAGE)];
        if !bytes.is_empty() {
            std::task::ready!(self.poll_message(context, bytes))?;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Only a client closes channels.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The sending direction of a tunnel: each write is a message.
pub struct TunnelWriter(Arc<Outbound>);

impl Outgoing for TunnelWriter {}

impl AsyncWrite for TunnelWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(2 * MAX_MESSAGE)];
        let head = Head::message(false, bytes.len());
        std::task::ready!(self.0.poll_frame(context, head.bytes(), bytes))?;
        Poll::Ready(Ok(bytes.len()))
    }

    /// A short piece and a long one, as a frame's head and payload are, make one message without a copy of the long.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        const SHORT: usize = 16;
        match slices {
            [short, long] if (1..=SHORT).contains(&short.len()) && !long.is_empty() => {
                let head = Head::message(false, short.len() + long.len());
                let (bytes, mut both) = (head.bytes(), [0; MAX_HEAD + SHORT]);
                let end = bytes.len() + short.len();
                both[..bytes.len()].copy_from_slice(bytes);
                both[bytes.len()..end].copy_from_slice(short);
                std::task::ready!(self.0.poll_frame(context, &both[..end], long))?;
                Poll::Ready(Ok(short.len() + long.len()))
            }
            _ => {
                let some = slices.iter().find(|slice| !slice.is_empty());
                match some {
                    Some(slice) => self.poll_write(context, slice),
                    None => Poll::Ready(Ok(0)),
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
