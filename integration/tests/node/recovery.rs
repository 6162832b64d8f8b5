//! The daemon goes and comes back: pods do not notice, exits and lines are not lost.

use std::fs;
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::v1::{ContainerState, PodSandboxState};
use carpel_integration::{Log, TestNode, host, sh};

#[tokio::test]
async fn ten_containers_run_log_and_exit_while_the_daemon_is_dead() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        // Some exit before the crash, some while the daemon is dead, some after it is back.
        let script = format!(
            "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; [ $((i % 20)) = 0 ] && usleep {}; done; exit {}",
            4_000 * n,
            10 + n
        );
        ids.push(
            node.start_container(&pod, &sh(&format!("c{n}"), &script))
                .await,
        );
    }
    let forever = node.start_container(&pod, &sleeper("forever")).await;
    let pid = node.container_pid(&forever);
    let started = host::start_time(pid);
    tokio::time::sleep(Duration::from_millis(150)).await;
    node.kill_daemon();
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.start_daemon(None).await;

    assert_eq!(
        node.status(&forever).await.state(),
        ContainerState::ContainerRunning
    );
    assert_eq!(
        (node.container_pid(&forever), host::start_time(pid)),
        (pid, started)
    );
    let expected: String = (1..=400).map(|i| format!("line {i}\n")).collect();
    for (n, id) in ids.iter().enumerate() {
        let status = node.wait_exit(id).await;
        assert_eq!(status.exit_code, 10 + i32::try_from(n).unwrap());
        assert!(
            status.started_at > status.created_at && status.finished_at > status.started_at,
            "{status:?}"
        );
        assert_eq!(node.log(&pod, &format!("c{n}")).stdout(), expected, "c{n}");
    }
    assert_eq!(node.exec(&forever, "echo still mine").await, "still mine\n");
    node.finish().await;
}

#[tokio::test]
async fn a_restart_changes_nothing_that_a_client_sees() {
    let mut node = TestNode::start().await;
    let mut config = node.pod("one");
    config.labels.insert("app".into(), "web".into());
    let pod = node.run_pod(&config).await;
    let other = node.run_pod(&node.pod("two")).await;
    node.try_stop_pod(&other.id).await.unwrap();
    let running = node.start_container(&pod, &sleeper("running")).await;
    let created = node
        .try_create(&pod, &sh("created", "echo later"))
        .await
        .unwrap();
    let (_, exited) = node.run_to_end(&pod, &sh("exited", "exit 9")).await;
    let picture = async |node: &TestNode| {
        let mut pods = node.pods().await;
        pods.sort_by(|a, b| a.id.cmp(&b.id));
        let mut containers = node.containers().await;
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        let mut all = (pods, containers, Vec::new(), Vec::new());
        for id in [&running, &created, &exited.id] {
            all.2.push(node.status(id).await);
        }
        for pod in [&pod, &other] {
            all.3.push(node.pod_status(pod).await);
        }
        all
    };
    let before = picture(&node).await;
    node.crash().await;
    assert_eq!(picture(&node).await, before);
    assert!(node.terminate_daemon().await.success());
    node.start_daemon(None).await;
    assert_eq!(picture(&node).await, before);
    node.try_start(&created).await.unwrap();
    node.wait_exit(&created).await;
    assert_eq!(node.log(&pod, "created").stdout(), "later\n");
    // The same requests still mean the same pods.
    assert_eq!(node.run_pod(&config).await.id, pod.id);
    node.finish().await;
}

#[tokio::test]
async fn a_restart_with_thirty_pods_takes_little_time() {
    let mut node = TestNode::start().await;
    for n in 0..30 {
        let pod = node.run_pod(&node.pod(&format!("p{n}"))).await;
        node.start_container(&pod, &sleeper("a")).await;
    }
    node.kill_daemon();
    let begin = Instant::now();
    node.start_daemon(None).await;
    assert!(
        begin.elapsed() < host::patience(Duration::from_secs(2)),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(node.pods().await.len(), 30);
    assert!(
        node.containers()
            .await
            .iter()
            .all(|c| c.state() == ContainerState::ContainerRunning)
    );
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_stops_while_the_daemon_is_dead_is_exited_with_its_code() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node
        .start_container(
            &pod,
            &sh("a", "trap 'exit 23' TERM; echo up; sleep 1000 & wait"),
        )
        .await;
    let pid = node.container_pid(&id);
    node.wait_log(&pod, "a", |log| log.stdout() == "up\n").await;
    node.kill_daemon();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.start_daemon(None).await;
    let status = node.status(&id).await;
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 23)
    );
    node.finish().await;
}

#[tokio::test]
async fn damaged_records_are_put_aside_and_the_rest_lives() {
    let mut node = TestNode::start().await;
    let good = node.run_pod(&node.pod("good")).await;
    let id = node.start_container(&good, &sleeper("a")).await;
    let bad = node.run_pod(&node.pod("bad")).await;
    node.start_container(&bad, &sleeper("b")).await;
    node.try_stop_pod(&bad.id).await.unwrap();
    node.kill_daemon();
    damage(&node, &bad.id, |_| true);
    node.start_daemon(None).await;
    assert_eq!(node.exec(&id, "echo alive").await, "alive\n");
    assert!(node.pods().await.iter().any(|pod| pod.id == good.id));
    assert!(
        node.daemon_log().contains("quarantine") || node.daemon_log().contains("damaged"),
        "the log tells of it"
    );
    node.remove_pods().await;
    only_the_quarantine_is_left(&node).await;
    node.finish().await;
}

/// What was put aside is there for a person to look at, and soon nothing else is. Takes it away.
async fn only_the_quarantine_is_left(node: &TestNode) {
    let is_aside = |leak: &String| leak.starts_with("file ") && leak.contains("quarantine");
    let aside = fs::read_dir(node.dir().join("root/quarantine")).unwrap();
    assert!(aside.count() > 0);
    let deadline = Instant::now() + host::soon();
    loop {
        let left = node.leaks();
        if left.iter().all(is_aside) {
            break;
        }
        assert!(Instant::now() < deadline, "{left:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fs::remove_dir_all(node.dir().join("root/quarantine")).unwrap();
}

/// Changes the last byte of each record that is `wanted` of the objects named `id`.
fn damage(node: &TestNode, id: &str, wanted: impl Fn(&str) -> bool) {
    let mut damaged = 0;
    for (path, _) in records(node, id) {
        if wanted(&path.display().to_string()) {
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 0x55;
            fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "no record of {id} below the root");
}

#[tokio::test]
async fn a_running_pod_without_a_readable_record_is_ended_whole() {
    let mut node = TestNode::start().await;
    let good = node.run_pod(&node.pod("good")).await;
    let lives = node.start_container(&good, &sleeper("a")).await;
    let bad = node.run_pod(&node.pod("bad")).await;
    let id = node.start_container(&bad, &sleeper("b")).await;
    let second = node.start_container(&bad, &sleeper("c")).await;
    let pids = [&id, &second].map(|id| node.container_pid(id));
    node.kill_daemon();
    damage(&node, &bad.id, |path| {
        path.contains("/sandboxes/") && path.ends_with("/record")
    });
    node.start_daemon(None).await;
    for pid in pids {
        assert!(!host::runs(pid), "{}", host::describe(pid));
    }
    let status = node.try_status(&id).await.expect_err("it is gone");
    assert_eq!(status.code(), tonic::Code::NotFound, "{status}");
    assert_eq!(node.exec(&lives, "echo alive").await, "alive\n");
    node.remove_pods().await;
    only_the_quarantine_is_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn the_containers_of_a_dead_pod_without_a_readable_record_are_ended() {
    let mut node = TestNode::start().await;
    let bad = node.run_pod(&node.pod("bad")).await;
    let id = node.start_container(&bad, &sleeper("b")).await;
    let (pid, supervisor) = (node.container_pid(&id), node.supervisor_pid(&bad).await);
    node.kill_daemon();
    host::kill_9(supervisor);
    damage(&node, &bad.id, |path| {
        path.contains("/sandboxes/") && path.ends_with("/record")
    });
    node.start_daemon(None).await;
    assert!(!host::runs(pid), "{}", host::describe(pid));
    only_the_quarantine_is_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_running_container_without_a_readable_record_is_ended_alone() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let good = node.start_container(&pod, &sleeper("good")).await;
    let bad = node.start_container(&pod, &sleeper("bad")).await;
    let pid = node.container_pid(&bad);
    node.kill_daemon();
    damage(&node, &bad, |path| {
        path.contains("/containers/") && path.ends_with("/record")
    });
    node.start_daemon(None).await;
    assert!(!host::runs(pid), "{}", host::describe(pid));
    assert_eq!(node.exec(&good, "echo alive").await, "alive\n");
    // Its name is free.
    node.start_container(&pod, &sleeper("bad")).await;
    node.remove_pods().await;
    only_the_quarantine_is_left(&node).await;
    node.finish().await;
}

/// The files below the root that name `id`, or lie in a folder that does.
fn records(node: &TestNode, id: &str) -> Vec<(std::path::PathBuf, u64)> {
    fn walk(dir: &std::path::Path, id: &str, found: &mut Vec<(std::path::PathBuf, u64)>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                walk(&path, id, found);
            } else if path.display().to_string().contains(id) && metadata.is_file() {
                found.push((path, metadata.len()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&node.dir().join("root"), id, &mut found);
    found
}

#[tokio::test]
async fn a_reboot_ends_every_container_and_keeps_what_can_be_removed() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let (_, exited) = node.run_to_end(&pod, &sh("b", "exit 5")).await;
    // Records are synced within a second.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    node.reboot();
    node.start_daemon(None).await;
    assert_eq!(
        node.pod_status(&pod).await.state(),
        PodSandboxState::SandboxNotready
    );
    let status = node.status(&id).await;
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 255)
    );
    assert!(!status.reason.is_empty());
    // Else kubectl says that it was started in 1970.
    assert_eq!(status.started_at, status.created_at);
    assert!(status.finished_at > status.started_at);
    assert_eq!(node.status(&exited.id).await.exit_code, 5);
    // Images are still there.
    let next = node.run_pod(&node.pod("two")).await;
    assert_eq!(node.output_of(&next, &sh("c", "echo fine")).await, "fine\n");
    node.finish().await;
}

#[tokio::test]
async fn a_netns_pin_that_somebody_removed_does_not_hold_up_a_removal() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    node.start_container(&pod, &sleeper("a")).await;
    let pin = host::mounts_below(&node.netns_dir()).remove(0);
    nix::mount::umount2(&pin, nix::mount::MntFlags::MNT_DETACH).unwrap();
    fs::remove_file(&pin).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_log_goes_on_in_the_same_file_after_a_restart() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "trap 'echo end; exit 0' TERM; i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo $i; usleep 10000; done; sleep 1000 & wait";
    let id = node.start_container(&pod, &sh("a", script)).await;
    for _ in 0..3 {
        node.crash().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.wait_log(&pod, "a", |log| log.stdout().ends_with("\n50\n"))
        .await;
    node.try_stop(&id, 5).await.unwrap();
    let expected: String = (1..=50).map(|n| format!("{n}\n")).collect();
    assert_eq!(
        Log::read(&node.log_dir("one").join("a.log")).stdout(),
        expected + "end\n"
    );
    node.finish().await;
}
