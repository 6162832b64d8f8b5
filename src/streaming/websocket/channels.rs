//! The payload of Kubernetes' WebSocket protocols: the first byte of a message says which channel the rest is for.
//! In the base64 variants that byte is a digit and the rest is base64. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};

/// In `v5`: the byte after this one names a channel on which the client sends nothing more.
const CLOSE: u8 = 255;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    pub base64: bool,
    /// There are messages that close a channel.
    pub closes: bool,
}

/// What a part of a message says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Data {
        channel: u8,
        bytes: Bytes,
    },
    Close {
        channel: u8,
    },
    /// The part says nothing yet.
    Nothing,
}

/// Why a message means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("a message that is no base64")]
    Base64,
    #[error("a message that closes nothing, or more than one channel")]
    Close,
}

/// Reads messages, part by part.
pub struct Demux {
    coding: Coding,
    state: State,
}

enum State {
    /// At the beginning of a message.
    Begin,
    Channel(u8),
    Base64(u8, Groups),
    Close(Option<u8>),
}

/// Base64 that comes in parts: groups of 4 digits are 3 bytes.
#[derive(Default)]
struct Groups {
    /// What is no whole group yet.
    carry: Vec<u8>,
    /// A group was padded: it must have been the last.
    padded: bool,
}

impl Groups {
    fn take(&mut self, digits: &[u8], last: bool) -> Result<Bytes, Fault> {
        self.carry.extend_from_slice(digits);
        let whole = match last {
            true => self.carry.len(),
            false => self.carry.len() / 4 * 4,
        };
        if whole > 0 && self.padded {
            return Err(Fault::Base64);
        }
        let bytes = STANDARD.decode(&self.carry[..whole]);
        let bytes = bytes.map_err(|_| Fault::Base64)?;
        self.carry.drain(..whole);
        self.padded |= bytes.len() < whole / 4 * 3;
        Ok(bytes.into())
    }
}

impl Demux {
    pub fn new(coding: Coding) -> Self {
        Self {
            coding,
            state: State::Begin,
        }
    }

    /// Takes a part of a message; `first` and `last` say whether it begins and ends with it.
    ///
    /// # Errors
    /// The message is not as the protocol says.
    pub fn take(&mut self, first: bool, mut bytes: Bytes, last: bool) -> Result<Said, Fault> {
        if first {
            self.state = State::Begin;
        }
        if matches!(self.state, State::Begin) && bytes.has_remaining() {
            self.state = match bytes.get_u8() {
                CLOSE if self.coding.closes => State::Close(None),
                digit if self.coding.base64 => {
                    State::Base64(digit.wrapping_sub(b'0'), Groups::default())
                }
                channel => State::Channel(channel),
            };
        }
        match &mut self.state {
            State::Begin => Ok(Said::Nothing),
            State::Channel(channel) => Ok(Said::Data {
                channel: *channel,
                bytes,
            }),
            State::Base64(channel, groups) => Ok(Said::Data {
                channel: *channel,
                bytes: groups.take(&bytes, last)?,
            }),
            State::Close(channel) => {
                for byte in bytes {
                    if channel.replace(byte).is_some() {
                        return Err(Fault::Close);
                    }
                }
                match (*channel, last) {
                    (_, false) => Ok(Said::Nothing),
                    (Some(channel), true) => Ok(Said::Close { channel }),
                    (None, true) => Err(Fault::Close),
                }
            }
        }
    }
}

/// What goes before `bytes` in a message for a channel, and `bytes` as they are written, if not as they are.
pub fn encode(coding: Coding, channel: u8, bytes: &[u8]) -> (u8, Option<String>) {
    match coding.base64 {
        true => (b'0' + channel, Some(STANDARD.encode(bytes))),
        false => (channel, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BINARY: Coding = Coding {
        base64: false,
        closes: true,
    };
    const BASE64: Coding = Coding {
        base64: true,
        closes: false,
    };

    fn whole(coding: Coding, message: &'static [u8]) -> Result<Said, Fault> {
        Demux::new(coding).take(true, Bytes::from_static(message), true)
    }

    fn data(channel: u8, bytes: &'static [u8]) -> Result<Said, Fault> {
        Ok(Said::Data {
            channel,
            bytes: Bytes::from_static(bytes),
        })
    }

    #[test]
    fn the_first_byte_is_the_channel() {
        assert_eq!(whole(BINARY, b"\0foo"), data(0, b"foo"));
        assert_eq!(whole(BINARY, b"\x04"), data(4, b""));
        assert_eq!(whole(BINARY, b""), Ok(Said::Nothing));
        assert_eq!(whole(BASE64, b"0Zm9vCg=="), data(0, b"foo\n"));
        assert_eq!(whole(BASE64, b"1"), data(1, b""));
        assert_eq!(whole(BASE64, b"0Zg"), Err(Fault::Base64));
        assert_eq!(whole(BASE64, b"0Z?=="), Err(Fault::Base64));
        let mut demux = Demux::new(BASE64);
        demux
            .take(true, Bytes::from_static(b"0Zg=="), false)
            .unwrap();
        let after = demux.take(false, Bytes::from_static(b"Zg=="), true);
        assert_eq!(after, Err(Fault::Base64), "padding is the end");
    }

    #[test]
    fn a_channel_is_closed_by_one_byte() {
        assert_eq!(whole(BINARY, &[255, 0]), Ok(Said::Close { channel: 0 }));
        assert_eq!(whole(BINARY, &[255]), Err(Fault::Close));
        assert_eq!(whole(BINARY, &[255, 0, 0]), Err(Fault::Close));
        let without = Coding {
            closes: false,
            ..BINARY
        };
        assert_eq!(whole(without, &[255, 0]), data(255, &[0]));
    }

    proptest! {
        #[test]
        fn base64_survives_every_cut(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..9) {
            let (digit, text) = encode(BASE64, 3, &bytes);
            let message = [&[digit][..], text.unwrap().as_bytes()].concat();
            let mut demux = Demux::new(BASE64);
            let mut out = Vec::new();
            let count = message.chunks(step).len();
            for (index, part) in message.chunks(step).enumerate() {
                let part = Bytes::copy_from_slice(part);
                let said = demux.take(index == 0, part, index + 1 == count).unwrap();
                let Said::Data { channel, bytes } = said else { panic!("{said:?}") };
                prop_assert_eq!(channel, 3);
                out.extend_from_slice(&bytes);
            }
            prop_assert_eq!(out, bytes);
        }
    }
}
