//! The CRI as carpel serves it: requests are checked, handed to the domain, and its answers turned back
//! into the interface's types. gRPC codes are chosen here and nowhere else.
//!
//! ```text
//! request ─▶ validate ─▶ checked configuration ─▶ Domain (the node) ─▶ views ─▶ convert ─▶ answer
//!               └─ refused: INVALID_ARGUMENT or UNIMPLEMENTED, by field
//! ```
//!
//! What must always hold: nothing of a request reaches the domain unchecked, and no request can end the
//! daemon.

mod containers;
mod convert;
mod deadline;
mod domain;
mod events;
mod export;
mod images;
mod import;
mod lists;
mod metrics;
mod network;
mod node;
mod node_calls;
mod platform;
pub mod plugins;
mod pull;
mod runtime;
mod sandboxes;
mod signal;
mod stats;
mod status;
mod streams;
mod update;
mod upkeep;
pub mod validate;
mod verbose;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use carpel_api::carpel::images_server::ImagesServer;
use carpel_api::carpel::network_server::NetworkServer;
use carpel_api::cri;
use carpel_api::cri::image_service_server::ImageServiceServer;
use carpel_api::cri::runtime_service_server::RuntimeServiceServer;
use prost::Message;
use tonic::service::Routes;

pub use domain::Domain;
pub use node::Served;
pub use platform::parse_version as parse_kernel_version;

use crate::error::Error;
use crate::spec::config::{ContainerConfig, Resources, SandboxConfig};
use validate::Platform;

/// The longest message that a client may send, and that clients accept.
const MAX_MESSAGE: usize = 16 << 20;
/// The longest message of an import: a chunk and its frame.
const MAX_CHUNK: usize = 2 << 20;

/// Both services of the CRI and carpel's own, over one domain.
pub fn routes<D: Domain>(domain: Arc<D>) -> Routes {
    let runtime = runtime::Runtime {
        domain: Arc::clone(&domain),
        platform: platform::probe(),
    };
    let runtime = RuntimeServiceServer::new(runtime)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let images = ImageServiceServer::new(images::Images(Arc::clone(&domain)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let network = NetworkServer::new(network::OwnNetwork(Arc::clone(&domain)));
    let import = ImagesServer::new(import::OwnImages(domain)).max_decoding_message_size(MAX_CHUNK);
    Routes::new(runtime)
        .add_service(images)
        .add_service(import)
        .add_service(network)
}

/// What was accepted once is accepted again from a record, whatever the kernel has now.
const RECORDED: Platform = Platform {
    apparmor: true,
    recursive_read_only: true,
    unified: true,
};

/// The checked configuration of a recorded sandbox.
///
/// # Errors
/// If the record is of a version of carpel that accepted what this one does not.
pub fn decode_sandbox(request: &[u8], runtime_handler: &str) -> Result<SandboxConfig, Error> {
    let config = cri::PodSandboxConfig::decode(request)
        .map_err(Error::at("recorded request of a sandbox"))?;
    let request = cri::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: runtime_handler.to_owned(),
    };
    Ok(validate::run_pod_sandbox(request, RECORDED)?)
}

/// The checked configuration of a recorded container.
///
/// # Errors
/// If the record is of a version of carpel that accepted what this one does not.
pub fn decode_container(request: &[u8]) -> Result<ContainerConfig, Error> {
    let config = cri::ContainerConfig::decode(request)
        .map_err(Error::at("recorded request of a container"))?;
    Ok(validate::container_config(config, RECORDED)?)
}

/// The checked limits of a recorded container whose limits were changed.
///
/// # Errors
/// If the record is of a version of carpel that accepted what this one does not.
pub fn decode_resources(asked: &[u8]) -> Result<Resources, Error> {
    let asked = cri::LinuxContainerResources::decode(asked)
        .map_err(Error::at("recorded limits of a container"))?;
    Ok(validate::updated_resources(asked, RECORDED)?)
}
