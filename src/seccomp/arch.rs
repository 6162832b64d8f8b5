//! Which system call ABIs a machine has, and the numbers of their calls.

use std::collections::HashMap;
use std::sync::LazyLock;

use oci_spec::runtime::Arch;

/// The whole of one of the `syscalls` crate's tables.
macro_rules! table {
    ($sysno:ty) => {
        <$sysno>::iter()
            .map(|call| (call.name(), call.id() as u32))
            .collect::<HashMap<&'static str, u32>>()
    };
}

/// A family of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// The one that this binary runs on.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Machine = Machine::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Machine = Machine::Aarch64;
}

/// One table of system call numbers, as the kernel tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    /// Shares AUDIT_ARCH_X86_64 with [`Abi::X86_64`]; its numbers have [`X32_BIT`] set.
    X32,
    X86,
    Aarch64,
    Arm,
}

/// __X32_SYSCALL_BIT.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The x32 numbers that differ from those of x86_64. The calls of the other numbers are the same.
const X32: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// The private calls of 32-bit ARM, which no table lists.
const ARM_PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", 0xf_0001),
    ("cacheflush", 0xf_0002),
    ("usr26", 0xf_0003),
    ("usr32", 0xf_0004),
    ("set_tls", 0xf_0005),
    ("get_tls", 0xf_0006),
];

impl Abi {
    /// The ABI of a machine's own programs.
    pub(super) fn native(machine: Machine) -> Abi {
        match machine {
            Machine::X86_64 => Abi::X86_64,
            Machine::Aarch64 => Abi::Aarch64,
        }
    }

    /// What a profile calls `arch`, if a program of that kind can run on `machine`.
    pub(super) fn on(machine: Machine, arch: Arch) -> Option<Abi> {
        match (machine, arch) {
            (_, Arch::ScmpArchNative) => Some(Abi::native(machine)),
            (Machine::X86_64, Arch::ScmpArchX86_64) => Some(Abi::X86_64),
            (Machine::X86_64, Arch::ScmpArchX32) => Some(Abi::X32),
            (Machine::X86_64, Arch::ScmpArchX86) => Some(Abi::X86),
            (Machine::Aarch64, Arch::ScmpArchAarch64) => Some(Abi::Aarch64),
            (Machine::Aarch64, Arch::ScmpArchArm) => Some(Abi::Arm),
            _ => None,
        }
    }

    /// AUDIT_ARCH_*: what `seccomp_data.arch` holds.
    pub(super) fn audit(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::X86 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have 64 bits. Where they have 32, only those are compared.
    pub(super) fn wide(self) -> bool {
        !matches!(self, Abi::X86 | Abi::Arm)
    }

    /// The numbers by name.
    pub(super) fn numbers(self) -> &'static HashMap<&'static str, u32> {
        static X86_64: LazyLock<HashMap<&str, u32>> =
            LazyLock::new(|| table!(syscalls::x86_64::Sysno));
        static X32_TABLE: LazyLock<HashMap<&str, u32>> = LazyLock::new(|| {
            let mut numbers = X86_64.clone();
            numbers.extend(X32);
            numbers.values_mut().for_each(|number| *number |= X32_BIT);
            numbers
        });
        static X86: LazyLock<HashMap<&str, u32>> = LazyLock::new(|| table!(syscalls::x86::Sysno));
        static AARCH64: LazyLock<HashMap<&str, u32>> =
            LazyLock::new(|| table!(syscalls::aarch64::Sysno));
        static ARM: LazyLock<HashMap<&str, u32>> = LazyLock::new(|| {
            let mut numbers = table!(syscalls::arm::Sysno);
            numbers.extend(ARM_PRIVATE);
            numbers
        });
        match self {
            Abi::X86_64 => &X86_64,
            Abi::X32 => &X32_TABLE,
            Abi::X86 => &X86,
            Abi::Aarch64 => &AARCH64,
            Abi::Arm => &ARM,
        }
    }
}
