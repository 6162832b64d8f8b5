//! Folders that a layer has something in but does not describe.
//!
//! overlayfs shows of merged folders the metadata of the topmost one. So such a folder gets those of the folder that it
//! would be merged with, or 0755 of root if there is none.

use std::collections::HashMap;
use std::io;

use super::tree::{Found, split};
use super::{Metadata, Tree, UnpackError};
use crate::store::unpack::pax::Time;

/// A layer below.
#[derive(Debug)]
pub struct Lower {
    pub tree: Tree,
    /// It hides what is below it.
    pub opaque: bool,
}

/// Folders looked up in layers below, at most: what a layer may cost.
const MOST_LOOKUPS: u64 = 10_000_000;

/// Gives the folders `implicit` of `tree` (parents first) their metadata. `lowers`: bottom first.
///
/// # Errors
/// Those of the file system; too many look-ups.
pub fn complete(
    tree: &Tree,
    opaque: bool,
    implicit: &[Vec<u8>],
    lowers: &[Lower],
    proceed: &dyn Fn() -> bool,
) -> Result<(), UnpackError> {
    let mut search = Search {
        tree,
        opaque,
        lowers,
        seen: HashMap::new(),
        lookups: 0,
    };
    for path in implicit {
        if !proceed() {
            return Err(UnpackError::Cancelled);
        }
        search.visit(path)?;
        let found = search.seen.get(path).and_then(|seen| seen.found.clone());
        let metadata = found.unwrap_or_else(ordinary);
        tree.set_folder_metadata(path, &metadata)
            .map_err(|e| UnpackError::write(path, e))?;
    }
    Ok(())
}

fn ordinary() -> Metadata {
    Metadata {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        atime: None,
        xattrs: Vec::new(),
    }
}

struct Search<'a> {
    tree: &'a Tree,
    opaque: bool,
    lowers: &'a [Lower],
    seen: HashMap<Vec<u8>, Seen>,
    lookups: u64,
}

struct Seen {
    found: Option<Metadata>,
    /// Index of the lowest layer that is visible inside the folder.
    floor: usize,
}

impl Search<'_> {
    /// Looks `path` up, and its parents before it.
    fn visit(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let mut todo = vec![path];
        while let Some(&path) = todo.last() {
            if self.seen.contains_key(path) {
                todo.pop();
                continue;
            }
            let parent = split(path).0;
            let floor = if path.is_empty() {
                0
            } else if let Some(seen) = self.seen.get(parent) {
                seen.floor
            } else {
                todo.push(parent);
                continue;
            };
            let seen = self
                .look(path, floor)
                .map_err(|e| UnpackError::write(path, e))?;
            self.seen.insert(path.to_vec(), seen);
            if self.lookups > MOST_LOOKUPS {
                return Err(UnpackError::TooMuch {
                    what: "folders to look up in the layers below",
                    most: MOST_LOOKUPS,
                });
            }
        }
        Ok(())
    }

    /// Looks `path` up in the layers from the topmost down to `floor`.
    fn look(&mut self, path: &[u8], floor: usize) -> io::Result<Seen> {
        let hides = |tree: &Tree, opaque: bool| match path {
            b"" => Ok(opaque),
            _ => tree.is_opaque(path),
        };
        let mut seen = Seen { found: None, floor };
        // The mark on the folder itself hides what is in it below, not what it is.
        if hides(self.tree, self.opaque)? {
            seen.floor = self.lowers.len();
        }
        for (index, lower) in self.lowers.iter().enumerate().skip(floor).rev() {
            self.lookups += 1;
            match lower.tree.folder_metadata(path)? {
                Found::Nothing => {}
                Found::Hidden => {
                    seen.floor = seen.floor.max(index + 1);
                    break;
                }
                Found::Folder(metadata) => {
                    seen.found.get_or_insert(metadata);
                    if hides(&lower.tree, lower.opaque)? {
                        seen.floor = seen.floor.max(index);
                        break;
                    }
                }
            }
        }
        Ok(seen)
    }
}
