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

/// NRI: what the node's plugins and their runtime say to each other.
#[allow(clippy::all, rustdoc::all, unused_qualifications)]
pub mod nri {
    include!(concat!(env!("OUT_DIR"), "/nri.pkg.api.v1alpha1.rs"));
}

/// The envelope that NRI's messages travel in.
#[allow(clippy::all, rustdoc::all, unused_qualifications)]
pub mod ttrpc {
    include!(concat!(env!("OUT_DIR"), "/ttrpc.rs"));
}

/// The descriptors of the messages that are spoken by gRPC, an encoded `google.protobuf.FileDescriptorSet`: with them a message
/// becomes JSON without generated code for it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

impl std::fmt::Debug for cri::AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for carpel::Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::carpel::{Credentials, PullRequest};
    use super::cri::{AuthConfig, PullImageRequest};

    #[test]
    fn a_printed_request_holds_no_secret() {
        let request = PullImageRequest {
            auth: Some(AuthConfig {
                username: "SECRET".into(),
                password: "SECRET".into(),
                auth: "SECRET".into(),
                server_address: "registry".into(),
                identity_token: "SECRET".into(),
                registry_token: "SECRET".into(),
            }),
            ..PullImageRequest::default()
        };
        let printed = format!("{request:?}");
        assert!(printed.contains("registry"), "{printed}");
        assert!(!printed.contains("SECRET"), "{printed}");
    }

    #[test]
    fn carpels_own_request_holds_none_either() {
        let request = PullRequest {
            image: "registry/image".into(),
            credentials: Some(Credentials {
                username: "SECRET".into(),
                password: "SECRET".into(),
                identity_token: "SECRET".into(),
                registry_token: "SECRET".into(),
            }),
        };
        let printed = format!("{request:?}");
        assert!(printed.contains("registry/image"), "{printed}");
        assert!(!printed.contains("SECRET"), "{printed}");
    }
}
