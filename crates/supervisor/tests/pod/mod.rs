//! A supervisor for tests: the real binary, spoken to over its socket as the daemon does.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use carpel_wire::{
    Entry, Event, ExitRecord, ExitRecords, FdIndex, NulList, ObjectId, Output, PidNamespace,
    PlanWriter, Reply, Request, RequestBody, Setup, SignalScope, Start, Step, encode_nul_list,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use rustix::process::{Pid, WaitIdOptions, WaitOptions, waitid, waitpid};

pub const NEWNS: u64 = 0x0002_0000;
pub const NEWCGROUP: u64 = 0x0200_0000;
pub const NEWUTS: u64 = 0x0400_0000;
pub const NEWIPC: u64 = 0x0800_0000;
pub const NEWPID: u64 = 0x2000_0000;
pub const NEWNET: u64 = 0x4000_0000;

pub const SLOT: FdIndex = FdIndex(FdIndex::FIRST_SLOT);

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
}

impl Pod {
    pub fn spawn() -> (Self, Daemon) {
        is_root();
        let folder = tempfile::tempdir().unwrap();
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
        let Reply::Ready { pid, .. } = reply else {
            panic!("{reply:?}")
        };
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
        let exits = File::options()
            .create(true)
            .append(true)
            .open(self.exits_path())
            .unwrap();
        let setup = Setup {
            clone_flags,
            cgroup: None,
            plan: FdIndex(0),
            exits: FdIndex(1),
            shared_pid_namespace,
        };
        daemon.ask(
            RequestBody::Setup(setup),
            &[plan(steps).as_fd(), exits.as_fd()],
        )
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
                },
                _,
            )) => {
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
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
            let _ = waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                WaitIdOptions::EXITED,
            );
            let _ = waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::NOHANG);
        }
    }
}

/// The daemon's end of a connection.
pub struct Daemon {
    pub socket: OwnedFd,
    next: u32,
    events: VecDeque<(Event, Vec<OwnedFd>)>,
    pub ready: bool,
    pub hello_pid: u32,
}

impl Daemon {
    pub fn send(&mut self, body: RequestBody, fds: &[BorrowedFd<'_>]) -> u32 {
        let seq = self.next;
        self.next += 1;
        let mut buffer = [0; carpel_wire::MAX_MESSAGE];
        let bytes = carpel_wire::encode(&Request { seq, body }, &mut buffer).unwrap();
        self.send_raw(bytes, fds);
        seq
    }

    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
    }

    /// The next event, or `None` if the connection has ended.
    pub fn receive(&mut self) -> Option<(Event, Vec<OwnedFd>)> {
        self.receive_within(Duration::from_secs(20))
            .expect("the supervisor answers")
    }

    fn receive_within(&mut self, time: Duration) -> Option<Option<(Event, Vec<OwnedFd>)>> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        let time = Timespec {
            tv_sec: time.as_secs().cast_signed(),
            tv_nsec: time.subsec_nanos().into(),
        };
        if poll(&mut polled, Some(&time)).unwrap() == 0 {
            return None;
        }
        let mut buffer = [0; carpel_wire::MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut buffer)];
        let received = recvmsg(&self.socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let length = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => panic!("{error}"),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if length == 0 {
            return Some(None);
        }
        Some(Some((carpel_wire::decode(&buffer[..length]).unwrap(), fds)))
    }

    /// Waits for the reply `seq`; what comes before it is kept.
    pub fn reply(&mut self, seq: u32) -> (Reply, Vec<OwnedFd>) {
        let is_it =
            |event: &Event| matches!(event, Event::Reply { seq: found, .. } if *found == seq);
        if let Some(at) = self.events.iter().position(|(event, _)| is_it(event))
            && let Some((Event::Reply { reply, .. }, fds)) = self.events.remove(at)
        {
            return (reply, fds);
        }
        loop {
            match self.receive().expect("the connection lives") {
                (Event::Reply { seq: found, reply }, fds) if found == seq => return (reply, fds),
                other => self.events.push_back(other),
            }
        }
    }

    pub fn ask(&mut self, body: RequestBody, fds: &[BorrowedFd<'_>]) -> (Reply, Vec<OwnedFd>) {
        let seq = self.send(body, fds);
        self.reply(seq)
    }

    /// Waits for the exit of `id` and returns its wait status.
    pub fn exit(&mut self, id: ObjectId) -> i32 {
        let is_it =
            |event: &Event| matches!(event, Event::Exited { id: found, .. } if *found == id);
        let event = match self.events.iter().position(|(event, _)| is_it(event)) {
            Some(at) => self.events.remove(at).unwrap().0,
            None => loop {
                let (event, fds) = self.receive().expect("the connection lives");
                if is_it(&event) {
                    break event;
                }
                self.events.push_back((event, fds));
            },
        };
        let Event::Exited { wait_status, .. } = event else {
            unreachable!()
        };
        wait_status
    }

    pub fn list(&mut self) -> Vec<(Entry, Vec<OwnedFd>)> {
        let (reply, _) = self.ask(RequestBody::List, &[]);
        assert_eq!(reply, Reply::Done);
        let mut entries = Vec::new();
        self.events.retain_mut(|(event, fds)| {
            if let Event::Entry(entry) = event {
                entries.push((*entry, std::mem::take(fds)));
            }
            !matches!(event, Event::Entry(_))
        });
        entries
    }

    /// Waits until `found` says yes of the list.
    pub fn list_until(&mut self, found: impl Fn(&[Entry]) -> bool) {
        for _ in 0..1000 {
            let entries: Vec<_> = self.list().into_iter().map(|(entry, _)| entry).collect();
            if found(&entries) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it never happened");
    }

    pub fn signal(&mut self, id: ObjectId, signal: i32) -> Reply {
        self.ask(
            RequestBody::Signal {
                id,
                signal,
                scope: SignalScope::Process,
            },
            &[],
        )
        .0
    }

    pub fn forget(&mut self, id: ObjectId) -> Reply {
        self.ask(RequestBody::Forget { id }, &[]).0
    }

    pub fn start(&mut self, run: &Run<'_>) -> Reply {
        let (reply, fds) = run.ask(self);
        assert_eq!(
            matches!(reply, Reply::Started { .. }),
            fds.len() == 1,
            "{reply:?}"
        );
        reply
    }

    /// Starts, waits for the exit, forgets, and returns the wait status.
    pub fn run(&mut self, run: &Run<'_>) -> i32 {
        let reply = self.start(run);
        assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
        let status = self.exit(run.id);
        if run.init {
            assert_eq!(self.forget(run.id), Reply::Done);
        }
        status
    }
}

/// A sealed memfd with the Plan of `steps`.
pub fn plan(steps: &[Step<'_>]) -> OwnedFd {
    let mut writer = PlanWriter::default();
    for step in steps {
        writer.push(step);
    }
    sealed(writer.bytes())
}

pub fn sealed(bytes: &[u8]) -> OwnedFd {
    let memfd = memfd_create("plan", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    File::from(memfd.try_clone().unwrap())
        .write_all(bytes)
        .unwrap();
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&memfd, seals).unwrap();
    memfd
}

pub fn new_fs<'a>(fstype: &'a [u8], options: &'a [u8]) -> Step<'a> {
    Step::NewFs {
        fstype,
        options: NulList::new(options).unwrap(),
        attrs: 0,
        slot: SLOT,
    }
}

pub fn attach(target: &[u8]) -> Step<'_> {
    Step::Attach {
        mount: SLOT,
        target,
        no_symlinks: true,
    }
}

pub fn setup_steps() -> Vec<Step<'static>> {
    vec![
        Step::MakeSlave,
        new_fs(b"tmpfs\0", b""),
        Step::PivotRoot { root: SLOT },
        new_fs(b"proc\0", b""),
        attach(b"/proc\0"),
        new_fs(b"sysfs\0", b""),
        attach(b"/sys\0"),
        new_fs(b"tmpfs\0", b"size\x0064k\0mode\x001777\0"),
        attach(b"/dev/shm\0"),
        Step::LoopbackUp,
        Step::Hostname { name: b"a-pod" },
        Step::Sysctl {
            path: b"net/ipv4/ip_unprivileged_port_start\0",
            value: b"80",
        },
        Step::OomScoreAdj { value: -998 },
    ]
}

/// A detached tmpfs with busybox in it.
pub struct Rootfs(pub OwnedFd);

impl Rootfs {
    pub fn new() -> Self {
        let rootfs = Self::empty();
        for folder in ["bin", "tmp", "proc", "dev", "sys", "etc"] {
            std::fs::create_dir(rootfs.path(folder)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.path("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "sleep", "yes", "true", "ls", "seq", "mount", "ps",
        ] {
            std::os::unix::fs::symlink("busybox", rootfs.path("bin").join(name)).unwrap();
        }
        rootfs
    }

    pub fn empty() -> Self {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Self(fsmount(&context, flags, MountAttrFlags::empty()).unwrap())
    }

    /// Where a file of it is for this process.
    pub fn path(&self, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
            .into_bytes_path()
            .join(name)
    }
}

trait IntoPath {
    fn into_bytes_path(self) -> PathBuf;
}

impl IntoPath for String {
    fn into_bytes_path(self) -> PathBuf {
        self.into()
    }
}

/// A process to start. The fds are, in order: Plan, stdin, stdout, stderr, log, rootfs, more.
pub struct Run<'a> {
    pub id: ObjectId,
    pub init: bool,
    pub command: &'a [&'a str],
    pub environment: &'a [&'a str],
    pub pid_namespace: PidNamespace,
    /// Steps behind the usual ones of the file system and before the standard streams.
    pub steps: Vec<Step<'a>>,
    /// Steps right before the last.
    pub late_steps: Vec<Step<'a>>,
    pub rootfs: Option<&'a Rootfs>,
    pub target: Option<ObjectId>,
    pub clone_flags: u64,
    pub log: Option<&'a File>,
    /// Where stdout and stderr go if not to the log.
    pub output: Option<OwnedFd>,
}

impl<'a> Run<'a> {
    /// A container.
    pub fn container(number: u8, rootfs: &'a Rootfs, command: &'a [&'a str]) -> Self {
        Self {
            id: id(number),
            init: true,
            command,
            environment: &["PATH=/bin"],
            pid_namespace: PidNamespace::New,
            steps: Vec::new(),
            late_steps: Vec::new(),
            rootfs: Some(rootfs),
            target: None,
            clone_flags: NEWNS,
            log: None,
            output: None,
        }
    }

    /// An exec into the container `target`.
    pub fn exec(number: u8, target: u8, command: &'a [&'a str]) -> Self {
        let target = id(target);
        let enter = Step::SetNs {
            pidfd: FdIndex::TARGET,
            flags: NEWNS,
        };
        Self {
            id: id(number),
            init: false,
            command,
            environment: &["PATH=/bin"],
            pid_namespace: PidNamespace::Of(target),
            steps: vec![enter],
            late_steps: Vec::new(),
            rootfs: None,
            target: Some(target),
            clone_flags: 0,
            log: None,
            output: None,
        }
    }

    pub fn plan(&self) -> OwnedFd {
        let mut steps = Vec::new();
        if self.rootfs.is_some() {
            steps.extend([
                Step::PivotRoot { root: FdIndex(5) },
                new_fs(b"proc\0", b""),
                attach(b"/proc\0"),
                new_fs(b"tmpfs\0", b"mode\x000755\0"),
                attach(b"/dev\0"),
                Step::Mknod {
                    path: b"/dev/null\0",
                    mode: 0o20666,
                    major: 1,
                    minor: 3,
                    uid: 0,
                    gid: 0,
                },
            ]);
        }
        steps.extend(self.steps.iter().copied());
        steps.extend([
            Step::SetSid,
            Step::Stdio {
                stdin: FdIndex(1),
                stdout: FdIndex(2),
                stderr: FdIndex(3),
            },
        ]);
        steps.extend(self.late_steps.iter().copied());
        let command = encode_nul_list(self.command).unwrap();
        let environment = encode_nul_list(self.environment).unwrap();
        let name = self.command[0];
        let candidates = if name.contains('/') {
            encode_nul_list([name.to_owned()]).unwrap()
        } else {
            encode_nul_list([format!("/nowhere/{name}"), format!("/bin/{name}")]).unwrap()
        };
        steps.push(Step::Exec {
            candidates: NulList::new(&candidates).unwrap(),
            arguments: NulList::new(&command).unwrap(),
            environment: NulList::new(&environment).unwrap(),
        });
        plan(&steps)
    }

    pub fn ask(&self, daemon: &mut Daemon) -> (Reply, Vec<OwnedFd>) {
        let seq = self.send(daemon);
        daemon.reply(seq)
    }

    pub fn send(&self, daemon: &mut Daemon) -> u32 {
        let null = OwnedFd::from(
            File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .unwrap(),
        );
        let (plan, placeholder) = (self.plan(), null.try_clone().unwrap());
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let ((out_read, out_write), (err_read, err_write)) = (pipe(), pipe());
        let (out, err) = match &self.output {
            Some(output) => (output, output),
            None => (&out_write, &err_write),
        };
        let log = self.log.map_or(placeholder.as_fd(), AsFd::as_fd);
        let rootfs = self
            .rootfs
            .map_or(placeholder.as_fd(), |rootfs| rootfs.0.as_fd());
        let fds = [
            plan.as_fd(),
            null.as_fd(),
            out.as_fd(),
            err.as_fd(),
            log,
            rootfs,
            out_read.as_fd(),
            err_read.as_fd(),
        ];
        let start = Start {
            id: self.id,
            clone_flags: self.clone_flags,
            pid_namespace: self.pid_namespace,
            target: self.target,
            cgroup: None,
            plan: FdIndex(0),
            output: match self.output {
                Some(_) => Output::None,
                None => Output::Pipes {
                    stdout: FdIndex(6),
                    stderr: FdIndex(7),
                    log: self.log.map(|_| FdIndex(4)),
                },
            },
            stdin: None,
            init: self.init,
        };
        daemon.send(RequestBody::Start(start), &fds)
    }
}

/// A command's output, collected, and its wait status.
pub fn output_of(daemon: &mut Daemon, mut run: Run<'_>) -> (String, i32) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    run.output = Some(write);
    let reply = daemon.start(&run);
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    run.output = None;
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    let status = daemon.exit(run.id);
    if run.init {
        daemon.forget(run.id);
    }
    (text, status)
}

pub fn code(code: i32) -> i32 {
    code << 8
}
