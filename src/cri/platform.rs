//! What the node's kernel has.

use super::validate::Platform;
use crate::apparmor;
use crate::cgroup::{Cgroups, Version};

/// Asks the kernel, once, at the daemon's start.
#[must_use]
pub fn probe() -> Platform {
    Platform {
        apparmor: apparmor::is_enabled(),
        recursive_read_only: crate::store::bind::can_protect_recursively(),
        unified: Cgroups::detect().is_ok_and(|cgroups| cgroups.version() == Version::V2),
    }
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
