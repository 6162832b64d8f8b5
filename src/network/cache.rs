//! What was done for each sandbox, written down before it is done, so that DEL always has the configuration
//! and the result that ADD had.
//!
//! One file per sandbox, `<id>.json`: a line with a checksum, then JSON; replaced by an atomic rename, never
//! synced on the request's path. A file that cannot be read is kept as `<id>.json.corrupt` too, before another
//! takes its place: until then the sandbox still has an entry, if a damaged one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conf::NetworkConf;
use crate::ids::SandboxId;

/// The most bytes of one file: a configuration, a result and a pod's annotations.
const MAX_FILE: u64 = 8 << 20;
const MAGIC: &str = "carpel-cni-1";
const SUFFIX: &str = ".json";

/// What ADD was called with and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub sandbox: SandboxId,
    /// The network as [`NetworkConf::to_value`] gives it.
    config: Value,
    pub netns: PathBuf,
    pub interface: String,
    /// CNI_ARGS.
    pub args: String,
    /// Values of capabilities, unfiltered.
    pub capabilities: Map<String, Value>,
    /// The last result that is known, in the network's version.
    pub result: Option<Map<String, Value>>,
    /// How many plugins were started, if ADD ended early.
    pub started: Option<usize>,
}

impl Entry {
    /// An entry before the first plugin is started.
    pub(super) fn new(sandbox: SandboxId, network: &NetworkConf, interface: &str) -> Self {
        Self {
            sandbox,
            config: network.to_value(),
            netns: PathBuf::new(),
            interface: interface.to_owned(),
            args: String::new(),
            capabilities: Map::new(),
            result: None,
            started: None,
        }
    }

    /// The network as it was.
    pub(super) fn network(&self) -> Result<NetworkConf, super::conf::Invalid> {
        NetworkConf::from_value(self.config.clone())
    }
}

/// What a look into the cache finds.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Entry(Box<Entry>),
    /// The file is damaged.
    Damaged(String),
}

/// The folder of entries.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the folder, making it (0700) if need be, and sweeps out what an interrupted write left.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".")
                && name.as_encoded_bytes().ends_with(b".tmp")
            {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn store(&self, entry: &Entry) -> io::Result<()> {
        let json = serde_json::to_vec(entry)?;
        let head = format!("{MAGIC} {:08x}\n", crc32fast::hash(&json));
        write_atomically(
            &self.dir,
            &file_name(&entry.sandbox),
            &[head.as_bytes(), &json],
        )
    }

    /// # Errors
    /// As `read(2)`; damage is no error but [`Found::Damaged`].
    pub(super) fn load(&self, sandbox: &SandboxId) -> io::Result<Found> {
        let path = self.dir.join(file_name(sandbox));
        let bytes = match read_bounded(&path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(Found::Damaged(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        match parse(&bytes) {
            Ok(entry) if entry.sandbox == *sandbox => Ok(Found::Entry(Box::new(entry))),
            Ok(entry) => Ok(Found::Damaged(format!(
                "it is of sandbox {}",
                entry.sandbox
            ))),
            Err(why) => Ok(Found::Damaged(why)),
        }
    }

    pub(super) fn remove(&self, sandbox: &SandboxId) -> io::Result<()> {
        match fs::remove_file(self.dir.join(file_name(sandbox))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The sandboxes that have an entry.
    pub(super) fn list(&self) -> io::Result<Vec<SandboxId>> {
        let mut sandboxes = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            sandboxes.extend(id.and_then(|id| id.parse::<SandboxId>().ok()));
        }
        sandboxes.sort_unstable();
        Ok(sandboxes)
    }

    /// Replaces a damaged entry; the damaged file stays beside it, at the path that comes back.
    pub(super) fn replace(&self, entry: &Entry) -> io::Result<PathBuf> {
        let path = self.dir.join(file_name(&entry.sandbox));
        let mut aside = path.clone().into_os_string();
        aside.push(".corrupt");
        let aside = PathBuf::from(aside);
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::hard_link(&path, &aside)?,
        }
        self.store(entry)?;
        Ok(aside)
    }
}

fn file_name(sandbox: &SandboxId) -> String {
    format!("{sandbox}{SUFFIX}")
}

fn parse(bytes: &[u8]) -> Result<Entry, String> {
    let end = bytes
        .iter()
        .position(|b| *b == b'\n')
        .ok_or("it has no first line")?;
    let (head, json) = (&bytes[..end], &bytes[end + 1..]);
    let sum = format!("{MAGIC} {:08x}", crc32fast::hash(json));
    if head != sum.as_bytes() {
        return Err("its checksum does not match".into());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

/// Writes a file of `dir` whole or not at all.
pub(super) fn write_atomically(dir: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.tmp"));
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        fs::rename(&temporary, dir.join(name))
    };
    write().inspect_err(|_: &io::Error| {
        // The error that is told is the first one; a leftover is swept out at the next start.
        let _ = fs::remove_file(&temporary);
    })
}

/// Reads a regular file. A FIFO or a device is not waited for.
///
/// # Errors
/// As `open(2)`; `InvalidData` if it is no regular file or longer than `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if !file.metadata()?.is_file() {
        return Err(invalid("not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(invalid(format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let network =
            NetworkConf::parse(br#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#).unwrap();
        Entry::new(SandboxId::random(), &network, "eth0")
    }

    #[test]
    fn an_entry_survives() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("a/b")).unwrap();
        let mut entry = entry();
        cache.store(&entry).unwrap();
        entry.result = Some(Map::from_iter([("ips".to_owned(), Value::Null)]));
        cache.store(&entry).unwrap();
        assert_eq!(cache.list().unwrap(), [entry.sandbox]);
        match cache.load(&entry.sandbox).unwrap() {
            Found::Entry(loaded) => assert_eq!(*loaded, entry),
            other => panic!("{other:?}"),
        }
        cache.remove(&entry.sandbox).unwrap();
        cache.remove(&entry.sandbox).unwrap();
        assert!(matches!(
            cache.load(&entry.sandbox).unwrap(),
            Found::Nothing
        ));
        assert_eq!(fs::read_dir(cache.dir()).unwrap().count(), 0);
    }

    #[test]
    fn every_damage_is_found_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().to_owned()).unwrap();
        let entry = entry();
        let path = dir.path().join(file_name(&entry.sandbox));
        cache.store(&entry).unwrap();
        let whole = fs::read(&path).unwrap();
        let mut damages: Vec<Vec<u8>> = (0..whole.len())
            .step_by(7)
            .map(|n| whole[..n].to_vec())
            .collect();
        damages.extend((0..whole.len()).step_by(5).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        }));
        damages.push(vec![0; whole.len()]);
        for bytes in damages {
            fs::write(&path, &bytes).unwrap();
            for _ in 0..2 {
                let found = cache.load(&entry.sandbox).unwrap();
                assert!(matches!(found, Found::Damaged(_)), "{found:?}");
            }
            assert_eq!(cache.list().unwrap(), [entry.sandbox]);
            let aside = cache.replace(&entry).unwrap();
            assert_eq!(fs::read(aside).unwrap(), bytes);
            let found = cache.load(&entry.sandbox).unwrap();
            assert!(matches!(found, Found::Entry(_)), "{found:?}");
        }
    }

    #[test]
    fn an_entry_under_another_name_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().to_owned()).unwrap();
        let (entry, other) = (entry(), SandboxId::random());
        cache.store(&entry).unwrap();
        let from = dir.path().join(file_name(&entry.sandbox));
        fs::rename(from, dir.path().join(file_name(&other))).unwrap();
        assert!(matches!(cache.load(&other).unwrap(), Found::Damaged(_)));
    }

    #[test]
    fn leftovers_of_writes_are_swept_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".x.json.tmp"), "").unwrap();
        Cache::open(dir.path().to_owned()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
