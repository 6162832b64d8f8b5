//! Images that are mounted in a container: `Mount.image` and `Mount.image_sub_path`.

use std::os::unix::process::ExitStatusExt;

use carpel_integration::image::{BUSYBOX, Image, Layer};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{
    ContainerConfig, ImageSpec, Mount, MountPropagation, RemoveImageRequest,
};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};
use tonic::Code;

use crate::{refused, userns};

const DATA: &str = "localhost/data:1";

/// Two layers, so that the upper hides something of the lower; links that lead inside and out.
fn data() -> Image {
    let image = Image::tiny(DATA);
    let lower = Layer::default()
        .dir("model", 0o755)
        .dir("model/deep", 0o755)
        .file("model/deep/weights", 0o644, b"lower\n")
        .file("model/gone", 0o644, b"")
        .file("run", 0o755, b"#!/bin/sh\necho ran\n");
    let upper = Layer::default()
        .file("model/deep/weights", 0o644, b"upper\n")
        .whiteout("model/gone")
        .symlink("inside", "/model")
        .symlink("outside", "../../../../../../../../../../etc");
    image.layer(lower).layer(upper)
}

fn volume(image: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: "/vol".into(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.into(),
            ..ImageSpec::default()
        }),
        image_sub_path: sub_path.into(),
        ..Mount::default()
    }
}

fn with(mut config: ContainerConfig, mount: Mount) -> ContainerConfig {
    config.mounts.push(mount);
    config
}

async fn node_with_data() -> TestNode {
    let mut node = TestNode::start().await;
    node.import(data().oci()).await;
    node
}

#[tokio::test]
async fn an_image_is_there_to_read_and_to_run_and_not_to_write() {
    let node = node_with_data().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "cat /vol/hello; echo; cat /vol/model/deep/weights; ls /vol/model; /vol/run; \
                  touch /vol/new 2>&1; rm /vol/run 2>&1; mount -o remount,rw /vol 2>/dev/null; true";
    let config = with(sh("a", script), volume(DATA, ""));
    let output = node.output_of(&pod, &config).await;
    let read_only = "Read-only file system";
    let expected = format!(
        "{DATA}\nupper\ndeep\nran\ntouch: /vol/new: {read_only}\nrm: can't remove '/vol/run': {read_only}\n"
    );
    assert_eq!(output, expected);
    // Two containers of a pod, by tag and by id, and the container's own image.
    for image in [data().id(), BUSYBOX.to_owned()] {
        let config = with(sh("b", "ls /vol | head -n 1"), volume(&image, ""));
        assert!(!node.output_of(&pod, &config).await.is_empty());
        let mut status = node.containers().await;
        status.retain(|container| container.metadata.as_ref().unwrap().name == "b");
        node.try_remove(&status[0].id).await.unwrap();
    }
    // The host's mount table has the pod's one line.
    assert_eq!(host::mounts_below(node.dir()).len(), 1);
    node.finish().await;
}

/// A kubelet (1.36) fills `image_sub_path` for the other volumes of a pod with an image volume too, with the
/// subPath that it has led to already in `host_path`.
#[tokio::test]
async fn a_sub_path_beside_a_host_path_means_nothing() {
    let node = node_with_data().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let folder = node.dir().join("volume");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), "of the host\n").unwrap();
    let mut config = with(
        sh("a", "cat /host/file; cat /vol/deep/weights"),
        volume(DATA, "model"),
    );
    config.mounts.push(Mount {
        container_path: "/host".into(),
        host_path: folder.to_str().unwrap().into(),
        image_sub_path: "volume".into(),
        ..Mount::default()
    });
    let output = node.output_of(&pod, &config).await;
    assert_eq!(output, "of the host\nupper\n");
    node.finish().await;
}

#[tokio::test]
async fn mount_options_hold_for_images() {
    let node = node_with_data().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "/vol/run 2>&1; grep ' /vol ' /proc/self/mountinfo | cut -d' ' -f6";
    let mut mount = volume(DATA, "");
    mount.mount_options = vec!["noexec".into(), "nosuid".into()];
    let id = node
        .start_container(&pod, &with(sh("a", script), mount))
        .await;
    node.wait_exit(&id).await;
    let output = node.log(&pod, "a").stdout();
    assert!(output.contains("Permission denied"), "{output}");
    assert!(
        output.ends_with("ro,nosuid,nodev,noexec,relatime\n"),
        "{output}"
    );
    node.finish().await;
}

#[tokio::test]
async fn image_sub_path_is_a_folder_of_the_image_and_no_other() {
    let node = node_with_data().await;
    let pod = node.run_pod(&node.pod("one")).await;
    for (name, sub_path, file) in [
        ("one", "model", "deep/weights"),
        ("two", "model/deep", "weights"),
        ("link", "inside/deep/", "weights"),
    ] {
        let script = format!("cat /vol/{file}; ls -d /vol/../hello /vol/hello 2>/dev/null; true");
        let config = with(sh(name, &script), volume(DATA, sub_path));
        assert_eq!(node.output_of(&pod, &config).await, "upper\n", "{sub_path}");
    }
    let before = node.containers().await.len();
    for (sub_path, reason) in [
        ("none", "none: No such file or directory"),
        ("model/gone", "model/gone: No such file or directory"),
        ("outside", "outside: No such file or directory"),
        ("run", "run: Not a directory"),
    ] {
        let config = with(sleeper("bad"), volume(DATA, sub_path));
        let outcome = node.try_create(&pod, &config).await;
        let text = outcome.as_ref().unwrap_err().message().to_owned();
        // The kubelet looks at how it begins.
        assert!(text.starts_with("ImageVolumeMountFailed: "), "{text}");
        assert!(
            text.contains("config.mounts[0].image_sub_path: image sha256:"),
            "{text}"
        );
        refused(outcome, Code::InvalidArgument, reason);
    }
    assert_eq!(node.containers().await.len(), before);
    node.finish().await;
}

#[tokio::test]
async fn wrong_image_mounts_are_named() {
    let node = node_with_data().await;
    let pod = node.run_pod(&node.pod("one")).await;
    type Case = (fn(&mut Mount), &'static str);
    let cases: [Case; 7] = [
        (
            |m| m.readonly = false,
            "config.mounts[0].readonly: must be true for an image",
        ),
        (
            |m| m.set_propagation(MountPropagation::PropagationBidirectional),
            "config.mounts[0].propagation: PROPAGATION_BIDIRECTIONAL is not for images",
        ),
        (
            |m| m.host_path = "/srv".into(),
            "config.mounts[0].host_path: must be empty",
        ),
        (
            |m| m.image_sub_path = "../etc".into(),
            "config.mounts[0].image_sub_path: \"../etc\"",
        ),
        (
            |m| m.image_sub_path = "/etc".into(),
            "config.mounts[0].image_sub_path: \"/etc\"",
        ),
        (
            |m| m.image = Some(ImageSpec::default()),
            "config.mounts[0].image.image: must not be empty",
        ),
        (
            |m| m.container_path = "/proc".into(),
            "config.mounts[0].container_path: \"/proc\"",
        ),
    ];
    for (spoil, text) in cases {
        let mut mount = volume(DATA, "");
        spoil(&mut mount);
        let outcome = node.try_create(&pod, &with(sleeper("bad"), mount)).await;
        refused(outcome, Code::InvalidArgument, text);
    }
    let outcome = node
        .try_create(&pod, &with(sleeper("bad"), volume("localhost/none:1", "")))
        .await;
    let text = outcome.as_ref().unwrap_err().message().to_owned();
    assert!(text.starts_with("ImageVolumeMountFailed: "), "{text}");
    refused(
        outcome,
        Code::NotFound,
        "config.mounts[0].image: image localhost/none:1 not found",
    );
    assert!(node.containers().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn status_tells_the_image_of_a_mount() {
    let node = node_with_data().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut mount = volume(DATA, "model");
    mount.set_propagation(MountPropagation::PropagationHostToContainer);
    let config = with(sleeper("a").mount(node.dir(), "/host"), mount.clone());
    let id = node.start_container(&pod, &config).await;
    let mounts = node.status(&id).await.mounts;
    assert_eq!(mounts[0], config.mounts[0]);
    let image = mounts[1].image.as_ref().unwrap();
    assert_eq!(image.image, DATA);
    assert_eq!(image.image_ref, data().id());
    mount.image.as_mut().unwrap().image_ref = data().id();
    assert_eq!(mounts[1], mount);
    node.finish().await;
}

#[tokio::test]
async fn layers_stay_as_long_as_a_container_mounts_them() {
    let mut node = node_with_data().await;
    let layers = node.dir().join("root/layers");
    let count = || std::fs::read_dir(&layers).unwrap().count();
    let remove = async |node: &TestNode| {
        let image = ImageSpec {
            image: DATA.into(),
            ..ImageSpec::default()
        };
        let request = RemoveImageRequest { image: Some(image) };
        node.cri.images().remove_image(request).await.unwrap();
    };
    let all = count();
    let pod = node.run_pod(&node.pod("one")).await;
    let started = with(sleeper("a"), volume(DATA, ""));
    let started = node.start_container(&pod, &started).await;
    let created = with(sh("b", "cat /vol/deep/weights"), volume(DATA, "model"));
    let created = node.try_create(&pod, &created).await.unwrap();
    remove(&node).await;
    assert_eq!(count(), all);
    // The daemon dies: the running container does not notice, the created one can still be started.
    node.crash().await;
    assert_eq!(count(), all);
    assert_eq!(
        node.exec(&started, "cat /vol/model/deep/weights").await,
        "upper\n"
    );
    node.try_start(&created).await.unwrap();
    assert_eq!(node.wait_exit(&created).await.exit_code, 0);
    assert_eq!(node.log(&pod, "b").stdout(), "upper\n");
    let image = node.status(&created).await.mounts[0].image.clone().unwrap();
    assert_eq!(image.image_ref, data().id());
    // A container anew needs the image.
    let outcome = node
        .try_create(&pod, &with(sleeper("c"), volume(DATA, "")))
        .await;
    refused(outcome, Code::NotFound, "ImageVolumeMountFailed");
    for id in [&started, &created] {
        node.try_stop(id, 5).await.unwrap();
        node.try_remove(id).await.unwrap();
    }
    remove(&node).await;
    assert_eq!(count(), all - data().layers.len());
    node.finish().await;
}

#[tokio::test]
async fn the_daemon_may_die_while_volumes_are_mounted() {
    for name in carpel::failpoint::VOLUMES {
        let mut node = node_with_data().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(name)).await;
        let pod = node.run_pod(&node.pod("one")).await;
        let config = with(sh("a", "cat /vol/hello"), volume(DATA, ""));
        let mut id = node.try_create(&pod, &config).await;
        if let Ok(id) = &id {
            node.try_start(id).await.expect_err("the daemon dies");
        }
        assert_eq!(node.wait_daemon_end().await.signal(), Some(9), "{name}");
        node.start_daemon(None).await;
        if id.is_err() {
            id = node.try_create(&pod, &config).await;
        }
        let id = id.unwrap();
        node.try_start(&id).await.unwrap();
        assert_eq!(node.wait_exit(&id).await.exit_code, 0, "{name}");
        assert_eq!(node.log(&pod, "a").stdout(), DATA);
        node.finish().await;
    }
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing() {
    for name in carpel::failpoint::VOLUMES {
        let mut node = node_with_data().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(&format!("{name}:error"))).await;
        let pod = node.run_pod(&node.pod("one")).await;
        let config = with(sleeper("a"), volume(DATA, ""));
        let failed = match node.try_create(&pod, &config).await {
            Ok(id) => node.try_start(&id).await,
            Err(status) => Err(status),
        };
        refused(failed, Code::Internal, name);
        node.finish().await;
    }
}

#[tokio::test]
async fn a_pod_with_a_user_namespace_sees_the_owners_of_an_image() {
    let node = node_with_data().await;
    let pod = node.run_pod(&userns::pod(&node, "one")).await;
    for sub_path in ["", "model"] {
        let script = "stat -c '%u %g' /vol; find /vol -name weights | xargs cat; touch /vol/x 2>&1 | grep -o Read-only";
        let mut config = userns::inside(with(sh("a", script), volume(DATA, sub_path)));
        config.metadata.as_mut().unwrap().attempt = u32::from(sub_path.is_empty());
        let id = node.start_container(&pod, &config).await;
        node.wait_exit(&id).await;
        let output = node.log(&pod, "a").stdout();
        assert!(
            output.ends_with("0 0\nupper\nRead-only\n"),
            "{sub_path:?}: {output}"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn a_privileged_container_cannot_make_an_image_writable() {
    let node = node_with_data().await;
    let mut config = node.pod("one");
    config.security().privileged = true;
    let pod = node.run_pod(&config).await;
    let mut config = with(
        sh(
            "a",
            "mount -o remount,bind,rw /vol; mount -o remount,rw /vol; echo x > /vol/hello; cat /vol/hello",
        ),
        volume(DATA, ""),
    );
    config.security().privileged = true;
    let id = node.start_container(&pod, &config).await;
    node.wait_exit(&id).await;
    assert_eq!(node.log(&pod, "a").stdout(), DATA);
    node.finish().await;
}
