//! Named places where a test can make the daemon die.
//!
//! `CARPEL_FAILPOINT=NAME` makes the process kill itself (SIGKILL) when it first passes [`hit`] with that
//! name; `CARPEL_FAILPOINT=NAME:error` makes [`hit`] return an error instead, once. The names are
//! listed in [`NAMES`], so that a test can visit every one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// The error that an armed failpoint gives.
#[derive(Debug, thiserror::Error)]
#[error("failpoint {0}")]
pub struct Failed(&'static str);

struct Armed {
    name: String,
    error: bool,
    fired: AtomicBool,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED
        .get_or_init(|| {
            let value = std::env::var("CARPEL_FAILPOINT").ok()?;
            let (name, error) = match value.strip_suffix(":error") {
                Some(name) => (name.to_owned(), true),
                None => (value, false),
            };
            Some(Armed {
                name,
                error,
                fired: AtomicBool::new(false),
            })
        })
        .as_ref()
}

/// Passes the failpoint `name`.
///
/// # Errors
/// [`Failed`] if a test armed it so.
pub fn hit(name: &'static str) -> Result<(), Failed> {
    debug_assert!(NAMES.contains(&name), "failpoint {name} is not listed");
    match armed() {
        Some(armed) if armed.name == name && !armed.fired.swap(true, Ordering::Relaxed) => {
            if armed.error {
                return Err(Failed(name));
            }
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            Ok(())
        }
        _ => Ok(()),
    }
}
