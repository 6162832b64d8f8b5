//! What is mounted in a container, and what of it the host sees.

use std::fs;
use std::path::{Path, PathBuf};

use carpel_integration::image::{Image, Layer};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{Mount, MountPropagation};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Code;

use crate::refused;

/// A tmpfs on the host with its own propagation; unmounted with all below when dropped.
pub struct HostMount(pub PathBuf);

impl HostMount {
    pub fn new(path: &Path, propagation: MsFlags) -> Self {
        fs::create_dir_all(path).unwrap();
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        mount(None::<&str>, path, None::<&str>, propagation, None::<&str>).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn bind(host: &Path, path: &str, propagation: MountPropagation) -> Mount {
    Mount {
        container_path: path.into(),
        host_path: host.display().to_string(),
        propagation: propagation.into(),
        ..Mount::default()
    }
}

#[tokio::test]
async fn a_bind_mount_is_writable_unless_read_only() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let dir = node.dir().join("volume");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("from-host"), "host\n").unwrap();
    let config = sh(
        "rw",
        "cat /data/deep/from-host; echo container > /data/deep/from-container",
    )
    .mount(&dir, "/data/deep");
    assert_eq!(node.output_of(&pod, &config).await, "host\n");
    assert_eq!(
        fs::read_to_string(dir.join("from-container")).unwrap(),
        "container\n"
    );
    let mut config = sh("ro", "cat /data/from-host; touch /data/x 2>&1").mount(&dir, "/data");
    config.mounts[0].readonly = true;
    let (log, _) = node.run_to_end(&pod, &config).await;
    assert!(
        log.stdout().starts_with("host\n") && log.stdout().contains("Read-only file system"),
        "{log:?}"
    );
    // A file goes onto a file of the image, and onto one that is not there.
    let file = dir.join("from-host");
    let config = sh("file", "cat /etc/replaced /etc/new")
        .mount(&file, "/etc/replaced")
        .mount(&file, "/etc/new");
    assert_eq!(node.output_of(&pod, &config).await, "host\nhost\n");
    let status = node
        .status(&node.try_create(&pod, &config).await.unwrap())
        .await;
    assert_eq!(status.mounts.len(), 2);
    assert_eq!(status.mounts[0].container_path, "/etc/replaced");
    node.finish().await;
}

#[tokio::test]
async fn a_missing_host_path_is_made_as_a_folder() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let dir = node.dir().join("not/there/yet");
    let config = sh("a", "stat -c '%a %F' /data").mount(&dir, "/data");
    assert_eq!(node.output_of(&pod, &config).await, "755 directory\n");
    assert!(dir.is_dir());
    // The peers make it when the container is created, and so is what cannot be made refused.
    let file = node.dir().join("file");
    fs::write(&file, "").unwrap();
    let config = sh("b", "true").mount(&file.join("below"), "/data");
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "config.mounts[0].host_path",
    );
    node.finish().await;
}

#[tokio::test]
async fn mounts_of_the_request_may_lie_in_each_other_in_any_order() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let (outer, inner) = (node.dir().join("outer"), node.dir().join("inner"));
    fs::create_dir_all(outer.join("in")).unwrap();
    fs::create_dir(&inner).unwrap();
    fs::write(outer.join("o"), "outer\n").unwrap();
    fs::write(inner.join("i"), "inner\n").unwrap();
    let config = sh("a", "cat /m/o /m/in/i")
        .mount(&inner, "/m/in")
        .mount(&outer, "/m");
    assert_eq!(node.output_of(&pod, &config).await, "outer\ninner\n");
    // The kubelet's own files take the place of the runtime's.
    let config = sh("b", "cat /etc/hosts").mount(&inner.join("i"), "/etc/hosts");
    assert_eq!(node.output_of(&pod, &config).await, "inner\n");
    node.finish().await;
}

#[tokio::test]
async fn a_private_mount_sees_no_later_mounts_of_the_host() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let source = HostMount::new(&node.dir().join("v"), MsFlags::MS_SHARED);
    fs::create_dir(source.0.join("sub")).unwrap();
    let mut config = sleeper("a");
    config
        .mounts
        .push(bind(&source.0, "/v", MountPropagation::PropagationPrivate));
    let id = node.start_container(&pod, &config).await;
    let later = HostMount::new(&source.0.join("sub"), MsFlags::MS_PRIVATE);
    fs::write(later.0.join("f"), "x").unwrap();
    assert_eq!(node.exec(&id, "ls /v/sub").await, "");
    drop(later);
    drop(source);
    node.finish().await;
}

#[tokio::test]
async fn a_host_to_container_mount_follows_the_hosts() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let source = HostMount::new(&node.dir().join("v"), MsFlags::MS_SHARED);
    fs::create_dir(source.0.join("sub")).unwrap();
    let mut config = sleeper("a");
    config.mounts.push(bind(
        &source.0,
        "/v",
        MountPropagation::PropagationHostToContainer,
    ));
    let id = node.start_container(&pod, &config).await;
    let later = HostMount::new(&source.0.join("sub"), MsFlags::MS_SHARED);
    fs::write(later.0.join("f"), "x").unwrap();
    assert_eq!(node.exec(&id, "ls /v/sub").await, "f\n");
    drop(later);
    assert_eq!(node.exec(&id, "ls /v/sub").await, "");
    drop(source);
    node.finish().await;
}

#[tokio::test]
async fn a_bidirectional_mount_goes_both_ways() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.security().privileged = true;
    let pod = node.run_pod(&config).await;
    let source = HostMount::new(&node.dir().join("v"), MsFlags::MS_SHARED);
    fs::create_dir(source.0.join("sub")).unwrap();
    let mut config = sleeper("a");
    config.security().privileged = true;
    config.mounts.push(bind(
        &source.0,
        "/v",
        MountPropagation::PropagationBidirectional,
    ));
    let id = node.start_container(&pod, &config).await;
    node.exec(
        &id,
        "mount -t tmpfs none /v/sub && touch /v/sub/from-container",
    )
    .await;
    assert!(source.0.join("sub/from-container").exists());
    assert_eq!(host::mounts_below(&source.0).len(), 1);
    let _ = umount2(&source.0.join("sub"), MntFlags::MNT_DETACH);
    assert_eq!(node.exec(&id, "ls /v/sub").await, "");
    drop(source);
    node.finish().await;
}

#[tokio::test]
async fn propagation_that_the_source_cannot_give_is_refused() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let source = HostMount::new(&node.dir().join("v"), MsFlags::MS_PRIVATE);
    for (name, propagation) in [
        ("slave", MountPropagation::PropagationHostToContainer),
        ("shared", MountPropagation::PropagationBidirectional),
    ] {
        let mut config = sleeper(name);
        config.mounts.push(bind(&source.0, "/v", propagation));
        let outcome = node.try_create(&pod, &config).await;
        let kind = if name == "slave" {
            "shared or slave"
        } else {
            "shared"
        };
        let text = format!(
            "config.mounts[0].propagation: host path {0} is mounted on {0}, which is not a {kind} mount",
            source.0.display()
        );
        refused(outcome, Code::InvalidArgument, &text);
    }
    assert!(node.containers().await.is_empty());
    drop(source);
    node.finish().await;
}

#[tokio::test]
async fn read_only_goes_below_only_when_recursive() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let source = HostMount::new(&node.dir().join("v"), MsFlags::MS_PRIVATE);
    let below = HostMount::new(&source.0.join("sub"), MsFlags::MS_PRIVATE);
    let script = "touch /v/x && echo top; touch /v/sub/x && echo sub; true";
    for (name, recursive, expected) in [("plain", false, "sub\n"), ("recursive", true, "")] {
        let mut config = sh(name, script);
        config.mounts.push(Mount {
            readonly: true,
            recursive_read_only: recursive,
            ..bind(&source.0, "/v", MountPropagation::PropagationPrivate)
        });
        assert_eq!(node.output_of(&pod, &config).await, expected);
    }
    let mut config = sh("refused", script);
    config.mounts.push(Mount {
        recursive_read_only: true,
        ..bind(&source.0, "/v", MountPropagation::PropagationPrivate)
    });
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "readonly",
    );
    drop(below);
    drop(source);
    node.finish().await;
}

#[tokio::test]
async fn recursive_read_only_is_for_private_mounts_and_advertised() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let status = node.runtime_status().await;
    let default = &status.runtime_handlers[0];
    assert_eq!(default.name, "");
    // These tests need 5.12 for every mount anyway.
    assert!(
        default
            .features
            .as_ref()
            .unwrap()
            .recursive_read_only_mounts
    );
    assert!(status.features.unwrap().mount_options);
    let source = HostMount::new(&node.dir().join("v"), MsFlags::MS_SHARED);
    for (name, propagation) in [
        ("slave", MountPropagation::PropagationHostToContainer),
        ("shared", MountPropagation::PropagationBidirectional),
    ] {
        let mut config = sleeper(name);
        config.mounts.push(Mount {
            readonly: true,
            recursive_read_only: true,
            ..bind(&source.0, "/v", propagation)
        });
        refused(
            node.try_create(&pod, &config).await,
            Code::InvalidArgument,
            "config.mounts[0].recursive_read_only: needs propagation PROPAGATION_PRIVATE",
        );
    }
    drop(source);
    node.finish().await;
}

#[tokio::test]
async fn mount_options_are_flags_of_the_mount() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let source = HostMount::new(&node.dir().join("v"), MsFlags::MS_PRIVATE);
    let below = HostMount::new(&source.0.join("sub"), MsFlags::MS_PRIVATE);
    let script = "cp /bin/busybox /v/ls; cp /bin/busybox /v/sub/ls; /v/ls / >/dev/null && echo top; \
                  /v/sub/ls / >/dev/null && echo sub; grep ' /v' /proc/self/mountinfo | cut -d' ' -f6";
    for (name, options, expected) in [
        ("none", &[][..], "top\nsub\nrw,relatime\nrw,relatime\n"),
        (
            "noexec",
            &["noexec", "nosuid", "nodev", "noatime"][..],
            "sub\nrw,nosuid,nodev,noexec,noatime\nrw,relatime\n",
        ),
        (
            "rnoexec",
            &["rnoexec", "nodev"][..],
            "rw,nodev,noexec,relatime\nrw,noexec,relatime\n",
        ),
    ] {
        let mut config = sh(name, script);
        config.mounts.push(Mount {
            mount_options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..bind(&source.0, "/v", MountPropagation::PropagationPrivate)
        });
        let id = node.start_container(&pod, &config).await;
        node.wait_exit(&id).await;
        assert_eq!(node.log(&pod, name).stdout(), expected, "{name}");
        assert_eq!(node.status(&id).await.mounts, config.mounts);
    }
    // What would give back what the node's own mount takes, or is said elsewhere.
    for option in ["exec", "ro", "rbind", "rshared", "size=1m", ""] {
        let mut config = sh("bad", script);
        config.mounts.push(Mount {
            mount_options: vec!["nodev".into(), option.into()],
            ..bind(&source.0, "/v", MountPropagation::PropagationPrivate)
        });
        refused(
            node.try_create(&pod, &config).await,
            Code::InvalidArgument,
            "config.mounts[0].mount_options[1]",
        );
    }
    drop(below);
    drop(source);
    node.finish().await;
}

#[tokio::test]
async fn the_file_systems_of_every_container_are_there() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let text = node
        .output_of(&pod, &sh("a", "cat /proc/self/mountinfo"))
        .await;
    let mounts: Vec<(&str, &str, &str)> = text
        .lines()
        .map(|line| {
            let (left, right) = line.split_once(" - ").unwrap();
            let left: Vec<_> = left.split(' ').collect();
            (left[4], right.split(' ').next().unwrap(), left[5])
        })
        .collect();
    let find = |path: &str| {
        *mounts
            .iter()
            .find(|mount| mount.0 == path)
            .unwrap_or_else(|| panic!("{path} in {text}"))
    };
    for (path, kind, option) in [
        ("/", "overlay", "rw"),
        ("/proc", "proc", "noexec"),
        ("/dev", "tmpfs", "nosuid"),
        ("/dev/pts", "devpts", "noexec"),
        ("/dev/mqueue", "mqueue", "nodev"),
        ("/dev/shm", "tmpfs", "nodev"),
        ("/sys", "sysfs", "ro"),
    ] {
        let (_, got, options) = find(path);
        assert_eq!(got, kind, "{path}");
        assert!(options.split(',').any(|o| o == option), "{path}: {options}");
    }
    let (_, _, options) = find("/sys/fs/cgroup");
    assert!(options.starts_with("ro"), "{options}");
    // Nothing of the host shines through, and nothing leads back to it.
    assert!(
        !text.contains("master:") && !text.contains("shared:"),
        "{text}"
    );
    node.finish().await;
}

#[tokio::test]
async fn the_host_sees_one_mount_for_a_pod() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let volume = node.dir().join("volume");
    for name in ["a", "b", "c"] {
        node.start_container(&pod, &sleeper(name).mount(&volume, "/v"))
            .await;
    }
    let mounts = host::mounts_below(node.dir());
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    assert!(mounts[0].starts_with(node.netns_dir()));
    let line = host::mountinfo("self");
    let line = line
        .lines()
        .find(|line| line.contains(&mounts[0].display().to_string()))
        .unwrap();
    assert!(line.contains("nsfs"), "{line}");
    // The daemon itself holds no rootfs, either.
    let daemon = host::mountinfo(&node.daemon_pid().unwrap().to_string());
    assert!(
        !daemon.contains("overlay") || host::mountinfo("self").contains("overlay"),
        "{daemon}"
    );
    node.finish().await;
}

#[tokio::test]
async fn links_in_an_image_lead_no_mount_out_of_it() {
    let mut node = TestNode::start().await;
    let canary = node.dir().join("canary");
    fs::create_dir(&canary).unwrap();
    let up = format!("/../../../../../../../..{}", canary.display());
    let image = Image::busybox().tagged("localhost/links:1").layer(
        Layer::default()
            .symlink("data", &canary.display().to_string())
            .symlink("etc/hosts", "/../../canary-hosts")
            .symlink("updir", &up)
            .whiteout("dev")
            .symlink("dev", &canary.display().to_string()),
    );
    node.import(image.oci()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("f"), "volume\n").unwrap();
    let mut config = sh(
        "a",
        "cat /data/x/f /updir/y/f; test -c /dev/null && echo null",
    )
    .mount(&volume, "/data/x")
    .mount(&volume, "/updir/y");
    config.image.as_mut().unwrap().image = "localhost/links:1".into();
    // Either it runs, all of it inside, or it is refused; the host stays as it is.
    if let Ok(id) = node.try_create(&pod, &config).await
        && node.try_start(&id).await.is_ok()
    {
        let status = node.wait_exit(&id).await;
        assert_eq!(status.exit_code, 0);
        assert_eq!(node.log(&pod, "a").stdout(), "volume\nvolume\nnull\n");
    }
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0);
    assert!(!Path::new("/canary-hosts").exists());
    node.finish().await;
}

#[tokio::test]
async fn an_images_volume_stays_writable_and_keeps_what_the_image_has_there() {
    let mut node = TestNode::start().await;
    let image = Image::busybox()
        .tagged("localhost/volumes:1")
        .layer(
            Layer::default()
                .dir("data", 0o1770)
                .owned_by(7, 8)
                .file("data/seed", 0o640, b"seed\n")
                .owned_by(7, 8),
        )
        .set(
            "Volumes",
            serde_json::json!({"/data": {}, "/new/deep": {}, "/mine/below": {}}),
        );
    node.import(image.oci()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mine = node.dir().join("mine");
    fs::create_dir(&mine).unwrap();
    let script = "cat /data/seed; stat -c '%u %g %a' /data /data/seed; echo x > /data/new; \
                  echo y > /new/deep/f; cat /data/new /new/deep/f; ls /mine; touch /no";
    let mut config = sh("a", script).mount(&mine, "/mine");
    config.image.as_mut().unwrap().image = "localhost/volumes:1".into();
    let security = config.linux.get_or_insert_default();
    let security = security.security_context.get_or_insert_default();
    security.readonly_rootfs = true;
    let id = node.start_container(&pod, &config).await;
    let status = node.wait_exit(&id).await;
    let log = node.log(&pod, "a");
    assert_eq!(log.stdout(), "seed\n7 8 1770\n7 8 640\nx\ny\n");
    assert_ne!(status.exit_code, 0, "the rest of the root is read-only");
    // What lies in a volume of the request is the request's.
    assert_eq!(fs::read_dir(&mine).unwrap().count(), 0);
    node.finish().await;
}
