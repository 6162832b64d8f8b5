//! What may be asked for, and what a node says that it can do.

use carpel_integration::request::sleeper;
use carpel_integration::v1::{self, IdMapping, NamespaceMode, UserNamespace};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, sh};
use tonic::Code;

use super::{COUNT, FIRST, ids, inside, node_with_pod, options, pod};
use crate::refused;

#[tokio::test]
async fn userns_options_that_make_no_sense_are_refused_by_field() {
    let node = TestNode::start().await;
    let good = ids(FIRST, COUNT);
    let mapped = |uids: Vec<IdMapping>, gids: Vec<IdMapping>| UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids,
        gids,
    };
    let not_root = IdMapping {
        container_id: 1,
        ..good
    };
    let mut cases = vec![
        (mapped(vec![], vec![good]), "uids"),
        (mapped(vec![good], vec![]), "gids"),
        (mapped(vec![good, ids(500_000, 1)], vec![good]), "uids"),
        (mapped(vec![good], vec![not_root]), "gids[0].container_id"),
        (mapped(vec![ids(FIRST, 0)], vec![good]), "uids[0].length"),
        (mapped(vec![ids(FIRST, u32::MAX)], vec![good]), "uids[0]"),
    ];
    for mode in [NamespaceMode::Container, NamespaceMode::Target] {
        let mut odd = options(good);
        odd.mode = mode.into();
        cases.push((odd, "mode"));
    }
    let mut node_with_ids = options(good);
    node_with_ids.mode = NamespaceMode::Node.into();
    cases.push((node_with_ids, "mode NODE takes no id mappings"));
    for (case, part) in cases {
        let mut config = node.pod("refused");
        config.namespaces().userns_options = Some(case);
        let part = format!("userns_options.{part}");
        let part = part.replace("options.mode NODE", "options: mode NODE");
        refused(
            node.try_run_pod(&config).await,
            Code::InvalidArgument,
            &part,
        );
    }
    for (kind, change) in [("pid", NamespaceMode::Node), ("ipc", NamespaceMode::Node)] {
        let mut config = pod(&node, "refused");
        match kind {
            "pid" => config.namespaces().set_pid(change),
            _ => config.namespaces().set_ipc(change),
        }
        let part = format!("{kind}: NODE cannot be had in a user namespace");
        refused(
            node.try_run_pod(&config).await,
            Code::InvalidArgument,
            &part,
        );
    }
    assert!(node.pods().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn a_containers_userns_options_are_its_pods() {
    let (node, one) = node_with_pod().await;
    let part = "userns_options: must be as the pod's";
    for other in [ids(FIRST + 1, COUNT), ids(FIRST, COUNT - 1)] {
        let mut config = sleeper("refused");
        config.namespaces().userns_options = Some(options(other));
        let created = node.try_create(&one, &config).await;
        refused(created, Code::InvalidArgument, part);
    }
    let created = node.try_create(&one, &sleeper("refused")).await;
    refused(created, Code::InvalidArgument, part);
    let mut config = inside(sleeper("refused"));
    config.namespaces().set_pid(NamespaceMode::Node);
    let created = node.try_create(&one, &config).await;
    refused(created, Code::InvalidArgument, "pid: NODE");

    let plain = node.run_pod(&node.pod("plain")).await;
    let created = node.try_create(&plain, &inside(sleeper("refused"))).await;
    let part = "userns_options: the pod has no user namespace";
    refused(created, Code::InvalidArgument, part);
    // Mode NODE is what a pod without one has.
    let mut config = sleeper("a");
    config.namespaces().userns_options = Some(UserNamespace {
        mode: NamespaceMode::Node.into(),
        ..Default::default()
    });
    node.start_container(&plain, &config).await;
    node.finish().await;
}

#[tokio::test]
async fn who_is_not_mapped_cannot_run() {
    let node = TestNode::start().await;
    let mut config = node.pod("small");
    let small = options(ids(FIRST, 1001));
    config.namespaces().userns_options = Some(small.clone());
    let one = node.run_pod(&config).await;
    let user = |uid: i64, gid: i64, groups: &[i64]| {
        let mut config = sh("who", "id -u");
        config.namespaces().userns_options = Some(small.clone());
        config.security().run_as_user = Some(v1::Int64Value { value: uid });
        config.security().run_as_group = Some(v1::Int64Value { value: gid });
        config.security().supplemental_groups = groups.to_vec();
        config
    };
    for (config, part) in [
        (user(1001, 0, &[]), "user 1001 is not in"),
        (user(0, 1001, &[]), "group 1001 is not in"),
        (user(0, 0, &[7, 2000]), "supplementary group 2000 is not in"),
    ] {
        let created = node.try_create(&one, &config).await;
        refused(created, Code::InvalidArgument, part);
    }
    // The last that is.
    assert_eq!(node.output_of(&one, &user(1000, 1000, &[])).await, "1000\n");
    node.finish().await;
}

#[tokio::test]
async fn root_alone_can_be_mapped() {
    let node = TestNode::start().await;
    let only_root = options(ids(FIRST, 1));
    let mut config = node.pod("root");
    config.namespaces().userns_options = Some(only_root.clone());
    let one = node.run_pod(&config).await;
    for (name, tty) in [("plain", false), ("terminal", true)] {
        let mut config = sh(name, "id -u; stat -c %u /dev/pts; echo x > /dev/stdout");
        config.namespaces().userns_options = Some(only_root.clone());
        config.tty = tty;
        let output = node.output_of(&one, &config).await.replace('\r', "");
        let (first, rest) = output.split_once('\n').expect("lines");
        assert_eq!(first, "0", "{output}");
        assert!(rest.ends_with("\nx\n"), "{output}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_mounts_mappings_are_the_pods_or_none() {
    let (node, one) = node_with_pod().await;
    let dir = node.dir().join("volume");
    std::fs::create_dir(&dir).unwrap();
    let mount = |name: &str, uids: Vec<IdMapping>, gids: Vec<IdMapping>| {
        let mut config = sh(name, "stat -c %u /data").mount(&dir, "/data");
        config.mounts[0].uid_mappings = uids;
        config.mounts[0].gid_mappings = gids;
        config
    };
    let good = ids(FIRST, COUNT);
    let same = inside(mount("same", vec![good], vec![good]));
    assert_eq!(node.output_of(&one, &same).await, "0\n");
    let other = inside(mount("other", vec![good], vec![ids(FIRST + 1, COUNT)]));
    let part = "mounts[0].gidMappings: must be as those of the pod's user namespace";
    let created = node.try_create(&one, &other).await;
    refused(created, Code::InvalidArgument, part);
    let plain = node.run_pod(&node.pod("plain")).await;
    let config = mount("plain", vec![good], vec![]);
    let created = node.try_create(&plain, &config).await;
    refused(created, Code::InvalidArgument, "mounts[0].uidMappings");
    node.finish().await;
}

#[tokio::test]
async fn status_tells_what_the_node_can_do() {
    let (node, one) = node_with_pod().await;
    let status = node
        .cri
        .runtime()
        .status(v1::StatusRequest { verbose: true })
        .await
        .unwrap()
        .into_inner();
    assert!(!status.runtime_handlers.is_empty());
    for handler in status.runtime_handlers {
        assert!(handler.features.unwrap().user_namespaces);
    }
    assert!(status.features.unwrap().user_namespaces_host_network);
    // What critest tries idmapped mounts in.
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    let root = node.dir().join("root");
    assert_eq!(config["stateDir"].as_str(), root.to_str());

    let linux = node.pod_status(&one).await.linux.unwrap();
    let sent = linux.namespaces.unwrap().options.unwrap();
    assert_eq!(sent.userns_options, Some(options(ids(FIRST, COUNT))));
    node.finish().await;
}

/// A file system on which ordinary pods live, but that cannot be idmapped.
struct Unmappable(std::path::PathBuf);

impl Drop for Unmappable {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_node_that_cannot_says_so_and_why() {
    let mut node = TestNode::start().await;
    assert!(node.terminate_daemon().await.success());
    let root = node.dir().join("root");
    let none = None::<&str>;
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("ramfs"), &root, Some("ramfs"), flags, none).unwrap();
    let other = Unmappable(root);
    node.start_daemon(None).await;
    let mut runtime = node.cri.runtime();
    let status = runtime.status(v1::StatusRequest::default());
    let status = status.await.unwrap().into_inner();
    for handler in status.runtime_handlers {
        assert!(!handler.features.unwrap().user_namespaces);
    }
    assert!(!status.features.unwrap().user_namespaces_host_network);
    refused(
        node.try_run_pod(&pod(&node, "refused")).await,
        Code::FailedPrecondition,
        "user namespaces do not work on this node: layer",
    );
    let plain = node.run_pod(&node.pod("plain")).await;
    node.try_remove_pod(&plain.id).await.unwrap();
    assert!(node.terminate_daemon().await.success());
    drop(other);
    node.start_daemon(None).await;
    node.run_pod(&pod(&node, "one")).await;
    node.finish().await;
}
