//! Deleting a tree that a hostile container has made.
//!
//! It may be 100,000 folders deep, so nothing here recurses and no path is built: whatever a folder
//! holds is deleted or, if it is a folder itself, moved up to the top, so that the tree becomes flatter
//! until it is gone. Three descriptors are open at most. No link is followed and no mount is entered. It works on a
//! full disk, where a folder cannot be moved up before others are gone.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, ResolveFlags, fstat, ioctl_getflags,
    ioctl_setflags, open, openat, openat2, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

/// Deletes the file or folder at `path` and all that is in it. Missing is fine.
///
/// # Errors
/// As `unlink(2)`; EXDEV or EBUSY if something is mounted in it: what is mounted there is left alone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove_tree_at(CWD, path)
}

/// As [`remove_tree`], for `path` below the open folder `parent`. The components before the last one are
/// followed as usual: they must be ours.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_tree_at(parent: impl AsFd, path: impl Arg + Copy) -> io::Result<()> {
    let parent = parent.as_fd();
    match unlinkat(parent, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    // The path to the tree itself is ours and may cross mounts.
    let top = match openat(parent, path, FOLDER, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR) => {
            make_mutable(parent, path);
            return ignore_missing(unlinkat(parent, path, AtFlags::empty()));
        }
        other => other?,
    };
    empty(&top)?;
    match unlinkat(parent, path, AtFlags::REMOVEDIR) {
        Err(Errno::PERM) => {
            make_mutable(parent, path);
            ignore_missing(unlinkat(parent, path, AtFlags::REMOVEDIR))
        }
        other => ignore_missing(other),
    }
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut serial = 0_u64;
    loop {
        let mut found = false;
        let mut progress = false;
        let mut entries = Dir::read_from(top)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if is_dot(name) {
                continue;
            }
            found = true;
            if is_folder(top, name, entry.file_type())? {
                progress |= flatten(top, name, &mut serial)?;
            } else {
                unlink(top, name, AtFlags::empty())?;
                progress = true;
            }
        }
        // Entries moved up while the folder was read may or may not have been seen: look again.
        if !found {
            return Ok(());
        }
        if !progress {
            return Err(Errno::NOSPC.into());
        }
    }
}

/// Empties the folder `name` of `top`, moving the folders in it up, and deletes it. True if anything was
/// moved or deleted; what a full disk did not let it move up is still there.
fn flatten(top: &OwnedFd, name: &CStr, serial: &mut u64) -> io::Result<bool> {
    let folder = match open_folder(top, name) {
        Err(Errno::NOENT) => return Ok(true),
        other => other?,
    };
    let mut progress = false;
    loop {
        let mut found = false;
        let mut full = false;
        let mut entries = Dir::read_from(&folder)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let inner = entry.file_name();
            if is_dot(inner) {
                continue;
            }
            found = true;
            if !is_folder(&folder, inner, entry.file_type())? {
                unlink(&folder, inner, AtFlags::empty())?;
                progress = true;
            } else if move_up(&folder, inner, top, serial)? {
                progress = true;
            } else {
                full = true;
            }
        }
        if full {
            return Ok(progress);
        }
        if !found {
            unlink(top, name, AtFlags::REMOVEDIR)?;
            return Ok(true);
        }
    }
}

/// Gives the folder a name at the top that is not taken: an empty folder would be replaced, which is as
/// good as deleting it, and any other is ENOTEMPTY. False if the disk is too full for it.
fn move_up(folder: &OwnedFd, name: &CStr, top: &OwnedFd, serial: &mut u64) -> io::Result<bool> {
    // An empty one, the usual case at the end of a branch, need not move.
    if unlinkat(folder, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(true);
    }
    let mut cleared = false;
    loop {
        *serial += 1;
        match renameat(folder, name, top, format!(".carpel-removed-{serial}")) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => return Ok(false),
            Err(Errno::PERM) if !cleared => {
                cleared = true;
                make_mutable(folder, c".");
                make_mutable(folder, name);
            }
            other => return ignore_missing(other).map(|()| true),
        }
    }
}

/// Deletes an entry of `folder`, also one that was made immutable.
fn unlink(folder: &OwnedFd, name: &CStr, flags: AtFlags) -> io::Result<()> {
    match unlinkat(folder, name, flags) {
        Err(Errno::PERM) => {
            make_mutable(folder, c".");
            make_mutable(folder, name);
            ignore_missing(unlinkat(folder, name, flags))
        }
        other => ignore_missing(other),
    }
}

/// Takes the immutable and append-only flags away, if they can be: whoever calls tries again and reports.
fn make_mutable(folder: impl AsFd, name: impl Arg) {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(found) = openat(folder, name, flags, Mode::empty()) else {
        return;
    };
    // To open a device may do something: a watchdog begins to count.
    let kind = fstat(&found).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if !matches!(kind, Ok(FileType::RegularFile | FileType::Directory)) {
        return;
    }
    // The same file, whatever is at its name by now.
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = open(path, flags, Mode::empty()) else {
        return;
    };
    if let Ok(set) = ioctl_getflags(&file) {
        let _ = ioctl_setflags(&file, set - (IFlags::IMMUTABLE | IFlags::APPEND));
    }
}

fn open_folder(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    openat2(parent, name, FOLDER, Mode::empty(), resolve)
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
        // In memory: a disk may take milliseconds for each folder.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut deepest = rustix::fs::open(&top, OFlags::PATH, Mode::empty()).unwrap();
        for depth in 0..100_000 {
            rustix::fs::mkdirat(&deepest, "d", Mode::RWXU).unwrap();
            if depth % 10_000 == 0 {
                rustix::fs::symlinkat("/", &deepest, "link").unwrap();
                for n in 0..20 {
                    rustix::fs::mkdirat(&deepest, format!("side{n}"), Mode::RWXU).unwrap();
                }
            }
            deepest = openat(&deepest, "d", OFlags::PATH, Mode::empty()).unwrap();
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

    #[test]
    fn immutable_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        for name in ["a/file", "a/b/c/file"] {
            let file = fs::File::create(top.join(name)).unwrap();
            ioctl_setflags(&file, IFlags::IMMUTABLE).unwrap();
        }
        for name in ["a/b", "a", ""] {
            let folder = fs::File::open(top.join(name)).unwrap();
            ioctl_setflags(&folder, IFlags::APPEND).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn what_is_mounted_inside_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "").unwrap();
        let top = dir.path().join("top");
        let place = top.join("a/b/mounted");
        fs::create_dir_all(&place).unwrap();
        rustix::mount::mount_bind(&canary, &place).unwrap();
        let removed = remove_tree(&top);
        let found = canary.join("file").exists();
        // Where it is now: folders were moved up.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|l| l.contains(top.to_str().unwrap()));
        let target = line.and_then(|l| l.split(' ').nth(4)).unwrap();
        rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(removed.is_err());
        assert!(found);
        remove_tree(&top).unwrap();
    }
}
