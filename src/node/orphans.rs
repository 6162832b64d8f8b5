//! Processes that came to the daemon as their subreaper, and others that only a pidfd is known of.
//!
//! When a supervisor dies its children become the daemon's, if it was this daemon that had started it. Other
//! orphans come too: what a CNI plugin left in the background, stray children of commands. Whoever started a
//! child waits for it at once, so a zombie that is still there at the next sweep has no owner.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::sys;

const INTERVAL: Duration = Duration::from_secs(5);

/// How long a killed process may take to die.
const DEATH: Duration = Duration::from_secs(5);

/// Sweeps for as long as the daemon lives.
pub async fn reap_orphans() {
    let mut seen = HashSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if !matches!(waitid(WaitId::All, look), Ok(Some(_))) {
            seen.clear();
            continue;
        }
        let zombies: HashSet<i32> = children()
            .into_iter()
            .filter(|pid| is_zombie(*pid))
            .collect();
        for pid in zombies
            .intersection(&seen)
            .filter_map(|pid| Pid::from_raw(*pid))
        {
            let _ = waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
        }
        seen = zombies;
    }
}

/// Kills a process, child or not, waits until it is dead (not for ever), and reaps it if it is a child. The
/// wait status, if it can be known.
pub(crate) async fn end(pidfd: &OwnedFd) -> Option<i32> {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let ended = async {
        let pidfd = sys::async_fd(pidfd.try_clone()?)?;
        pidfd.readable().await.map(drop)
    };
    let _: Result<std::io::Result<()>, _> = tokio::time::timeout(DEATH, ended).await;
    reap(pidfd).or_else(|| sys::reaped_status(pidfd))
}

/// Reaps a process if it is a child and has ended. Its wait status.
pub(crate) fn reap(pidfd: &OwnedFd) -> Option<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), options).ok()??;
    match status.exit_status() {
        Some(code) => Some((code & 0xff) << 8),
        None => status.terminating_signal(),
    }
}

/// Whether a process has ended.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Whether a process is a child of the daemon.
pub(crate) fn is_child(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let own = std::process::id().to_string();
    status
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .is_some_and(|parent| parent.trim() == own)
}

/// Children of every thread of this process (`proc_pid_task_children(5)`).
fn children() -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .flat_map(|thread| std::fs::read_to_string(thread.path().join("children")));
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The state stands behind the name, which may itself hold parentheses.
fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('Z'))
}
