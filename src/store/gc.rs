//! Removing layers that nothing uses any more.
//!
//! A layer is taken out of the store by one rename into the folder for temporary things, under the lock; deleting
//! its files takes longer and is done after. A daemon killed meanwhile deletes them at its next start.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use super::layers::{LayerId, LayerStore, State, Usage};
use super::remove_tree::remove_tree;

/// What a collection did.
#[derive(Debug, Default)]
pub struct Collected {
    pub layers: Vec<LayerId>,
    /// What is free again.
    pub freed: Usage,
    /// What could not be removed, each with its layer named. It is tried again at the next start.
    pub errors: Vec<String>,
}

/// Layers that are the store's no more but still on disk.
#[derive(Debug, Default)]
pub struct Detached {
    layers: Vec<(LayerId, Usage, PathBuf)>,
    errors: Vec<String>,
}

impl LayerStore {
    /// Takes all layers but those `in_use` and those claimed out of the store.
    pub fn detach_unused(&self, in_use: &HashSet<LayerId>) -> Detached {
        let mut detached = Detached::default();
        let mut state = self.lock();
        let unused: Vec<LayerId> = (state.layers.keys())
            .filter(|&&id| !in_use.contains(&id) && !state.is_claimed(id))
            .copied()
            .collect();
        for id in unused {
            let usage = state.layers.get(&id).into_iter().collect();
            match self.set_aside(&mut state, id) {
                Ok(path) => detached.layers.push((id, usage, path)),
                Err(error) => detached.errors.push(format!("remove layer {id}: {error}")),
            }
        }
        detached
    }

    /// Takes a layer out of the store; what is at the path returned is to be deleted.
    pub(super) fn set_aside(&self, state: &mut State, id: LayerId) -> io::Result<PathBuf> {
        let name = format!("removed-{}-{:016x}", id.0.hex(), rand::random::<u64>());
        let path = self.temporary.join(name);
        std::fs::rename(self.folder.join(id.0.hex()), &path)?;
        state.layers.remove(&id);
        Ok(path)
    }
}

impl Detached {
    /// Deletes the files. Takes as long as there are many.
    #[must_use]
    pub fn delete(self) -> Collected {
        let mut collected = Collected {
            errors: self.errors,
            ..Collected::default()
        };
        for (id, usage, path) in self.layers {
            match remove_tree(&path) {
                Ok(()) => {
                    collected.layers.push(id);
                    collected.freed.bytes += usage.bytes;
                    collected.freed.inodes += usage.inodes;
                }
                Err(error) => collected.errors.push(format!("remove layer {id}: {error}")),
            }
        }
        collected
    }
}
