//! What lies on disk: blobs, layers, root file systems and records.

pub mod bind;
pub mod blobs;
mod claims;
pub mod gc;
pub mod layers;
pub mod memfd;
pub mod record;
pub mod remove_tree;
pub mod root_fd;
pub mod rootfs;
pub mod syncer;
pub mod unpack;
pub mod verify;

pub use root_fd::RootFd;
