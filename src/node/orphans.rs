//! Processes that came to the daemon as their subreaper, and others that only a pidfd is known of.
//!
//! When a supervisor dies its children become the daemon's, if it was this daemon that had started it. A
//! container's first process cannot end before every other of its PID namespace is reaped, so commands that
//! ran there are reaped at once: what lies in a PID namespace below the daemon's own was never started by it.
//! Other orphans come too: what a CNI plugin left in the background, stray children of containers that run
//! among the host's processes. Whoever started a child waits for it at once, so a zombie that is there for
//! long has no owner.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::signal::unix::{SignalKind, signal};

use super::Node;
use crate::sys;

/// How often is looked for zombies whose end was not noticed, or that had an owner then.
const INTERVAL: Duration = Duration::from_secs(5);
/// For this long a child's end is left to whoever may have started it.
const OWNED: Duration = Duration::from_secs(5);
/// Several children often end together.
const SETTLE: Duration = Duration::from_millis(20);

/// How long a killed process may take to die.
const DEATH: Duration = Duration::from_secs(5);

/// Reaps orphans for as long as the daemon lives.
pub async fn reap_orphans(node: Arc<Node>) {
    let mut ended = signal(SignalKind::child()).ok();
    let mut seen = HashMap::new();
    loop {
        let notice = async {
            match &mut ended {
                Some(ended) => ended.recv().await,
                None => std::future::pending().await,
            }
        };
        if tokio::time::timeout(INTERVAL, notice).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
        sweep(&node, &mut seen);
    }
}

/// Reaps every zombie that nobody waits for. `seen` are the others, with when they were first seen.
fn sweep(node: &Node, seen: &mut HashMap<i32, Instant>) {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if !matches!(waitid(WaitId::All, look), Ok(Some(_))) {
        return seen.clear();
    }
    let own_depth = depth("self");
    let now = Instant::now();
    let running = node.containers().into_iter();
    // Their codes are first to be read by the supervisor that adopted them.
    let adopted: HashSet<i32> = running
        .filter_map(|container| Some(container.running()?.pid.cast_signed()))
        .collect();
    let mut zombies = children();
    zombies.retain(|pid| is_zombie(*pid));
    seen.retain(|pid, _| zombies.contains(pid));
    for zombie in zombies {
        let since = *seen.entry(zombie).or_insert(now);
        let foreign = depth(&zombie.to_string()) > own_depth && !adopted.contains(&zombie);
        if (foreign || now - since >= OWNED)
            && let Some(pid) = Pid::from_raw(zombie)
        {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = waitid(WaitId::Pid(pid), options);
            seen.remove(&zombie);
        }
    }
}

/// In how many PID namespaces a process has a number, from that of this procfs on.
fn depth(process: &str) -> usize {
    status_field(process, "NSpid:").map_or(0, |pids| pids.split_whitespace().count())
}

fn status_field(process: &str, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().to_owned())
}

/// Kills a process, child or not, waits until it is dead (not for ever), and reaps it if it is a child. The
/// wait status, if it can be known.
pub(crate) async fn end(pidfd: &OwnedFd) -> Option<i32> {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let watched = pidfd.try_clone().and_then(sys::async_fd);
    let ended = async {
        if let Ok(watched) = &watched {
            let _ = watched.readable().await;
        }
        // Without a descriptor to spare it cannot be waited for.
        while !has_ended(pidfd) {
            tokio::time::sleep(SETTLE).await;
        }
    };
    let _ = tokio::time::timeout(DEATH, ended).await;
    reap(pidfd).or_else(|| sys::reaped_status(pidfd))
}

/// A child that ends by itself, sooner or later: it is reaped then, in a task of its own, whatever becomes of whoever has
/// started it.
pub(crate) struct Ending(Option<OwnedFd>);

impl Ending {
    pub(crate) fn new(pidfd: OwnedFd) -> Self {
        Self(Some(pidfd))
    }

    /// Ends it now.
    pub(crate) async fn end(mut self) {
        if let Some(pidfd) = self.0.take() {
            end(&pidfd).await;
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(pidfd) = self.0.take() else {
            return;
        };
        tokio::spawn(async move {
            if let Ok(pidfd) = sys::async_fd(pidfd) {
                let _ = pidfd.readable().await;
                reap(pidfd.get_ref());
            }
        });
    }
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
    let parent = status_field(&pid.as_raw_nonzero().to_string(), "PPid:");
    parent.is_some_and(|parent| parent == std::process::id().to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_parent_and_its_namespaces() {
        assert!(depth("self") >= 1);
        assert_eq!(depth("0"), 0);
        let child = std::process::Command::new("sleep").arg("100").spawn();
        let mut child = child.unwrap();
        let pid = Pid::from_child(&child);
        assert!(is_child(pid) && !is_child(Pid::INIT));
        assert_eq!(depth(&child.id().to_string()), depth("self"));
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        assert!(!has_ended(&pidfd) && reap(&pidfd).is_none());
        child.kill().unwrap();
        while !has_ended(&pidfd) {
            std::thread::yield_now();
        }
        assert!(is_zombie(child.id().cast_signed()));
        assert_eq!(reap(&pidfd), Some(9));
        assert_eq!(reap(&pidfd), None);
        assert!(child.wait().is_err(), "reaped already");
    }
}
