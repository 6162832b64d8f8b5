//! What lies on disk: blobs, layers, root file systems and records.

pub mod bind;
pub mod memfd;
pub mod record;
pub mod remove_tree;
pub mod root_fd;
pub mod rootfs;
pub mod syncer;

pub use root_fd::RootFd;
