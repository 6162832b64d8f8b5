//! The processes of a container, as /proc shows them.

use std::path::PathBuf;

use rustix::fs::{CWD, Dir, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;

/// The descriptors of a container that are looked at. More take too long for a request.
const MOST: u32 = 1 << 15;

/// The processes of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processes {
    pub count: u64,
    /// What they have open. `None` if they are too many, or are not to be seen by the daemon.
    pub descriptors: Option<u64>,
    pub sockets: Option<u64>,
    /// The first process's own limit of open files. `None`: unlimited, or it is gone.
    pub open_files: Option<u64>,
}

/// Looks at the processes of a container, of which `first` is the first.
pub(super) fn read(pids: &[u32], first: u32) -> Processes {
    let mut open = Open {
        descriptors: Some(0),
        sockets: Some(0),
        left: MOST,
    };
    for pid in pids {
        open.count(*pid);
    }
    let limits = std::fs::read_to_string(format!("/proc/{first}/limits"));
    Processes {
        count: u64::try_from(pids.len()).unwrap_or(u64::MAX),
        descriptors: open.descriptors,
        sockets: open.sockets,
        open_files: limits.ok().and_then(|text| open_files(&text)),
    }
}

/// The soft one of the line "Max open files  1024  524288  files".
fn open_files(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let columns = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    columns.split_ascii_whitespace().next()?.parse().ok()
}

/// What is counted so far.
struct Open {
    descriptors: Option<u64>,
    sockets: Option<u64>,
    left: u32,
}

impl Open {
    /// A process that is gone has nothing open.
    fn count(&mut self, pid: u32) {
        let counted = match folder(pid) {
            Ok(folder) => self.count_in(&folder),
            Err(error) => Err(error),
        };
        match counted {
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            // Of a user namespace that is not the daemon's, for instance.
            Err(_) => (self.descriptors, self.sockets) = (None, None),
        }
    }

    fn count_in(&mut self, folder: &rustix::fd::OwnedFd) -> rustix::io::Result<()> {
        // Since Linux 6.2 that is how many there are.
        let size = u64::try_from(fstat(folder)?.st_size).unwrap_or(0);
        let (mut names, mut all) = (0, true);
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if self.left == 0 {
                all = false;
                break;
            }
            self.left -= 1;
            names += 1;
            // One that was closed meanwhile is none.
            let link = readlinkat(folder, name, Vec::new());
            let socket = link.is_ok_and(|link| link.to_bytes().starts_with(b"socket:"));
            self.sockets = self.sockets.map(|count| count + u64::from(socket));
        }
        let known = match (all, size) {
            (true, _) => Some(names),
            (false, 0) => None,
            (false, size) => Some(size),
        };
        self.descriptors = self.descriptors.zip(known).map(|(sum, one)| sum + one);
        self.sockets = self.sockets.filter(|_| all);
        Ok(())
    }
}

fn folder(pid: u32) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let path: PathBuf = format!("/proc/{pid}/fd").into();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};

    #[test]
    fn what_is_open_is_counted() {
        let (one, _other) = UnixDatagram::pair().unwrap();
        let stdin = Stdio::from(std::os::fd::OwnedFd::from(one));
        let mut sleep = Command::new("sleep")
            .arg("60")
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = sleep.id();
        // Whoever runs the tests may have left it more.
        let all = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count();
        let seen = read(&[pid, u32::MAX], pid);
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        assert_eq!(
            (seen.count, seen.descriptors, seen.sockets),
            (2, Some(all as u64), Some(1)),
            "of the one that is there"
        );
        assert!(seen.open_files.is_some());
        let gone = read(&[], pid);
        assert_eq!((gone.count, gone.open_files), (0, None));
    }

    #[test]
    fn what_is_too_much_is_not_known_in_part() {
        let mut open = Open {
            descriptors: Some(0),
            sockets: Some(0),
            left: 2,
        };
        // The test's own process has more than two.
        open.count(std::process::id());
        assert_eq!(open.sockets, None);
        assert_ne!(open.descriptors, Some(2));
    }

    #[test]
    fn no_limit_is_none() {
        let text = "Limit      Soft Limit  Hard Limit  Units\n\
                    Max open files            1024                 524288               files\n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(open_files(&text.replace("1024 ", "unlimited ")), None);
        assert_eq!(open_files(""), None);
    }
}
