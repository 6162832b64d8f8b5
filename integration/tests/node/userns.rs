//! Pods with a user namespace of their own (`userns_options`, mode POD).

mod files;
mod life;
mod namespaces;
mod request;

use std::fs;

use carpel_integration::request::sleeper;
use carpel_integration::v1::security_profile::ProfileType;
use carpel_integration::v1::{
    ContainerConfig, IdMapping, NamespaceMode, PodSandboxConfig, SecurityProfile, UserNamespace,
};
use carpel_integration::{ContainerConfigExt, Pod, PodConfigExt, TestNode};

/// Where the ids of the tests' pods begin on the host, and how many there are.
pub const FIRST: u32 = 200_000;
const COUNT: u32 = 65_536;

fn ids(host_id: u32, length: u32) -> IdMapping {
    IdMapping {
        host_id,
        container_id: 0,
        length,
    }
}

fn options(mapping: IdMapping) -> UserNamespace {
    UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![mapping],
        gids: vec![mapping],
    }
}

/// A pod with a user namespace.
pub fn pod(node: &TestNode, name: &str) -> PodSandboxConfig {
    let mut config = node.pod(name);
    config.namespaces().userns_options = Some(options(ids(FIRST, COUNT)));
    config
}

/// A container of such a pod.
pub fn inside(mut config: ContainerConfig) -> ContainerConfig {
    config.namespaces().userns_options = Some(options(ids(FIRST, COUNT)));
    config
}

/// A container of such a pod with more capabilities, and no AppArmor profile, which would forbid any mount.
pub fn with(capabilities: &[&str], config: ContainerConfig) -> ContainerConfig {
    let mut config = inside(config);
    let add = capabilities.iter().map(|name| (*name).to_owned());
    config
        .security()
        .capabilities
        .get_or_insert_default()
        .add_capabilities
        .extend(add);
    config.security().apparmor = Some(SecurityProfile {
        profile_type: ProfileType::Unconfined.into(),
        ..SecurityProfile::default()
    });
    config
}

async fn node_with_pod() -> (TestNode, Pod) {
    let node = TestNode::start().await;
    let one = node.run_pod(&pod(&node, "one")).await;
    (node, one)
}

async fn node_with_container() -> (TestNode, Pod, String) {
    let (node, one) = node_with_pod().await;
    let id = node.start_container(&one, &inside(sleeper("a"))).await;
    (node, one, id)
}

fn namespace(pid: i32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}"))
        .expect("a namespace")
        .display()
        .to_string()
}

fn own(kind: &str) -> String {
    namespace(i32::try_from(std::process::id()).unwrap(), kind)
}
