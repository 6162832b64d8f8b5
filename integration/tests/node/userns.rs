//! Pods with a user namespace of their own (`userns_options`, mode POD).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use carpel_integration::request::{container, sleeper};
use carpel_integration::v1::{
    ContainerConfig, IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace,
};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};
use tonic::Code;

use crate::refused;

/// Where the ids of the tests' pods begin on the host, and how many there are.
const FIRST: u32 = 200_000;
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
fn pod(node: &TestNode, name: &str) -> PodSandboxConfig {
    let mut config = node.pod(name);
    config.namespaces().userns_options = Some(options(ids(FIRST, COUNT)));
    config
}

/// A container of such a pod.
fn inside(mut config: ContainerConfig) -> ContainerConfig {
    config.namespaces().userns_options = Some(options(ids(FIRST, COUNT)));
    config
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

#[tokio::test]
async fn root_of_a_container_is_nobody_on_the_host() {
    let node = TestNode::start().await;
    let one = node.run_pod(&pod(&node, "one")).await;
    let script =
        "cat /proc/self/uid_map /proc/self/gid_map | sed 's/  */ /g'; id; cat /proc/self/setgroups";
    assert_eq!(
        node.output_of(&one, &inside(sh("a", script))).await,
        " 0 200000 65536\n 0 200000 65536\nuid=0(root) gid=0(root) groups=0(root)\nallow\n"
    );
    let id = node.start_container(&one, &inside(sleeper("b"))).await;
    let pid = node.container_pid(&id);
    let real = |field| host::proc_status(pid, field).expect("a status");
    assert_eq!(real("Uid").split_whitespace().next(), Some("200000"));
    assert_eq!(real("Gid").split_whitespace().next(), Some("200000"));
    assert_ne!(namespace(pid, "user"), own("user"));
    // What there is of capabilities is for the user namespace.
    let other = node.start_container(&one, &inside(sleeper("c"))).await;
    let other = node.container_pid(&other);
    for kind in ["user", "net", "ipc", "uts"] {
        assert_eq!(namespace(pid, kind), namespace(other, kind), "{kind}");
    }
    let two = node.run_pod(&pod(&node, "two")).await;
    let third = node.start_container(&two, &inside(sleeper("d"))).await;
    assert_ne!(
        namespace(pid, "user"),
        namespace(node.container_pid(&third), "user")
    );
    node.finish().await;
}
