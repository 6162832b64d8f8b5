//! The process that unpacks one layer: it gives up all that it does not need for that, and does it.
//!
//! Its root is the layer's folder, with nothing else mounted, and no device or program in it counts. It has the
//! capabilities that giving files their owners and attributes takes; CAP_SYS_ADMIN is among them, for the marks that
//! overlayfs reads (`trusted.*`), and a filter leaves it no system call but those on files and memory: no socket, no
//! mount, no other process.

use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompBuilder, LinuxSyscallBuilder};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, fchdir, pivot_root, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_name, set_no_new_privs};

use super::process::{ARGUMENT, Answer, Order};
use super::{Expected, Limits, Skeleton, Tree, unpack};
use crate::seccomp;
use crate::sys::{self, MountAttr, mount_setattr};

/// Bytes of address space: windows of decompressors, names of folders, this program and its threads' stacks.
const ADDRESS_SPACE: u64 = 2 << 30;
/// A layer is unpacked with a handful of descriptors.
const DESCRIPTORS: u64 = 64;
/// It goes first when memory is short: a pull can be repeated.
const OOM_SCORE: &[u8] = b"800";
/// Bytes of an order.
const MOST_ORDERED: usize = 16 << 10;

/// Unpacks a layer, if that is what this process was started for. To be called before there are threads.
#[must_use]
pub fn serve_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT || args.next().is_some() {
        return None;
    }
    Some(match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(io::stderr(), "carpel-unpack: {error}");
            ExitCode::FAILURE
        }
    })
}

fn serve() -> io::Result<()> {
    set_name(c"carpel-unpack")?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    sys::economize_memory();
    let socket = io::stdin();
    let (order, [packed, folder, skeleton]) = receive(socket.as_fd())?;
    if std::os::unix::process::parent_id() != order.daemon {
        // It died before its death would have been ours.
        return Err(io::Error::other("the daemon is dead"));
    }
    let tree = confine(folder, &order.limits)?;
    let expected = Expected {
        packed: None,
        diff: order.diff,
    };
    let skeleton = Skeleton::new(File::from(skeleton));
    let packed = File::from(packed);
    let outcome = unpack(packed, expected, &tree, skeleton, &order.limits, &|| true);
    let answer = serde_json::to_vec(&Answer::from(outcome))?;
    File::from(socket.as_fd().try_clone_to_owned()?).write_all(&answer)
}

fn receive(socket: impl AsFd) -> io::Result<(Order, [OwnedFd; 3])> {
    let mut buffer = vec![0; MOST_ORDERED];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let fds = fds.try_into();
    let fds = fds.map_err(|_| io::Error::other("descriptors are missing"))?;
    Ok((serde_json::from_slice(&buffer[..received.bytes])?, fds))
}

/// Gives up all but the layer's folder, which it returns.
fn confine(folder: OwnedFd, limits: &Limits) -> io::Result<Tree> {
    let named = |what: &'static str| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).map_err(named("oom_score_adj"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let tree = enter(&folder).map_err(named("change the root"))?;
    drop(folder);
    let file = limits.bytes.max(limits.sparse_length);
    for (resource, most) in [
        (Resource::As, ADDRESS_SPACE),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Fsize, file),
        (Resource::Core, 0),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit).map_err(|error| named("limits")(error.into()))?;
    }
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        | CapabilitySet::SYS_ADMIN;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(|error| named("capabilities")(error.into()))?;
    set_no_new_privs(true)?;
    let program = seccomp::compile(&profile()).map_err(io::Error::other)?;
    sys::install_filter(&program.instructions).map_err(named("seccomp"))?;
    Ok(tree)
}

/// Makes the folder the root of a mount namespace with nothing else in it.
fn enter(folder: &OwnedFd) -> io::Result<Tree> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let root = open_tree(folder, "", flags)?;
    let attributes = MountAttr {
        set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
        // What is cloned of a shared mount, as systemd makes them all, is shared, and can be no root.
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    mount_setattr(root.as_fd(), false, &attributes)?;
    // Not before: what is cloned must be in this namespace.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // Any folder will do: all but the clone goes.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, "", CWD, "/proc", flags)?;
    fchdir(&root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    Tree::open("/".as_ref())
}

/// What is left to be called. What is not in the list is answered as by a kernel that does not have it, so that libc
/// does without.
fn profile() -> oci_spec::runtime::LinuxSeccomp {
    let calls = CALLS.iter().map(|name| (*name).to_owned());
    let allowed = LinuxSyscallBuilder::default()
        .names(calls.collect::<Vec<_>>())
        .action(LinuxSeccompAction::ScmpActAllow)
        .build()
        .expect("every field has a default");
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::ENOSYS.unsigned_abs())
        .architectures(Vec::new())
        .syscalls(vec![allowed])
        .build()
        .expect("every field has a default")
}

const CALLS: [&str; 75] = [
    // Files below the root.
    "close",
    "fallocate",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fcntl",
    "fgetxattr",
    "flistxattr",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "ftruncate",
    "getdents64",
    "lgetxattr",
    "linkat",
    "lseek",
    "lsetxattr",
    "mkdirat",
    "mknodat",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pread64",
    "pwrite64",
    "read",
    "readlinkat",
    "readv",
    "renameat2",
    "setxattr",
    "stat",
    "statx",
    "symlinkat",
    "sync_file_range",
    "unlinkat",
    "utimensat",
    "write",
    "writev",
    // Memory, threads, time.
    "arch_prctl",
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "clone",
    "clone3",
    "exit",
    "exit_group",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "gettimeofday",
    "madvise",
    "membarrier",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "poll",
    "ppoll",
    "prctl",
    "prlimit64",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "tgkill",
];
