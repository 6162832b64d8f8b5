//! The space that writable layers take: found out by a thread of low priority, never by a request.
//!
//! It walks only while somebody asks: a request makes it due, and it then measures every container whose
//! layer may have changed. A layer is at most some [`INTERVAL`]s old; walks that take long come more
//! rarely, so that they take no more than a twentieth of the time.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::iter::Sum;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat,
};
use rustix::io::Errno;

use crate::container::{Container, Status};
use crate::node::Node;

/// The least time between two walks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Of the time, a walk takes at most one part in this many.
const SHARE: u32 = 20;

/// What a tree takes on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// When it was found out, nanoseconds since the epoch.
    pub at: i64,
    pub bytes: u64,
    pub inodes: u64,
}

/// What many trees take together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskTotal {
    pub bytes: u64,
    pub inodes: u64,
}

impl FromIterator<DiskUsage> for DiskTotal {
    fn from_iter<T: IntoIterator<Item = DiskUsage>>(all: T) -> Self {
        all.into_iter()
            .map(|usage| Self {
                bytes: usage.bytes,
                inodes: usage.inodes,
            })
            .sum()
    }
}

impl Sum for DiskTotal {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            bytes: sum.bytes.saturating_add(one.bytes),
            inodes: sum.inodes.saturating_add(one.inodes),
        })
    }
}

/// A handle of the thread, which ends with the node.
pub(crate) struct Walker(SyncSender<()>);

/// What the thread waits on until there is a node to walk for.
pub(crate) struct Asked(Receiver<()>);

impl Walker {
    pub fn new() -> (Self, Asked) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), Asked(receiver))
    }

    /// Somebody wants to know.
    pub fn wanted(&self) {
        match self.0.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => {
                tracing::debug!("the thread that walks writable layers is gone");
            }
        }
    }
}

impl Asked {
    /// Starts the thread.
    ///
    /// # Errors
    /// That of making a thread.
    pub fn serve(self, node: &Arc<Node>) -> io::Result<()> {
        let node = Arc::downgrade(node);
        std::thread::Builder::new()
            .name("carpel-disk".into())
            .spawn(move || serve(&self.0, &node))
            .map(drop)
    }
}

fn serve(asked: &Receiver<()>, node: &Weak<Node>) {
    // Of this thread alone. Its priority for the disk follows.
    let _ = rustix::process::setpriority_process(None, 19);
    // What the last daemon's containers take is not known yet.
    let mut due = true;
    while due || asked.recv().is_ok() {
        due = false;
        let begin = Instant::now();
        let Some(node) = node.upgrade() else { return };
        for container in node.containers() {
            measure(&node, &container);
        }
        drop(node);
        std::thread::sleep(INTERVAL.max(begin.elapsed() * SHARE));
    }
}

/// Measures a container's layer, unless it is known and cannot have changed since.
fn measure(node: &Node, container: &Container) {
    let known = container.remembered.disk();
    let last_change = match container.status() {
        Status::Created => Some(container.created_at),
        Status::Running(_) | Status::Unseen => None,
        Status::Exited(exited) => Some(exited.finished_at),
        Status::Removing(_) => return,
    };
    if let (Some(known), Some(change)) = (known, last_change)
        && known.at > change
    {
        return;
    }
    let at = crate::node::now();
    match walk(&node.paths.container(&container.id).join("upper")) {
        Ok((bytes, inodes)) => {
            container
                .remembered
                .set_disk(DiskUsage { at, bytes, inodes });
        }
        // Removed meanwhile, as a rule.
        Err(error) => {
            tracing::debug!(container.id = %container.id, %error, "writable layer not measured")
        }
    }
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A path this long is opened from a folder further down: the kernel takes paths of 4096 bytes.
const LONG: usize = 2048;

/// The blocks, in bytes, and the number of everything below `root`. A file with many names counts once. A
/// container changes the tree meanwhile: what is gone is not counted, no link is followed, no mount entered.
fn walk(root: &Path) -> io::Result<(u64, u64)> {
    let root = openat(CWD, root, FOLDER, Mode::empty())?;
    let mut left = vec![(Rc::new(root), Vec::<u8>::new())];
    let mut many_names = HashSet::new();
    let (mut bytes, mut inodes) = (0_u64, 0_u64);
    // The last one first, so that what is kept open is what leads to it.
    while let Some((base, path)) = left.pop() {
        let folder = match open(&base, &path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            other => other?,
        };
        let entries = Dir::read_from(&folder)?;
        let (base, path) = if path.len() > LONG {
            (Rc::new(folder), Vec::new())
        } else {
            (base, path)
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = child(&path, name);
            let Ok(stat) = statat(&*base, &*path, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if folder {
                left.push((Rc::clone(&base), path.into_bytes()));
            } else if stat.st_nlink > 1 && !many_names.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            inodes += 1;
            bytes = bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
        }
    }
    Ok((bytes, inodes))
}

fn child(folder: &[u8], name: &[u8]) -> CString {
    let mut path = folder.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    CString::new(path).expect("a name that the kernel gave has no NUL")
}

fn open(base: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(base, path, FOLDER, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn blocks(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().blocks() * 512
    }

    #[test]
    fn everything_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("upper");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        symlink("/", root.join("a/link")).unwrap();
        fs::File::create(root.join("sparse"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let expected: u64 = ["a", "a/b", "a/file", "a/link", "sparse"]
            .iter()
            .map(|path| blocks(&root.join(path)))
            .sum();
        assert_eq!(walk(&root).unwrap(), (expected, 5));
        assert!((100_000..1 << 20).contains(&expected));
        assert!(walk(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_tree_may_be_deeper_than_a_path_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("upper");
        fs::create_dir(&top).unwrap();
        let name = "n".repeat(200);
        let mut at = openat(CWD, &top, FOLDER, Mode::empty()).unwrap();
        for _ in 0..100 {
            rustix::fs::mkdirat(&at, &*name, Mode::RWXU).unwrap();
            at = openat(&at, &*name, FOLDER, Mode::empty()).unwrap();
        }
        assert_eq!(walk(&top).unwrap().1, 100);
        crate::store::remove_tree::remove_tree(&top).unwrap();
    }
}
