//! Layers are unpacked by processes that can do nothing else.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carpel_integration::TestNode;
use carpel_integration::host;
use carpel_integration::image::digest;
use carpel_integration::registry::{Body, Fake};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

use super::{assert_nothing_left, content, node, remove_all, several_layers, until};

/// Capabilities: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP.
const KEPT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 21 | 1 << 27 | 1 << 31;

/// A registry that sends one of the layers slowly for as long as it is told to.
fn slow(node: &TestNode) -> (Fake, Arc<AtomicBool>) {
    let made = several_layers();
    let (good, big) = (content(&made), digest(&made.build().layers[4]));
    let slow = Arc::new(AtomicBool::new(true));
    let slowly = Arc::clone(&slow);
    let fake = Fake::start(&node.net, move |request| {
        let reply = good.answer(request);
        match slowly.load(Ordering::SeqCst) && request.path.ends_with(&big) {
            true => reply.sent(|bytes| Body::Slow(bytes, Duration::from_millis(5))),
            false => reply,
        }
    });
    (fake, slow)
}

fn status(pid: i32, field: &str) -> String {
    host::proc_status(pid, field).unwrap_or_default()
}

/// The daemon's processes that unpack, and have given up what they do not need.
fn unpacking(node: &TestNode) -> Vec<i32> {
    let daemon = node.daemon_pid().expect("a daemon").to_string();
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours = |pid: &i32| {
        let is = |field, value: &str| status(*pid, field) == value;
        is("PPid", &daemon) && is("Name", "carpel-unpack") && is("Seccomp", "2")
    };
    pids.filter(ours).collect()
}

async fn wait_for_one(node: &TestNode) -> i32 {
    // The others are done soon.
    until("one process unpacks", || unpacking(node).len() == 1).await;
    unpacking(node)[0]
}

#[tokio::test]
async fn it_has_nothing_but_the_layers_folder() {
    let node = node().await;
    let (fake, slow) = slow(&node);
    let name = format!("{}/a/b:1", fake.host());
    let (cri, asked) = (node.cri.clone(), name.clone());
    let pull = tokio::spawn(async move { cri.pull(&asked, None).await });
    let pid = wait_for_one(&node).await;
    let path = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    for set in ["CapEff", "CapPrm"] {
        assert_eq!(status(pid, set), format!("{KEPT:016x}"), "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    let mounts = fs::read_to_string(path("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(mounts.contains(option), "{mounts}");
    }
    assert!(mounts.contains("/fs / "), "{mounts}");
    let root: Vec<_> = fs::read_dir(path("root")).unwrap().flatten().collect();
    assert!(root.len() <= 1, "a layer of one file: {root:?}");
    let fds = fs::read_dir(path("fd")).unwrap().count();
    assert!(fds <= 10, "{fds} descriptors");
    let limits = fs::read_to_string(path("limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    assert!(files.unwrap().contains(" 64 "), "{limits}");
    let score = fs::read_to_string(path("oom_score_adj")).unwrap();
    assert_eq!(score, "800\n");
    assert_eq!(fs::read(path("environ")).unwrap(), b"");

    // It may be killed, as by a kernel that is short of memory.
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let failed = pull.await.expect("no panic").expect_err("it was killed");
    assert_eq!(failed.code(), Code::Internal, "{failed}");
    let part = "the process that unpacks it ended: signal: 9 (SIGKILL)";
    assert!(failed.message().contains(part), "{failed}");
    assert_nothing_left(&node).await;
    slow.store(false, Ordering::SeqCst);
    node.cri.pull(&name, None).await.expect("an image");
    remove_all(&node).await;
    node.finish().await;
}

/// As all mounts are on a machine with systemd.
#[tokio::test]
async fn the_stores_mount_may_be_shared() {
    let node = node().await;
    let root = node.dir().join("root");
    let none = None::<&str>;
    mount(Some(&root), &root, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &root, none, MsFlags::MS_SHARED, none).unwrap();
    let (fake, slow) = slow(&node);
    slow.store(false, Ordering::SeqCst);
    let pulled = node.cri.pull(&format!("{}/a/b:1", fake.host()), None).await;
    remove_all(&node).await;
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(pulled.expect("an image"), several_layers().id());
    node.finish().await;
}

#[tokio::test]
async fn it_dies_with_the_daemon_and_with_the_pull() {
    let mut node = node().await;
    let (fake, slow) = slow(&node);
    let name = format!("{}/a/b:1", fake.host());
    let pull = || {
        let (cri, name) = (node.cri.clone(), name.clone());
        tokio::spawn(async move { cri.pull(&name, None).await })
    };
    let given_up = pull();
    let pid = wait_for_one(&node).await;
    given_up.abort();
    until("it is gone with the pull", || !host::runs(pid)).await;
    assert_nothing_left(&node).await;
    let lost = pull();
    let pid = wait_for_one(&node).await;
    node.kill_daemon();
    until("it is gone with the daemon", || !host::runs(pid)).await;
    assert!(lost.await.expect("no panic").is_err());
    slow.store(false, Ordering::SeqCst);
    node.start_daemon(None).await;
    assert_nothing_left(&node).await;
    node.cri.pull(&name, None).await.expect("an image");
    remove_all(&node).await;
    node.finish().await;
}
