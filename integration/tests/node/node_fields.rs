//! Every field of what the node tells of its images and of itself, as `status_fields` has those of pods and containers.

use std::path::Path;

use carpel_integration::image::Image;
use carpel_integration::v1::{self, ImageSpec};
use carpel_integration::{TestNode, host};
use serde_json::json;
use tonic::Code;

use crate::refused;
use crate::status_fields::now;

#[tokio::test]
async fn image_and_image_status() {
    let mut node = TestNode::builder().no_image().start().await;
    let made = Image::tiny("test.example/one:1").set("User", json!("1000:5"));
    node.import(made.oci()).await;
    let named = Image::tiny("test.example/two:2").set("User", json!("bob"));
    node.import(named.oci()).await;
    let mut images = node.cri.images();
    let request = v1::ListImagesRequest::default();
    let mut listed = images
        .list_images(request)
        .await
        .unwrap()
        .into_inner()
        .images;
    listed.sort_by(|a, b| a.repo_tags.cmp(&b.repo_tags));
    for (image, made, tag, uid, username) in [
        (&listed[0], &made, "test.example/one:1", Some(1000), ""),
        (&listed[1], &named, "test.example/two:2", None, "bob"),
    ] {
        let expected = v1::Image {
            id: made.id(),
            repo_tags: vec![tag.to_owned()],
            repo_digests: image.repo_digests.clone(),
            size: image.size,
            uid: uid.map(|value| v1::Int64Value { value }),
            username: username.to_owned(),
            spec: Some(ImageSpec {
                image: made.id(),
                ..ImageSpec::default()
            }),
            pinned: false,
        };
        assert_eq!(*image, expected);
        assert!(image.size > 0, "no image to the kubelet else");
        for name in [tag, &made.id()] {
            let request = v1::ImageStatusRequest {
                image: Some(ImageSpec {
                    image: name.to_owned(),
                    ..ImageSpec::default()
                }),
                verbose: true,
            };
            let status = images.image_status(request).await.unwrap().into_inner();
            assert_eq!(status.image, Some(expected.clone()));
            assert_eq!(status.info.keys().collect::<Vec<_>>(), ["info"]);
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn image_fs_info() {
    let node = TestNode::start().await;
    let before = now();
    let mut images = node.cri.images();
    let info = images.image_fs_info(v1::ImageFsInfoRequest {}).await;
    let info = info.unwrap().into_inner();
    let [image] = &info.image_filesystems[..] else {
        panic!("one file system: {info:?}");
    };
    let [writable] = &info.container_filesystems[..] else {
        panic!("one file system: {info:?}");
    };
    // The same: a kubelet takes them for two when they are not.
    assert_eq!(image.fs_id, writable.fs_id);
    let place = image.fs_id.clone().expect("where").mountpoint;
    assert!(Path::new(&place).is_dir());
    let number = |value: Option<v1::UInt64Value>| value.expect("a number").value;
    assert!(number(image.used_bytes) > 1 << 20 && number(image.inodes_used) > 10);
    assert_eq!(
        number(writable.used_bytes) + number(writable.inodes_used),
        0
    );
    for usage in [image, writable] {
        assert!((before..=now()).contains(&usage.timestamp));
    }
    node.finish().await;
}

#[tokio::test]
async fn status_and_runtime_config() {
    let node = TestNode::start().await;
    let mut runtime = node.cri.runtime();
    let status = runtime.status(v1::StatusRequest { verbose: true }).await;
    let status = status.unwrap().into_inner();
    let conditions = status.status.expect("conditions").conditions;
    let conditions: Vec<_> = conditions
        .iter()
        .map(|it| (it.r#type.as_str(), it.status, &*it.reason, &*it.message))
        .collect();
    let good = [
        ("RuntimeReady", true, "", ""),
        ("NetworkReady", true, "", ""),
    ];
    assert_eq!(conditions, good);
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).expect("JSON");
    assert!(config.is_object());
    // The default has no name, and what it can do must be with it.
    let [handler] = &status.runtime_handlers[..] else {
        panic!("one handler: {:?}", status.runtime_handlers);
    };
    assert_eq!(handler.name, "");
    let features = handler.features.expect("features");
    assert_eq!(
        features.recursive_read_only_mounts,
        host::kernel() >= (5, 12)
    );
    assert!(
        status
            .features
            .expect("features")
            .supplemental_groups_policy
    );
    let quiet = runtime.status(v1::StatusRequest { verbose: false }).await;
    assert!(quiet.unwrap().into_inner().info.is_empty());
    let config = runtime.runtime_config(v1::RuntimeConfigRequest {}).await;
    let linux = config.unwrap().into_inner().linux.expect("of Linux");
    assert_eq!(linux.cgroup_driver(), v1::CgroupDriver::Cgroupfs);
    node.finish().await;
}

#[tokio::test]
async fn checkpoint_container_checkpoint_pod_and_restore_pod() {
    let node = TestNode::builder().no_image().start().await;
    let mut runtime = node.cri.runtime();
    let request = v1::CheckpointContainerRequest::default();
    let outcome = runtime.checkpoint_container(request).await;
    let why = "CheckpointContainer is not supported: carpel cannot checkpoint";
    refused(outcome, Code::Unimplemented, why);
    let outcome = runtime
        .checkpoint_pod(v1::CheckpointPodRequest::default())
        .await;
    refused(
        outcome,
        Code::Unimplemented,
        "CheckpointPod is not supported",
    );
    let outcome = runtime.restore_pod(v1::RestorePodRequest::default()).await;
    refused(outcome, Code::Unimplemented, "RestorePod is not supported");
    node.finish().await;
}
