//! Registries to pull from: Debian's own ([`Debian`]), and one that does whatever a test wants it to ([`Fake`]). Both
//! listen in the network namespace of a node, and so does a [`Proxy`].

mod debian;
mod fake;
mod proxy;
mod push;
pub mod sign;
mod socks;

pub use debian::{Debian, PASSWORD, USER};
pub use fake::{Body, Content, Fake, Reply, Request};
pub use proxy::Proxy;
pub use push::push;
pub use socks::Socks;

/// Another address of a node's host than the loopback interface's own, so that a registry there is one of the network.
pub const FAR: &str = "10.119.0.1";

/// Gives the host of a node the address [`FAR`].
///
/// # Panics
/// If it cannot.
pub fn add_far_address(net: &crate::host::HostNet) {
    net.command(&["ip", "addr", "add", &format!("{FAR}/32"), "dev", "lo"]);
}
