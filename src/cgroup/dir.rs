//! One directory of a cgroup file system and what is done with it, the same in v1 and v2.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir as ReadDir, FileType, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::Error;

/// An open directory, and its name for errors.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    pub path: String,
}

impl Dir {
    /// Opens where a hierarchy is mounted.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: name }),
            Err(error) => Err(Error::Io {
                cgroup: name,
                action: "open".to_owned(),
                source: error.into(),
            }),
        }
    }

    /// The directory of a cgroup below this one; "/" and "" are this one.
    pub fn child(&self, path: &str) -> rustix::io::Result<Self> {
        let below = relative(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            fd: openat(&self.fd, below, flags, Mode::empty())?,
            path: format!("{}/{below}", self.path.trim_end_matches('/')),
        })
    }

    pub fn mkdir(&self, path: &str) -> rustix::io::Result<()> {
        mkdirat(&self.fd, relative(path), Mode::from_raw_mode(0o755))
    }

    /// A file to be written.
    pub fn file(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.fd, name, flags, Mode::empty())
    }

    /// Writes all of `value` in one write, as the kernel wants it.
    pub fn write(&self, file: &str, value: &str) -> rustix::io::Result<()> {
        rustix::io::write(self.file(file)?, value.as_bytes()).map(drop)
    }

    pub fn read(&self, file: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = std::fs::File::from(openat(&self.fd, file, flags, Mode::empty())?);
        let mut text = String::with_capacity(128);
        io::Read::read_to_string(&mut &file, &mut text)?;
        Ok(text)
    }

    /// The names of the cgroups directly below.
    fn children(&self) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut children = Vec::new();
        for entry in ReadDir::new(openat(&self.fd, ".", flags, Mode::empty())?)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if entry.file_type() == FileType::Directory && name != "." && name != ".." {
                children.push(name.into_owned());
            }
        }
        Ok(children)
    }

    /// Visits this cgroup and those below it, parents first. One that vanishes meanwhile is left out.
    pub fn walk(&self, mut visit: impl FnMut(&Dir) -> io::Result<()>) -> io::Result<()> {
        // A stack of its own: a container may nest cgroups as deep as it likes.
        let mut left = vec![String::new()];
        while let Some(path) = left.pop() {
            let visited = self.child(&path).map_err(io::Error::from).and_then(|dir| {
                visit(&dir)?;
                dir.children()
            });
            match visited {
                Ok(children) => left.extend(children.iter().map(|child| join(&path, child))),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The processes in this cgroup and below.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids: Vec<u32> = Vec::new();
        self.walk(|dir| {
            pids.extend(
                dir.read("cgroup.procs")?
                    .lines()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            Ok(())
        })?;
        // 0 is a process of another PID namespace, and to kill(2) it is our own group.
        pids.retain(|pid| *pid != 0);
        Ok(pids)
    }

    /// Removes the cgroup at `path`, and those below it first. Until `end` it waits while it is busy with
    /// processes that are dying.
    pub fn remove(&self, path: &str, end: Instant) -> io::Result<()> {
        let mut pause = Duration::from_micros(200);
        loop {
            match unlinkat(&self.fd, relative(path), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
                Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() < end => {}
                Err(error) => return Err(error.into()),
            }
            if !self.remove_below(path)? {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
    }

    /// Removes what is below `path`, as far as it lets itself be removed. Says whether that was anything.
    fn remove_below(&self, path: &str) -> io::Result<bool> {
        let mut found = Vec::new();
        let mut left = vec![relative(path).to_owned()];
        while let Some(path) = left.pop() {
            match self
                .child(&path)
                .map_err(io::Error::from)
                .and_then(|dir| dir.children())
            {
                Ok(children) => {
                    let children: Vec<_> =
                        children.iter().map(|child| join(&path, child)).collect();
                    found.extend(children.iter().cloned());
                    left.extend(children);
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        // The deepest ones were found last.
        let mut removed = false;
        for path in found.iter().rev() {
            removed |= unlinkat(&self.fd, path.as_str(), AtFlags::REMOVEDIR).is_ok();
        }
        Ok(removed)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.fd
    }
}

/// Whether a cgroup was removed while it was looked at.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        below => below,
    }
}

fn join(path: &str, child: &str) -> String {
    match path {
        "" | "." => child.to_owned(),
        _ => format!("{path}/{child}"),
    }
}
