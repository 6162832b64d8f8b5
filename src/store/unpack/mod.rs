//! Layers: from a stream of bytes that an attacker may have written to a folder for overlayfs.
//!
//! ```text
//! packed bytes ─decompress─▶ tar stream ─tar, pax, sparse─▶ entries ─extract, tree─▶ folder
//! ```
//!
//! What must always hold:
//! - Nothing outside the folder is opened, made or changed, whatever the entries say: each path is resolved by the
//!   kernel from the folder's descriptor without following any link.
//! - Everything is bounded ([`Limits`]), and an entry that could be understood in two ways is an error.
//! - The daemon does not do it itself, but a process that can do nothing else ([`Unpacker`]).
//! - The folder holds what overlayfs needs: a whiteout is a character device 0:0, an opaque folder has the
//!   attribute `trusted.overlay.opaque`. A layer cannot steer overlayfs in any other way.
//!
//! Device nodes: a container may use what its device cgroup allows. So the eight that every container may use anyway
//! (null, zero, full, random, urandom, tty, console, ptmx) are made, and all others are left out.

mod ahead;
mod complete;
mod confine;
mod decompress;
mod extract;
pub mod fuzz;
mod limits;
mod pax;
mod place;
mod process;
mod single;
mod skeleton;
mod sparse;
pub(crate) mod tar;
mod tree;

#[cfg(test)]
mod hostile;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io::{self, Read};

use crate::store::blobs::{Digest, Hashing};

use ahead::ahead;
use skeleton::Recording;

pub use complete::{Lower, complete};
pub use confine::serve_if_asked;
pub use decompress::{Compression, Decompressed};
pub use extract::{Unpacked, extract};
pub use limits::Limits;
pub use process::Unpacker;
pub use single::single;
pub use skeleton::{RecreateError, Skeleton, recreate};
pub use tree::{Metadata, Tree};

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive breaks its format or carpel's rules.
    #[error("{0}")]
    Invalid(String),
    /// One entry does.
    #[error("entry {path}: {what}")]
    Entry { path: String, what: String },
    #[error("more than {most} {what}")]
    TooMuch { what: &'static str, most: u64 },
    /// The content is not what its name promises.
    #[error("{what} is {actual}, not {expected}")]
    Digest {
        what: &'static str,
        expected: Digest,
        actual: Digest,
    },
    #[error("read: {0}")]
    Read(io::Error),
    #[error("write {path}: {source}")]
    Write { path: String, source: io::Error },
    #[error("the process that unpacks it ended: {0}")]
    Ended(String),
    #[error("cancelled")]
    Cancelled,
}

impl UnpackError {
    /// Whether the disk is full or a quota used up.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Write { source, .. } if is_no_space(source))
    }

    /// Whether the content is at fault.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(
            self,
            Self::Invalid(_) | Self::Entry { .. } | Self::TooMuch { .. } | Self::Digest { .. }
        )
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }

    pub(crate) fn entry(path: &[u8], what: impl Into<String>) -> Self {
        let (path, what) = (show(path), what.into());
        Self::Entry { path, what }
    }

    pub(crate) fn write(path: &[u8], source: impl Into<io::Error>) -> Self {
        let (path, source) = (show(path), source.into());
        Self::Write { path, source }
    }
}

/// What cannot be read because its content is wrong is the archive's fault, all else the reader's.
impl From<io::Error> for UnpackError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::Unsupported => {
                Self::Invalid(error.to_string())
            }
            _ => Self::Read(error),
        }
    }
}

/// Whether the disk is full or a quota used up.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// A path for people: short, and without characters that a terminal or a log obeys.
pub(crate) fn show(path: &[u8]) -> String {
    const MOST: usize = 200;
    let cut = &path[..path.len().min(MOST)];
    let mut text = cut.escape_ascii().to_string();
    if cut.len() < path.len() {
        text.push('…');
    }
    text
}

/// A stream that stops when it gave more than it may.
pub(crate) struct Bounded<R> {
    inner: Decompressed<Hashing<R>>,
    count: u64,
    limits: Limits,
}

impl<R: Read> Bounded<R> {
    /// # Errors
    /// As [`Decompressed::new`].
    fn new(packed: R, limits: &Limits) -> io::Result<Self> {
        Ok(Self {
            inner: Decompressed::new(Hashing::new(packed), limits.window)?,
            count: 0,
            limits: limits.clone(),
        })
    }

    /// As [`Self::new`], for a stream whose digest nobody wants.
    ///
    /// # Errors
    /// As [`Decompressed::new`].
    pub(crate) fn without_digest(packed: R, limits: &Limits) -> io::Result<Self> {
        let mut bounded = Self::new(packed, limits)?;
        bounded.inner.packed_mut().only_count();
        Ok(bounded)
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count += length as u64;
        let Limits { bytes, ratio, .. } = self.limits;
        if self.count > bytes {
            return Err(too_much(&format!("more than {bytes} bytes unpacked")));
        }
        if self.count > self.limits.ratio_floor && self.count / ratio > self.inner.packed().count()
        {
            return Err(too_much(&format!("packed more than {ratio} times")));
        }
        Ok(length)
    }
}

fn too_much(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// What a layer's content must be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Of the layer as it is packed, if anything says so.
    pub packed: Option<Digest>,
    /// Of the tar stream inside.
    pub diff: Digest,
}

/// Unpacks the layer `packed` into the empty folder `tree`, and writes down what is needed to [`recreate`] it. Both
/// digests are checked, after all of the stream has been read: on an error the folder holds something of no use.
/// `proceed` is asked before each entry.
///
/// Decompressing takes as long as hashing and writing what comes out of it, so that it has a thread of its own.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(
    packed: impl Read + Send,
    expected: Expected,
    tree: &Tree,
    skeleton: Skeleton,
    limits: &Limits,
    proceed: &dyn Fn() -> bool,
) -> Result<Unpacked, UnpackError> {
    let skeleton = RefCell::new(skeleton);
    let mut bounded = Bounded::new(packed, limits)?;
    let plain = bounded.inner.compression() == Compression::None;
    if plain || expected.packed.is_none() {
        bounded.inner.packed_mut().only_count();
    }
    let (outcome, bounded) = ahead(bounded, |stream| {
        let mut diff = Hashing::new(stream);
        let mut recording = Recording {
            inner: &mut diff,
            skeleton: &skeleton,
        };
        let unpacked =
            extract::extract_and_note(&mut recording, tree, limits, proceed, Some(&skeleton))?;
        // What follows the end of the archive is part of both digests.
        io::copy(&mut recording, &mut io::sink())?;
        Ok::<_, UnpackError>((unpacked, diff.finish()?.0))
    })?;
    let (mut unpacked, actual) = outcome?;
    check("its diff id", expected.diff, actual)?;
    let (packed, _) = bounded.inner.into_packed().finish()?;
    if let Some(expected) = expected.packed {
        check("its digest", expected, if plain { actual } else { packed })?;
    }
    unpacked.recreatable = skeleton.into_inner().finish()?;
    Ok(unpacked)
}

fn check(what: &'static str, expected: Digest, actual: Option<Digest>) -> Result<(), UnpackError> {
    match actual {
        Some(actual) if actual == expected => Ok(()),
        Some(actual) => Err(UnpackError::Digest {
            what,
            expected,
            actual,
        }),
        None => Err(UnpackError::invalid(format!("{what} was not computed"))),
    }
}
