//! The daemon's side of a pod's supervisor: starting it, talking to it, losing it.
//!
//! ```text
//! Supervisor::spawn ──▶ connected ──Setup──▶ serving ──┬── daemon dies, new one connects ──▶ serving
//!                                                     ├── Shutdown ──▶ gone
//!                                                     └── killed ──▶ gone: every wait ends with Lost,
//!                                                                    and a successor is spawned
//! ```
//!
//! What must always hold: a supervisor that was spawned is either in a sandbox's record or has been
//! killed; an exit is delivered to exactly one waiter, which was registered before the process could
//! exit.

mod client;
mod socket;
mod spawn;

pub use client::{Error, Exit, ExitWait, Listed, Lost, REPLY_TIMEOUT, Reaper, Started, Supervisor};
pub use spawn::Binary;
