//! The control socket: SEQPACKET with descriptors beside the messages. And the loopback interface.

use linux_raw_sys::{general as nr, ioctl, net};

use super::{BorrowedFd, Errno, Fd, Result, call, errno};
use carpel_wire::{Family, FdIndex, MAX_FDS};

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const MSG_CTRUNC: u32 = 0x08;
const MSG_TRUNC: u32 = 0x20;
const MSG_DONTWAIT: usize = 0x40;
const MSG_NOSIGNAL: usize = 0x4000;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const AF_INET: usize = 2;
const AF_INET6: usize = 10;
const SOCK_STREAM: usize = 1;
const SOCK_DGRAM: usize = 2;

/// The most descriptors that are sent beside a message.
pub const MAX_SENT: usize = 5;

/// Room for the descriptors of one message: a header and the most that the kernel ever sends.
const CONTROL: usize = size_of::<net::cmsghdr>() + 256 * size_of::<i32>();

#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// The descriptors that came beside a message. What is not taken is closed.
#[derive(Debug)]
pub struct FdList {
    fds: [Option<Fd>; MAX_FDS],
    count: usize,
}

impl Default for FdList {
    fn default() -> Self {
        Self {
            fds: [const { None }; MAX_FDS],
            count: 0,
        }
    }
}

impl FdList {
    fn push(&mut self, fd: Fd) -> bool {
        let Some(slot) = self.fds.get_mut(self.count) else {
            return false;
        };
        *slot = Some(fd);
        self.count += 1;
        true
    }

    #[must_use]
    pub fn get(&self, index: FdIndex) -> Option<BorrowedFd<'_>> {
        self.fds.get(usize::from(index.0))?.as_ref().map(Fd::borrow)
    }

    pub fn take(&mut self, index: FdIndex) -> Option<Fd> {
        self.fds.get_mut(usize::from(index.0))?.take()
    }

    /// Closes what was there.
    pub fn replace(&mut self, index: FdIndex, fd: Fd) {
        if let Some(slot) = self.fds.get_mut(usize::from(index.0)) {
            *slot = Some(fd);
        }
    }

    /// All that are left.
    pub fn iter(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds.iter().flatten().map(Fd::borrow)
    }
}

/// What [`receive`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A message of that many bytes.
    Message(usize),
    /// A message that did not fit, or whose descriptors did not. The first bytes of it are there.
    Truncated(usize),
    /// The other side is gone.
    Closed,
}

/// Takes one message, without waiting. The descriptors, close-on-exec, go to `fds`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], fds: &mut FdList) -> Result<Received> {
    let mut control = Control([0; CONTROL]);
    let mut part = nr::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len() as _,
    };
    let mut header = header(&mut part, &mut control.0);
    // SAFETY: `header` describes `buffer` and `control`, which outlive the call.
    let length = unsafe {
        call(
            nr::__NR_recvmsg,
            [
                socket.arg(),
                (&raw mut header) as usize,
                MSG_CMSG_CLOEXEC | MSG_DONTWAIT,
                0,
                0,
                0,
            ],
        )
    }?;
    let used = control.0.get(..header.msg_controllen).unwrap_or(&[]);
    let fit = collect(used, fds);
    if header.msg_flags & (MSG_CTRUNC | MSG_TRUNC) != 0 || !fit {
        Ok(Received::Truncated(length.min(buffer.len())))
    } else if length == 0 {
        Ok(Received::Closed)
    } else {
        Ok(Received::Message(length))
    }
}

/// Takes the descriptors out of received control messages. Whether all fitted.
fn collect(mut control: &[u8], fds: &mut FdList) -> bool {
    const HEADER: usize = size_of::<net::cmsghdr>();
    let mut fit = true;
    while let Some((head, _)) = control.split_first_chunk::<HEADER>() {
        let word =
            |at: usize| i32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut length = [0; 8];
        length.copy_from_slice(&head[..8]);
        let length = usize::from_ne_bytes(length);
        let Some(body) = control.get(HEADER..length) else {
            break;
        };
        if word(8) == SOL_SOCKET && word(12) == SCM_RIGHTS {
            for number in body.as_chunks::<4>().0 {
                let fd = Fd::from_kernel(u32::from_ne_bytes(*number) as usize);
                fit &= fds.push(fd);
            }
        }
        control = control.get(length.next_multiple_of(8)..).unwrap_or(&[]);
    }
    fit
}

/// Sends one message and up to [`MAX_SENT`] descriptors beside it, without waiting.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    const HEADER: usize = size_of::<net::cmsghdr>();
    #[repr(C, align(8))]
    struct Control([u8; (HEADER + MAX_SENT * size_of::<i32>()).next_multiple_of(8)]);
    let mut control = Control([0; size_of::<Control>()]);
    let mut used = 0;
    if !fds.is_empty() {
        let (header, places) = control.0.split_at_mut(HEADER);
        let places = places.as_chunks_mut::<4>().0;
        if fds.len() > MAX_SENT {
            return Err(Errno(errno::E2BIG));
        }
        let length = HEADER + size_of_val(fds);
        header[..8].copy_from_slice(&length.to_ne_bytes());
        header[8..12].copy_from_slice(&SOL_SOCKET.to_ne_bytes());
        header[12..16].copy_from_slice(&SCM_RIGHTS.to_ne_bytes());
        for (place, fd) in places.iter_mut().zip(fds) {
            *place = fd.0.to_ne_bytes();
        }
        used = length.next_multiple_of(8);
    }
    let mut part = nr::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len() as _,
    };
    let header = header(&mut part, &mut control.0[..used]);
    // SAFETY: `header` describes `bytes`, which is only read, and `control`.
    unsafe {
        call(
            nr::__NR_sendmsg,
            [
                socket.arg(),
                (&raw const header) as usize,
                MSG_NOSIGNAL | MSG_DONTWAIT,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

fn header(part: &mut nr::iovec, control: &mut [u8]) -> net::msghdr {
    net::msghdr {
        msg_name: core::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: (&raw mut *part).cast(),
        msg_iovlen: 1,
        msg_control: control.as_mut_ptr().cast(),
        msg_controllen: control.len(),
        msg_flags: 0,
    }
}

/// Takes a waiting connection, without waiting.
pub fn accept(listener: BorrowedFd<'_>) -> Result<Fd> {
    let flags = nr::O_CLOEXEC | nr::O_NONBLOCK;
    // SAFETY: no address is asked for, so the kernel writes none.
    unsafe {
        call(
            nr::__NR_accept4,
            [listener.arg(), 0, 0, flags as usize, 0, 0],
        )
    }
    .map(Fd::from_kernel)
}

/// Moves the listening socket from fd 0 to where no child can get it, and puts `/dev/null`, which is
/// fd 1, in its place.
///
/// # Errors
/// ENOTSOCK and the like if fd 0 is no socket.
pub fn take_listener() -> Result<Fd> {
    let listener = super::duplicate(BorrowedFd::STDIN)?;
    super::set_nonblocking(listener.borrow())?;
    match accept_is_possible(listener.borrow()) {
        Ok(true) => super::duplicate_onto(BorrowedFd::STDOUT, BorrowedFd::STDIN).map(|()| listener),
        Ok(false) => Err(Errno(errno::EINVAL)),
        Err(error) => Err(error),
    }
}

fn accept_is_possible(socket: BorrowedFd<'_>) -> Result<bool> {
    const SO_ACCEPTCONN: usize = 30;
    let mut value = 0_i32;
    let mut length = size_of::<i32>() as u32;
    // SAFETY: the kernel writes one int and its length.
    unsafe {
        call(
            nr::__NR_getsockopt,
            [
                socket.arg(),
                SOL_SOCKET as usize,
                SO_ACCEPTCONN,
                (&raw mut value) as usize,
                (&raw mut length) as usize,
                0,
            ],
        )?;
    }
    Ok(value != 0)
}

/// `struct ifreq` with the flags of an interface in it.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A TCP socket of the present network namespace that does not block.
pub fn tcp_socket(family: Family) -> Result<Fd> {
    let family = match family {
        Family::Ipv4 => AF_INET,
        Family::Ipv6 => AF_INET6,
    };
    new_socket(family, SOCK_STREAM | nr::O_NONBLOCK as usize)
}

fn new_socket(family: usize, kind: usize) -> Result<Fd> {
    let kind = kind | nr::O_CLOEXEC as usize;
    // SAFETY: reads no memory.
    unsafe { call(nr::__NR_socket, [family, kind, 0, 0, 0, 0]) }.map(Fd::from_kernel)
}

/// Brings the loopback interface of the present network namespace up.
pub fn loopback_up() -> Result<()> {
    const IFF_UP: u16 = 1;
    let socket = new_socket(AF_INET, SOCK_DGRAM)?;
    let mut request = InterfaceFlags {
        name: [0; 16],
        flags: 0,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    interface_ioctl(&socket, ioctl::SIOCGIFFLAGS, &mut request)?;
    request.flags |= IFF_UP;
    interface_ioctl(&socket, ioctl::SIOCSIFFLAGS, &mut request)
}

fn interface_ioctl(socket: &Fd, command: u32, request: &mut InterfaceFlags) -> Result<()> {
    // SAFETY: both commands read and write one `struct ifreq` of 40 bytes.
    unsafe {
        call(
            nr::__NR_ioctl,
            [
                socket.borrow().arg(),
                command as usize,
                (&raw mut *request) as usize,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}
