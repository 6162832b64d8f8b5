//! Images: what is imported, what is refused, and that nothing of it goes where it should not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use carpel_integration::image::{self, BUSYBOX, Image, Layer, Packing};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{self, ImageSpec};
use carpel_integration::{TestNode, bin_dir, sh};
use serde_json::{Value, json};
use tonic::Code;

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    })
}

async fn status(node: &TestNode, image: &str) -> Option<v1::Image> {
    let request = v1::ImageStatusRequest {
        image: spec(image),
        verbose: false,
    };
    node.cri
        .images()
        .image_status(request)
        .await
        .unwrap()
        .into_inner()
        .image
}

/// What a verbose status adds.
async fn info(node: &TestNode, image: &str) -> Value {
    let request = v1::ImageStatusRequest {
        image: spec(image),
        verbose: true,
    };
    let response = node.cri.images().image_status(request).await.unwrap();
    serde_json::from_str(&response.into_inner().info["info"]).expect("JSON")
}

async fn list(node: &TestNode) -> Vec<v1::Image> {
    let request = v1::ListImagesRequest::default();
    node.cri
        .images()
        .list_images(request)
        .await
        .unwrap()
        .into_inner()
        .images
}

async fn remove(node: &TestNode, image: &str) {
    let request = v1::RemoveImageRequest { image: spec(image) };
    node.cri.images().remove_image(request).await.unwrap();
}

/// Every file below the daemon's root, with its size: what a refused import must not change.
fn footprint(node: &TestNode) -> BTreeMap<PathBuf, u64> {
    fn walk(dir: &Path, files: &mut BTreeMap<PathBuf, u64>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                walk(&path, files);
            } else {
                files.insert(path, metadata.len());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(&node.dir().join("root"), &mut files);
    files
}

#[tokio::test]
async fn an_imported_image_is_listed_found_and_removed() {
    let mut node = TestNode::builder().no_image().start().await;
    assert!(list(&node).await.is_empty());
    assert!(status(&node, BUSYBOX).await.is_none());
    let made = Image::busybox();
    let imported = node.import(made.oci()).await;
    assert_eq!(imported.len(), 1);
    assert_eq!(imported[0].id, made.id());
    assert_eq!(imported[0].tags, [BUSYBOX]);
    assert!(imported[0].size > 1 << 20);

    let found = status(&node, BUSYBOX).await.expect("the image");
    assert_eq!(found.id, made.id());
    assert_eq!(found.repo_tags, [BUSYBOX]);
    assert!(found.size > 0);
    for name in [made.id(), made.id().replace("sha256:", "")] {
        assert_eq!(
            status(&node, &name).await.expect("by its id").id,
            made.id(),
            "{name}"
        );
    }
    let written = &info(&node, BUSYBOX).await["imageSpec"];
    assert_eq!(written["config"]["Cmd"], made.config["Cmd"]);
    assert_eq!(written["config"]["Env"], made.config["Env"]);
    assert_eq!(written["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    assert_eq!(list(&node).await.len(), 1);
    let info = node
        .cri
        .images()
        .image_fs_info(v1::ImageFsInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let usage = &info.image_filesystems[0];
    assert!(usage.used_bytes.as_ref().unwrap().value > 1 << 20);
    assert!(usage.inodes_used.as_ref().unwrap().value > 0);
    let mountpoint = &usage.fs_id.as_ref().unwrap().mountpoint;
    assert!(
        Path::new(mountpoint).starts_with(node.dir().join("root")),
        "{mountpoint}"
    );

    remove(&node, BUSYBOX).await;
    remove(&node, BUSYBOX).await;
    assert!(list(&node).await.is_empty());
    assert!(status(&node, &made.id()).await.is_none());
    node.finish().await;
}

#[tokio::test]
async fn every_kind_of_archive_and_packing_gives_the_same_files() {
    let mut node = TestNode::builder().no_image().start().await;
    let made = |tag: &str, packing| Image::busybox().tagged(tag).packed(packing);
    node.import(made("localhost/oci:gzip", Packing::Gzip).oci())
        .await;
    node.import(made("localhost/oci:zstd", Packing::Zstd).oci())
        .await;
    node.import(made("localhost/oci:plain", Packing::Plain).oci())
        .await;
    node.import(made("localhost/docker:plain", Packing::Gzip).docker())
        .await;
    // One configuration, one image: the packing of its layers is not part of what it is.
    let images = list(&node).await;
    assert_eq!(images.len(), 1, "{images:?}");
    assert_eq!(images[0].repo_tags.len(), 4);
    let pod = node.run_pod(&node.pod("one")).await;
    for (n, tag) in ["oci:gzip", "oci:zstd", "oci:plain", "docker:plain"]
        .into_iter()
        .enumerate()
    {
        let mut config = sh(
            &format!("c{n}"),
            "cat /etc/replaced /www/index.html; test -e /etc/deleted || echo deleted",
        );
        config.image.as_mut().unwrap().image = format!("localhost/{tag}");
        assert_eq!(
            node.output_of(&pod, &config).await,
            "from the second layer\nhello from a pod\ndeleted\n"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn an_archive_may_hold_several_images_and_be_compressed_itself() {
    let mut node = TestNode::builder().no_image().start().await;
    let (a, b) = (Image::tiny("localhost/a:1"), Image::tiny("localhost/b:1"));
    let mut files = a.build().blobs();
    files.extend(b.build().blobs());
    let manifest = |image: &Image| {
        let manifest = image.build().manifest;
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image::digest(&manifest),
            "size": manifest.len(),
            "annotations": { "io.containerd.image.name": image.tags[0], "org.opencontainers.image.ref.name": image.tags[0] },
        })
    };
    files.insert(
        "index.json".into(),
        json!({ "schemaVersion": 2, "manifests": [manifest(&a), manifest(&b)] })
            .to_string()
            .into_bytes(),
    );
    files.insert(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    );
    assert_eq!(node.import(image::archive(&files)).await.len(), 2);
    assert_eq!(list(&node).await.len(), 2);
    node.finish().await;
}

#[tokio::test]
async fn layers_are_unpacked_exactly() {
    let mut node = TestNode::start().await;
    let image = Image::busybox()
        .tagged("localhost/exact:1")
        .layer(
            Layer::default()
                .dir("x", 0o2755)
                .owned_by(7, 8)
                .changed_at(1_234_567_890)
                .file("x/set-id", 0o4755, b"s")
                .owned_by(9, 10)
                .file("x/one", 0o600, b"content")
                .changed_at(1_111_111_111)
                .hard_link("x/two", "x/one")
                .symlink("x/link", "../../../outside/../etc/passwd")
                .fifo("x/fifo")
                .file("x/attr", 0o644, b"")
                .xattr("user.kept", b"value")
                .xattr("security.capability", b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
                .xattr("trusted.overlay.opaque", b"y")
                .dir("hidden", 0o755)
                .file("hidden/below", 0o644, b"")
                .file("kept/below", 0o644, b"by a parent that no entry names"),
        )
        .layer(Layer::default().dir("hidden", 0o755).opaque("hidden").file("hidden/above", 0o644, b""));
    node.import(image.oci()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    config.image.as_mut().unwrap().image = "localhost/exact:1".into();
    let id = node.start_container(&pod, &config).await;
    let script = "stat -c '%n %a %u:%g %Y' /x /x/set-id /x/one; stat -c %h /x/two; cat /x/two; echo; \
        readlink /x/link; stat -c %F /x/fifo; ls /hidden; cat /kept/below; echo; stat -c %a /kept";
    assert_eq!(
        node.exec(&id, script).await,
        "/x 2755 7:8 1234567890\n/x/set-id 4755 9:10 1700000000\n/x/one 600 0:0 1111111111\n2\ncontent\n\
         ../../../outside/../etc/passwd\nfifo\nabove\nby a parent that no entry names\n755\n"
    );
    let file = format!("/proc/{}/root/x/attr", node.container_pid(&id));
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(&file, "user.kept", &mut value[..]).expect("user.kept");
    assert_eq!(&value[..length], b"value");
    assert_eq!(
        rustix::fs::getxattr(&file, "security.capability", &mut value[..]),
        Ok(20)
    );
    assert!(rustix::fs::getxattr(&file, "trusted.overlay.opaque", &mut value[..]).is_err());
    node.finish().await;
}

#[tokio::test]
async fn layers_are_shared_and_go_with_the_last_image_that_has_them() {
    let mut node = TestNode::builder().no_image().start().await;
    let empty = footprint(&node);
    node.import(Image::busybox().oci()).await;
    let one: u64 = footprint(&node).values().sum();
    let second = Image::busybox()
        .tagged("localhost/more:1")
        .layer(Layer::default().file("more", 0o644, b"x"));
    node.import(second.oci()).await;
    let both: u64 = footprint(&node).values().sum();
    assert!(
        both < one + (one >> 2),
        "{one} bytes for one image, {both} for two"
    );
    remove(&node, BUSYBOX).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("a", "cat /more /www/index.html");
    config.image.as_mut().unwrap().image = "localhost/more:1".into();
    assert_eq!(node.output_of(&pod, &config).await, "xhello from a pod\n");
    node.remove_pods().await;
    remove(&node, "localhost/more:1").await;
    let left: Vec<_> = footprint(&node)
        .into_iter()
        .filter(|(path, size)| !empty.contains_key(path) && *size > 4096)
        .collect();
    assert!(left.is_empty(), "{left:?}");
    node.finish().await;
}

#[tokio::test]
async fn an_archive_that_lies_is_refused_whole() {
    let node = TestNode::builder().no_image().start().await;
    let before = footprint(&node);
    let good = Image::busybox().oci();
    let files = || {
        let built = Image::busybox().build();
        let mut files = built.blobs();
        let digest = image::digest(&built.manifest);
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": built.manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": "localhost/bad:1" },
        }] });
        files.insert("index.json".into(), index.to_string().into_bytes());
        files.insert(
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        (built, files)
    };
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("no tar", b"this is not an archive".repeat(100)),
        ("cut off", good[..good.len() / 2].to_vec()),
        (
            "no image",
            image::archive(&BTreeMap::from([("readme".to_owned(), b"x".to_vec())])),
        ),
    ];
    // A layer's bytes are not those of its digest.
    let (built, mut broken) = files();
    let name = |blob: &[u8]| {
        format!(
            "blobs/sha256/{}",
            image::digest(blob).replace("sha256:", "")
        )
    };
    broken.insert(name(&built.layers[1]), built.layers[0].clone());
    cases.push(("another layer's bytes", image::archive(&broken)));
    // A layer is missing.
    let (built, mut broken) = files();
    broken.remove(&name(&built.layers[0]));
    cases.push(("a missing layer", image::archive(&broken)));
    // The right digest of the compressed bytes, the wrong one of what is in them.
    let mut lying = Image::busybox().build();
    let text = String::from_utf8(lying.config.clone()).unwrap();
    let at = text.find("diff_ids\":[\"sha256:").unwrap() + "diff_ids\":[\"sha256:".len();
    lying.config = format!("{}{}{}", &text[..at], "0".repeat(64), &text[at + 64..]).into_bytes();
    let mut manifest: serde_json::Value = serde_json::from_slice(&lying.manifest).unwrap();
    manifest["config"]["digest"] = json!(image::digest(&lying.config));
    manifest["config"]["size"] = json!(lying.config.len());
    lying.manifest = manifest.to_string().into_bytes();
    let mut broken = lying.blobs();
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": image::digest(&lying.manifest), "size": lying.manifest.len(),
    }] });
    broken.insert("index.json".into(), index.to_string().into_bytes());
    broken.insert(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    );
    cases.push(("a wrong diff id", image::archive(&broken)));
    // A digest that is a path.
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:../../../../etc/passwd", "size": 10,
    }] });
    cases.push((
        "a path as digest",
        image::archive(&BTreeMap::from([
            ("index.json".to_owned(), index.to_string().into_bytes()),
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
        ])),
    ));

    for (what, archive) in cases {
        let status = node.cri.import(archive).await.expect_err(what);
        assert!(
            matches!(status.code(), Code::InvalidArgument | Code::DataLoss),
            "{what}: {status}"
        );
        assert!(!status.message().is_empty());
        assert!(list(&node).await.is_empty(), "{what}");
        let left: Vec<_> = footprint(&node)
            .into_iter()
            .filter(|(path, _)| !before.contains_key(path))
            .collect();
        assert!(left.is_empty(), "{what} leaves {left:?}");
    }
    // And the daemon is as good as before.
    assert_eq!(node.cri.import(good).await.unwrap().len(), 1);
    remove(&node, BUSYBOX).await;
    node.finish().await;
}

#[tokio::test]
async fn no_entry_of_a_layer_leads_out_of_it() {
    let mut node = TestNode::start().await;
    let canary = node.dir().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "untouched").unwrap();
    let to = canary.display().to_string();
    let up = format!("../../../../../../../../../../..{to}");
    let hostile: Vec<Layer> = vec![
        Layer::default().file(&format!("{up}/a"), 0o644, b"x"),
        Layer::default().file(&format!("{to}/b"), 0o644, b"x"),
        Layer::default()
            .symlink("out", &to)
            .file("out/c", 0o644, b"x"),
        Layer::default()
            .symlink("out", &up)
            .dir("out", 0o777)
            .file("out/d", 0o644, b"x"),
        Layer::default()
            .symlink("out", &format!("{to}/file"))
            .file("out", 0o777, b"replaced"),
        Layer::default()
            .hard_link("linked", &format!("{to}/file"))
            .file("linked", 0o777, b"x"),
        Layer::default().hard_link("linked", &format!("{up}/file")),
        Layer::default()
            .symlink("out", &to)
            .hard_link("linked", "out/file"),
        Layer::default().symlink("out", &to).whiteout("out/file"),
        Layer::default().symlink("out", &to).opaque("out"),
        Layer::default().whiteout(".."),
        Layer::default().file(".wh...", 0o644, b""),
        Layer::default()
            .symlink("a", ".")
            .symlink("a/b", &to)
            .file("a/b/e", 0o644, b"x"),
    ];
    for (n, layer) in hostile.into_iter().enumerate() {
        let tag = format!("localhost/hostile:{n}");
        let image = Image::busybox().tagged(&tag).layer(layer);
        // Refused or kept inside: both are right.
        let _ = node.cri.import(image.oci()).await;
        let names: Vec<_> = fs::read_dir(&canary)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["file"], "layer {n}");
        assert_eq!(
            fs::read_to_string(canary.join("file")).unwrap(),
            "untouched",
            "layer {n}"
        );
        let links =
            std::os::unix::fs::MetadataExt::nlink(&fs::metadata(canary.join("file")).unwrap());
        assert_eq!(links, 1, "layer {n}");
    }
    assert!(status(&node, BUSYBOX).await.is_some());
    // What was taken counts as wanted.
    node.import(Image::busybox().oci()).await;
    node.finish().await;
}

#[tokio::test]
async fn the_command_line_imports_a_file_and_its_standard_input() {
    let node = TestNode::builder().no_image().start().await;
    let file = node.dir().join("image.tar");
    fs::write(&file, Image::busybox().oci()).unwrap();
    let run = |from: &str, input: Stdio| {
        Command::new(bin_dir().join("carpel"))
            .args(["image", "import", from, "--endpoint", &node.endpoint()])
            .stdin(input)
            .output()
            .unwrap()
    };
    let output = run(&file.display().to_string(), Stdio::null());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(
        text.starts_with("IMAGE") && text.contains(BUSYBOX),
        "{text}"
    );
    assert!(
        output.stderr.is_empty(),
        "no progress where there is no terminal"
    );
    remove(&node, BUSYBOX).await;
    let output = run("-", fs::File::open(&file).unwrap().into());
    assert!(output.status.success(), "{output:?}");
    assert!(status(&node, BUSYBOX).await.is_some());

    let output = run("/etc/hostname", Stdio::null());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.starts_with("carpel: ") && text.contains("/etc/hostname"),
        "{text}"
    );
    remove(&node, BUSYBOX).await;
    node.finish().await;
}

#[tokio::test]
async fn the_command_line_says_what_to_do_without_a_daemon() {
    let output = Command::new(bin_dir().join("carpel"))
        .args([
            "image",
            "import",
            "/etc/hostname",
            "--endpoint",
            "unix:///nonexistent/carpel.sock",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "carpel: no carpel daemon at unix:///nonexistent/carpel.sock; start one with `carpel serve` (or systemctl start carpel), or name another socket with --endpoint\n"
    );
}

#[tokio::test]
async fn images_outlive_the_daemon() {
    let mut node = TestNode::start().await;
    let before = list(&node).await;
    node.crash().await;
    assert_eq!(list(&node).await, before);
    let pod = node.run_pod(&node.pod("one")).await;
    assert_eq!(node.output_of(&pod, &sh("a", "echo fine")).await, "fine\n");
    node.finish().await;
}

#[tokio::test]
async fn a_container_keeps_its_image_alive() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let created = node
        .try_create(&pod, &sh("b", "cat /www/index.html"))
        .await
        .unwrap();
    remove(&node, BUSYBOX).await;
    assert_eq!(
        node.exec(&id, "cat /www/index.html").await,
        "hello from a pod\n"
    );
    node.try_start(&created).await.unwrap();
    assert_eq!(node.wait_exit(&created).await.exit_code, 0);
    node.finish().await;
}
