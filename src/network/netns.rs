//! A pod's network namespace has a name: a file that the namespace is bind-mounted on, so that plugins, `ip
//! netns` and the next daemon find it without any process of the pod.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, statfs};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// The file system type of namespace files.
const NSFS: FsType = FsType(0x6e73_6673);
/// How many mounts may lie on top of each other on a pin before something is very wrong.
const MAX_STACKED: usize = 16;

/// A name below a folder of pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub path: PathBuf,
    /// Whether a namespace is mounted there; `false` for an empty file that was left behind.
    pub live: bool,
}

/// Gives the namespace at `source` (`/proc/PID/ns/net`) the name `at`. What was at `at` before is replaced.
///
/// # Errors
/// As `mount(2)`. Nothing stays behind then.
pub fn pin(source: &Path, at: &Path) -> io::Result<()> {
    if let Err(error) = create(at) {
        match error.kind() {
            io::ErrorKind::NotFound => {
                let dir = at.parent().ok_or(error)?;
                DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
            }
            io::ErrorKind::AlreadyExists => unpin(at)?,
            _ => return Err(error),
        }
        create(at)?;
    }
    let pinned = mount_bind(source, at)
        .map_err(io::Error::from)
        .and_then(|()| match is_live(at) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a namespace", source.display()),
            )),
        });
    pinned.inspect_err(|_| {
        // The error that is told is the first one.
        let _ = unpin(at);
    })
}

/// Takes the name `at` away; the namespace ends with its last process. Nothing there is fine.
///
/// # Errors
/// As `umount2(2)` and `unlink(2)`.
pub fn unpin(at: &Path) -> io::Result<()> {
    for _ in 0..MAX_STACKED {
        match unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The pins in `dir`, of whoever made them. No folder is no pins.
///
/// # Errors
/// As `readdir(3)`.
pub fn list(dir: &Path) -> io::Result<Vec<Pin>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut pins = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let live = is_live(&path);
        pins.push(Pin { path, live });
    }
    pins.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(pins)
}

/// Whether a namespace is at `path`.
pub(super) fn is_live(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS)
}

fn create(at: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o444);
    options.open(at).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("new/pod");
        unpin(&at).unwrap();
        pin(Path::new("/proc/self/ns/net"), &at).unwrap();
        assert!(is_live(&at));
        // Again, as after a crash.
        pin(Path::new("/proc/self/ns/net"), &at).unwrap();
        fs::write(dir.path().join("new/left"), "").unwrap();
        let left = Pin {
            path: dir.path().join("new/left"),
            live: false,
        };
        let live = Pin {
            path: at.clone(),
            live: true,
        };
        assert_eq!(list(at.parent().unwrap()).unwrap(), [left, live]);
        unpin(&at).unwrap();
        unpin(&at).unwrap();
        assert!(!at.exists());
        assert_eq!(list(&dir.path().join("none")).unwrap(), []);
    }

    #[test]
    fn only_a_namespace_is_pinned_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pod");
        assert!(pin(&dir.path().join("gone"), &at).is_err());
        assert!(!at.exists());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(pin(&file, &at).is_err());
        assert!(!at.exists());
    }
}
