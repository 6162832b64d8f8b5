//! The services over a real connection, with a domain that remembers what it was asked.

mod calls;
pub mod fake;
mod figures;
mod import;
mod lists;
mod pull;
mod streams;
