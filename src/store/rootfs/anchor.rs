//! Anchors: private clones of the mounts that layers lie in, attached in the builder's namespace.
//!
//! The caller's side ([`Clones`]) runs in the host's mount namespace, says where a path lies and clones
//! its mount when that is new; the builder's side ([`Anchors`]) attaches the clone and opens the path
//! below it. A mount's id may be used again after an unmount, so the builder compares what it opened
//! with what the caller saw.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstat, makedev, mkdirat,
    openat2, readlink, statx,
};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::{Failure, open_folder};
use crate::sys::{MountAttr, mount_setattr};

/// Where a folder lies.
#[derive(Debug)]
pub(super) struct Place {
    /// Its path on the host, for errors.
    pub path: PathBuf,
    anchor: u64,
    /// Relative to the anchor's root, without links and dots.
    below: PathBuf,
    device: u64,
    inode: u64,
}

/// The mounts that have been cloned for the builder: their ids, and where their roots are.
#[derive(Debug, Default)]
pub(super) struct Clones(Mutex<HashMap<u64, PathBuf>>);

impl Clones {
    /// Says where `path` lies. If its mount has not been cloned yet, a clone is added to `new`.
    ///
    /// That is one system call as a rule. With `afresh` nothing is taken for granted: links in the path
    /// are looked for, and mounts are cloned anew that are not in `new`.
    pub fn place(
        &self,
        path: &Path,
        afresh: bool,
        new: &mut Vec<(u64, OwnedFd)>,
    ) -> io::Result<Place> {
        let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
        let stat = statx(CWD, path, AtFlags::empty(), wanted)?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let anchor = stat.stx_mnt_id;
        let place = |below: &Path| Place {
            path: path.to_owned(),
            anchor,
            below: below.to_owned(),
            device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
        };
        let known = self.lock().get(&anchor).cloned();
        if let (Some(root), false) = (&known, afresh)
            && let Ok(below) = path.strip_prefix(root)
        {
            return Ok(place(below));
        }
        let folder = open_folder(CWD, path)?;
        // Without the links in it.
        let real = readlink(format!("/proc/self/fd/{}", folder.as_raw_fd()), Vec::new())?;
        let real = PathBuf::from(OsString::from_vec(real.into_bytes()));
        let keep = !afresh || new.iter().any(|(id, _)| *id == anchor);
        let root = match known {
            Some(root) if keep => root,
            _ => {
                let root = mount_root(&real, anchor)?;
                new.push((anchor, clone_privately(&root)?));
                self.lock().insert(anchor, root.clone());
                root
            }
        };
        let below = real
            .strip_prefix(&root)
            .map_err(|_| io::ErrorKind::NotFound)?;
        Ok(place(below))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The builder's anchors, by the id of the host's mount that each is a clone of.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    attached: HashMap<u64, (String, OwnedFd)>,
    count: u64,
}

impl Anchors {
    /// Attaches new anchors. One of the same id is replaced.
    pub fn attach(&mut self, anchors: Vec<(u64, OwnedFd)>) -> Result<(), Failure> {
        for (id, clone) in anchors {
            let target = format!("/anchor-{}", self.count);
            self.count += 1;
            mkdirat(CWD, &target, Mode::from_raw_mode(0o700))
                .map_err(|error| Failure::mount("attach: mkdir", error))?;
            move_mount(
                &clone,
                "",
                CWD,
                &target,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
            .map_err(|error| Failure::mount("attach: move_mount", error))?;
            if let Some((old, _)) = self.attached.insert(id, (target, clone)) {
                unmount(old.as_str(), UnmountFlags::DETACH)
                    .map_err(|error| Failure::mount("detach: umount", error))?;
                rustix::fs::unlinkat(CWD, old.as_str(), AtFlags::REMOVEDIR)
                    .map_err(|error| Failure::mount("detach: rmdir", error))?;
            }
        }
        Ok(())
    }

    /// Opens a place through its anchor.
    pub fn open(&self, place: &Place) -> Result<OwnedFd, Failure> {
        let (_, anchor) = self
            .attached
            .get(&place.anchor)
            .ok_or(Failure::Stale(place.path.clone()))?;
        let below = if place.below.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &place.below
        };
        let folder = openat2(
            anchor,
            below,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
        .map_err(|_| Failure::Stale(place.path.clone()))?;
        let stat =
            fstat(&folder).map_err(|error| Failure::Folder(place.path.clone(), error.into()))?;
        if (stat.st_dev, stat.st_ino) != (place.device, place.inode) {
            return Err(Failure::Stale(place.path.clone()));
        }
        Ok(folder)
    }
}

/// The root of the mount `id` that the folder `real` lies in.
fn mount_root(real: &Path, id: u64) -> io::Result<PathBuf> {
    let mut root = real;
    while let Some(parent) = root.parent() {
        if statx(CWD, parent, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id != id {
            break;
        }
        root = parent;
    }
    Ok(root.to_owned())
}

/// Clones the mount at `root` without what is mounted below it, and without ties to the host's.
fn clone_privately(root: &Path) -> io::Result<OwnedFd> {
    let clone = open_tree(
        CWD,
        root,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    let private = MountAttr {
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    mount_setattr(clone.as_fd(), false, &private)?;
    Ok(clone)
}
