//! Capabilities by name, as sets of bits the way the kernel numbers them.

use oci_spec::runtime::{Capabilities, Capability};

/// All names without "CAP_", each at the kernel's number.
const NAMES: [(&str, Capability); 41] = [
    ("CHOWN", Capability::Chown),
    ("DAC_OVERRIDE", Capability::DacOverride),
    ("DAC_READ_SEARCH", Capability::DacReadSearch),
    ("FOWNER", Capability::Fowner),
    ("FSETID", Capability::Fsetid),
    ("KILL", Capability::Kill),
    ("SETGID", Capability::Setgid),
    ("SETUID", Capability::Setuid),
    ("SETPCAP", Capability::Setpcap),
    ("LINUX_IMMUTABLE", Capability::LinuxImmutable),
    ("NET_BIND_SERVICE", Capability::NetBindService),
    ("NET_BROADCAST", Capability::NetBroadcast),
    ("NET_ADMIN", Capability::NetAdmin),
    ("NET_RAW", Capability::NetRaw),
    ("IPC_LOCK", Capability::IpcLock),
    ("IPC_OWNER", Capability::IpcOwner),
    ("SYS_MODULE", Capability::SysModule),
    ("SYS_RAWIO", Capability::SysRawio),
    ("SYS_CHROOT", Capability::SysChroot),
    ("SYS_PTRACE", Capability::SysPtrace),
    ("SYS_PACCT", Capability::SysPacct),
    ("SYS_ADMIN", Capability::SysAdmin),
    ("SYS_BOOT", Capability::SysBoot),
    ("SYS_NICE", Capability::SysNice),
    ("SYS_RESOURCE", Capability::SysResource),
    ("SYS_TIME", Capability::SysTime),
    ("SYS_TTY_CONFIG", Capability::SysTtyConfig),
    ("MKNOD", Capability::Mknod),
    ("LEASE", Capability::Lease),
    ("AUDIT_WRITE", Capability::AuditWrite),
    ("AUDIT_CONTROL", Capability::AuditControl),
    ("SETFCAP", Capability::Setfcap),
    ("MAC_OVERRIDE", Capability::MacOverride),
    ("MAC_ADMIN", Capability::MacAdmin),
    ("SYSLOG", Capability::Syslog),
    ("WAKE_ALARM", Capability::WakeAlarm),
    ("BLOCK_SUSPEND", Capability::BlockSuspend),
    ("AUDIT_READ", Capability::AuditRead),
    ("PERFMON", Capability::Perfmon),
    ("BPF", Capability::Bpf),
    ("CHECKPOINT_RESTORE", Capability::CheckpointRestore),
];

/// Every capability that has a name here.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// What a container has if nothing is asked for: CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID
/// SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE.
pub const DEFAULT: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 10
    | 1 << 13
    | 1 << 18
    | 1 << 27
    | 1 << 29
    | 1 << 31;

/// To enter any directory, and to install a seccomp filter without no_new_privs.
pub const DAC_OVERRIDE: u64 = 1 << 1;
pub const DAC_READ_SEARCH: u64 = 1 << 2;
pub const SYS_ADMIN: u64 = 1 << 21;

/// The bit of a capability, by its name without "CAP_". `None`: there is no such capability.
#[must_use]
pub fn bit(name: &str) -> Option<u64> {
    let number = NAMES.iter().position(|(known, _)| *known == name)?;
    Some(1 << number)
}

/// A set of bits as the OCI spec writes it.
#[must_use]
pub fn to_oci(bits: u64) -> Capabilities {
    let held = NAMES
        .iter()
        .enumerate()
        .filter(|(number, _)| bits & (1 << number) != 0);
    held.map(|(_, (_, capability))| *capability).collect()
}

/// An OCI set as bits.
#[must_use]
pub fn from_oci(capabilities: &Capabilities) -> u64 {
    let held = NAMES
        .iter()
        .enumerate()
        .filter(|(_, (_, known))| capabilities.contains(known));
    held.fold(0, |bits, (number, _)| bits | 1 << number)
}

/// The capabilities of a container: what is added to and dropped from the default set.
///
/// "ALL" comes before the names beside it: adding ALL and dropping one leaves all but that one.
///
/// # Errors
/// The name that is no capability.
pub fn resolve(add: &[String], drop: &[String]) -> Result<u64, String> {
    changed(DEFAULT, add, drop)
}

/// What is added and not dropped, without a default: "ALL" as in [`resolve`].
///
/// # Errors
/// The name that is no capability.
pub fn added(add: &[String], drop: &[String]) -> Result<u64, String> {
    changed(0, add, drop)
}

fn changed(mut bits: u64, add: &[String], drop: &[String]) -> Result<u64, String> {
    if add.iter().any(|name| name == "ALL") {
        bits = ALL;
    }
    if drop.iter().any(|name| name == "ALL") {
        bits = 0;
    }
    let named = |names: &[String]| {
        names
            .iter()
            .filter(|name| *name != "ALL")
            .try_fold(0, |bits, name| {
                bit(name).map(|bit| bits | bit).ok_or_else(|| name.clone())
            })
    };
    bits |= named(add)?;
    Ok(bits & !named(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_kernels_numbers() {
        assert_eq!(bit("CHOWN"), Some(1));
        assert_eq!(bit("SYS_ADMIN"), Some(SYS_ADMIN));
        assert_eq!(bit("SETFCAP"), Some(1 << 31));
        assert_eq!(bit("CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(DEFAULT.count_ones(), 14);
        assert_eq!(DEFAULT, 0xa804_25fb);
        assert_eq!(bit("CAP_CHOWN"), None);
        assert_eq!(from_oci(&to_oci(ALL)), ALL);
        assert_eq!(from_oci(&to_oci(DEFAULT)), DEFAULT);
    }

    #[test]
    fn all_comes_before_names() {
        let chown = bit("CHOWN").unwrap();
        assert_eq!(resolve(&[], &[]), Ok(DEFAULT));
        assert_eq!(
            resolve(&names(&["ALL"]), &names(&["CHOWN"])),
            Ok(ALL & !chown)
        );
        assert_eq!(resolve(&names(&["CHOWN"]), &names(&["ALL"])), Ok(chown));
        assert_eq!(resolve(&[], &names(&["ALL"])), Ok(0));
        assert_eq!(
            resolve(&names(&["NET_ADMIN"]), &names(&["KILL"])),
            Ok((DEFAULT | 1 << 12) & !(1 << 5))
        );
        assert_eq!(resolve(&names(&["NOPE"]), &[]), Err("NOPE".into()));
        assert_eq!(added(&[], &[]), Ok(0));
        assert_eq!(added(&names(&["CHOWN"]), &names(&["ALL"])), Ok(chown));
        assert_eq!(
            added(&names(&["ALL"]), &names(&["CHOWN"])),
            Ok(ALL & !chown)
        );
        assert_eq!(added(&names(&["CHOWN"]), &names(&["CHOWN"])), Ok(0));
        assert_eq!(resolve(&[], &names(&["NOPE"])), Err("NOPE".into()));
    }
}
