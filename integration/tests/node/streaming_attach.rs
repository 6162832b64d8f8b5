//! Attach: a client and a running container's own streams.

use carpel_integration::streams::Outcome;
use carpel_integration::streams::spdy::{COMMAND, Command, Wanted};
use carpel_integration::v1::{AttachRequest, ContainerConfig};
use carpel_integration::{Pod, TestNode, sh};

const STREAMS: Wanted = Wanted {
    stdin: true,
    ..Wanted::OUTPUT
};

fn request(container: &str) -> AttachRequest {
    AttachRequest {
        container_id: container.to_owned(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..AttachRequest::default()
    }
}

/// A container that answers each line, and ends at "end".
fn answering(name: &str) -> ContainerConfig {
    let script =
        "while read line; do [ $line = end ] && exit 5; echo got $line; echo err >&2; done";
    let mut config = sh(name, script);
    config.stdin = true;
    config
}

async fn node_with(config: &ContainerConfig) -> (TestNode, Pod, String) {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, config).await;
    (node, pod, id)
}

async fn attach(node: &TestNode, request: AttachRequest, wanted: Wanted) -> Command {
    let url = node.try_attach_url(request).await.unwrap();
    Command::connect(&node.net, &url, &COMMAND, wanted).await
}

#[tokio::test]
async fn a_client_shares_the_streams_with_the_log() {
    let (node, pod, id) = node_with(&answering("a")).await;
    let mut client = attach(&node, request(&id), STREAMS).await;
    let stdin = client.stdin.take().unwrap();
    stdin.send(b"one\n", false).await.unwrap();
    let stdout = client.stdout.as_mut().unwrap();
    stdout.read_until(|bytes| bytes == b"got one\n").await;
    let stderr = client.stderr.as_mut().unwrap();
    stderr.read_until(|bytes| bytes == b"err\n").await;
    stdin.send(b"end\n", false).await.unwrap();
    let ran = client.run(b"").await;
    assert_eq!(ran.outcome(), Outcome::Success);
    assert_eq!(node.wait_exit(&id).await.exit_code, 5);
    assert_eq!(node.log(&pod, "a").stdout(), "got one\n");
    node.finish().await;
}

#[tokio::test]
async fn clients_come_and_go() {
    let (node, pod, id) = node_with(&answering("a")).await;
    for round in 0..20 {
        let mut client = attach(&node, request(&id), STREAMS).await;
        let line = format!("{round}\n");
        let stdin = client.stdin.take().unwrap();
        stdin.send(line.as_bytes(), false).await.unwrap();
        let stdout = client.stdout.as_mut().unwrap();
        let expected = format!("got {line}");
        stdout
            .read_until(|bytes| bytes.ends_with(expected.as_bytes()))
            .await;
    }
    let log = node.wait_log(&pod, "a", |log| log.stdout().ends_with("got 19\n"));
    assert_eq!(log.await.stdout().lines().count(), 20);
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_shared() {
    let mut config = answering("a");
    config.tty = true;
    let (node, _pod, id) = node_with(&config).await;
    let on_terminal = AttachRequest {
        tty: true,
        stderr: false,
        ..request(&id)
    };
    let mut client = attach(&node, on_terminal, Wanted::TERMINAL).await;
    let resize = client.resize.take().unwrap();
    resize
        .send(b"{\"Width\":70,\"Height\":20}", false)
        .await
        .unwrap();
    let stdin = client.stdin.take().unwrap();
    stdin.send(b"one\n", false).await.unwrap();
    let stdout = client.stdout.as_mut().unwrap();
    stdout
        .read_until(|bytes| bytes.ends_with(b"got one\r\nerr\r\n"))
        .await;
    stdin.send(b"end\n", false).await.unwrap();
    let ran = client.run(b"").await;
    assert_eq!(ran.outcome(), Outcome::Success);
    node.finish().await;
}

/// crictl does so when Ctrl-P Ctrl-Q is typed.
#[tokio::test]
async fn a_terminal_is_left_by_the_end_of_input() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    for stdin_once in [false, true] {
        let mut config = answering(&format!("tty-{stdin_once}"));
        (config.tty, config.stdin_once) = (true, stdin_once);
        let id = node.start_container(&pod, &config).await;
        let on_terminal = AttachRequest {
            tty: true,
            stderr: false,
            ..request(&id)
        };
        for _ in 0..2 {
            let mut client = attach(&node, on_terminal.clone(), Wanted::TERMINAL).await;
            let stdin = client.stdin.take().unwrap();
            stdin.send(b"one\n", false).await.unwrap();
            let stdout = client.stdout.as_mut().unwrap();
            stdout
                .read_until(|bytes| bytes.ends_with(b"got one\r\nerr\r\n"))
                .await;
            stdin.close().await;
            let ran = client.run(b"").await;
            assert_eq!(ran.outcome(), Outcome::Success);
            assert_eq!(node.status(&id).await.finished_at, 0);
        }
    }
    node.finish().await;
}
