//! A supervisor for tests: the real binary, spoken to over its socket as the daemon does.

#![allow(dead_code, reason = "each test program uses its part of this")]

mod daemon;
mod run;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use carpel_wire::{
    Event, ExitRecord, ExitRecords, FdIndex, ObjectId, Reply, RequestBody, Setup, Step, Succession,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, kill_process, waitid, waitpid};

pub use daemon::*;
pub use run::*;

pub const NEWNS: u64 = 0x0002_0000;
pub const NEWCGROUP: u64 = 0x0200_0000;
pub const NEWUTS: u64 = 0x0400_0000;
pub const NEWIPC: u64 = 0x0800_0000;
pub const NEWPID: u64 = 0x2000_0000;
pub const NEWNET: u64 = 0x4000_0000;

pub const SLOT: FdIndex = FdIndex(FdIndex::FIRST_SLOT);

/// A bound on time, stretched on a machine that is `CARPEL_TEST_SLOWNESS` times slower than usual (an emulated one).
pub fn patience(usual: Duration) -> Duration {
    let slowness = std::env::var("CARPEL_TEST_SLOWNESS");
    usual * slowness.map_or(1, |text| text.parse().unwrap())
}

/// The supervisor's binary: `CARPEL_SUPERVISOR`, else one that is built now.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("CARPEL_SUPERVISOR") {
            return path.into();
        }
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "-q",
                "--profile",
                "supervisor",
                "-p",
                "carpel-supervisor",
            ])
            .args(["--features", "binary", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .status()
            .unwrap();
        assert!(built.success());
        Path::new(env!("CARGO_TARGET_TMPDIR"))
            .parent()
            .unwrap()
            .join("supervisor/carpel-supervisor")
    })
}

pub fn id(number: u8) -> ObjectId {
    [number; 32]
}

fn is_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests need root"
    );
}

/// A listening supervisor and its folder.
pub struct Pod {
    pub folder: tempfile::TempDir,
    child: Option<Child>,
    pub pid: Option<u32>,
    pub pidfd: Option<OwnedFd>,
    pub reaper: Option<(u32, OwnedFd)>,
}

impl Pod {
    pub fn spawn() -> (Self, Daemon) {
        is_root();
        Self::spawn_in(tempfile::tempdir().unwrap())
    }

    fn spawn_in(folder: tempfile::TempDir) -> (Self, Daemon) {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let listener = socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
        bind(
            &listener,
            &SocketAddrUnix::new(folder.path().join("s")).unwrap(),
        )
        .unwrap();
        listen(&listener, 8).unwrap();
        let mut command = Command::new(binary());
        command
            .arg("test-pod")
            .env_clear()
            .stdin(Stdio::from(listener));
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pod = Self {
            folder,
            child: Some(child),
            pid: None,
            pidfd: None,
            reaper: None,
        };
        let daemon = pod.connect();
        assert!(!daemon.ready);
        (pod, daemon)
    }

    /// A pod with namespaces of its own.
    pub fn ready(shared_pid_namespace: bool) -> (Self, Daemon) {
        let (mut pod, mut daemon) = Self::spawn();
        let flags = NEWNS | NEWNET | NEWUTS | NEWIPC;
        let (reply, fds) = pod.set_up(&mut daemon, flags, &setup_steps(), shared_pid_namespace);
        pod.is_ready(&reply, fds);
        (pod, daemon)
    }

    pub fn is_ready(&mut self, reply: &Reply, mut fds: Vec<OwnedFd>) {
        let Reply::Ready { pid, reaper_pid } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(fds.len(), 1 + usize::from(reaper_pid.is_some()));
        self.reaper = reaper_pid.map(|pid| (pid, fds.pop().unwrap()));
        self.pid = Some(*pid);
        self.pidfd = fds.pop();
        assert!(self.child.take().unwrap().wait().unwrap().success());
    }

    pub fn set_up(
        &self,
        daemon: &mut Daemon,
        clone_flags: u64,
        steps: &[Step<'_>],
        shared_pid_namespace: bool,
    ) -> (Reply, Vec<OwnedFd>) {
        let exits = self.open_exits();
        let setup = Setup {
            clone_flags,
            cgroup: None,
            plan: FdIndex(0),
            exits: FdIndex(1),
            shared_pid_namespace,
            succession: None,
        };
        daemon.ask(
            RequestBody::Setup(setup),
            &[plan(steps).as_fd(), exits.as_fd()],
        )
    }

    fn open_exits(&self) -> File {
        let mut options = File::options();
        let options = options.create(true).append(true);
        options.open(self.exits_path()).unwrap()
    }

    /// Kills the supervisor and waits until its children have gone to this process.
    pub fn kill(&mut self) {
        let pidfd = self.pidfd.take().unwrap();
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
    }

    /// The namespaces of the supervisor, which live on with these.
    pub fn namespaces(&self) -> [File; 4] {
        let pid = self.pid.unwrap();
        ["mnt", "net", "ipc", "uts"]
            .map(|name| File::open(format!("/proc/{pid}/ns/{name}")).unwrap())
    }

    /// A second supervisor for the same pod, not yet set up.
    pub fn successor(mut self) -> (Self, Daemon) {
        let reaper = self.reaper.take();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        std::fs::remove_file(folder.path().join("s")).unwrap();
        let (mut pod, daemon) = Self::spawn_in(folder);
        pod.reaper = reaper;
        (pod, daemon)
    }

    /// Sets a successor up in `namespaces`.
    pub fn take_over(&mut self, daemon: &mut Daemon, namespaces: &[File; 4], shared: bool) {
        let steps: Vec<_> = [NEWNS, NEWNET, NEWIPC, NEWUTS]
            .iter()
            .zip(3..)
            .map(|(flags, index)| Step::SetNsFd {
                namespace: FdIndex(index),
                flags: *flags,
            })
            .collect();
        let (exits, plan) = (self.open_exits(), plan(&steps));
        let reaper = self.reaper.take();
        let setup = Setup {
            clone_flags: 0,
            cgroup: None,
            plan: FdIndex(0),
            exits: FdIndex(1),
            shared_pid_namespace: shared,
            succession: Some(Succession {
                reaper: reaper.as_ref().map(|(pid, _)| (*pid, FdIndex(2))),
            }),
        };
        let pidfd = reaper
            .as_ref()
            .map_or(exits.as_fd(), |(_, pidfd)| pidfd.as_fd());
        let mut fds = vec![plan.as_fd(), exits.as_fd(), pidfd];
        fds.extend(namespaces.iter().map(AsFd::as_fd));
        let (reply, fds) = daemon.ask(RequestBody::Setup(setup), &fds);
        self.is_ready(&reply, fds);
    }

    pub fn exits_path(&self) -> PathBuf {
        self.folder.path().join("exits")
    }

    pub fn exits(&self) -> Vec<ExitRecord> {
        let bytes = std::fs::read(self.exits_path()).unwrap();
        ExitRecords(&bytes).collect()
    }

    pub fn connect(&self) -> Daemon {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let socket = socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
        connect(
            &socket,
            &SocketAddrUnix::new(self.folder.path().join("s")).unwrap(),
        )
        .unwrap();
        let mut daemon = Daemon {
            socket,
            next: 1,
            events: VecDeque::new(),
            ready: false,
            hello_pid: 0,
        };
        match daemon.receive() {
            Some((
                Event::Hello {
                    version: carpel_wire::VERSION,
                    pid,
                    ready,
                    reaper_pid,
                },
                fds,
            )) => {
                let pidfds = usize::from(ready) + usize::from(reaper_pid.is_some());
                assert_eq!(fds.len(), pidfds);
                (daemon.ready, daemon.hello_pid) = (ready, pid);
            }
            other => panic!("{other:?}"),
        }
        daemon
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let (Some(pidfd), Some(pid)) = (&self.pidfd, self.pid) {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            let _ = waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::NOHANG);
            for child in children.unwrap_or_default().split_whitespace() {
                let child = child.parse().ok().and_then(Pid::from_raw);
                let _ = child.map(|pid| kill_process(pid, rustix::process::Signal::KILL));
            }
        }
        if let Some((_, pidfd)) = &self.reaper {
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
    }
}
