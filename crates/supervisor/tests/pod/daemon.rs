//! The daemon's end of a connection.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use carpel_wire::{Entry, Event, ObjectId, Reply, Request, RequestBody, SignalScope};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::{Run, patience};

/// The daemon's end of a connection.
pub struct Daemon {
    pub socket: OwnedFd,
    pub(super) next: u32,
    pub(super) events: VecDeque<(Event, Vec<OwnedFd>)>,
    pub ready: bool,
    pub hello_pid: u32,
}

impl Daemon {
    pub fn send(&mut self, body: RequestBody, fds: &[BorrowedFd<'_>]) -> u32 {
        let seq = self.next;
        self.next += 1;
        let mut buffer = [0; carpel_wire::MAX_MESSAGE];
        let bytes = carpel_wire::encode(&Request { seq, body }, &mut buffer).unwrap();
        self.send_raw(bytes, fds);
        seq
    }

    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
    }

    /// The next event, or `None` if the connection has ended.
    pub fn receive(&mut self) -> Option<(Event, Vec<OwnedFd>)> {
        self.receive_within(patience(Duration::from_secs(20)))
            .expect("the supervisor answers")
    }

    fn receive_within(&mut self, time: Duration) -> Option<Option<(Event, Vec<OwnedFd>)>> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        let time = Timespec {
            tv_sec: time.as_secs().cast_signed(),
            tv_nsec: time.subsec_nanos().into(),
        };
        if poll(&mut polled, Some(&time)).unwrap() == 0 {
            return None;
        }
        let mut buffer = [0; carpel_wire::MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut buffer)];
        let received = recvmsg(&self.socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let length = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => panic!("{error}"),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if length == 0 {
            return Some(None);
        }
        Some(Some((carpel_wire::decode(&buffer[..length]).unwrap(), fds)))
    }

    /// Waits for the reply `seq`; what comes before it is kept.
    pub fn reply(&mut self, seq: u32) -> (Reply, Vec<OwnedFd>) {
        let is_it =
            |event: &Event| matches!(event, Event::Reply { seq: found, .. } if *found == seq);
        if let Some(at) = self.events.iter().position(|(event, _)| is_it(event))
            && let Some((Event::Reply { reply, .. }, fds)) = self.events.remove(at)
        {
            return (reply, fds);
        }
        loop {
            match self.receive().expect("the connection lives") {
                (Event::Reply { seq: found, reply }, fds) if found == seq => return (reply, fds),
                other => self.events.push_back(other),
            }
        }
    }

    pub fn ask(&mut self, body: RequestBody, fds: &[BorrowedFd<'_>]) -> (Reply, Vec<OwnedFd>) {
        let seq = self.send(body, fds);
        self.reply(seq)
    }

    /// Waits for the exit of `id` and returns its wait status.
    pub fn exit(&mut self, id: ObjectId) -> i32 {
        let is_it =
            |event: &Event| matches!(event, Event::Exited { id: found, .. } if *found == id);
        let event = match self.events.iter().position(|(event, _)| is_it(event)) {
            Some(at) => self.events.remove(at).unwrap().0,
            None => loop {
                let (event, fds) = self.receive().expect("the connection lives");
                if is_it(&event) {
                    break event;
                }
                self.events.push_back((event, fds));
            },
        };
        let Event::Exited { wait_status, .. } = event else {
            unreachable!()
        };
        wait_status
    }

    pub fn list(&mut self) -> Vec<(Entry, Vec<OwnedFd>)> {
        let (reply, _) = self.ask(RequestBody::List, &[]);
        assert_eq!(reply, Reply::Done);
        let mut entries = Vec::new();
        self.events.retain_mut(|(event, fds)| {
            if let Event::Entry(entry) = event {
                entries.push((*entry, std::mem::take(fds)));
            }
            !matches!(event, Event::Entry(_))
        });
        entries
    }

    /// Waits until `found` says yes of the list.
    pub fn list_until(&mut self, found: impl Fn(&[Entry]) -> bool) {
        for _ in 0..1000 {
            let entries: Vec<_> = self.list().into_iter().map(|(entry, _)| entry).collect();
            if found(&entries) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it never happened");
    }

    pub fn signal(&mut self, id: ObjectId, signal: i32) -> Reply {
        self.ask(
            RequestBody::Signal {
                id,
                signal,
                scope: SignalScope::Process,
            },
            &[],
        )
        .0
    }

    pub fn forget(&mut self, id: ObjectId) -> Reply {
        self.ask(RequestBody::Forget { id }, &[]).0
    }

    pub fn start(&mut self, run: &Run<'_>) -> Reply {
        let (reply, fds) = run.ask(self);
        assert_eq!(
            matches!(reply, Reply::Started { .. }),
            fds.len() == 1,
            "{reply:?}"
        );
        reply
    }

    /// Starts, waits for the exit, forgets, and returns the wait status.
    pub fn run(&mut self, run: &Run<'_>) -> i32 {
        let reply = self.start(run);
        assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
        let status = self.exit(run.id);
        if run.init {
            assert_eq!(self.forget(run.id), Reply::Done);
        }
        status
    }
}
