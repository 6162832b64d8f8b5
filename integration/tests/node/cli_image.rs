//! `carpel image` and `carpel df`: names, pins, who uses what, and clearing away.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use carpel_integration::cli::{Said, carpel};
use carpel_integration::image::{BUSYBOX, Image, Layer, Packing, archive, digest};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{self, ImageSpec, Mount};
use carpel_integration::{TestNode, sh};
use serde_json::json;

const CLI: &str = "localhost/tiny:1";

fn run(node: &TestNode, args: &[&str]) -> Said {
    Said::by(carpel(&node.endpoint(), args))
}

/// A command that must succeed.
#[track_caller]
fn done(node: &TestNode, args: &[&str]) {
    let _said = run(node, args).ok();
}

/// The tags of all images, and whether they are pinned, as the kubelet sees them.
async fn listed(node: &TestNode) -> Vec<(Vec<String>, bool)> {
    let request = v1::ListImagesRequest::default();
    let answer = node.cri.images().list_images(request).await;
    let images = answer.expect("a list").into_inner().images;
    let mut listed: Vec<_> = images
        .into_iter()
        .map(|image| (image.repo_tags, image.pinned))
        .collect();
    listed.sort();
    listed
}

fn tags(tags: &[&str]) -> Vec<String> {
    tags.iter().map(|&tag| tag.to_owned()).collect()
}

/// How many layers are there.
fn layers(node: &TestNode) -> usize {
    let folder = node.dir().join("root/layers");
    std::fs::read_dir(folder).expect("layers").count()
}

#[tokio::test]
async fn an_image_gets_names_and_loses_them_one_by_one() {
    let mut node = TestNode::builder().no_image().start().await;
    let (one, other) = (Image::tiny(CLI), Image::tiny("localhost/other:1"));
    node.import(one.oci()).await;
    node.import(other.oci()).await;
    let said = run(&node, &["image", "tag", CLI, "localhost/b", "c:2"]).ok();
    assert_eq!(
        said,
        "docker.io/library/c:2\nlocalhost/b:latest\nlocalhost/tiny:1\n"
    );
    // A tag that another image has moves, and is found after a restart where it went.
    let short = &other.id()["sha256:".len()..][..12];
    let json = run(&node, &["image", "tag", "-o", "json", short, "localhost/b"]).json();
    assert_eq!(json["tags"][0], "localhost/b:latest");
    node.crash().await;
    let table = run(&node, &["image", "ls"]).ok();
    assert_eq!(table.matches(short).count(), 2, "{table}");
    let all = [
        (tags(&["docker.io/library/c:2", CLI]), false),
        (tags(&["localhost/b:latest", "localhost/other:1"]), false),
    ];
    assert_eq!(listed(&node).await, all);

    done(&node, &["image", "rm", "c:2"]);
    assert_eq!(listed(&node).await[1].0, [CLI]);
    done(&node, &["image", "rm", CLI, short]);
    assert!(listed(&node).await.is_empty());
    assert_eq!(layers(&node), 0);
    node.finish().await;
}

#[tokio::test]
async fn wrong_names_say_what_to_do() {
    let mut node = TestNode::builder().no_image().start().await;
    node.import(Image::tiny(CLI).oci()).await;
    for (args, part) in [
        (
            &["tag", "nothing", "a:1"][..],
            "no image \"nothing\"; `carpel images` shows",
        ),
        (&["tag", CLI, "Not A Name"], "tags"),
        (&["rm", "nothing"], "no image \"nothing\""),
        (&["pin", "nothing"], "no image \"nothing\""),
        (&["inspect", "nothing"], "nothing"),
        (
            &["tag", CLI, &format!("a@sha256:{}", "0".repeat(64))],
            "a digest cannot be given to an image",
        ),
    ] {
        run(&node, &[&["image"][..], args].concat()).failed(1, part);
    }
    run(&node, &["image", "tag", CLI]).failed(2, "NAME");
    // Of images whose ids begin alike the longer beginning says which; one alone is enough.
    let mut beginnings = std::collections::BTreeMap::new();
    let (first, second) = (0..)
        .find_map(|n| {
            let image = Image::tiny(&format!("localhost/n:{n}"));
            let begin = image.id()["sha256:".len()..][..4].to_owned();
            beginnings
                .insert(begin, image.clone())
                .map(|old| (old, image))
        })
        .expect("two that begin alike");
    node.import(first.oci()).await;
    node.import(second.oci()).await;
    let begin = &first.id()["sha256:".len()..][..4];
    let said = run(&node, &["image", "rm", begin]);
    assert!(said.stderr.contains(&first.tags[0]) && said.stderr.contains(&second.id()));
    said.failed(1, "is the beginning of more than one image's id");
    let json = run(&node, &["image", "inspect", "-o", "json", CLI]).json();
    assert_eq!(json["image"]["repoTags"][0], CLI);
    done(&node, &["image", "prune"]);
    node.finish().await;
}

/// A node that pins all of localhost/kept, with busybox, and an image that is mounted.
async fn node_with_uses() -> TestNode {
    let config = "[image]\npinned = [\"localhost/kept:*\"]\n";
    let mut node = TestNode::builder().config(config).start().await;
    for name in ["localhost/kept:1", "localhost/free:1", "localhost/volume:1"] {
        node.import(Image::tiny(name).oci()).await;
    }
    node
}

#[tokio::test]
async fn prune_takes_what_nobody_uses() {
    let node = node_with_uses().await;
    let pod = node.run_pod(&node.pod("one")).await;
    // One that has exited is one that uses its image, and so is one that mounts it.
    let mut config = sh("exited", "true");
    config.mounts.push(Mount {
        container_path: "/volume".to_owned(),
        image: Some(ImageSpec {
            image: "localhost/volume:1".to_owned(),
            ..ImageSpec::default()
        }),
        readonly: true,
        ..Mount::default()
    });
    node.run_to_end(&pod, &config).await;
    let before = listed(&node).await;
    assert_eq!(before.len(), 4);

    let df = run(&node, &["df", "-v"]).ok();
    let line = |name: &str| {
        let found = df.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("{name}: {df}")).to_owned()
    };
    assert!(line("localhost/volume:1").ends_with("/exited"), "{df}");
    assert!(line(BUSYBOX).ends_with("/exited"), "{df}");
    assert!(line("localhost/kept:1").ends_with("(pinned)"), "{df}");
    assert!(!line("localhost/free:1").contains("exited"), "{df}");

    let dry = run(&node, &["image", "prune", "--dry-run"]).ok();
    assert!(dry.contains("localhost/free:1"), "{dry}");
    assert!(dry.contains("1 image would be removed"), "{dry}");
    assert_eq!(listed(&node).await, before);
    let json = run(&node, &["image", "prune", "-o", "json", "--dry-run"]).json();
    let freed = json["freed"].as_str().expect("a number").to_owned();
    let uses = run(&node, &["df", "-o", "json"]).json();
    assert_eq!(uses["imageUses"]["reclaimable"], freed.as_str());
    assert_ne!(freed, "0");
    let none = run(&node, &["image", "prune", "--untagged"]).ok();
    assert_eq!(none, "0 images removed, 0 B freed\n");

    let json = run(&node, &["image", "prune", "-o", "json"]).json();
    assert_eq!(json["images"][0]["tags"][0], "localhost/free:1");
    assert_eq!(json["freed"], freed.as_str());
    let kept = listed(&node).await;
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert_eq!(layers(&node), 4);
    // The containers are as they were: what they use can be used again.
    let again = node.start_container(&pod, &sleeper("again")).await;
    assert_eq!(
        node.exec(&again, "cat /www/index.html").await,
        "hello from a pod\n"
    );
    node.remove_pods().await;
    let said = run(&node, &["image", "prune"]).ok();
    assert!(said.contains("2 images removed"), "{said}");
    assert_eq!(listed(&node).await, [(tags(&["localhost/kept:1"]), true)]);
    done(&node, &["image", "rm", "--force", "localhost/kept:1"]);
    node.finish().await;
}

#[tokio::test]
async fn a_pinned_image_stays() {
    let mut node = node_with_uses().await;
    done(&node, &["image", "pin", "localhost/free:1"]);
    node.crash().await;
    let pinned = |listed: &[(Vec<String>, bool)]| -> Vec<String> {
        let pinned = listed.iter().filter(|(_, pinned)| *pinned);
        pinned.map(|(tags, _)| tags[0].clone()).collect()
    };
    let both = ["localhost/free:1", "localhost/kept:1"];
    assert_eq!(pinned(&listed(&node).await), both);
    let table = run(&node, &["images"]).ok();
    assert_eq!(table.matches("pinned").count(), 2, "{table}");
    done(&node, &["image", "prune"]);
    assert_eq!(listed(&node).await.len(), 2);
    for name in both {
        run(&node, &["image", "rm", name]).failed(1, "is pinned; `carpel image unpin");
    }
    run(&node, &["image", "unpin", "localhost/kept:1"]).failed(
        1,
        "is pinned by the daemon's configuration: image.pinned has \"localhost/kept:*\"",
    );
    // A name that fits the pattern pins the image that gets it, and frees the one that loses it.
    node.import(Image::busybox().oci()).await;
    done(&node, &["image", "tag", BUSYBOX, "localhost/kept:1"]);
    assert_eq!(pinned(&listed(&node).await), [BUSYBOX, "localhost/free:1"]);
    done(&node, &["image", "unpin", "localhost/free:1"]);
    done(&node, &["image", "prune"]);
    assert_eq!(listed(&node).await.len(), 1);
    // The kubelet is obeyed: it never asks for the removal of what is pinned, and a person who does through the CRI means it.
    let request = v1::RemoveImageRequest {
        image: Some(ImageSpec {
            image: Image::busybox().id(),
            ..ImageSpec::default()
        }),
    };
    node.cri
        .images()
        .remove_image(request)
        .await
        .expect("removed");
    assert!(listed(&node).await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn shared_layers_count_once_and_go_with_the_last_that_has_them() {
    let mut node = TestNode::start().await;
    let more = Image::busybox()
        .tagged("localhost/more:1")
        .layer(Layer::default().file("more", 0o644, &[7; 100_000]));
    node.import(more.oci()).await;
    let json = run(&node, &["df", "-o", "json"]).json();
    let number = |value: &serde_json::Value| -> u64 {
        value
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("a number")
    };
    let images = json["imageUses"]["images"].as_array().expect("images");
    let own: u64 = images.iter().map(|image| number(&image["unshared"])).sum();
    let all = number(&json["imageUses"]["reclaimable"]);
    assert!((100_000..200_000).contains(&own), "{own}");
    assert!(all > 1 << 20 && own < all, "{own} {all}");
    done(&node, &["image", "rm", BUSYBOX]);
    assert_eq!(layers(&node), 3);
    let json = run(&node, &["image", "prune", "-o", "json"]).json();
    assert_eq!(number(&json["freed"]), all);
    assert_eq!(layers(&node), 0);
    node.finish().await;
}

/// What is in an archive: names and bytes.
fn members(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(std::fs::File::open(archive).expect("an archive"));
    let mut members = BTreeMap::new();
    for entry in tar.entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("bytes");
        assert!(members.insert(path, bytes).is_none());
    }
    members
}

#[tokio::test]
async fn an_exported_image_is_the_same_bit_for_bit() {
    let mut node = TestNode::start().await;
    let more = Image::busybox()
        .tagged("localhost/more:1")
        .packed(Packing::Zstd)
        .layer(
            Layer::default()
                .file("one", 0o4755, &[7; 100_000])
                .owned_by(1000, 1001)
                .hard_link("two", "one")
                .file("empty", 0o644, b"")
                .xattr("user.x", b"y")
                .symlink("link", "one")
                .fifo("fifo")
                .whiteout("www/index.html"),
        );
    node.import(more.oci()).await;
    let (file, second) = (node.dir().join("a.tar"), node.dir().join("b.tar"));
    let export = |file: &Path| {
        let to = file.display().to_string();
        done(
            &node,
            &["image", "export", BUSYBOX, "localhost/more:1", "-o", &to],
        );
    };
    export(&file);
    let members = members(&file);
    // Three layers as they were before they were packed, one of them new, two configurations as they are.
    for made in [&Image::busybox(), &more] {
        let built = made.clone().packed(Packing::Plain).build();
        for blob in built.layers.iter().chain([&built.config]) {
            let name = format!("blobs/{}", digest(blob).replace(':', "/"));
            assert!(members.get(&name) == Some(blob), "{name}");
        }
    }
    let blobs = members
        .iter()
        .filter(|(name, _)| name.starts_with("blobs/"));
    for (name, bytes) in blobs.clone() {
        assert_eq!(
            name.replacen("/sha256/", "/sha256:", 1),
            format!("blobs/{}", digest(bytes))
        );
    }
    assert_eq!(blobs.count(), 3 + 2 + 2);

    let before = listed(&node).await;
    done(&node, &["image", "rm", BUSYBOX, "localhost/more:1"]);
    assert_eq!(layers(&node), 0);
    done(&node, &["image", "import", &file.display().to_string()]);
    assert_eq!(listed(&node).await, before);
    for made in [Image::busybox(), more] {
        let table = run(&node, &["images", "--no-trunc"]).ok();
        assert!(table.contains(&made.id()), "{table}");
    }
    export(&second);
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&second).unwrap());
    // Through a pipe, and it runs.
    let mut exported = carpel(
        &node.endpoint(),
        &["image", "export", "localhost/more:1", "-o", "-"],
    );
    let mut exported = exported.stdout(Stdio::piped()).spawn().expect("carpel");
    let mut import = carpel(&node.endpoint(), &["image", "import", "-"]);
    import.stdin(exported.stdout.take().expect("a pipe"));
    assert!(Said::by(import).ok().contains("localhost/more:1"));
    assert!(exported.wait().expect("an end").success());
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh(
        "a",
        "stat -c '%a %u:%g %h' /two; ls /www; test -p /fifo && echo fifo",
    );
    config.image.as_mut().expect("an image").image = "localhost/more:1".to_owned();
    assert_eq!(
        node.output_of(&pod, &config).await,
        "4755 1000:1001 2\nfifo\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn images_of_other_machines_go_through_an_import_and_an_export() {
    let node = TestNode::builder().no_image().start().await;
    let (here, there) = (Image::tiny(CLI), Image::tiny(CLI).on("s390x"));
    let (mut files, mut entries) = (BTreeMap::new(), Vec::new());
    for made in [&there, &here] {
        let built = made.build();
        files.extend(built.blobs());
        entries.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&built.manifest), "size": built.manifest.len(),
            "platform": { "os": "linux", "architecture": made.architecture },
            "annotations": { "io.containerd.image.name": CLI },
        }));
    }
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    files.insert("index.json".into(), index.to_string().into_bytes());
    let path = node.dir().join("both.tar");
    std::fs::write(&path, archive(&files)).expect("write");
    let file = path.display().to_string();
    let import = |more: &[&str]| run(&node, &[&["image", "import", &file], more].concat());
    let shown = |said: Said, image: &Image| {
        let text = said.ok();
        assert!(
            text.contains(&image.id()["sha256:".len()..][..12]),
            "{text}"
        );
        text
    };
    // This machine's, unless another is asked for.
    shown(import(&[]), &here);
    done(&node, &["image", "rm", CLI]);
    let text = shown(import(&["--platform", "linux/s390x"]), &there);
    assert!(text.contains("localhost/tiny"), "{text}");
    done(&node, &["image", "rm", CLI]);
    let wanted = format!(
        "no image for linux/arm64/v9, but linux/{}, linux/s390x",
        here.architecture
    );
    import(&["--platform", "linux/arm64/v9"]).failed(1, &wanted);
    import(&["--platform", "s390x"]).failed(1, "platform: \"s390x\": must be linux/ARCHITECTURE");
    import(&["--platform", "linux/s390x", "--all-platforms"]).failed(2, "cannot be used with");
    assert_eq!((listed(&node).await.len(), layers(&node)), (0, 0));

    let text = shown(import(&["--all-platforms"]), &here);
    assert!(
        text.contains(&there.id()["sha256:".len()..][..12]),
        "{text}"
    );
    assert_eq!(
        listed(&node).await,
        [(tags(&[]), false), (tags(&[CLI]), false)]
    );
    // Exported, they say what they are for, and this machine takes its own again.
    let second = node.dir().join("second.tar").display().to_string();
    done(&node, &["image", "export", CLI, &there.id(), "-o", &second]);
    done(&node, &["image", "prune"]);
    done(&node, &["image", "import", &second]);
    assert_eq!(listed(&node).await, [(tags(&[CLI]), false)]);
    done(&node, &["image", "import", &second, "--all-platforms"]);
    assert_eq!(listed(&node).await.len(), 2);
    done(&node, &["image", "prune"]);
    node.finish().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_exported_says_why() {
    let mut node = TestNode::builder().no_image().start().await;
    let twice = Image::tiny("localhost/twice:1").layer(
        Layer::default()
            .file("a", 0o644, b"first")
            .file("a", 0o644, b"second"),
    );
    node.import(twice.oci()).await;
    node.import(Image::tiny(CLI).oci()).await;
    let file = node.dir().join("x.tar");
    let to = file.display().to_string();
    let said = run(
        &node,
        &["image", "export", CLI, "localhost/twice:1", "-o", &to],
    );
    said.failed(1, "image localhost/twice:1: export: layer sha256:");
    run(&node, &["image", "export", "nothing", "-o", &to]).failed(1, "no image \"nothing\"");
    run(&node, &["image", "export", CLI, "-o", "/nonexistent/x"]).failed(1, "/nonexistent/x");
    assert!(!file.exists() && !node.dir().join("x.tar.partial").exists());
    let said = run(&node, &["image", "verify"]);
    assert!(
        said.stderr.contains("its tar stream was not kept"),
        "{said:?}"
    );
    let table = said.ok();
    assert!(
        table.contains("unknown") && table.contains("as unpacked"),
        "{table}"
    );
    done(&node, &["image", "prune"]);
    node.finish().await;
}
