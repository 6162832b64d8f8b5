//! What people and programs get wrong: each with its code, a text that helps, and nothing left behind.

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

async fn node_with_plugin(kind: &str, script: Option<&str>) -> TestNode {
    let chain = json!({ "cniVersion": "1.0.0", "name": "wrong", "plugins": [{ "type": kind }] });
    let node = TestNode::builder()
        .no_image()
        .conflist(chain)
        .config("[network]\ntimeout_seconds = 1\n")
        .start()
        .await;
    if let Some(script) = script {
        node.write_plugin(kind, script);
    }
    node
}

/// A pod that cannot be made leaves nothing: not even a NOTREADY entry that somebody must remove.
async fn pod_fails(node: TestNode, parts: &[&str]) {
    for attempt in 0..2 {
        let mut config = node.pod("one");
        config.metadata.as_mut().unwrap().attempt = attempt;
        let status = node.try_run_pod(&config).await.expect_err("no pod");
        for part in parts {
            assert!(
                status.message().contains(part),
                "{:?} does not say {part:?}",
                status.message()
            );
        }
    }
    node.remove_pods().await;
    node.assert_no_leaks().await;
    node.finish().await;
}

#[tokio::test]
async fn a_missing_plugin() {
    let node = node_with_plugin("not-installed", None).await;
    let folder = node.plugin_dir().display().to_string();
    pod_fails(node, &["not-installed", "not found", &folder]).await;
}

#[tokio::test]
async fn a_plugin_whose_name_is_a_path() {
    let node = node_with_plugin("../../bin/sh", None).await;
    let status = node
        .cri
        .runtime()
        .status(v1::StatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    let conditions = status.status.unwrap().conditions;
    let network = conditions
        .iter()
        .find(|c| c.r#type == "NetworkReady")
        .unwrap();
    assert!(
        !network.status && network.message.contains("../../bin/sh"),
        "{network:?}"
    );
    pod_fails(node, &["network"]).await;
}

#[tokio::test]
async fn a_plugin_that_fails() {
    let script = r#"cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0
        echo '{"cniVersion":"1.0.0","code":7,"msg":"the switch is on fire","details":"rack 4"}'; exit 1"#;
    let node = node_with_plugin("fails", Some(script)).await;
    pod_fails(node, &["fails", "the switch is on fire", "rack 4"]).await;
}

#[tokio::test]
async fn a_plugin_that_dies_without_a_word() {
    let node = node_with_plugin(
        "dies",
        Some("cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; echo oops >&2; kill -9 $$"),
    )
    .await;
    pod_fails(node, &["dies", "signal"]).await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let script =
        "cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; trap '' TERM; sleep 4321 & sleep 4321";
    let node = node_with_plugin("hangs", Some(script)).await;
    let begin = Instant::now();
    let status = node
        .try_run_pod(&node.pod("one"))
        .await
        .expect_err("no pod");
    assert!(
        status.message().contains("hangs") && status.message().contains("1 s"),
        "{status}"
    );
    assert!(
        begin.elapsed() < host::patience(Duration::from_secs(4)),
        "{:?}",
        begin.elapsed()
    );
    let left = host::all_pids().into_iter().filter(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x004321\0")
    });
    assert_eq!(left.count(), 0);
    node.remove_pods().await;
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_that_prints_garbage() {
    let node = node_with_plugin(
        "garbage",
        Some("cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; echo 'everything is fine'"),
    )
    .await;
    pod_fails(node, &["garbage", "everything is fine"]).await;
}

#[tokio::test]
async fn a_plugin_that_prints_without_end() {
    let node = node_with_plugin("floods", Some("[ $CNI_COMMAND = DEL ] && exit 0; exec yes")).await;
    pod_fails(node, &["floods", "output"]).await;
}

#[tokio::test]
async fn a_plugin_that_gives_no_address() {
    let script = r#"cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; echo '{"cniVersion":"1.0.0","ips":[]}'"#;
    let node = node_with_plugin("empty", Some(script)).await;
    pod_fails(node, &["no IP"]).await;
}

#[tokio::test]
async fn no_network_configuration() {
    let node = TestNode::builder().no_image().no_network().start().await;
    let folder = node.conf_dir().display().to_string();
    pod_fails(node, &["network", &folder]).await;
}

#[tokio::test]
async fn an_unknown_image() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    config.image.as_mut().unwrap().image = "localhost/nowhere:1".into();
    refused(
        node.try_create(&pod, &config).await,
        Code::NotFound,
        "localhost/nowhere:1",
    );
    for bad in [
        "",
        "UPPER/case",
        "a b",
        "../../etc",
        "localhost/x:tag with space",
        "sha256:zz",
    ] {
        config.image.as_mut().unwrap().image = bad.into();
        let status = node.try_create(&pod, &config).await.expect_err(bad);
        assert!(
            matches!(status.code(), Code::InvalidArgument | Code::NotFound),
            "{bad}: {status}"
        );
    }
    config.image = None;
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "image",
    );
    assert!(node.containers().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_is_not_there_or_cannot_run() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    for (n, (command, part)) in [
        ("/bin/nonexistent", "no such file"),
        ("nonexistent", "nonexistent"),
        ("/bin/not-executable", "permission denied"),
        ("/etc", "permission denied"),
    ]
    .into_iter()
    .enumerate()
    {
        let config = container(&format!("c{n}"), &[command]);
        let id = node.try_create(&pod, &config).await.unwrap();
        let status = node.try_start(&id).await.expect_err("no such process");
        let text = status.message().to_lowercase();
        assert!(
            text.contains(command) && text.contains(part),
            "{command}: {status}"
        );
        // The kubelet asks what became of it.
        let container = node.status(&id).await;
        assert_eq!(container.state(), v1::ContainerState::ContainerExited);
        assert!(
            container.exit_code != 0 && container.reason == "StartError",
            "{container:?}"
        );
        assert!(container.message.contains(command), "{container:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn an_image_without_a_command() {
    let mut node = TestNode::start().await;
    node.import(
        Image::busybox()
            .tagged("localhost/no-cmd:1")
            .set("Cmd", Value::Null)
            .oci(),
    )
    .await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = container("a", &[]);
    config.image.as_mut().unwrap().image = "localhost/no-cmd:1".into();
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "no command",
    );
    node.finish().await;
}

#[tokio::test]
async fn a_bad_user() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    // What no image can mean is refused when it is imported, what this one lacks when it is used.
    for user in ["4294967296", "2147483648", "-1", "1000:99999999999"] {
        let image = Image::busybox()
            .tagged("localhost/bad-user:1")
            .set("User", json!(user));
        refused(
            node.cri.import(image.oci()).await,
            Code::InvalidArgument,
            user,
        );
    }
    for user in ["nobody-here", "0x0", "alice:nogroup"] {
        let image = Image::busybox()
            .tagged("localhost/bad-user:2")
            .set("User", json!(user));
        node.import(image.oci()).await;
        let mut config = sleeper("a");
        config.image.as_mut().unwrap().image = "localhost/bad-user:2".into();
        let part = user.rsplit(':').next().unwrap();
        refused(
            node.try_create(&pod, &config).await,
            Code::InvalidArgument,
            part,
        );
    }
    let mut config = sleeper("a");
    config.security().run_as_username = "nobody-here".into();
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "nobody-here",
    );
    let mut config = sleeper("a");
    config.security().run_as_group = Some(Int64Value { value: 7 });
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "run_as_group",
    );
    for bad in [-1, 1 << 32] {
        let mut config = sleeper("a");
        config.security().run_as_user = Some(Int64Value { value: bad });
        refused(
            node.try_create(&pod, &config).await,
            Code::InvalidArgument,
            "run_as_user",
        );
    }
    assert!(node.containers().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn hostile_user_files_in_an_image_cost_an_error_at_most() {
    use carpel_integration::image::Layer;
    let mut node = TestNode::start().await;
    fs::write(node.dir().join("secret"), "mallory:x:0:0::/:/bin/sh\n").unwrap();
    let secret = node.dir().join("secret").display().to_string();
    let layers = [
        Layer::default()
            .whiteout("etc/passwd")
            .symlink("etc/passwd", &secret),
        Layer::default()
            .whiteout("etc/passwd")
            .symlink("etc/passwd", "/dev/zero"),
        Layer::default().whiteout("etc/passwd").fifo("etc/passwd"),
        Layer::default()
            .whiteout("etc/passwd")
            .dir("etc/passwd", 0o755),
        Layer::default().file(
            "etc/passwd",
            0o644,
            b"4294967296:x:0:0::/:/bin/sh\n\nx\n::::::\n",
        ),
    ];
    for (n, layer) in layers.into_iter().enumerate() {
        node.import(
            Image::busybox()
                .tagged(&format!("localhost/passwd:{n}"))
                .layer(layer)
                .oci(),
        )
        .await;
    }
    let pod = node.run_pod(&node.pod("one")).await;
    for n in 0..5 {
        let begin = Instant::now();
        let mut config = sh(&format!("c{n}"), "id -u");
        config.image.as_mut().unwrap().image = format!("localhost/passwd:{n}");
        config.security().run_as_username = "mallory".into();
        let outcome = node.try_create(&pod, &config).await;
        assert!(outcome.is_err(), "passwd {n}");
        assert!(begin.elapsed() < host::patience(Duration::from_secs(2)));
    }
    node.finish().await;
}

#[tokio::test]
async fn a_bad_mount() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mount = |host: &str, container: &str| Mount {
        host_path: host.into(),
        container_path: container.into(),
        ..Mount::default()
    };
    let file = node.dir().join("file");
    fs::write(&file, "x").unwrap();
    for (bad, part) in [
        (mount("relative", "/x"), "host_path"),
        (mount("/tmp/../etc", "/x"), "host_path"),
        (mount("", "/x"), "host_path"),
        (mount("/tmp", "x"), "container_path"),
        (mount("/tmp", "/a/../b"), "container_path"),
        (mount("/tmp", ""), "container_path"),
        (mount("/tmp", "/"), "container_path"),
        (mount("/tmp", "/x\0y"), "container_path"),
        (mount("/tmp", "/proc"), "container_path"),
    ] {
        let mut config = sleeper("a");
        config.mounts = vec![bad];
        refused(
            node.try_create(&pod, &config).await,
            Code::InvalidArgument,
            part,
        );
    }
    // A file cannot be made a folder, nor something be found below a file.
    let below = file.join("below").display().to_string();
    let mut config = sleeper("a");
    config.mounts = vec![mount(&below, "/x")];
    let status = try_run(&node, &pod, &config)
        .await
        .expect_err("below a file");
    assert!(status.message().contains(&below), "{status}");
    assert!(node.containers().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn limits_that_make_no_sense() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let cases: [(LinuxContainerResources, &str); 7] = [
        (
            LinuxContainerResources {
                memory_limit_in_bytes: -1,
                ..Default::default()
            },
            "memory_limit_in_bytes",
        ),
        (
            LinuxContainerResources {
                cpu_period: -1,
                ..Default::default()
            },
            "cpu_period",
        ),
        (
            LinuxContainerResources {
                cpu_quota: -2,
                cpu_period: 100_000,
                ..Default::default()
            },
            "cpu_quota",
        ),
        (
            LinuxContainerResources {
                cpu_shares: -1,
                ..Default::default()
            },
            "cpu_shares",
        ),
        (
            LinuxContainerResources {
                oom_score_adj: 1001,
                ..Default::default()
            },
            "oom_score_adj",
        ),
        (
            LinuxContainerResources {
                memory_swap_limit_in_bytes: 1,
                memory_limit_in_bytes: 1 << 26,
                ..Default::default()
            },
            "memory_swap_limit_in_bytes",
        ),
        (
            LinuxContainerResources {
                cpuset_cpus: "all of them".into(),
                ..Default::default()
            },
            "cpuset_cpus",
        ),
    ];
    for (resources, part) in cases {
        let mut config = sleeper("a");
        *config.resources() = resources;
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
async fn a_seccomp_profile_that_is_not_there_or_none() {
    use carpel_integration::v1::{SecurityProfile, security_profile::ProfileType};
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let garbage = node.dir().join("garbage.json");
    fs::write(&garbage, "{ no profile").unwrap();
    for path in [
        "/nonexistent.json",
        "relative.json",
        "",
        "/dev/zero",
        "/etc/shadow",
        &garbage.display().to_string(),
    ] {
        let mut config = sleeper("a");
        config.security().seccomp = Some(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: path.to_owned(),
        });
        let status = try_run(&node, &pod, &config).await.expect_err(path);
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        // Neither the file's content nor part of it is told to whoever asked.
        assert!(!status.message().contains("root:"), "{status}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_seccomp_profile_that_forbids_what_a_start_needs_is_named() {
    use carpel_integration::v1::{SecurityProfile, security_profile::ProfileType};
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let profile = node.dir().join("no-exec.json");
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["execve"], "action": "SCMP_ACT_ERRNO" }],
    });
    fs::write(&profile, text.to_string()).unwrap();
    let mut config = sleeper("a");
    config.security().seccomp = Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: profile.display().to_string(),
    });
    let status = try_run(&node, &pod, &config).await.expect_err("no exec");
    // The step that the profile forbids is named.
    assert!(status.message().contains("exec"), "{status}");
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
