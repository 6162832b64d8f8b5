//! The folder that a layer is unpacked into, reached through its descriptor only.
//!
//! Paths here are checked ones: no "." or "..", no empty component, not absolute. The kernel resolves them below the
//! folder (`openat2`) and refuses every symbolic link and mount on the way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, openat2, statat,
    utimensat,
};
use rustix::io::Errno;

use super::pax::Time;
use crate::store::root_fd::RootFd;

/// A layer's folder.
#[derive(Debug)]
pub struct Tree(RootFd);

/// What a layer says of an entry beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub atime: Option<Time>,
    /// Allowed ones only.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A name that neither leaves its folder nor means the folder itself is checked by whoever makes the path.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

impl Tree {
    /// Opens the folder at `path` of the host.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = RootFd::open(path)?;
        // O_PATH does not do for changing attributes.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat2(root.as_fd(), c".", flags, Mode::empty(), RESOLVE)?;
        Ok(Self(folder.into()))
    }

    /// Opens the folder `path`; ELOOP if a link is on the way, ENOTDIR if something else is.
    pub(super) fn folder(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        self.open_at(path, flags)
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let mut tries = 0;
        loop {
            match openat2(
                &self.0,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                RESOLVE,
            ) {
                Err(Errno::AGAIN) if tries < 64 => tries += 1,
                other => return other,
            }
        }
    }

    /// Opens what is at `path` for reading, without waiting for whatever it may be.
    pub(super) fn file(&self, path: &[u8]) -> Result<(OwnedFd, Stat), Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open_at(path, flags)?;
        let stat = rustix::fs::fstat(&file)?;
        Ok((file, stat))
    }

    /// Opens the ordinary file `path` for reading.
    ///
    /// # Errors
    /// As `open(2)`; there is something else in its place.
    pub fn regular_file(&self, path: &[u8]) -> io::Result<std::fs::File> {
        let (file, stat) = self.file(path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(file.into()),
            _ => Err(io::Error::other("something else is in its place")),
        }
    }

    /// What is at `path`, itself and not what it links to.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Stat, Errno> {
        let (parent, name) = split(path);
        if name.is_empty() {
            return rustix::fs::fstat(&self.0);
        }
        statat(self.folder(parent)?, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The metadata of the folder `path`: `None` if there is none, or something else in its place, which then
    /// hides what layers below have there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn folder_metadata(&self, path: &[u8]) -> io::Result<Found> {
        let folder = match self.folder(path) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::LOOP | Errno::NOTDIR) => return Ok(Found::Hidden),
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&folder)?;
        let time = |seconds, nanoseconds: u64| Time {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        };
        Ok(Found::Folder(Metadata {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            atime: None,
            xattrs: allowed_xattrs(folder.as_fd())?,
        }))
    }

    /// Whether the folder `path` hides what layers below have in it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn is_opaque(&self, path: &[u8]) -> io::Result<bool> {
        let folder = match self.folder(path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let mut value = [0; 8];
        match fgetxattr(&folder, OPAQUE, &mut value[..]) {
            Ok(_) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the folder `path` the metadata, times included.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn set_folder_metadata(&self, path: &[u8], metadata: &Metadata) -> io::Result<()> {
        let folder = self.folder(path)?;
        apply(folder.as_fd(), metadata, FileType::Directory)?;
        Ok(set_times(folder.as_fd(), c"", metadata)?)
    }
}

/// What a layer has at a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// Something that is no folder: a whiteout or a file.
    Hidden,
    Folder(Metadata),
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";

/// Splits a checked path into its folder and its last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Sets owner, attributes and mode of an open file or folder, in an order that loses none: a change of owner clears
/// setuid bits and capabilities.
pub(super) fn apply(file: BorrowedFd, metadata: &Metadata, kind: FileType) -> Result<(), Errno> {
    fchown(
        file,
        Some(Uid::from_raw(metadata.uid)),
        Some(Gid::from_raw(metadata.gid)),
    )?;
    fchmod(file, Mode::from_raw_mode(metadata.mode))?;
    for (name, value) in &metadata.xattrs {
        if name == CAPABILITY && kind != FileType::RegularFile {
            continue;
        }
        match fsetxattr(file, &name[..], value, XattrFlags::empty()) {
            // A file system may have no attributes for users; programs work without them.
            Err(Errno::OPNOTSUPP) if name != CAPABILITY => {}
            other => other?,
        }
    }
    Ok(())
}

/// Sets the owner of a link, FIFO or device, which is not opened for it.
pub(super) fn set_owner(parent: BorrowedFd, name: &[u8], metadata: &Metadata) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
    chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// Sets the times of `name` in `parent`, of a link itself. An empty name is `parent` itself.
pub(super) fn set_times(
    parent: BorrowedFd,
    name: impl rustix::path::Arg,
    metadata: &Metadata,
) -> Result<(), Errno> {
    let spec = |time: Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds),
    };
    let times = Timestamps {
        last_access: spec(metadata.atime.unwrap_or(metadata.mtime)),
        last_modification: spec(metadata.mtime),
    };
    if name.as_cow_c_str()?.is_empty() {
        return rustix::fs::futimens(parent, &times);
    }
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

const CAPABILITY: &[u8] = b"security.capability";

/// Whether a layer may set the attribute. Those that steer overlayfs or a security module are not its to set.
pub(super) fn is_allowed_xattr(name: &[u8]) -> bool {
    name == CAPABILITY || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn allowed_xattrs(folder: BorrowedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let length = match flistxattr(folder, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|&b| b == 0) {
        if is_allowed_xattr(name) {
            let mut value = vec![0; 64 << 10];
            let length = fgetxattr(folder, name, &mut value[..])?;
            value.truncate(length);
            found.push((name.to_vec(), value));
        }
    }
    Ok(found)
}
