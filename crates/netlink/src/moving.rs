//! Links that get another name or go to another network namespace.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rustix::io;

use super::{
    Socket,
    link::{RTM_SETLINK, named},
};

impl Socket {
    /// Gives a link another name.
    pub fn rename(&mut self, index: u32, name: &str) -> io::Result<()> {
        let mut message = named(name);
        message.header.index = index;
        self.request(RTM_SETLINK, 0, &message).map(drop)
    }

    /// Sends a link, which goes down by it, to a namespace. If its name is taken there it goes as `name`.
    pub fn send_link(&mut self, index: u32, netns: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let mut message = named(name);
        message.header.index = index;
        message
            .attributes
            .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        self.request(RTM_SETLINK, 0, &message).map(drop)
    }

    /// Notes a text at a link; an empty one takes the note away.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
            .attributes
            .push(LinkAttribute::IfAlias(alias.into()));
        self.request(RTM_SETLINK, 0, &message).map(drop)
    }
}
