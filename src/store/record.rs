//! Durable records: one fact, one file, replaced whole by one atomic rename.
//!
//! A record is a header line and a JSON payload:
//!
//! ```text
//! carpel-record 1 <crc32 of the payload, 8 hex digits> <length of the payload in bytes>
//! {"…"}
//! ```
//!
//! What must always hold: a reader sees the old record or the new one, never a mixture, and a record
//! that lost or changed bytes is told from a sound one ([`ReadError::Damaged`]), so that it can be
//! [quarantined](quarantine) instead of believed. A record written with [`Durability::Now`] is on disk when
//! [`write`] returns; with [`Durability::Soon`] it is there within a second, off the caller's path.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat, renameat_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use super::syncer::Syncer;

/// Version of the format of the file; the payload has its own if it needs one.
const VERSION: u32 = 1;
const MAGIC: &str = "carpel-record";
/// No record is longer, so a damaged length or a foreign file cannot fill the memory.
const MAX_BYTES: u64 = 16 << 20;
/// Extension of what is not yet, or will never be, a record.
const TEMPORARY: &str = "tmp";

/// When a record must have reached the disk.
#[derive(Debug, Clone, Copy)]
pub enum Durability<'a> {
    /// Before the call returns: file and folder are synced.
    Now,
    /// Within a second, by the syncer's thread.
    Soon(&'a Syncer),
}

/// The turns at a record that is written from several sides: each takes what is to be written when its turn has come,
/// so what lands last is never what was true earlier.
#[derive(Debug, Default)]
pub struct Turns {
    /// Whether the last could not write.
    behind: Mutex<bool>,
}

impl Turns {
    /// Waits for a turn, and has `write` write what is the `latest` then.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write<T, E>(
        &self,
        latest: impl FnOnce() -> T,
        write: impl FnOnce(&T) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        let written = write(&latest());
        *behind = written.is_err();
        written
    }

    /// Whether what is on disk is older than what was to be written last.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        *self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes are not those that were written, or not what this version understands.
    #[error("record {}: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("record {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Writes `value` as the record at `path`, in place of what was there.
///
/// # Errors
/// Any error of the file system (a full disk among them), naming the path. The old record is then untouched,
/// except that after a failed sync of the folder the new one may be in place.
pub fn write<T: Serialize>(path: &Path, value: &T, durability: Durability) -> io::Result<()> {
    let bytes = encode(value).map_err(|e| named("write record", path, e.into()))?;
    write_bytes(path, &bytes, durability).map_err(|e| named("write record", path, e))
}

fn write_bytes(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let temporary = temporary_for(path)?;
    let written = write_new(&temporary, bytes, durability)
        .and_then(|()| Ok(renameat(CWD, &temporary, CWD, path)?));
    if let Err(error) = written {
        // Nothing to add if this fails too: what is left over goes at the next start.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    settle(path, durability)
}

fn write_new(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    match durability {
        Durability::Now => file.sync_all(),
        Durability::Soon(_) => Ok(()),
    }
}

/// Makes the folder's entry durable, now or soon.
fn settle(path: &Path, durability: Durability) -> io::Result<()> {
    match durability {
        Durability::Now => sync_folder(folder(path)),
        Durability::Soon(syncer) => {
            syncer.later(path);
            Ok(())
        }
    }
}

/// Reads the record at `path`; `None` if there is none.
///
/// # Errors
/// [`ReadError::Damaged`] if its bytes cannot be trusted; else the file system's error.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadError> {
    let bytes = match read_bytes(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) if source.kind() == io::ErrorKind::InvalidData => {
            return Err(damaged(path, source.to_string()));
        }
        Err(source) => {
            let path = path.to_owned();
            return Err(ReadError::Io { path, source });
        }
    };
    decode(&bytes).map(Some).map_err(|what| damaged(path, what))
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|e| match rustix::io::Errno::from_io_error(&e) {
            Some(rustix::io::Errno::LOOP) => invalid("a symbolic link"),
            _ => e,
        })?;
    if !file.metadata()?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(invalid("longer than any record"));
    }
    Ok(bytes)
}

/// Removes the record at `path`. One that is missing already is fine.
///
/// # Errors
/// Those of unlinking and, with [`Durability::Now`], of syncing the folder.
pub fn remove(path: &Path, durability: Durability) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => settle(path, durability).map_err(|e| named("remove record", path, e)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(named("remove record", path, error)),
    }
}

/// Moves the file or folder at `path` into the folder `into` (made if missing), named after where it was.
/// Nothing that is there already is replaced. Both must be on one file system.
///
/// # Errors
/// As `rename(2)`.
pub fn quarantine(path: &Path, into: &Path) -> io::Result<()> {
    std::fs::create_dir_all(into)?;
    let parts: Vec<_> = path.iter().map(OsStr::to_string_lossy).collect();
    let name = parts[parts.len().saturating_sub(3)..]
        .join("-")
        .replace('/', "");
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    for attempt in 0..1000 {
        let target = into.join(format!("{name}.{seconds}.{attempt}"));
        match renameat_with(CWD, path, CWD, &target, RenameFlags::NOREPLACE) {
            Ok(()) => {
                sync_folder(folder(path))?;
                return sync_folder(into);
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(named("quarantine", path, error.into())),
        }
    }
    let full = io::Error::other("no free name in the quarantine");
    Err(named("quarantine", path, full))
}

/// Removes what writers that were killed left in `folder`, and returns the paths of what is a record or a
/// folder, sorted.
///
/// # Errors
/// Those of reading the folder.
pub fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if path.extension() == Some(OsStr::new(TEMPORARY)) && entry.file_type()?.is_file() {
            std::fs::remove_file(path)?;
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Makes the entries of `folder` durable.
///
/// # Errors
/// As `open(2)` and `fsync(2)`.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let payload = serde_json::to_vec(value)?;
    let sum = crc32fast::hash(&payload);
    let mut bytes = format!("{MAGIC} {VERSION} {sum:08x} {}\n", payload.len()).into_bytes();
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let end = bytes.iter().take(64).position(|&b| b == b'\n');
    let end = end.ok_or("no header")?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| "no header")?;
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err("no header".into());
    }
    let version = words.next().and_then(|word| word.parse::<u32>().ok());
    if version != Some(VERSION) {
        return Err("written by another version".into());
    }
    let sum = words
        .next()
        .and_then(|word| u32::from_str_radix(word, 16).ok());
    let length = words.next().and_then(|word| word.parse::<usize>().ok());
    let payload = &bytes[end + 1..];
    if length != Some(payload.len()) {
        return Err("its length is not the one written down".into());
    }
    if sum != Some(crc32fast::hash(payload)) {
        return Err("its checksum does not match".into());
    }
    serde_json::from_slice(payload).map_err(|e| format!("unknown content: {e}"))
}

fn temporary_for(path: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path without a file name"))?
        .to_owned();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{number}.{TEMPORARY}", std::process::id()));
    Ok(path.with_file_name(name))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn damaged(path: &Path, what: impl Into<String>) -> ReadError {
    let (path, what) = (path.to_owned(), what.into());
    ReadError::Damaged { path, what }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// An error with the operation and its object named.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
struct Named {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The same kind of error, with the operation and its object named.
fn named(what: &'static str, path: &Path, source: io::Error) -> io::Error {
    let path = path.to_owned();
    io::Error::new(source.kind(), Named { what, path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Fact {
        name: String,
        number: u64,
    }

    fn fact() -> Fact {
        let name = "pod\n\0 ünï".into();
        Fact { name, number: 7 }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fact");
        assert!(read::<Fact>(&path).unwrap().is_none());
        write(&path, &fact(), Durability::Now).unwrap();
        assert_eq!(read::<Fact>(&path).unwrap(), Some(fact()));
        let other = Fact {
            number: 8,
            ..fact()
        };
        let syncer = Syncer::start().unwrap();
        write(&path, &other, Durability::Soon(&syncer)).unwrap();
        syncer.flush();
        assert_eq!(read::<Fact>(&path).unwrap(), Some(other));
        remove(&path, Durability::Now).unwrap();
        remove(&path, Durability::Soon(&syncer)).unwrap();
        assert!(read::<Fact>(&path).unwrap().is_none());
        assert_eq!(entries(folder.path()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_lands_last_is_the_latest() {
        let (turns, now, landed) = (Turns::default(), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        now.fetch_add(1, Ordering::SeqCst);
                        let latest = || now.load(Ordering::SeqCst);
                        let written = turns.write(latest, |number| {
                            std::thread::sleep(std::time::Duration::from_micros(number % 7 * 50));
                            landed.store(*number, Ordering::SeqCst);
                            Ok::<(), io::Error>(())
                        });
                        written.unwrap();
                    }
                });
            }
        });
        assert_eq!(landed.into_inner(), 160);
        assert!(!turns.is_behind());
        turns.write(|| (), |()| Err(())).unwrap_err();
        assert!(turns.is_behind());
        turns.write(|| (), |()| Ok::<_, ()>(())).unwrap();
        assert!(!turns.is_behind());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fact");
        let whole = encode(&fact()).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            // The case of a hex digit carries nothing.
            match read::<Fact>(&path) {
                Err(ReadError::Damaged { .. }) => {}
                Ok(Some(same)) if bytes.eq_ignore_ascii_case(&whole) => assert_eq!(same, fact()),
                other => panic!("bit {bit}: {other:?}"),
            }
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(
                read::<Fact>(&path),
                Err(ReadError::Damaged { .. })
            ));
        }
    }

    #[test]
    fn what_is_no_regular_file_is_damage_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(
            read::<Fact>(&path),
            Err(ReadError::Damaged { .. })
        ));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert!(matches!(
            read::<Fact>(&link),
            Err(ReadError::Damaged { .. })
        ));
        assert!(matches!(
            read::<Fact>(folder.path()),
            Err(ReadError::Damaged { .. })
        ));
    }

    #[test]
    fn a_quarantined_record_is_kept_beside_earlier_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fact");
        let into = folder.path().join("quarantine");
        for number in 0..3 {
            std::fs::write(&path, format!("garbage {number}")).unwrap();
            quarantine(&path, &into).unwrap();
            assert!(!path.exists());
        }
        let mut kept: Vec<_> = std::fs::read_dir(&into)
            .unwrap()
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, ["garbage 0", "garbage 1", "garbage 2"]);
    }

    #[test]
    fn leftovers_of_killed_writers_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fact");
        write(&path, &fact(), Durability::Now).unwrap();
        std::fs::write(temporary_for(&path).unwrap(), "half").unwrap();
        assert_eq!(entries(folder.path()).unwrap(), [path]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_error_names_the_path_and_leaves_nothing() {
        let path = Path::new("/proc/carpel/fact");
        let error = write(path, &fact(), Durability::Now).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("write record /proc/carpel/fact: ")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode::<Fact>(&bytes);
        }
    }
}
