//! Carrying out the entries of a layer in a [`Tree`].
//!
//! What must always hold: a path is checked once ([`Place`]), its folder is opened without following a link, and
//! what is at its last component is replaced, never written through.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, chmodat, fsetxattr, ftruncate, linkat, makedev,
    mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::place::{Place, checked};
use super::skeleton::Skeleton;
use super::sparse::Map;
use super::tar::{Archive, Entry, Kind};
use super::tree::{OPAQUE, apply, is_allowed_xattr, set_owner, set_times, split};
use super::{Limits, Metadata, Tree, UnpackError};
use crate::store::blobs::read_some;
use crate::store::remove_tree::remove_tree_at;
use crate::sys;

/// What was unpacked.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Bytes on disk, about: files and folders in blocks of 4 KiB.
    pub bytes: u64,
    pub inodes: u64,
    /// Folders that the layer has something in but does not describe, parents first; "" is the layer's own. They
    /// must be given the metadata that they have in the layers below.
    pub implicit: Vec<Vec<u8>>,
    /// The layer hides all layers below it.
    pub opaque: bool,
    /// What is needed to make the stream again was written down, whole.
    pub recreatable: bool,
}

/// Devices that every container may use: major and minor number.
const DEVICES: [(u32, u32); 8] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
];

const BUFFER: usize = 256 << 10;
/// Bytes of a file that is written to the disk while the next ones are unpacked, so that the sync at the end has
/// little to wait for.
const WRITE_EARLY: u64 = 64 << 10;
/// Names of folders that are kept until the end, in bytes.
const FOLDER_NAMES: usize = 256 << 20;

/// Unpacks the archive that `reader` gives, up to its end. `proceed` is asked often; false stops.
///
/// # Errors
/// [`UnpackError`].
pub fn extract(
    reader: impl Read,
    tree: &Tree,
    limits: &Limits,
    proceed: &dyn Fn() -> bool,
) -> Result<Unpacked, UnpackError> {
    extract_and_note(reader, tree, limits, proceed, None)
}

/// As [`extract`]; tells `skeleton` where the data of which file begin.
pub(super) fn extract_and_note(
    reader: impl Read,
    tree: &Tree,
    limits: &Limits,
    proceed: &dyn Fn() -> bool,
    skeleton: Option<&RefCell<Skeleton>>,
) -> Result<Unpacked, UnpackError> {
    let mut archive = Archive::new(reader, limits);
    let mut extractor = Extractor {
        tree,
        skeleton,
        proceed,
        unpacked: Unpacked::default(),
        folders: HashMap::from([(Vec::new(), None)]),
        names: 0,
        latest: None,
        buffer: vec![0; BUFFER],
    };
    while let Some(entry) = archive.next()? {
        extractor.proceed()?;
        extractor.carry_out(entry, &mut archive)?;
    }
    extractor.finish()
}

/// What was at a place before an entry took it.
#[derive(Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Whiteout,
    Folder,
}

struct Extractor<'a> {
    tree: &'a Tree,
    skeleton: Option<&'a RefCell<Skeleton>>,
    proceed: &'a dyn Fn() -> bool,
    unpacked: Unpacked,
    /// All folders made, with the metadata that some entry gave: their times are set at the end, because what is
    /// made in them changes these.
    folders: HashMap<Vec<u8>, Option<Metadata>>,
    /// Bytes of the names of `folders`.
    names: usize,
    /// The folder used last. None of its ancestors has been replaced since.
    latest: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Extractor<'_> {
    fn proceed(&self) -> Result<(), UnpackError> {
        match (self.proceed)() {
            true => Ok(()),
            false => Err(UnpackError::Cancelled),
        }
    }

    fn carry_out<R: Read>(
        &mut self,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let (kind, metadata, place) = {
            let place = Place::of(&entry.path)?;
            let mut xattrs = entry.xattrs;
            xattrs.retain(|(name, _)| is_allowed_xattr(name));
            let metadata = Metadata {
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                atime: entry.atime,
                xattrs,
            };
            (entry.kind, metadata, place)
        };
        match place {
            Place::Ignored => Ok(()),
            Place::Root => self.root(&kind, metadata),
            Place::Whiteout(path) => self.whiteout(&path),
            Place::Opaque(path) => self.opaque(&path),
            Place::Path(path) => match kind {
                Kind::Directory => self.directory(&path, metadata),
                Kind::File { sparse, stored } => {
                    // The pieces of a sparse file are kept with the headers.
                    if let (Some(skeleton), None) = (self.skeleton, &sparse) {
                        skeleton.borrow_mut().content(&path, stored);
                    }
                    self.file(&path, &metadata, sparse, archive)
                }
                Kind::Symlink(target) => self.symlink(&path, &target, &metadata),
                Kind::Hardlink(target) => self.hardlink(&path, &target),
                Kind::Fifo => self.node(&path, FileType::Fifo, (0, 0), &metadata),
                Kind::Character(major, minor) if DEVICES.contains(&(major, minor)) => {
                    self.node(&path, FileType::CharacterDevice, (major, minor), &metadata)
                }
                Kind::Character(..) | Kind::Block(..) => Ok(()),
            },
        }
    }

    fn root(&mut self, kind: &Kind, metadata: Metadata) -> Result<(), UnpackError> {
        if *kind != Kind::Directory {
            return Err(UnpackError::entry(b"/", "the root is not a folder"));
        }
        apply(self.tree.as_fd(), &metadata, FileType::Directory)
            .map_err(|e| UnpackError::write(b"/", e))?;
        self.remember(&[], Some(metadata))
    }

    fn directory(&mut self, path: &[u8], metadata: Metadata) -> Result<(), UnpackError> {
        let (parent, before) = self.prepare(path, true)?;
        let name = split(path).1;
        let folder = match before {
            Before::Folder => open_folder(&parent, name),
            Before::Nothing | Before::Whiteout => {
                self.count(0);
                make_folder(&parent, name, before == Before::Whiteout)
            }
        };
        let made = folder.and_then(|folder| apply(folder.as_fd(), &metadata, FileType::Directory));
        self.put_back(path, parent);
        made.map_err(|e| UnpackError::write(path, e))?;
        self.remember(path, Some(metadata))
    }

    fn file<R: Read>(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        sparse: Option<Map>,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let (parent, _) = self.prepare(path, false)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&parent, split(path).1, flags, Mode::RUSR | Mode::WUSR);
        self.put_back(path, parent);
        let mut file = File::from(file.map_err(|e| UnpackError::write(path, e))?);
        let length = match sparse {
            None => self.copy(path, &mut file, archive)?,
            Some(map) => self.copy_pieces(path, &file, &map, archive)?,
        };
        self.count(length);
        if length >= WRITE_EARLY {
            sys::start_writeback(file.as_fd());
        }
        apply(file.as_fd(), metadata, FileType::RegularFile)
            .and_then(|()| set_times(file.as_fd(), c"", metadata))
            .map_err(|e| UnpackError::write(path, e))
    }

    /// Copies all data; returns their length in bytes.
    fn copy<R: Read>(
        &mut self,
        path: &[u8],
        file: &mut File,
        archive: &mut Archive<R>,
    ) -> Result<u64, UnpackError> {
        let mut total = 0;
        loop {
            let length = read_some(archive, &mut self.buffer)?;
            if length == 0 {
                return Ok(total);
            }
            file.write_all(&self.buffer[..length])
                .map_err(|e| UnpackError::write(path, e))?;
            total += length as u64;
            self.proceed()?;
        }
    }

    /// Copies data to where they belong; returns their length in bytes, without the holes.
    fn copy_pieces<R: Read>(
        &mut self,
        path: &[u8],
        file: &File,
        map: &Map,
        archive: &mut Archive<R>,
    ) -> Result<u64, UnpackError> {
        let mut total = 0;
        for piece in &map.pieces {
            let mut done = 0;
            while done < piece.length {
                let left = usize::try_from(piece.length - done)
                    .unwrap_or(BUFFER)
                    .min(BUFFER);
                let length = read_some(archive, &mut self.buffer[..left])?;
                if length == 0 {
                    return Err(UnpackError::entry(path, "fewer data than its map says"));
                }
                file.write_all_at(&self.buffer[..length], piece.offset + done)
                    .map_err(|e| UnpackError::write(path, e))?;
                done += length as u64;
                self.proceed()?;
            }
            total += piece.length;
        }
        ftruncate(file, map.length).map_err(|e| UnpackError::write(path, e))?;
        Ok(total)
    }

    fn symlink(
        &mut self,
        path: &[u8],
        target: &[u8],
        metadata: &Metadata,
    ) -> Result<(), UnpackError> {
        if target.is_empty() || target.contains(&0) {
            return Err(UnpackError::entry(path, "a link to nothing"));
        }
        let (parent, _) = self.prepare(path, false)?;
        let name = split(path).1;
        let made = symlinkat(target, &parent, name)
            .and_then(|()| set_owner(parent.as_fd(), name, metadata))
            .and_then(|()| set_times(parent.as_fd(), name, metadata));
        self.count(0);
        self.put_back(path, parent);
        made.map_err(|e| UnpackError::write(path, e))
    }

    /// A second name. What the entry says of metadata is what its first name got already.
    fn hardlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        let shown = super::show(target);
        let target = checked(target)?;
        if target == path {
            return Err(UnpackError::entry(path, "a hard link to itself"));
        }
        let stat = self.tree.stat(&target).map_err(|e| {
            let why = std::io::Error::from(e);
            UnpackError::entry(path, format!("a hard link to {shown}: {why}"))
        })?;
        if is_whiteout(&stat) || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let what = format!("a hard link to {shown}, which is no file");
            return Err(UnpackError::entry(path, what));
        }
        let (parent, _) = self.prepare(path, false)?;
        let (folder, source) = split(&target);
        let made = self
            .tree
            .folder(folder)
            .and_then(|folder| linkat(folder, source, &parent, split(path).1, AtFlags::empty()));
        self.put_back(path, parent);
        made.map_err(|e| UnpackError::write(path, e))
    }

    fn node(
        &mut self,
        path: &[u8],
        kind: FileType,
        (major, minor): (u32, u32),
        metadata: &Metadata,
    ) -> Result<(), UnpackError> {
        let (parent, _) = self.prepare(path, false)?;
        let name = split(path).1;
        let mode = Mode::from_raw_mode(metadata.mode);
        // The name is the node just made, which nobody else can replace: the tree is in a folder of our own.
        let made = mknodat(&parent, name, kind, mode, makedev(major, minor))
            .and_then(|()| set_owner(parent.as_fd(), name, metadata))
            .and_then(|()| chmodat(&parent, name, mode, AtFlags::empty()))
            .and_then(|()| set_times(parent.as_fd(), name, metadata));
        self.count(0);
        self.put_back(path, parent);
        made.map_err(|e| UnpackError::write(path, e))
    }

    /// A whiteout hides what is below, not what this layer itself has under the name, in whatever order the two come.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let parent = self.parent(path)?;
        let name = split(path).1;
        let made = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                self.count(0);
                mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)
            }
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                open_folder(&parent, name).and_then(|folder| set_opaque(folder.as_fd()))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        self.put_back(path, parent);
        made.map_err(|e| UnpackError::write(path, e))
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        // overlayfs does not look for the mark at the top of a layer: what is below must be left out of the mount.
        if path.is_empty() {
            self.unpacked.opaque = true;
            return set_opaque(self.tree.as_fd()).map_err(|e| UnpackError::write(path, e));
        }
        let folder = self.ensure(path)?;
        let made = set_opaque(folder.as_fd());
        self.latest = Some((path.to_vec(), folder));
        made.map_err(|e| UnpackError::write(path, e))
    }

    /// Opens the folder of `path`, makes it if need be, and clears the way for what comes at the last component. Only
    /// a folder stays, for a folder.
    fn prepare(&mut self, path: &[u8], for_folder: bool) -> Result<(OwnedFd, Before), UnpackError> {
        let parent = self.parent(path)?;
        let name = split(path).1;
        let stat = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok((parent, Before::Nothing)),
            Err(error) => return Err(UnpackError::write(path, error)),
            Ok(stat) => stat,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile || (kind == FileType::Directory && !for_folder) {
            self.content_lost();
        }
        if kind != FileType::Directory {
            unlinkat(&parent, name, AtFlags::empty()).map_err(|e| UnpackError::write(path, e))?;
            let whiteout = is_whiteout(&stat);
            let before = if whiteout {
                Before::Whiteout
            } else {
                Before::Nothing
            };
            return Ok((parent, before));
        }
        if for_folder {
            return Ok((parent, Before::Folder));
        }
        remove_tree_at(&parent, name).map_err(|e| UnpackError::write(path, e))?;
        Ok((parent, Before::Nothing))
    }

    /// What an earlier entry had is replaced by a later one.
    fn content_lost(&self) {
        if let Some(skeleton) = self.skeleton {
            skeleton.borrow_mut().give_up();
        }
    }

    /// Opens the folder that `path` is in. It is kept by [`Self::put_back`].
    fn parent(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let folder = split(path).0;
        match self.latest.take() {
            Some((known, open)) if known == folder => Ok(open),
            _ => self.ensure(folder),
        }
    }

    /// Keeps the folder of `path` for the next entry, which most often is in the same one. Whatever is replaced is
    /// in the folder that is kept, so it is never below something replaced.
    fn put_back(&mut self, path: &[u8], folder: OwnedFd) {
        self.latest = Some((split(path).0.to_vec(), folder));
    }

    /// Opens the folder `path`, making what is missing of it.
    fn ensure(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        match self.tree.folder(path) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(not_folder(path, error)),
        }
        let mut open = self
            .tree
            .folder(b"")
            .map_err(|e| UnpackError::write(b"/", e))?;
        let ends = path
            .iter()
            .enumerate()
            .filter(|&(_, &b)| b == b'/')
            .map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let prefix = &path[..end];
            let name = split(prefix).1;
            let opaque = match open_folder(&open, name) {
                Ok(folder) => {
                    open = folder;
                    continue;
                }
                Err(Errno::NOENT) => false,
                Err(Errno::NOTDIR) => {
                    let stat = statat(&open, name, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|e| UnpackError::write(prefix, e))?;
                    if !is_whiteout(&stat) {
                        return Err(not_folder(prefix, Errno::NOTDIR));
                    }
                    unlinkat(&open, name, AtFlags::empty())
                        .map_err(|e| UnpackError::write(prefix, e))?;
                    true
                }
                Err(error) => return Err(not_folder(prefix, error)),
            };
            open = make_folder(&open, name, opaque).map_err(|e| UnpackError::write(prefix, e))?;
            self.count(0);
            self.remember(prefix, None)?;
        }
        Ok(open)
    }

    fn remember(&mut self, path: &[u8], metadata: Option<Metadata>) -> Result<(), UnpackError> {
        // The attributes are set; times are all that is needed later.
        let metadata = metadata.map(|metadata| Metadata {
            xattrs: Vec::new(),
            ..metadata
        });
        if self.folders.insert(path.to_vec(), metadata).is_none() {
            self.names += path.len();
        }
        if self.names > FOLDER_NAMES {
            return Err(UnpackError::TooMuch {
                what: "bytes in the names of folders",
                most: FOLDER_NAMES as u64,
            });
        }
        Ok(())
    }

    fn count(&mut self, length: u64) {
        self.unpacked.inodes += 1;
        self.unpacked.bytes += length.next_multiple_of(4096).max(4096);
    }

    /// Sets the times of folders, which all that was made in them has changed.
    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        for (path, metadata) in self.folders {
            let folder = match self.tree.folder(&path) {
                Ok(folder) => folder,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(UnpackError::write(&path, error)),
            };
            match metadata {
                None => self.unpacked.implicit.push(path),
                Some(metadata) => set_times(folder.as_fd(), c"", &metadata)
                    .map_err(|e| UnpackError::write(&path, e))?,
            }
        }
        self.unpacked.implicit.sort();
        Ok(self.unpacked)
    }
}

fn open_folder(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent.as_fd(), name, flags, Mode::empty()) {
        // A link is ENOTDIR or ELOOP, as the kernel likes; ELOOP tells it from a whiteout.
        Err(Errno::NOTDIR) => {
            let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => Err(Errno::LOOP),
                _ => Err(Errno::NOTDIR),
            }
        }
        other => other,
    }
}

fn make_folder(parent: impl AsFd, name: &[u8], opaque: bool) -> Result<OwnedFd, Errno> {
    mkdirat(parent.as_fd(), name, Mode::RWXU)?;
    let folder = open_folder(parent, name)?;
    if opaque {
        set_opaque(folder.as_fd())?;
    }
    Ok(folder)
}

fn set_opaque(folder: BorrowedFd) -> Result<(), Errno> {
    fsetxattr(folder, OPAQUE, b"y", XattrFlags::empty())
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn not_folder(path: &[u8], error: Errno) -> UnpackError {
    match error {
        Errno::LOOP => UnpackError::entry(path, "a symbolic link used as a folder"),
        Errno::NOTDIR => UnpackError::entry(path, "a file used as a folder"),
        _ => UnpackError::write(path, error),
    }
}
