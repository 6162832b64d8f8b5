//! A SEQPACKET unix socket with file descriptors beside its messages, for tokio.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use carpel_wire::{MAX_FDS, MAX_MESSAGE};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Name of the control socket in a pod's state folder.
const NAME: &str = "control";

/// A connection to a supervisor.
pub struct Connection(AsyncFd<OwnedFd>);

/// Binds a listening control socket in `dir`.
///
/// # Errors
/// As `bind(2)`; a socket left there by a supervisor that is gone is replaced.
pub fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let socket = new(SocketFlags::CLOEXEC)?;
    let (_dir, address) = address(dir)?;
    match std::fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => rustix::net::bind(&socket, &address)?,
    }
    rustix::net::listen(&socket, 4)?;
    Ok(socket)
}

fn new(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// An address is at most 108 bytes and a state folder's path may be longer, so it is named through a
/// descriptor of the folder.
fn address(dir: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{NAME}", fd.as_raw_fd()))?;
    Ok((fd, address))
}

impl Connection {
    /// Connects to the supervisor that listens in `dir`.
    ///
    /// # Errors
    /// `ConnectionRefused` or `NotFound` if none does; `WouldBlock` if it has long not looked at who wants to.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        let socket = new(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let (_dir, address) = address(dir)?;
        rustix::net::connect(&socket, &address)?;
        Ok(Self(sys::async_fd(socket)?))
    }

    /// Sends one message and the descriptors beside it.
    ///
    /// # Errors
    /// As `sendmsg(2)`: EPIPE when the supervisor is gone.
    pub async fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|socket| send_now(socket.get_ref(), message, fds)) {
                Ok(result) => return result,
                Err(_would_block) => continue,
            }
        }
    }

    /// Receives one message and hands it to `read`. `None`: the supervisor has closed the connection. Descriptors
    /// that this process has no room for are missing.
    ///
    /// # Errors
    /// As `recvmsg(2)`.
    pub async fn receive<T>(
        &self,
        read: impl Fn(&[u8], Vec<OwnedFd>) -> T,
    ) -> io::Result<Option<T>> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| receive_now(socket.get_ref(), &read)) {
                Ok(result) => return result,
                Err(_would_block) => continue,
            }
        }
    }
}

fn send_now(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::ETOOMANYREFS));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, flags)?;
    Ok(())
}

/// The buffer is here, on the thread's stack: in whoever waits for messages each pod would have one.
fn receive_now<T>(
    socket: &OwnedFd,
    read: impl Fn(&[u8], Vec<OwnedFd>) -> T,
) -> io::Result<Option<T>> {
    let mut buffer = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, flags)?;
    let length = received.bytes;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((length > 0).then(|| read(&buffer[..length], fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_supervisor_that_takes_no_connection() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = listen(dir.path()).unwrap();
        let mut taken = Vec::new();
        let error = loop {
            match Connection::connect(dir.path()) {
                Ok(connection) => taken.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(taken.len() >= 4);
    }
}
