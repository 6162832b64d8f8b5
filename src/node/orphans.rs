//! Reaping what nobody else waits for.
//!
//! The daemon is a child subreaper, so that the exit codes of a dead supervisor's containers come to it.
//! Other orphans come too: what a CNI plugin left in the background, an exec's stray children. Whoever
//! started a child waits for it at once, so a zombie that is still there at the next sweep has no owner.

use std::collections::HashSet;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

const INTERVAL: Duration = Duration::from_secs(30);

/// Sweeps for as long as the daemon lives.
pub async fn reap_orphans() {
    let mut seen = HashSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
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
