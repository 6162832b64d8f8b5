//! The host as a test sees it: a network namespace of its own, processes, mounts, cgroups.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything that should happen soon may take.
#[must_use]
pub fn soon() -> Duration {
    patience(Duration::from_secs(10))
}

/// A bound on time, stretched on a machine that is `CARPEL_TEST_SLOWNESS` times slower than usual (an emulated one).
///
/// # Panics
/// If the variable is no number.
#[must_use]
pub fn patience(usual: Duration) -> Duration {
    let slowness = std::env::var("CARPEL_TEST_SLOWNESS");
    usual
        * slowness.map_or(1, |text| {
            text.parse().expect("CARPEL_TEST_SLOWNESS: a whole number")
        })
}

/// A network namespace that stands for the host's: the daemon runs in it, so that bridges, addresses
/// and rules of one test are out of every other's way. It goes when its last process and this are gone.
#[derive(Debug)]
pub struct HostNet(File);

impl HostNet {
    /// Makes the namespace, with `lo` up.
    ///
    /// # Panics
    /// Without the rights to: the tests need root.
    #[must_use]
    pub fn new() -> Self {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the integration tests need root");
            File::open("/proc/thread-self/ns/net").expect("the new namespace")
        })
        .join()
        .expect("thread");
        let net = Self(namespace);
        net.command(&["ip", "link", "set", "lo", "up"]);
        net
    }

    /// The namespace that a file stands for: a pod's, by its pin.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// Makes a pair of links: `name` here, `peer` in another namespace. Both are down.
    ///
    /// # Panics
    /// If it cannot.
    pub fn join(&self, name: &str, other: &Self, peer: &str) {
        // A namespace without a name is named by a process that is in it: one that ends with its input.
        let mut inside = Command::new("cat");
        inside.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut inside = other.run(|| inside.spawn()).expect("cat");
        let pid = inside.id().to_string();
        self.command(&[
            "ip", "link", "add", name, "type", "veth", "peer", "name", peer, "netns", &pid,
        ]);
        drop(inside.stdin.take());
        inside.wait().expect("cat ends");
    }

    /// Runs `f` on a thread in this namespace; what it spawns is in it, too.
    ///
    /// # Panics
    /// As `f` does.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                    f()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a command in this namespace and returns its output.
    ///
    /// # Panics
    /// If it does not succeed.
    #[must_use = "the output, or ignore it with `let _`"]
    pub fn output(&self, command: &[&str]) -> String {
        let output = self
            .run(|| Command::new(command[0]).args(&command[1..]).output())
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(
            output.status.success(),
            "{command:?}: {} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command in this namespace.
    ///
    /// # Panics
    /// If it does not succeed.
    pub fn command(&self, command: &[&str]) {
        let _ = self.output(command);
    }

    /// Inode number of the namespace: what `readlink /proc/PID/ns/net` shows.
    ///
    /// # Panics
    /// Never: the file is open.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.0.metadata().expect("open file").ino()
    }
}

impl Default for HostNet {
    fn default() -> Self {
        Self::new()
    }
}

/// Fetches `http://ip:port/path` and returns the body. Tries for a while: a server just started may
/// not listen yet.
///
/// # Errors
/// The last try's.
pub fn http_get(ip: IpAddr, port: u16, path: &str) -> io::Result<String> {
    let deadline = Instant::now() + patience(Duration::from_secs(5));
    loop {
        match http_get_within(ip, port, path, patience(Duration::from_secs(2))) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
}

/// The same, tried once.
///
/// # Errors
/// If no answer comes, each part of it within `timeout`, or it is none of success.
pub fn http_get_within(ip: IpAddr, port: u16, path: &str, timeout: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {ip}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other(format!("no HTTP answer: {answer:?}")))?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200 ") {
        return Err(io::Error::other(status.to_owned()));
    }
    Ok(body.to_owned())
}

/// The root folders of all cgroup hierarchies, v1 and v2.
///
/// # Panics
/// Without a procfs.
#[must_use]
pub fn cgroup_mounts() -> Vec<PathBuf> {
    mountinfo("self")
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            file_system
                .starts_with("cgroup")
                .then(|| PathBuf::from(mount.split(' ').nth(4).expect("a mount point")))
        })
        .collect()
}

/// Whether the kernel enforces AppArmor profiles.
#[must_use]
pub fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// What SELinux is to containers here.
#[derive(Debug, Clone)]
pub struct Selinux {
    /// Whether what the policy forbids is refused.
    pub enforcing: bool,
    /// The types of processes and of files that nobody chose others for.
    pub process_type: String,
    pub file_type: String,
}

/// `None`: the kernel has it not on.
///
/// # Panics
/// If it is on, and the policy says nothing of containers.
#[must_use]
pub fn selinux() -> Option<Selinux> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let enforce = read("/sys/fs/selinux/enforce")?;
    let config = read("/etc/selinux/config").expect("a configuration");
    let policy = config
        .lines()
        .find_map(|line| line.strip_prefix("SELINUXTYPE="));
    let contexts = format!(
        "/etc/selinux/{}/contexts/lxc_contexts",
        policy.expect("a policy")
    );
    let contexts = read(&contexts).expect("a policy for containers");
    let type_of = |key: &str| {
        let lines = contexts.lines().filter_map(|line| line.split_once('='));
        let (_, label) = lines
            .into_iter()
            .find(|(name, _)| name.trim() == key)
            .expect(key);
        label.split(':').nth(2).expect("a label").to_owned()
    };
    Some(Selinux {
        enforcing: enforce.trim() == "1",
        process_type: type_of("process"),
        file_type: type_of("file"),
    })
}

/// The SELinux label that a file has, or the attribute that a kernel without SELinux keeps for one that has.
#[must_use]
pub fn label_of(path: &Path) -> Option<String> {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut value[..]).ok()?;
    let text = String::from_utf8_lossy(&value[..length]);
    Some(text.trim_end_matches('\0').to_owned())
}

/// Whether the host has cgroup version 2 alone.
#[must_use]
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The folders of `cgroup` ("/a/b") in the hierarchies that have it.
#[must_use]
pub fn cgroup_dirs(cgroup: &str) -> Vec<PathBuf> {
    cgroup_mounts()
        .into_iter()
        .map(|mount| mount.join(cgroup.trim_start_matches('/')))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// All folders at and below `dir`, deepest first.
#[must_use]
pub fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if let Ok(entries) = std::fs::read_dir(dir) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.extend(tree(&entry.path()));
            }
        }
    }
    dirs.push(dir.to_owned());
    dirs
}

/// Pids in `cgroup` and below it, in any hierarchy.
#[must_use]
pub fn cgroup_pids(cgroup: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = cgroup_dirs(cgroup)
        .iter()
        .flat_map(|dir| tree(dir))
        .filter_map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// `/proc/PID/mountinfo`; empty for a process that has gone.
#[must_use]
pub fn mountinfo(pid: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default()
}

/// Mount points below `dir` in the tests' mount namespace.
#[must_use]
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    mountinfo("self")
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(dir) && mount != dir)
        .collect()
}

/// A field of `/proc/PID/status`, such as "CapEff"; `None` if the process has gone.
#[must_use]
pub fn proc_status(pid: i32, field: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()?
        .lines()
        .find_map(|line| {
            Some(
                line.strip_prefix(field)?
                    .strip_prefix(':')?
                    .trim()
                    .to_owned(),
            )
        })
}

/// The pids of all processes.
#[must_use]
pub fn all_pids() -> Vec<i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Children of `pid`, zombies too.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    all_pids()
        .into_iter()
        .filter(|child| proc_status(*child, "PPid") == Some(pid.to_string()))
        .collect()
}

/// "pid (name) state", for messages.
#[must_use]
pub fn describe(pid: i32) -> String {
    let name = proc_status(pid, "Name").unwrap_or_else(|| "gone".into());
    let state = proc_status(pid, "State").unwrap_or_default();
    format!("process {pid} {name} {state}")
}

/// The first process of a PID namespace, by what `/proc/PID/ns/pid` links to.
#[must_use]
pub fn first_of(namespace: &Path) -> Option<i32> {
    let pids = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.into_iter().find(|pid| {
        std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == namespace)
            && proc_status(*pid, "NSpid").is_some_and(|pids| pids.ends_with("\t1"))
    })
}

/// Whether a process runs (a zombie does not).
#[must_use]
pub fn runs(pid: i32) -> bool {
    proc_status(pid, "State").is_some_and(|state| !state.starts_with('Z'))
}

/// When a process began, in clock ticks since boot: with its pid this names it for good.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split(' ').nth(20)?.parse().ok()
}

/// Sends SIGKILL. A process that has gone is fine.
pub fn kill_9(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Version of the running kernel, such as (6, 12).
///
/// # Panics
/// If its release does not begin with one.
#[must_use]
pub fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    next().zip(next()).expect("a version of Linux")
}
