//! Exec and attach over WebSocket: `v5` as kubectl and crictl speak it, and what older clients send.

use carpel_integration::request::sleeper;
use carpel_integration::streams::Outcome;
use carpel_integration::streams::urls::{exec, exec_on_terminal, exec_with_input};
use carpel_integration::streams::websocket::{
    BINARY, CLOSE, CONTINUATION, Frame, PING, PONG, TEXT, WebSocket,
};
use carpel_integration::v1::ExecRequest;
use carpel_integration::{Pod, TestNode};

const V5: &str = "v5.channel.k8s.io";

async fn node_with_container() -> (TestNode, Pod, String) {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    (node, pod, id)
}

async fn connect(node: &TestNode, request: ExecRequest, protocol: &str) -> WebSocket {
    let url = node.exec_url(request).await;
    let protocols: Vec<_> = protocol
        .split(' ')
        .filter(|name| !name.is_empty())
        .collect();
    let connected = WebSocket::connect(&node.net, &url, &protocols).await;
    connected.unwrap_or_else(|head| panic!("{head:?}"))
}

fn message(channel: u8, payload: &[u8]) -> Frame {
    Frame {
        kind: BINARY,
        payload: [&[channel], payload].concat(),
    }
}

#[tokio::test]
async fn a_client_of_v5_closes_stdin() {
    let (node, _, id) = node_with_container().await;
    let request = exec_with_input(&id, "cat; echo err >&2; exit 7");
    let mut client = connect(&node, request, V5).await;
    assert_eq!(client.protocol, V5);
    assert_eq!(client.next().await, Some(message(1, b"")));
    client.send(0, b"hello").await.unwrap();
    assert_eq!(client.next().await, Some(message(1, b"hello")));
    client.frame(BINARY, true, &[255, 0]).await.unwrap();
    let ran = client.run().await;
    assert_eq!(
        (ran.stdout(), ran.stderr()),
        (String::new(), "err\n".into())
    );
    assert_eq!(ran.outcome(), Outcome::ExitCode(7));
    node.finish().await;
}

#[tokio::test]
async fn much_comes_through_whole() {
    let (node, _, id) = node_with_container().await;
    let request = exec_with_input(&id, "wc -c; head -c 20000000 /dev/zero");
    let mut client = connect(&node, request, V5).await;
    let piece = vec![7; 100_000];
    for _ in 0..50 {
        client.send(0, &piece).await.unwrap();
    }
    client.frame(BINARY, true, &[255, 0]).await.unwrap();
    let ran = client.run().await;
    assert_eq!(ran.outcome(), Outcome::Success);
    assert!(ran.stdout.starts_with(b"5000000\n"));
    assert_eq!(ran.stdout.len(), 8 + 20_000_000);
    assert!(ran.stdout[8..].iter().all(|&byte| byte == 0));
    node.finish().await;
}

#[tokio::test]
async fn older_clients_have_their_protocols() {
    let (node, _, id) = node_with_container().await;
    for (asked, agreed) in [
        ("v4.channel.k8s.io channel.k8s.io", "v4.channel.k8s.io"),
        ("channel.k8s.io v4.channel.k8s.io", "channel.k8s.io"),
        ("", ""),
    ] {
        let client = connect(&node, exec(&id, "echo hi; exit 2"), asked).await;
        assert_eq!(client.protocol, agreed);
        let ran = client.run().await;
        assert_eq!(ran.stdout(), "hi\n");
        match agreed {
            "v4.channel.k8s.io" => assert_eq!(ran.outcome(), Outcome::ExitCode(2)),
            _ => {
                let text = String::from_utf8(ran.status).unwrap();
                assert!(text.contains("exit code") && text.ends_with(" 2"), "{text}");
            }
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn base64_goes_in_text() {
    let (node, _, id) = node_with_container().await;
    let request = exec_with_input(&id, "head -n 1");
    let mut client = connect(&node, request, "base64.channel.k8s.io").await;
    let text = |payload: &[u8]| {
        let payload = payload.to_vec();
        Some(Frame {
            kind: TEXT,
            payload,
        })
    };
    assert_eq!(client.next().await, text(b"1"));
    // "hello\n", in two messages, the second in three parts.
    client.frame(TEXT, true, b"0aGVs").await.unwrap();
    client.frame(TEXT, false, b"0").await.unwrap();
    client.frame(CONTINUATION, false, b"bG8").await.unwrap();
    client.frame(CONTINUATION, true, b"K").await.unwrap();
    assert_eq!(client.next().await, text(b"1aGVsbG8K"));
    assert_eq!(client.next().await.map(|frame| frame.kind), Some(CLOSE));
    drop(client);
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_has_a_size_and_its_client_a_heartbeat() {
    let (node, _, id) = node_with_container().await;
    let script = "until [ \"$(stty size)\" = '21 90' ]; do sleep 0.02; done; echo sized; \
                  while read line; do echo got $line; done";
    let mut client = connect(&node, exec_on_terminal(&id, script), V5).await;
    client
        .send(4, b"{\"Width\":90,\"Height\":21}")
        .await
        .unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("sized") {
        let frame = client.next().await.unwrap();
        assert_eq!((frame.kind, frame.payload[0]), (BINARY, 1));
        seen.extend_from_slice(&frame.payload[1..]);
    }
    client.frame(PING, true, b"beat").await.unwrap();
    loop {
        let frame = client.next().await.unwrap();
        if frame.kind == PONG {
            assert_eq!(frame.payload, b"beat");
            break;
        }
    }
    client.send(0, b"\x04").await.unwrap();
    assert_eq!(client.run().await.outcome(), Outcome::Success);
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_closes_the_connection_is_answered() {
    let (node, _, id) = node_with_container().await;
    let request = exec_with_input(&id, "echo ready; exec cat");
    let mut client = connect(&node, request, V5).await;
    while client.next().await != Some(message(1, b"ready\n")) {}
    client.frame(CLOSE, true, &[3, 0xe8]).await.unwrap();
    assert_eq!(client.next().await.map(|frame| frame.kind), Some(CLOSE));
    assert_eq!(client.next().await, None);
    node.finish().await;
}

#[tokio::test]
async fn a_frame_that_is_not_masked_ends_the_connection() {
    use tokio::io::AsyncWriteExt;
    let (node, _, id) = node_with_container().await;
    let request = exec_with_input(&id, "exec cat");
    let mut client = connect(&node, request, V5).await;
    assert_eq!(client.next().await, Some(message(1, b"")));
    client.stream.write_all(&[0x82, 1, 0]).await.unwrap();
    let closed = client.next().await.unwrap();
    assert_eq!((closed.kind, &closed.payload[..]), (CLOSE, &[3, 0xea][..]));
    node.finish().await;
}
