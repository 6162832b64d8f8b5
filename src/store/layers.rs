//! The layers on disk: each unpacked once, shared by all images and containers that have it.
//!
//! ```text
//! claim ─▶ tmp/layer-…/{fs,record,skeleton} ─both digests right─▶ synced ─rename─▶ layers/<chain id>/{fs,record} ─▶ collected
//! ```
//!
//! What must always hold: a folder in `layers/` is whole and on disk, because it got its name last; what a killed daemon
//! leaves lies in `tmp/`. A layer that is claimed ([`Claims`]) is neither unpacked a second time nor collected.
//!
//! A layer is named by its chain id (the digest over its diff id and those below it), because the metadata of folders
//! that it does not describe are those of the layers below.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::blobs::Digest;
use super::record::{self, Durability, ReadError};
use super::unpack::{Tree, Unpacker};

pub use super::claims::{Claims, Staged};

/// In a layer's folder: what its tar stream had beside the content of files.
pub(super) const SKELETON: &str = "skeleton";

/// A layer together with all that is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(pub(super) Digest);

impl LayerId {
    /// The ids of a stack of layers, given their diff ids, bottom first.
    #[must_use]
    pub fn chain(diff_ids: &[Digest]) -> Vec<Self> {
        let mut chain: Vec<Self> = Vec::new();
        for diff in diff_ids {
            let id = match chain.last() {
                None => *diff,
                Some(Self(below)) => Digest::of(format!("{below} {diff}").as_bytes()),
            };
            chain.push(Self(id));
        }
        chain
    }

    /// The id of one file that is a layer by itself, wherever it lies in a stack.
    #[must_use]
    pub fn of_file(name: &str, digest: Digest) -> Self {
        // No chain has such a text.
        Self(Digest::of(format!("file {digest} {name}").as_bytes()))
    }
}

impl std::fmt::Display for LayerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What is written down of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// It hides what is below it.
    pub(super) opaque: bool,
}

/// How much of the disk is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// All layers.
#[derive(Debug)]
pub struct LayerStore {
    pub(super) folder: PathBuf,
    pub(super) temporary: PathBuf,
    /// Where damaged layers go.
    pub(super) quarantine: PathBuf,
    pub(super) unpacker: Unpacker,
    state: Mutex<State>,
    /// A layer was made, or given up: for those who wait on a thread, and for those who wait in a task.
    pub(super) released: Condvar,
    pub(super) changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) layers: HashMap<LayerId, LayerRecord>,
    pub(super) making: HashSet<LayerId>,
    pub(super) claims: HashMap<LayerId, usize>,
    /// Committed by claims that live, and claimed by nobody else since.
    pub(super) fresh: HashSet<LayerId>,
}

impl State {
    pub(super) fn is_claimed(&self, id: LayerId) -> bool {
        self.claims.contains_key(&id)
    }
}

impl LayerStore {
    /// Loads the layers in `folder`. A folder without a layer in it goes to `quarantine`. A damaged record goes to
    /// `quarantine` and is made anew from what is there; the layer itself stays, for a container may be running on it.
    ///
    /// # Errors
    /// Those of the file system; too few descriptors or too little memory to look at a layer.
    pub fn open(
        folder: &Path,
        temporary: &Path,
        quarantine: &Path,
        unpacker: Unpacker,
    ) -> io::Result<Self> {
        let mut state = State::default();
        for path in record::entries(folder)? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(id) = name.and_then(|name| Digest::from_hex(name).ok()) else {
                tracing::warn!(path = %path.display(), "not a layer");
                continue;
            };
            match load(&path, quarantine) {
                Ok(record) => drop(state.layers.insert(LayerId(id), record)),
                Err(error) if is_damage(&error) => {
                    tracing::warn!(path = %path.display(), %error, "layer is put into quarantine");
                    record::quarantine(&path, quarantine)?;
                }
                // A machine that is short of something says nothing of the layer: without it, images would be lost.
                Err(error) if is_shortage(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "layer cannot be read");
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            temporary: temporary.to_owned(),
            quarantine: quarantine.to_owned(),
            unpacker,
            state: Mutex::new(state),
            released: Condvar::new(),
            changed: watch::Sender::new(()),
        })
    }

    /// Where the files of a layer are.
    #[must_use]
    pub fn path(&self, id: LayerId) -> PathBuf {
        self.folder.join(id.0.hex()).join("fs")
    }

    /// The folders of a stack of layers, bottom first. Layers that one above hides altogether are left out.
    #[must_use]
    pub fn paths(&self, stack: &[LayerId]) -> Vec<PathBuf> {
        let state = self.lock();
        let is_opaque = |id: &LayerId| state.layers.get(id).is_some_and(|layer| layer.opaque);
        let lowest = stack.iter().rposition(is_opaque).unwrap_or(0);
        stack[lowest..].iter().map(|&id| self.path(id)).collect()
    }

    /// Whether all layers of the stack are there.
    #[must_use]
    pub fn has(&self, stack: &[LayerId]) -> bool {
        let state = self.lock();
        stack.iter().all(|id| state.layers.contains_key(id))
    }

    /// What a stack of layers takes.
    #[must_use]
    pub fn usage_of<'a>(&self, layers: impl IntoIterator<Item = &'a LayerId>) -> Usage {
        let state = self.lock();
        layers
            .into_iter()
            .filter_map(|id| state.layers.get(id))
            .collect()
    }

    /// What the layers take that are neither in `used` nor claimed.
    #[must_use]
    pub fn usage_without(&self, used: &HashSet<LayerId>) -> Usage {
        let state = self.lock();
        let is_unused = |id: &LayerId| !used.contains(id) && !state.is_claimed(*id);
        let unused = state.layers.iter().filter(|(id, _)| is_unused(id));
        unused.map(|(_, record)| record).collect()
    }

    /// What all layers take.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.lock().layers.values().collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> FromIterator<&'a LayerRecord> for Usage {
    fn from_iter<I: IntoIterator<Item = &'a LayerRecord>>(records: I) -> Self {
        let mut usage = Self::default();
        for record in records {
            usage.bytes += record.bytes;
            usage.inodes += record.inodes;
        }
        usage
    }
}

/// Makes a folder that only root may enter.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

/// Whether an error says that something is not what it was; and not that there is too little memory, or another disk.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotADirectory, NotFound};
    let link = rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP);
    link || matches!(error.kind(), InvalidData | NotADirectory | NotFound)
}

/// Whether an error says that this process or the machine has no more descriptors or memory.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

fn load(path: &Path, quarantine: &Path) -> io::Result<LayerRecord> {
    let tree = Tree::open(&path.join("fs"))?;
    let place = path.join("record");
    match record::read(&place) {
        Ok(Some(record)) => return Ok(record),
        Ok(None) => tracing::warn!(path = %place.display(), "record of a layer is missing"),
        Err(error @ ReadError::Damaged { .. }) => {
            tracing::warn!(%error, "record is put into quarantine and made anew");
            record::quarantine(&place, quarantine)?;
        }
        Err(ReadError::Io { source, .. }) => return Err(source),
    }
    let opaque = tree.is_opaque(b"")?;
    let record = LayerRecord {
        opaque,
        ..measure(&path.join("fs"))?
    };
    if let Err(error) = record::write(&place, &record, Durability::Now) {
        tracing::warn!(%error, "record of a layer is made anew at the next start");
    }
    Ok(record)
}

/// Counts what is in a layer. Takes as long as the layer is large, so it is done for damaged records only.
fn measure(path: &Path) -> io::Result<LayerRecord> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut found = LayerRecord {
        inodes: 1,
        ..LayerRecord::default()
    };
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let folder = rustix::fs::open(&path, flags, Mode::empty())?;
        for entry in rustix::fs::Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            found.inodes += 1;
            found.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                use std::os::unix::ffi::OsStrExt;
                todo.push(path.join(std::ffi::OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    Ok(found)
}
