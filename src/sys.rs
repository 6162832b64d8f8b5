//! System calls that have no safe wrapper in the crates used. The only module with `unsafe` in it.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the reactor.
///
/// # Errors
/// As `epoll_ctl(2)`.
pub fn async_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the AsyncFd, so it stays open and the same until that is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
