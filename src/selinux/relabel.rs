//! Relabelling: what a pod is to reach on the host gets the pod's label, with all that is below it.
//!
//! Whose files they are may change them meanwhile. So every name is taken from a folder that is open, no link is
//! followed, and nothing recurses: a tree may be 100,000 folders deep. The way back up is "..", and is checked. What
//! is mounted below is labelled, too, as the peers do, since the container sees it.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, XattrFlags, fstat, getxattr, lgetxattr, lsetxattr,
    openat, setxattr, stat, statat,
};
use rustix::io::Errno;

use super::label::Label;

const ATTRIBUTE: &str = "security.selinux";

/// Folders of the machine itself, which the peers refuse to relabel, too.
const OF_THE_MACHINE: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Why a path has not got its label.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} must not be relabelled: it is the machine's, or carpel's own", .0.display())]
    Forbidden(PathBuf),
    #[error("{}: {source}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("label {name:?}: {source}")]
    Entry { name: CString, source: io::Error },
    #[error("a folder was moved away meanwhile")]
    Moved,
}

/// A file, whatever its names.
type Identity = (u64, u64);

/// What may not be relabelled, whatever path leads to it.
#[derive(Debug)]
pub struct Forbidden(HashSet<Identity>);

impl Forbidden {
    /// The machine's folders, the daemon's `own`, and all that these are in.
    #[must_use]
    pub fn new(own: &[&Path]) -> Self {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let own = own.iter().copied().chain(home.as_deref());
        let paths = own
            .flat_map(Path::ancestors)
            .chain(OF_THE_MACHINE.map(Path::new));
        let found = paths.filter_map(|path| stat(path).ok());
        Self(found.map(|found| (found.st_dev, found.st_ino)).collect())
    }

    /// Whether `path` may be relabelled. Links in it are followed.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; [`Error::Open`] if it is not there.
    pub fn check(&self, path: &Path) -> Result<(), Error> {
        self.open(path).map(drop)
    }

    /// Whether `name` in a folder is one of them, or has one mounted on it.
    fn has(&self, folder: &OwnedFd, name: &CStr) -> bool {
        let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|found| self.0.contains(&(found.st_dev, found.st_ino)))
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty()).and_then(|opened| {
            let identity = identity(&opened)?;
            Ok((opened, identity))
        });
        let (opened, identity) = opened.map_err(|error| Error::Open {
            path: path.to_owned(),
            source: error.into(),
        })?;
        match self.0.contains(&identity) {
            true => Err(Error::Forbidden(path.to_owned())),
            false => Ok(opened),
        }
    }
}

/// Labels `path`, which links may lead to, and all that is below it. What has the label already is left alone; a file
/// system without labels is, too.
///
/// # Errors
/// [`Error`]. What was labelled until then stays so.
pub fn relabel(path: &Path, label: &Label, forbidden: &Forbidden) -> Result<(), Error> {
    let top = forbidden.open(path)?;
    let failed = |source: io::Error| Error::Open {
        path: path.to_owned(),
        source,
    };
    let label = label.to_string();
    let labelled = set_open(&top, &label).map_err(failed)?;
    if !labelled || !is_folder(&top).map_err(failed)? {
        return Ok(());
    }
    let top = openat(&top, c".", FOLDER, Mode::empty()).map_err(|error| failed(error.into()))?;
    walk(top, &label, forbidden)
}

/// Labels one file, which links may lead to. On a file system without labels it does nothing.
///
/// # Errors
/// As `setxattr(2)`.
pub fn set_label(path: &Path, label: &Label) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty())?;
    set_open(&file, &label.to_string()).map(drop)
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A folder on the way down.
struct Level {
    identity: Identity,
    /// The folders in it that are still to be entered.
    folders: Vec<CString>,
}

fn walk(top: OwnedFd, label: &str, forbidden: &Forbidden) -> Result<(), Error> {
    let mut here = top;
    let mut levels = vec![enter(&here, c".", label, forbidden)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.folders.pop() {
            here = match openat(&here, &*name, FOLDER, Mode::empty()) {
                Ok(folder) => folder,
                // Gone, or something else by now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(failed(&name)(error.into())),
            };
            levels.push(enter(&here, &name, label, forbidden)?);
        } else {
            levels.pop();
            let Some(parent) = levels.last() else { break };
            here = openat(&here, c"..", FOLDER, Mode::empty()).map_err(|_| Error::Moved)?;
            if identity(&here).ok() != Some(parent.identity) {
                return Err(Error::Moved);
            }
        }
    }
    Ok(())
}

/// Labels what is in the folder of that name.
fn enter(
    folder: &OwnedFd,
    name: &CStr,
    label: &str,
    forbidden: &Forbidden,
) -> Result<Level, Error> {
    let mut level = Level {
        identity: identity(folder).map_err(|error| failed(name)(error.into()))?,
        folders: Vec::new(),
    };
    let entries = Dir::read_from(folder).map_err(|error| failed(name)(error.into()))?;
    for entry in entries {
        let entry = entry.map_err(|error| failed(name)(error.into()))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let may_be_folder = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if may_be_folder && forbidden.has(folder, name) {
            let name = OsStr::from_bytes(name.to_bytes());
            return Err(Error::Forbidden(name.into()));
        }
        let mut path = descriptor(folder);
        path.push(OsStr::from_bytes(name.to_bytes()));
        let present = |value: &mut [u8]| lgetxattr(&path, ATTRIBUTE, value);
        let write = || lsetxattr(&path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty());
        if set(label, present, write).map_err(failed(name))? && may_be_folder {
            level.folders.push(name.to_owned());
        }
    }
    Ok(level)
}

fn failed(name: &CStr) -> impl Fn(io::Error) -> Error {
    let name = name.to_owned();
    move |source| Error::Entry {
        name: name.clone(),
        source,
    }
}

/// Labels a file that is open, whatever its path leads to by now.
fn set_open(file: &OwnedFd, label: &str) -> io::Result<bool> {
    let path = descriptor(file);
    let present = |value: &mut [u8]| getxattr(&path, ATTRIBUTE, value);
    let write = || setxattr(&path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty());
    set(label, present, write)
}

/// Writes a label where it is not there yet. False if the file has gone, or its file system has no labels.
fn set(
    label: &str,
    present: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    write: impl Fn() -> Result<(), Errno>,
) -> io::Result<bool> {
    let mut value = vec![0; label.len() + 1];
    if let Ok(length) = present(&mut value) {
        let value = &value[..length];
        // The kernel adds a NUL.
        if value.strip_suffix(b"\0").unwrap_or(value) == label.as_bytes() {
            return Ok(true);
        }
    }
    match write() {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A path to what is open.
fn descriptor(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn identity(file: impl AsFd) -> Result<Identity, Errno> {
    let found = fstat(file)?;
    Ok((found.st_dev, found.st_ino))
}

fn is_folder(file: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn label() -> Label {
        LABEL.parse().unwrap()
    }

    /// As far as it is a text. A kernel without SELinux takes any, from root.
    fn label_of(path: &Path) -> Option<String> {
        let mut value = [0; 256];
        let length = lgetxattr(path, ATTRIBUTE, &mut value[..]).ok()?;
        let text = String::from_utf8_lossy(&value[..length]);
        Some(text.trim_end_matches('\0').to_owned())
    }

    fn nothing() -> Forbidden {
        Forbidden(HashSet::new())
    }

    #[test]
    fn a_tree_is_labelled_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("canary"), "").unwrap();
        let before = label_of(&outside.path().join("canary"));
        let top = dir.path().join("volume");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), "").unwrap();
        nix::unistd::mkfifo(&top.join("a/fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        symlink(outside.path(), top.join("a/out")).unwrap();
        symlink("nowhere", top.join("a/dangling")).unwrap();
        fs::write(dir.path().join("beside"), "").unwrap();
        let beside = label_of(&dir.path().join("beside"));
        let link = dir.path().join("link");
        symlink(&top, &link).unwrap();
        for _ in 0..2 {
            relabel(&link, &label(), &nothing()).unwrap();
        }
        for path in ["", "a", "a/b", "a/b/file", "a/fifo", "a/out", "a/dangling"] {
            let found = label_of(&top.join(path));
            assert_eq!(found.as_deref(), Some(LABEL), "{path}");
        }
        assert_eq!(label_of(&outside.path().join("canary")), before);
        assert_ne!(label_of(outside.path()).as_deref(), Some(LABEL));
        assert_eq!(label_of(&dir.path().join("beside")), beside);
        let file = top.join("a/b/file");
        let other = label().shared();
        relabel(&file, &other, &nothing()).unwrap();
        assert_eq!(label_of(&file), Some(other.to_string()));
        set_label(&file, &label()).unwrap();
        assert_eq!(label_of(&file).as_deref(), Some(LABEL));
    }

    #[test]
    fn what_has_the_label_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        relabel(dir.path(), &label(), &nothing()).unwrap();
        let changed = || stat(&file).map(|found| (found.st_ctime, found.st_ctime_nsec));
        let before = changed().unwrap();
        relabel(dir.path(), &label(), &nothing()).unwrap();
        assert_eq!(changed().unwrap(), before);
    }

    #[test]
    fn a_deep_tree_is_labelled_with_few_descriptors() {
        const DEPTH: usize = 5_000;
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut deepest = rustix::fs::open(&top, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&deepest, "d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&deepest, "e", Mode::RWXU).unwrap();
            deepest = openat(&deepest, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        relabel(&top, &label(), &nothing()).unwrap();
        let deepest = descriptor(&deepest).join(".");
        assert_eq!(label_of(&deepest).as_deref(), Some(LABEL));
        crate::store::remove_tree::remove_tree(&top).unwrap();
    }

    #[test]
    fn the_machines_folders_are_refused_however_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("lib/carpel");
        let state = dir.path().join("run");
        fs::create_dir_all(&own).unwrap();
        fs::create_dir(&state).unwrap();
        let forbidden = Forbidden::new(&[&own, &state]);
        let link = dir.path().join("link");
        symlink("/etc", &link).unwrap();
        let refused = |path: &Path| {
            let check = forbidden.check(path).map_err(|error| error.to_string());
            let expected = format!("{} must not be relabelled", path.display());
            check.is_err_and(|error| error.starts_with(&expected))
        };
        for path in [
            "/",
            "/usr",
            "/etc",
            "/etc/passwd",
            "/var/lib",
            "/tmp/..",
            "/proc",
        ] {
            assert!(refused(path.as_ref()), "{path}");
        }
        for path in [&own, &state, &link, &dir.path().join("lib"), dir.path()] {
            assert!(refused(path), "{}", path.display());
        }
        let volume = dir.path().join("lib/volume");
        fs::create_dir(&volume).unwrap();
        for path in [&volume, &own.join("..").join("volume")] {
            assert!(forbidden.check(path).is_ok());
        }
        let missing = forbidden.check(&dir.path().join("missing")).unwrap_err();
        assert!(matches!(missing, Error::Open { .. }), "{missing}");
    }

    #[test]
    fn what_is_forbidden_is_not_reached_from_above() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("volume");
        let secret = top.join("a/secret");
        fs::create_dir_all(&secret).unwrap();
        fs::write(secret.join("file"), "").unwrap();
        let before = (label_of(&secret), label_of(&secret.join("file")));
        let found = stat(&secret).unwrap();
        let forbidden = Forbidden(HashSet::from([(found.st_dev, found.st_ino)]));
        let error = relabel(&top, &label(), &forbidden).unwrap_err();
        assert!(matches!(error, Error::Forbidden(_)), "{error}");
        assert_eq!((label_of(&secret), label_of(&secret.join("file"))), before);
    }

    #[test]
    fn what_has_no_labels_is_left_alone() {
        // A procfs never takes any.
        relabel("/proc/sys/kernel".as_ref(), &label(), &nothing()).unwrap();
    }
}
