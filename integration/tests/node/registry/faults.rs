//! Registries that fail: what passes is waited for, what does not ends the pull, and nothing is left of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use carpel_integration::image::digest;
use carpel_integration::registry::{Body, Fake, Reply, Request};
use carpel_integration::{TestNode, host, image};
use tonic::Code;

use super::{assert_nothing_left, content, node, refused, remove_all, several_layers, timeout};

/// A registry that is good but for some of the requests for blobs, counted from 0.
fn broken(
    node: &TestNode,
    fault: impl Fn(usize, &Request, Reply) -> Reply + Send + Sync + 'static,
) -> Fake {
    let content = content(&several_layers());
    let count = AtomicUsize::new(0);
    Fake::start(&node.net, move |request| {
        let reply = content.answer(request);
        match request.is_blob() {
            true => fault(count.fetch_add(1, Ordering::SeqCst), request, reply),
            false => reply,
        }
    })
}

fn name(fake: &Fake) -> String {
    format!("{}/a/b:1", fake.host())
}

/// The pull succeeds in spite of all.
async fn succeeds(node: TestNode, fake: &Fake) {
    let id = node.cri.pull(&name(fake), None).await.expect("an image");
    assert_eq!(id, several_layers().id());
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}

/// The pull fails, says so, and leaves nothing.
async fn fails(node: TestNode, fake: &Fake, code: Code, part: &str) {
    let name = name(fake);
    let outcome = node.cri.pull(&name, None).await;
    if let Err(status) = &outcome {
        let text = status.message();
        assert!(
            text.contains(&name) && text.contains(&fake.host()),
            "{text}"
        );
    }
    refused(outcome, code, part);
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_where_it_broke() {
    let node = node().await;
    let fake = broken(&node, |count, _, reply| match count % 3 {
        1 => reply.sent(|bytes| {
            let half = bytes.len() / 2;
            Body::Cut(bytes, half)
        }),
        _ => reply,
    });
    let id = node.cri.pull(&name(&fake), None).await.expect("an image");
    assert_eq!(id, several_layers().id());
    let seen = fake.seen();
    let resumed: Vec<_> = seen
        .iter()
        .filter(|r| !r.header("range").is_empty())
        .collect();
    assert!(!resumed.is_empty());
    assert!(
        resumed.iter().all(|r| r.header("range") != "bytes=0-"),
        "{resumed:?}"
    );
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_registry_without_ranges_sends_it_all_again() {
    let node = node().await;
    let content = content(&several_layers());
    let count = AtomicUsize::new(0);
    let fake = Fake::start(&node.net, move |request| {
        let mut whole = request.clone();
        whole.headers.remove("range");
        let reply = content.answer(&whole);
        match request.is_blob() && count.fetch_add(1, Ordering::SeqCst) == 2 {
            true => reply.sent(|bytes| Body::Cut(bytes, 100_000)),
            false => reply,
        }
    });
    succeeds(node, &fake).await;
}

#[tokio::test]
async fn a_transfer_that_stalls_is_begun_again() {
    let node = node().await;
    let fake = broken(&node, |count, _, reply| match count {
        1 => reply.sent(|bytes| Body::Stalled(bytes, 70_000)),
        _ => reply,
    });
    succeeds(node, &fake).await;
}

#[tokio::test]
async fn a_registry_that_is_down_for_a_moment_is_waited_for() {
    let node = node().await;
    let fake = broken(&node, |count, _, reply| match count {
        0 => Reply::status(500),
        2 => Reply::error(503, "UNAVAILABLE", "later"),
        3 => Reply::with(429, &[("retry-after", "1")], b""),
        // A registry whose clock is wrong.
        4 => Reply::with(
            503,
            &[
                ("date", "Sun, 06 Nov 1994 08:49:35 GMT"),
                ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ],
            b"",
        ),
        _ => reply,
    });
    let begin = Instant::now();
    let id = node.cri.pull(&name(&fake), None).await.expect("an image");
    assert_eq!(id, several_layers().id());
    assert!(
        begin.elapsed() >= Duration::from_secs(2),
        "as long as it was told to wait"
    );
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_stays_down_is_given_up() {
    let node = node().await;
    let fake = broken(&node, |_, _, _| {
        Reply::error(500, "UNKNOWN", "out of\norder")
    });
    let part = "answers 500 Internal Server Error (out of\\norder)";
    fails(node, &fake, Code::Unknown, part).await;
    // The configuration comes first, in five attempts.
    assert_eq!(fake.count("/blobs/"), 5);
}

#[tokio::test]
async fn a_registry_that_asks_for_an_hour_is_given_up_at_once() {
    for asked in ["3600", "Fri, 31 Dec 9998 23:59:59 GMT"] {
        let node = node().await;
        let fake = broken(&node, move |_, _, _| {
            Reply::with(429, &[("retry-after", asked)], b"")
        });
        fails(node, &fake, Code::Unknown, "RegistryUnavailable: ").await;
        assert_eq!(fake.count("/blobs/"), 1, "{asked}");
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let node = node().await;
    let status = node
        .cri
        .pull("127.0.0.1:9/a/b:1", None)
        .await
        .expect_err("nobody listens");
    assert_eq!(status.code(), Code::Unknown);
    assert_eq!(
        status.message(),
        "RegistryUnavailable: image 127.0.0.1:9/a/b:1: registry http://127.0.0.1:9: connect: Connection refused (os error 111)"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_transfer_that_never_gets_on_ends() {
    let node = node().await;
    let fake = broken(&node, |count, _, reply| match count {
        0 => reply,
        _ => reply.sent(|bytes| Body::Stalled(bytes, 0)),
    });
    fails(
        node,
        &fake,
        Code::Unknown,
        &format!("no progress within {} s", timeout()),
    )
    .await;
}

#[tokio::test]
async fn a_registry_that_drips_is_as_good_as_none() {
    let node = node().await;
    let fake = broken(&node, |_, _, reply| {
        reply.sent(|bytes| Body::Slow(bytes, host::patience(Duration::from_millis(20))))
    });
    fails(
        node,
        &fake,
        Code::Unknown,
        &format!("no progress within {} s", timeout()),
    )
    .await;
}

#[tokio::test]
async fn other_bytes_than_were_promised_are_refused() {
    let largest = several_layers().build().layers[3].clone();
    let path = digest(&largest);
    for (change, part) in [
        (
            change_a_bit as fn(Vec<u8>) -> Vec<u8>,
            "unpack layer sha256:",
        ),
        (longer, "bytes, not"),
        (shorter, "bytes, not"),
        (another_layer, "bytes, not"),
    ] {
        let node = node().await;
        let path = path.clone();
        let fake = broken(&node, move |_, request, reply| {
            match request.path.ends_with(&path) {
                true => reply.sent(|bytes| Body::Whole(change(bytes))),
                false => reply,
            }
        });
        fails(node, &fake, Code::InvalidArgument, part).await;
    }
}

fn change_a_bit(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}

fn longer(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(0);
    bytes
}

fn shorter(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.pop();
    bytes
}

fn another_layer(_: Vec<u8>) -> Vec<u8> {
    image::Image::tiny("other").build().layers[0].clone()
}

#[tokio::test]
async fn a_layer_whose_content_is_not_what_the_image_says_is_refused() {
    // The layer is what its digest says, but not what the configuration promises to be inside.
    let node = node().await;
    let mut built = several_layers().build();
    let other = another_layer(Vec::new());
    let manifest = String::from_utf8(built.manifest).expect("text");
    let swapped = manifest
        .replace(&digest(&built.layers[0]), &digest(&other))
        .replace(
            &format!("\"size\":{}", built.layers[0].len()),
            &format!("\"size\":{}", other.len()),
        );
    built.manifest = swapped.into_bytes();
    built.layers[0] = other;
    let content = carpel_integration::registry::Content::default().image("a/b", "1", &built);
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    fails(node, &fake, Code::InvalidArgument, "its diff id is").await;
}
