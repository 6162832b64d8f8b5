//! A SPDY/3.1 connection from the server's side, as far as Kubernetes' clients and the draft go: streams are opened
//! by the client only, nothing is pushed.
//!
//! ```text
//! socket ─▶ Reader ─▶ Frame ─┬─▶ incoming streams       Stream ─▶ table (windows) ─▶ Outbound ─▶ socket
//!                            └─▶ the stream's Inbox
//! ```
//!
//! Kubernetes' client (spdystream) sends neither SETTINGS nor WINDOW_UPDATE, and heeds none. So windows bind us only
//! once the peer has sent one of them, and a peer that sends more than its windows is slowed down by its socket, or,
//! if it does flow control, refused.

mod dictionary;
pub mod frame;
mod headers;
mod stream;
mod table;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::mpsc;

use self::frame::{Decoder, Fault, Frame, setting, status};
pub use self::headers::Headers;
#[cfg(test)]
pub use self::headers::Packer;
#[cfg(not(test))]
use self::headers::Packer;
pub use self::stream::{Stream, StreamReader, StreamWriter};
use self::table::Shared;
use super::inbox;
use super::link::{Connection, Ended, Link, Source};

/// Streams that were opened and not taken yet.
const BACKLOG: usize = 16;

/// Whether a stream with these headers may be opened.
pub type Admit = fn(&Headers) -> bool;

/// A connection, to be read until its end.
pub struct Reader {
    source: Source,
    buffer: BytesMut,
    decoder: Decoder,
    packer: Packer,
    shared: Arc<Shared>,
    incoming: mpsc::Sender<Stream>,
    admit: Admit,
    last: u32,
}

/// Begins a connection over an upgraded socket. The streams that the client opens come out of the channel.
pub fn begin(link: &Link, source: Source, admit: Admit) -> (Reader, mpsc::Receiver<Stream>) {
    let (incoming, streams) = mpsc::channel(BACKLOG);
    let shared = Shared::new(Arc::clone(&link.outbound));
    let limits = [
        (setting::MAX_CONCURRENT_STREAMS, table::MAX_STREAMS as u32),
        (setting::INITIAL_WINDOW_SIZE, inbox::STREAM as u32),
    ];
    // Nothing was sent yet, so there is room.
    link.outbound.try_frame(&frame::settings(&limits));
    let more = inbox::CONNECTION - (64 << 10);
    link.outbound
        .try_frame(&frame::window_update(0, more as u32));
    let reader = Reader {
        source,
        buffer: BytesMut::new(),
        decoder: Decoder::new(),
        packer: Packer::new(),
        shared,
        incoming,
        admit,
        last: 0,
    };
    (reader, streams)
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Connection for Reader {
    async fn run(&mut self) -> Ended {
        let ended = self.read().await;
        self.shared.end();
        ended
    }

    fn farewell(&mut self, good: bool) {
        let frame = frame::go_away(self.last, good);
        self.shared.outbound.try_frame(&frame);
    }

    fn source(&mut self) -> &mut Source {
        &mut self.source
    }
}

impl Reader {
    async fn read(&mut self) -> Ended {
        loop {
            match self.decoder.next(&mut self.buffer) {
                Ok(Some(frame)) => {
                    if let Err(ended) = self.take(frame).await {
                        return ended;
                    }
                }
                Ok(None) => {
                    if let Err(ended) = self.source.fill(&mut self.buffer).await {
                        return ended;
                    }
                }
                Err(fault) => return Ended::Fault(fault.to_string()),
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Ended> {
        match frame {
            Frame::Data { id, bytes, fin } => self.data(id, bytes, fin).await?,
            Frame::SynStream {
                id,
                fin,
                unidirectional,
                headers,
            } => {
                if id % 2 == 0 || id <= self.last {
                    return Err(Ended::Fault(format!("stream {id} after {}", self.last)));
                }
                self.last = id;
                match headers {
                    Some(headers) if !unidirectional => self.open(id, fin, headers).await?,
                    _ => self.refuse(id, status::PROTOCOL_ERROR).await?,
                }
            }
            Frame::Reset { id } => {
                self.shared.forget(id, ErrorKind::ConnectionReset);
            }
            Frame::Headers { id, fin: true } => self.shared.got_fin(id),
            // The even ones are ours, and we send none.
            Frame::Ping(id) if id % 2 == 1 => self.answer(&frame::ping(id)).await?,
            Frame::Settings(pairs) => {
                for (key, value) in pairs {
                    if key == setting::INITIAL_WINDOW_SIZE {
                        self.shared.set_initial_window(value)?;
                    }
                }
            }
            Frame::WindowUpdate { id, delta } => {
                if !self.shared.widen(id, delta)? {
                    self.shared.forget(id, ErrorKind::ConnectionReset);
                    self.refuse(id, status::FLOW_CONTROL_ERROR).await?;
                }
            }
            // After its GOAWAY a client opens no streams; those that are open end as they would.
            Frame::GoAway | Frame::Ping(_) | Frame::SynReply { .. } | Frame::Headers { .. } => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), Ended> {
        if !(self.admit)(&headers) {
            return self.refuse(id, status::CANCEL).await;
        }
        let Some(inbox) = self.shared.open(id, fin) else {
            return self.refuse(id, status::REFUSED_STREAM).await;
        };
        let stream = Stream::new(&self.shared, id, headers, inbox);
        let reply = frame::syn_reply(id, &self.packer.pack(&[]));
        self.answer(&reply).await?;
        // If nobody takes streams any more, it is dropped and so reset.
        let _ = self.incoming.send(stream).await;
        Ok(())
    }

    async fn data(&mut self, id: u32, bytes: bytes::Bytes, fin: bool) -> Result<(), Ended> {
        let count = bytes.len();
        let Some(inbox) = self.shared.inbox(id) else {
            self.shared.taken_in(count);
            // What was on its way when a stream ended is no fault.
            return match id > self.last {
                true => self.refuse(id, status::INVALID_STREAM).await,
                false => Ok(()),
            };
        };
        if inbox.waiting() + count > inbox::STREAM && self.shared.peer_heeds() {
            self.shared.taken_in(count);
            self.shared.forget(id, ErrorKind::ConnectionReset);
            return self.refuse(id, status::FLOW_CONTROL_ERROR).await;
        }
        if !inbox.put(bytes) {
            self.shared.taken_in(count);
        }
        if fin {
            self.shared.got_fin(id);
        }
        self.source.room(&self.shared.intake, &inbox).await
    }

    async fn refuse(&mut self, id: u32, status: u32) -> Result<(), Ended> {
        self.answer(&frame::reset(id, status)).await
    }

    async fn answer(&mut self, frame: &[u8]) -> Result<(), Ended> {
        let taken = self.shared.outbound.answer(frame).await;
        taken.map_err(|_| Ended::Gone)
    }
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault.to_string())
    }
}
