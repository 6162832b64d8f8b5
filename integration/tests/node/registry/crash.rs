//! The daemon dies in the middle of a pull, at each named step and at any moment. It starts again, has an image whole or
//! not at all, and the same pull succeeds.

use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};

use carpel::failpoint;
use carpel_integration::TestNode;
use carpel_integration::image::{Layer, digest};
use carpel_integration::registry::{Body, Fake};

use super::{assert_nothing_left, content, left, node, remove_all, several_layers};

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

/// When the daemon is to die: at the request for a thing of the registry's, after so many bytes of it have been sent.
#[derive(Debug, Clone)]
struct Moment {
    path: String,
    sent: usize,
    pid: i32,
}

/// A registry that kills the daemon at the moment that it is told.
fn deadly(node: &TestNode, moment: &Arc<Mutex<Option<Moment>>>) -> Fake {
    let content = content(&several_layers());
    let moment = Arc::clone(moment);
    Fake::start(&node.net, move |request| {
        let reply = content.answer(request);
        let mut moment = moment.lock().expect("no handler panicked");
        match moment.take_if(|moment| request.path.ends_with(&moment.path)) {
            Some(Moment { sent, pid, .. }) => reply.sent(|bytes| Body::Deadly(bytes, sent, pid)),
            None => reply,
        }
    })
}

/// Fifty of them: the first and last bytes of everything that is sent, and between these spread evenly over the layers.
fn moments() -> Vec<(String, usize)> {
    let built = several_layers().build();
    let mut moments = vec![("/manifests/1".to_owned(), 0)];
    let small = [(&built.manifest, "manifests/1"), (&built.config, "blobs/")];
    for (bytes, place) in small {
        let path = match place {
            "blobs/" => digest(bytes),
            place => place.to_owned(),
        };
        moments.extend([1, bytes.len() / 2, bytes.len()].map(|sent| (path.clone(), sent)));
    }
    let layers = built.layers.len();
    for n in 0..50 - moments.len() {
        let layer = &built.layers[n % layers];
        // 0, 1/7, …, 1 of the layer; the smallest has fewer bytes than that.
        let step = n / layers;
        moments.push((digest(layer), layer.len() * step / (43 / layers)));
    }
    moments
}

/// Every layer that is there has its file whole: those of an image, and those that another pull could share.
fn assert_layers_are_whole(node: &TestNode) {
    let tars = several_layers().layers;
    let whole: Vec<Vec<u8>> = tars.iter().map(Layer::tar).collect();
    for layer in std::fs::read_dir(node.dir().join("root/layers")).expect("layers") {
        let layer = layer.expect("a layer").path().join("fs");
        let files = std::fs::read_dir(&layer).expect("the layer's files");
        let files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        let [file] = &files[..] else {
            panic!("{}: {files:?}", layer.display());
        };
        let bytes = std::fs::read(file).expect("a file");
        let is_in = |tar: &&Vec<u8>| tar[512..].starts_with(&bytes) && !bytes.is_empty();
        assert!(whole.iter().any(|tar| is_in(&tar)), "{}", file.display());
    }
}

#[tokio::test]
async fn a_kill_at_any_of_fifty_moments_leaves_whole_layers_or_none() {
    let mut node = node().await;
    let moment = Arc::default();
    let fake = deadly(&node, &moment);
    let image = format!("{}/a/b:1", fake.host());
    let all = moments();
    assert_eq!(all.len(), 50);
    for (path, sent) in all {
        let pid = node.daemon_pid().expect("the daemon runs");
        let now = Moment { path, sent, pid };
        *moment.lock().expect("no handler panicked") = Some(now.clone());
        let outcome = node.cri.pull(&image, None).await;
        assert!(outcome.is_err(), "{now:?}: {outcome:?}");
        let exit = node.wait_daemon_end().await;
        assert_eq!(exit.signal(), Some(9), "{now:?}: {exit}");
        assert_layers_are_whole(&node);
        node.start_daemon(None).await;
        // The registry had not sent the last byte of something when the daemon died, or just had.
        if super::image(&node, &image).await.is_none() {
            assert_nothing_left(&node).await;
        }
        let id = node.cri.pull(&image, None).await.expect("an image");
        assert_eq!(id, several_layers().id(), "{now:?}");
        assert_layers_are_whole(&node);
        assert_eq!(left(&node).len(), 7, "{now:?}: {:?}", left(&node));
        remove_all(&node).await;
        assert_nothing_left(&node).await;
    }
    node.finish().await;
}
