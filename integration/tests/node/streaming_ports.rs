//! Port-forward over SPDY, through a tunnel as kubectl digs it, and over WebSocket channels.

use carpel_integration::streams::spdy::{End, PORTS, Spdy, Stream};
use carpel_integration::streams::websocket::{BINARY, CLOSE, WebSocket};
use carpel_integration::v1::NamespaceMode;
use carpel_integration::{Pod, PodConfigExt, TestNode, sh};

const ANSWER: u16 = 8080;
const ECHO: u16 = 8081;
/// Nobody listens there.
const NOBODY: u16 = 8082;

/// Serves whoever comes on two ports: one answers a line and closes, the other sends back what it gets until that ends.
const SERVERS: &str = "
    nc -ll -p 8080 -e sh -c 'read line; echo got $line' &
    nc -ll -p 8081 -e cat &
    trap 'exit 0' TERM
    for port in 8080 8081; do
        until netstat -ltn | grep -q $port; do sleep 0.05; done
    done
    echo ready; wait; wait";

async fn node_with_servers() -> (TestNode, Pod) {
    let node = TestNode::start().await;
    let config = node.pod("one");
    let pod = node.run_pod(&config).await;
    serve(&node, &pod).await;
    (node, pod)
}

async fn serve(node: &TestNode, pod: &Pod) {
    node.start_container(pod, &sh("servers", SERVERS)).await;
    node.wait_log(pod, "servers", |log| log.stdout() == "ready\n")
        .await;
}

async fn connect(node: &TestNode, pod: &Pod) -> Spdy {
    let url = node.port_forward_url(pod, &[]).await;
    let spdy = Spdy::connect(&node.net, &url, &PORTS).await;
    let spdy = spdy.unwrap_or_else(|head| panic!("{head:?}"));
    assert_eq!(spdy.protocol, PORTS[0]);
    spdy
}

/// Opens both streams of a connection in kubectl's way.
async fn open(spdy: &mut Spdy, port: u16, request: u32) -> (Stream, Stream) {
    let (port, request) = (port.to_string(), request.to_string());
    let headers = |kind| {
        [
            ("streamtype", kind),
            ("port", &*port),
            ("requestid", &*request),
        ]
    };
    let error = spdy.open(&headers("error")).await.unwrap();
    error.close().await;
    let data = spdy.open(&headers("data")).await.unwrap();
    (error, data)
}

/// Sends bytes through, closes, and gets them back.
async fn echo((mut error, mut data): (Stream, Stream), bytes: Vec<u8>) {
    let sender = data.sender.clone();
    let feed = async {
        sender.write(&bytes).await.unwrap();
        sender.close().await;
    };
    let ((), (back, end)) = tokio::join!(feed, data.read_to_end());
    assert_eq!(end, End::Fin);
    assert!(back == bytes, "{} of {} bytes", back.len(), bytes.len());
    assert_eq!(error.read_to_end().await, (Vec::new(), End::Fin));
}

fn pattern(length: u32) -> Vec<u8> {
    (0..length).map(|n| (n ^ n >> 8 ^ n >> 16) as u8).collect()
}

#[tokio::test]
async fn a_connection_goes_to_the_pods_loopback_interface() {
    let (node, pod) = node_with_servers().await;
    let mut spdy = connect(&node, &pod).await;
    let (mut error, mut data) = open(&mut spdy, ANSWER, 0).await;
    data.send(b"word\n", false).await.unwrap();
    assert_eq!(data.read_to_end().await, (b"got word\n".to_vec(), End::Fin));
    // kubectl resets the data stream before it looks at the other.
    data.reset().await;
    assert_eq!(error.read_to_end().await, (Vec::new(), End::Fin));
    spdy.ping().await;
    drop(spdy);
    node.finish().await;
}

#[tokio::test]
async fn many_connections_share_one() {
    let (node, pod) = node_with_servers().await;
    let mut spdy = connect(&node, &pod).await;
    let mut echoes = tokio::task::JoinSet::new();
    for request in 0..20 {
        let streams = open(&mut spdy, ECHO, request).await;
        echoes.spawn(echo(streams, pattern(request * 50_000)));
    }
    while let Some(echo) = echoes.join_next().await {
        echo.unwrap();
    }
    drop(spdy);
    node.finish().await;
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_an_error_of_its_own() {
    let (node, pod) = node_with_servers().await;
    let mut spdy = connect(&node, &pod).await;
    let (mut error, mut data) = open(&mut spdy, NOBODY, 0).await;
    let (text, end) = error.read_to_end().await;
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains(&format!("forwarding port {NOBODY} to pod {}", pod.id)),
        "{text}"
    );
    assert!(text.contains("refused"), "{text}");
    assert_eq!(end, End::Fin);
    assert!(matches!(data.read_to_end().await, (_, End::Reset(_))));
    echo(open(&mut spdy, ECHO, 1).await, pattern(1000)).await;
    drop(spdy);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_with_the_nodes_network_has_ports_too() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.namespaces().set_network(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    serve(&node, &pod).await;
    let mut spdy = connect(&node, &pod).await;
    echo(open(&mut spdy, ECHO, 0).await, pattern(1000)).await;
    drop(spdy);
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_ends_its_connections() {
    let (node, pod) = node_with_servers().await;
    for request in 0..10 {
        let mut spdy = connect(&node, &pod).await;
        let (_error, mut data) = open(&mut spdy, ECHO, request).await;
        data.send(b"x", false).await.unwrap();
        assert_eq!(data.next().await, Ok(b"x".to_vec()));
    }
    // Their sockets are the daemon's descriptors.
    node.finish().await;
}

#[tokio::test]
async fn kubectl_tunnels_through_a_websocket() {
    let (node, pod) = node_with_servers().await;
    let url = node.port_forward_url(&pod, &[]).await;
    let protocol = "SPDY/3.1+portforward.k8s.io";
    let outside = WebSocket::connect(&node.net, &url, &[protocol]).await;
    let outside = outside.unwrap_or_else(|head| panic!("{head:?}"));
    assert_eq!(outside.protocol, protocol);
    let (reader, writer) = tokio::io::split(outside.into_tunnel());
    let mut spdy = Spdy::over(reader, writer, protocol.to_owned());
    spdy.ping().await;
    let streams = open(&mut spdy, ECHO, 0).await;
    echo(streams, pattern(3_000_000)).await;
    let (mut error, _data) = open(&mut spdy, NOBODY, 1).await;
    assert!(!error.read_to_end().await.0.is_empty());
    drop(spdy);
    node.finish().await;
}

#[tokio::test]
async fn a_websocket_has_two_channels_for_each_port() {
    let (node, pod) = node_with_servers().await;
    let ports = [ECHO, NOBODY].map(i32::from);
    let url = node.port_forward_url(&pod, &ports).await;
    let client = WebSocket::connect(&node.net, &url, &["v4.channel.k8s.io"]).await;
    let mut client = client.unwrap_or_else(|head| panic!("{head:?}"));
    let mut channels = [const { Vec::new() }; 4];
    client.send(0, b"there and back").await.unwrap();
    while channels[0].len() < 16 || channels[3].len() < 3 {
        let frame = client.next().await.unwrap();
        assert_eq!(frame.kind, BINARY);
        let channel: &mut Vec<u8> = &mut channels[usize::from(frame.payload[0])];
        channel.extend_from_slice(&frame.payload[1..]);
    }
    let number = |port: u16| port.to_le_bytes();
    assert_eq!(channels[0], [&number(ECHO)[..], b"there and back"].concat());
    assert_eq!(channels[1], number(ECHO));
    assert_eq!(channels[2], number(NOBODY));
    assert!(channels[3].starts_with(&number(NOBODY)));
    client.frame(CLOSE, true, &[]).await.unwrap();
    node.finish().await;
}
