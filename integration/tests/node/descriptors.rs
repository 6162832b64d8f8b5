//! The daemon runs out of descriptors while it serves (faults F08): requests fail, and nothing else.

use std::process::Command;
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::{TestNode, host};
use tonic::Code;

const PODS: usize = 50;

/// Descriptors that a running daemon may have open at most.
fn limit(node: &TestNode, most: usize) {
    let pid = node.daemon_pid().expect("the daemon runs");
    let status = Command::new("prlimit")
        .arg(format!("--pid={pid}"))
        .arg(format!("--nofile={most}:"))
        .status();
    assert!(status.expect("prlimit").success());
}

fn open(node: &TestNode) -> usize {
    let pid = node.daemon_pid().expect("the daemon runs");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    open.expect("its descriptors").count()
}

/// Processor time of the daemon so far.
fn processor_time(node: &TestNode) -> Duration {
    let pid = node.daemon_pid().expect("the daemon runs");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("its times");
    let nanoseconds = stat.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

#[tokio::test]
async fn a_daemon_without_descriptors_refuses_and_recovers() {
    let node = TestNode::builder()
        .config("[network]\nretry_seconds = 1\n")
        .start()
        .await;
    let steady = node.run_pod(&node.pod("steady")).await;
    let id = node.start_container(&steady, &sleeper("a")).await;
    let before = open(&node);
    limit(&node, before + 3);
    let configs: Vec<_> = (0..PODS).map(|n| node.pod(&format!("p{n}"))).collect();
    let runs = configs.iter().map(|config| node.try_run_pod(config));
    let outcomes = futures::future::join_all(runs).await;
    let failures: Vec<_> = outcomes
        .iter()
        .filter_map(|run| run.as_ref().err())
        .collect();
    assert!(failures.len() > PODS / 2, "{} failed", failures.len());
    for failure in &failures {
        assert_eq!(failure.code(), Code::ResourceExhausted, "{failure}");
        assert!(
            failure.message().contains("Too many open files"),
            "{failure}"
        );
    }
    // A client that nobody can accept does not make the daemon spin.
    let waiting = std::os::unix::net::UnixStream::connect(node.socket());
    let more = std::os::unix::net::UnixStream::connect(node.socket());
    let began = processor_time(&node);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = processor_time(&node) - began;
    assert!(spent < Duration::from_millis(300), "{spent:?}");
    drop((waiting, more));
    limit(&node, 1024);
    let deadline = Instant::now() + host::soon();
    // The same pods, without a restart.
    for config in &configs[..5] {
        loop {
            match node.try_run_pod(config).await {
                Ok(_) => break,
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    assert_eq!(node.exec(&id, "echo alive").await, "alive\n");
    // What could not be undone then is undone now.
    let records = || std::fs::read_dir(node.dir().join("root/sandboxes")).expect("records");
    while records().count() > node.pods().await.len() {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.finish().await;
}
