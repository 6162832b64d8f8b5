//! A pod's supervisor: its pause process, reaper and log writer in one.
//!
//! It decides nothing. It carries out the Plans that the daemon compiled, and reports what happened; it
//! is the only place where processes are cloned. It is single-threaded, has no heap, and talks to the
//! kernel through [`sys`] alone, so that one for each pod costs next to nothing.
//!
//! ```text
//! spawned ──Setup──▶ cloned into the pod's namespaces ──▶ serves ──Shutdown──▶ gone
//! ```

#![cfg_attr(not(test), no_std)]

mod adopt;
mod attach;
mod clock;
mod frame;
mod lifecycle;
mod log;
mod number;
mod outbox;
mod plan;
mod pump;
mod reaper;
mod requests;
mod serve;
mod setup;
mod slot;
mod start;
pub mod sys;
mod table;
mod user;

use core::ffi::CStr;

use serve::{Memory, Supervisor};
use sys::Once;

static MEMORY: Once<Memory> = Once::new(Memory::new());

/// As the kernel shows the process: the program's name, cut to what fits.
const NAME: &core::ffi::CStr = c"carpel-supervis";

/// Runs a supervisor on the listening socket that is fd 0. It ends when the daemon asks it to, or with
/// status 1 if it cannot begin. With the `argument` [`carpel_wire::BE_REAPER`] it is a pod's reaper instead.
pub fn run(argument: Option<&CStr>) -> ! {
    sys::set_name(NAME);
    if reaper::is_asked_for(argument) {
        reaper::live_on();
    }
    sys::reset_signals(true);
    let begun = sys::set_not_dumpable().and_then(|()| {
        let memory = MEMORY.take().ok_or(sys::Errno(sys::errno::EBUSY))?;
        sys::adopt_orphans()?;
        Supervisor::new(sys::take_listener()?, memory)
    });
    match begun {
        Ok(mut supervisor) => supervisor.serve(),
        Err(_) => sys::exit(1),
    }
}
