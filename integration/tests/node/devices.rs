//! The devices in a container.

use carpel_integration::v1::{Capability, Device};
use carpel_integration::{ContainerConfigExt, TestNode, sh};
use tonic::Code;

use crate::refused;

fn device(host: &str, path: &str, permissions: &str) -> Device {
    Device {
        host_path: host.into(),
        container_path: path.into(),
        permissions: permissions.into(),
    }
}

#[tokio::test]
async fn the_usual_devices_are_there_and_work() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "cd /dev; stat -c '%n %a %t:%T' null zero full random urandom tty; \
        for link in ptmx fd stdin stdout stderr; do readlink $link; done; \
        head -c 3 zero | wc -c; head -c 3 urandom | wc -c; echo x > null; (echo x > full) 2>&1 | grep -o 'No space.*'";
    assert_eq!(
        node.output_of(&pod, &sh("a", script)).await,
        "null 666 1:3\nzero 666 1:5\nfull 666 1:7\nrandom 666 1:8\nurandom 666 1:9\ntty 666 5:0\n\
         pts/ptmx\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n3\n3\nNo space left on device\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_device_of_the_host_is_there_under_its_new_name_with_its_permissions() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh(
        "read",
        "stat -c %t:%T /dev/sub/log; dd if=/dev/sub/log of=/dev/null bs=1 count=0 2>/dev/null && echo readable; (: > /dev/sub/log) 2>&1 | grep -o 'not permitted'",
    );
    config.devices = vec![device("/dev/kmsg", "/dev/sub/log", "r")];
    // Reading the kernel's log may need it.
    config.security().capabilities = Some(Capability {
        add_capabilities: vec!["SYSLOG".into()],
        ..Capability::default()
    });
    assert_eq!(
        node.output_of(&pod, &config).await,
        "1:b\nreadable\nnot permitted\n"
    );
    let mut config = sh("write", "(: > /dev/kmsg) && echo writable");
    config.devices = vec![device("/dev/kmsg", "/dev/kmsg", "rwm")];
    assert_eq!(node.output_of(&pod, &config).await, "writable\n");
    node.finish().await;
}

#[tokio::test]
async fn a_device_that_was_not_given_cannot_be_used() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "mknod /tmp/mem c 1 1; head -c 1 /tmp/mem 2>&1 | grep -o 'not permitted'; mknod /tmp/null c 1 3 && echo x > /tmp/null && echo allowed";
    // /tmp is on the overlay of the rootfs, where device files count.
    assert_eq!(
        node.output_of(&pod, &sh("a", script)).await,
        "not permitted\nallowed\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_bad_device_is_refused_by_name() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    for (n, (bad, part)) in [
        (
            device("/dev/nonexistent", "/dev/x", "rwm"),
            "/dev/nonexistent",
        ),
        (device("/etc/passwd", "/dev/x", "rwm"), "/etc/passwd"),
        (device("/dev/null", "/dev/x", "rwx"), "permissions"),
        (device("/dev/null", "dev/x", "rwm"), "container_path"),
        (device("/dev/../etc/passwd", "/dev/x", "rwm"), "host_path"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = sh(&format!("c{n}"), "true");
        config.devices = vec![bad];
        refused(
            node.try_create(&pod, &config).await,
            Code::InvalidArgument,
            part,
        );
    }
    assert!(node.containers().await.is_empty());
    node.finish().await;
}
