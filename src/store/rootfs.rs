//! The builder: makes the root file systems of containers, as overlays that are attached nowhere.
//!
//! One thread of the daemon has a mount namespace of its own. What it makes leaves it as a descriptor,
//! so nothing shows in the host's mount table and nothing can leak: an overlay ends with its last
//! descriptor and the last mount namespace it was moved to.
//!
//! ```text
//! caller (host's mounts)             builder thread (its own: a small tmpfs, /proc, the anchors)
//!   where does each path lie?  ──▶     attach new anchors
//!   clone its mount, once              open the layers below them, check that they are the same
//!                              ◀──     fsopen("overlay") … fsmount: the descriptor
//! ```
//!
//! What must always hold:
//! - The thread serves nothing else and goes back to no pool: its mount namespace is not the host's.
//!   It ends when the last [`Builder`] is dropped.
//! - The kernel takes layers only from mounts of the calling namespace (before 6.15 not even from
//!   detached ones). So the mount that a layer lies in is cloned, privately, and attached in the builder
//!   once and for good: an *anchor*. There is one for each file system that layers and upper folders are
//!   on, which is one as a rule.
//! - An overlay's options name its folders as "/proc/self/fd/N", because the kernel takes no more than
//!   255 bytes for each (`fsconfig(2)`), and 4096 for all (`mount(2)`, before Linux 6.8).
//! - A second overlay of an upper folder in use is not refused by the kernel. The caller knows that the
//!   first one is gone.

mod anchor;
mod mapped;
mod parts;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use tokio::sync::oneshot;

use anchor::{Anchors, Clones, Place};
use mapped::Mapped;
use parts::{Parts, Top};

use crate::store::RootFd;

/// The most layers of one overlay. The kernel takes 500; images are refused above this.
pub const MAX_LAYERS: usize = 127;

/// A root file system to be made.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Folders with the layers, the bottom one first. None at all gives an empty root.
    pub layers: Vec<PathBuf>,
    /// What the container writes. Its owner and mode are those of the root.
    pub upper: PathBuf,
    /// An empty folder beside `upper`, in the same mount.
    pub work: PathBuf,
    /// Never sync `upper`: after a crash of the machine its content is lost. Without it the end of the
    /// overlay waits until the whole file system that `upper` is on has been written back.
    pub volatile: bool,
    /// The user namespace in whose ids the layers are seen. `upper` and `work` have them already: the kernel
    /// maps the layers' and no others. Linux 5.19.
    pub user_namespace: Option<Arc<OwnedFd>>,
    /// The SELinux label of all that is in it, instead of what its files have.
    pub label: Option<String>,
}

/// An image's content to be mounted beside a root file system.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Folders with the layers, the bottom one first.
    pub layers: Vec<PathBuf>,
    /// A folder of the content, which links in it lead to no other place than within. `None`: all of it.
    pub sub_path: Option<PathBuf>,
    /// The user namespace in whose ids it is seen.
    pub user_namespace: Option<Arc<OwnedFd>>,
    /// The SELinux label of all that is in it.
    pub label: Option<String>,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("overlay of {0} layers: there may be {MAX_LAYERS}")]
    TooManyLayers(usize),
    #[error("folder {}: {source}", .path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {source}", .path.display())]
    SubPath {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mount overlay on {}: {call}: {source}{detail}", .folder.display())]
    Mount {
        /// The uppermost.
        folder: PathBuf,
        call: &'static str,
        /// What the kernel says besides, with a leading separator, or nothing.
        detail: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "layer {}: its file system cannot be idmapped, which a user namespace needs: {source}", .path.display()
    )]
    Map {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the builder of root file systems has ended")]
    Ended,
}

/// Says where a folder lies.
type Placing<'a> = dyn FnMut(&Path) -> Result<Place, Error> + 'a;

/// The handle of the builder thread.
#[derive(Debug, Clone)]
pub struct Builder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    requests: mpsc::Sender<Request>,
    clones: Clones,
}

#[derive(Debug)]
struct Request {
    anchors: Vec<(u64, OwnedFd)>,
    /// The bottom one first.
    layers: Vec<Place>,
    wanted: Wanted,
    seen: Seen,
    reply: oneshot::Sender<Result<OwnedFd, Failure>>,
}

/// How what is made looks from within.
#[derive(Debug, Clone)]
struct Seen {
    user_namespace: Option<Arc<OwnedFd>>,
    label: Option<String>,
}

/// What is made of layers.
#[derive(Debug)]
enum Wanted {
    Rootfs {
        upper: Place,
        work: Place,
        volatile: bool,
    },
    Volume {
        sub_path: Option<PathBuf>,
    },
}

/// Why the builder thread made no overlay.
#[derive(Debug)]
enum Failure {
    /// An anchor does not show what the caller sees there: its mount is another one by now.
    Stale(PathBuf),
    Folder(PathBuf, io::Error),
    SubPath(PathBuf, io::Error),
    Mount(&'static str, String, io::Error),
    /// A layer cannot be seen in other ids.
    Map(PathBuf, io::Error),
}

/// How this kernel wants its overlays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// `fsopen(2)` with "lowerdir+": Linux 6.8.
    LayerByLayer,
    /// `mount(2)` with all of it in one string.
    OneString,
}

impl Builder {
    /// Starts the builder thread.
    ///
    /// # Errors
    /// As `unshare(2)`, `pivot_root(2)` and the mount calls: EPERM without CAP_SYS_ADMIN.
    pub fn start() -> io::Result<Self> {
        Self::start_with(None)
    }

    fn start_with(method: Option<Method>) -> io::Result<Self> {
        let (requests, incoming) = mpsc::channel::<Request>();
        let (ready, started) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("rootfs-builder".to_owned())
            .spawn(move || {
                let mut room = match Room::enter(method) {
                    Ok(room) => room,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                // A caller that is gone wants nothing; what was made ends with its descriptor.
                let _ = ready.send(Ok(()));
                while let Ok(request) = incoming.recv() {
                    let (made, reply) = room.overlay(request);
                    let _ = reply.send(made);
                }
            })?;
        started.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
        Ok(Self(Arc::new(Shared {
            requests,
            clones: Clones::default(),
        })))
    }

    /// Makes an overlay and returns its root: a detached mount, to be moved into a mount namespace with
    /// `move_mount(2)`. It may be looked into with [`crate::store::RootFd`] before.
    ///
    /// What an earlier, `volatile` overlay of the same work folder left there is removed first.
    ///
    /// # Errors
    /// [`Error::Folder`] for a folder that is missing or is no directory, [`Error::Mount`] for what the
    /// kernel refuses.
    pub async fn overlay(&self, overlay: Overlay) -> Result<OwnedFd, Error> {
        let Overlay {
            layers,
            upper,
            work,
            volatile,
            ..
        } = &overlay;
        let seen = Seen {
            user_namespace: overlay.user_namespace.clone(),
            label: overlay.label.clone(),
        };
        let folder = upper.clone();
        let wanted = |place: &mut Placing<'_>| {
            Ok(Wanted::Rootfs {
                upper: place(upper)?,
                work: place(work)?,
                volatile: *volatile,
            })
        };
        self.make(layers, folder, wanted, &seen).await
    }

    /// Mounts an image's content, or a folder of it: a detached mount of a file system that nobody can write to.
    ///
    /// # Errors
    /// [`Error::SubPath`] if there is no such folder, and as [`Builder::overlay`].
    pub async fn volume(&self, volume: Volume) -> Result<OwnedFd, Error> {
        let Volume {
            layers, sub_path, ..
        } = &volume;
        let seen = Seen {
            user_namespace: volume.user_namespace.clone(),
            label: volume.label.clone(),
        };
        let folder = layers.last().cloned().unwrap_or_default();
        let wanted = |_: &mut Placing<'_>| {
            Ok(Wanted::Volume {
                sub_path: sub_path.clone(),
            })
        };
        self.make(layers, folder, wanted, &seen).await
    }

    async fn make(
        &self,
        layers: &[PathBuf],
        folder: PathBuf,
        wanted: impl Fn(&mut Placing<'_>) -> Result<Wanted, Error>,
        seen: &Seen,
    ) -> Result<OwnedFd, Error> {
        if layers.len() > MAX_LAYERS {
            return Err(Error::TooManyLayers(layers.len()));
        }
        let made = match self.request(layers, &wanted, seen, false).await? {
            Err(Failure::Stale(_)) => self.request(layers, &wanted, seen, true).await?,
            made => made,
        };
        made.map_err(|failure| match failure {
            Failure::Stale(path) => Error::Folder {
                path,
                source: io::ErrorKind::StaleNetworkFileHandle.into(),
            },
            Failure::Folder(path, source) => Error::Folder { path, source },
            Failure::SubPath(path, source) => Error::SubPath { path, source },
            Failure::Map(path, source) => Error::Map { path, source },
            Failure::Mount(call, detail, source) => Error::Mount {
                folder,
                call,
                detail,
                source,
            },
        })
    }

    async fn request(
        &self,
        layers: &[PathBuf],
        wanted: impl Fn(&mut Placing<'_>) -> Result<Wanted, Error>,
        seen: &Seen,
        afresh: bool,
    ) -> Result<Result<OwnedFd, Failure>, Error> {
        let mut anchors = Vec::new();
        let mut place = |path: &Path| {
            self.0
                .clones
                .place(path, afresh, &mut anchors)
                .map_err(|source| Error::Folder {
                    path: path.to_owned(),
                    source,
                })
        };
        let wanted = wanted(&mut place)?;
        let layers = layers
            .iter()
            .map(|layer| place(layer))
            .collect::<Result<_, _>>()?;
        let (reply, answer) = oneshot::channel();
        let request = Request {
            anchors,
            layers,
            wanted,
            seen: seen.clone(),
            reply,
        };
        self.0.requests.send(request).map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)
    }
}

/// The builder thread's own mount namespace.
struct Room {
    method: Method,
    anchors: Anchors,
}

impl Room {
    /// Leaves the host's mount namespace for an almost empty one.
    fn enter(method: Option<Method>) -> io::Result<Self> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        // Recursive, because a nested machine's /proc may have mounts on it that are locked together.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let proc = open_tree(CWD, "/proc", flags | OpenTreeFlags::AT_RECURSIVE)?;
        let root = small_tmpfs()?;
        move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        rustix::process::fchdir(&root)?;
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        for folder in ["/proc", "/empty", "/none", "/overlay"] {
            mkdirat(CWD, folder, Mode::from_raw_mode(0o755))?;
        }
        move_mount(
            &proc,
            "",
            CWD,
            "/proc",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        let method = match method {
            Some(method) => method,
            None => probe(),
        };
        Ok(Self {
            method,
            anchors: Anchors::default(),
        })
    }

    fn overlay(
        &mut self,
        request: Request,
    ) -> (
        Result<OwnedFd, Failure>,
        oneshot::Sender<Result<OwnedFd, Failure>>,
    ) {
        let made = self.anchors.attach(request.anchors).and_then(|()| {
            let layers = request.layers.iter().map(|layer| self.anchors.open(layer));
            let layers = layers.collect::<Result<Vec<_>, _>>()?;
            let mapped = match &request.seen.user_namespace {
                Some(namespace) => Some(Mapped::of(&layers, &request.layers, namespace)?),
                None => None,
            };
            let (top, sub_path) = match request.wanted {
                Wanted::Volume { sub_path } => (None, sub_path),
                Wanted::Rootfs {
                    upper,
                    work,
                    volatile,
                } => {
                    let top = Top {
                        upper: self.anchors.open(&upper)?,
                        work: self.anchors.open(&work)?,
                        volatile,
                    };
                    clear_volatile(&top.work)
                        .map_err(|error| Failure::Folder(work.path.clone(), error))?;
                    (Some(top), None)
                }
            };
            let label = request.seen.label;
            let parts = Parts { layers, top, label };
            let parts = match &mapped {
                Some(mapped) => parts.with_layers(mapped)?,
                None => parts,
            };
            let made = match self.method {
                Method::LayerByLayer => parts.mount_layer_by_layer(),
                Method::OneString => parts.mount_one_string(),
            }?;
            match sub_path {
                Some(path) => folder_of(made, &path),
                None => Ok(made),
            }
        });
        (made, request.reply)
    }
}

/// A mount of a folder of what is mounted. A clone is only made of a mount that is attached (before Linux 6.15).
fn folder_of(mount: OwnedFd, path: &Path) -> Result<OwnedFd, Failure> {
    let attach = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", CWD, "/overlay", attach)
        .map_err(|error| Failure::mount("sub path: move_mount", error))?;
    let root = RootFd::from(mount);
    let folder = root
        .open_in(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| Failure::SubPath(path.to_owned(), error));
    let clone = folder.and_then(|folder| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(&folder, "", flags | OpenTreeFlags::AT_EMPTY_PATH)
            .map_err(|error| Failure::mount("sub path: open_tree", error))
    });
    unmount("/overlay", UnmountFlags::DETACH)
        .map_err(|error| Failure::mount("sub path: umount", error))?;
    clone
}

/// The root of the builder's namespace.
fn small_tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("mode", "755"), ("size", "1m"), ("source", "carpel")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// Finds out whether this kernel takes layers one by one, with two that are empty.
fn probe() -> Method {
    let try_it = || -> rustix::io::Result<()> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for folder in ["/empty", "/overlay"] {
            fsconfig_set_string(context.as_fd(), "lowerdir+", folder)?;
        }
        fsconfig_create(context.as_fd())
    };
    match try_it() {
        Ok(()) => Method::LayerByLayer,
        Err(_) => Method::OneString,
    }
}

/// Removes the mark that a volatile overlay leaves in its work folder, for which the kernel would
/// refuse to mount it again.
fn clear_volatile(work: &OwnedFd) -> io::Result<()> {
    for (path, flags) in [
        ("work/incompat/volatile/dirty", AtFlags::empty()),
        ("work/incompat/volatile", AtFlags::REMOVEDIR),
    ] {
        match unlinkat(work, path, flags) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Opens a folder for its place alone.
fn open_folder(at: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests;
