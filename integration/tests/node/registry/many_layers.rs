//! As many layers as an image may have, by digest alone, from the registry into a container and through an archive.

use std::process::Stdio;

use carpel_integration::cli::{Said, carpel};
use carpel_integration::image::{Image, Layer, Packing, digest};
use carpel_integration::registry::{Content, Fake};
use carpel_integration::sh;
use tonic::Code;

use super::{image, node, refused, remove_all, spec};

/// Busybox below so many layers, that it has `count` in all. Each replaces the file of the one below.
fn layered(count: usize) -> Image {
    let mut made = Image::busybox().packed(Packing::Gzip);
    for n in made.layers.len()..count {
        let layer = Layer::default()
            .file("number", 0o644, format!("{n}\n").as_bytes())
            .file(&format!("of-{n}"), 0o644, b"");
        made = made.layer(layer);
    }
    made
}

#[tokio::test]
async fn an_image_of_127_layers_runs_and_one_of_128_is_refused() {
    let node = node().await;
    let (most, more) = (layered(127), layered(128));
    let content = Content::default()
        .image("a/b", "most", &most.build())
        .image("a/b", "more", &more.build());
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    let repository = format!("{}/a/b", fake.host());
    let outcome = node.cri.pull(&format!("{repository}:more"), None).await;
    refused(outcome, Code::InvalidArgument, "128 layers, more than 127");
    let name = format!("{repository}@{}", digest(&most.build().manifest));
    let id = node.cri.pull(&name, None).await.expect("an image");
    assert_eq!(id, most.id());

    let run = async |pod: &str| {
        let pod = node.run_pod(&node.pod(pod)).await;
        let mut config = sh("a", "cat /number; ls -d /of-* | wc -l");
        config.image = spec(&id);
        assert_eq!(node.output_of(&pod, &config).await, "126\n125\n");
    };
    run("one").await;
    // An image without a tag keeps what it is called by its content.
    let endpoint = node.endpoint();
    let mut export = carpel(&endpoint, &["image", "export", &name]);
    let mut export = export.stdout(Stdio::piped()).spawn().expect("carpel");
    let mut gzip = std::process::Command::new("gzip");
    let gzip = gzip.arg("-1").stdin(export.stdout.take().expect("a pipe"));
    let archive = gzip.output().expect("gzip").stdout;
    assert!(export.wait().expect("an end").success());
    node.remove_pods().await;
    remove_all(&node).await;
    let file = node.dir().join("archive.tar.gz");
    std::fs::write(&file, archive).expect("a file");
    let file = file.display().to_string();
    let said = Said::by(carpel(&endpoint, &["image", "import", &file])).ok();
    assert!(said.contains("<none>"), "{said}");
    let found = image(&node, &id).await.expect("the image");
    assert!(found.repo_tags.is_empty() && found.repo_digests.is_empty());
    run("two").await;
    node.remove_pods().await;
    remove_all(&node).await;
    node.finish().await;
}
