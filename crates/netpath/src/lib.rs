//! Which way a packet goes through the network namespaces of a machine, and where it would stop.
//!
//! ```text
//! gather: each namespace's links, addresses, routes, neighbours, settings, rules ──▶ World
//! walk:   a packet through the World, asking the kernel itself for each route ──▶ hops, and an end
//! ```
//!
//! Nothing is sent and nothing is changed. What the kernel can be asked is asked (routes, with all that decides
//! them); what it cannot be asked (rules, bridges, neighbours) is followed as the kernel would, and what cannot be
//! decided is said to be so.

pub mod filter;
pub mod gather;
pub mod packet;
pub mod place;
pub mod walk;

use carpel_netlink::route::{Found, Question};
use rustix::io::Errno;

use place::PlaceId;

/// Who knows the routes.
pub trait Kernel {
    /// Which way a packet would go.
    ///
    /// # Errors
    /// Why it would not, as a process would be told it.
    fn route(&self, place: PlaceId, question: &Question) -> Result<Found, Errno>;
}
