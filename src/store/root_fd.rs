//! A root directory that paths are resolved in by the kernel, never by string.
//!
//! Everything below an image's or a container's root file system is reached through a [`RootFd`]:
//! `openat2(2)` with RESOLVE_IN_ROOT, so that "..", absolute links and links that are swapped meanwhile
//! stay inside, and RESOLVE_NO_MAGICLINKS, so that no /proc link leads out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

/// An open root directory.
#[derive(Debug)]
pub struct RootFd(OwnedFd);

impl RootFd {
    /// Opens the directory at `path` of the host. The last component may not be a symbolic link.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Opens `path` inside the root. Relative and absolute paths mean the same.
    ///
    /// # Errors
    /// As `openat2(2)`: ENOENT, ELOOP, and so on. A race with a rename (EAGAIN) is retried.
    pub fn open_in(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(rustix::io::Errno::AGAIN) if tries < 64 => tries += 1,
                other => return Ok(other?),
            }
        }
    }

    /// Reads a regular file inside the root, whole.
    ///
    /// # Errors
    /// As `openat2(2)`; `InvalidData` if it is no regular file (a FIFO or device is never read and never
    /// waited for) or longer than `limit` bytes.
    pub fn read_file(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.open_in(
            path,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            Mode::empty(),
        )?;
        let kind = FileType::from_raw_mode(fstat(&file)?.st_mode);
        let invalid = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is {what}", path.display()),
            )
        };
        if kind != FileType::RegularFile {
            return Err(invalid("not a regular file"));
        }
        let mut bytes = Vec::new();
        let mut bounded = io::Read::take(std::fs::File::from(file), limit + 1);
        io::Read::read_to_end(&mut bounded, &mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(invalid(&format!("longer than {limit} bytes")));
        }
        Ok(bytes)
    }
}

impl From<OwnedFd> for RootFd {
    /// Takes a directory's descriptor, O_PATH or not (also that of a detached mount).
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<RootFd> for OwnedFd {
    fn from(root: RootFd) -> Self {
        root.0
    }
}

impl AsFd for RootFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "host").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "root:x:0:0").unwrap();
        symlink("/etc/passwd", root.path().join("absolute")).unwrap();
        symlink("../../../../etc/passwd", root.path().join("dots")).unwrap();
        symlink(outside.path().join("secret"), root.path().join("out")).unwrap();
        let fd = RootFd::open(root.path()).unwrap();
        for path in [
            "etc/passwd",
            "/etc/passwd",
            "absolute",
            "dots",
            "../etc/passwd",
        ] {
            assert_eq!(
                fd.read_file(Path::new(path), 100).unwrap(),
                b"root:x:0:0",
                "{path}"
            );
        }
        let error = fd.read_file(Path::new("out"), 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_regular_files_of_bounded_length_are_read() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("long"), [0; 11]).unwrap();
        let mode = nix::sys::stat::Mode::S_IRUSR;
        nix::unistd::mkfifo(&root.path().join("fifo"), mode).unwrap();
        let fd = RootFd::open(root.path()).unwrap();
        for path in ["long", "fifo", "."] {
            let error = fd.read_file(Path::new(path), 10).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{path}");
        }
        assert_eq!(fd.read_file(Path::new("long"), 11).unwrap().len(), 11);
    }
}
