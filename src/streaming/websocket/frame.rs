//! WebSocket frames (RFC 6455) as a server reads and writes them. Pure, strict and bounded.
//!
//! The payload of a message is given out as it arrives, so that its length needs no bound. Control frames are short.

use bytes::{Buf, Bytes, BytesMut};

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// The longest payload of a control frame.
const MAX_CONTROL: u64 = 125;

/// Bytes of the longest head that a server writes.
pub const MAX_HEAD: usize = 10;

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A part of a message.
    Data {
        /// The message begins with it.
        first: bool,
        bytes: Bytes,
        /// The message ends with it.
        last: bool,
    },
    Ping(Bytes),
    Pong,
    Close,
}

/// Why a connection cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("a frame without a mask")]
    Unmasked,
    #[error("a frame with bits that mean nothing")]
    Reserved,
    #[error("a frame of unknown type {0}")]
    Type(u8),
    #[error("a control frame in parts or too long")]
    Control,
    #[error("a message within a message, or a part of none")]
    Order,
    #[error("a length that is not written as it must be")]
    Length,
    #[error("a close frame that says nothing")]
    Close,
}

/// Reads messages from bytes as they come.
#[derive(Default)]
pub struct Decoder {
    frame: Option<Frame>,
    /// Between the parts of a message.
    within: bool,
}

#[derive(Clone, Copy)]
struct Frame {
    kind: u8,
    fin: bool,
    /// The message begins here, and nothing of it was given out yet.
    first: bool,
    left: u64,
    /// The next byte's is the first of it.
    mask: [u8; 4],
}

impl Decoder {
    /// Takes the next event from `buffer`. `None`: it takes more bytes.
    ///
    /// # Errors
    /// What was sent is not what a client may send.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, Fault> {
        let frame = match &mut self.frame {
            Some(frame) => frame,
            None => match head(buffer, self.within)? {
                Some(frame) => self.frame.insert(frame),
                None => return Ok(None),
            },
        };
        if frame.kind >= CLOSE {
            if (buffer.len() as u64) < frame.left {
                return Ok(None);
            }
            let payload = frame.take(buffer);
            let kind = frame.kind;
            self.frame = None;
            return match kind {
                PING => Ok(Some(Event::Ping(payload))),
                PONG => Ok(Some(Event::Pong)),
                // Nothing, or a code and a reason.
                _ if payload.len() == 1 => Err(Fault::Close),
                _ => Ok(Some(Event::Close)),
            };
        }
        if buffer.is_empty() && frame.left > 0 {
            return Ok(None);
        }
        let event = Event::Data {
            first: frame.first,
            bytes: frame.take(buffer),
            last: frame.fin && frame.left == 0,
        };
        frame.first = false;
        if frame.left == 0 {
            self.within = !frame.fin;
            self.frame = None;
        }
        Ok(Some(event))
    }
}

fn head(buffer: &mut BytesMut, within: bool) -> Result<Option<Frame>, Fault> {
    let [first, second, ..] = buffer[..] else {
        return Ok(None);
    };
    let (kind, fin) = (first & 0x0f, first & FIN != 0);
    if first & RESERVED != 0 {
        return Err(Fault::Reserved);
    }
    if second & MASKED == 0 {
        return Err(Fault::Unmasked);
    }
    match (kind, within) {
        (CONTINUATION, true) | (TEXT | BINARY, false) | (CLOSE | PING | PONG, _) => {}
        (CONTINUATION, false) | (TEXT | BINARY, true) => return Err(Fault::Order),
        (other, _) => return Err(Fault::Type(other)),
    }
    let short = second & !MASKED;
    let size = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if buffer.len() < 2 + size + 4 {
        return Ok(None);
    }
    buffer.advance(2);
    let (left, least) = match size {
        2 => (u64::from(buffer.get_u16()), 126),
        8 => (buffer.get_u64(), 1 << 16),
        _ => (u64::from(short), 0),
    };
    if left < least || left >> 63 != 0 {
        return Err(Fault::Length);
    }
    if kind >= CLOSE && (left > MAX_CONTROL || !fin) {
        return Err(Fault::Control);
    }
    let mask = buffer.get_u32().to_be_bytes();
    Ok(Some(Frame {
        kind,
        fin,
        first: kind != CONTINUATION,
        left,
        mask,
    }))
}

impl Frame {
    /// Takes what is there of the payload.
    fn take(&mut self, buffer: &mut BytesMut) -> Bytes {
        let count = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut bytes = buffer.split_to(count);
        unmask(&mut bytes, self.mask);
        self.mask.rotate_left(count % 4);
        self.left -= count as u64;
        bytes.freeze()
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = [a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d];
    let mut chunks = bytes.chunks_exact_mut(wide.len());
    for chunk in &mut chunks {
        for (byte, mask) in chunk.iter_mut().zip(wide) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(wide) {
        *byte ^= mask;
    }
}

/// The head of a message that a server sends in one frame.
pub struct Head {
    bytes: [u8; MAX_HEAD],
    length: usize,
}

impl Head {
    pub fn message(text: bool, length: usize) -> Self {
        Self::new(if text { TEXT } else { BINARY }, length)
    }

    fn new(kind: u8, length: usize) -> Self {
        let mut bytes = [0; MAX_HEAD];
        bytes[0] = FIN | kind;
        let length = match length {
            0..=125 => {
                bytes[1] = length as u8;
                2
            }
            126..=0xffff => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..].copy_from_slice(&(length as u64).to_be_bytes());
                10
            }
        };
        Self { bytes, length }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The answer to a ping.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    [Head::new(PONG, payload.len()).bytes(), payload].concat()
}

/// Says that nothing more is sent. `good`: nothing went wrong; else the client broke the protocol.
pub fn close(good: bool) -> Vec<u8> {
    let code: u16 = if good { 1000 } else { 1002 };
    [Head::new(CLOSE, 2).bytes(), &code.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as a client sends it.
    fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let head = Head::new(0, payload.len());
        let mut frame = head.bytes().to_vec();
        frame[0] = first;
        frame[1] |= MASKED;
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        frame
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Event>, Fault> {
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::from(bytes));
        let mut events = Vec::new();
        while let Some(event) = decoder.next(&mut buffer)? {
            events.push(event);
        }
        Ok(events)
    }

    #[test]
    fn control_frames_may_stand_between_the_parts_of_a_message() {
        let mask = [1, 2, 3, 4];
        let bytes = [
            frame(BINARY, b"ab", mask),
            frame(FIN | PING, b"?", mask),
            frame(CONTINUATION, b"", mask),
            frame(FIN | CONTINUATION, b"c", mask),
            frame(FIN | TEXT, b"", mask),
            frame(FIN | CLOSE, b"", mask),
        ]
        .concat();
        let data = |first, bytes: &'static [u8], last| Event::Data {
            first,
            bytes: Bytes::from_static(bytes),
            last,
        };
        assert_eq!(
            decode(&bytes).unwrap(),
            [
                data(true, b"ab", false),
                Event::Ping(Bytes::from_static(b"?")),
                data(false, b"", false),
                data(false, b"c", true),
                data(true, b"", true),
                Event::Close,
            ]
        );
    }

    #[test]
    fn what_no_client_may_send_is_refused() {
        let mask = [9; 4];
        let long = vec![0; 126];
        for (bytes, fault) in [
            (vec![FIN | BINARY, 0, 0, 0, 0, 0], Fault::Unmasked),
            (frame(0xc0 | BINARY, b"", mask), Fault::Reserved),
            (frame(FIN | 3, b"", mask), Fault::Type(3)),
            (frame(FIN | 15, b"", mask), Fault::Type(15)),
            (frame(PING, b"", mask), Fault::Control),
            (frame(FIN | PONG, &long, mask), Fault::Control),
            (frame(FIN | CONTINUATION, b"", mask), Fault::Order),
            (frame(FIN | CLOSE, b"x", mask), Fault::Close),
            (
                [frame(TEXT, b"", mask), frame(FIN | TEXT, b"", mask)].concat(),
                Fault::Order,
            ),
            (vec![FIN | BINARY, 0xfe, 0, 125, 0, 0, 0, 0], Fault::Length),
            (
                [&[FIN | BINARY, 0xff][..], &[0xff; 12]].concat(),
                Fault::Length,
            ),
            (
                [&[FIN | BINARY, 0xff][..], &65535_u64.to_be_bytes(), &mask].concat(),
                Fault::Length,
            ),
        ] {
            assert_eq!(decode(&bytes), Err(fault), "{bytes:?}");
        }
    }

    #[test]
    fn heads_are_as_short_as_they_can_be() {
        assert_eq!(Head::message(true, 125).bytes(), [0x81, 125]);
        assert_eq!(Head::message(false, 126).bytes(), [0x82, 126, 0, 126]);
        assert_eq!(Head::message(false, 65535).bytes(), [0x82, 126, 255, 255]);
        let long = [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(Head::message(false, 65536).bytes(), long);
        assert_eq!(close(true), [0x88, 2, 3, 0xe8]);
        assert_eq!(pong(b"x"), [0x8a, 1, b'x']);
    }

    proptest! {
        /// However a message is cut, into frames and into reads, it comes out whole.
        #[test]
        fn messages_survive_every_cut(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..5),
            mask in any::<[u8; 4]>(),
            step in 1_usize..50,
        ) {
            let count = parts.len();
            let mut bytes = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                let kind = if index == 0 { BINARY } else { CONTINUATION };
                let fin = if index + 1 == count { FIN } else { 0 };
                bytes.extend(frame(fin | kind, part, mask));
            }
            let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
            let (mut message, mut ends, mut begins) = (Vec::new(), 0, 0);
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(event) = decoder.next(&mut buffer).unwrap() {
                    let Event::Data { first, bytes, last } = event else { panic!("{event:?}") };
                    prop_assert_eq!(first, begins == 0);
                    begins += 1;
                    message.extend_from_slice(&bytes);
                    ends += usize::from(last);
                }
            }
            prop_assert_eq!(message, parts.concat());
            prop_assert_eq!(ends, 1);
        }
    }
}
