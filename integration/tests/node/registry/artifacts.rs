//! OCI artifacts: pulled, and mounted as folders of files.

use carpel_integration::cli::{Said, carpel};
use carpel_integration::image::{BUSYBOX, Built, Image, digest};
use carpel_integration::registry::{Content, Debian, Fake};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{ImageSpec, Mount};
use carpel_integration::{TestNode, sh};
use serde_json::{Value, json};
use tonic::Code;

use super::{assert_nothing_left, image, images, left, node, refused, remove_all};
use crate::userns;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// An artifact with files of these names; a blob without a name, if it is "".
fn artifact(config: &str, fields: &Value, files: &[(&str, &[u8])]) -> Built {
    let layers = files.iter().map(|(name, bytes)| {
        let mut layer = json!({
            "mediaType": "application/octet-stream",
            "digest": digest(bytes),
            "size": bytes.len(),
        });
        if !name.is_empty() {
            layer["annotations"] = json!({ "org.opencontainers.image.title": name });
        }
        layer
    });
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": config, "digest": digest(b"{}"), "size": 2 },
        "layers": layers.collect::<Vec<_>>(),
    });
    for (key, value) in fields.as_object().expect("an object") {
        manifest[key] = value.clone();
    }
    Built {
        manifest: manifest.to_string().into_bytes(),
        config: b"{}".to_vec(),
        layers: files.iter().map(|(_, bytes)| bytes.to_vec()).collect(),
    }
}

fn model() -> Built {
    let files: [(&str, &[u8]); 4] = [
        ("weights.bin", &[7; 3_000_000]),
        ("tokens/vocabulary.txt", b"one\ntwo\n"),
        // Packed things stay as they are.
        ("chart.tgz", b"\x1f\x8b not really gzip"),
        ("", b"without a name"),
    ];
    artifact(
        EMPTY,
        &json!({ "artifactType": "application/x-model" }),
        &files,
    )
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

#[tokio::test]
async fn an_artifact_is_pulled_and_mounted_as_its_files() {
    let mut node = TestNode::start().await;
    let registry = Debian::start(&node.net, "127.0.0.1:5000");
    let built = model();
    let (name, manifest) = registry.push_built(&node.net, "a/model", "1", &built);
    // Its id is its manifest's digest.
    assert_eq!(node.cri.pull(&name, None).await.expect("an id"), manifest);
    let found = image(&node, &name).await.expect("it is listed");
    assert_eq!(
        (found.id.as_str(), &found.repo_tags[..]),
        (manifest.as_str(), &[name.clone()][..])
    );
    assert_eq!(
        found.repo_digests,
        [format!("127.0.0.1:5000/a/model@{manifest}")]
    );
    assert!(found.size > 3_000_000);

    let pod = node.run_pod(&node.pod("one")).await;
    let script = "cd /vol; find . -type f | sort; wc -c < weights.bin; cat tokens/vocabulary.txt; \
                  stat -c '%a %u:%g' . tokens weights.bin; touch new 2>&1; rm chart.tgz 2>&1; true";
    let expected = "./chart.tgz\n./tokens/vocabulary.txt\n./weights.bin\n3000000\none\ntwo\n\
                    755 0:0\n755 0:0\n644 0:0\n\
                    touch: new: Read-only file system\nrm: can't remove 'chart.tgz': Read-only file system\n";
    let mut config = sh("a", script);
    config.mounts.push(volume(&name, ""));
    assert_eq!(node.output_of(&pod, &config).await, expected);
    let mut config = sh("b", "ls /vol");
    config.mounts.push(volume(&manifest, "tokens"));
    assert_eq!(node.output_of(&pod, &config).await, "vocabulary.txt\n");
    // In a user namespace, and after the daemon has died.
    node.crash().await;
    let pod = node.run_pod(&userns::pod(&node, "two")).await;
    let mut config = userns::inside(sh("c", "stat -c %u /vol/weights.bin"));
    config.mounts.push(volume(&name, ""));
    let id = node.start_container(&pod, &config).await;
    node.wait_exit(&id).await;
    assert_eq!(node.log(&pod, "c").stdout(), "0\n");

    let mut config = userns::inside(sleeper("d"));
    config.image.as_mut().expect("an image").image = name.clone();
    let part = format!(
        "container \"d\": config.image: {name} is an artifact (application/x-model) and no container image"
    );
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        &part,
    );
    node.remove_pods().await;
    let _said = Said::by(carpel(&node.endpoint(), &["image", "rm", &name])).ok();
    node.finish().await;
}

#[tokio::test]
async fn an_artifact_is_like_an_image_for_who_keeps_house() {
    let mut node = node().await;
    let built = model();
    // A later version, of which one file is new; and an older way to say what it is.
    let files: [(&str, &[u8]); 2] = [("weights.bin", &[7; 3_000_000]), ("new", b"new")];
    let second = artifact("application/x-config", &json!({}), &files);
    let content = Content::default()
        .image("a/b", "1", &built)
        .image("a/b", "2", &second);
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    let name = |tag: &str| format!("{}/a/b:{tag}", fake.host());
    for tag in ["1", "2", "1"] {
        node.cri.pull(&name(tag), None).await.expect(tag);
    }
    // Blobs come once, and those that cannot be mounted never; nor is the configuration of use.
    assert_eq!(fake.count("/blobs/"), 4);
    let run = |args: &[&str]| Said::by(carpel(&node.endpoint(), args));
    let text = run(&["inspect", "-t", "image", &name("2")]).ok();
    assert!(
        text.contains("application/x-config") && text.contains("weights.bin"),
        "{text}"
    );
    let json = run(&["inspect", "-t", "image", "-o", "json", &name("1")]).ok();
    assert!(json.contains("tokens/vocabulary.txt"), "{json}");
    let said = run(&["image", "verify"]);
    assert_eq!(said.ok().matches("as unpacked").count(), 2);
    run(&["image", "export", &name("1"), "-o", "/dev/null"]).failed(1, "it is an artifact");
    let _ = run(&["image", "tag", &name("1"), "localhost/model:1"]).ok();
    let _ = run(&["image", "pin", "localhost/model:1"]).ok();
    let _ = run(&["image", "prune"]).ok();
    assert_eq!(images(&node).await.len(), 1);
    node.crash().await;
    let found = image(&node, "localhost/model:1")
        .await
        .expect("it is still there");
    assert!(found.pinned);
    // A damaged file is found, and comes anew.
    let run = |args: &[&str]| Said::by(carpel(&node.endpoint(), args));
    let layers = std::fs::read_dir(node.dir().join("root/layers")).expect("layers");
    let mut paths = layers.map(|entry| entry.expect("an entry").path().join("fs/weights.bin"));
    let weights = paths.find(|path| path.exists()).expect("the file");
    std::fs::write(&weights, b"damaged").expect("write");
    let said = run(&["image", "verify", "--repair"]);
    assert!(
        said.stdout.contains("weights.bin") || said.stderr.contains("weights.bin"),
        "{said:?}"
    );
    assert_eq!(images(&node).await.len(), 0);
    node.cri.pull(&name("1"), None).await.expect("an id");
    let _ = run(&["image", "verify"]).ok();
    remove_all(&node).await;
    std::fs::remove_dir_all(node.dir().join("root/quarantine")).expect("what was damaged");
    std::fs::create_dir(node.dir().join("root/quarantine")).expect("a folder");
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn artifacts_that_break_a_rule_are_refused() {
    let node = node().await;
    let with = |names: &[&str]| {
        let files: Vec<_> = names.iter().map(|name| (*name, name.as_bytes())).collect();
        artifact(
            EMPTY,
            &json!({ "artifactType": "application/x-test" }),
            &files,
        )
    };
    let mut wrong_size = with(&["a"]);
    let text = String::from_utf8(wrong_size.manifest).expect("text");
    wrong_size.manifest = text.replace("\"size\":1", "\"size\":5").into_bytes();
    let cases = [
        ("up", with(&["../a"]), "no path of a file"),
        ("up2", with(&["a/../../b"]), "no path of a file"),
        ("absolute", with(&["/etc/passwd"]), "absolute"),
        ("nul", with(&["a\0"]), "control character"),
        ("twice", with(&["a", "b", "a"]), "two blobs are named \"a\""),
        ("within", with(&["a", "a/b"]), "lies in another"),
        (
            "nameless",
            with(&["", ""]),
            "none of whose blobs has a name",
        ),
        ("empty", with(&[]), "none of whose blobs has a name"),
        ("size", wrong_size, "has 1 bytes, not 5"),
    ];
    let content = cases
        .iter()
        .fold(Content::default(), |content, (tag, built, _)| {
            content.image("a/b", tag, built)
        });
    let damaged = with(&["damaged"]);
    let path = format!("/v2/a/b/blobs/{}", digest(b"damaged"));
    let content = content.image("a/b", "damaged", &damaged);
    let fake = Fake::start(&node.net, move |request| {
        let mut reply = content.answer(request);
        if request.path == path {
            reply = reply.sent(|_| carpel_integration::registry::Body::Whole(b"changed".to_vec()));
        }
        reply
    });
    for (tag, _, part) in cases {
        let name = format!("{}/a/b:{tag}", fake.host());
        refused(
            node.cri.pull(&name, None).await,
            Code::InvalidArgument,
            part,
        );
    }
    let name = format!("{}/a/b:damaged", fake.host());
    refused(
        node.cri.pull(&name, None).await,
        Code::InvalidArgument,
        "its digest is sha256:",
    );
    assert!(left(&node).is_empty(), "{:?}", left(&node));
    node.finish().await;
}

#[tokio::test]
async fn of_an_index_an_image_goes_before_an_artifact() {
    let node = node().await;
    let (made, other) = (Image::tiny("x").build(), model());
    let index = |manifests: &[&Built]| {
        let entries = manifests.iter().map(|built| {
            json!({ "mediaType": MANIFEST, "digest": digest(&built.manifest), "size": built.manifest.len() })
        });
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries.collect::<Vec<_>>() });
        index.to_string().into_bytes()
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let content = Content::default()
        .image("a/b", "image", &made)
        .image("a/b", "artifact", &other)
        .manifest("a/b", "both", kind, &index(&[&other, &made]))
        .manifest("a/b", "one", kind, &index(&[&other]));
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    for (tag, id) in [
        ("both", digest(&made.config)),
        ("one", digest(&other.manifest)),
    ] {
        let name = format!("{}/a/b:{tag}", fake.host());
        assert_eq!(node.cri.pull(&name, None).await.expect(tag), id);
    }
    assert!(image(&node, BUSYBOX).await.is_none());
    remove_all(&node).await;
    node.finish().await;
}
