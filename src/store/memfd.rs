//! Sealed memfds: bytes handed to another process that nobody can change any more (`memfd_create(2)`).

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Data: a Plan.
///
/// # Errors
/// As `memfd_create(2)`.
pub fn sealed(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    seal(
        memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?,
        bytes,
    )
}

/// A program, which may be executed.
///
/// # Errors
/// As `memfd_create(2)`: EACCES where `vm.memfd_noexec` is 2.
pub fn sealed_program(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::EXEC) {
        // Before 6.3 every memfd could be executed and the flag was unknown.
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    seal(fd, bytes)
}

fn seal(fd: OwnedFd, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_sealed_memfd_can_be_read_and_not_written() {
        let file = File::from(sealed(c"plan", b"steps").unwrap());
        let mut bytes = [0; 8];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 5);
        assert_eq!(&bytes[..5], b"steps");
        for result in [
            file.write_at(b"x", 0).map(drop),
            file.set_len(1),
            file.set_len(10),
        ] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
