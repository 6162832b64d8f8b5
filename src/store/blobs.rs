//! Content and its names: digests, and the spool that holds the members of an archive while it is imported.
//!
//! What must always hold: a [`Digest`] is well-formed, so it can be part of a path; what is read through a
//! [`Hashing`] reader to its end has been hashed to its end; a spool has no name in the file system, so that a killed
//! import leaves nothing behind.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use ring::digest::{Context, SHA256, digest};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

/// A SHA-256 digest. Others are not accepted: nothing in use names its content by them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A string that is no digest of the form `sha256:<64 lower-case hex digits>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a digest of the form sha256:<64 lower-case hex digits>")]
pub struct InvalidDigest;

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::made(&digest(&SHA256, bytes))
    }

    fn made(hash: &ring::digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(hash.as_ref());
        Self(bytes)
    }

    /// The 64 hex digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Takes the 64 hex digits without the algorithm.
    ///
    /// # Errors
    /// [`InvalidDigest`].
    pub fn from_hex(text: &str) -> Result<Self, InvalidDigest> {
        let lower = text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut bytes = [0; 32];
        if !lower || hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(InvalidDigest);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        Self::from_hex(text.strip_prefix("sha256:").ok_or(InvalidDigest)?)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Hashes and counts what is written to it.
pub struct Hash {
    hash: Context,
    count: u64,
}

impl Default for Hash {
    fn default() -> Self {
        Self {
            hash: Context::new(&SHA256),
            count: 0,
        }
    }
}

impl Hash {
    /// The digest of what was written, and how long that is.
    #[must_use]
    pub fn finish(self) -> (Digest, u64) {
        (Digest::made(&self.hash.finish()), self.count)
    }
}

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.count += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that counts what passes, and hashes it if that is wanted: on machines without instructions for it, hashing
/// is what takes most of an import's time.
pub struct Hashing<R> {
    inner: R,
    hash: Option<Context>,
    count: u64,
}

impl<R: Read> Hashing<R> {
    pub fn new(inner: R) -> Self {
        let hash = Some(Context::new(&SHA256));
        Self {
            inner,
            hash,
            count: 0,
        }
    }

    /// Bytes so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Stops hashing: no digest is wanted.
    pub fn only_count(&mut self) {
        self.hash = None;
    }

    /// Reads what is left and gives the digest of the whole, if it was wanted, and the inner reader.
    ///
    /// # Errors
    /// Those of the inner reader.
    pub fn finish(mut self) -> io::Result<(Option<Digest>, R)> {
        io::copy(&mut self, &mut io::sink())?;
        let digest = self.hash.map(|hash| Digest::made(&hash.finish()));
        Ok((digest, self.inner))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..length]);
        }
        self.count += length as u64;
        Ok(length)
    }
}

/// Reads once, and again if a signal came first.
pub(crate) fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// A nameless file that members of an archive are appended to.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    length: u64,
}

/// A piece of a spool: readable by position, from several threads, also after the spool has grown.
#[derive(Debug, Clone)]
pub struct Section {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

impl Spool {
    /// Makes an empty spool on the file system of the folder `folder`.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let nameless = File::options()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(folder);
        let file = match nameless {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => unlinked(folder)?,
            other => other?,
        };
        Ok(Self {
            file: Arc::new(file),
            length: 0,
        })
    }

    /// Appends all that `reader` gives.
    ///
    /// # Errors
    /// Those of reading, and of a full disk.
    pub fn append(&mut self, reader: &mut impl Read) -> io::Result<Section> {
        let offset = self.length;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = read_some(reader, &mut buffer)?;
            if length == 0 {
                break;
            }
            self.file.write_all_at(&buffer[..length], self.length)?;
            self.length += length as u64;
        }
        Ok(Section {
            file: Arc::clone(&self.file),
            offset,
            length: self.length - offset,
        })
    }
}

/// For file systems without O_TMPFILE. A kill between the two calls leaves an empty file in the folder.
fn unlinked(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!("spool-{:016x}", rand::random::<u64>()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

impl Section {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A reader of its own, from the start.
    #[must_use]
    pub fn reader(&self) -> SectionReader {
        SectionReader {
            section: self.clone(),
            position: 0,
        }
    }

    /// The whole content, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// `InvalidData` if it is longer; those of reading.
    pub fn read(&self, limit: u64) -> io::Result<Vec<u8>> {
        if self.length > limit {
            let text = format!("{} bytes, more than {limit}", self.length);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads a [`Section`].
#[derive(Debug)]
pub struct SectionReader {
    section: Section,
    position: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.section.length - self.position;
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let offset = self.section.offset + self.position;
        let length = self.section.file.read_at(&mut buffer[..most], offset)?;
        self.position += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_sha256_in_lower_case() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        for bad in [
            "",
            "sha256:",
            "sha256:../../x",
            &EMPTY[7..],
            &EMPTY.to_uppercase(),
            &EMPTY.replace("sha256", "sha1"),
            &format!("{EMPTY}0"),
            &EMPTY[..70],
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(InvalidDigest), "{bad}");
        }
    }

    #[test]
    fn sections_of_a_spool_are_read_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(folder.path()).unwrap();
        let first = spool.append(&mut &b"first"[..]).unwrap();
        let empty = spool.append(&mut io::empty()).unwrap();
        let second = spool.append(&mut &b"second"[..]).unwrap();
        assert_eq!(first.read(5).unwrap(), b"first");
        assert!(empty.is_empty());
        assert_eq!(second.read(6).unwrap(), b"second");
        assert_eq!(
            second.read(5).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut hashing = Hashing::new(second.reader());
        assert_eq!(hashing.read(&mut [0; 2]).unwrap(), 2);
        assert_eq!(hashing.finish().unwrap().0, Some(Digest::of(b"second")));
    }
}
