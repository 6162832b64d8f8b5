//! Manifests and indexes: which image is taken, and what is refused.

use carpel_integration::image::{Image, digest};
use carpel_integration::registry::{Body, Content, Fake, Reply};
use serde_json::{Value, json};
use tonic::Code;

use super::{assert_nothing_left, image, node, refused, remove_all};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        _ => "arm64",
    }
}

fn entry(kind: &str, bytes: &[u8], architecture: &str) -> Value {
    json!({
        "mediaType": kind,
        "digest": digest(bytes),
        "size": bytes.len(),
        "platform": { "os": "linux", "architecture": architecture },
    })
}

fn index(kind: &str, entries: &[Value]) -> Vec<u8> {
    let document = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries });
    document.to_string().into_bytes()
}

#[tokio::test]
async fn of_an_index_the_image_for_this_machine_is_taken() {
    let node = node().await;
    let made = Image::tiny("mine").build();
    let other = Image::tiny("other").build();
    let statement = json!({
        "mediaType": MANIFEST,
        "digest": digest(b"x"),
        "size": 1,
        "platform": { "os": "unknown", "architecture": "unknown" },
        "annotations": { "vnd.docker.reference.type": "attestation-manifest" },
    });
    let entries = [
        statement,
        entry(MANIFEST, &other.manifest, "s390x"),
        entry(MANIFEST, &made.manifest, architecture()),
    ];
    let flat = index(INDEX, &entries);
    let nested = index(
        INDEX,
        &[json!({
            "mediaType": INDEX, "digest": digest(&flat), "size": flat.len(),
        })],
    );
    let list = index(LIST, &entries[1..]);
    let content = Content::default()
        .image("a/b", "own", &made)
        .image("a/b", "other", &other)
        .manifest("a/b", "flat", INDEX, &flat)
        .manifest("a/b", "nested", INDEX, &nested)
        .manifest("a/b", "list", LIST, &list);
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    for (tag, bytes) in [("flat", &flat), ("nested", &nested), ("list", &list)] {
        let name = format!("{}/a/b:{tag}", fake.host());
        assert_eq!(
            node.cri.pull(&name, None).await.expect(tag),
            digest(&made.config)
        );
        // The digest of what the tag stands for, which others can pull by too.
        let found = image(&node, &name).await.expect("an image");
        assert_eq!(
            found.repo_digests,
            [format!("{}/a/b@{}", fake.host(), digest(bytes))]
        );
        remove_all(&node).await;
    }
    // What is not for this machine was not looked at.
    assert_eq!(fake.count(&digest(&other.manifest)), 0);
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn docker_s_types_are_understood() {
    let node = node().await;
    let mut made = Image::tiny("x").build();
    let text = String::from_utf8(made.manifest).expect("text");
    made.manifest = text
        .replace(MANIFEST, DOCKER)
        .replace(
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        )
        .replace(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
        .into_bytes();
    let content = Content::default()
        .image("a/b", "unused", &made)
        .manifest("a/b", "1", DOCKER, &made.manifest)
        // Some registries serve files and know no types.
        .manifest(
            "a/b",
            "2",
            "application/json; charset=utf-8",
            &made.manifest,
        );
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    for tag in ["2", "1"] {
        let name = format!("{}/a/b:{tag}", fake.host());
        assert_eq!(
            node.cri.pull(&name, None).await.expect("an image"),
            digest(&made.config)
        );
    }
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn what_is_no_image_for_this_machine_is_refused() {
    let made = Image::tiny("x").build();
    let foreign = index(INDEX, &[entry(MANIFEST, &made.manifest, "s390x")]);
    let mut config: Value = serde_json::from_slice(&made.config).expect("json");
    config["architecture"] = json!("s390x");
    let config = config.to_string().into_bytes();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document: Value = serde_json::from_slice(&made.manifest).expect("json");
        change(&mut document);
        document.to_string().into_bytes()
    };
    let foreign_config = with(&|d| {
        d["config"]["digest"] = json!(digest(&config));
        d["config"]["size"] = json!(config.len());
    });
    let mut deep = made.manifest.clone();
    let mut kind = MANIFEST;
    let mut content = Content::default()
        .image("a/b", "own", &made)
        .blob("a/b", &config);
    for _ in 0..5 {
        deep = index(
            INDEX,
            &[json!({ "mediaType": kind, "digest": digest(&deep), "size": deep.len() })],
        );
        kind = INDEX;
        content = content.manifest("a/b", "deep", INDEX, &deep);
    }
    let many: Vec<Value> = (0..1001)
        .map(|n| entry(MANIFEST, format!("{n}").as_bytes(), "s390x"))
        .collect();
    let cases: Vec<(&str, &str, Vec<u8>, Code, &str)> = vec![
        ("foreign", INDEX, foreign, Code::NotFound, "but linux/s390x"),
        (
            "config",
            MANIFEST,
            foreign_config,
            Code::NotFound,
            "but linux/s390x",
        ),
        (
            "empty",
            INDEX,
            index(INDEX, &[]),
            Code::NotFound,
            "none at all",
        ),
        (
            "old",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            b"{}".to_vec(),
            Code::InvalidArgument,
            "schema 1",
        ),
        (
            "older",
            "application/json",
            br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec(),
            Code::InvalidArgument,
            "schema 1",
        ),
        (
            "both",
            MANIFEST,
            with(&|d| d["manifests"] = json!([])),
            Code::InvalidArgument,
            "neither an index nor a manifest",
        ),
        (
            "lies",
            INDEX,
            made.manifest.clone(),
            Code::InvalidArgument,
            "another type than it was announced as",
        ),
        (
            "text",
            MANIFEST,
            b"<html>".to_vec(),
            Code::InvalidArgument,
            "malformed",
        ),
        (
            "twice",
            MANIFEST,
            br#"{"schemaVersion":2,"schemaVersion":2}"#.to_vec(),
            Code::InvalidArgument,
            "twice",
        ),
        (
            "artifact",
            MANIFEST,
            with(&|d| d["config"]["mediaType"] = json!("application/x-chart")),
            Code::InvalidArgument,
            "none of whose blobs has a name",
        ),
        (
            "layer",
            MANIFEST,
            with(&|d| d["layers"][0]["mediaType"] = json!("text/plain")),
            Code::InvalidArgument,
            "unknown type text/plain",
        ),
        (
            "digest",
            MANIFEST,
            with(&|d| d["layers"][0]["digest"] = json!("sha256:../../x")),
            Code::InvalidArgument,
            "not a digest",
        ),
        (
            "fewer",
            MANIFEST,
            with(&|d| d["layers"] = json!([])),
            Code::InvalidArgument,
            "names 1 layers, its manifest 0",
        ),
        (
            "huge",
            MANIFEST,
            with(&|d| d["layers"][0]["size"] = json!(u64::MAX)),
            Code::InvalidArgument,
            "bytes",
        ),
        (
            "big",
            MANIFEST,
            with(&|d| d["config"]["size"] = json!(5 << 20)),
            Code::InvalidArgument,
            "bytes",
        ),
        (
            "size",
            MANIFEST,
            with(&|d| d["config"]["size"] = json!(7)),
            Code::InvalidArgument,
            "bytes, not 7",
        ),
        (
            "many",
            INDEX,
            index(INDEX, &many),
            Code::InvalidArgument,
            "more than 1000 descriptors",
        ),
        (
            "deep",
            INDEX,
            deep,
            Code::InvalidArgument,
            "too many indexes",
        ),
    ];
    for (tag, kind, bytes, ..) in &cases {
        content = content.manifest("a/b", tag, kind, bytes);
    }
    let node = node().await;
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    for (tag, _, _, code, part) in cases {
        let name = format!("{}/a/b:{tag}", fake.host());
        let outcome = node.cri.pull(&name, None).await;
        if let Err(status) = &outcome {
            assert!(status.message().contains(&name), "{status}");
        }
        refused(outcome, code, part);
    }
    let name = format!("{}/a/b:absent", fake.host());
    let part = format!(
        "image {name}: registry http://{}: manifest absent not found (unknown to this registry)",
        fake.host()
    );
    refused(node.cri.pull(&name, None).await, Code::NotFound, &part);
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_manifest_without_an_end_is_not_read_to_it() {
    let node = node().await;
    let fake = Fake::start(&node.net, |_| Reply::status(200).sent(|_| Body::Endless));
    let name = format!("{}/a/b:1", fake.host());
    refused(
        node.cri.pull(&name, None).await,
        Code::InvalidArgument,
        "of more than 4194304 bytes",
    );
    let pid = node.daemon_pid().expect("it runs");
    let peak = carpel_integration::host::proc_status(pid, "VmHWM").expect("a figure");
    let kilobytes: u64 = peak
        .trim_end_matches(" kB")
        .trim()
        .parse()
        .expect("a number");
    assert!(kilobytes < 64 << 10, "{kilobytes} kB");
    node.finish().await;
}

#[tokio::test]
async fn a_digest_is_what_it_says_or_refused() {
    let node = node().await;
    let made = Image::tiny("x").build();
    let other = Image::tiny("other").build();
    let wanted = digest(&made.manifest);
    let manifest = other.manifest.clone();
    let fake = Fake::start(&node.net, move |_| {
        Reply::with(200, &[("content-type", MANIFEST)], &manifest)
    });
    let name = format!("{}/a/b@{wanted}", fake.host());
    let part = format!(
        "manifest {wanted} is {}, not {wanted}",
        digest(&other.manifest)
    );
    refused(
        node.cri.pull(&name, None).await,
        Code::InvalidArgument,
        &part,
    );
    node.finish().await;
}
