//! Decompression of layers and archives: gzip, zstd or none, told by the first bytes.
//!
//! What must always hold: memory stays bounded whatever the stream says (the zstd window is checked before
//! anything is allocated for it), and the packed stream is read to its end.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use structured_zstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use structured_zstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::store::blobs::read_some;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Skippable frames are ZSTD_SKIPPABLE to ZSTD_SKIPPABLE + 15, little endian.
const ZSTD_SKIPPABLE: u32 = 0x184d_2a50;
const BUFFER: usize = 128 << 10;

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A stream of unpacked bytes.
pub enum Decompressed<R> {
    Plain(Packed<R>),
    Gzip(Box<MultiGzDecoder<Packed<R>>>),
    Zstd(Box<Zstd<Packed<R>>>),
}

type Packed<R> = BufReader<Begun<R>>;

impl<R: Read> Decompressed<R> {
    /// Looks at the first bytes of `reader` and decompresses what follows. `window`: most bytes that a zstd
    /// stream may look back.
    ///
    /// # Errors
    /// `Unsupported` for xz and bzip2; those of the reader.
    pub fn new(reader: R, window: u64) -> io::Result<Self> {
        let begun = Begun::new(reader)?;
        let compression = detect(&begun.start)?;
        let reader = BufReader::with_capacity(BUFFER, begun);
        Ok(match compression {
            Compression::None => Self::Plain(reader),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(reader))),
            Compression::Zstd => Self::Zstd(Box::new(Zstd::new(reader, window))),
        })
    }

    /// How the stream is packed.
    pub fn compression(&self) -> Compression {
        match self {
            Self::Plain(_) => Compression::None,
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
        }
    }

    /// The packed stream, from which more may have been read than was unpacked.
    pub fn packed(&self) -> &R {
        match self {
            Self::Plain(reader) => &reader.get_ref().rest,
            Self::Gzip(decoder) => &decoder.get_ref().get_ref().rest,
            Self::Zstd(decoder) => &decoder.reader.get_ref().rest,
        }
    }

    /// As [`Self::packed`], to change it.
    pub fn packed_mut(&mut self) -> &mut R {
        match self {
            Self::Plain(reader) => &mut reader.get_mut().rest,
            Self::Gzip(decoder) => &mut decoder.get_mut().get_mut().rest,
            Self::Zstd(decoder) => &mut decoder.reader.get_mut().rest,
        }
    }

    /// Gives the packed stream back, with what was read ahead lost.
    pub fn into_packed(self) -> R {
        match self {
            Self::Plain(reader) => reader.into_inner().rest,
            Self::Gzip(decoder) => decoder.into_inner().into_inner().rest,
            Self::Zstd(decoder) => decoder.reader.into_inner().rest,
        }
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer).map_err(|e| broken("gzip", e)),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// A stream of which enough was read to see what it is, however small the pieces are that it comes in.
pub struct Begun<R> {
    start: Vec<u8>,
    /// Of `start`: bytes that were given out.
    given: usize,
    rest: R,
}

/// Up to the magic of a tar header.
const START: usize = 262;

impl<R: Read> Begun<R> {
    fn new(mut rest: R) -> io::Result<Self> {
        let mut start = vec![0; START];
        let mut length = 0;
        while length < START {
            match read_some(&mut rest, &mut start[length..])? {
                0 => break,
                more => length += more,
            }
        }
        start.truncate(length);
        Ok(Self {
            start,
            given: 0,
            rest,
        })
    }
}

impl<R: Read> Read for Begun<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut start = &self.start[self.given..];
        if start.is_empty() {
            return self.rest.read(buffer);
        }
        let length = start.read(buffer)?;
        self.given += length;
        Ok(length)
    }
}

fn detect(start: &[u8]) -> io::Result<Compression> {
    if start.starts_with(&GZIP) {
        return Ok(Compression::Gzip);
    }
    if start.starts_with(&ZSTD) || skippable(start).is_some() {
        return Ok(Compression::Zstd);
    }
    let foreign = [(&b"\xfd7zXZ\0"[..], "xz"), (&b"BZh"[..], "bzip2")];
    for (magic, name) in foreign {
        // A tar header may begin so too, as the name of a member: it is then followed by a whole block.
        if start.starts_with(magic) && !is_tar(start) {
            let text = format!("{name} compression is not supported, only gzip and zstd");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    }
    Ok(Compression::None)
}

fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

fn skippable(start: &[u8]) -> Option<()> {
    let magic = u32::from_le_bytes(start.get(..4)?.try_into().ok()?);
    (magic & !0xf == ZSTD_SKIPPABLE).then_some(())
}

fn fill(reader: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    reader.fill_buf()
}

fn broken(format: &str, error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => invalid(&format!("{format} stream is cut off")),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            invalid(&format!("{format} stream is broken: {error}"))
        }
        _ => error,
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A zstd stream of any number of frames.
pub struct Zstd<R> {
    reader: R,
    window: u64,
    decoder: FrameDecoder,
    /// Inside a frame.
    open: bool,
    end: bool,
}

/// Unpacked at once, so that one read does not decode more than the window.
const STEP: usize = 128 << 10;
/// Beyond this the crate refuses to use a decoder again, so that a new one is made.
const REUSABLE_WINDOW: u64 = 64 << 20;

impl<R: BufRead> Zstd<R> {
    fn new(reader: R, window: u64) -> Self {
        Self {
            reader,
            window,
            decoder: FrameDecoder::new(),
            open: false,
            end: false,
        }
    }

    /// Begins the next frame, skipping those without data. False at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if fill(&mut self.reader)?.is_empty() {
                return Ok(false);
            }
            let header = self.header()?;
            if header.window > REUSABLE_WINDOW {
                self.decoder = FrameDecoder::new();
            }
            let mut start = Cursor::new(&header.bytes[..header.length]).chain(&mut self.reader);
            match self.decoder.init(&mut start) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut skipped = (&mut start).take(u64::from(length));
                    if io::copy(&mut skipped, &mut io::sink())? != u64::from(length) {
                        return Err(invalid("zstd stream is cut off"));
                    }
                }
                Err(error) => return Err(frame_error(error)),
            }
        }
    }

    /// Reads the start of a frame's header and checks what it asks for.
    fn header(&mut self) -> io::Result<Header> {
        let mut header = Header::default();
        header.take(&mut self.reader, 5)?;
        if skippable(&header.bytes).is_some() {
            return Ok(header);
        }
        let descriptor = header.bytes[4];
        let single = descriptor & 0x20 != 0;
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let content = match descriptor >> 6 {
            0 => usize::from(single),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        header.take(
            &mut self.reader,
            usize::from(!single) + dictionary + content,
        )?;
        if single {
            let field = &header.bytes[5 + dictionary..][..content];
            let mut bytes = [0; 8];
            bytes[..content].copy_from_slice(field);
            // The two-byte form does not count what the one-byte form can say.
            header.window = u64::from_le_bytes(bytes) + if content == 2 { 256 } else { 0 };
        } else {
            let base = 1_u64 << (10 + (header.bytes[5] >> 3));
            header.window = base + base / 8 * u64::from(header.bytes[5] & 7);
        }
        if header.window > self.window {
            let (is, most) = (header.window, self.window);
            return Err(invalid(&format!(
                "zstd window of {is} bytes, more than {most}"
            )));
        }
        Ok(header)
    }
}

#[derive(Default)]
struct Header {
    bytes: [u8; 18],
    length: usize,
    window: u64,
}

impl Header {
    fn take(&mut self, reader: &mut impl Read, count: usize) -> io::Result<()> {
        let place = &mut self.bytes[self.length..][..count];
        reader.read_exact(place).map_err(|e| broken("zstd", e))?;
        self.length += count;
        Ok(())
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.end {
                return Ok(0);
            }
            if self.open {
                if self.decoder.can_collect() > 0 {
                    return read_some(&mut self.decoder, buffer);
                }
                if !self.decoder.is_finished() {
                    let step = BlockDecodingStrategy::UptoBytes(STEP);
                    self.decoder
                        .decode_blocks(&mut self.reader, step)
                        .map_err(frame_error)?;
                    continue;
                }
                let sums = (
                    self.decoder.get_checksum_from_data(),
                    self.decoder.get_calculated_checksum(),
                );
                if let (Some(written), Some(counted)) = sums
                    && written != counted
                {
                    return Err(invalid("zstd stream is broken: wrong checksum"));
                }
                self.open = false;
            }
            self.open = self.begin()?;
            self.end = !self.open;
        }
    }
}

fn frame_error(error: FrameDecoderError) -> io::Error {
    invalid(&format!("zstd stream is broken: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    const WINDOW: u64 = 8 << 20;

    fn tool(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("gzip and zstd are installed");
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut stream = Decompressed::new(packed, WINDOW)?;
        stream.read_to_end(&mut bytes)?;
        assert!(
            stream.into_packed().is_empty(),
            "packed stream not read to its end"
        );
        Ok(bytes)
    }

    fn sample() -> Vec<u8> {
        (0..700_000_u32)
            .flat_map(|n| (n / 3).wrapping_mul(2_654_435_761).to_le_bytes())
            .collect()
    }

    #[test]
    fn what_tools_pack_is_unpacked() {
        let data = sample();
        assert_eq!(unpack(&data).unwrap(), data);
        for (program, arguments) in [
            ("gzip", &["-1"][..]),
            ("gzip", &["-9"]),
            ("zstd", &["-q", "-1"]),
            ("zstd", &["-q", "-15", "--long=23"]),
            ("zstd", &["-q", "--no-check", "-T2", "-B600K"]),
        ] {
            let packed = tool(program, arguments, &data);
            assert_eq!(unpack(&packed).unwrap(), data, "{program} {arguments:?}");
            let twice = [&packed[..], &packed].concat();
            assert_eq!(unpack(&twice).unwrap().len(), data.len() * 2);
            for cut in [packed.len() - 1, packed.len() / 2, 9] {
                assert!(unpack(&packed[..cut]).is_err(), "{program} cut at {cut}");
            }
            let mut damaged = packed.clone();
            damaged[packed.len() / 2] ^= 0x40;
            assert_ne!(unpack(&damaged).ok(), Some(data.clone()));
        }
    }

    /// As a network may bring them.
    #[test]
    fn what_comes_in_small_pieces_is_unpacked() {
        struct Drops<'a>(&'a [u8]);
        impl Read for Drops<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let most = buffer.len().min(1);
                self.0.read(&mut buffer[..most])
            }
        }
        for program in ["gzip", "zstd", "cat"] {
            let packed = tool(program, &[], b"data");
            let mut stream = Decompressed::new(Drops(&packed), WINDOW).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"data", "{program}");
        }
    }

    #[test]
    fn skippable_frames_are_skipped() {
        let packed = tool("zstd", &["-q"], b"data");
        let skipped = b"\x53\x2a\x4d\x18\x03\x00\x00\x00abc";
        let stream = [&skipped[..], &packed, skipped].concat();
        assert_eq!(unpack(&stream).unwrap(), b"data");
        assert!(unpack(&stream[..stream.len() - 1]).is_err());
    }

    #[test]
    fn a_large_window_is_refused_before_it_is_allocated() {
        // Window descriptor 0xa8: 2^31 bytes.
        let error = unpack(&[&ZSTD[..], &[0x00, 0xa8, 1, 0, 0]].concat()).unwrap_err();
        assert!(
            error.to_string().contains("window of 2147483648 bytes"),
            "{error}"
        );
        // One segment of 2^40 bytes.
        let single = [&ZSTD[..], &[0xe0], &(1_u64 << 40).to_le_bytes(), &[1, 0, 0]].concat();
        let error = unpack(&single).unwrap_err();
        assert!(
            error.to_string().contains("window of 1099511627776 bytes"),
            "{error}"
        );
        let data = vec![7; 20 << 20];
        let packed = tool("zstd", &["-q", "--long=24"], &data);
        assert!(unpack(&packed).unwrap_err().to_string().contains("window"));
    }

    #[test]
    fn foreign_compression_is_named() {
        for (start, name) in [(&b"\xfd7zXZ\0\0\x04"[..], "xz"), (b"BZh91AY&SY", "bzip2")] {
            let error = Decompressed::new(start, WINDOW).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert!(error.to_string().starts_with(name));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(start in 0..3_usize, bytes: Vec<u8>) {
            let magic = [&GZIP[..], &ZSTD, &[]][start];
            let _ = unpack(&[magic, &bytes].concat());
        }
    }
}
