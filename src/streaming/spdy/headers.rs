//! Header blocks: one zlib stream for each direction of a connection, flushed after each block.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary;
use super::frame::Fault;

/// Most bytes of a block, unpacked. What a stream's headers say here is a few words.
const MAX_UNPACKED: usize = 16 << 10;
/// The window that packing looks back over: the dictionary fits in it, and little memory is held for it.
const WINDOW_BITS: u8 = 11;
/// Most headers of a block.
const MAX_HEADERS: usize = 64;

/// The headers of a stream. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// A header's value; `name` in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
impl From<&[(&str, &str)]> for Headers {
    fn from(pairs: &[(&str, &str)]) -> Self {
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        Self(pairs.iter().map(own).collect())
    }
}

/// The receiving direction.
pub struct Unpacker(Decompress);

impl Unpacker {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Unpacks a block. `Ok(None)`: its names or values are not as they must be, which is its stream's matter alone.
    ///
    /// # Errors
    /// The zlib stream, or the block's own lengths, are broken, or it is too large: nothing that follows can be read.
    pub fn unpack(&mut self, packed: &[u8]) -> Result<Option<Headers>, Fault> {
        let block = self.inflate(packed)?;
        parse(&block)
    }

    fn inflate(&mut self, mut packed: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut block = Vec::with_capacity(1 << 10);
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let outcome = self
                .0
                .decompress_vec(packed, &mut block, FlushDecompress::Sync);
            packed = &packed[(self.0.total_in() - read) as usize..];
            match outcome {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(Fault::Headers("the zlib stream ends")),
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.0.set_dictionary(&dictionary::bytes());
                    set.map_err(|_| Fault::Headers("an unknown dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Fault::Headers("no zlib stream")),
            }
            if block.len() > MAX_UNPACKED {
                return Err(Fault::Headers("too large"));
            }
            let full = block.len() == block.capacity();
            if packed.is_empty() && !full {
                return Ok(block);
            }
            if full {
                block.reserve(block.len());
            } else if self.0.total_in() == read && self.0.total_out() == written {
                return Err(Fault::Headers("no zlib stream"));
            }
        }
    }
}

fn parse(block: &[u8]) -> Result<Option<Headers>, Fault> {
    let mut rest = block;
    let count = take_length(&mut rest)?;
    if count > MAX_HEADERS {
        return Err(Fault::Headers("too many"));
    }
    let mut headers: Vec<(String, String)> = Vec::with_capacity(count);
    let mut good = true;
    for _ in 0..count {
        let name = take_text(&mut rest)?;
        let value = take_text(&mut rest)?;
        let valid = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase())
            && headers.iter().all(|(known, _)| *known != name);
        good &= valid;
        headers.push((name, value));
    }
    if !rest.is_empty() {
        return Err(Fault::Headers("longer than it says"));
    }
    Ok(good.then_some(Headers(headers)))
}

fn take_length(rest: &mut &[u8]) -> Result<usize, Fault> {
    let (length, after) = rest
        .split_first_chunk()
        .ok_or(Fault::Headers("shorter than it says"))?;
    *rest = after;
    Ok(u32::from_be_bytes(*length) as usize)
}

/// What is no UTF-8 is no name that anybody looks for.
fn take_text(rest: &mut &[u8]) -> Result<String, Fault> {
    let length = take_length(rest)?;
    let (text, after) = rest
        .split_at_checked(length)
        .ok_or(Fault::Headers("shorter than it says"))?;
    *rest = after;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// The sending direction.
pub struct Packer(Compress);

impl Packer {
    pub fn new() -> Self {
        let mut deflate = Compress::new_with_window_bits(Compression::fast(), true, WINDOW_BITS);
        let set = deflate.set_dictionary(&dictionary::bytes());
        set.expect("a stream that has just begun takes a dictionary");
        Self(deflate)
    }

    /// Packs a block.
    pub fn pack(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|&(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 64);
        let mut rest = &block[..];
        loop {
            let before = self.0.total_in();
            let outcome = self.0.compress_vec(rest, &mut packed, FlushCompress::Sync);
            outcome.expect("deflating to memory works");
            rest = &rest[(self.0.total_in() - before) as usize..];
            if rest.is_empty() && packed.len() < packed.capacity() {
                return packed;
            }
            packed.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_share_one_stream() {
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::new());
        for pairs in [
            &[("streamtype", "error"), ("port", "80")][..],
            &[],
            &[("streamtype", "data"), ("port", "80")],
        ] {
            let packed = packer.pack(pairs);
            let headers = unpacker.unpack(&packed).unwrap();
            assert_eq!(headers, Some(Headers::from(pairs)));
        }
    }

    #[test]
    fn a_bad_name_is_its_streams_matter() {
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::new());
        for pairs in [
            &[("StreamType", "error")][..],
            &[("", "x")],
            &[("a", "1"), ("a", "2")],
            &[("a b", "1")],
        ] {
            assert_eq!(unpacker.unpack(&packer.pack(pairs)), Ok(None), "{pairs:?}");
        }
        let good = &[("a", "1")][..];
        let after = unpacker.unpack(&packer.pack(good));
        assert_eq!(after, Ok(Some(Headers::from(good))));
    }

    #[test]
    fn a_bomb_is_refused() {
        let big = "x".repeat(1 << 20);
        let packed = Packer::new().pack(&[("a", &big)]);
        assert!(packed.len() < 16 << 10);
        let refused = Unpacker::new().unpack(&packed);
        assert_eq!(refused, Err(Fault::Headers("too large")));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for noise in [&b""[..], b"\0", b"plain text", &[0x78, 0x9c, 0, 0, 0]] {
            assert!(Unpacker::new().unpack(noise).is_err(), "{noise:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(values in proptest::collection::vec(".{0,300}", 0..20)) {
            let names: Vec<_> = (0..values.len()).map(|i| format!("name-{i}")).collect();
            let pairs: Vec<_> = names.iter().map(String::as_str).zip(values.iter().map(String::as_str)).collect();
            let (mut packer, mut unpacker) = (Packer::new(), Unpacker::new());
            for _ in 0..2 {
                let unpacked = unpacker.unpack(&packer.pack(&pairs)).unwrap();
                prop_assert_eq!(unpacked, Some(Headers::from(&pairs[..])));
            }
        }
    }
}
