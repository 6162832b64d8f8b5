//! A supervisor that lives and does not answer a new daemon costs its own pod's requests, and nothing else.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::v1::{ContainerState, PodSandboxState};
use carpel_integration::{Pod, TestNode, host};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tonic::Code;

use super::refused;
use super::start_faults::{assert_lives, run_pods};

/// How long a daemon may take to serve beside one that is silent: it waits 3 s for it.
const SERVING: Duration = Duration::from_secs(8);

/// A connection that the supervisor listening in `dir` may take or not.
fn knock(dir: &Path) -> OwnedFd {
    let kind = SocketType::SEQPACKET;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).expect("socket");
    let dir = File::open(dir).expect("the folder");
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/control", dir.as_raw_fd()));
    // One that is refused is as good: it says that enough have knocked.
    let _ = rustix::net::connect(&socket, &address.expect("an address"));
    socket
}

async fn restart(node: &mut TestNode) {
    let begin = Instant::now();
    node.start_daemon(None).await;
    let took = begin.elapsed();
    assert!(took < SERVING, "{took:?}");
}

async fn wait_state(node: &TestNode, id: &str, wanted: ContainerState) {
    let deadline = Instant::now() + host::soon();
    loop {
        let state = node.status(id).await.state();
        if state == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{state:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What needs the supervisor is refused at once, and nothing of the pod is touched.
async fn assert_silent(node: &TestNode, pod: &Pod, id: &str, pid: i32) {
    let ready = node.pod_status(pod).await;
    assert_eq!(ready.state(), PodSandboxState::SandboxReady);
    assert!(!ready.network.unwrap().ip.is_empty());
    assert_eq!(
        node.status(id).await.state(),
        ContainerState::ContainerRunning
    );
    let begin = Instant::now();
    let silent = "does not answer";
    let run = node.try_exec(id, &["true"], 1).await;
    refused(run.map(drop), Code::FailedPrecondition, silent);
    let made = node.try_create(pod, &sleeper("new")).await;
    refused(made.map(drop), Code::FailedPrecondition, silent);
    refused(node.try_stop(id, 5).await, Code::FailedPrecondition, silent);
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(host::runs(pid));
}

#[tokio::test]
async fn a_pod_whose_supervisor_does_not_answer_is_left_alone_until_it_does() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 2).await;
    let (pod, id, pid) = &pods[0];
    let ended = node.start_container(pod, &sleeper("ended")).await;
    let created = node.try_create(pod, &sleeper("created")).await.unwrap();
    let ended_pid = node.container_pid(&ended);
    let supervisor = Pid::from_raw(node.supervisor_pid(pod).await);
    node.kill_daemon();
    kill(supervisor, Signal::SIGSTOP).unwrap();
    let dir = node.dir().join("state/pods").join(&pod.id);
    for crowded in [false, true] {
        // Nobody takes these either: in the end there is no room for more.
        let knocks: Vec<_> = (0..if crowded { 8 } else { 0 })
            .map(|_| knock(&dir))
            .collect();
        restart(&mut node).await;
        assert_silent(&node, pod, id, *pid).await;
        let waits = node.status(&created).await.state();
        assert_eq!(waits, ContainerState::ContainerCreated);
        let started = node.try_start(&created).await;
        refused(started, Code::FailedPrecondition, "does not answer");
        assert_lives(&node, &pods[1..]).await;
        if crowded {
            host::kill_9(ended_pid);
            wait_state(&node, &ended, ContainerState::ContainerUnknown).await;
            let next = node.run_pod(&node.pod("next")).await;
            node.start_container(&next, &sleeper("a")).await;
        } else {
            node.kill_daemon();
        }
        drop(knocks);
    }
    kill(supervisor, Signal::SIGCONT).unwrap();
    wait_state(&node, &ended, ContainerState::ContainerExited).await;
    assert_eq!(node.status(&ended).await.exit_code, 137);
    assert_lives(&node, &pods).await;
    node.try_start(&created).await.unwrap();
    assert_eq!(node.exec(&created, "echo alive").await, "alive\n");
    assert_eq!(
        node.supervisor_pid(pod).await,
        supervisor.as_raw(),
        "nobody has taken its place"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_pod_whose_supervisor_does_not_answer_can_be_stopped_and_its_containers_killed() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 1).await;
    let (pod, id, pid) = &pods[0];
    let killed = node.start_container(pod, &sleeper("killed")).await;
    let removed = node.start_container(pod, &sleeper("removed")).await;
    let supervisor = node.supervisor_pid(pod).await;
    node.kill_daemon();
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP).unwrap();
    restart(&mut node).await;
    node.try_stop(&killed, 0).await.unwrap();
    let status = node.status(&killed).await;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137, "{status:?}");
    node.try_remove(&removed).await.unwrap();
    assert_silent(&node, pod, id, *pid).await;
    node.try_stop_pod(&pod.id).await.unwrap();
    assert!(!host::runs(*pid) && !host::runs(supervisor));
    assert_eq!(node.status(id).await.exit_code, 137);
    node.try_remove_pod(&pod.id).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_silent_supervisor_that_dies_takes_its_pod_along() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 1).await;
    let (pod, id, pid) = &pods[0];
    let supervisor = node.supervisor_pid(pod).await;
    node.kill_daemon();
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP).unwrap();
    restart(&mut node).await;
    assert_silent(&node, pod, id, *pid).await;
    host::kill_9(supervisor);
    wait_state(&node, id, ContainerState::ContainerExited).await;
    assert_eq!(node.status(id).await.exit_code, 137);
    assert!(!host::runs(*pid));
    assert_eq!(
        node.pod_status(pod).await.state(),
        PodSandboxState::SandboxNotready
    );
    node.finish().await;
}

/// Greets all who come for a while as a supervisor of another version does, in the place of that in `dir`.
fn greet_strangely(dir: &Path) -> (OwnedFd, std::path::PathBuf) {
    let (control, aside) = (dir.join("control"), dir.join("aside"));
    fs::rename(&control, &aside).unwrap();
    let kind = SocketType::SEQPACKET;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let listener = listener.unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&control).unwrap()).unwrap();
    rustix::net::listen(&listener, 4).unwrap();
    let accepting = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        while let Ok(taken) = rustix::net::accept(&accepting) {
            // Event::Hello, version 99, pid 1, ready, no reaper.
            let hello = [0, 99, 1, 1, 0];
            let _ = rustix::net::send(taken.as_fd(), &hello, SendFlags::NOSIGNAL);
        }
    });
    (listener, aside)
}

#[tokio::test]
async fn a_pod_whose_supervisor_speaks_another_version_is_left_alone() {
    let mut node = TestNode::start().await;
    let pods = run_pods(&node, 2).await;
    let (pod, id, pid) = &pods[0];
    node.kill_daemon();
    let dir = node.dir().join("state/pods").join(&pod.id);
    let (listener, aside) = greet_strangely(&dir);
    restart(&mut node).await;
    assert!(
        node.daemon_log().contains("version 99"),
        "{}",
        node.daemon_log()
    );
    assert_silent(&node, pod, id, *pid).await;
    assert_lives(&node, &pods[1..]).await;
    // One that speaks this one's comes back.
    fs::rename(aside, dir.join("control")).unwrap();
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
    let deadline = Instant::now() + host::soon();
    while node.try_exec(id, &["true"], 1).await.is_err() {
        assert!(Instant::now() < deadline, "not adopted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_lives(&node, &pods).await;
    node.finish().await;
}
