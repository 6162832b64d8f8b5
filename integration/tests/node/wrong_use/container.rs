//! Containers that cannot be made or started as they are asked for.

use super::*;

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
