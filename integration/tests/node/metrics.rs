//! The daemon's own figures, for Prometheus.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use carpel_integration::host::soon;
use carpel_integration::image::Image;
use carpel_integration::registry::{Body, Content, Fake, Reply};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{ImageSpec, RemoveImageRequest};
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
async fn pulls_are_counted() {
    let config = format!("{CONFIG}[registry]\ntimeout_seconds = 1\n");
    let node = TestNode::builder().no_image().config(&config).start().await;
    let image = Image::busybox().build();
    let packed: usize = image.layers.iter().map(Vec::len).sum();
    let content = Content::default().image("a/b", "1", &image);
    let registry = Fake::start(&node.net, move |request| match request.path.as_str() {
        path if path.contains("/slow/") => {
            Reply::with(200, &[], b"slow").sent(|bytes| Body::Stalled(bytes, 0))
        }
        _ => content.answer(request),
    });
    let name = |path: &str| format!("{}/{path}:1", registry.host());
    let id = node.cri.pull(&name("a/b"), None).await.expect("an image");
    // Once more: nothing of it comes again.
    node.cri.pull(&name("a/b"), None).await.expect("an image");
    node.cri
        .pull(&name("no/such"), None)
        .await
        .expect_err("not found");
    let waits = Duration::from_millis(200);
    let slow = name("slow/one");
    let impatient = tokio::time::timeout(waits, node.cri.pull(&slow, None));
    impatient.await.expect_err("the registry says nothing");

    let ended = |text: &str, outcome: &str| {
        let line = format!("carpel_pull_duration_seconds_count{{outcome=\"{outcome}\"}}");
        text.lines()
            .find_map(|found| found.strip_prefix(&line)?.trim().parse::<u64>().ok())
    };
    // The daemon notices soon that nobody waits any more.
    let deadline = Instant::now() + soon();
    let mut text = scrape(&node);
    while ended(&text, "cancelled").is_none() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        text = scrape(&node);
    }
    let all = ["success", "failure", "cancelled"].map(|outcome| ended(&text, outcome));
    assert_eq!(all, [Some(2), Some(1), Some(1)], "{text}");
    assert_eq!(value(&text, "carpel_pulled_bytes_total"), packed as f64);
    let sum = "carpel_pull_duration_seconds_sum{outcome=\"success\"}";
    let seconds = value(&text, sum);
    assert!(seconds > 0.000_1 && seconds < 60.0, "{seconds}");
    let mut images = node.cri.images();
    let image = Some(ImageSpec {
        image: id,
        ..ImageSpec::default()
    });
    let removed = images.remove_image(RemoveImageRequest { image });
    removed.await.expect("removed");
    node.finish().await;
}

#[tokio::test]
async fn every_figure_is_explained_and_only_known_calls_are_named() {
    let node = TestNode::builder().config(CONFIG).start().await;
    // What has not happened yet is not there.
    node.run_pod(&node.pod("one")).await;
    let nowhere = node.cri.pull("127.0.0.1:1/no/such:1", None).await;
    nowhere.expect_err("nobody listens");
    // A method that is made up.
    let nonsense = node.cri.call("/runtime.v1.RuntimeService/Nonsense").await;
    nonsense.expect_err("unimplemented");
    let text = scrape(&node);
    assert!(!text.contains("Nonsense"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let of_family = |line: &str| {
            let family = line.strip_prefix("# HELP ")?.split(' ').next()?;
            name.starts_with(family).then_some(())
        };
        assert!(
            text.lines().any(|line| of_family(line).is_some()),
            "{name} has no HELP"
        );
    }
    for family in [
        "rpc_duration_seconds",
        "cni_duration_seconds",
        "pull_duration_seconds",
        "pulled_bytes",
        "log_lines_dropped",
        "sandboxes",
        "containers",
        "trace_spans_exported",
        "trace_spans_dropped",
    ] {
        assert!(
            text.contains(&format!("# TYPE carpel_{family} ")),
            "{family}"
        );
    }
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
