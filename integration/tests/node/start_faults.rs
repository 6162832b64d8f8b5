//! A daemon that starts on a machine that is not well: what it cannot read or reach now is no reason to end a pod.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::v1::{ContainerState, PodSandboxState};
use carpel_integration::{Pod, TestNode, host, sh};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Starts the daemon, with room for so many descriptors, until it serves or ends. What it said, and whether it served.
fn start_briefly(node: &TestNode, descriptors: u64) -> (bool, String) {
    let serve = node.serve_command();
    let path = node.dir().join("brief.log");
    let log = File::create(&path).expect("a log");
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--nofile={descriptors}:{descriptors}"))
        .arg(serve.get_program())
        .args(serve.get_args())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log);
    for (name, value) in serve.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut daemon = node.net.run(|| command.spawn()).expect("prlimit");
    let deadline = Instant::now() + host::soon();
    let served = loop {
        let said = fs::read_to_string(&path).expect("a log");
        if said.lines().any(|line| line.contains(" serving ")) {
            break true;
        }
        if let Some(exit) = daemon.try_wait().expect("wait") {
            assert!(!exit.success(), "{exit}: {said}");
            break false;
        }
        assert!(Instant::now() < deadline, "neither serves nor ends: {said}");
        std::thread::sleep(Duration::from_millis(5));
    };
    let _ = daemon.kill();
    daemon.wait().expect("wait");
    let said = fs::read_to_string(&path).expect("a log");
    fs::remove_file(&path).expect("remove the log");
    let _ = fs::remove_file(node.socket());
    (served, said)
}

/// As much as a daemon ever needs here.
const PLENTY: u64 = 1024;

pub(super) async fn assert_lives(node: &TestNode, pods: &[(Pod, String, i32)]) {
    for (pod, id, pid) in pods {
        let state = node.pod_status(pod).await.state();
        assert_eq!(state, PodSandboxState::SandboxReady);
        let status = node.status(id).await;
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert_eq!(node.container_pid(id), *pid);
        assert_eq!(node.exec(id, "echo alive").await, "alive\n");
    }
}

pub(super) async fn run_pods(node: &TestNode, count: usize) -> Vec<(Pod, String, i32)> {
    let mut pods = Vec::new();
    for n in 0..count {
        let pod = node.run_pod(&node.pod(&format!("p{n}"))).await;
        let id = node.start_container(&pod, &sleeper("a")).await;
        let pid = node.container_pid(&id);
        pods.push((pod, id, pid));
    }
    pods
}

#[tokio::test]
async fn too_few_descriptors_end_no_pod() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 4).await;
    node.kill_daemon();
    let (mut failed, mut served) = (0, 0);
    for descriptors in 16..=128 {
        let (serves, said) = start_briefly(&node, descriptors);
        for (_, _, pid) in &pods {
            assert!(host::runs(*pid), "{descriptors} descriptors: {said}");
        }
        let aside = fs::read_dir(node.dir().join("root/quarantine")).expect("the quarantine");
        assert_eq!(aside.count(), 0, "{descriptors} descriptors: {said}");
        *if serves { &mut served } else { &mut failed } += 1;
        if served == 8 {
            break;
        }
    }
    assert!(failed > 0 && served > 0, "{failed} failed, {served} served");
    node.start_daemon(None).await;
    assert_lives(&node, &pods).await;
    let next = node.run_pod(&node.pod("next")).await;
    assert_eq!(node.output_of(&next, &sh("c", "echo fine")).await, "fine\n");
    node.finish().await;
}

#[tokio::test]
async fn a_record_on_a_disk_that_does_not_read_ends_no_pod() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 2).await;
    node.kill_daemon();
    let root = node.dir().join("root");
    let (pod, id, _) = &pods[0];
    for record in [
        root.join("sandboxes").join(&pod.id).join("record"),
        root.join("containers").join(id).join("record"),
    ] {
        // Nothing is mapped at its beginning: reading it there is an I/O error.
        let memory = format!("/proc/{}/mem", std::process::id());
        let bind = MsFlags::MS_BIND;
        mount(
            Some(memory.as_str()),
            &record,
            None::<&str>,
            bind,
            None::<&str>,
        )
        .unwrap();
        let (served, said) = start_briefly(&node, PLENTY);
        umount2(&record, MntFlags::MNT_DETACH).unwrap();
        assert!(!served, "{said}");
        assert!(said.contains(&record.display().to_string()), "{said}");
    }
    node.start_daemon(None).await;
    assert_lives(&node, &pods).await;
    node.finish().await;
}

#[tokio::test]
async fn a_damaged_record_that_cannot_be_put_aside_is_kept() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 2).await;
    node.kill_daemon();
    let root = node.dir().join("root");
    // The record of one pod's sandbox, and of another's container.
    let records = [
        root.join("sandboxes").join(&pods[0].0.id).join("record"),
        root.join("containers").join(&pods[1].1).join("record"),
    ];
    for record in &records {
        fs::write(record, "garbage").unwrap();
    }
    let quarantine = root.join("quarantine");
    let elsewhere = Some("tmpfs");
    mount(
        elsewhere,
        &quarantine,
        elsewhere,
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    node.start_daemon(None).await;
    for record in &records {
        assert_eq!(fs::read_to_string(record).unwrap(), "garbage");
    }
    let listed = node.pods().await;
    assert!(
        listed.len() == 1 && listed[0].id == pods[1].0.id,
        "{listed:?}"
    );
    umount2(&quarantine, MntFlags::MNT_DETACH).unwrap();
    node.crash().await;
    for record in &records {
        assert!(!record.exists());
    }
    assert_eq!(fs::read_dir(&quarantine).unwrap().count(), 2);
    node.remove_pods().await;
    fs::remove_dir_all(quarantine).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_pod_without_a_record_is_ended_whole() {
    for lost in ["record", ""] {
        let mut node = TestNode::start().await;
        let pods = run_pods(&node, 2).await;
        node.kill_daemon();
        let (bad, _, pid) = &pods[0];
        let lost = node.dir().join("root/sandboxes").join(&bad.id).join(lost);
        if lost.is_dir() {
            fs::remove_dir_all(lost).unwrap();
        } else {
            fs::remove_file(lost).unwrap();
        }
        node.start_daemon(None).await;
        assert!(!host::runs(*pid), "{}", host::describe(*pid));
        assert_lives(&node, &pods[1..]).await;
        assert_eq!(node.pods().await.len(), 1);
        node.finish().await;
    }
}

#[tokio::test]
async fn a_network_namespace_without_a_record_is_released_and_those_of_others_stay() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 2).await;
    let supervisor = node.supervisor_pid(&pods[0].0).await;
    let pin = |id: &str| node.netns_dir().join(format!("carpel-{id}"));
    let (lost, kept) = (pin(&pods[0].0.id), pin(&pods[1].0.id));
    let others = [pin(&"a".repeat(64)), node.netns_dir().join("mine")];
    for other in &others {
        File::create(other).unwrap();
        let (from, none) = (Some("/proc/self/ns/net"), None::<&str>);
        mount(from, other, none, MsFlags::MS_BIND, none).unwrap();
    }
    node.kill_daemon();
    host::kill_9(supervisor);
    host::kill_9(pods[0].2);
    for dir in ["root/sandboxes", "state/pods"] {
        fs::remove_dir_all(node.dir().join(dir).join(&pods[0].0.id)).unwrap();
    }
    node.start_daemon(None).await;
    let deadline = Instant::now() + host::soon();
    while lost.exists() {
        assert!(Instant::now() < deadline, "{} stays", lost.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mounts = host::mounts_below(&node.netns_dir());
    for path in others.iter().chain([&kept]) {
        assert!(mounts.contains(path), "{mounts:?}");
    }
    assert_lives(&node, &pods[1..]).await;
    for other in &others {
        umount2(other, MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(other).unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn a_pod_that_cannot_be_undone_is_undone_by_the_next_daemon() {
    let mut node = TestNode::builder()
        .conflist(serde_json::json!({ "cniVersion": "1.0.0", "name": "test", "plugins": [{ "type": "stacks" }] }))
        .start()
        .await;
    // More mounts on the pin than two tries take away.
    let script = "[ $CNI_COMMAND = ADD ] || exit 0
mount --make-private $CNI_NETNS
for i in $(seq 40); do mount --bind $CNI_NETNS $CNI_NETNS; done
exit 1";
    node.write_plugin("stacks", script);
    node.try_run_pod(&node.pod("one")).await.unwrap_err();
    assert!(node.pods().await.is_empty());
    let records = || {
        fs::read_dir(node.dir().join("root/sandboxes"))
            .unwrap()
            .count()
    };
    assert_eq!(records(), 1);
    assert!(!host::mounts_below(&node.netns_dir()).is_empty());
    node.crash().await;
    node.assert_no_leaks().await;
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_was_never_started_does_not_exit_with_its_pod() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 1).await;
    let (pod, running, _) = &pods[0];
    let created = node.try_create(pod, &sleeper("later")).await.unwrap();
    let supervisor = node.supervisor_pid(pod).await;
    node.kill_daemon();
    host::kill_9(supervisor);
    node.start_daemon(None).await;
    let state = node.status(&created).await.state();
    assert_eq!(state, ContainerState::ContainerCreated);
    let state = node.status(running).await.state();
    assert_eq!(state, ContainerState::ContainerExited);
    let started = node.try_start(&created).await;
    super::refused(started, tonic::Code::FailedPrecondition, "is not ready");
    // After a reboot it is the same.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    node.reboot();
    node.start_daemon(None).await;
    let state = node.status(&created).await.state();
    assert_eq!(state, ContainerState::ContainerCreated);
    node.finish().await;
}
