//! The layers on disk: each unpacked once, shared by all images and containers that have it.
//!
//! ```text
//! claim ─▶ tmp/layer-…/{fs,record} ─both digests right─▶ synced ─rename─▶ layers/<chain id>/{fs,record} ─▶ collected
//! ```
//!
//! What must always hold: a folder in `layers/` is whole and on disk, because it got its name last; what a killed daemon
//! leaves lies in `tmp/`. A layer that is claimed is neither unpacked a second time nor collected.
//!
//! A layer is named by its chain id (the digest over its diff id and those below it), because the metadata of folders
//! that it does not describe are those of the layers below.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::blobs::{Digest, Section};
use super::record::{self, Durability, ReadError};
use super::remove_tree::remove_tree;
use super::unpack::{self, Expected, Limits, Lower, Tree, UnpackError, Unpacked};

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
    opaque: bool,
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
    state: Mutex<State>,
    /// A claim was given back.
    released: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) layers: HashMap<LayerId, LayerRecord>,
    making: HashSet<LayerId>,
    claims: HashMap<LayerId, usize>,
}

impl State {
    pub(super) fn is_claimed(&self, id: LayerId) -> bool {
        self.claims.contains_key(&id)
    }
}

impl LayerStore {
    /// Loads the layers in `folder`. A damaged record goes to `quarantine` and is made anew from what is there; the
    /// layer itself stays, for a container may be running on it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(folder: &Path, temporary: &Path, quarantine: &Path) -> io::Result<Self> {
        let mut state = State::default();
        for path in record::entries(folder)? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(id) = name.and_then(|name| Digest::from_hex(name).ok()) else {
                tracing::warn!(path = %path.display(), "not a layer");
                continue;
            };
            match load(&path, quarantine) {
                Ok(record) => drop(state.layers.insert(LayerId(id), record)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "layer cannot be read");
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            temporary: temporary.to_owned(),
            state: Mutex::new(state),
            released: Condvar::new(),
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

    /// What all layers take.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.lock().layers.values().collect()
    }

    /// Claims the layers, waiting for others that are unpacking some of them. `proceed` is asked while waiting.
    ///
    /// # Errors
    /// [`UnpackError::Cancelled`].
    pub fn claim(
        &self,
        layers: impl IntoIterator<Item = LayerId>,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Claims<'_>, UnpackError> {
        let mut claims = Claims {
            store: self,
            held: Vec::new(),
            missing: BTreeSet::new(),
            made: Vec::new(),
        };
        // One order for all, so that no two wait for each other.
        let sorted: BTreeSet<LayerId> = layers.into_iter().collect();
        let mut state = self.lock();
        for id in sorted {
            while state.making.contains(&id) {
                let second = Duration::from_secs(1);
                let waited = self.released.wait_timeout(state, second);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if !proceed() {
                    drop(state);
                    return Err(UnpackError::Cancelled);
                }
            }
            *state.claims.entry(id).or_default() += 1;
            claims.held.push(id);
            if !state.layers.contains_key(&id) {
                state.making.insert(id);
                claims.missing.insert(id);
            }
        }
        drop(state);
        Ok(claims)
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

/// Layers that stay as they are while this lives: none of them is collected, and those missing are its to make.
#[derive(Debug)]
pub struct Claims<'a> {
    store: &'a LayerStore,
    held: Vec<LayerId>,
    /// Those that were not there when they were claimed. Until this is dropped, others who want them wait.
    missing: BTreeSet<LayerId>,
    made: Vec<LayerId>,
}

/// A layer that is unpacked but not yet one of the store's. Dropping it removes it.
#[derive(Debug)]
pub struct Staged {
    id: LayerId,
    folder: Temporary,
    unpacked: Unpacked,
}

#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "remove what was unpacked in vain");
        }
    }
}

impl Claims<'_> {
    /// The layers that have to be unpacked.
    #[must_use]
    pub fn missing(&self) -> &BTreeSet<LayerId> {
        &self.missing
    }

    /// Unpacks one of the missing layers, checking both digests. May be called from several threads at once.
    ///
    /// # Errors
    /// [`UnpackError`]; nothing is left behind then.
    pub fn unpack(
        &self,
        id: LayerId,
        packed: &Section,
        expected: Expected,
        limits: &Limits,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Staged, UnpackError> {
        let name = format!("layer-{}-{:016x}", id.0.hex(), rand::random::<u64>());
        let path = self.store.temporary.join(name);
        let write = |source| UnpackError::Write {
            path: path.display().to_string(),
            source,
        };
        make_folder(&path).map_err(write)?;
        let folder = Temporary(path.clone());
        make_folder(&path.join("fs")).map_err(write)?;
        let tree = Tree::open(&path.join("fs")).map_err(write)?;
        let unpacked = unpack::unpack(packed.reader(), expected, &tree, limits, proceed)?;
        Ok(Staged {
            id,
            folder,
            unpacked,
        })
    }

    /// Makes the staged layers the store's. `stacks`: all stacks that they are part of, bottom first; every layer of them
    /// is claimed and, if missing, staged.
    ///
    /// # Errors
    /// Those of the file system. Then none of the staged layers is kept.
    pub fn commit(
        &mut self,
        staged: Vec<Staged>,
        stacks: &[Vec<LayerId>],
        proceed: &dyn Fn() -> bool,
    ) -> Result<(), UnpackError> {
        if staged.is_empty() {
            return Ok(());
        }
        let staged: HashMap<LayerId, Staged> = staged.into_iter().map(|s| (s.id, s)).collect();
        self.complete(&staged, stacks, proceed)?;
        let result = self.settle(staged);
        if result.is_err() {
            self.withdraw();
        }
        result.map_err(|(path, source)| UnpackError::Write {
            path: path.display().to_string(),
            source,
        })
    }

    /// Gives the folders that layers do not describe their metadata, from the bottom of each stack to its top.
    fn complete(
        &self,
        staged: &HashMap<LayerId, Staged>,
        stacks: &[Vec<LayerId>],
        proceed: &dyn Fn() -> bool,
    ) -> Result<(), UnpackError> {
        let mut done = HashSet::new();
        for stack in stacks {
            let mut lowers = Vec::new();
            for &id in stack {
                let (path, opaque) = match staged.get(&id) {
                    Some(layer) => (layer.folder.0.join("fs"), layer.unpacked.opaque),
                    None => {
                        let opaque = self.store.lock().layers.get(&id).is_some_and(|l| l.opaque);
                        (self.store.path(id), opaque)
                    }
                };
                let tree = Tree::open(&path).map_err(|source| UnpackError::Write {
                    path: path.display().to_string(),
                    source,
                })?;
                if let Some(layer) = staged.get(&id)
                    && done.insert(id)
                {
                    let implicit = &layer.unpacked.implicit;
                    unpack::complete(&tree, opaque, implicit, &lowers, proceed)?;
                }
                lowers.push(Lower { tree, opaque });
            }
        }
        Ok(())
    }

    /// Syncs the layers and gives them their names.
    fn settle(&mut self, staged: HashMap<LayerId, Staged>) -> Result<(), (PathBuf, io::Error)> {
        let mut records = HashMap::new();
        for (id, layer) in &staged {
            let record = LayerRecord {
                bytes: layer.unpacked.bytes,
                inodes: layer.unpacked.inodes + 1,
                opaque: layer.unpacked.opaque,
            };
            let path = layer.folder.0.join("record");
            record::write(&path, &record, Durability::Now).map_err(|e| (path, e))?;
            records.insert(*id, record);
        }
        // One call for thousands of files. It reports what could not be written back.
        let synced = std::fs::File::open(&self.store.temporary)
            .and_then(|folder| Ok(rustix::fs::syncfs(&folder)?));
        synced.map_err(|e| (self.store.temporary.clone(), e))?;
        for (id, layer) in &staged {
            let path = self.store.folder.join(id.0.hex());
            std::fs::rename(&layer.folder.0, &path).map_err(|e| (path, e))?;
            self.made.push(*id);
            self.store.lock().layers.insert(*id, records[id]);
        }
        record::sync_folder(&self.store.folder).map_err(|e| (self.store.folder.clone(), e))
    }

    /// Takes the layers that were committed away again, because what they were made for failed.
    pub fn withdraw(&mut self) {
        let mut removed = Vec::new();
        let mut state = self.store.lock();
        for id in self.made.drain(..) {
            match self.store.set_aside(&mut state, id) {
                Ok(path) => removed.push(Temporary(path)),
                Err(error) => tracing::warn!(layer = %id, %error, "withdraw layer"),
            }
        }
        drop(state);
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        for id in &self.missing {
            state.making.remove(id);
        }
        for id in &self.held {
            if let Some(count) = state.claims.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.claims.remove(id);
                }
            }
        }
        drop(state);
        self.store.released.notify_all();
    }
}

/// Makes a folder that only root may enter.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
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
    record::write(&place, &record, Durability::Now)?;
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
