//! What people and programs get wrong: each with its code, a text that helps, and nothing left behind.

mod container;
mod fields;
mod network;
mod request;

use std::fs;
use std::time::{Duration, Instant};

use carpel_integration::image::Image;
use carpel_integration::request::{sh, sleeper};
use carpel_integration::v1::{
    self, ContainerConfig, Int64Value, LinuxContainerResources, Mount, PodSandboxConfig,
};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, container, host};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::refused;

/// Creates and starts: the error of whichever refuses.
async fn try_run(
    node: &TestNode,
    pod: &carpel_integration::Pod,
    config: &ContainerConfig,
) -> Result<String, Status> {
    let id = node.try_create(pod, config).await?;
    match node.try_start(&id).await {
        Ok(()) => Ok(id),
        Err(status) => {
            node.try_remove(&id).await?;
            Err(status)
        }
    }
}
