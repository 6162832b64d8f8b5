//! A strict reader of tar archives: ustar, PAX, GNU and the old form without a magic.
//!
//! What must always hold: one number decides how many bytes an entry's data have, and it is the number that was
//! checked; a header that two readers could understand differently is an error; memory is bounded by the
//! [`Limits`], whatever the sizes in the headers say.

use std::io::{self, Read};

use super::pax::{Pax, Time};
use super::sparse::{self, Map};
use super::{Limits, UnpackError};

/// Bytes of a header, and what data are filled up to.
pub(super) const BLOCK: usize = 512;

/// One entry. Data of files are read from the [`Archive`].
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// As in the archive: not checked for "..", links and so on.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits only, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub atime: Option<Time>,
    /// Full names and values, unfiltered.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    File {
        /// Bytes that the archive has.
        stored: u64,
        /// Where they belong, if there are holes between.
        sparse: Option<Map>,
    },
    Directory,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// An archive that is read entry by entry. As a reader it gives the data of the latest entry.
pub struct Archive<R> {
    reader: R,
    limits: Limits,
    /// Of the latest entry: bytes of data not read yet.
    left: u64,
    /// Bytes that fill its last block.
    padding: u64,
    entries: u64,
    end: bool,
}

/// What headers before an entry's own said of it.
#[derive(Default)]
struct Extension {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    pub fn new(reader: R, limits: &Limits) -> Self {
        Self {
            reader,
            limits: limits.clone(),
            left: 0,
            padding: 0,
            entries: 0,
            end: false,
        }
    }

    /// The next entry; what was not read of the one before is skipped. `None` at the end of the archive.
    ///
    /// # Errors
    /// [`UnpackError`]; the archive is then of no further use.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator cannot fail in its own way"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return match extension {
                    Extension {
                        pax: None,
                        long_path: None,
                        long_link: None,
                    } => Ok(None),
                    _ => Err(UnpackError::invalid("extended header without an entry")),
                };
            };
            self.entries += 1;
            if self.entries > self.limits.entries {
                let most = self.limits.entries;
                let what = "entries";
                return Err(UnpackError::TooMuch { what, most });
            }
            let size = numeric(&header[124..136]).ok_or_else(|| bad("size"))?;
            match header[156] {
                b'x' => {
                    let bytes = self.whole(size)?;
                    let pax = Pax::parse(&bytes, self.limits.sparse_pieces)?;
                    once(&mut extension.pax, pax)?;
                }
                b'L' => once(
                    &mut extension.long_path,
                    c_string(&self.whole(size)?).to_vec(),
                )?,
                b'K' => once(
                    &mut extension.long_link,
                    c_string(&self.whole(size)?).to_vec(),
                )?,
                // For all entries; in practice a comment. As other readers of layers we heed nothing of it.
                b'g' => drop(self.whole(size)?),
                // A label of the volume.
                b'V' => self.set_data(size)?,
                _ => return self.entry(&header, size, extension).map(Some),
            }
        }
    }

    /// What follows the end of the archive.
    pub fn into_inner(self) -> R {
        self.reader
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        size: u64,
        extension: Extension,
    ) -> Result<Entry, UnpackError> {
        let Extension {
            pax,
            long_path,
            long_link,
        } = extension;
        let pax = pax.unwrap_or_default();
        let mut size = pax.size.unwrap_or(size);
        let path = choose(long_path, pax.path, || path_of(header))?;
        let link = choose(long_link, pax.link, || c_string(&header[157..257]).to_vec())?;
        let path = pax.sparse.name.clone().unwrap_or(path);
        if path.len() > self.limits.path || link.len() > self.limits.path {
            let most = self.limits.path as u64;
            let what = "bytes in a path";
            return Err(UnpackError::TooMuch { what, most });
        }
        let is_file = matches!(header[156], 0 | b'0' | b'7' | b'S');
        if !is_file && size != 0 {
            return Err(UnpackError::entry(&path, "data where there can be none"));
        }
        if !pax.sparse.is_empty() && !matches!(header[156], 0 | b'0') {
            return Err(UnpackError::entry(&path, "a sparse file that is none"));
        }
        let device = || -> Result<(u32, u32), UnpackError> {
            let number = |field| small(numeric(field), "device number");
            Ok((number(&header[329..337])?, number(&header[337..345])?))
        };
        let kind = match header[156] {
            b'S' => {
                let map = sparse::old(header, size, &mut self.reader, &self.limits)?;
                file(size, Some(map))
            }
            0 | b'0' if !pax.sparse.is_empty() => {
                let padding = fill(size);
                let map = sparse::pax(&pax.sparse, &mut size, &mut self.reader, &self.limits)?;
                debug_assert_eq!(padding, fill(size));
                file(size, Some(map))
            }
            // The oldest form says so of a folder.
            0 if path.ends_with(b"/") && size == 0 => Kind::Directory,
            0 | b'0' | b'7' => file(size, None),
            b'1' => Kind::Hardlink(link),
            b'2' => Kind::Symlink(link),
            b'3' => device().map(|(major, minor)| Kind::Character(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let what = format!("of unknown type {}", other.escape_ascii());
                return Err(UnpackError::entry(&path, what));
            }
        };
        self.set_data(size)?;
        Ok(Entry {
            mode: small(numeric(&header[100..108]), "mode")? & 0o7777,
            uid: id(pax.uid.or_else(|| numeric(&header[108..116])), "uid")?,
            gid: id(pax.gid.or_else(|| numeric(&header[116..124])), "gid")?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => seconds(&header[136..148]).ok_or_else(|| bad("mtime"))?,
            },
            atime: pax.atime,
            xattrs: pax.xattrs,
            path,
            kind,
        })
    }

    fn set_data(&mut self, size: u64) -> Result<(), UnpackError> {
        if size > self.limits.bytes {
            let most = self.limits.bytes;
            let what = "bytes in an entry";
            return Err(UnpackError::TooMuch { what, most });
        }
        self.left = size;
        self.padding = fill(size);
        Ok(())
    }

    /// Reads the data of a header that is about another entry.
    fn whole(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > self.limits.header {
            let most = self.limits.header;
            let what = "bytes in an extended header";
            return Err(UnpackError::TooMuch { what, most });
        }
        self.set_data(size)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Skips what is left of the latest entry.
    fn skip(&mut self) -> Result<(), UnpackError> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.reader).take(rest), &mut io::sink())?;
        if skipped != rest {
            return Err(cut_off().into());
        }
        Ok(())
    }

    /// Reads a header and checks its sum. `None` at the end: two blocks of zeros, or nothing at all.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        if self.end {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let first = super::super::blobs::read_some(&mut self.reader, &mut block)?;
        if first == 0 {
            self.end = true;
            return Ok(None);
        }
        read_exact(&mut self.reader, &mut block[first..])?;
        if block != [0; BLOCK] {
            verify_sum(&block)?;
            return Ok(Some(block));
        }
        self.end = true;
        let first = super::super::blobs::read_some(&mut self.reader, &mut block)?;
        if first > 0 {
            read_exact(&mut self.reader, &mut block[first..])?;
        }
        if block != [0; BLOCK] {
            return Err(UnpackError::invalid("a block of zeros amid the archive"));
        }
        Ok(None)
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let length = self.reader.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(cut_off());
        }
        self.left -= length as u64;
        Ok(length)
    }
}

/// Fills the buffer.
pub(super) fn read_exact(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<()> {
    reader
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut_off(),
            _ => error,
        })
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the archive is cut off")
}

fn fill(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn file(stored: u64, sparse: Option<Map>) -> Kind {
    Kind::File { stored, sparse }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), UnpackError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UnpackError::invalid("two extended headers for one entry")),
    }
}

/// A name may come from one extended header, not from two.
fn choose(
    long: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
    header: impl FnOnce() -> Vec<u8>,
) -> Result<Vec<u8>, UnpackError> {
    match (long, pax) {
        (Some(_), Some(_)) => Err(UnpackError::invalid("two extended headers for one entry")),
        (Some(name), None) | (None, Some(name)) => Ok(name),
        (None, None) => Ok(header()),
    }
}

fn path_of(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = c_string(&header[..100]);
    // Only the POSIX form has a prefix; GNU uses the place for other things, and star a part of it.
    let end = if &header[508..512] == b"tar\0" {
        476
    } else {
        500
    };
    let prefix = match &header[257..263] {
        b"ustar\0" => c_string(&header[345..end]),
        _ => b"",
    };
    match prefix {
        b"" => name.to_vec(),
        _ => [prefix, b"/", name].concat(),
    }
}

fn c_string(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// The sum of all bytes, those of the sum itself taken as spaces; some old writers took bytes as signed.
fn verify_sum(header: &[u8; BLOCK]) -> Result<(), UnpackError> {
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in header.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    let written = octal(&header[148..156]).and_then(|sum| i64::try_from(sum).ok());
    if written == Some(unsigned) || written == Some(signed) {
        return Ok(());
    }
    Err(UnpackError::invalid(
        "not a tar archive, or damaged: a header's checksum is wrong",
    ))
}

/// An octal number, or a binary one marked by its first bit. `None` for anything else, negative numbers too.
pub(super) fn numeric(field: &[u8]) -> Option<u64> {
    signed_numeric(field).and_then(|number| u64::try_from(number).ok())
}

fn signed_numeric(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|number| i64::try_from(number).ok());
    }
    let negative = first & 0x40 != 0;
    let start = if negative {
        i128::from(first) - 0x100
    } else {
        i128::from(first & 0x3f)
    };
    // At most 12 bytes, so this cannot overflow.
    let number = rest
        .iter()
        .fold(start, |sum, &byte| sum * 256 + i128::from(byte));
    i64::try_from(number).ok()
}

/// Spaces, octal digits, then spaces and zero bytes. An empty field is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = c_string(field).trim_ascii();
    if digits.len() > 21 || !digits.iter().all(|b| (b'0'..=b'7').contains(b)) {
        return None;
    }
    Some(
        digits
            .iter()
            .fold(0, |sum, &b| sum * 8 + u64::from(b - b'0')),
    )
}

fn seconds(field: &[u8]) -> Option<Time> {
    let seconds = signed_numeric(field)?;
    Some(Time {
        seconds,
        nanoseconds: 0,
    })
}

fn small(number: Option<u64>, what: &str) -> Result<u32, UnpackError> {
    number
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| bad(what))
}

/// The largest 32-bit number is no id: to chown(2) it means "as it was".
fn id(number: Option<u64>, what: &str) -> Result<u32, UnpackError> {
    match small(number, what)? {
        u32::MAX => Err(bad(what)),
        id => Ok(id),
    }
}

fn bad(what: &str) -> UnpackError {
    UnpackError::invalid(format!("malformed {what} in a header"))
}
