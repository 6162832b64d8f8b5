//! The Plan: what a new process does between `clone3(2)` and `execve(2)`, as data.
//!
//! The daemon compiles it from the OCI spec and knows what each step means; the supervisor's child
//! interprets it, one step after the other, and reports the index of the one that failed. There are
//! no conditions and no loops in a Plan.
//!
//! Paths are NUL-terminated. After [`Step::PivotRoot`] they are paths of the container: absolute,
//! resolved with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)` from a root fd taken then.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{Malformed, NulList};

/// Which descriptor a step means: first those that came beside the message, in order, then the slots
/// that [`Step::OpenTree`] filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub u16);

impl FdIndex {
    /// The pidfd of [`crate::Start::target`].
    pub const TARGET: FdIndex = FdIndex(u16::MAX);
    /// First slot for [`Step::OpenTree`].
    pub const FIRST_SLOT: u16 = 0x100;
    /// Number of slots.
    pub const SLOTS: u16 = 8;
}

/// MOUNT_ATTR_* bits of `mount_setattr(2)`.
pub type MountAttrs = u64;

/// One step. `'a` borrows from the mapped Plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step<'a> {
    // ── where the process belongs ──
    /// Cgroup v1: write "0" to a hierarchy's `tasks` (cheap, as the process is single-threaded).
    JoinTasks {
        tasks: FdIndex,
    },
    /// setns(2) on a pidfd with CLONE_NEW* flags.
    SetNs {
        pidfd: FdIndex,
        flags: u64,
    },
    /// setns(2) on a namespace fd.
    SetNsFd {
        namespace: FdIndex,
        flags: u64,
    },
    /// Bring the loopback interface of the current network namespace up.
    LoopbackUp,
    /// sethostname(2).
    Hostname {
        name: &'a [u8],
    },
    /// Write below /proc/sys, through a private procfs. `path` is relative to it ("net/ipv4/…") and
    /// NUL-terminated.
    Sysctl {
        path: &'a [u8],
        value: &'a [u8],
    },
    /// Write the process's own oom_score_adj. If that is EACCES or EPERM (no CAP_SYS_RESOURCE) the
    /// lowest value that is allowed, its own present one, stays: not an error.
    OomScoreAdj {
        value: i32,
    },
    /// setrlimit(2): `resource` as the kernel numbers them.
    Rlimit {
        resource: u32,
        soft: u64,
        hard: u64,
    },

    // ── the file system ──
    /// Make every mount of this namespace a slave, recursively: what is done here stays here.
    MakeSlave,
    /// fsopen, fsconfig for each "key\0value\0" of `options` (an empty value is a flag), fsmount:
    /// the new file system goes to a slot, detached.
    NewFs {
        fstype: &'a [u8],
        options: NulList<'a>,
        attrs: MountAttrs,
        slot: FdIndex,
    },
    /// open_tree(CLONE) of a path of the current root into a slot, detached, with `attrs` added.
    OpenTree {
        path: &'a [u8],
        recursive: bool,
        attrs: MountAttrs,
        slot: FdIndex,
    },
    /// Put `root` in the place of the root file system and lose the old one:
    /// move_mount over "/", fchdir, pivot_root(".", "."), umount2(".", MNT_DETACH), chdir("/").
    PivotRoot {
        root: FdIndex,
    },
    /// Attach a detached mount. The target is made if it is missing (parents 0755): a directory, or
    /// an empty file if the mount's root is not one. A target whose last component is a symbolic
    /// link is followed inside the root, except with `no_symlinks`: then any link in it is an error
    /// (for /proc, /sys and /dev, where a link would point the container's own protection elsewhere).
    Attach {
        mount: FdIndex,
        target: &'a [u8],
        no_symlinks: bool,
    },
    /// mount_setattr(2): set `set` and clear `clear` on what is mounted at `path`.
    SetAttr {
        path: &'a [u8],
        set: MountAttrs,
        clear: MountAttrs,
        recursive: bool,
    },
    /// mount_setattr(2): propagation (MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE).
    Propagation {
        path: &'a [u8],
        propagation: u64,
        recursive: bool,
    },
    /// A directory and its parents, if missing.
    Mkdir {
        path: &'a [u8],
        mode: u32,
    },
    /// A symbolic link; one that exists is left as it is.
    Symlink {
        target: &'a [u8],
        path: &'a [u8],
    },
    /// A device node (or FIFO); parents are made. The mode is exact whatever the umask.
    Mknod {
        path: &'a [u8],
        mode: u32,
        major: u32,
        minor: u32,
        uid: u32,
        gid: u32,
    },
    /// Hide a path: an empty read-only tmpfs over a directory, a verified /dev/null over a file.
    /// Missing is fine.
    Mask {
        path: &'a [u8],
    },
    /// Make what is below a path read-only: bind it to itself. Missing is fine.
    ReadOnly {
        path: &'a [u8],
    },
    /// Bind the terminal `/dev/pts/<number>` of the container on /dev/console.
    Console {
        number: u32,
    },

    // ── standard streams and session ──
    /// Become the session's leader.
    SetSid,
    /// dup2 to 0, 1, 2.
    Stdio {
        stdin: FdIndex,
        stdout: FdIndex,
        stderr: FdIndex,
    },
    /// Make fd 0 the controlling terminal.
    ControllingTerminal,

    // ── privileges, in the order of the design ──
    /// Drop every capability from the bounding set that is not in `keep` (bit = capability).
    BoundingSet {
        keep: u64,
    },
    /// PR_SET_KEEPCAPS.
    KeepCaps,
    /// setgroups(2): little-endian u32s.
    Groups {
        gids: &'a [u8],
    },
    /// setresgid(2), setresuid(2).
    Ids {
        uid: u32,
        gid: u32,
    },
    /// capset(2).
    Capabilities {
        effective: u64,
        permitted: u64,
        inheritable: u64,
    },
    /// PR_CAP_AMBIENT: clear, then raise each.
    Ambient {
        raise: u64,
    },
    /// Write "exec PROFILE" to the process's own attr/apparmor/exec.
    AppArmor {
        profile: &'a [u8],
    },
    NoNewPrivs,
    /// seccomp(SECCOMP_SET_MODE_FILTER): an array of `struct sock_filter`, and the call's flags.
    Seccomp {
        program: &'a [u8],
        flags: u64,
    },
    /// umask(2). Before this step there is none; without it a process has the supervisor's.
    Umask {
        mask: u32,
    },
    /// chdir(2), then getcwd(2) must begin with "/": a directory outside the root is an error.
    Chdir {
        path: &'a [u8],
    },

    // ── the end ──
    /// Empty signal mask, default dispositions, every fd from 3 on close-on-exec, then execve(2) of the
    /// first of `candidates` that is there. ENOENT, ENOTDIR and EACCES try the next; the error reported is
    /// EACCES if any gave it, else the last.
    Exec {
        candidates: NulList<'a>,
        arguments: NulList<'a>,
        environment: NulList<'a>,
    },

    // ── added later: a variant keeps its number ──
    /// [`Step::Sysctl`] of a namespace that belongs to a user namespace, whose root is user `uid`: some
    /// may only be written by that one.
    SysctlAs {
        uid: u32,
        path: &'a [u8],
        value: &'a [u8],
    },

    // ── hooks ──
    /// unshare(2): CLONE_NEW* flags.
    Unshare {
        flags: u64,
    },
    /// Attach `root` at a directory of the present root, which is made if it is missing. From here on paths
    /// are those of the container, though the process still sees the old root.
    AttachRoot {
        root: FdIndex,
        target: &'a [u8],
    },
    /// Lose the old root: the second half of [`Step::PivotRoot`].
    EnterRoot,
    /// Write a byte to the daemon's socket, and wait for one. If there comes none: ECANCELED.
    Rendezvous {
        channel: FdIndex,
    },
    /// Run a program and wait for its end: `state` is its standard input, from the beginning, `output` takes
    /// the rest. ETIMEDOUT if it has to be killed; [`ENDED`] with its wait status if it fails.
    Hook {
        state: FdIndex,
        output: FdIndex,
        seconds: u32,
        path: &'a [u8],
        arguments: NulList<'a>,
        environment: NulList<'a>,
    },

    // ── SELinux ──
    /// Write the label to the process's own attr/exec. A Plan has this or [`Step::AppArmor`]: no kernel enforces
    /// both.
    ExecLabel {
        label: &'a [u8],
    },
    /// Label the root of a file system that this Plan has not made itself, though it has mounted it (the mqueue of
    /// an IPC namespace). Uses the mount up.
    RootLabel {
        mount: FdIndex,
        label: &'a [u8],
    },
    /// The label of what [`Step::Mask`] covers directories with from here on; NUL-terminated.
    MaskLabel {
        label: &'a [u8],
    },

    // ── an image's volumes ──
    /// Bind what is at a path of the root on itself: a mount of its own, writable where the root is not. A directory is
    /// made if it is missing. The path is found once, and what it leads to lies on the root itself: where it leads onto
    /// another mount, which covers the volume then, nothing is done.
    Volume {
        path: &'a [u8],
    },

    // ── the reaper ──
    /// A new file of exactly this mode, with what is in a sealed memfd.
    File {
        content: FdIndex,
        path: &'a [u8],
        mode: u32,
    },
}

/// Together with a wait status: in the place of an error number, how a program ended.
pub const ENDED: i32 = 1 << 16;

/// The steps of an encoded Plan.
pub struct Steps<'a>(pub &'a [u8]);

impl<'a> Iterator for Steps<'a> {
    type Item = Result<Step<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        match postcard::take_from_bytes(self.0) {
            Ok((step, rest)) => {
                self.0 = rest;
                Some(Ok(step))
            }
            Err(_) => {
                self.0 = &[];
                Some(Err(Malformed))
            }
        }
    }
}

/// A Plan being written.
#[cfg(feature = "alloc")]
#[derive(Debug, Default, Clone)]
pub struct PlanWriter {
    bytes: Vec<u8>,
    steps: u32,
}

#[cfg(feature = "alloc")]
impl PlanWriter {
    /// Appends a step and returns its index, which [`crate::Reply::StepFailed`] names it by.
    ///
    /// # Panics
    /// Never: a step always encodes.
    pub fn push(&mut self, step: &Step<'_>) -> u32 {
        let encoded = postcard::to_allocvec(step).expect("a step always encodes");
        self.bytes.extend_from_slice(&encoded);
        let index = self.steps;
        self.steps += 1;
        index
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
