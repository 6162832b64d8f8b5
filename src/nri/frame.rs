//! The two framings of a plugin's connection: ttrpc messages, within the parts of a multiplexer.
//!
//! ```text
//! part     connection u32 ▏length u32 ▏…            numbers are big-endian
//! message    length u32 ▏stream u32 ▏kind u8 ▏flags u8 ▏data
//! ```
//!
//! A message may begin and end anywhere in parts. The usual library of plugins reads a part whole, into what it has room
//! for: the first 4096 bytes of a message, and then the rest of it. So messages are cut just so.

/// Of a message's data.
pub(super) const MAX_DATA: usize = 4 << 20;

pub(super) const REQUEST: u8 = 1;
pub(super) const RESPONSE: u8 = 2;

/// That a request is not all that comes on its stream.
pub(super) const OPEN: u8 = 2;

const PART_HEADER: usize = 8;
const HEADER: usize = 10;

/// What the reader of a part has room for, unless it reads the rest of a message.
const FIRST: usize = 4096;

/// The longest part.
const MAX_PART: usize = HEADER + MAX_DATA;

/// What a peer sent that is not of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a part of {0} bytes")]
    Part(usize),
    #[error("a message of {0} bytes")]
    Message(usize),
}

/// The header of a part: which connection it is of, and how long it is.
pub(super) struct PartHeader {
    pub connection: u32,
    pub length: usize,
}

impl PartHeader {
    pub(super) const SIZE: usize = PART_HEADER;

    pub(super) fn parse(bytes: [u8; PART_HEADER]) -> Result<Self, Malformed> {
        let length = word(&bytes, 4) as usize;
        if length > MAX_PART {
            return Err(Malformed::Part(length));
        }
        Ok(Self {
            connection: word(&bytes, 0),
            length,
        })
    }
}

/// A message of ttrpc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub stream: u32,
    pub kind: u8,
    pub flags: u8,
    pub data: Vec<u8>,
}

/// A message as it is sent, in parts. `data` is at most [`MAX_DATA`].
pub(super) fn encode(connection: u32, stream: u32, kind: u8, data: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + data.len());
    message.extend(number(data.len()));
    message.extend(stream.to_be_bytes());
    message.extend([kind, 0]);
    message.extend(data);
    let mut parts = Vec::with_capacity(message.len() + 2 * PART_HEADER);
    let (first, rest) = message.split_at(message.len().min(FIRST));
    for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
        parts.extend(connection.to_be_bytes());
        parts.extend(number(part.len()));
        parts.extend(part);
    }
    parts
}

fn number(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes[at..].first_chunk().copied().unwrap_or_default();
    u32::from_be_bytes(word)
}

/// The messages of one connection, put together again. It never holds more than the longest message and what is
/// added at once.
#[derive(Debug, Default)]
pub(super) struct Messages(Vec<u8>);

impl Messages {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Malformed> {
        if self.0.len() < HEADER {
            return Ok(None);
        }
        let length = word(&self.0, 0) as usize;
        if length > MAX_DATA {
            return Err(Malformed::Message(length));
        }
        if self.0.len() < HEADER + length {
            return Ok(None);
        }
        let message = Message {
            stream: word(&self.0, 4),
            kind: self.0[8],
            flags: self.0[9],
            data: self.0[HEADER..HEADER + length].to_vec(),
        };
        self.0.drain(..HEADER + length);
        if self.0.is_empty() {
            // One that was long once is not kept for the short ones.
            self.0 = Vec::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes of parts, cut anywhere.
    fn decode(mut bytes: &[u8], chunk: usize) -> Result<Vec<(u32, Message)>, Malformed> {
        let mut decoded = Vec::new();
        let mut connections = std::collections::BTreeMap::<u32, Messages>::new();
        while let Some((header, rest)) = bytes.split_first_chunk() {
            let header = PartHeader::parse(*header)?;
            let (part, rest) = rest.split_at(header.length);
            let messages = connections.entry(header.connection).or_default();
            for piece in part.chunks(chunk) {
                messages.add(piece);
                while let Some(message) = messages.next()? {
                    decoded.push((header.connection, message));
                }
            }
            bytes = rest;
        }
        Ok(decoded)
    }

    proptest! {
        #[test]
        fn messages_come_as_they_went(
            sent in prop::collection::vec((1_u32..3, any::<u32>(), 1_u8..4, prop::collection::vec(any::<u8>(), 0..9000)), 0..6),
            chunk in 1_usize..9000,
        ) {
            let bytes: Vec<u8> = sent
                .iter()
                .flat_map(|(connection, stream, kind, data)| encode(*connection, *stream, *kind, data))
                .collect();
            let wanted: Vec<_> = sent
                .into_iter()
                .map(|(connection, stream, kind, data)| (connection, Message { stream, kind, flags: 0, data }))
                .collect();
            prop_assert_eq!(decode(&bytes, chunk).unwrap(), wanted);
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut messages = Messages::default();
            messages.add(&bytes);
            while let Ok(Some(_)) = messages.next() {}
        }
    }

    #[test]
    fn parts_are_cut_as_they_are_read() {
        let lengths = |data: usize| {
            let bytes = encode(1, 3, REQUEST, &vec![0; data]);
            let mut lengths = Vec::new();
            let mut rest = &bytes[..];
            while let Some((header, after)) = rest.split_first_chunk() {
                let header = PartHeader::parse(*header).unwrap();
                lengths.push(header.length);
                rest = &after[header.length..];
            }
            lengths
        };
        assert_eq!(lengths(0), [10]);
        assert_eq!(lengths(4086), [4096]);
        assert_eq!(lengths(4087), [4096, 1]);
        assert_eq!(lengths(MAX_DATA), [4096, MAX_DATA - 4086]);
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let mut header = [0; PART_HEADER];
        header[4..].copy_from_slice(&number(MAX_PART + 1));
        assert!(PartHeader::parse(header).is_err());
        let mut messages = Messages::default();
        messages.add(&number(MAX_DATA + 1));
        messages.add(&[0; 6]);
        assert_eq!(messages.next(), Err(Malformed::Message(MAX_DATA + 1)));
    }
}
