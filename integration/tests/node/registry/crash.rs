//! The daemon dies in the middle of a pull, at each named step and at any moment. It starts again, has an image whole or
//! not at all, and the same pull succeeds.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use carpel::failpoint;
use carpel_integration::TestNode;
use carpel_integration::registry::Fake;

use super::{assert_nothing_left, content, node, remove_all, several_layers};

fn registry(node: &TestNode) -> Fake {
    let content = content(&several_layers());
    Fake::start(&node.net, move |request| content.answer(request))
}

#[tokio::test]
async fn a_daemon_that_dies_leaves_nothing_half() {
    for name in failpoint::PULL {
        let mut node = node().await;
        let fake = registry(&node);
        let image = format!("{}/a/b:1", fake.host());
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(name)).await;
        let outcome = node.cri.pull(&image, None).await;
        let exit = node.wait_daemon_end().await;
        assert_eq!(exit.signal(), Some(9), "{name}: {exit}, {outcome:?}");
        node.start_daemon(None).await;
        assert_nothing_left(&node).await;
        let id = node.cri.pull(&image, None).await.expect(name);
        assert_eq!(id, several_layers().id());
        remove_all(&node).await;
        node.finish().await;
    }
}

#[tokio::test]
async fn a_step_that_fails_undoes_the_pull() {
    for name in failpoint::PULL {
        let mut node = node().await;
        let fake = registry(&node);
        let image = format!("{}/a/b:1", fake.host());
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(&format!("{name}:error"))).await;
        let status = node.cri.pull(&image, None).await.expect_err(name);
        assert!(status.message().contains(name), "{status}");
        assert_nothing_left(&node).await;
        node.cri.pull(&image, None).await.expect(name);
        remove_all(&node).await;
        node.finish().await;
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_an_image_whole_or_not_at_all() {
    let mut node = node().await;
    let fake = registry(&node);
    let image = format!("{}/a/b:1", fake.host());
    for moment in 0..10 {
        let (cri, name) = (node.cri.clone(), image.clone());
        let pull = tokio::spawn(async move { cri.pull(&name, None).await });
        tokio::time::sleep(Duration::from_millis(moment * 15)).await;
        node.crash().await;
        let _ = pull.await;
        if super::image(&node, &image).await.is_none() {
            assert_nothing_left(&node).await;
        }
        assert_eq!(
            node.cri.pull(&image, None).await.expect("an image"),
            several_layers().id()
        );
        remove_all(&node).await;
        assert_nothing_left(&node).await;
    }
    node.finish().await;
}
