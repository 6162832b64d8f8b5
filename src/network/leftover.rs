//! Plugins that an earlier daemon left running: its death does not end them.
//!
//! What such a plugin does after its pod's DEL, nobody ever undoes: an address is lost for good. And nobody ends
//! one that hangs. So they are dead before the first plugin of this daemon runs.
//!
//! A plugin leads a process group and not a session (see [`super::exec`]), and has a sandbox's id in its
//! environment. What a plugin has left in the background on purpose leads no group, or a session too.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{Pid as RawPid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tracing::warn;

use crate::ids::SandboxId;

/// The most that is read of an environment.
const MAX_ENVIRON: u64 = 1 << 20;
/// How long the end of killed plugins is awaited.
const DEATH: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);

/// A line of `/proc/PID/stat`.
struct Stat {
    dead: bool,
    group: i32,
    session: i32,
}

/// Kills the plugins that run for one of these sandboxes, with their children, and waits for their end.
pub(super) fn end(sandboxes: &[SandboxId]) {
    if sandboxes.is_empty() {
        return;
    }
    let ids: HashSet<_> = sandboxes.iter().map(ToString::to_string).collect();
    let mut groups = HashSet::new();
    for pid in pids() {
        if stat(pid).is_some_and(|stat| stat.group == pid && stat.session != pid && !stat.dead)
            && let Some(id) = kill(pid, &ids)
        {
            warn!(
                sandbox.id = id,
                pid, "a plugin of an earlier daemon ran on: killed"
            );
            groups.insert(pid);
        }
    }
    let deadline = Instant::now() + DEATH;
    let in_them = |pid| stat(pid).is_some_and(|stat| groups.contains(&stat.group) && !stat.dead);
    while !groups.is_empty() && pids().any(in_them) {
        if Instant::now() > deadline {
            warn!("plugins of an earlier daemon do not die");
            return;
        }
        sleep(PAUSE);
    }
}

/// Kills the group of a plugin of one of these sandboxes; of which one it was.
fn kill(pid: i32, sandboxes: &HashSet<String>) -> Option<String> {
    // Held before the environment is read: if it can be killed after that, the environment was its own.
    let pidfd = pidfd_open(RawPid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let mut environ = Vec::new();
    let file = File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(MAX_ENVIRON).read_to_end(&mut environ).ok()?;
    let id = sandbox_of(&environ).filter(|id| sandboxes.contains(id))?;
    pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).ok()?;
    killpg(Pid::from_raw(pid), Signal::SIGKILL).ok()?;
    Some(id)
}

/// The sandbox that a plugin with this environment works for.
fn sandbox_of(environ: &[u8]) -> Option<String> {
    let value = |name: &[u8]| {
        let mut variables = environ.split(|byte| *byte == 0);
        variables.find_map(|variable| variable.strip_prefix(name)?.strip_prefix(b"="))
    };
    value(b"CNI_COMMAND")?;
    String::from_utf8(value(b"CNI_CONTAINERID")?.to_vec()).ok()
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name of the program may itself hold parentheses.
fn parse(stat: &str) -> Option<Stat> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let dead = matches!(fields.next()?, "Z" | "X");
    let _parent = fields.next()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    Some(Stat {
        dead,
        group,
        session,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use super::*;

    #[test]
    fn an_environment_names_its_sandbox() {
        let of = |environ: &str| sandbox_of(environ.replace(' ', "\0").as_bytes());
        let ours = "PATH=/bin CNI_COMMAND=ADD CNI_CONTAINERID=a ";
        assert_eq!(of(ours).as_deref(), Some("a"));
        assert_eq!(of("CNI_CONTAINERID=a X=CNI_COMMAND=ADD"), None);
        assert_eq!(of("CNI_COMMAND=GC CNI_CONTAINERID_=a"), None);
        let stat = parse("7 (a) R (b) Z 1 2 3 4 5").unwrap();
        assert!(stat.dead && (stat.group, stat.session) == (2, 3));
    }

    #[test]
    fn plugins_of_these_sandboxes_die_with_their_children_and_nothing_else() {
        let [ours, other] = [SandboxId::random(), SandboxId::random()];
        let spawn = |id: &SandboxId, group: bool| {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 1000 & wait"]);
            command.env("CNI_COMMAND", "ADD");
            command.env("CNI_CONTAINERID", id.to_string());
            if group {
                command.process_group(0);
            }
            command.spawn().unwrap()
        };
        let mut plugin = spawn(&ours, true);
        let mut spared = [spawn(&other, true), spawn(&ours, false)];
        // Until the program runs, it has no environment of its own.
        let started = |child: &Child| {
            let path = format!("/proc/{0}/task/{0}/children", child.id());
            while fs::read_to_string(&path).unwrap().is_empty() {
                sleep(PAUSE);
            }
        };
        spared.iter().chain([&plugin]).for_each(started);
        end(&[ours]);
        assert!(!plugin.wait().unwrap().success());
        let group = plugin.id().cast_signed();
        let left = pids().filter_map(stat).filter(|stat| !stat.dead);
        assert_eq!(left.filter(|stat| stat.group == group).count(), 0);
        for child in &mut spared {
            assert!(child.try_wait().unwrap().is_none());
            let children = format!("/proc/{0}/task/{0}/children", child.id());
            let of_it = fs::read_to_string(children).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            for pid in of_it.split_whitespace() {
                let pid = Pid::from_raw(pid.parse().unwrap());
                nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
            }
        }
    }
}
