//! Seccomp profiles: the default one, those that a node's administrator wrote, and their compilation to
//! the classic BPF that the kernel runs on every system call.
//!
//! ```text
//! caps ─▶ default_profile ─┐
//!                          ├─▶ LinuxSeccomp ─▶ compile ─▶ Program ─▶ Step::Seccomp
//! file ─▶ load_profile ────┘
//! ```
//!
//! What must always hold: a profile that cannot be carried out exactly is an error, never a weaker
//! filter. The one exception is the peers': a system call whose name is not known here is passed over,
//! because profiles are written for kernels of all ages.

mod arch;
mod bpf;
mod default;
mod profile;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

pub use arch::Machine;
pub use default::default_profile;
pub use profile::load_profile;

/// The most instructions that the kernel takes (BPF_MAXINSNS).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// SECCOMP_FILTER_FLAG_LOG of `seccomp(2)`.
const FLAG_LOG: u64 = 1 << 1;
/// SECCOMP_FILTER_FLAG_SPEC_ALLOW.
const FLAG_SPEC_ALLOW: u64 = 1 << 2;

/// How many compiled profiles are kept. A node has few: the default one per capability set in use.
const CACHED: usize = 32;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("seccomp profile {path}: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    /// The file's text is not part of the message: it may be any file of the host.
    #[error("seccomp profile {path}: not a profile (line {line}, column {column})")]
    Parse {
        path: String,
        line: usize,
        column: usize,
    },
    #[error("seccomp profile: action SCMP_ACT_NOTIFY is not supported")]
    Notify,
    #[error("seccomp profile: errno {errno} of {object} is out of range")]
    Errno { object: String, errno: u32 },
    #[error("seccomp profile: syscall {names}: argument index {index} is out of range")]
    ArgumentIndex { names: String, index: usize },
    #[error("seccomp profile: {0} instructions, more than the kernel takes (4096)")]
    TooLong(usize),
}

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// An array of `struct sock_filter`, 8 bytes each, in the machine's byte order.
    pub instructions: Vec<u8>,
    /// Flags of `seccomp(2)`.
    pub flags: u64,
}

/// The programs of the last few profiles, by what tells these from each other.
struct Cache<K>(Mutex<Vec<(K, Arc<Program>)>>);

impl<K: Clone + PartialEq> Cache<K> {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn get(
        &self,
        key: &K,
        make: impl FnOnce() -> Result<Program, Error>,
    ) -> Result<Arc<Program>, Error> {
        if let Some((_, program)) = self.lock().iter().find(|(cached, _)| cached == key) {
            return Ok(program.clone());
        }
        let program = Arc::new(make()?);
        let mut entries = self.lock();
        if entries.len() >= CACHED {
            entries.remove(0);
        }
        entries.push((key.clone(), program.clone()));
        Ok(program)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(K, Arc<Program>)>> {
        // A poisoned cache still holds whole entries only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compiles a profile for this machine. The results of the last few profiles are kept.
///
/// # Errors
/// [`Error`] for what cannot be carried out exactly.
pub fn compile(profile: &LinuxSeccomp) -> Result<Arc<Program>, Error> {
    static CACHE: Cache<LinuxSeccomp> = Cache::new();
    CACHE.get(profile, || compile_for(profile, Machine::NATIVE))
}

/// Compiles [`default_profile`] for this machine. The results for the last few `capabilities` are kept.
///
/// # Errors
/// As [`compile`].
pub fn compile_default(capabilities: u64) -> Result<Arc<Program>, Error> {
    static CACHE: Cache<u64> = Cache::new();
    CACHE.get(&capabilities, || {
        compile_for(&default_profile(capabilities), Machine::NATIVE)
    })
}

/// Compiles a profile for `machine`.
///
/// # Errors
/// As [`compile`].
pub fn compile_for(profile: &LinuxSeccomp, machine: Machine) -> Result<Program, Error> {
    let policy = rules::Policy::of(profile, machine)?;
    let instructions = bpf::assemble(&policy);
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLong(instructions.len()));
    }
    Ok(Program {
        instructions: instructions
            .into_iter()
            .flat_map(bpf::Instruction::to_bytes)
            .collect(),
        flags: flags(profile),
    })
}

/// TSYNC means nothing to a process with one thread, WAIT_KILLABLE_RECV nothing without a listener.
/// Without a list the peers' default holds: the speculation of the workload is its own affair.
fn flags(profile: &LinuxSeccomp) -> u64 {
    let Some(flags) = profile.flags() else {
        return FLAG_SPEC_ALLOW;
    };
    flags.iter().fold(0, |bits, flag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => bits | FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => bits | FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync
        | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => bits,
    })
}

/// The value that a filter returns for an action (SECCOMP_RET_*).
fn return_value(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    object: &dyn Fn() -> String,
) -> Result<u32, Error> {
    let data = |limit: u32| match errno.unwrap_or(libc::EPERM as u32) {
        errno if errno <= limit => Ok(errno),
        errno => Err(Error::Errno {
            object: object(),
            errno,
        }),
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data(4095)?,
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | data(0xffff)?,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => return Err(Error::Notify),
    })
}
