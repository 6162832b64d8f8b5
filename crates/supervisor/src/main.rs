//! The freestanding program around the library: entry point, panic, and the symbols that compiled code
//! expects where there is no libc.

#![no_std]
#![no_main]

mod start_up;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nobody reads what could be said; the status is that of abort(3) in a shell.
    carpel_supervisor::sys::exit(134)
}
