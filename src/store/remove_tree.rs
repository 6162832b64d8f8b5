//! Deleting a tree that a hostile container has made.
//!
//! It may be 100,000 folders deep, so nothing here recurses and no path is built: whatever a folder
//! holds is deleted or, if it is a folder itself, moved up to the top, so that the tree becomes flatter
//! until it is gone. Three descriptors are open at most. No link is followed and no mount is entered.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// Deletes the file or folder at `path` and all that is in it. Missing is fine.
///
/// # Errors
/// As `unlink(2)`; EXDEV if something is mounted in it: what is mounted there is left alone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = match open_folder(rustix::fs::CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    empty(&top)?;
    ignore_missing(unlinkat(CWD, path, AtFlags::REMOVEDIR))
}

fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut serial = 0_u64;
    loop {
        let mut found = false;
        let mut entries = Dir::read_from(top)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if is_dot(name) {
                continue;
            }
            found = true;
            if is_folder(top, name, entry.file_type())? {
                flatten(top, name, &mut serial)?;
            } else {
                ignore_missing(unlinkat(top, name, AtFlags::empty()))?;
            }
        }
        // Entries moved up while the folder was read may or may not have been seen: look again.
        if !found {
            return Ok(());
        }
    }
}

/// Empties the folder `name` of `top`, moving the folders in it up, and deletes it.
fn flatten(top: &OwnedFd, name: &CStr, serial: &mut u64) -> io::Result<()> {
    let folder = match open_folder(top, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    loop {
        let mut found = false;
        let mut entries = Dir::read_from(&folder)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let inner = entry.file_name();
            if is_dot(inner) {
                continue;
            }
            found = true;
            if is_folder(&folder, inner, entry.file_type())? {
                move_up(&folder, inner, top, serial)?;
            } else {
                ignore_missing(unlinkat(&folder, inner, AtFlags::empty()))?;
            }
        }
        if !found {
            return ignore_missing(unlinkat(top, name, AtFlags::REMOVEDIR));
        }
    }
}

/// Gives the folder a name at the top that is not taken: an empty folder would be replaced, which is as
/// good as deleting it, and any other is ENOTEMPTY.
fn move_up(folder: &OwnedFd, name: &CStr, top: &OwnedFd, serial: &mut u64) -> io::Result<()> {
    loop {
        *serial += 1;
        match renameat(folder, name, top, format!(".carpel-removed-{serial}")) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR) => {}
            other => return ignore_missing(other),
        }
    }
}

fn open_folder<P: rustix::path::Arg>(
    parent: impl std::os::fd::AsFd,
    name: P,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent: BorrowedFd<'_> = parent.as_fd();
    if std::os::fd::AsRawFd::as_raw_fd(&parent) == std::os::fd::AsRawFd::as_raw_fd(&CWD) {
        // The path to the tree itself is ours and may cross mounts.
        return rustix::fs::openat(parent, name, flags, Mode::empty());
    }
    openat2(
        parent,
        name,
        flags,
        Mode::empty(),
        ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    )
}

fn is_folder(parent: &OwnedFd, name: &CStr, known: FileType) -> io::Result<bool> {
    if known != FileType::Unknown {
        return Ok(known == FileType::Directory);
    }
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn ignore_missing(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_deep_and_wide_tree_goes() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut deepest = rustix::fs::open(&top, OFlags::PATH, Mode::empty()).unwrap();
        for depth in 0..5_000 {
            rustix::fs::mkdirat(&deepest, "d", Mode::RWXU).unwrap();
            if depth % 1000 == 0 {
                rustix::fs::symlinkat("/", &deepest, "link").unwrap();
                for n in 0..20 {
                    rustix::fs::mkdirat(&deepest, format!("side{n}"), Mode::RWXU).unwrap();
                }
            }
            deepest = rustix::fs::openat(&deepest, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        remove_tree(&top).unwrap();
    }

    #[test]
    fn links_are_not_followed_and_names_like_ours_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "").unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::create_dir_all(top.join(".carpel-removed-1/full")).unwrap();
        fs::write(top.join(".carpel-removed-2"), "").unwrap();
        std::os::unix::fs::symlink(&canary, top.join("a/link")).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&canary, &link).unwrap();
        remove_tree(&link).unwrap();
        assert!(canary.join("file").exists() && !link.exists());
    }
}
