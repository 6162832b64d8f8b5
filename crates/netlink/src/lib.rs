//! Netlink without a runtime, for carpel's CNI plugins and for `carpel net`: one socket, requests in batches,
//! answers at once.
//!
//! The kernel carries out everything but a dump while it receives it, so when `send` returns, every
//! answer is already queued and nothing here ever waits. Messages are composed with
//! netlink-packet-route; of answers only the few attributes that matter are decoded, so that an
//! attribute of a newer kernel cannot make a message unreadable.

pub mod addr;
pub mod bridge;
pub mod ipnet;
pub mod link;
pub mod macvlan;
pub mod message;
mod moving;
mod namespace;
pub mod neighbour;
pub mod netfilter;
pub mod route;
pub mod traffic;
pub mod vlan;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NlaBuffer, NlasIterator,
};
use rustix::{
    io::{self, Errno},
    net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink},
};

const HEADER: usize = 16;
/// Large enough for any single answer: the kernel fills at most 32 KiB per read of a dump.
const RECEIVE: usize = 64 * 1024;

/// How often a list that changed meanwhile is asked for again.
const DUMPS: usize = 100;

/// An answer that is not an acknowledgement.
#[derive(Debug)]
pub struct Answer {
    pub kind: u16,
    pub payload: Vec<u8>,
    /// It is part of a list that is of no one moment.
    interrupted: bool,
}

/// Requests that go to the kernel in one piece.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Offset of each message, and whether it will be acknowledged.
    messages: Vec<(usize, bool)>,
}

impl Batch {
    /// Appends a request that the kernel must acknowledge.
    pub fn push(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        self.append(kind, flags | NLM_F_ACK, payload);
    }

    /// Appends a request that the kernel answers only if it fails.
    pub fn push_silent(&mut self, kind: u16, payload: &[u8]) {
        self.append(kind, 0, payload);
    }

    /// Appends a routing request.
    pub fn emit(&mut self, kind: u16, flags: u16, message: &impl Emitable) {
        self.push(kind, flags, &emitted(message));
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn append(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        let length = u32::try_from(HEADER + payload.len()).expect("requests are small");
        self.messages
            .push((self.bytes.len(), flags & NLM_F_ACK != 0));
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        // Sequence number and port are filled in when the batch is sent.
        self.bytes.extend([0; 8]);
        self.bytes.extend(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Which message of a batch the kernel refused, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub index: usize,
    pub errno: Errno,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.errno.fmt(f)
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused { index: 0, errno }
    }
}

/// A netlink socket. It stays in the network namespace in which it was opened.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// Links, addresses and routes of the network namespace that the process is in now.
    pub fn route() -> io::Result<Socket> {
        Socket::open(None)
    }

    /// The packet filter of the network namespace that the process is in now.
    pub fn netfilter() -> io::Result<Socket> {
        Socket::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Socket> {
        let fd = net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        Ok(Socket {
            fd,
            sequence: 0,
            buffer: vec![0; RECEIVE],
        })
    }

    /// Sends the batch and collects every answer. All messages are tried, also after a refusal
    /// (unless their protocol says otherwise); the first refusal is returned.
    pub fn send(&mut self, mut batch: Batch) -> Result<Vec<Answer>, Refused> {
        let first = self.sequence.wrapping_add(1);
        for (sequence, &(offset, _)) in (first..).zip(&batch.messages) {
            batch.bytes[offset + 8..offset + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        self.sequence = self.sequence.wrapping_add(batch.messages.len() as u32);
        net::send(&self.fd, &batch.bytes, SendFlags::empty())?;

        let mut unanswered = batch.messages.iter().filter(|message| message.1).count();
        let mut refused: Option<Refused> = None;
        let mut answers = Vec::new();
        loop {
            let messages = match self.receive(RecvFlags::DONTWAIT) {
                Ok(messages) => messages,
                Err(Errno::AGAIN) if unanswered == 0 || refused.is_some() => break,
                // The kernel owes an acknowledgement that it did not queue.
                Err(Errno::AGAIN) => return Err(Errno::PROTO.into()),
                Err(errno) => return Err(errno.into()),
            };
            for (sequence, answer) in messages {
                let index = sequence.wrapping_sub(first) as usize;
                if index >= batch.messages.len() {
                    continue;
                }
                match failure(&answer) {
                    None => answers.push(answer),
                    Some(None) => unanswered = unanswered.saturating_sub(1),
                    Some(Some(errno)) => {
                        unanswered = unanswered.saturating_sub(1);
                        refused.get_or_insert(Refused { index, errno });
                    }
                }
            }
            if unanswered == 0 {
                break;
            }
        }
        refused.map_or(Ok(answers), Err)
    }

    /// Sends one request that must be acknowledged.
    pub fn request(
        &mut self,
        kind: u16,
        flags: u16,
        message: &impl Emitable,
    ) -> io::Result<Vec<Answer>> {
        let mut batch = Batch::default();
        batch.emit(kind, flags, message);
        self.send(batch).map_err(|refused| refused.errno)
    }

    /// Asks for all objects of a kind, as [`Socket::dump_bytes`] does.
    pub fn dump(&mut self, kind: u16, message: &impl Emitable) -> io::Result<Vec<Answer>> {
        self.dump_bytes(kind, &emitted(message))
    }

    /// Asks for all objects of a kind, as they are at one moment.
    ///
    /// Errors: `INTR` if they never stop changing while they are listed.
    pub fn dump_bytes(&mut self, kind: u16, payload: &[u8]) -> io::Result<Vec<Answer>> {
        for _ in 0..DUMPS {
            let mut answers = self.dump_once(kind, payload)?;
            if !answers.iter().any(|answer| answer.interrupted) {
                answers.retain(|answer| answer.kind != NLMSG_DONE);
                return Ok(answers);
            }
        }
        Err(Errno::INTR)
    }

    fn dump_once(&mut self, kind: u16, payload: &[u8]) -> io::Result<Vec<Answer>> {
        let mut batch = Batch::default();
        batch.append(kind, NLM_F_DUMP, payload);
        self.sequence = self.sequence.wrapping_add(1);
        let own = self.sequence;
        batch.bytes[8..12].copy_from_slice(&own.to_ne_bytes());
        net::send(&self.fd, &batch.bytes, SendFlags::empty())?;
        let mut answers = Vec::new();
        loop {
            for (sequence, answer) in self.receive(RecvFlags::empty())? {
                if sequence != own {
                    continue;
                }
                match failure(&answer) {
                    Some(Some(errno)) => return Err(errno),
                    Some(None) => return Ok(answers),
                    None => {
                        let last = answer.kind == NLMSG_DONE;
                        answers.push(answer);
                        if last {
                            return Ok(answers);
                        }
                    }
                }
            }
        }
    }

    /// One datagram, cut into its messages with their sequence numbers.
    fn receive(&mut self, flags: RecvFlags) -> io::Result<Vec<(u32, Answer)>> {
        let (_, length) = net::recv(&self.fd, &mut self.buffer[..], flags | RecvFlags::TRUNC)?;
        let mut rest = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        let mut messages = Vec::new();
        while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
            let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let payload = rest.get(HEADER..length).ok_or(Errno::PROTO)?.to_vec();
            let kind = u16::from_ne_bytes([k0, k1]);
            let interrupted = u16::from_ne_bytes([f0, f1]) & NLM_F_DUMP_INTR != 0;
            let answer = Answer {
                kind,
                payload,
                interrupted,
            };
            messages.push((u32::from_ne_bytes([s0, s1, s2, s3]), answer));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// For an acknowledgement `Some(None)`, for a refusal its error, for anything else nothing.
fn failure(answer: &Answer) -> Option<Option<Errno>> {
    let code = answer
        .payload
        .first_chunk()
        .map(|bytes| i32::from_ne_bytes(*bytes));
    match (answer.kind, code) {
        (NLMSG_ERROR, Some(0)) => Some(None),
        // The kernel counts errors below zero. The end of a list may carry one, too.
        (NLMSG_ERROR | NLMSG_DONE, Some(code @ -4095..=-1)) => {
            Some(Some(Errno::from_raw_os_error(-code)))
        }
        (NLMSG_ERROR, _) => Some(Some(Errno::PROTO)),
        _ => None,
    }
}

/// The attributes in a payload after a fixed header, up to the first malformed one.
pub fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(payload.get(header..).unwrap_or_default()).map_while(Result::ok)
}

/// An attribute's value as a number of the machine's byte order; 0 if it is too short.
pub fn as_u32(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// An attribute's value as a short number of the machine's byte order; 0 if it is too short.
pub fn as_u16(value: &[u8]) -> u16 {
    value
        .first_chunk()
        .map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

/// An attribute's value as text, without the NUL that ends it.
pub fn as_text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}
