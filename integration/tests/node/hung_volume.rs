//! A volume whose file system does not answer (a dead NFS or FUSE server; faults F18) costs its own pod and no other.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use carpel_integration::request::{ContainerConfigExt, sleeper};
use carpel_integration::{TestNode, host};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mount of a FUSE server that says nothing, until it is dropped.
struct Hung {
    dir: PathBuf,
    server: Option<File>,
}

impl Hung {
    fn new(dir: &Path) -> Self {
        fs::create_dir(dir).unwrap();
        let server = File::options().read(true).write(true).open("/dev/fuse");
        let server = server.expect("the tests need FUSE (fuse.ko)");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            server.as_raw_fd()
        );
        let kind = Some("fuse");
        mount(Some("hung"), dir, kind, MsFlags::empty(), Some(&*options)).unwrap();
        Self {
            dir: dir.to_owned(),
            server: Some(server),
        }
    }

    /// The server dies: whoever waits for it gets an error.
    fn die(&mut self) {
        self.server = None;
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.die();
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_volume_that_hangs_holds_up_its_own_container_only() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut hung = Hung::new(&node.dir().join("hung"));
    let config = sleeper("waits").mount(&hung.dir.join("sub"), "/v");
    let patience = host::patience(Duration::from_secs(2));
    let created = tokio::time::timeout(patience, node.try_create(&pod, &config)).await;
    assert!(created.is_err(), "{created:?}");
    // Others do not notice, in the same pod and elsewhere.
    let begin = Instant::now();
    let beside = node.start_container(&pod, &sleeper("beside")).await;
    assert_eq!(node.exec(&beside, "echo fine").await, "fine\n");
    for n in 0..10 {
        let other = node.run_pod(&node.pod(&format!("other-{n}"))).await;
        let id = node.start_container(&other, &sleeper("a")).await;
        node.try_stop(&id, 0).await.unwrap();
        node.try_stop_pod(&other.id).await.unwrap();
        node.try_remove_pod(&other.id).await.unwrap();
    }
    let took = begin.elapsed();
    assert!(took < host::patience(Duration::from_secs(10)), "{took:?}");
    // Nor does the daemon's next life.
    let begin = Instant::now();
    node.crash().await;
    let took = begin.elapsed();
    assert!(took < host::patience(Duration::from_secs(3)), "{took:?}");
    assert_eq!(node.exec(&beside, "echo fine").await, "fine\n");
    node.try_stop(&beside, 0).await.unwrap();
    node.try_remove(&beside).await.unwrap();
    // The pod can be stopped and removed while it hangs.
    let created = tokio::time::timeout(patience, node.try_create(&pod, &config)).await;
    assert!(created.is_err(), "{created:?}");
    let stopped = tokio::time::timeout(host::soon(), node.try_stop_pod(&pod.id)).await;
    stopped.expect("an answer").unwrap();
    let removed = tokio::time::timeout(host::soon(), node.try_remove_pod(&pod.id)).await;
    removed.expect("an answer").unwrap();
    hung.die();
    node.remove_pods().await;
    drop(hung);
    node.finish().await;
}
