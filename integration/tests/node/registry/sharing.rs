//! Pulls beside each other, and pulls that are given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carpel_integration::TestNode;
use carpel_integration::image::{Image, Layer, digest};
use carpel_integration::registry::{Body, Content, Fake};

use super::{assert_nothing_left, content, images, left, node, remove_all, several_layers, until};

/// A registry that holds its blobs back until it is told to go on.
fn held_back(node: &TestNode, content: Content) -> (Fake, Arc<AtomicBool>) {
    let go = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&go);
    let fake = Fake::start(&node.net, move |request| {
        while request.is_blob() && !told.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        content.answer(request)
    });
    (fake, go)
}

#[tokio::test]
async fn pulls_of_one_image_share_the_work() {
    let node = node().await;
    let made = several_layers();
    let (fake, go) = held_back(&node, content(&made));
    let name = format!("{}/a/b:1", fake.host());
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let (cri, name) = (node.cri.clone(), name.clone());
            tokio::spawn(async move { cri.pull(&name, None).await })
        })
        .collect();
    until("a blob is asked for", || fake.count("/blobs/") > 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    go.store(true, Ordering::SeqCst);
    for pull in pulls {
        assert_eq!(pull.await.expect("no panic").expect("an image"), made.id());
    }
    assert_eq!(fake.count("/manifests/"), 1);
    assert_eq!(fake.count("/blobs/"), 7);
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn images_that_share_layers_fetch_them_once() {
    let node = node().await;
    let base = several_layers();
    let with = |name: &str| {
        base.clone()
            .layer(Layer::default().file(name, 0o644, name.as_bytes()))
    };
    let (one, two) = (with("one"), with("two"));
    let content =
        Content::default()
            .image("a/b", "one", &one.build())
            .image("a/b", "two", &two.build());
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    let names = ["one", "two"].map(|tag| format!("{}/a/b:{tag}", fake.host()));
    let (first, second) = tokio::join!(
        node.cri.pull(&names[0], None),
        node.cri.pull(&names[1], None)
    );
    assert_eq!((first.unwrap(), second.unwrap()), (one.id(), two.id()));
    for layer in &base.build().layers {
        assert_eq!(fake.count(&digest(layer)), 1);
    }
    assert_eq!(images(&node).await.len(), 2);
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pull_that_waits_for_another_takes_over_when_that_is_given_up() {
    let node = node().await;
    let base = several_layers();
    let two = base
        .clone()
        .layer(Layer::default().file("two", 0o644, b"two"));
    let content = content(&base).image("a/b", "2", &two.build());
    let (fake, go) = held_back(&node, content);
    let pull = |tag: &str| {
        let (cri, name) = (node.cri.clone(), format!("{}/a/b:{tag}", fake.host()));
        tokio::spawn(async move { cri.pull(&name, None).await })
    };
    let config = digest(&base.build().config);
    // Past its configuration, so that it has claimed the layers.
    let first = pull("1");
    until("the configuration is asked for", || fake.count(&config) > 0).await;
    go.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = pull("2");
    tokio::time::sleep(Duration::from_millis(5)).await;
    first.abort();
    assert_eq!(second.await.expect("no panic").expect("an image"), two.id());
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_is_given_up_and_leaves_nothing() {
    let node = node().await;
    let made = several_layers();
    let good = content(&made);
    let stall = Arc::new(AtomicBool::new(true));
    let stalling = Arc::clone(&stall);
    let big = digest(&made.build().layers[4]);
    let fake = Fake::start(&node.net, move |request| {
        let reply = good.answer(request);
        match stalling.load(Ordering::SeqCst) && request.path.ends_with(&big) {
            true => reply.sent(|bytes| Body::Slow(bytes, Duration::from_millis(1))),
            false => reply,
        }
    });
    let name = format!("{}/a/b:1", fake.host());
    let pull = || {
        let (cri, name) = (node.cri.clone(), name.clone());
        tokio::spawn(async move { cri.pull(&name, None).await })
    };
    let (first, second) = (pull(), pull());
    until("layers are on their way", || !left(&node).is_empty()).await;
    first.abort();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!left(&node).is_empty(), "the second still waits");
    second.abort();
    assert_nothing_left(&node).await;
    // Whoever asks then begins anew.
    stall.store(false, Ordering::SeqCst);
    assert_eq!(
        node.cri.pull(&name, None).await.expect("an image"),
        made.id()
    );
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn an_image_that_is_known_is_not_fetched_again() {
    let node = node().await;
    let made = Image::tiny("x");
    let content = content(&made);
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    let name = format!("{}/a/b:1", fake.host());
    for _ in 0..2 {
        assert_eq!(
            node.cri.pull(&name, None).await.expect("an image"),
            made.id()
        );
    }
    assert_eq!((fake.count("/manifests/"), fake.count("/blobs/")), (2, 2));
    remove_all(&node).await;
    node.finish().await;
}
