//! Requests that no node could carry out, and a node that has no room.

use super::*;

#[tokio::test]
async fn names_and_paths_that_lead_elsewhere() {
    let node = TestNode::start().await;
    let with = |change: fn(&mut PodSandboxConfig)| {
        let mut config = node.pod("one");
        change(&mut config);
        config
    };
    let cases = [
        (
            with(|c| c.metadata.as_mut().unwrap().name = "../x".into()),
            "name",
        ),
        (
            with(|c| c.metadata.as_mut().unwrap().name = "a\0b".into()),
            "name",
        ),
        (
            with(|c| c.metadata.as_mut().unwrap().name = String::new()),
            "name",
        ),
        (
            with(|c| c.metadata.as_mut().unwrap().namespace = "a/b".into()),
            "namespace",
        ),
        (
            with(|c| c.metadata.as_mut().unwrap().uid = "../../..".into()),
            "uid",
        ),
        (
            with(|c| c.metadata.as_mut().unwrap().uid = "x".repeat(70_000)),
            "uid",
        ),
        (with(|c| c.metadata = None), "metadata"),
        (with(|c| c.hostname = "a\nb".into()), "hostname"),
        (
            with(|c| c.log_directory = "relative".into()),
            "log_directory",
        ),
        (
            with(|c| c.log_directory = "/tmp/../etc".into()),
            "log_directory",
        ),
        (
            with(|c| c.linux().cgroup_parent = "../..".into()),
            "cgroup_parent",
        ),
        (
            with(|c| c.linux().cgroup_parent = "/a/../../b".into()),
            "cgroup_parent",
        ),
    ];
    for (config, part) in cases {
        refused(node.try_run_pod(&config).await, Code::InvalidArgument, part);
    }
    assert!(node.pods().await.is_empty());

    let pod = node.run_pod(&node.pod("one")).await;
    let with = |change: fn(&mut ContainerConfig)| {
        let mut config = sleeper("a");
        change(&mut config);
        config
    };
    let cases = [
        (
            with(|c| c.metadata.as_mut().unwrap().name = "../a".into()),
            "name",
        ),
        (
            with(|c| c.metadata.as_mut().unwrap().name = "a/b".into()),
            "name",
        ),
        (with(|c| c.metadata = None), "metadata"),
        (with(|c| c.log_path = "../../x.log".into()), "log_path"),
        (with(|c| c.log_path = "/abs.log".into()), "log_path"),
        (with(|c| c.log_path = "a\0b".into()), "log_path"),
        (with(|c| c.working_dir = "relative".into()), "working_dir"),
        (with(|c| c.command = vec!["a\0b".into()]), "command"),
        (
            with(|c| {
                c.envs = vec![v1::KeyValue {
                    key: String::new(),
                    value: b"x".to_vec(),
                }]
            }),
            "envs",
        ),
        (
            with(|c| {
                c.envs = vec![v1::KeyValue {
                    key: "A=B".into(),
                    value: b"x".to_vec(),
                }]
            }),
            "envs",
        ),
        (
            with(|c| {
                c.envs = vec![v1::KeyValue {
                    key: "A".into(),
                    value: b"a\0b".to_vec(),
                }]
            }),
            "envs",
        ),
        (
            with(|c| c.security().masked_paths = vec!["relative".into()]),
            "masked_paths",
        ),
        (
            with(|c| {
                c.security().capabilities = Some(v1::Capability {
                    add_capabilities: vec!["FLY".into()],
                    ..v1::Capability::default()
                });
            }),
            "FLY",
        ),
    ];
    for (config, part) in cases {
        refused(
            node.try_create(&pod, &config).await,
            Code::InvalidArgument,
            part,
        );
    }
    assert!(node.containers().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn unknown_and_malformed_ids() {
    let node = TestNode::start().await;
    let unknown = "0123456789abcdef".repeat(4);
    refused(
        node.try_pod_status(&unknown).await,
        Code::NotFound,
        &unknown,
    );
    refused(node.try_status(&unknown).await, Code::NotFound, &unknown);
    refused(node.try_start(&unknown).await, Code::NotFound, &unknown);
    let pod = carpel_integration::Pod {
        id: unknown.clone(),
        config: node.pod("one"),
    };
    refused(
        node.try_create(&pod, &sleeper("a")).await,
        Code::NotFound,
        &unknown,
    );
    for bad in ["", "../../etc/passwd", "a/b", "UPPER", "a\0b"] {
        for outcome in [
            node.try_pod_status(bad).await.map(drop),
            node.try_status(bad).await.map(drop),
            node.try_start(bad).await,
            node.try_exec(bad, &["true"], 1).await.map(drop),
        ] {
            let status = outcome.expect_err(bad);
            assert!(
                matches!(status.code(), Code::InvalidArgument | Code::NotFound),
                "{bad:?}: {status}"
            );
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn a_handler_that_is_not_configured() {
    let node = TestNode::builder().no_image().start().await;
    let request = v1::RunPodSandboxRequest {
        config: Some(node.pod("one")),
        runtime_handler: "kata".into(),
    };
    let outcome = node.cri.runtime().run_pod_sandbox(request).await;
    refused(outcome, Code::InvalidArgument, "kata");
    let outcome = node
        .cri
        .runtime()
        .run_pod_sandbox(v1::RunPodSandboxRequest::default())
        .await;
    refused(outcome, Code::InvalidArgument, "config");
    node.finish().await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_frees_space_still_works() {
    let mut node = TestNode::builder().no_image().start().await;
    // The daemon's root on a small file system of its own.
    node.terminate_daemon().await;
    let root = node.dir().join("root");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "none"])
        .arg(&root)
        .status()
        .unwrap();
    assert!(mounted.success());
    node.start_daemon(None).await;
    node.cri
        .import(Image::busybox().oci())
        .await
        .expect("room for one image");
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let filler = root.join("filler");
    let full = std::process::Command::new("dd")
        .args([
            "if=/dev/zero",
            "bs=64k",
            &format!("of={}", filler.display()),
        ])
        .output()
        .unwrap();
    assert!(!full.status.success());
    let status = node
        .try_run_pod(&node.pod("two"))
        .await
        .expect_err("no room for a record");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let status = node
        .cri
        .import(
            Image::busybox()
                .tagged("localhost/big:1")
                .layer(carpel_integration::image::Layer::default().file(
                    "big",
                    0o644,
                    &vec![7; 4 << 20],
                ))
                .oci(),
        )
        .await
        .expect_err("no room for an image");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    // What runs runs; lists answer; what frees space works.
    assert_eq!(node.pods().await.len(), 1);
    assert_eq!(node.exec(&id, "echo fine").await, "fine\n");
    node.try_stop(&id, 5).await.unwrap();
    node.try_remove(&id).await.unwrap();
    node.try_stop_pod(&pod.id).await.unwrap();
    node.try_remove_pod(&pod.id).await.unwrap();
    fs::remove_file(&filler).unwrap();
    // Without a restart it goes on.
    let pod = node.run_pod(&node.pod("three")).await;
    node.start_container(&pod, &sleeper("b")).await;
    node.remove_pods().await;
    node.terminate_daemon().await;
    nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn requests_that_are_too_large_cost_only_themselves() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    config.args = vec!["x".repeat(1 << 20); 20];
    assert!(try_run(&node, &pod, &config).await.is_err());
    let mut config = sleeper("a");
    config.mounts = (0..100_000)
        .map(|n| Mount {
            host_path: "/tmp".into(),
            container_path: format!("/m/{n}"),
            ..Mount::default()
        })
        .collect();
    assert!(try_run(&node, &pod, &config).await.is_err());
    assert!(node.containers().await.is_empty());
    node.start_container(&pod, &sleeper("a")).await;
    node.finish().await;
}
