//! The folders of the daemon's own fill up, or cannot be written.

use std::fs;
use std::path::Path;
use std::process::Command;

use carpel_integration::request::{ContainerConfigExt, sleeper};
use carpel_integration::v1::ContainerState;
use carpel_integration::{TestNode, host, sh};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Puts a small file system in a folder's place.
fn small(dir: &Path) {
    let options = Some("size=2m");
    let kind = Some("tmpfs");
    mount(Some("none"), dir, kind, MsFlags::empty(), options).unwrap();
}

/// Leaves no byte in a folder's file system.
fn fill(dir: &Path) -> std::path::PathBuf {
    let filler = dir.join("filler");
    let full = Command::new("dd")
        .args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", filler.display()))
        .output()
        .unwrap();
    assert!(!full.status.success());
    filler
}

#[tokio::test]
async fn a_full_state_folder_costs_no_exit() {
    let mut node = TestNode::start().await;
    node.terminate_daemon().await;
    let state = node.dir().join("state");
    small(&state);
    node.start_daemon(None).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let stays = node.start_container(&pod, &sleeper("stays")).await;
    let gate = node.dir().join("gate");
    fs::create_dir(&gate).unwrap();
    let script = "until [ -e /gate/open ]; do usleep 10000; done; exit 7";
    let ends = node
        .start_container(&pod, &sh("ends", script).mount(&gate, "/gate"))
        .await;
    let filler = fill(&state);
    // An exit that the supervisor cannot write down.
    fs::write(gate.join("open"), "").unwrap();
    node.wait_exit(&ends).await;
    node.crash().await;
    let exit = node.status(&ends).await;
    assert_eq!(
        (exit.state(), exit.exit_code),
        (ContainerState::ContainerExited, 7)
    );
    // The daemon has it from the supervisor, and on its own disk.
    let supervisor = node.supervisor_pid(&pod).await;
    node.kill_daemon();
    host::kill_9(supervisor);
    node.start_daemon(None).await;
    let exit = node.status(&ends).await;
    assert_eq!(
        (exit.state(), exit.exit_code),
        (ContainerState::ContainerExited, 7)
    );
    // What frees space works, and without a restart it goes on.
    node.try_stop(&stays, 0).await.unwrap();
    node.try_remove(&stays).await.unwrap();
    node.try_stop_pod(&pod.id).await.unwrap();
    node.try_remove_pod(&pod.id).await.unwrap();
    fs::remove_file(&filler).unwrap();
    let pod = node.run_pod(&node.pod("three")).await;
    node.start_container(&pod, &sleeper("b")).await;
    node.remove_pods().await;
    node.terminate_daemon().await;
    umount2(&state, MntFlags::MNT_DETACH).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_starts_on_a_read_only_disk_says_so() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let pid = node.container_pid(&id);
    node.kill_daemon();
    let root = node.dir().join("root");
    let none = None::<&str>;
    mount(Some(&root), &root, none, MsFlags::MS_BIND, none).unwrap();
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &root, none, flags, none).unwrap();
    let mut command = node.serve_command();
    let output = node.net.run(|| command.output()).unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("Read-only file system"), "{told}");
    assert!(host::runs(pid));
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    node.start_daemon(None).await;
    assert_eq!(node.exec(&id, "echo alive").await, "alive\n");
    node.finish().await;
}
