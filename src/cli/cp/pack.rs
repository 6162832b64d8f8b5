//! Files and folders of this machine as a tar archive, in the form that GNU's and busybox's tar read.

use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::shown;

const BLOCK: usize = 512;
/// Old programs read so much at a time, and want it whole.
const RECORD: usize = 20 * BLOCK;
/// What fits in a header.
const SHORT: usize = 100;

/// Writes what is at `source` as `name`, with all that is below it.
///
/// # Errors
/// Something cannot be read, or nobody takes the archive.
pub fn pack(
    out: impl Write,
    source: &Path,
    name: &[u8],
    warn: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    let mut archive = Archive {
        out: BufWriter::with_capacity(64 << 10, out),
        written: 0,
    };
    let mut left: Vec<(PathBuf, Vec<u8>)> = vec![(source.to_owned(), name.to_vec())];
    while let Some((path, name)) = left.pop() {
        let at = || shown(&path);
        let found = std::fs::symlink_metadata(&path).with_context(at)?;
        let kind = found.file_type();
        if kind.is_dir() {
            archive.folder(&name, &found).context("write the archive")?;
            for entry in std::fs::read_dir(&path).with_context(at)? {
                let entry = entry.with_context(at)?;
                let name = [&name[..], b"/", entry.file_name().as_bytes()].concat();
                left.push((entry.path(), name));
            }
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).with_context(at)?;
            let target = target.as_os_str().as_bytes();
            archive
                .link(&name, target, &found)
                .context("write the archive")?;
        } else if kind.is_file() {
            let file = File::open(&path).with_context(at)?;
            // What is open may be another than what was looked at.
            let found = file.metadata().with_context(at)?;
            archive.file(&name, file, &found).with_context(at)?;
        } else {
            warn(format!("skipping {}: no file, folder or link", at()));
        }
    }
    archive.end().context("write the archive")
}

struct Archive<W: Write> {
    out: BufWriter<W>,
    written: usize,
}

impl<W: Write> Archive<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written = (self.written + bytes.len()) % RECORD;
        self.out.write_all(bytes)
    }

    fn fill(&mut self, whole: usize) -> io::Result<()> {
        let missing = self.written.next_multiple_of(whole) - self.written;
        self.write(&[0; RECORD][..missing])
    }

    fn folder(&mut self, name: &[u8], found: &Metadata) -> io::Result<()> {
        self.head(b'5', &[name, b"/"].concat(), b"", 0, Some(found))
    }

    fn link(&mut self, name: &[u8], target: &[u8], found: &Metadata) -> io::Result<()> {
        self.head(b'2', name, target, 0, Some(found))
    }

    fn file(&mut self, name: &[u8], file: File, found: &Metadata) -> io::Result<()> {
        let size = found.len();
        self.head(b'0', name, b"", size, Some(found))?;
        let (mut file, mut left) = (file.take(size), size);
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                // It has become shorter.
                let zeros = usize::try_from(left).map_or(buffer.len(), |l| l.min(buffer.len()));
                buffer[..zeros].fill(0);
                self.write(&buffer[..zeros])?;
                left -= zeros as u64;
            } else {
                self.write(&buffer[..count])?;
                left -= count as u64;
            }
        }
        self.fill(BLOCK)
    }

    /// A header, behind those for what does not fit in it.
    fn head(
        &mut self,
        kind: u8,
        name: &[u8],
        link: &[u8],
        size: u64,
        found: Option<&Metadata>,
    ) -> io::Result<()> {
        for (kind, text) in [(b'L', name), (b'K', link)] {
            if text.len() > SHORT {
                let text = [text, &[0]].concat();
                self.head(kind, b"././@LongLink", b"", text.len() as u64, None)?;
                self.write(&text)?;
                self.fill(BLOCK)?;
            }
        }
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(SHORT)]);
        let of = |value: fn(&Metadata) -> u64| found.map_or(0, value);
        put(
            100,
            &number::<8>(of(|found| (found.mode() & 0o7777).into())),
        );
        put(108, &number::<8>(of(|found| found.uid().into())));
        put(116, &number::<8>(of(|found| found.gid().into())));
        put(124, &number::<12>(size));
        let mtime = of(|found| u64::try_from(found.mtime()).unwrap_or(0));
        put(136, &number::<12>(mtime));
        put(148, b"        ");
        put(156, &[kind]);
        put(157, &link[..link.len().min(SHORT)]);
        put(257, b"ustar  \0");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(&number::<8>(sum));
        self.write(&block)
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.write(&[0; 2 * BLOCK])?;
        self.fill(RECORD)?;
        Ok(self.out.flush()?)
    }
}

/// In octal, or, if that has no room, as GNU's tar has large numbers.
fn number<const SIZE: usize>(value: u64) -> [u8; SIZE] {
    let mut field = [0; SIZE];
    let digits = format!("{value:0width$o}", width = SIZE - 1);
    if digits.len() < SIZE {
        field[..SIZE - 1].copy_from_slice(digits.as_bytes());
    } else {
        let bytes = value.to_be_bytes();
        let room = SIZE.min(8);
        field[SIZE - room..].copy_from_slice(&bytes[8 - room..]);
        field[0] = 0x80;
    }
    field
}
