//! The gRPC interfaces that carpel serves, compiled from `proto/`.
//!
//! A crate of its own, because the daemon, its command line and the integration tests all speak it,
//! and because its 20,000 generated lines are then compiled once.

/// The Kubernetes Container Runtime Interface, version 1.
#[allow(clippy::all, rustdoc::all, unused_qualifications)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// What the CRI has no call for: carpel's own services, on the same socket.
#[allow(clippy::all, rustdoc::all, unused_qualifications)]
pub mod carpel {
    tonic::include_proto!("carpel.v1");
}
