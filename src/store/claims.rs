//! Who makes which layer, and that it is not collected meanwhile.
//!
//! ```text
//! share, claim ─▶ Claims: held ─missing─▶ unpack ─▶ Staged ─commit─▶ there
//!                           └─made by another─▶ there, or taken over when that other gives up
//! ```
//!
//! What must always hold: a layer has one maker at a time. Nobody waits for a layer while it holds back one that the
//! other needs: whoever waits before it makes anything holds nothing yet, and whoever makes commits from the
//! bottom, as soon as what is below is there. So no two wait for each other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::blobs::Digest;
use super::layers::SKELETON;
use super::layers::{LayerId, LayerRecord, LayerStore, State, make_folder};
use super::record::{self, Durability};
use super::remove_tree::remove_tree;
use super::unpack::{self, Expected, Limits, Lower, Tree, UnpackError, Unpacked};
use crate::failpoint;

/// Layers that stay as they are while this lives: none of them is collected, and those missing are its to make.
#[derive(Debug)]
pub struct Claims {
    store: Arc<LayerStore>,
    held: BTreeSet<LayerId>,
    /// Those that are this one's to make. Until they are committed or this is dropped, others who want them wait.
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

type Failed = (PathBuf, io::Error);

impl LayerStore {
    /// Claims the layers, waiting first until nobody makes any of them. `proceed` is asked while waiting.
    ///
    /// # Errors
    /// [`UnpackError::Cancelled`].
    pub fn claim(
        self: &Arc<Self>,
        layers: impl IntoIterator<Item = LayerId>,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Claims, UnpackError> {
        let wanted: BTreeSet<LayerId> = layers.into_iter().collect();
        let mut state = self.lock();
        while wanted.iter().any(|id| state.making.contains(id)) {
            let second = Duration::from_secs(1);
            let waited = self.released.wait_timeout(state, second);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !proceed() {
                return Err(UnpackError::Cancelled);
            }
        }
        Ok(self.begin(&mut state, wanted))
    }

    /// Claims the layers. Those that somebody else makes are left to him, see [`Claims::take`].
    #[must_use]
    pub fn share(self: &Arc<Self>, layers: impl IntoIterator<Item = LayerId>) -> Claims {
        let mut state = self.lock();
        self.begin(&mut state, layers.into_iter().collect())
    }

    fn begin(self: &Arc<Self>, state: &mut State, held: BTreeSet<LayerId>) -> Claims {
        for &id in &held {
            *state.claims.entry(id).or_default() += 1;
            state.fresh.remove(&id);
        }
        let missing = free(state, &held);
        Claims {
            store: Arc::clone(self),
            held,
            missing,
            made: Vec::new(),
        }
    }

    /// Unpacks a layer beside the store's, checking both digests. May be called from several threads at once.
    ///
    /// # Errors
    /// [`UnpackError`]; nothing is left behind then.
    pub fn unpack(
        &self,
        id: LayerId,
        packed: impl Read + Send,
        expected: Expected,
        limits: &Limits,
        proceed: &(dyn Fn() -> bool + Sync),
    ) -> Result<Staged, UnpackError> {
        let (folder, tree) = self.stage(id)?;
        let path = folder.0.join(SKELETON);
        let write = |source| UnpackError::Write {
            path: path.display().to_string(),
            source,
        };
        let skeleton = File::create_new(&path).map_err(write)?;
        let unpacker = &self.unpacker;
        let unpacked = unpacker.unpack(packed, expected, &tree, skeleton, limits, proceed)?;
        if !unpacked.recreatable {
            std::fs::remove_file(&path).map_err(write)?;
        }
        Ok(Staged {
            id,
            folder,
            unpacked,
        })
    }

    /// Writes one file as a layer beside the store's, checking its digest. Its name is a checked one. May be called from
    /// several threads at once.
    ///
    /// # Errors
    /// [`UnpackError`]; nothing is left behind then.
    pub fn place_file(
        &self,
        name: &str,
        content: impl Read,
        digest: Digest,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Staged, UnpackError> {
        let id = LayerId::of_file(name, digest);
        let (folder, tree) = self.stage(id)?;
        let unpacked = unpack::single(&tree, name, content, digest, proceed)?;
        Ok(Staged {
            id,
            folder,
            unpacked,
        })
    }

    /// Makes the folder that a layer is made in.
    fn stage(&self, id: LayerId) -> Result<(Temporary, Tree), UnpackError> {
        let name = format!("layer-{}-{:016x}", id.0.hex(), rand::random::<u64>());
        let path = self.temporary.join(name);
        let write = |source| UnpackError::Write {
            path: path.display().to_string(),
            source,
        };
        make_folder(&path).map_err(write)?;
        let folder = Temporary(path.clone());
        make_folder(&path.join("fs")).map_err(write)?;
        let tree = Tree::open(&path.join("fs")).map_err(write)?;
        Ok((folder, tree))
    }
}

/// Those that neither are there nor are being made: now they are the caller's to make.
fn free(state: &mut State, wanted: &BTreeSet<LayerId>) -> BTreeSet<LayerId> {
    let mut free = BTreeSet::new();
    for &id in wanted {
        if !state.layers.contains_key(&id) && state.making.insert(id) {
            free.insert(id);
        }
    }
    free
}

impl Staged {
    /// The layer that it will be.
    #[must_use]
    pub fn id(&self) -> LayerId {
        self.id
    }
}

impl Claims {
    /// The layers that are this one's to make.
    #[must_use]
    pub fn missing(&self) -> &BTreeSet<LayerId> {
        &self.missing
    }

    /// Takes those over that others wanted to make and did not. Returns them.
    pub fn take(&mut self) -> BTreeSet<LayerId> {
        let taken = free(&mut self.store.lock(), &self.held);
        self.missing.extend(&taken);
        taken
    }

    /// Whether all layers are there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let state = self.store.lock();
        self.held.iter().all(|id| state.layers.contains_key(id))
    }

    /// Tells whenever a layer was made or given up.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.store.changed.subscribe()
    }

    /// Makes the staged layers the store's, and gives those back that lie upon one that is not there yet. `stacks`: all
    /// stacks that they are part of, bottom first.
    ///
    /// # Errors
    /// Those of the file system. Then none of the staged layers is kept.
    pub fn commit(
        &mut self,
        staged: Vec<Staged>,
        stacks: &[Vec<LayerId>],
        proceed: &dyn Fn() -> bool,
    ) -> Result<Vec<Staged>, UnpackError> {
        let mut ready: HashMap<LayerId, Staged> = staged.into_iter().map(|s| (s.id, s)).collect();
        let early = self.early(&ready, stacks);
        let early = early.iter().filter_map(|id| ready.remove(id)).collect();
        if ready.is_empty() {
            return Ok(early);
        }
        self.complete(&ready, stacks, proceed)?;
        let result = self.settle(ready);
        if result.is_err() {
            self.withdraw();
        }
        result.map_err(|(path, source)| UnpackError::Write {
            path: path.display().to_string(),
            source,
        })?;
        Ok(early)
    }

    /// The staged layers that something below is missing of.
    fn early(&self, staged: &HashMap<LayerId, Staged>, stacks: &[Vec<LayerId>]) -> Vec<LayerId> {
        let state = self.store.lock();
        let there = |id: &&LayerId| staged.contains_key(id) || state.layers.contains_key(id);
        let above = stacks.iter().flat_map(|stack| {
            let standing = stack.iter().take_while(there).count();
            &stack[standing..]
        });
        above.copied().collect()
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
            // What is above the topmost has no part in it, and may not be there.
            let top = stack.iter().rposition(|id| staged.contains_key(id));
            let mut lowers = Vec::new();
            for &id in &stack[..top.map_or(0, |top| top + 1)] {
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
    fn settle(&mut self, staged: HashMap<LayerId, Staged>) -> Result<(), Failed> {
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
        let synced =
            File::open(&self.store.temporary).and_then(|folder| Ok(rustix::fs::syncfs(&folder)?));
        synced.map_err(|e| (self.store.temporary.clone(), e))?;
        let hit = |name| {
            failpoint::hit(name).map_err(|e| (self.store.folder.clone(), io::Error::other(e)))
        };
        hit("pull:synced")?;
        for (id, layer) in &staged {
            let path = self.store.folder.join(id.0.hex());
            self.store.place(&layer.folder.0, &path)?;
            self.made.push(*id);
            hit("pull:named")?;
        }
        sync(&self.store.folder)?;
        let mut state = self.store.lock();
        for (id, record) in records {
            state.layers.insert(id, record);
            state.making.remove(&id);
            self.missing.remove(&id);
            if state.claims.get(&id) == Some(&1) {
                state.fresh.insert(id);
            }
        }
        drop(state);
        self.store.tell();
        Ok(())
    }

    /// Takes the layers that were committed away again, because what they were made for failed. Those that somebody
    /// else has claimed since stay.
    pub fn withdraw(&mut self) {
        let mut removed = Vec::new();
        let mut state = self.store.lock();
        for id in self.made.drain(..) {
            if state.layers.contains_key(&id) && !state.fresh.remove(&id) {
                continue;
            }
            match self.store.set_aside(&mut state, id) {
                Ok(path) => removed.push(Temporary(path)),
                Err(error) => tracing::warn!(layer = %id, %error, "withdraw layer"),
            }
        }
        drop(state);
    }
}

impl LayerStore {
    /// Gives a layer its name. What the store could not take for this layer at its start, but is in its place, is set aside.
    fn place(&self, made: &Path, path: &Path) -> Result<(), Failed> {
        use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
        let named = match std::fs::rename(made, path) {
            Err(error)
                if matches!(
                    error.kind(),
                    AlreadyExists | DirectoryNotEmpty | NotADirectory
                ) =>
            {
                tracing::warn!(path = %path.display(), "something in a layer's place is put into quarantine");
                record::quarantine(path, &self.quarantine)
                    .and_then(|()| std::fs::rename(made, path))
            }
            named => named,
        };
        named.map_err(|error| (path.to_owned(), error))
    }

    /// Wakes all who wait for a layer.
    fn tell(&self) {
        self.released.notify_all();
        self.changed.send_replace(());
    }
}

fn sync(folder: &Path) -> Result<(), Failed> {
    record::sync_folder(folder).map_err(|e| (folder.to_owned(), e))
}

impl Drop for Claims {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        for id in &self.missing {
            state.making.remove(id);
        }
        for id in &self.made {
            state.fresh.remove(id);
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
        self.store.tell();
    }
}
