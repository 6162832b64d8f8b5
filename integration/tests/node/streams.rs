//! Exec, attach and port-forward: what a command, a container and a port do with a client's streams.

use std::time::{Duration, Instant};

use carpel_integration::streams::Outcome;
use carpel_integration::streams::session::{RESIZE, STDIN, Seen, Session};
use carpel_integration::v1::{AttachRequest, ExecRequest, NamespaceMode, PortForwardRequest};
use carpel_integration::{PodConfigExt, TestNode, host, sh};

use crate::node_with_container;

const V5: &str = "v5.channel.k8s.io";

async fn exec(node: &TestNode, id: &str, script: &str, tty: bool) -> Session {
    let request = ExecRequest {
        container_id: id.to_owned(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = node.cri.runtime().exec(request).await.unwrap();
    Session::connect(node, &url.into_inner().url, V5).await
}

async fn attach(node: &TestNode, id: &str, stdin: bool, tty: bool) -> Session {
    let request = AttachRequest {
        container_id: id.to_owned(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    let url = node.cri.runtime().attach(request).await.unwrap();
    Session::connect(node, &url.into_inner().url, V5).await
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + host::soon();
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_command_has_its_streams_and_its_exit_code() {
    let (node, _, id) = node_with_container().await;
    let script = "cat; echo e >&2; exit 42";
    let mut client = exec(&node, &id, script, false).await;
    client.send(STDIN, b"one\ntwo\n").await;
    client.close(STDIN).await;
    let seen = client.finish().await;
    assert_eq!(seen.out(), "one\ntwo\n");
    assert_eq!(seen.stderr, b"e\n");
    assert_eq!(seen.outcome(), Outcome::ExitCode(42));
    let seen = exec(&node, &id, "true", false).await.finish().await;
    assert_eq!(seen.outcome(), Outcome::Success);
    node.finish().await;
}

#[tokio::test]
async fn a_slow_client_gets_all_and_holds_the_command_up() {
    let (node, _, id) = node_with_container().await;
    let script = "head -c 20000000 /dev/zero; echo end >&2; exit 3";
    let client = exec(&node, &id, script, false).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let left = node.exec(&id, "ps | grep -c '[h]ead -c 20000000'").await;
    assert_ne!(left.trim(), "0", "it waits for its client");
    let seen = client.finish().await;
    assert_eq!(seen.stdout.len(), 20_000_000);
    assert_eq!(seen.stderr, b"end\n");
    assert_eq!(seen.outcome(), Outcome::ExitCode(3));
    node.finish().await;
}

/// Lines of output.
fn lines(count: usize) -> impl Fn(&Seen) -> bool {
    move |seen| seen.stdout.iter().filter(|byte| **byte == b'\n').count() >= count
}

#[tokio::test]
async fn a_terminal_is_one_of_the_containers() {
    let (node, _, id) = node_with_container().await;
    let script = "tty; test -c $(tty) && read line; stty size; echo got $line";
    let mut client = exec(&node, &id, script, true).await;
    assert!(client.read_until(lines(1)).await);
    client.send(RESIZE, br#"{"Width":100,"Height":30}"#).await;
    until("the size is set", async || {
        let size = node.exec(&id, "stty size < /dev/pts/0 || true").await;
        size == "30 100\n"
    })
    .await;
    client.send(STDIN, b"hello\n").await;
    let seen = client.finish().await;
    let expected = "/dev/pts/0\r\nhello\r\n30 100\r\ngot hello\r\n";
    assert_eq!(seen.out(), expected);
    assert_eq!(seen.outcome(), Outcome::Success);
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_hangs_its_terminal_up() {
    let (node, _, id) = node_with_container().await;
    let script = "trap 'echo hung up > /tmp/end; exit' HUP; echo here; while :; do sleep 0.1; done";
    let mut client = exec(&node, &id, script, true).await;
    assert!(client.read_until(lines(1)).await);
    drop(client);
    until("it is told", async || {
        node.exec(&id, "cat /tmp/end 2>/dev/null || true").await == "hung up\n"
    })
    .await;
    assert_eq!(node.exec(&id, "ls /dev/pts").await, "ptmx\n");
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_ends_the_input_and_not_the_command() {
    let (node, _, id) = node_with_container().await;
    let script = "echo here; cat > /tmp/input; echo ended > /tmp/end; exec sleep 987";
    let mut client = exec(&node, &id, script, false).await;
    assert!(client.read_until(lines(1)).await);
    client.send(STDIN, b"text").await;
    until("its input comes", async || {
        node.exec(&id, "cat /tmp/input").await == "text"
    })
    .await;
    drop(client);
    until("its input ends", async || {
        node.exec(&id, "cat /tmp/end 2>/dev/null || true").await == "ended\n"
    })
    .await;
    until("it goes on", async || {
        node.exec(&id, "ps | grep -c '[s]leep 987' || true").await == "1\n"
    })
    .await;
    // One that writes is told so.
    let script = "echo here; while echo more; do :; done; echo stopped > /tmp/end";
    let mut client = exec(&node, &id, &format!("trap '' PIPE; {script}"), false).await;
    assert!(client.read_until(lines(1)).await);
    drop(client);
    until("its output ends", async || {
        node.exec(&id, "cat /tmp/end 2>/dev/null || true").await == "stopped\n"
    })
    .await;
    node.finish().await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_does_not_hold_its_client_up() {
    let (node, _, id) = node_with_container().await;
    for tty in [false, true] {
        let begin = Instant::now();
        let script = "trap '' HUP; sleep 30 & echo started; exit 5";
        let seen = exec(&node, &id, script, tty).await.finish().await;
        assert_eq!(seen.out().trim(), "started");
        assert_eq!(seen.outcome(), Outcome::ExitCode(5));
        assert!(begin.elapsed() < host::patience(Duration::from_secs(3)));
    }
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_cannot_run_is_told() {
    let (node, _, id) = node_with_container().await;
    for tty in [false, true] {
        let request = ExecRequest {
            container_id: id.clone(),
            cmd: vec!["/bin/nonexistent".into()],
            tty,
            stdin: false,
            stdout: true,
            stderr: false,
        };
        let url = node.cri.runtime().exec(request).await.unwrap();
        let seen = Session::connect(&node, &url.into_inner().url, V5)
            .await
            .finish()
            .await;
        let Outcome::Failed(message) = seen.outcome() else {
            panic!("{:?}", seen.outcome());
        };
        assert!(message.contains("/bin/nonexistent"), "{message}");
        assert_eq!(seen.out(), "");
    }
    node.finish().await;
}

#[tokio::test]
async fn an_attached_client_shares_output_with_the_log_and_with_others() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh(
        "a",
        "while read line; do echo got $line; echo err >&2; done; exit 7",
    );
    config.stdin = true;
    let id = node.start_container(&pod, &config).await;
    let mut first = attach(&node, &id, true, false).await;
    let mut second = attach(&node, &id, true, false).await;
    first.send(STDIN, b"one\n").await;
    for client in [&mut first, &mut second] {
        assert!(client.read_until(lines(1)).await);
    }
    second.send(STDIN, b"two\n").await;
    for client in [&mut first, &mut second] {
        assert!(client.read_until(lines(2)).await);
        assert_eq!(client.seen.out(), "got one\ngot two\n");
    }
    node.wait_log(&pod, "a", |log| log.stdout() == "got one\ngot two\n")
        .await;
    // One that goes takes nothing from the others. The end of its input ends its session, and no more.
    drop(first);
    let mut third = attach(&node, &id, true, false).await;
    third.send(STDIN, b"three\n").await;
    assert!(third.read_until(lines(1)).await);
    third.close(STDIN).await;
    assert_eq!(third.finish().await.outcome(), Outcome::Success);
    second.send(STDIN, b"four\n").await;
    assert!(second.read_until(lines(4)).await);
    node.try_stop(&id, 0).await.unwrap();
    let seen = second.finish().await;
    assert_eq!(seen.out(), "got one\ngot two\ngot three\ngot four\n");
    assert_eq!(
        seen.outcome(),
        Outcome::Success,
        "an attachment has no exit code"
    );
    node.finish().await;
}

#[tokio::test]
async fn the_input_of_a_container_that_takes_it_once_ends_with_its_client() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("a", "cat; exit 4");
    config.stdin = true;
    config.stdin_once = true;
    for restarted in [false, true] {
        config.metadata.as_mut().unwrap().attempt += 1;
        let id = node.start_container(&pod, &config).await;
        if restarted {
            node.crash().await;
        }
        let mut client = attach(&node, &id, true, false).await;
        client.send(STDIN, b"text\n").await;
        assert!(client.read_until(lines(1)).await);
        client.close(STDIN).await;
        assert_eq!(client.finish().await.out(), "text\n");
        assert_eq!(node.wait_exit(&id).await.exit_code, 4);
    }
    // As it does with one that just goes.
    config.metadata.as_mut().unwrap().attempt += 1;
    let id = node.start_container(&pod, &config).await;
    drop(attach(&node, &id, true, false).await);
    assert_eq!(node.wait_exit(&id).await.exit_code, 4);
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_attached_before_and_after_the_daemon_and_the_supervisor_die() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh(
        "a",
        "stty -echo; while read line; do echo $line $(stty size); done",
    );
    config.stdin = true;
    config.tty = true;
    let id = node.start_container(&pod, &config).await;
    for round in 1..=2_u16 {
        let mut client = attach(&node, &id, true, true).await;
        let size = format!(r#"{{"Width":{},"Height":30}}"#, 100 + round);
        client.send(RESIZE, size.as_bytes()).await;
        until("the size is set", async || {
            let size = node.exec(&id, "stty size < /dev/pts/0 || true").await;
            size == format!("30 {}\n", 100 + round)
        })
        .await;
        let says = async |client: &mut Session, word: &str| {
            let expected = format!("{word} 30 {}\r\n", 100 + round);
            let line = format!("{word}\n");
            client.send(STDIN, line.as_bytes()).await;
            // While a supervisor is being replaced an answer may be missed.
            while !client.answers_within(Duration::from_millis(500)).await {
                client.send(STDIN, line.as_bytes()).await;
            }
            assert!(
                client
                    .read_until(|seen| seen.out().ends_with(&expected))
                    .await
            );
        };
        says(&mut client, "before").await;
        // The session goes on with the next supervisor.
        host::kill_9(node.supervisor_pid(&pod).await);
        says(&mut client, "after").await;
        node.crash().await;
    }
    node.finish().await;
}

#[tokio::test]
async fn a_vanished_or_slow_client_holds_no_container_up() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("a", "read go; seq 1 1000000; echo end >&2");
    config.stdin = true;
    let id = node.start_container(&pod, &config).await;
    for _ in 0..50 {
        drop(attach(&node, &id, false, false).await);
    }
    let slow = attach(&node, &id, false, false).await;
    let mut client = attach(&node, &id, true, false).await;
    client.send(STDIN, b"go\n").await;
    assert!(client.read_until(lines(1)).await);
    drop(client);
    assert_eq!(node.wait_exit(&id).await.exit_code, 0);
    let log = node.log(&pod, "a");
    assert_eq!(log.stdout().lines().count(), 1_000_000);
    // What was there for it is still there.
    let seen = slow.finish().await;
    assert!(seen.out().starts_with("1\n2\n3\n"));
    assert_eq!(seen.stderr, b"end\n");
    node.finish().await;
}

#[tokio::test]
async fn ports_of_a_pod_are_reached_over_ipv4_and_ipv6() {
    let node = TestNode::start().await;
    let mut host_pod = node.pod("host");
    host_pod.namespaces().network = NamespaceMode::Node.into();
    for config in [node.pod("one"), host_pod] {
        let pod = node.run_pod(&config).await;
        for (n, address) in ["127.0.0.1", "[::1]"].into_iter().enumerate() {
            let port = 7001 + n as u16;
            let serve = format!("httpd -f -h /www -p {address}:{port}");
            let script = format!("mkdir /www; echo hello > /www/x; exec {serve}");
            let id = node
                .start_container(&pod, &sh(&format!("c{n}"), &script))
                .await;
            until("it listens", async || {
                let listening = format!("netstat -ltn | grep -c ':{port} ' || true");
                node.exec(&id, &listening).await == "1\n"
            })
            .await;
            let request = PortForwardRequest {
                pod_sandbox_id: pod.id.clone(),
                port: vec![port.into()],
            };
            let url = node.cri.runtime().port_forward(request).await.unwrap();
            let url = url.into_inner().url;
            let mut client = Session::connect(&node, &url, "v4.channel.k8s.io").await;
            assert_eq!(
                client.message().await.unwrap(),
                (0, port.to_le_bytes().to_vec())
            );
            assert_eq!(
                client.message().await.unwrap(),
                (1, port.to_le_bytes().to_vec())
            );
            client.send(0, b"GET /x HTTP/1.0\r\n\r\n").await;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nhello\n") {
                let (channel, bytes) = client.message().await.unwrap();
                assert_eq!(channel, 0);
                answer.extend(bytes);
            }
        }
        node.try_stop_pod(&pod.id).await.unwrap();
        node.try_remove_pod(&pod.id).await.unwrap();
    }
    node.finish().await;
}

/// Descriptors, threads, and memory in kB that only the daemon has.
fn held(node: &TestNode) -> (usize, usize, u64) {
    let pid = node.daemon_pid().unwrap();
    let count = |what| {
        std::fs::read_dir(format!("/proc/{pid}/{what}"))
            .unwrap()
            .count()
    };
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("Private_Dirty"))
        .unwrap();
    let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (count("fd"), count("task"), memory)
}

#[tokio::test]
async fn five_thousand_commands_and_attachments_leave_nothing() {
    let (node, pod, id) = node_with_container().await;
    let one = async |n: usize| {
        let request = ExecRequest {
            container_id: id.clone(),
            cmd: vec![
                if n.is_multiple_of(2) {
                    "false"
                } else {
                    "/nonexistent"
                }
                .into(),
            ],
            tty: true,
            stdin: true,
            stdout: true,
            stderr: false,
        };
        let url = node.cri.runtime().exec(request).await.unwrap();
        let mut client = Session::connect(&node, &url.into_inner().url, V5).await;
        client.send(RESIZE, br#"{"Width":100,"Height":30}"#).await;
        match n % 4 {
            0 => drop(client),
            1 => drop(attach(&node, &id, false, false).await),
            _ => assert_ne!(client.finish().await.outcome(), Outcome::Success),
        }
    };
    for n in 0..500 {
        one(n).await;
    }
    let before = held(&node);
    for n in 0..5000 {
        one(n).await;
    }
    until("descriptors are closed", async || {
        held(&node).0 <= before.0 + 2
    })
    .await;
    let after = held(&node);
    assert!(after.1 <= before.1 + 4, "{before:?} {after:?}");
    assert!(after.2 < before.2 + 4096, "{before:?} {after:?}");
    let supervisor = node.supervisor_pid(&pod).await;
    let fds = std::fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap();
    assert!(fds.count() < 20);
    assert_eq!(node.exec(&id, "ls /dev/pts").await, "ptmx\n");
    node.finish().await;
}
