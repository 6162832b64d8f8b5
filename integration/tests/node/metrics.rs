//! The daemon's own figures, for Prometheus.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::Command;

use carpel_integration::request::sleeper;
use carpel_integration::{TestNode, bin_dir, host, sh};

const PORT: u16 = 9461;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CONFIG: &str = "[telemetry]\nmetrics = \"127.0.0.1:9461\"\n";

fn scrape(node: &TestNode) -> String {
    node.net
        .run(|| host::http_get(LOOPBACK, PORT, "/metrics"))
        .expect("metrics")
}

/// The value of a line.
#[track_caller]
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("{name} is not in\n{text}"));
    value.trim().parse().expect("a number")
}

#[tokio::test]
async fn what_the_daemon_does_is_counted() {
    let node = TestNode::builder().config(CONFIG).start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    node.start_container(&pod, &sleeper("a")).await;
    node.run_to_end(&pod, &sh("b", "true")).await;
    node.try_create(&pod, &sleeper("c")).await.unwrap();
    node.try_status("nosuch").await.expect_err("not found");
    let text = scrape(&node);
    for (name, expected) in [
        ("carpel_sandboxes{state=\"ready\"}", 1.0),
        ("carpel_sandboxes{state=\"notready\"}", 0.0),
        ("carpel_containers{state=\"created\"}", 1.0),
        ("carpel_containers{state=\"running\"}", 1.0),
        ("carpel_containers{state=\"exited\"}", 1.0),
        (
            "carpel_rpc_duration_seconds_count{method=\"RunPodSandbox\",code=\"OK\"}",
            1.0,
        ),
        (
            "carpel_rpc_duration_seconds_count{method=\"CreateContainer\",code=\"OK\"}",
            3.0,
        ),
        (
            "carpel_rpc_duration_seconds_count{method=\"ContainerStatus\",code=\"NotFound\"}",
            1.0,
        ),
        (
            "carpel_cni_duration_seconds_count{plugin=\"bridge\",verb=\"ADD\",outcome=\"success\"}",
            1.0,
        ),
        ("carpel_log_lines_dropped_total", 0.0),
        ("carpel_pulled_bytes_total", 0.0),
    ] {
        assert_eq!(value(&text, name), expected, "{name}");
    }
    let sum = "carpel_rpc_duration_seconds_sum{method=\"RunPodSandbox\",code=\"OK\"}";
    let seconds = value(&text, sum);
    assert!(seconds > 0.000_1 && seconds < 10.0, "{seconds}");
    assert!(text.ends_with("# EOF\n"));
    node.remove_pods().await;
    let text = scrape(&node);
    assert_eq!(value(&text, "carpel_sandboxes{state=\"ready\"}"), 0.0);
    node.finish().await;
}

#[tokio::test]
async fn nothing_else_is_served() {
    let node = TestNode::builder().config(CONFIG).start().await;
    let ask = |request: &'static str| {
        node.net.run(move || {
            let mut stream = TcpStream::connect((LOOPBACK, PORT)).expect("connect");
            write!(stream, "{request} HTTP/1.0\r\n\r\n").expect("ask");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer.lines().next().unwrap_or_default().to_owned()
        })
    };
    assert!(ask("GET /metrics").contains(" 200 "));
    assert!(ask("GET /").contains(" 404 "));
    assert!(ask("POST /metrics").contains(" 405 "));
    node.finish().await;
}

#[tokio::test]
async fn they_are_off_unless_asked_for() {
    let node = TestNode::start().await;
    let refused = node
        .net
        .run(|| TcpStream::connect((LOOPBACK, PORT)).expect_err("nobody listens"));
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let listening = node.net.output(&["ss", "-Htln"]);
    // That of the streams of exec, attach and port-forward.
    assert_eq!(listening.lines().count(), 1, "{listening}");
    assert!(listening.contains("127.0.0.1:"), "{listening}");
    node.finish().await;
}

#[test]
fn an_address_that_is_none_stops_the_daemon_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[telemetry]\nmetrics = \"nowhere\"\n").unwrap();
    let mut check = Command::new(bin_dir().join("carpel"));
    check.args(["config", "check", "--config"]).arg(&file);
    let output = check.output().expect("carpel");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("config.toml:2: "),
        "{text}"
    );
}
