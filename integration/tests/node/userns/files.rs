//! The file systems of a container in a user namespace: its root, its volumes, and the kernel's.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use carpel_integration::image::{Image, Layer};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{Mount, MountPropagation};
use carpel_integration::{ContainerConfigExt, TestNode, host, sh};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use tonic::Code;

use super::{FIRST, inside, node_with_container, node_with_pod, pod, with};
use crate::refused;

#[tokio::test]
async fn the_root_file_system_is_roots() {
    let (node, _one, id) = node_with_container().await;
    let script = "stat -c '%u %g %a' / /etc /tmp /bin/busybox /home/alice /etc/passwd";
    assert_eq!(
        node.exec(&id, script).await,
        "0 0 755\n0 0 755\n0 0 1777\n0 0 755\n1001 1001 700\n0 0 644\n"
    );
    // Copied up, changed, renamed and removed.
    let script = "echo more >> /etc/replaced && stat -c '%u %g' /etc/replaced && chown 1001:100 /etc/replaced && \
                  stat -c '%u %g' /etc/replaced && rm /etc/passwd && test ! -e /etc/passwd && mkdir /made && \
                  mv /www /made/www && cat /made/www/index.html && touch /made/file && chown 1:2 /made/file && \
                  stat -c '%u %g' /made /made/file";
    assert_eq!(
        node.exec(&id, script).await,
        "0 0\n1001 100\nhello from a pod\n0 0\n1 2\n"
    );
    // On the host they belong to nobody of the host.
    let root = format!("/proc/{}/root", node.container_pid(&id));
    let owner = |path: &str| {
        let found = fs::symlink_metadata(format!("{root}/{path}")).unwrap();
        (found.uid() - FIRST, found.gid() - FIRST)
    };
    assert_eq!(owner("made/file"), (1, 2));
    assert_eq!(owner("etc/replaced"), (1001, 100));
    assert_eq!(owner("bin/busybox"), (0, 0));
    node.finish().await;
}

#[tokio::test]
async fn layers_are_shared_with_pods_that_have_none() {
    let (node, one) = node_with_pod().await;
    let plain = node.run_pod(&node.pod("plain")).await;
    let script = "stat -c '%u %g' /home/alice /bin/busybox; rm -r /www; echo x > /etc/replaced";
    let expected = "1001 1001\n0 0\n";
    assert_eq!(node.output_of(&plain, &sh("a", script)).await, expected);
    assert_eq!(
        node.output_of(&one, &inside(sh("b", script))).await,
        expected
    );
    assert_eq!(
        node.output_of(&plain, &sh("c", "cat /etc/replaced /www/index.html"))
            .await,
        "from the second layer\nhello from a pod\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_volume_has_the_pods_ids() {
    let (node, one) = node_with_pod().await;
    let dir = node.dir().join("volume");
    fs::create_dir_all(dir.join("below")).unwrap();
    fs::write(dir.join("file"), "from the host\n").unwrap();
    chown(dir.join("below"), Some(1001), Some(100)).unwrap();
    fs::set_permissions(dir.join("below"), PermissionsExt::from_mode(0o700)).unwrap();
    let script = "cat /data/file; stat -c '%u %g' /data /data/file /data/below; echo new > /data/new; \
                  touch /data/users && chown 1001:2000 /data/users";
    let config = inside(sh("a", script)).mount(&dir, "/data");
    assert_eq!(
        node.output_of(&one, &config).await,
        "from the host\n0 0\n0 0\n1001 100\n"
    );
    // What is written there the host, and any pod, finds under the same numbers.
    let owner = |name: &str| {
        let found = dir.join(name).metadata().unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!(owner("new"), (0, 0));
    assert_eq!(owner("users"), (1001, 2000));
    let mut config = inside(sh(
        "b",
        "echo alice > /data/below/own; stat -c %u /data/below/own",
    ))
    .mount(&dir, "/data");
    config.security().run_as_username = "alice".into();
    assert_eq!(node.output_of(&one, &config).await, "1001\n");
    // A single file, too; and a folder that is made.
    let made = node.dir().join("made/for/it");
    let config = inside(sh("c", "cat /file; stat -c %u /file /made"))
        .mount(&dir.join("file"), "/file")
        .mount(&made, "/made");
    assert_eq!(node.output_of(&one, &config).await, "from the host\n0\n0\n");
    node.finish().await;
}

/// A tmpfs on the host, unmounted when dropped.
struct HostMount<'a>(&'a Path);

impl<'a> HostMount<'a> {
    fn new(path: &'a Path, propagation: MsFlags) -> Self {
        fs::create_dir_all(path).unwrap();
        let none = None::<&str>;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(none, path, none, propagation, none).unwrap();
        Self(path)
    }
}

impl Drop for HostMount<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

/// tmpfs can be idmapped since Linux 6.3.
fn tmpfs_can_be_mapped() -> bool {
    host::kernel() >= (6, 3)
}

#[tokio::test]
async fn what_is_mounted_below_a_volume_has_the_pods_ids_or_is_an_error() {
    let (node, one) = node_with_pod().await;
    let dir = node.dir().join("volume");
    let below = dir.join("below");
    let mounted = HostMount::new(&below, MsFlags::MS_PRIVATE);
    fs::write(below.join("file"), "").unwrap();
    let config =
        inside(sh("a", "stat -c %u /data /data/below /data/below/file")).mount(&dir, "/data");
    if tmpfs_can_be_mapped() {
        assert_eq!(node.output_of(&one, &config).await, "0\n0\n0\n");
    } else {
        let id = node.try_create(&one, &config).await.unwrap();
        refused(node.try_start(&id).await, Code::InvalidArgument, "volume");
    }
    drop(mounted);
    node.finish().await;
}

#[tokio::test]
async fn a_volume_whose_file_system_cannot_be_mapped_is_an_error_that_names_it() {
    let (node, one) = node_with_pod().await;
    let config = inside(sleeper("a")).mount(Path::new("/sys/kernel"), "/data");
    let id = node.try_create(&one, &config).await.unwrap();
    let part = "host path /sys/kernel: its file system (0x62656572), or one mounted below it, cannot be idmapped";
    refused(node.try_start(&id).await, Code::InvalidArgument, part);
    let status = node.status(&id).await;
    assert_eq!(status.reason, "StartError");
    assert!(status.message.contains("/sys/kernel"), "{status:?}");
    node.finish().await;
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
async fn propagation_crosses_into_the_user_namespace() {
    if !tmpfs_can_be_mapped() {
        return assert!(host::kernel() < (6, 3));
    }
    let (node, one) = node_with_pod().await;
    let dir = node.dir().join("shared");
    let mounted = HostMount::new(&dir, MsFlags::MS_SHARED);
    let mut config = with(&["SYS_ADMIN"], sleeper("a"));
    config.mounts = vec![
        bind(&dir, "/in", MountPropagation::PropagationHostToContainer),
        bind(&dir, "/both", MountPropagation::PropagationBidirectional),
    ];
    let id = node.start_container(&one, &config).await;
    let later = dir.join("later");
    let on_host = HostMount::new(&later, MsFlags::MS_SHARED);
    fs::write(later.join("file"), "later\n").unwrap();
    assert_eq!(
        node.exec(&id, "cat /in/later/file /both/later/file").await,
        "later\nlater\n"
    );
    node.exec(
        &id,
        "mkdir /both/out && mount -t tmpfs none /both/out && echo out > /both/out/file",
    )
    .await;
    assert_eq!(fs::read_to_string(dir.join("out/file")).unwrap(), "out\n");
    assert_eq!(node.exec(&id, "cat /in/out/file").await, "out\n");
    umount2(&dir.join("out"), MntFlags::MNT_DETACH).unwrap();
    drop(on_host);
    drop(mounted);
    node.finish().await;
}

#[tokio::test]
async fn a_read_only_volume_stays_so_whatever_root_may() {
    let (node, one) = node_with_pod().await;
    let (dir, below) = (node.dir().join("volume"), node.dir().join("volume/below"));
    fs::create_dir_all(&below).unwrap();
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::create_dir_all(&a).unwrap();
    fs::create_dir_all(&b).unwrap();
    fs::write(b.join("covered"), "").unwrap();
    let none = None::<&str>;
    mount(Some(&a), &b, none, MsFlags::MS_BIND, none).unwrap();
    let mut config = with(&["ALL"], sleeper("a"))
        .mount(&dir, "/ro")
        .mount(&dir, "/rw");
    config.mounts[0].readonly = true;
    config.mounts[0].recursive_read_only = true;
    let id = node.start_container(&one, &config).await;
    let attempts = "mount -o remount,bind,rw /ro 2>/dev/null && echo remounted; \
                    mount -o remount,bind,rw /ro/b 2>/dev/null && echo below; \
                    umount /ro/b 2>/dev/null && echo uncovered; \
                    mkdir /again && mount -o bind /ro /again && mount -o remount,bind,rw /again 2>/dev/null && echo again; \
                    echo x > /ro/x && echo written; true";
    let ran = node.try_exec(&id, &["/bin/sh", "-c", attempts], 60).await;
    assert_eq!(String::from_utf8_lossy(&ran.unwrap().stdout), "");
    // What was not read-only it may make so, and so on: it is its mount.
    let allowed = "mount -o remount,bind,ro /rw && mount -o remount,bind,rw /rw && echo x > /rw/y && echo own";
    assert_eq!(node.exec(&id, allowed).await, "own\n");
    assert!(dir.join("y").exists() && !dir.join("x").exists());
    umount2(&b, MntFlags::MNT_DETACH).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_read_only_root_is_read_only() {
    let (node, one) = node_with_pod().await;
    let mut config = inside(sh(
        "a",
        "echo x > /x 2>/dev/null || echo refused; echo y > /dev/shm/y && echo shm",
    ));
    config.security().readonly_rootfs = true;
    assert_eq!(node.output_of(&one, &config).await, "refused\nshm\n");
    node.finish().await;
}

#[tokio::test]
async fn the_kernels_file_systems_are_there() {
    let (node, _one, id) = node_with_container().await;
    let types = "for at in /proc /sys /dev /dev/pts /dev/mqueue /dev/shm; do \
                 grep \" $at \" /proc/mounts | cut -d' ' -f3 | tail -n 1; done | tr '\\n' ' '";
    assert_eq!(
        node.exec(&id, types).await,
        "proc sysfs tmpfs devpts mqueue tmpfs "
    );
    assert_eq!(node.exec(&id, "ls /sys/class/net").await, "eth0\nlo\n");
    let owners = "stat -c '%u %g %a' /dev /dev/pts /dev/mqueue /dev/shm /proc/1 /proc/self/fd";
    assert_eq!(
        node.exec(&id, owners).await,
        "0 0 755\n0 0 755\n0 0 1777\n0 0 1777\n0 0 555\n0 0 500\n"
    );
    let devices = "for name in null zero full random urandom tty; do test -c /dev/$name && echo $name; done | tr '\\n' ' '; \
                   echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; readlink /dev/ptmx; readlink /dev/fd";
    assert_eq!(
        node.exec(&id, devices).await,
        "null zero full random urandom tty 4\n4\npts/ptmx\n/proc/self/fd\n"
    );
    let seen =
        "grep -c '^[^ ]* /sys sysfs ro,' /proc/mounts; ls /sys/fs/cgroup | wc -l | grep -vc '^0$'";
    assert_eq!(node.exec(&id, seen).await, "1\n1\n");
    node.finish().await;
}

#[tokio::test]
async fn paths_are_masked_and_read_only() {
    let (node, one) = node_with_pod().await;
    let script = "stat -c %F /proc/version; ls /proc/fs | wc -l; grep -c ' /proc/sys proc ro,' /proc/mounts; \
                  grep -c ' /proc/fs tmpfs ro,' /proc/mounts";
    let mut config = inside(sh("a", script));
    config.security().masked_paths = ["/proc/version", "/proc/fs", "/proc/none"]
        .map(String::from)
        .into();
    config.security().readonly_paths = vec!["/proc/sys".into()];
    assert_eq!(
        node.output_of(&one, &config).await,
        "character special file\n0\n1\n1\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn shared_memory_is_the_pods() {
    let (node, one, id) = node_with_container().await;
    let other = node.start_container(&one, &inside(sleeper("b"))).await;
    node.exec(&id, "echo shared > /dev/shm/x && chmod 600 /dev/shm/x")
        .await;
    assert_eq!(
        node.exec(&other, "cat /dev/shm/x; stat -c %u /dev/shm/x")
            .await,
        "shared\n0\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn the_pods_files_in_etc_are_roots() {
    let node = TestNode::start().await;
    let mut config = pod(&node, "one");
    config.hostname = "my-pod".into();
    let one = node.run_pod(&config).await;
    let id = node.start_container(&one, &inside(sleeper("a"))).await;
    let script = "hostname; cat /etc/hostname; grep -c localhost /etc/hosts; \
                  stat -c '%u %g %a' /etc/hosts /etc/hostname /etc/resolv.conf; echo '192.0.2.1 added' >> /etc/hosts";
    assert_eq!(
        node.exec(&id, script).await,
        "my-pod\nmy-pod\n2\n0 0 644\n0 0 644\n0 0 644\n"
    );
    let mut config = inside(sh(
        "b",
        "grep added /etc/hosts; cat /etc/resolv.conf > /dev/null",
    ));
    config.security().run_as_username = "alice".into();
    assert_eq!(node.output_of(&one, &config).await, "192.0.2.1 added\n");
    node.finish().await;
}

#[tokio::test]
async fn an_images_volumes_are_its_users() {
    let (mut node, one) = node_with_pod().await;
    let image = Image::busybox()
        .tagged("localhost/volume:1")
        .set("Volumes", json!({ "/data": {} }))
        .layer(
            Layer::default()
                .dir("data", 0o750)
                .owned_by(1001, 1001)
                .file("data/file", 0o640, b"content\n")
                .owned_by(1001, 1001),
        );
    node.import(image.oci()).await;
    let mut config = inside(sh(
        "a",
        "stat -c '%u %g %a' /data; cat /data/file; echo x > /data/x",
    ));
    config.image.as_mut().unwrap().image = "localhost/volume:1".into();
    config.security().run_as_username = "alice".into();
    config.security().readonly_rootfs = true;
    assert_eq!(
        node.output_of(&one, &config).await,
        "1001 1001 750\ncontent\n"
    );
    node.finish().await;
}
