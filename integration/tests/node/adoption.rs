//! A pod's supervisor dies: another one goes on with its containers, and nobody notices.

use std::time::{Duration, Instant};

use carpel_integration::node::Pod;
use carpel_integration::request::{PodConfigExt, sleeper};
use carpel_integration::v1::{
    ContainerConfig, ContainerState, ContainerStatus, NamespaceMode, PodSandboxState,
    ReopenContainerLogRequest,
};
use carpel_integration::{Log, TestNode, host, sh};
use tonic::Code;

/// Counts from 1, a line every ten milliseconds, until [`stop`] lets it end; then prints how far it came and exits
/// with `code`.
fn counter(name: &str, code: i32) -> ContainerConfig {
    let script = format!(
        "i=0; until [ -e /stop ]; do i=$((i+1)); echo $i; usleep 10000; done; echo end $i; exit {code}"
    );
    sh(name, &script)
}

/// Lets a [`counter`] end, with or without a daemon.
fn stop(pid: i32) {
    std::fs::write(format!("/proc/{pid}/root/stop"), "").expect("a file in the rootfs");
}

/// Waits until a [`counter`] has come further.
async fn counts_on(node: &TestNode, pod: &Pod, name: &str) {
    let so_far = node.log(pod, name).0.len();
    let further = |log: &Log| log.0.len() > so_far + 2;
    node.wait_log(pod, name, further).await;
}

/// Checks the code of a container that exited as a child of init, its daemon being dead. Older kernels keep the
/// code only until init has reaped it.
fn assert_inherited(status: &ContainerStatus, code: i32) {
    let lost = (status.exit_code, status.reason.as_str()) == (255, "Unknown");
    assert!(
        status.exit_code == code || lost && host::kernel() < (6, 15),
        "{status:?}"
    );
}

/// The supervisor's pid; none while it is being replaced.
async fn supervisor_if_any(node: &TestNode, pod: &Pod) -> Option<i32> {
    let status = node.try_pod_status(&pod.id).await.expect("a status");
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).expect("JSON");
    i32::try_from(info["pid"].as_i64()?).ok()
}

async fn supervisor(node: &TestNode, pod: &Pod) -> i32 {
    replaced(node, pod, 0).await
}

/// Waits until another supervisor than `before` leads the pod, which stays ready all the time.
async fn replaced(node: &TestNode, pod: &Pod, before: i32) -> i32 {
    let deadline = Instant::now() + host::soon();
    loop {
        let now = supervisor_if_any(node, pod).await;
        let state = node.pod_status(pod).await.state();
        assert_eq!(state, PodSandboxState::SandboxReady);
        match now {
            Some(pid) if pid != before => return pid,
            _ => assert!(Instant::now() < deadline, "nobody replaces {before}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Kills the supervisor and waits for the next.
pub async fn kill_supervisor(node: &TestNode, pod: &Pod) -> i32 {
    let before = supervisor(node, pod).await;
    assert!(
        host::proc_status(before, "Name").is_some_and(|name| name.starts_with("carpel-superv"))
    );
    host::kill_9(before);
    replaced(node, pod, before).await
}

/// Checks the log of a [`counter`]: in order, nothing doubled, nothing missing but what a supervisor may have
/// read when it was killed.
fn assert_counted(log: &Log, kills: usize) {
    // A terminal's lines end with both.
    let text = log.stdout().replace('\r', "");
    let (counted, end) = text.rsplit_once("end ").expect("an end");
    let numbers: Vec<usize> = counted
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let end: usize = end.trim().parse().expect("a number");
    assert_eq!(numbers.last(), Some(&end), "{numbers:?}");
    assert!(numbers.len() + kills >= end, "{numbers:?}");
}

#[tokio::test]
async fn a_pod_survives_its_supervisor_again_and_again() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let forever = node.start_container(&pod, &sleeper("forever")).await;
    node.exec(&forever, "echo kept > /dev/shm/file").await;
    let place = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; hostname";
    let before = node.exec(&forever, place).await;
    let mut ids = Vec::new();
    for n in 0..4 {
        let config = counter(&format!("c{n}"), 20 + n);
        ids.push(node.start_container(&pod, &config).await);
    }
    let pids: Vec<_> = ids.iter().map(|id| node.container_pid(id)).collect();
    for _ in 0..3 {
        counts_on(&node, &pod, "c3").await;
        kill_supervisor(&node, &pod).await;
        assert_eq!(node.exec(&forever, place).await, before);
    }
    let now: Vec<_> = ids.iter().map(|id| node.container_pid(id)).collect();
    assert_eq!(now, pids);
    pids.into_iter().for_each(stop);
    for (n, id) in (0..).zip(&ids) {
        let status = node.wait_exit(id).await;
        assert_eq!(status.exit_code, 20 + n);
        assert!(status.finished_at > status.started_at && status.started_at > status.created_at);
        assert_counted(&node.log(&pod, &format!("c{n}")), 3);
    }
    // New containers are in the same pod as the old ones.
    let config = sh("new", &format!("{place}; cat /dev/shm/file"));
    assert_eq!(node.output_of(&pod, &config).await, before + "kept\n");
    node.try_stop(&forever, 5).await.unwrap();
    assert_eq!(node.status(&forever).await.exit_code, 0);
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_was_restarted_replaces_a_supervisor_and_finds_it_again() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let config = counter(&format!("c{n}"), 30 + n);
        ids.push(node.start_container(&pod, &config).await);
    }
    let forever = node.start_container(&pod, &sleeper("forever")).await;
    node.crash().await;
    kill_supervisor(&node, &pod).await;
    // Right after it: nothing is lost with the daemon that had replaced it.
    node.crash().await;
    let again = kill_supervisor(&node, &pod).await;
    node.crash().await;
    assert_eq!(supervisor(&node, &pod).await, again);
    assert_eq!(node.exec(&forever, "echo mine").await, "mine\n");
    for (n, id) in (0..).zip(&ids) {
        stop(node.container_pid(id));
        assert_inherited(&node.wait_exit(id).await, 30 + n);
        assert_counted(&node.log(&pod, &format!("c{n}")), 2);
    }
    kill_supervisor(&node, &pod).await;
    let pid = node.container_pid(&forever);
    host::kill_9(pid);
    assert_inherited(&node.wait_exit(&forever).await, 137);
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_exits_while_the_daemon_is_dead_is_told_by_the_second_supervisor() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &counter("a", 41)).await;
    let pid = node.container_pid(&id);
    kill_supervisor(&node, &pod).await;
    node.kill_daemon();
    stop(pid);
    let deadline = Instant::now() + host::soon();
    while host::runs(pid) {
        assert!(Instant::now() < deadline, "{}", host::describe(pid));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.start_daemon(None).await;
    assert_inherited(&node.wait_exit(&id).await, 41);
    assert_counted(&node.log(&pod, "a"), 1);
    node.finish().await;
}

#[tokio::test]
async fn supervisor_and_daemon_killed_together_cost_the_containers_and_nothing_else() {
    let mut node = TestNode::start().await;
    let mut config = node.pod("one");
    config.namespaces().set_pid(NamespaceMode::Pod);
    let pod = node.run_pod(&config).await;
    let other = node.run_pod(&node.pod("two")).await;
    let mut sleeping = sleeper("a");
    sleeping.linux.get_or_insert_default();
    let id = node.start_container(&pod, &sleeping).await;
    let spared = node.start_container(&other, &sleeper("b")).await;
    let container = node.container_pid(&id);
    let lost = supervisor(&node, &pod).await;
    node.kill_daemon();
    host::kill_9(lost);
    node.start_daemon(None).await;
    let status = node.status(&id).await;
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 137)
    );
    assert!(status.message.contains("supervisor"), "{status:?}");
    assert!(!host::runs(container));
    assert_eq!(
        node.pod_status(&pod).await.state(),
        PodSandboxState::SandboxNotready
    );
    assert_eq!(node.exec(&spared, "echo spared").await, "spared\n");
    node.finish().await;
}

#[tokio::test]
async fn containers_that_share_their_processes_go_on() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.namespaces().set_pid(NamespaceMode::Pod);
    let pod = node.run_pod(&config).await;
    let shared = |mut config: ContainerConfig| {
        let security = config.linux.get_or_insert_default();
        let security = security.security_context.get_or_insert_default();
        let namespaces = security.namespace_options.get_or_insert_default();
        namespaces.set_pid(NamespaceMode::Pod);
        config
    };
    let first = node.start_container(&pod, &shared(sleeper("first"))).await;
    let counted = node
        .start_container(&pod, &shared(counter("counted", 9)))
        .await;
    let namespace = node.exec(&first, "readlink /proc/self/ns/pid").await;
    for _ in 0..2 {
        kill_supervisor(&node, &pod).await;
    }
    let after = node.exec(&first, "readlink /proc/self/ns/pid").await;
    assert_eq!(after, namespace);
    stop(node.container_pid(&counted));
    assert_eq!(node.wait_exit(&counted).await.exit_code, 9);
    assert_counted(&node.log(&pod, "counted"), 2);
    // The reaper goes on reaping.
    let script = "sh -c 'sleep 0.05 & exit'; sleep 0.3; ps -o stat,comm | grep -c '^Z'; readlink /proc/self/ns/pid";
    let last = node
        .start_container(&pod, &shared(sh("last", script)))
        .await;
    node.wait_exit(&last).await;
    let expected = format!("0\n{namespace}");
    assert_eq!(node.log(&pod, "last").stdout(), expected);
    node.try_stop(&first, 5).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_reaper_that_dies_after_its_supervisor_is_replaced() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.namespaces().set_pid(NamespaceMode::Pod);
    let pod = node.run_pod(&config).await;
    let shared = |name: &str| {
        let mut config = sleeper(name);
        let security = config.linux.get_or_insert_default();
        let security = security.security_context.get_or_insert_default();
        let namespaces = security.namespace_options.get_or_insert_default();
        namespaces.set_pid(NamespaceMode::Pod);
        config
    };
    let first = node.start_container(&pod, &shared("first")).await;
    let before = node.exec(&first, "readlink /proc/self/ns/pid").await;
    let successor = kill_supervisor(&node, &pod).await;
    let children = host::children(node.daemon_pid().unwrap());
    let is_reaper = |pid: &i32| {
        *pid != successor
            && std::fs::read_link(format!("/proc/{pid}/ns/pid"))
                .is_ok_and(|namespace| namespace.to_string_lossy() == before.trim())
    };
    let reaper = children.into_iter().find(|pid| {
        is_reaper(pid) && host::proc_status(*pid, "NSpid").is_some_and(|pids| pids.ends_with("\t1"))
    });
    host::kill_9(reaper.expect("no reaper"));
    node.wait_exit(&first).await;
    let second = node.start_container(&pod, &shared("second")).await;
    let after = node.exec(&second, "readlink /proc/self/ns/pid").await;
    assert_ne!(after, before);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_in_the_hosts_namespaces_goes_on() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.namespaces().set_network(NamespaceMode::Node);
    config.namespaces().set_pid(NamespaceMode::Node);
    config.namespaces().set_ipc(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    let host = |mut config: ContainerConfig| {
        let security = config.linux.get_or_insert_default();
        let security = security.security_context.get_or_insert_default();
        let namespaces = security.namespace_options.get_or_insert_default();
        namespaces.set_network(NamespaceMode::Node);
        namespaces.set_pid(NamespaceMode::Node);
        namespaces.set_ipc(NamespaceMode::Node);
        config
    };
    let id = node.start_container(&pod, &host(counter("a", 3))).await;
    let forever = node.start_container(&pod, &host(sleeper("b"))).await;
    let place =
        "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid";
    let before = node.exec(&forever, place).await;
    kill_supervisor(&node, &pod).await;
    assert_eq!(node.exec(&forever, place).await, before);
    stop(node.container_pid(&id));
    assert_eq!(node.wait_exit(&id).await.exit_code, 3);
    assert_counted(&node.log(&pod, "a"), 1);
    node.try_stop(&forever, 5).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_goes_on() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = counter("tty", 6);
    config.tty = true;
    config.stdin = true;
    let id = node.start_container(&pod, &config).await;
    kill_supervisor(&node, &pod).await;
    node.crash().await;
    kill_supervisor(&node, &pod).await;
    stop(node.container_pid(&id));
    assert_inherited(&node.wait_exit(&id).await, 6);
    assert_counted(&node.log(&pod, "tty"), 2);
    node.finish().await;
}

#[tokio::test]
async fn input_stays_open() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    // It would end at the end of its input.
    let mut config = sh("a", "cat; exit 5");
    config.stdin = true;
    let id = node.start_container(&pod, &config).await;
    kill_supervisor(&node, &pod).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        node.status(&id).await.state(),
        ContainerState::ContainerRunning
    );
    node.try_stop(&id, 0).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_runs_when_the_supervisor_dies_ends_with_an_error() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let command = ["/bin/sleep", "1000"];
    let (outcome, ()) = tokio::join!(node.try_exec(&id, &command, 0), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill_supervisor(&node, &pod).await;
    });
    super::refused(outcome, Code::Internal, "supervisor died");
    let processes = node.exec(&id, "ps -o args").await;
    assert!(!processes.contains("sleep 1000"), "{processes}");
    node.finish().await;
}

#[tokio::test]
async fn a_log_is_rotated_before_and_after() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &counter("a", 0)).await;
    let path = node.log_dir("one").join("a.log");
    let rotate = async |to: &str| {
        std::fs::rename(&path, node.log_dir("one").join(to)).unwrap();
        let request = ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        let mut client = node.cri.runtime();
        client.reopen_container_log(request).await.unwrap();
    };
    counts_on(&node, &pod, "a").await;
    rotate("a.log.1").await;
    counts_on(&node, &pod, "a").await;
    kill_supervisor(&node, &pod).await;
    counts_on(&node, &pod, "a").await;
    rotate("a.log.2").await;
    stop(node.container_pid(&id));
    node.wait_exit(&id).await;
    let mut all = Vec::new();
    for name in ["a.log.1", "a.log.2", "a.log"] {
        let log = Log::read(&node.log_dir("one").join(name));
        assert!(!log.0.is_empty(), "{name}");
        all.extend(log.0);
    }
    assert_counted(&Log(all), 1);
    node.finish().await;
}

#[tokio::test]
async fn requests_that_meet_a_dying_supervisor_leave_nothing_behind() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let forever = node.start_container(&pod, &sleeper("forever")).await;
    let mut started = Vec::new();
    for round in 0..12 {
        let config = sh(&format!("c{round}"), "usleep 50000; exit 1");
        let id = node.try_create(&pod, &config).await.unwrap();
        let before = supervisor(&node, &pod).await;
        let (start, exec, ()) = tokio::join!(
            node.try_start(&id),
            node.try_exec(&forever, &["/bin/true"], 5),
            async {
                tokio::time::sleep(Duration::from_micros(round * 500)).await;
                host::kill_9(before);
            }
        );
        // Either it had come first, or it says why not; afterwards everything works.
        if let Err(status) = exec {
            assert!(status.message().contains("supervisor"), "{status}");
        }
        match start {
            Ok(()) => started.push(id),
            Err(status) => assert!(status.message().contains("supervisor"), "{status}"),
        }
        replaced(&node, &pod, before).await;
        assert_eq!(node.exec(&forever, "echo here").await, "here\n");
    }
    for id in &started {
        assert_eq!(node.wait_exit(id).await.exit_code, 1);
    }
    node.finish().await;
}

#[tokio::test]
async fn the_daemon_may_die_at_any_step_of_it() {
    for name in carpel::failpoint::ADOPTION {
        let mut node = TestNode::start().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(name)).await;
        let mut config = node.pod("one");
        config.namespaces().set_pid(NamespaceMode::Pod);
        let pod = node.run_pod(&config).await;
        let id = node.start_container(&pod, &counter("a", 8)).await;
        host::kill_9(supervisor(&node, &pod).await);
        node.wait_daemon_end().await;
        node.start_daemon(None).await;
        let state = node.pod_status(&pod).await.state();
        if *name == "adopt:ready" {
            assert_eq!(state, PodSandboxState::SandboxReady);
            stop(node.container_pid(&id));
            assert_inherited(&node.wait_exit(&id).await, 8);
            assert_counted(&node.log(&pod, "a"), 1);
        } else {
            assert_eq!(state, PodSandboxState::SandboxNotready, "{name}");
            let status = node.wait_exit(&id).await;
            // It may have written to its broken pipe first, and died of that with nobody to see it.
            let known = status.exit_code == 137;
            let said = status.exit_code == 255 && !status.message.is_empty();
            assert!(known || said, "{name}: {status:?}");
        }
        node.finish().await;
    }
}

#[tokio::test]
async fn a_step_of_it_that_fails_is_tried_again() {
    for name in carpel::failpoint::ADOPTION {
        let mut node = TestNode::start().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(&format!("{name}:error"))).await;
        let pod = node.run_pod(&node.pod("one")).await;
        let id = node.start_container(&pod, &counter("a", 8)).await;
        kill_supervisor(&node, &pod).await;
        stop(node.container_pid(&id));
        assert_eq!(node.wait_exit(&id).await.exit_code, 8, "{name}");
        assert_counted(&node.log(&pod, "a"), 2);
        node.finish().await;
    }
}
