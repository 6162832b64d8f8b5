//! What the daemon and the supervisors say to each other.
//!
//! Three things cross between them, each plain data:
//!
//! - **messages** over a SEQPACKET socket: a [`Request`] from the daemon, an [`Event`] back;
//! - **Plans** in sealed memfds: the list of [`Step`]s that a new process carries out before it execs;
//! - **exit records**, appended by the supervisor to a file before it announces an exit.
//!
//! The daemon compiles and checks, the supervisor carries out: nothing here decides anything. All of it
//! decodes in place, without memory of its own, because the supervisor has no heap. File descriptors
//! travel beside a message (SCM_RIGHTS, `unix(7)`) and are named by their index in it.
//!
//! The encoding is postcard's. A daemon may meet supervisors of another version after an upgrade:
//! [`VERSION`] is the first thing that either side sees of the other, in [`Event::Hello`].

#![cfg_attr(not(test), no_std)]

#[cfg(feature = "alloc")]
extern crate alloc;

mod exit;
mod list;
mod message;
mod plan;

pub use exit::{ExitRecord, ExitRecords};
pub use list::NulList;
#[cfg(feature = "alloc")]
pub use list::encode_nul_list;
pub use message::*;
pub use plan::*;

/// Version of the messages, the Plan and the exit records. A change that an older supervisor would
/// misread increments it. Requests that are added behind the last do not: it answers
/// [`Reply::Malformed`] to those.
pub const VERSION: u16 = 2;

/// The longest message, in bytes, either way.
pub const MAX_MESSAGE: usize = 4096;

/// The most file descriptors beside one message. The kernel's limit is 253 (SCM_MAX_FD).
pub const MAX_FDS: usize = 250;

/// The longest Plan, in bytes.
pub const MAX_PLAN: usize = 8 << 20;

/// A container or an exec, as the supervisor knows it: the 32 bytes whose hex form is the CRI id.
pub type ObjectId = [u8; 32];

/// Why bytes could not be read as what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("malformed message")
    }
}

impl core::error::Error for Malformed {}
