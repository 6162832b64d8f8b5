//! What a layer's tar stream has beside the content of files, so that the very same stream can be made again: to compare
//! what is on the disk with what was unpacked, and to export.
//!
//! ```text
//! tar stream ─Recording─▶ bytes ─deflate─▶ skeleton          skeleton + folder ─recreate─▶ tar stream
//!                └─ data of a file ─▶ its path and length
//! ```
//!
//! What must always hold: a skeleton is whole, or there is none. There is none for a layer that has something twice, because
//! the content of the first is gone, nor for one whose skeleton would be large.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use rustix::fs::FileType;

use super::{Limits, Tree, UnpackError, show};

/// The next bytes, as they are: a length in four bytes, and so many bytes.
const BYTES: u8 = b'b';
/// The content of a file: the length of its path in four bytes, the path, the length of its content in eight.
const CONTENT: u8 = b'c';
/// Nothing was cut off.
const END: u8 = b'e';

/// Bytes that one step has at most.
const MOST_BYTES: usize = 64 << 10;
/// Bytes of the stream, unpacked, that a skeleton keeps at most. A header has 512.
const MOST_KEPT: u64 = 1 << 30;

/// A skeleton that is being written, while the layer is unpacked.
pub struct Skeleton {
    /// `None`: there will be none.
    file: Option<ZlibEncoder<BufWriter<File>>>,
    kept: Vec<u8>,
    total: u64,
    /// Of the stream: bytes to come that are in a file.
    elsewhere: u64,
    failed: Option<io::Error>,
}

impl Skeleton {
    /// Begins one in the empty file `file`.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            file: Some(ZlibEncoder::new(BufWriter::new(file), Compression::fast())),
            kept: Vec::new(),
            total: 0,
            elsewhere: 0,
            failed: None,
        }
    }

    /// The next `length` bytes of the stream are the content of the file `path`.
    pub(super) fn content(&mut self, path: &[u8], length: u64) {
        if length == 0 || self.file.is_none() {
            return;
        }
        self.flush();
        let mut step = vec![CONTENT];
        step.extend(u32::try_from(path.len()).unwrap_or(0).to_be_bytes());
        step.extend_from_slice(path);
        step.extend(length.to_be_bytes());
        self.write(&step);
        self.elsewhere = length;
    }

    /// The stream cannot be made again.
    pub(super) fn give_up(&mut self) {
        self.file = None;
        self.kept = Vec::new();
    }

    fn saw(&mut self, bytes: &[u8]) {
        let skip = usize::try_from(self.elsewhere).map_or(bytes.len(), |n| n.min(bytes.len()));
        self.elsewhere -= skip as u64;
        let bytes = &bytes[skip..];
        self.total += bytes.len() as u64;
        if self.total > MOST_KEPT {
            self.give_up();
        }
        if self.file.is_none() {
            return;
        }
        for piece in bytes.chunks(MOST_BYTES) {
            if self.kept.len() + piece.len() > MOST_BYTES {
                self.flush();
            }
            self.kept.extend_from_slice(piece);
        }
    }

    fn flush(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        if kept.is_empty() {
            return;
        }
        let length = u32::try_from(kept.len()).unwrap_or(0).to_be_bytes();
        self.write(&[&[BYTES][..], &length].concat());
        self.write(&kept);
        self.kept = kept;
        self.kept.clear();
    }

    /// An error is told at the end.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(bytes)
        {
            self.failed.get_or_insert(error);
        }
    }

    /// Ends it, when all of the stream has been seen. `false`: there is none, and the file is of no use. It is not synced
    /// yet.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn finish(mut self) -> Result<bool, UnpackError> {
        self.flush();
        self.write(&[END]);
        let failed = self.failed.take();
        let ended = match (failed, self.file) {
            (Some(error), _) => Err(error),
            (None, Some(file)) => file
                .finish()
                .and_then(|mut file| file.flush())
                .map(|()| true),
            (None, None) => Ok(false),
        };
        ended.map_err(|source| UnpackError::Write {
            path: "what its stream is made again of".to_owned(),
            source,
        })
    }
}

/// Shows a skeleton all that is read.
pub(super) struct Recording<'a, R> {
    pub inner: R,
    pub skeleton: &'a RefCell<Skeleton>,
}

impl<R: Read> Read for Recording<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.skeleton.borrow_mut().saw(&buffer[..length]);
        Ok(length)
    }
}

/// Why a stream could not be made again.
#[derive(Debug, thiserror::Error)]
pub enum RecreateError {
    /// What is on the disk is not what was unpacked.
    #[error("{0}")]
    Damaged(String),
    /// Whoever takes the stream does not want it any more.
    #[error("write: {0}")]
    Write(io::Error),
    #[error("cancelled")]
    Cancelled,
}

/// Makes the tar stream of the layer in `tree` again. Whether it is the same is to be seen by its digest.
///
/// # Errors
/// [`RecreateError`].
pub fn recreate(
    skeleton: File,
    tree: &Tree,
    out: &mut dyn Write,
    proceed: &dyn Fn() -> bool,
) -> Result<(), RecreateError> {
    let mut steps = ZlibDecoder::new(BufReader::new(skeleton));
    let mut buffer = vec![0; 256 << 10];
    loop {
        if !proceed() {
            return Err(RecreateError::Cancelled);
        }
        let [kind] = take(&mut steps)?;
        match kind {
            BYTES => {
                let length = length(&mut steps, MOST_BYTES)?;
                let bytes = &mut buffer[..length];
                steps.read_exact(bytes).map_err(of_skeleton)?;
                out.write_all(bytes).map_err(RecreateError::Write)?;
            }
            CONTENT => {
                let length = length(&mut steps, Limits::default().path)?;
                let mut path = vec![0; length];
                steps.read_exact(&mut path).map_err(of_skeleton)?;
                let stored = u64::from_be_bytes(take(&mut steps)?);
                content(tree, &path, stored, &mut buffer, out, proceed)?;
            }
            // The end of the packed bytes has a sum of all.
            END => match steps.read(&mut [0]).map_err(of_skeleton)? {
                0 => return Ok(()),
                _ => return Err(of_skeleton(io::ErrorKind::InvalidData.into())),
            },
            _ => return Err(of_skeleton(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// Writes the content of one file.
fn content(
    tree: &Tree,
    path: &[u8],
    stored: u64,
    buffer: &mut [u8],
    out: &mut dyn Write,
    proceed: &dyn Fn() -> bool,
) -> Result<(), RecreateError> {
    let damaged = |what: &str| RecreateError::Damaged(format!("{}: {what}", show(path)));
    let of_file = |error: io::Error| damaged(&error.to_string());
    let (file, stat) = tree.file(path).map_err(|error| of_file(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(damaged("is no file any more"));
    }
    if u64::try_from(stat.st_size) != Ok(stored) {
        let size = stat.st_size;
        return Err(damaged(&format!("has {size} bytes instead of {stored}")));
    }
    let mut file = File::from(file).take(stored);
    let mut left = stored;
    while left > 0 {
        let length = file.read(buffer).map_err(of_file)?;
        if length == 0 {
            return Err(damaged("became shorter"));
        }
        left -= length as u64;
        out.write_all(&buffer[..length])
            .map_err(RecreateError::Write)?;
        if !proceed() {
            return Err(RecreateError::Cancelled);
        }
    }
    Ok(())
}

fn take<const N: usize>(steps: &mut impl Read) -> Result<[u8; N], RecreateError> {
    let mut bytes = [0; N];
    steps.read_exact(&mut bytes).map_err(of_skeleton)?;
    Ok(bytes)
}

fn length(steps: &mut impl Read, most: usize) -> Result<usize, RecreateError> {
    let length = u32::from_be_bytes(take(steps)?) as usize;
    match length <= most {
        true => Ok(length),
        false => Err(of_skeleton(io::ErrorKind::InvalidData.into())),
    }
}

fn of_skeleton(error: io::Error) -> RecreateError {
    RecreateError::Damaged(format!("what is kept of its tar stream: {error}"))
}
