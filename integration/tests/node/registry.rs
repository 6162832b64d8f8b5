//! Pulls: from Debian's registry, from one that demands credentials, and from one that misbehaves in every way.

mod artifacts;
mod auth;
mod auth_files;
mod confined;
mod crash;
mod damage;
mod documents;
mod faults;
mod many_layers;
mod mirrors;
mod proxies;
mod ranges;
mod redirects;
mod sharing;
mod trust;

use std::path::PathBuf;
use std::time::Duration;

use carpel_integration::api::carpel::pull_response::Step;
use carpel_integration::api::carpel::{PullPhase, PullRequest};
use carpel_integration::image::{Image, Packing};
use carpel_integration::registry::{Content, Debian, Fake, add_far_address};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{self, ImageSpec};
use carpel_integration::{TestNode, host};
use tonic::Code;

use super::refused;

/// A node without images, whose patience with registries is one second.
async fn node() -> TestNode {
    let config = format!("[registry]\ntimeout_seconds = {}\n", timeout());
    TestNode::builder().no_image().config(&config).start().await
}

fn timeout() -> u64 {
    host::patience(Duration::from_secs(1)).as_secs()
}

async fn images(node: &TestNode) -> Vec<v1::Image> {
    let request = v1::ListImagesRequest::default();
    let answer = node.cri.images().list_images(request).await;
    answer.expect("a list").into_inner().images
}

async fn image(node: &TestNode, name: &str) -> Option<v1::Image> {
    let request = v1::ImageStatusRequest {
        image: spec(name),
        verbose: false,
    };
    let answer = node.cri.images().image_status(request).await;
    answer.expect("a status").into_inner().image
}

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    })
}

/// Removes every image.
async fn remove_all(node: &TestNode) {
    for image in images(node).await {
        let request = v1::RemoveImageRequest {
            image: spec(&image.id),
        };
        let removed = node.cri.images().remove_image(request).await;
        removed.expect("removed");
    }
}

/// What a pull may leave: files below these folders of the daemon's.
fn left(node: &TestNode) -> Vec<PathBuf> {
    let root = node.dir().join("root");
    let folders = ["tmp", "layers", "images", "quarantine"];
    let entries = folders
        .iter()
        .flat_map(|name| std::fs::read_dir(root.join(name)));
    let paths = entries
        .flatten()
        .map(|entry| entry.expect("an entry").path());
    paths.collect()
}

/// Makes sure that no pull has left anything, now or within a moment.
async fn assert_nothing_left(node: &TestNode) {
    assert!(images(node).await.is_empty());
    for _ in 0..200 {
        if left(node).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("left: {:?}", left(node));
}

/// Waits for something that comes soon.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !condition() {
        assert!(begin.elapsed() < host::soon(), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A registry that has one image, of several layers.
fn content(made: &Image) -> Content {
    Content::default().image("a/b", "1", &made.build())
}

fn several_layers() -> Image {
    use carpel_integration::image::Layer;
    let noise = |seed: u32| -> Vec<u8> {
        let numbers = (0..100_000_u32).map(|n| n.wrapping_mul(seed).rotate_left(n % 13));
        numbers.flat_map(u32::to_le_bytes).collect()
    };
    let layer =
        |n: u32| Layer::default().file(&format!("file{n}"), 0o644, &noise(2_654_435_761 + n * 2));
    let first = Image::tiny("several:1");
    (1..6).fold(first, |image, n| image.layer(layer(n)))
}

#[tokio::test]
async fn a_pulled_image_is_found_by_all_its_names_and_runs() {
    let node = TestNode::builder().no_image().start().await;
    let registry = Debian::start(&node.net, "127.0.0.1:5000");
    let made = Image::busybox();
    let (name, digest) = registry.push(&node.net, "library/busybox", "latest", &made);
    // The port's colon is no tag.
    let untagged = name.trim_end_matches(":latest");
    let id = node.cri.pull(untagged, None).await.expect("an image");
    assert_eq!(id, made.id());
    let digested = format!("{untagged}@{digest}");
    for known in [
        &name,
        untagged,
        &digested,
        &id,
        &id["sha256:".len()..][..12],
    ] {
        let found = image(&node, known)
            .await
            .unwrap_or_else(|| panic!("{known}"));
        assert_eq!(found.id, id);
        assert_eq!(found.repo_tags, [name.clone()]);
        assert_eq!(found.repo_digests, [digested.clone()]);
        assert!(found.size > 1 << 20 && !found.pinned);
    }
    // Once more, by tag and by digest: the same image, and no new name.
    for again in [&name, &digested] {
        assert_eq!(node.cri.pull(again, None).await.expect("an image"), id);
    }
    let listed = images(&node).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].repo_tags, [name.clone()]);
    assert_eq!(listed[0].repo_digests, [digested.clone()]);

    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    config.image = spec(&name);
    let container = node.start_container(&pod, &config).await;
    let status = node.status(&container).await;
    assert_eq!(status.image_id, id);
    assert_eq!(status.image_ref, digested);
    let text = node
        .exec(&container, "cat /etc/replaced; ls /etc/deleted 2>&1; true")
        .await;
    assert!(text.starts_with("from the second layer\n"), "{text}");
    node.remove_pods().await;
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn an_image_by_digest_alone_has_no_tag() {
    let node = node().await;
    let registry = Debian::start(&node.net, "127.0.0.1:5000");
    let made = Image::tiny("x");
    let (name, digest) = registry.push(&node.net, "a/b", "1", &made);
    let repository = name.trim_end_matches(":1");
    // With both it is the digest that counts.
    for wanted in [format!("{repository}@{digest}"), format!("{name}@{digest}")] {
        assert_eq!(
            node.cri.pull(&wanted, None).await.expect("an image"),
            made.id()
        );
        let found = image(&node, &wanted).await.expect("the image");
        assert!(found.repo_tags.is_empty(), "{found:?}");
        assert_eq!(found.repo_digests, [format!("{repository}@{digest}")]);
    }
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn one_digest_of_two_registries_is_one_image() {
    let node = node().await;
    let made = Image::tiny("x");
    let registries =
        ["127.0.0.1:5000", "127.0.0.1:5001"].map(|host| Debian::start(&node.net, host));
    let mut names = Vec::new();
    for registry in &registries {
        let (name, _) = registry.push(&node.net, "a/b", "1", &made);
        assert_eq!(
            node.cri.pull(&name, None).await.expect("an image"),
            made.id()
        );
        names.push(name);
    }
    let listed = images(&node).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].repo_tags, names);
    assert_eq!(listed[0].repo_digests.len(), 2);
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_tag_that_moved_is_followed() {
    let node = node().await;
    let registry = Debian::start(&node.net, "127.0.0.1:5000");
    let (first, second) = (Image::tiny("first"), Image::tiny("second"));
    let (name, _) = registry.push(&node.net, "a/b", "1", &first);
    node.cri.pull(&name, None).await.expect("an image");
    let _ = registry.push(&node.net, "a/b", "1", &second);
    assert_eq!(
        node.cri.pull(&name, None).await.expect("an image"),
        second.id()
    );
    assert_eq!(image(&node, &name).await.expect("an image").id, second.id());
    let old = image(&node, &first.id()).await.expect("the first image");
    assert!(old.repo_tags.is_empty(), "{old:?}");
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn every_packing_is_unpacked() {
    let node = node().await;
    let registry = Debian::start(&node.net, "127.0.0.1:5000");
    for (tag, packing) in [
        ("plain", Packing::Plain),
        ("gzip", Packing::Gzip),
        ("zstd", Packing::Zstd),
    ] {
        let made = several_layers().packed(packing);
        let (name, _) = registry.push(&node.net, "a/b", tag, &made);
        assert_eq!(node.cri.pull(&name, None).await.expect(tag), made.id());
        remove_all(&node).await;
        assert_nothing_left(&node).await;
    }
    node.finish().await;
}

#[tokio::test]
async fn https_needs_a_certificate_that_the_machine_trusts() {
    const FAR: &str = carpel_integration::registry::FAR;
    let mut node = node().await;
    add_far_address(&node.net);
    let mut registry = Debian::start(&node.net, &format!("{FAR}:5000"));
    let made = Image::tiny("x");
    let (name, _) = registry.push(&node.net, "a/b", "1", &made);
    let part = format!("RegistryUnavailable: image {name}: registry https://{FAR}:5000: TLS: ");
    // What is not on this machine is spoken to with https, and this one does not understand that.
    refused(node.cri.pull(&name, None).await, Code::Unknown, &part);
    let trusted = registry.with_tls(&node.net, FAR);
    refused(node.cri.pull(&name, None).await, Code::Unknown, &part);
    assert!(node.terminate_daemon().await.success());
    node.set_env("SSL_CERT_FILE", &trusted.display().to_string());
    node.start_daemon(None).await;
    assert_eq!(
        node.cri.pull(&name, None).await.expect("an image"),
        made.id()
    );
    // The same, under a name that the certificate does not have.
    node.net
        .command(&["ip", "addr", "add", "10.119.0.2/32", "dev", "lo"]);
    node.net.command(&[
        "nft", "add table ip t; add chain ip t o { type nat hook output priority -100; }; add rule ip t o ip daddr 10.119.0.2 dnat to 10.119.0.1",
    ]);
    let other = name.replace(FAR, "10.119.0.2");
    refused(node.cri.pull(&other, None).await, Code::Unknown, ": TLS: ");
    node.net.command(&["nft", "delete table ip t"]);
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn http_to_another_machine_has_to_be_allowed() {
    const FAR: &str = carpel_integration::registry::FAR;
    let config = format!("[registry]\nplain_http = [\"{FAR}:5000\"]\n");
    let node = TestNode::builder().no_image().config(&config).start().await;
    add_far_address(&node.net);
    let registry = Debian::start(&node.net, &format!("{FAR}:5000"));
    let made = Image::tiny("x");
    let (name, _) = registry.push(&node.net, "a/b", "1", &made);
    assert_eq!(
        node.cri.pull(&name, None).await.expect("an image"),
        made.id()
    );
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn carpels_own_pull_tells_how_far_it_is() {
    let node = node().await;
    let made = several_layers();
    let built = made.build();
    let content = content(&made);
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    let name = format!("{}/a/b:1", fake.host());
    let pull = || PullRequest {
        image: name.clone(),
        credentials: None,
    };
    let mut steps = node
        .cri
        .own_images()
        .pull(pull())
        .await
        .unwrap()
        .into_inner();
    let mut layers = std::collections::BTreeMap::new();
    let mut pulled = None;
    while let Some(response) = steps.message().await.unwrap() {
        match response.step.unwrap() {
            Step::Manifest(manifest) => {
                assert_eq!(manifest.reference, name);
                assert_eq!(manifest.layers, 6);
            }
            Step::Layer(layer) => drop(layers.insert(layer.digest.clone(), layer)),
            Step::Image(image) => pulled = Some(image),
        }
    }
    let pulled = pulled.expect("an image at the end");
    assert_eq!(pulled.id, made.id());
    assert_eq!(pulled.tags, [name.clone()]);
    assert_eq!(layers.len(), 6);
    for layer in built.layers {
        let told = &layers[&carpel_integration::image::digest(&layer)];
        assert_eq!(told.phase(), PullPhase::Unpacked);
        assert_eq!(
            (told.done, told.total),
            (layer.len() as u64, layer.len() as u64)
        );
    }
    remove_all(&node).await;
    node.finish().await;
}
