//! What lies on disk: blobs, layers, root file systems and records.

pub mod memfd;
pub mod root_fd;

pub use root_fd::RootFd;
