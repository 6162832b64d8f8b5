//! Settings under /proc/sys/net, always of the network namespace that the process is in.

use std::{fs, io};

/// Sets `net/…` to `value`, unless it has it already.
pub fn set(key: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{key}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim_end() == value) {
        return Ok(());
    }
    fs::write(path, value)
}

/// Sets a link's `net/FAMILY/conf/LINK/KEY` to `value` where the kernel has such a setting: it has
/// none for IPv6 when that is turned off altogether.
pub fn set_if_there(family: &str, link: &str, key: &str, value: &str) {
    // A name with a dot is one folder here, and a name never holds a slash.
    let _ = fs::write(format!("/proc/sys/net/{family}/conf/{link}/{key}"), value);
}
