//! Large layers of registries that are slow for each connection: their parts come side by side.

use std::time::{Duration, Instant};

use carpel_integration::TestNode;
use carpel_integration::image::{Image, Layer, Packing, digest};
use carpel_integration::registry::{Body, Content, Fake, Reply, Request};
use tonic::Code;

use super::{assert_nothing_left, node, refused, remove_all};

const LAYER: usize = 48 << 20;
/// Bytes per second of one connection.
const RATE: usize = 12 << 20;

/// An image with one layer that is large.
fn large() -> Image {
    let mut state = 1_u64;
    let noise = (0..LAYER / 8).flat_map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_le_bytes()
    });
    let noise: Vec<u8> = noise.collect();
    let layer = Layer::default().file("noise", 0o644, &noise);
    Image::tiny("large:1").packed(Packing::Plain).layer(layer)
}

/// What a registry makes of a request for the large layer: the answer that it should give, and all of the layer.
type Fault = fn(&Request, Reply, Reply) -> Reply;

/// A registry with that image that is slow with the large layer.
fn slow(node: &TestNode, image: &Image, fault: Fault) -> Fake {
    let built = image.build();
    let layer = digest(&built.layers[1]);
    let content = Content::default().image("a/b", "1", &built);
    Fake::start(&node.net, move |request| {
        let reply = content.answer(request);
        if !request.path.ends_with(&layer) {
            return reply;
        }
        let mut plain = request.clone();
        plain.headers.remove("range");
        fault(request, reply, content.answer(&plain)).sent(|bytes| Body::Paced(bytes, RATE))
    })
}

/// Whether a request is for a part with an end.
fn is_part(request: &Request) -> bool {
    let range = request.header("range");
    !range.is_empty() && !range.ends_with('-')
}

/// The parts that were asked for.
fn ranges(fake: &Fake) -> Vec<String> {
    let parts = fake.seen().into_iter().filter(is_part);
    parts
        .map(|request| request.header("range").to_owned())
        .collect()
}

async fn pulled(node: &TestNode, fake: &Fake, image: &Image) -> Duration {
    let begin = Instant::now();
    let id = node.cri.pull(&format!("{}/a/b:1", fake.host()), None).await;
    assert_eq!(id.expect("an image"), image.id());
    begin.elapsed()
}

#[tokio::test]
async fn parts_come_side_by_side() {
    let node = node().await;
    let image = large();
    let fake = slow(&node, &image, |_, reply, _| reply);
    let took = pulled(&node, &fake, &image).await;
    let ranges = ranges(&fake);
    assert!(ranges.len() >= 4, "{ranges:?}");
    // Each once.
    let mut distinct = ranges.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), ranges.len());
    println!(
        "{took:?} instead of {:?}",
        Duration::from_secs_f64(LAYER as f64 / RATE as f64)
    );
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_small_layer_or_a_quick_registry_is_asked_once() {
    let node = node().await;
    let image = large();
    let content = Content::default().image("a/b", "1", &image.build());
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    pulled(&node, &fake, &image).await;
    assert!(ranges(&fake).is_empty());
    remove_all(&node).await;
    let image = super::several_layers();
    let content = super::content(&image);
    let fake = Fake::start(&node.net, move |request| {
        let reply = content.answer(request);
        match request.is_blob() {
            true => reply.sent(|bytes| Body::Paced(bytes, 400_000)),
            false => reply,
        }
    });
    pulled(&node, &fake, &image).await;
    assert!(ranges(&fake).is_empty());
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_has_no_parts_is_taken_as_it_is() {
    let cases: [(&str, Fault); 4] = [
        ("knows no ranges", |_, _, whole| whole),
        ("breaks them off", |request, reply, _| {
            match is_part(request) {
                true => reply.sent(|bytes| Body::Cut(bytes, 100_000)),
                false => reply,
            }
        }),
        ("refuses them", |request, reply, _| match is_part(request) {
            true => Reply::status(400),
            false => reply,
        }),
        ("does not bear so many", |request, reply, _| {
            match is_part(request) {
                true => Reply::with(429, &[("retry-after", "1")], b""),
                false => reply,
            }
        }),
    ];
    for (what, fault) in cases {
        let node = node().await;
        let image = large();
        let fake = slow(&node, &image, fault);
        pulled(&node, &fake, &image).await;
        let ranges = ranges(&fake);
        assert!((1..=4).contains(&ranges.len()), "{what}: {ranges:?}");
        remove_all(&node).await;
        node.finish().await;
    }
}

#[tokio::test]
async fn parts_of_something_else_are_not_the_layer() {
    let node = node().await;
    let image = large();
    let fake = slow(&node, &image, |request, reply, _| match is_part(request) {
        true => reply.sent(|mut bytes| {
            bytes[1000] ^= 1;
            Body::Whole(bytes)
        }),
        false => reply,
    });
    let name = format!("{}/a/b:1", fake.host());
    let part = "its diff id is sha256:";
    refused(
        node.cri.pull(&name, None).await,
        Code::InvalidArgument,
        part,
    );
    assert!(!ranges(&fake).is_empty());
    assert_nothing_left(&node).await;
    node.finish().await;
}
