//! Devices that are described by files: `ContainerConfig.CDI_devices` and annotations.

mod net_devices;

use std::fs;

use carpel_integration::request::sleeper;
use carpel_integration::v1::{CdiDevice, ContainerConfig};
use carpel_integration::{ContainerConfigExt, TestNode, sh};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use crate::{refused, userns};

/// A node with two folders of specifications, and the place where they are.
async fn node() -> (TestNode, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let dirs = ["etc", "run"].map(|name| folder.path().join(name));
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let config = format!("[cdi]\ndirs = {dirs:?}\n");
    let node = TestNode::builder().config(&config).start().await;
    (node, folder)
}

fn write(folder: &TempDir, name: &str, document: &Value) {
    fs::write(folder.path().join(name), document.to_string()).unwrap();
}

fn one_device(edits: Value) -> Value {
    json!({
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/net",
        "devices": [{"name": "x", "containerEdits": edits}],
    })
}

fn wanting(mut config: ContainerConfig, devices: &[&str]) -> ContainerConfig {
    config.cdi_devices = devices
        .iter()
        .map(|name| CdiDevice {
            name: (*name).to_owned(),
        })
        .collect();
    config
}

#[tokio::test]
async fn a_device_brings_nodes_variables_mounts_and_groups() {
    let (mut node, folder) = node().await;
    let library = folder.path().join("library");
    fs::create_dir(&library).unwrap();
    fs::write(library.join("so"), "vendor\n").unwrap();
    let yaml = format!(
        "cdiVersion: 0.7.0\nkind: vendor.com/net\ncontainerEdits:\n  env: [VENDOR=all]\n\
         devices:\n- name: x\n  containerEdits:\n    env: [DEVICE=x]\n    additionalGids: [4242]\n    \
         deviceNodes:\n    - {{path: /dev/vendor/log, hostPath: /dev/kmsg, permissions: w, fileMode: 0o620, gid: 7}}\n    \
         mounts:\n    - {{hostPath: {0}, containerPath: /opt/lib, options: [ro, nosuid, rbind, rprivate]}}\n    \
         - {{hostPath: tmpfs, containerPath: /opt/tmp, type: tmpfs, options: [size=64k, nodev]}}\n",
        library.display()
    );
    fs::write(folder.path().join("etc/vendor.yaml"), yaml).unwrap();
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "echo $VENDOR $DEVICE; stat -c '%a %g %t:%T' /dev/vendor/log; id -G; \
                  cat /opt/lib/so; touch /opt/lib/x 2>&1 | grep -o Read-only; touch /opt/tmp/x && echo tmp; \
                  (: > /dev/vendor/log) && echo writable; \
                  dd if=/dev/vendor/log of=/dev/null bs=1 count=0 2>&1 | grep -o 'not permitted'";
    let config = wanting(sh("a", script), &["vendor.com/net=x"]);
    let expected = "all x\n620 7 1:b\n0 4242\nvendor\nRead-only\ntmp\nwritable\nnot permitted\n";
    assert_eq!(node.output_of(&pod, &config).await, expected);

    // What was found at creation counts: the files may go, and the daemon die.
    let mut config = wanting(sh("b", script), &["vendor.com/net=x"]);
    config.metadata.as_mut().unwrap().name = "b".into();
    let id = node.try_create(&pod, &config).await.unwrap();
    fs::remove_file(folder.path().join("etc/vendor.yaml")).unwrap();
    node.crash().await;
    node.try_start(&id).await.unwrap();
    node.wait_exit(&id).await;
    assert_eq!(node.log(&pod, "b").stdout(), expected);
    node.finish().await;
}

#[tokio::test]
async fn annotations_name_devices_as_device_plugins_do() {
    let (node, folder) = node().await;
    let mut document = one_device(json!({"env": ["X=1"]}));
    let other = json!({"name": "y", "containerEdits": {"env": ["Y=1"]}});
    document["devices"].as_array_mut().unwrap().push(other);
    write(&folder, "etc/a.json", &document);
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = wanting(sh("a", "echo $X $Y"), &["vendor.com/net=y"]);
    let value = "vendor.com/net=x,vendor.com/net=y".to_owned();
    config.annotations = [("cdi.k8s.io/plugin".to_owned(), value)].into();
    assert_eq!(node.output_of(&pod, &config).await, "1 1\n");
    config.metadata.as_mut().unwrap().name = "b".into();
    config.annotations = [("cdi.k8s.io/plugin".to_owned(), "x".to_owned())].into();
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "config.annotations[\"cdi.k8s.io/plugin\"]: \"x\" is not of the form",
    );
    node.finish().await;
}

#[tokio::test]
async fn annotations_name_nothing_where_that_is_switched_off() {
    let node = TestNode::builder()
        .config("[cdi]\nannotations = false\n")
        .start()
        .await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("a", "echo ran");
    config.annotations = [("cdi.k8s.io/plugin".to_owned(), "none".to_owned())].into();
    assert_eq!(node.output_of(&pod, &config).await, "ran\n");
    node.finish().await;
}

#[tokio::test]
async fn a_device_that_cannot_be_had_is_named_before_anything_is_made() {
    let (node, folder) = node().await;
    write(
        &folder,
        "etc/a.json",
        &one_device(json!({"env": ["FROM=etc"]})),
    );
    let pod = node.run_pod(&node.pod("one")).await;
    let create = async |names: &[&str]| {
        let outcome = node.try_create(&pod, &wanting(sleeper("a"), names)).await;
        assert!(node.containers().await.is_empty());
        let made = fs::read_dir(node.dir().join("root/containers")).unwrap();
        assert_eq!(made.count(), 0);
        outcome
    };
    refused(
        create(&["vendor.com/net=x", "vendor.com/net=none"]).await,
        Code::InvalidArgument,
        "config.CDI_devices: vendor.com/net=none: no such device",
    );
    for bad in [
        "",
        "x",
        "vendor.com/net",
        "vendor.com/=x",
        "vendor.com/net=",
        "/dev/null",
    ] {
        refused(
            create(&["vendor.com/net=x", bad]).await,
            Code::InvalidArgument,
            "config.CDI_devices[1].name",
        );
    }
    // A file that is broken is named when its device is missed.
    fs::write(folder.path().join("etc/b.json"), "{\"cdiVersion\": \"9\"").unwrap();
    refused(
        create(&["vendor.com/other=x"]).await,
        Code::InvalidArgument,
        "etc/b.json: EOF while parsing",
    );
    // Two of one folder are nobody's; one of a later folder counts.
    write(
        &folder,
        "etc/c.json",
        &one_device(json!({"env": ["FROM=c"]})),
    );
    refused(
        create(&["vendor.com/net=x"]).await,
        Code::InvalidArgument,
        "both describe it",
    );
    for (edits, code, text) in [
        (
            json!({"intelRdt": {"closID": "a"}}),
            Code::Unimplemented,
            "asks for intelRdt, and resctrl is not mounted on /sys/fs/resctrl",
        ),
        (
            json!({"deviceNodes": [{"path": "/dev/none"}]}),
            Code::InvalidArgument,
            "device node /dev/none: host path /dev/none: No such file",
        ),
        (
            json!({"mounts": [{"hostPath": "/none/x", "containerPath": "/x", "options": ["rbind"]}]}),
            Code::InvalidArgument,
            "mount on /x: host path /none/x: No such file",
        ),
    ] {
        write(&folder, "run/a.json", &one_device(edits));
        refused(create(&["vendor.com/net=x"]).await, code, text);
    }
    write(
        &folder,
        "run/a.json",
        &one_device(json!({"env": ["FROM=run"]})),
    );
    let config = wanting(
        sh("a", "echo $FROM").env("FROM", b"\xff"),
        &["vendor.com/net=x"],
    );
    assert_eq!(node.output_of(&pod, &config).await, "run\n");
    node.finish().await;
}

#[tokio::test]
async fn in_a_pod_with_a_user_namespace_a_node_is_the_hosts() {
    let (node, folder) = node().await;
    let edits = json!({"deviceNodes": [
        {"path": "/dev/vendor/zero", "hostPath": "/dev/zero", "permissions": "r"},
    ]});
    write(&folder, "etc/a.json", &one_device(edits));
    let pod = node.run_pod(&userns::pod(&node, "one")).await;
    let script = "stat -c '%t:%T' /dev/vendor/zero; head -c 3 /dev/vendor/zero | wc -c";
    let config = userns::inside(wanting(sh("a", script), &["vendor.com/net=x"]));
    assert_eq!(node.output_of(&pod, &config).await, "1:5\n3\n");
    let other = json!({"deviceNodes": [
        {"path": "/dev/vendor/zero", "hostPath": "/dev/zero", "type": "c", "major": 1, "minor": 3},
    ]});
    write(&folder, "run/a.json", &one_device(other));
    let config = userns::inside(wanting(sleeper("b"), &["vendor.com/net=x"]));
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "device node /dev/vendor/zero: in a pod with a user namespace it is the host's, and /dev/zero is not that device",
    );
    node.finish().await;
}
