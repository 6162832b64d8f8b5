//! Durable records: one fact, one file.
//!
//! ```text
//! carpel-record 1 crc32=9ae0daaf length=123\n{…JSON…}
//! ```
//!
//! A record is written beside its place and renamed over it, so a reader sees the old one or the new one
//! whole. A file that is torn or damaged nevertheless (a power loss before it was synced) is told from a
//! good one by its checksum, and put into quarantine instead of being deleted.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

const MAGIC: &str = "carpel-record 1";
/// Far above any record that we write; what is longer is not one.
const MAX_LENGTH: u64 = 64 << 20;
/// How long writes are gathered before they are synced together.
const BATCH: Duration = Duration::from_millis(500);

/// When a record must survive a power loss.
#[derive(Clone, Copy)]
pub enum Durability<'a> {
    /// Before the write returns.
    Now,
    /// Within a second, off the caller's path.
    Soon(&'a Syncer),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("record {path}: {what}")]
    Damaged { path: PathBuf, what: String },
    #[error("read record {path}")]
    Io { path: PathBuf, source: io::Error },
}

/// Writes `value` as the record at `path`.
///
/// # Errors
/// As `write(2)`, `rename(2)`: the old record, if any, is as it was.
pub fn write<T: Serialize>(path: &Path, value: &T, durability: Durability<'_>) -> io::Result<()> {
    let payload = serde_json::to_vec(value)?;
    let header = format!(
        "{MAGIC} crc32={:08x} length={}\n",
        crc32fast::hash(&payload),
        payload.len()
    );
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(header.as_bytes())?;
        file.write_all(&payload)?;
        if matches!(durability, Durability::Now) {
            file.sync_all()
        } else {
            Ok(())
        }
    });
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    match durability {
        Durability::Now => sync_parent(path),
        Durability::Soon(syncer) => {
            syncer.ask(path);
            Ok(())
        }
    }
}

/// Reads the record at `path`; `None` if there is none.
///
/// # Errors
/// [`ReadError::Damaged`] if it is not what was written: see [`quarantine`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadError> {
    let io_error = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    let damaged = |what: &str| ReadError::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let mut bytes = Vec::new();
    let mut bounded = io::Read::take(file, MAX_LENGTH);
    io::Read::read_to_end(&mut bounded, &mut bytes).map_err(io_error)?;
    let payload = checked(&bytes).ok_or_else(|| damaged("checksum or length is wrong"))?;
    serde_json::from_slice(payload)
        .map(Some)
        .map_err(|error| damaged(&error.to_string()))
}

fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header = std::str::from_utf8(&bytes[..end]).ok()?;
    let payload = &bytes[end + 1..];
    let mut fields = header.strip_prefix(MAGIC)?.split_whitespace();
    let sum = u32::from_str_radix(fields.next()?.strip_prefix("crc32=")?, 16).ok()?;
    let length: usize = fields.next()?.strip_prefix("length=")?.parse().ok()?;
    (payload.len() == length && crc32fast::hash(payload) == sum).then_some(payload)
}

/// Moves a damaged record out of the way, to `folder`, named after where it was.
///
/// # Errors
/// As `rename(2)`.
pub fn quarantine(path: &Path, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let parts: Vec<_> = path
        .iter()
        .rev()
        .take(3)
        .map(|part| part.to_string_lossy())
        .collect();
    let name = parts.into_iter().rev().collect::<Vec<_>>().join("-");
    fs::rename(path, folder.join(name))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Syncs records in batches, in a thread of its own. It ends when the last handle is dropped.
#[derive(Clone)]
pub struct Syncer(mpsc::Sender<PathBuf>);

impl Syncer {
    /// Starts the thread.
    ///
    /// # Errors
    /// As `pthread_create(3)`.
    pub fn start() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        std::thread::Builder::new()
            .name("record-sync".to_owned())
            .spawn(move || run(&receiver))?;
        Ok(Self(sender))
    }

    fn ask(&self, path: &Path) {
        // The thread lives as long as this sender.
        let _ = self.0.send(path.to_owned());
    }
}

fn run(receiver: &mpsc::Receiver<PathBuf>) {
    while let Ok(first) = receiver.recv() {
        std::thread::sleep(BATCH);
        let paths: HashSet<PathBuf> = std::iter::once(first).chain(receiver.try_iter()).collect();
        for path in paths {
            match File::open(&path)
                .and_then(|file| file.sync_all())
                .and_then(|()| sync_parent(&path))
            {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "record is not synced")
                }
                Ok(()) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(read::<String>(&path).unwrap(), None);
        let syncer = Syncer::start().unwrap();
        for (value, durability) in [("a", Durability::Now), ("b\n", Durability::Soon(&syncer))] {
            write(&path, &value, durability).unwrap();
            assert_eq!(read::<String>(&path).unwrap().as_deref(), Some(value));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_is_seen_and_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write(&path, &vec!["x"; 50], Durability::Now).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x11;
            fs::write(&path, &bad).unwrap();
            assert!(
                matches!(read::<Vec<String>>(&path), Err(ReadError::Damaged { .. })),
                "byte {at}"
            );
            fs::write(&path, &good[..at]).unwrap();
            assert!(
                matches!(read::<Vec<String>>(&path), Err(ReadError::Damaged { .. })),
                "length {at}"
            );
        }
        let quarantine_dir = dir.path().join("quarantine");
        quarantine(&path, &quarantine_dir).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(quarantine_dir).unwrap().count(), 1);
    }
}
