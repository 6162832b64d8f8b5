//! What a test runs in a pod: file systems, Plans, processes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use carpel_wire::{
    FdIndex, NulList, ObjectId, Output, PidNamespace, PlanWriter, Reply, RequestBody, Start, Step,
    encode_nul_list,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::{Daemon, NEWNS, SLOT, id};

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

/// A process to start. The fds are, in order: Plan, stdin, stdout, stderr, log, rootfs, our ends of stdout,
/// stderr and stdin.
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
    /// The two ends of its stdin.
    pub stdin: Option<(OwnedFd, OwnedFd)>,
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
            stdin: None,
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
            stdin: None,
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
        let (stdin, stdin_write) = match &self.stdin {
            Some((read, write)) => (read, write),
            None => (&null, &placeholder),
        };
        let fds = [
            plan.as_fd(),
            stdin.as_fd(),
            out.as_fd(),
            err.as_fd(),
            log,
            rootfs,
            out_read.as_fd(),
            err_read.as_fd(),
            stdin_write.as_fd(),
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
            stdin: self.stdin.as_ref().map(|_| FdIndex(8)),
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
