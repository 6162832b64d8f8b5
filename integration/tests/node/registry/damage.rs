//! Layers that are not what they were: found, set aside, and pulled anew.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use carpel_integration::TestNode;
use carpel_integration::cli::{Said, carpel};
use carpel_integration::registry::Fake;

use super::{assert_nothing_left, content, left, node, remove_all, several_layers};

async fn node_with_image() -> (TestNode, Fake, String) {
    let node = node().await;
    let content = content(&several_layers());
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    let image = format!("{}/a/b:1", fake.host());
    node.cri.pull(&image, None).await.expect("an image");
    (node, fake, image)
}

fn verify(node: &TestNode, args: &[&str]) -> Said {
    let args = [&["image", "verify"][..], args].concat();
    Said::by(carpel(&node.endpoint(), &args))
}

/// The folder of the layer that has the file of this name.
fn layer_with(node: &TestNode, name: &str) -> PathBuf {
    let folder = node.dir().join("root/layers");
    let layers = std::fs::read_dir(folder).expect("layers");
    let mut layers = layers.map(|layer| layer.expect("a layer").path());
    layers
        .find(|layer| layer.join("fs").join(name).exists())
        .expect("a layer")
}

fn flip_a_bit(file: &Path) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(file)
        .expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 123_456).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], 123_456).expect("a byte");
}

/// What is in the quarantine.
fn quarantined(node: &TestNode) -> usize {
    let folder = node.dir().join("root/quarantine");
    std::fs::read_dir(folder).expect("the quarantine").count()
}

/// What is set aside stays until a person removes it.
fn empty_quarantine(node: &TestNode) {
    for path in left(node) {
        if path
            .parent()
            .is_some_and(|folder| folder.ends_with("quarantine"))
        {
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            removed.expect("removed");
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_is_found_and_the_layer_pulled_anew() {
    let (node, fake, image) = node_with_image().await;
    let said = verify(&node, &[]).ok();
    assert!(
        said.contains(&image) && said.contains("as unpacked"),
        "{said}"
    );
    flip_a_bit(&layer_with(&node, "file3").join("fs/file3"));

    let said = verify(&node, &[&image]);
    assert!(said.stdout.contains("damaged"), "{said:?}");
    assert!(
        said.stderr
            .contains("the content of a file is not what was unpacked")
    );
    said.failed(1, "--repair");
    // Looking changes nothing.
    assert!(super::image(&node, &image).await.is_some());
    let said = verify(&node, &["--repair", "-o", "json"]);
    assert_eq!(said.status, 1);
    let json: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!(json["images"][0]["condition"], "LAYER_CONDITION_DAMAGED");
    assert_eq!(json["images"][0]["setAside"], true);
    let layers = json["layers"].as_array().expect("layers");
    let sound = layers
        .iter()
        .filter(|l| l["condition"] == "LAYER_CONDITION_SOUND");
    assert_eq!((layers.len(), sound.count()), (6, 5));
    // It does not count as there; what is sound of it is not fetched again.
    assert!(super::image(&node, &image).await.is_none());
    assert_eq!(quarantined(&node), 2);
    let before = fake.count("/blobs/");
    let id = node.cri.pull(&image, None).await.expect("an image");
    assert_eq!(id, several_layers().id());
    assert_eq!(
        fake.count("/blobs/"),
        before + 2,
        "the configuration and one layer"
    );
    assert!(verify(&node, &[]).ok().contains("as unpacked"));
    empty_quarantine(&node);
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_layer_that_lost_its_files_is_no_layer_at_the_next_start() {
    let (mut node, _fake, image) = node_with_image().await;
    for (file, harm) in [
        ("file1", "files"),
        ("file2", "all"),
        ("hello", "a file in their place"),
    ] {
        let layer = layer_with(&node, file);
        assert!(node.terminate_daemon().await.success());
        let before = quarantined(&node);
        let files = if harm == "all" {
            layer.clone()
        } else {
            layer.join("fs")
        };
        std::fs::remove_dir_all(&files).expect("removed");
        if harm == "a file in their place" {
            std::fs::write(&files, "").expect("a file");
        }
        node.start_daemon(None).await;
        assert!(super::image(&node, &image).await.is_none(), "{harm}");
        let expected = if harm == "all" { 1 } else { 2 };
        assert_eq!(quarantined(&node) - before, expected, "{harm}");
        let id = node.cri.pull(&image, None).await.expect(harm);
        assert_eq!(id, several_layers().id());
        assert!(verify(&node, &[]).ok().contains("as unpacked"), "{harm}");
    }
    empty_quarantine(&node);
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}
