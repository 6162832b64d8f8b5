//! A container's log file, opened for its supervisor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use carpel_wire::{FdIndex, Reply, RequestBody};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};

use super::Container;
use crate::error::Error;
use crate::ids::ContainerId;
use crate::node::Node;

impl Node {
    /// Has the supervisor write to the file that is now at the container's log path: the kubelet has
    /// renamed the old one.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if the container does not run.
    pub async fn reopen_log(self: &Arc<Self>, id: &ContainerId) -> Result<(), Error> {
        let container = self.require_container(id)?;
        let supervisor = self.supervisor_of(&container)?;
        if container.running().is_none() {
            return Err(Error::FailedPrecondition(format!(
                "container {id} is not running"
            )));
        }
        let Some(log) = self.open_log(&container)? else {
            return Ok(());
        };
        let body = RequestBody::ReopenLog {
            id: id.object(),
            log: FdIndex(0),
        };
        let known = |reply: &Reply| matches!(reply, Reply::Done | Reply::NotFound);
        supervisor
            .expect(body, &[log.as_fd()], known)
            .await
            .map_err(Error::at(format!("reopen the log of container {id}")))?;
        Ok(())
    }

    /// Opens the log file for appending; `None` if the container has none.
    pub(crate) fn open_log(&self, container: &Container) -> Result<Option<OwnedFd>, Error> {
        let sandbox = self.sandbox(&container.sandbox);
        let directory = sandbox
            .as_ref()
            .and_then(|sandbox| sandbox.config.log_directory.as_deref());
        let (Some(directory), Some(path)) = (directory, &container.config.log_path) else {
            return Ok(None);
        };
        let opened = open_below(directory, path);
        opened.map(Some).map_err(Error::at(format!(
            "open log {}",
            directory.join(path).display()
        )))
    }
}

/// Opens `path` below `directory` and nowhere else: no link in it is followed. Missing folders are made.
fn open_below(directory: &Path, path: &Path) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(directory)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut parent = rustix::fs::open(directory, folder, Mode::empty())?;
    let mut names: Vec<_> = path.iter().collect();
    let name = names
        .pop()
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EISDIR))?;
    for name in names {
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        parent = openat2(&parent, name, folder, Mode::empty(), resolve)?;
    }
    let file = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    let log = openat2(&parent, name, file, Mode::from_raw_mode(0o640), resolve)?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&log)?.st_mode);
    if kind != rustix::fs::FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_opened_only_below_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let logs = dir.path().join("pods/x");
        drop(open_below(&logs, Path::new("app/0.log")).unwrap());
        assert!(logs.join("app/0.log").is_file());
        std::os::unix::fs::symlink(outside.path(), logs.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("x"), logs.join("file.log")).unwrap();
        for bad in ["link/0.log", "file.log", "app"] {
            assert!(open_below(&logs, Path::new(bad)).is_err(), "{bad}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
