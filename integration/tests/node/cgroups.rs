//! Where containers are in the cgroup hierarchies, and their limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};
use tonic::Code;

use crate::{node_with_container, refused};

/// The cgroup folders of a container: one in each hierarchy that has it.
fn folders(node: &TestNode, parent: &str, id: &str) -> Vec<PathBuf> {
    let folders: Vec<_> = host::cgroup_dirs(parent)
        .iter()
        .flat_map(|dir| host::tree(dir))
        .filter(|dir| {
            dir.file_name()
                .is_some_and(|name| name.to_string_lossy().contains(id))
        })
        .collect();
    assert!(
        !folders.is_empty(),
        "no cgroup of {id} below {parent}\n{}",
        node.daemon_log()
    );
    folders
}

/// The value of the first of these files that a container's cgroups have: v1's and v2's names differ.
fn value(folders: &[PathBuf], names: &[&str]) -> String {
    folders
        .iter()
        .flat_map(|dir| names.iter().map(|name| dir.join(name)))
        .find_map(|file| fs::read_to_string(file).ok())
        .unwrap_or_else(|| panic!("none of {names:?} in {folders:?}"))
        .trim()
        .to_owned()
}

#[tokio::test]
async fn limits_are_in_the_containers_cgroup() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    *config.resources() = carpel_integration::v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        ..Default::default()
    };
    let id = node.start_container(&pod, &config).await;
    let dirs = folders(&node, node.cgroup_parent(), &id);
    assert_eq!(
        value(&dirs, &["memory.max", "memory.limit_in_bytes"]),
        (64 << 20).to_string()
    );
    let cpu = value(&dirs, &["cpu.max", "cpu.cfs_quota_us"]);
    assert!(cpu == "50000 100000" || cpu == "50000", "{cpu}");
    let weight: u32 = value(&dirs, &["cpu.weight", "cpu.shares"]).parse().unwrap();
    assert!(weight == 512 || (18..=70).contains(&weight), "{weight}");
    let status = node.status(&id).await;
    let resources = status.resources.and_then(|r| r.linux).expect("resources");
    assert_eq!(
        (resources.memory_limit_in_bytes, resources.cpu_shares),
        (64 << 20, 512)
    );
    // The container is in it, in all hierarchies alike, and its exec's processes, too.
    let pid = node.container_pid(&id);
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(
        own.lines().filter(|line| line.contains(&id)).count() >= dirs.len(),
        "{own}"
    );
    node.exec(&id, "sleep 1000 >/dev/null 2>&1 &").await;
    let inside = fs::read_to_string(dirs[0].join("cgroup.procs")).unwrap();
    assert_eq!(
        inside.lines().count(),
        3,
        "sh, its sleep, the exec's sleep: {inside}"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_cgroup_parent_is_honoured_and_left_to_its_owner() {
    let node = TestNode::start().await;
    // The kubelet makes the pod's cgroup before it asks for the pod.
    let parent = format!("{}/kubepods/burstable/pod1", node.cgroup_parent());
    for mount in host::cgroup_mounts() {
        let _ = fs::create_dir_all(mount.join(parent.trim_start_matches('/')));
    }
    let mut config = node.pod("one");
    config.linux().cgroup_parent.clone_from(&parent);
    let pod = node.run_pod(&config).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let container = folders(&node, &parent, &id);
    let sandbox = folders(&node, &parent, &pod.id);
    assert_ne!(container, sandbox);
    // A basename with the 64 digits is how the kubelet and cAdvisor find a container.
    assert!(
        container[0]
            .file_name()
            .unwrap()
            .to_string_lossy()
            .contains(&id)
    );
    assert!(
        fs::read_to_string(sandbox[0].join("cgroup.procs"))
            .unwrap()
            .lines()
            .count()
            >= 1
    );
    assert!(
        !sandbox.iter().any(|dir| container[0].starts_with(dir)),
        "the sandbox's is a leaf"
    );
    node.try_stop_pod(&pod.id).await.unwrap();
    node.try_remove_pod(&pod.id).await.unwrap();
    for dir in host::cgroup_dirs(&parent) {
        assert_eq!(host::tree(&dir), [dir.clone()], "left below the parent");
    }
    let top = format!("{}/kubepods", node.cgroup_parent());
    for dir in host::cgroup_dirs(&top) {
        host::tree(&dir)
            .iter()
            .for_each(|dir| fs::remove_dir(dir).unwrap());
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_out_of_memory_is_killed_and_says_so() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let other = node.start_container(&pod, &sleeper("bystander")).await;
    let mut config = sh("eater", "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    config.resources().memory_limit_in_bytes = 32 << 20;
    let (_, status) = node.run_to_end(&pod, &config).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status:?}"
    );
    assert_eq!(node.exec(&other, "echo alive").await, "alive\n");
    let mut config = sh(
        "enough",
        "dd if=/dev/zero of=/dev/null bs=8M count=1 2>/dev/null",
    );
    config.resources().memory_limit_in_bytes = 32 << 20;
    let (_, status) = node.run_to_end(&pod, &config).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    node.finish().await;
}

#[tokio::test]
async fn a_pids_limit_holds() {
    let node = TestNode::builder()
        .config("[cgroup]\npids_limit = 12\n")
        .start()
        .await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let dirs = folders(&node, node.cgroup_parent(), &id);
    assert_eq!(value(&dirs, &["pids.max"]), "12");
    let script = "for n in $(seq 30); do sleep 5 & done 2>&1; true";
    let response = node.try_exec(&id, &["sh", "-c", script], 5).await.unwrap();
    let text =
        String::from_utf8_lossy(&response.stdout) + String::from_utf8_lossy(&response.stderr);
    assert!(text.contains("fork"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn a_container_sees_its_own_cgroups_and_cannot_change_them() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let script =
        "cut -d: -f3 /proc/self/cgroup | sort -u; mkdir /sys/fs/cgroup/x 2>&1 | grep -o Read-only";
    let text = node.exec(&id, script).await;
    assert!(text.ends_with("Read-only\n"), "{text}");
    // Version 1 has no cgroup namespaces that containers could be given.
    if host::is_unified() {
        assert_eq!(text, "/\nRead-only\n");
    }
    node.finish().await;
}

#[tokio::test]
async fn every_process_of_a_container_dies_with_it() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "for n in 1 2 3; do (setsid sleep 1000 &) ; done; echo up; sleep 1000";
    let id = node.start_container(&pod, &sh("a", script)).await;
    node.wait_log(&pod, "a", |log| log.stdout() == "up\n").await;
    let dirs = folders(&node, node.cgroup_parent(), &id);
    let pids: Vec<i32> = fs::read_to_string(Path::new(&dirs[0]).join("cgroup.procs"))
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert!(pids.len() >= 4, "{pids:?}");
    node.try_stop(&id, 0).await.unwrap();
    assert!(pids.iter().all(|pid| !host::runs(*pid)));
    node.finish().await;
}

/// Has every process in a cgroup, and those that enter it, stand still, or go on.
fn freeze(folders: &[PathBuf], still: bool) {
    let names = [
        ("freezer.state", ["THAWED", "FROZEN"]),
        ("cgroup.freeze", ["0", "1"]),
    ];
    let found = folders.iter().find_map(|dir| {
        let (name, words) = names.iter().find(|(name, _)| dir.join(name).exists())?;
        Some((dir.join(name), words[usize::from(still)]))
    });
    let (file, word) = found.expect("a freezer");
    fs::write(file, word).unwrap();
}

#[tokio::test]
async fn a_command_that_does_not_begin_in_time_never_runs() {
    let (node, _, id) = node_with_container().await;
    let folders = folders(&node, node.cgroup_parent(), &id);
    // The supervisor, the container's shell and, once it has begun, the program that it waits for.
    let deadline = Instant::now() + host::soon();
    while host::cgroup_pids(node.cgroup_parent()).len() < 3 {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = host::cgroup_pids(node.cgroup_parent());
    freeze(&folders, true);
    let late = node.try_exec(&id, &["touch", "/ran"], 1).await;
    freeze(&folders, false);
    refused(late, Code::DeadlineExceeded, "took longer than 1 s");
    let deadline = Instant::now() + host::soon();
    while host::cgroup_pids(node.cgroup_parent()) != before {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.exec(&id, "ls /ran 2>/dev/null | wc -l").await, "0\n");
    node.finish().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever_for_a_start() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.try_create(&pod, &sleeper("a")).await.unwrap();
    let parents = host::cgroup_dirs(node.cgroup_parent());
    // The pod's supervisor stands still, so that the start does.
    freeze(&parents, true);
    let ends = async {
        let deadline = Instant::now() + host::soon();
        let is_there = |dir: PathBuf| dir.to_string_lossy().contains(&id);
        while !parents.iter().flat_map(|dir| host::tree(dir)).any(is_there) {
            assert!(Instant::now() < deadline, "{}", node.daemon_log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let begin = Instant::now();
        let ended = tokio::join!(
            node.try_stop(&id, 0),
            node.try_remove(&id),
            node.try_stop_pod(&pod.id)
        );
        freeze(&parents, false);
        let took = begin.elapsed();
        for outcome in [ended.0, ended.1, ended.2] {
            refused(outcome, Code::DeadlineExceeded, "its start is under way");
        }
        assert!(took < host::patience(Duration::from_secs(12)), "{took:?}");
    };
    let (started, ()) = tokio::join!(node.try_start(&id), ends);
    started.unwrap();
    // Repeated, it is done.
    node.try_stop(&id, 0).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn what_is_in_a_containers_cgroup_ends_with_it_wherever_it_came_from() {
    let (node, _, id) = node_with_container().await;
    let folders = folders(&node, node.cgroup_parent(), &id);
    // As one that was cloned and then lost sight of.
    let mut stray = Command::new("sleep").arg("1000").spawn().unwrap();
    for dir in &folders {
        fs::write(dir.join("cgroup.procs"), stray.id().to_string()).unwrap();
    }
    node.try_stop(&id, 0).await.unwrap();
    let deadline = Instant::now() + host::soon();
    while stray.try_wait().unwrap().is_none() || folders.iter().any(|dir| dir.exists()) {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.finish().await;
}
