//! Named places where a test can make the daemon die.
//!
//! `CARPEL_FAILPOINT=NAME` makes the process kill itself (SIGKILL) when it first passes [`hit`] with that
//! name; `NAME:error` has it return an error instead, once, and `NAME:panic` has it panic, once. The names are listed below, so that a test can visit every one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;

/// Every failpoint, in the order in which a pod's life passes them.
pub const NAMES: &[&str] = &[
    "run:recorded",
    "run:supervisor-spawned",
    "run:supervisor-ready",
    "run:netns-pinned",
    "run:network-added",
    "run:ready",
    "create:prepared",
    "create:recorded",
    "start:rootfs",
    "start:sent",
    "start:started",
    "update:set",
    "update-sandbox:set",
    "stop:signalled",
    "stop:exited",
    "stop-sandbox:containers-stopped",
    "stop-sandbox:network-deleted",
    "stop-sandbox:supervisor-gone",
    "stop-sandbox:recorded",
    "remove:begun",
    "remove:files-gone",
    "remove-sandbox:begun",
    "remove-sandbox:files-gone",
];

/// Those on the way of a pod from a supervisor that died to another.
pub const ADOPTION: &[&str] = &[
    "adopt:dead",
    "adopt:spawned",
    "adopt:handed-over",
    "adopt:ready",
];
/// Those on the way of a container's exit. No request waits for them.
pub const EXIT: &[&str] = &["exit:recorded", "exit:told"];

/// Those that a container with image volumes passes besides.
pub const VOLUMES: &[&str] = &["create:volumes", "start:volumes"];

/// Those that the start of a container with hooks passes besides.
pub const HOOKS: &[&str] = &["start:bundle", "start:hooks"];

/// Those that the start of a container with network devices passes besides.
pub const NET_DEVICES: &[&str] = &["start:net-devices"];

/// Those that only a pod with a user namespace passes.
pub const USER_NAMESPACE: &[&str] = &["run:user-namespace", "start:user-namespace"];

/// Every failpoint of a pull, in the order in which one passes them.
pub const PULL: &[&str] = &[
    "pull:unpacked",
    "pull:staged",
    "pull:synced",
    "pull:named",
    "pull:committed",
];

/// Passes the failpoint `name`: dies there if a test armed it so.
///
/// # Panics
/// Once, if a test armed it as `NAME:panic`.
///
/// # Errors
/// Once, if a test armed it as `NAME:error`: what fails there undoes itself.
pub fn hit(name: &str) -> Result<(), Error> {
    static ARMED: OnceLock<Option<String>> = OnceLock::new();
    static FAILED: AtomicBool = AtomicBool::new(false);
    let lists = [
        NAMES,
        ADOPTION,
        EXIT,
        VOLUMES,
        HOOKS,
        NET_DEVICES,
        USER_NAMESPACE,
        PULL,
    ];
    let listed = lists.iter().any(|names| names.contains(&name));
    debug_assert!(listed, "failpoint {name} is not listed");
    let Some(armed) = ARMED.get_or_init(|| std::env::var("CARPEL_FAILPOINT").ok()) else {
        return Ok(());
    };
    if armed == name {
        // As an operator's `kill -9` does: no destructor runs, no buffer is written.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
    if armed.strip_suffix(":panic") == Some(name) && !FAILED.swap(true, Ordering::Relaxed) {
        panic!("failpoint {name}");
    }
    if armed.strip_suffix(":error") == Some(name) && !FAILED.swap(true, Ordering::Relaxed) {
        return Err(Error::Internal(format!("failpoint {name}")));
    }
    Ok(())
}
