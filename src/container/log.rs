//! A container's log file, opened for its supervisor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
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
        let supervisor = self.supervisor_of(&container).await?;
        let running = container.require_running()?;
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
        running.kept.set_log(log);
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

/// Cuts a log back to its last whole line: its writer was killed while it wrote. For a while, no one else
/// writes to it.
///
/// # Errors
/// As `open(2)`, `read(2)`, `ftruncate(2)`.
pub(crate) fn mend(log: &OwnedFd) -> io::Result<()> {
    // More than a line ever has.
    const END: u64 = 64 << 10;
    let file = File::open(format!("/proc/self/fd/{}", log.as_raw_fd()))?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(END);
    let mut end = vec![0; usize::try_from(length - start).unwrap_or_default()];
    file.read_exact_at(&mut end, start)?;
    let whole = match end.iter().rposition(|byte| *byte == b'\n') {
        Some(newline) => newline + 1,
        None if start == 0 => 0,
        // No log of ours.
        None => return Ok(()),
    };
    if whole < end.len() {
        rustix::fs::ftruncate(log, start + whole as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_log_is_cut_back_to_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        for (text, whole) in [
            ("".to_owned(), 0),
            ("torn".to_owned(), 0),
            ("one\n".to_owned(), 4),
            ("one\ntorn".to_owned(), 4),
            (
                format!("{}\n{}", "x".repeat(100_000), "y".repeat(20_000)),
                100_001,
            ),
            ("z".repeat(100_000), 100_000),
        ] {
            let log = open_below(dir.path(), Path::new("0.log")).unwrap();
            std::fs::write(dir.path().join("0.log"), &text).unwrap();
            mend(&log).unwrap();
            let left = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
            assert_eq!(left, text[..whole]);
        }
    }

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
