//! How network namespaces number each other.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{self, Errno};

use super::{Batch, Socket, as_u32, attributes, message::Attributes};

const RTM_GETNSID: u16 = 90;
/// `struct rtgenmsg`, padded.
const HEADER: usize = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

impl Socket {
    /// The number that the socket's network namespace has for another one; none if it has never met it.
    pub fn number_of(&mut self, other: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let mut payload = vec![0; HEADER];
        let fd = other.as_raw_fd().to_ne_bytes();
        payload.extend(Attributes::default().bytes(NETNSA_FD, &fd).into_bytes());
        let mut batch = Batch::default();
        batch.push(RTM_GETNSID, 0, &payload);
        let answers = self.send(batch).map_err(|refused| refused.errno)?;
        let mut found = answers
            .iter()
            .flat_map(|answer| attributes(&answer.payload, HEADER));
        let number = found
            .find(|attribute| attribute.kind() == NETNSA_NSID)
            .map(|attribute| as_u32(attribute.value()).cast_signed())
            .ok_or(Errno::PROTO)?;
        Ok((number >= 0).then_some(number))
    }
}
