//! What the kernel says of SELinux: the files of its own file system.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, fstatvfs, statfs};

use super::label::Label;

const SELINUXFS: &str = "/sys/fs/selinux";
const MAGIC: rustix::fs::FsWord = 0xf97c_ff8c;

/// A kernel that has SELinux on, with a policy loaded.
#[derive(Debug, Clone)]
pub struct Kernel(PathBuf);

impl Kernel {
    /// `None` if SELinux is off; or if it is another's: a container that is a node itself sees it read-only, if at all.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let fs = Path::new(SELINUXFS);
        let is_selinuxfs = statfs(fs).is_ok_and(|found| found.f_type == MAGIC);
        let is_writable = || -> io::Result<bool> {
            let flags = fstatvfs(File::open(fs)?)?.f_flag;
            Ok(!flags.contains(StatVfsMountFlags::RDONLY))
        };
        // Before a policy is loaded all processes are the kernel's.
        let has_policy = || domain_of("self").is_ok_and(|domain| domain != "kernel");
        let on = is_selinuxfs && is_writable().unwrap_or(false) && has_policy();
        on.then(|| Self(fs.to_owned()))
    }

    /// Whether what the policy forbids is refused, and not only noted.
    #[must_use]
    pub fn is_enforcing(&self) -> bool {
        std::fs::read_to_string(self.0.join("enforce")).is_ok_and(|text| text.trim() == "1")
    }

    /// Whether the policy has such a label.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn knows(&self, label: &Label) -> io::Result<bool> {
        let mut file = OpenOptions::new()
            .write(true)
            .open(self.0.join("context"))?;
        match file.write_all(label.to_string().as_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            written => written.map(|()| true),
        }
    }

    /// Whether a process of the label `from` may run programs as `to`.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn may_run_as(&self, from: &str, to: &Label) -> io::Result<bool> {
        let number = |path: &str| -> io::Result<u32> {
            let text = std::fs::read_to_string(self.0.join(path))?;
            text.trim().parse().map_err(io::Error::other)
        };
        let class = number("class/process/index")?;
        let transition = number("class/process/perms/transition")?;
        let path = self.0.join("access");
        let mut access = OpenOptions::new().read(true).write(true).open(path)?;
        access.write_all(format!("{from} {to} {class}").as_bytes())?;
        let mut answer = String::new();
        access.read_to_string(&mut answer)?;
        allows(&answer, transition).ok_or_else(|| io::Error::other(format!("access: {answer:?}")))
    }
}

/// The label of a process, by its pid or "self".
///
/// # Errors
/// As `read(2)`.
pub fn domain_of(process: &str) -> io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{process}/attr/current"))?;
    Ok(text.trim_end_matches(['\0', '\n']).to_owned())
}

/// The kernel answers "allowed decided auditallow auditdeny sequence flags", all but the fifth in hexadecimal.
fn allows(answer: &str, permission: u32) -> Option<bool> {
    /// The domain is permissive.
    const PERMISSIVE: u32 = 1;
    let mut fields = answer.split_ascii_whitespace();
    let mut number = |skipped| u32::from_str_radix(fields.nth(skipped)?, 16).ok();
    let (allowed, flags) = (number(0)?, number(4)?);
    let bit = 1_u32.checked_shl(permission.checked_sub(1)?)?;
    Some(allowed & bit != 0 || flags & PERMISSIVE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_kernel() {
        // `transition` is the second permission of processes.
        assert_eq!(allows("2 ffffffff 0 ffffffff 1 0", 2), Some(true));
        assert_eq!(allows("fffffffd ffffffff 0 ffffffff 1 0", 2), Some(false));
        assert_eq!(allows("0 ffffffff 0 ffffffff 10 1", 2), Some(true));
        for broken in ["", "2", "2 ffffffff 0 ffffffff 1", "x y z 0 0 0"] {
            assert_eq!(allows(broken, 2), None, "{broken}");
        }
        assert_eq!(allows("2 0 0 0 0 0", 0), None);
    }

    #[test]
    fn a_kernel_is_asked_only_where_selinux_is_on() {
        let mounted = Path::new(SELINUXFS).join("enforce").exists();
        if !mounted {
            assert!(Kernel::detect().is_none());
        }
        let Some(kernel) = Kernel::detect() else {
            return;
        };
        let own: Label = domain_of("self").unwrap().parse().unwrap();
        assert!(kernel.knows(&own).unwrap());
        assert!(!kernel.knows(&"no_u:no_r:no_t:s0".parse().unwrap()).unwrap());
    }
}
