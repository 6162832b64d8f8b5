//! What the node's kernel has.

use std::path::Path;

use super::validate::Platform;
use crate::apparmor;
use crate::cgroup::{Cgroups, Version};

/// Asks the kernel, once, at the daemon's start.
#[must_use]
pub fn probe() -> Platform {
    Platform {
        apparmor: apparmor::is_enabled(),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        // mount_setattr(2) is there from 5.12 on.
        recursive_read_only: kernel_version().is_some_and(|version| version >= (5, 12)),
        unified: Cgroups::detect().is_ok_and(|cgroups| cgroups.version() == Version::V2),
    }
}

fn kernel_version() -> Option<(u32, u32)> {
    let uname = rustix::system::uname();
    parse_version(uname.release().to_str().ok()?)
}

/// Major and minor of a release like "6.12.3-amd64".
pub fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_many_forms() {
        assert_eq!(parse_version("6.12.3-amd64"), Some((6, 12)));
        assert_eq!(parse_version("5.4-rc1"), Some((5, 4)));
        assert_eq!(parse_version("linux"), None);
    }
}
