//! The one call that has no safe wrapper: asking a device for its carrier.

use std::{ffi::c_void, os::fd::AsFd, ptr};

use rustix::{
    io,
    ioctl::{self, Ioctl, IoctlOutput, Opcode},
};

const SIOCETHTOOL: Opcode = 0x8946;
const ETHTOOL_GLINK: u32 = 0x0a;
const IFNAMSIZ: usize = 16;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ifreq`, with the member of its union that ethtool uses.
#[repr(C)]
struct Request {
    name: [u8; IFNAMSIZ],
    data: *mut EthtoolValue,
    rest_of_union: [u64; 2],
}

struct GetLink {
    request: Request,
    value: EthtoolValue,
}

// SAFETY: SIOCETHTOOL reads an ifreq whose data points at an ethtool_value, and writes only into
// that value; `as_ptr` makes the pointer good for the call, when `self` no longer moves.
unsafe impl Ioctl for GetLink {
    type Output = bool;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SIOCETHTOOL
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.request.data = &raw mut self.value;
        (&raw mut self.request).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, request: *mut c_void) -> io::Result<bool> {
        // SAFETY: `request` is what `as_ptr` returned, and its data points into the same `GetLink`.
        Ok(unsafe { (*(*request.cast::<Request>()).data).data != 0 })
    }
}

/// Whether the device has carrier. The question makes the kernel carry out at once what it had
/// queued for a carrier that has just changed: a bridge port starts to forward before this returns.
///
/// `socket`, of any kind, says in which network namespace the name is meant.
pub fn carrier(socket: impl AsFd, name: &str) -> io::Result<bool> {
    if name.len() >= IFNAMSIZ {
        return Err(io::Errno::NAMETOOLONG);
    }
    let mut padded = [0; IFNAMSIZ];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    let request = GetLink {
        request: Request {
            name: padded,
            data: ptr::null_mut(),
            rest_of_union: [0; 2],
        },
        value: EthtoolValue {
            command: ETHTOOL_GLINK,
            data: 0,
        },
    };
    // SAFETY: the implementation above keeps the contract of SIOCETHTOOL.
    unsafe { ioctl::ioctl(socket, request) }
}
