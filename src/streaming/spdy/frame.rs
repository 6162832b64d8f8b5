//! SPDY/3 frames: bytes to frames, frames to bytes. Pure, strict and bounded.
//!
//! The payload of a data frame is given out as it arrives, so that a frame of 16 MiB needs no more memory than the
//! bytes that were read. Everything else is short, and refused if it is not.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{Headers, Unpacker};

/// Bytes of a frame's head.
pub const HEAD: usize = 8;
/// Most bytes of a control frame that carries headers, and of another.
const MAX_HEADERS: usize = 16 << 10;
const MAX_CONTROL: usize = 4 << 10;

const VERSION: u16 = 3;
pub const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const ID: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset.
pub mod status {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INVALID_STREAM: u32 = 2;
    pub const REFUSED_STREAM: u32 = 3;
    pub const CANCEL: u32 = 5;
    pub const FLOW_CONTROL_ERROR: u32 = 7;
}

/// Keys of SETTINGS.
pub mod setting {
    pub const MAX_CONCURRENT_STREAMS: u32 = 4;
    pub const INITIAL_WINDOW_SIZE: u32 = 7;
}

/// What a peer says. Ids are not 0 unless it is noted.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        /// The peer will send nothing more on it; we may send nothing.
        fin: bool,
        unidirectional: bool,
        /// `None`: malformed, which costs that stream alone.
        headers: Option<Headers>,
    },
    SynReply {
        id: u32,
    },
    Reset {
        id: u32,
    },
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway,
    Headers {
        id: u32,
        fin: bool,
    },
    WindowUpdate {
        /// 0: the session.
        id: u32,
        delta: u32,
    },
    /// A part of a data frame.
    Data {
        id: u32,
        bytes: Bytes,
        /// With the last part: the peer sends nothing more on this stream.
        fin: bool,
    },
}

/// Why a connection cannot be read any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("a control frame of version {0}")]
    Version(u16),
    #[error("a control frame of type {kind} and {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("a frame of type {0} with flags or values that mean nothing")]
    Meaning(u16),
    #[error("a window that is too large")]
    Window,
    #[error("a frame for stream 0")]
    StreamZero,
    #[error("headers: {0}")]
    Headers(&'static str),
}

/// Reads frames from bytes as they come.
pub struct Decoder {
    unpacker: Unpacker,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Head,
    Control {
        kind: u16,
        flags: u8,
        length: usize,
    },
    Data {
        id: u32,
        left: usize,
        fin: bool,
    },
    /// A control frame of a type that nobody knows, which is to be ignored.
    Skip(usize),
}

impl Decoder {
    pub fn new() -> Self {
        Self {
            unpacker: Unpacker::new(),
            state: State::Head,
        }
    }

    /// Takes the next frame, or part of one, from `buffer`. `None`: it takes more bytes.
    ///
    /// # Errors
    /// What was sent is no SPDY/3, or larger than it may be.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Fault> {
        loop {
            match self.state {
                State::Head => {
                    if buffer.len() < HEAD {
                        return Ok(None);
                    }
                    self.state = head(buffer.get_u32(), buffer.get_u32())?;
                }
                State::Skip(left) => {
                    let now = left.min(buffer.len());
                    buffer.advance(now);
                    if now < left {
                        self.state = State::Skip(left - now);
                        return Ok(None);
                    }
                    self.state = State::Head;
                }
                State::Data { id, left, fin } => {
                    if buffer.is_empty() && left > 0 {
                        return Ok(None);
                    }
                    let bytes = buffer.split_to(left.min(buffer.len())).freeze();
                    let left = left - bytes.len();
                    self.state = match left {
                        0 => State::Head,
                        left => State::Data { id, left, fin },
                    };
                    let fin = fin && left == 0;
                    return Ok(Some(Frame::Data { id, bytes, fin }));
                }
                State::Control {
                    kind,
                    flags,
                    length,
                } => {
                    if buffer.len() < length {
                        return Ok(None);
                    }
                    let body = buffer.split_to(length);
                    self.state = State::Head;
                    return self.control(kind, flags, &body).map(Some);
                }
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Frame, Fault> {
        let length = body.len();
        let mut word = || {
            body.try_get_u32()
                .map_err(|_| Fault::Length { kind, length })
        };
        let fin = flags & FIN != 0;
        let frame = match kind {
            SYN_STREAM => {
                let (id, _associated) = (stream(word()?)?, word()?);
                // Priority and slot.
                body.try_get_u16()
                    .map_err(|_| Fault::Length { kind, length })?;
                let headers = self.unpacker.unpack(body)?;
                let unidirectional = flags & UNIDIRECTIONAL != 0;
                return Ok(Frame::SynStream {
                    id,
                    fin,
                    unidirectional,
                    headers,
                });
            }
            SYN_REPLY | HEADERS => {
                let id = stream(word()?)?;
                // They belong to the one zlib stream, whether anybody looks at them or not.
                self.unpacker.unpack(body)?;
                return Ok(match kind {
                    HEADERS => Frame::Headers { id, fin },
                    _ => Frame::SynReply { id },
                });
            }
            RST_STREAM => {
                let (id, status) = (stream(word()?)?, word()?);
                if flags != 0 || status == 0 {
                    return Err(Fault::Meaning(kind));
                }
                Frame::Reset { id }
            }
            SETTINGS => {
                let count = word()? as usize;
                if count.checked_mul(8) != length.checked_sub(4) {
                    return Err(Fault::Length { kind, length });
                }
                let mut pairs = Vec::with_capacity(count);
                for _ in 0..count {
                    // The upper byte holds flags about keeping a value, which nobody keeps.
                    pairs.push((word()? & 0x00ff_ffff, word()?));
                }
                Frame::Settings(pairs)
            }
            PING => match (word()?, flags) {
                (0, _) | (_, 1..) => return Err(Fault::Meaning(kind)),
                (id, 0) => Frame::Ping(id),
            },
            GOAWAY => {
                let (_last, _status) = (word()?, word()?);
                Frame::GoAway
            }
            _ => {
                let (id, delta) = (word()? & ID, word()? & ID);
                if delta == 0 {
                    return Err(Fault::Meaning(kind));
                }
                Frame::WindowUpdate { id, delta }
            }
        };
        match body {
            [] => Ok(frame),
            _ => Err(Fault::Length { kind, length }),
        }
    }
}

fn head(first: u32, second: u32) -> Result<State, Fault> {
    let flags = (second >> 24) as u8;
    let length = (second & 0x00ff_ffff) as usize;
    if first >> 31 == 0 {
        return Ok(State::Data {
            id: stream(first)?,
            left: length,
            fin: flags & FIN != 0,
        });
    }
    let version = (first >> 16) as u16 & 0x7fff;
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let kind = first as u16;
    let most = match kind {
        SYN_STREAM | SYN_REPLY | HEADERS => MAX_HEADERS,
        RST_STREAM | SETTINGS | PING | GOAWAY | WINDOW_UPDATE => MAX_CONTROL,
        _ => return Ok(State::Skip(length)),
    };
    if length > most {
        return Err(Fault::Length { kind, length });
    }
    Ok(State::Control {
        kind,
        flags,
        length,
    })
}

fn stream(word: u32) -> Result<u32, Fault> {
    match word & ID {
        0 => Err(Fault::StreamZero),
        id => Ok(id),
    }
}

/// The head of a data frame. `length` fits in 24 bits.
pub fn data_head(id: u32, flags: u8, length: usize) -> [u8; HEAD] {
    let second = u32::from(flags) << 24 | (length as u32 & 0x00ff_ffff);
    (u64::from(id) << 32 | u64::from(second)).to_be_bytes()
}

pub fn syn_reply(id: u32, packed: &[u8]) -> Vec<u8> {
    control(SYN_REPLY, &[&id.to_be_bytes(), packed])
}

pub fn reset(id: u32, status: u32) -> Vec<u8> {
    control(RST_STREAM, &[&id.to_be_bytes(), &status.to_be_bytes()])
}

pub fn ping(id: u32) -> Vec<u8> {
    control(PING, &[&id.to_be_bytes()])
}

pub fn window_update(id: u32, delta: u32) -> Vec<u8> {
    control(WINDOW_UPDATE, &[&id.to_be_bytes(), &delta.to_be_bytes()])
}

/// `good`: nothing went wrong; else the peer broke the protocol.
pub fn go_away(last: u32, good: bool) -> Vec<u8> {
    let status = u32::from(!good);
    control(GOAWAY, &[&last.to_be_bytes(), &status.to_be_bytes()])
}

pub fn settings(pairs: &[(u32, u32)]) -> Vec<u8> {
    let mut body = (pairs.len() as u32).to_be_bytes().to_vec();
    for (key, value) in pairs {
        body.extend_from_slice(&key.to_be_bytes());
        body.extend_from_slice(&value.to_be_bytes());
    }
    control(SETTINGS, &[&body])
}

fn control(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEAD + length);
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&(length as u32).to_be_bytes());
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}
