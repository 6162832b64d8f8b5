//! Traces: what a collector is told, and that no request waits for it.

mod collector;

use std::time::{Duration, Instant};

use carpel_integration::host::patience;
use carpel_integration::image::Image;
use carpel_integration::registry::{Content, Fake};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{
    self, CreateContainerRequest, ExecSyncRequest, RunPodSandboxRequest, StartContainerRequest,
};
use carpel_integration::{TestNode, host};
use collector::{CONFIG, Collector, Mood, Told};
use tonic::Request;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const KUBELET: &str = "b7ad6b7169203331";

/// A request as a kubelet that traces sends it.
fn traced<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{TRACE}-{KUBELET}-{flags}");
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", parent.parse().unwrap());
    request
}

/// The one span of this name.
#[track_caller]
fn one<'a>(told: &'a [Told], name: &str) -> &'a Told {
    let mut found = told.iter().filter(|told| told.span.name == name);
    let first = found
        .next()
        .unwrap_or_else(|| panic!("{name} is not in {told:#?}"));
    assert!(found.next().is_none(), "{name} is there twice");
    first
}

fn rpc(method: &str) -> String {
    format!("runtime.v1.RuntimeService/{method}")
}

/// The value of a line of /metrics.
fn metric(node: &TestNode, name: &str) -> u64 {
    let address = "127.0.0.1".parse().unwrap();
    let text = node.net.run(|| host::http_get(address, 9461, "/metrics"));
    let text = text.expect("metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the metric").trim().parse().expect("a number")
}

#[tokio::test]
async fn a_pods_start_is_one_trace_that_the_kubelet_began() {
    // Nothing is traced but what the caller wants.
    let config = format!("{CONFIG}sampling_ratio = 0\n");
    let mut node = TestNode::builder().config(&config).start().await;
    let collector = Collector::start(&node, Mood::Takes);
    let mut runtime = node.cri.runtime();
    let pod = RunPodSandboxRequest {
        config: Some(node.pod("one")),
        ..Default::default()
    };
    let sandbox_config = pod.config.clone();
    let run = runtime.run_pod_sandbox(traced(pod, "01")).await;
    let sandbox = run.expect("a pod").into_inner().pod_sandbox_id;
    let create = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(sleeper("a")),
        sandbox_config,
    };
    let create = runtime.create_container(traced(create, "01")).await;
    let container = create.expect("a container").into_inner().container_id;
    let start = StartContainerRequest {
        container_id: container.clone(),
    };
    let start = runtime.start_container(traced(start, "01")).await;
    start.expect("started");
    let exec = ExecSyncRequest {
        container_id: container.clone(),
        cmd: vec!["true".into()],
        timeout: 10,
    };
    let exec = runtime.exec_sync(traced(exec, "01")).await;
    assert_eq!(exec.expect("an exit").into_inner().exit_code, 0);
    let nothing = v1::ContainerStatusRequest {
        container_id: "nosuch".into(),
        verbose: false,
    };
    let missing = runtime.container_status(traced(nothing, "01")).await;
    missing.expect_err("not found");
    // Not these: the caller does not want it, or does not say, and the ratio is 0.
    let unwanted = v1::VersionRequest::default();
    runtime
        .version(traced(unwanted, "00"))
        .await
        .expect("a version");
    node.status(&container).await;
    // The last spans are sent when the daemon stops.
    assert!(node.terminate_daemon().await.success());

    let told = collector.wait(|told| told.len() > 4).await;
    for Told { span, resource } in &told {
        assert_eq!(hex::encode(&span.trace_id), TRACE);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert_eq!(resource["service.name"], "carpel");
    }
    let [run, create, start, exec, status] = [
        "RunPodSandbox",
        "CreateContainer",
        "StartContainer",
        "ExecSync",
        "ContainerStatus",
    ]
    .map(|method| one(&told, &rpc(method)));
    for call in [run, create, start, exec, status] {
        assert_eq!(hex::encode(&call.span.parent_span_id), KUBELET);
        assert_eq!(call.span.kind().as_str_name(), "SPAN_KIND_SERVER");
        assert_eq!(call.attribute("rpc.system"), "grpc");
    }
    assert_eq!(run.attribute("sandbox.id"), sandbox);
    assert_eq!(create.attribute("sandbox.id"), sandbox);
    assert_eq!(start.attribute("container.id"), container);
    assert_eq!(run.attribute("rpc.grpc.status_code"), "0");
    assert_eq!(status.attribute("rpc.grpc.status_code"), "5");
    for (name, parent) in [
        ("spawn supervisor", run),
        ("supervisor Unshare", run),
        ("supervisor Setup", run),
        ("cni bridge ADD", run),
    ] {
        let child = one(&told, name);
        assert!(child.is_child_of(parent), "{child:?}");
        assert!(child.span.start_time_unix_nano >= parent.span.start_time_unix_nano);
        assert!(child.span.end_time_unix_nano <= parent.span.end_time_unix_nano);
    }
    assert_eq!(
        one(&told, "cni bridge ADD").attribute("cni.network"),
        "test"
    );
    let starts = told
        .iter()
        .filter(|told| told.span.name == "supervisor Start");
    let mut of_calls = starts.map(|child| [start, exec].map(|call| child.is_child_of(call)));
    let both = [of_calls.next(), of_calls.next(), of_calls.next()];
    assert_eq!(both, [Some([true, false]), Some([false, true]), None]);
    for absent in ["Version", "ListContainers"] {
        assert!(told.iter().all(|told| told.span.name != rpc(absent)));
    }
    let calls = told
        .iter()
        .filter(|told| told.span.name.starts_with("runtime.v1."));
    assert_eq!(calls.count(), 5);

    node.start_daemon(None).await;
    drop(collector);
    node.finish().await;
}

#[tokio::test]
async fn what_fails_says_so_in_its_span() {
    let node = TestNode::builder().config(CONFIG).start().await;
    let collector = Collector::start(&node, Mood::Takes);
    let script =
        r#"[ "$CNI_COMMAND" = DEL ] || { echo '{"code": 11, "msg": "no room"}'; exit 1; }"#;
    node.write_plugin("bridge", script);
    let failed = node.try_run_pod(&node.pod("one")).await;
    failed.expect_err("no network");
    let ended = |told: &[Told]| {
        told.iter()
            .any(|told| told.span.name == rpc("RunPodSandbox"))
    };
    let told = collector.wait(ended).await;
    let (run, cni) = (
        one(&told, &rpc("RunPodSandbox")),
        one(&told, "cni bridge ADD"),
    );
    assert!(cni.is_child_of(run), "nobody began this trace: carpel did");
    assert!(run.span.parent_span_id.is_empty());
    for span in [run, cni] {
        let status = span.span.status.clone().expect("a status");
        assert_eq!(status.code().as_str_name(), "STATUS_CODE_ERROR");
        assert!(status.message.contains("no room"), "{status:?}");
    }
    drop(collector);
    node.finish().await;
}

#[tokio::test]
async fn a_pull_shows_its_requests_and_no_secret() {
    let config = format!("{CONFIG}[registry]\ntimeout_seconds = 1\n");
    let node = TestNode::builder().no_image().config(&config).start().await;
    let collector = Collector::start(&node, Mood::Takes);
    let content = Content::default().image("secret/path", "1", &Image::busybox().build());
    let registry = Fake::start(&node.net, move |request| content.answer(request));
    let name = format!("{}/secret/path:1", registry.host());
    let auth = v1::AuthConfig {
        username: "user".into(),
        password: "SECRET".into(),
        ..Default::default()
    };
    node.cri.pull(&name, Some(auth)).await.expect("an image");
    let pull = "runtime.v1.ImageService/PullImage";
    let ended = |told: &[Told]| told.iter().any(|told| told.span.name == pull);
    let told = collector.wait(ended).await;
    let root = one(&told, pull);
    assert_eq!(root.attribute("image"), name);
    let layers: Vec<_> = told
        .iter()
        .filter(|told| told.span.name == "layer")
        .collect();
    assert!(!layers.is_empty());
    assert!(layers.iter().all(|layer| layer.is_child_of(root)));
    let gets: Vec<_> = told.iter().filter(|told| told.span.name == "GET").collect();
    assert!(gets.len() >= 2 + layers.len());
    for get in &gets {
        assert_eq!(get.attribute("http.response.status_code"), "200");
        let parents = layers.iter().copied().chain([root]);
        assert!(parents.into_iter().any(|parent| get.is_child_of(parent)));
    }
    for told in told.iter().filter(|told| told.span.name != pull) {
        let text = format!("{told:?}");
        assert!(
            !text.contains("SECRET") && !text.contains("secret/path"),
            "{text}"
        );
    }
    let image = Some(v1::ImageSpec {
        image: name,
        ..Default::default()
    });
    let mut images = node.cri.images();
    let removed = images.remove_image(v1::RemoveImageRequest { image });
    removed.await.expect("removed");
    drop(collector);
    node.finish().await;
}

#[tokio::test]
async fn a_batch_is_sent_again_to_a_collector_that_is_not_there_yet() {
    let node = TestNode::builder().config(CONFIG).start().await;
    let collector = Collector::start(&node, Mood::Unavailable(2));
    let pod = node.run_pod(&node.pod("one")).await;
    let told = collector.wait(|told| !told.is_empty()).await;
    one(&told, &rpc("RunPodSandbox"));
    assert_eq!(node.pods().await[0].id, pod.id);
    drop(collector);
    node.finish().await;
}

#[tokio::test]
async fn no_request_waits_for_a_collector_that_does_not_answer() {
    let config = format!("{CONFIG}metrics = \"127.0.0.1:9461\"\n");
    let node = TestNode::builder().config(&config).start().await;
    let collector = Collector::start(&node, Mood::Silent);
    node.run_pod(&node.pod("one")).await;
    collector.wait_messages(1).await;
    // More than may wait: what is too much is lost, at once.
    let mut runtime = node.cri.runtime();
    let mut slowest = Duration::ZERO;
    for _ in 0..2600 {
        let begin = Instant::now();
        let answer = runtime.version(v1::VersionRequest::default()).await;
        answer.expect("a version");
        slowest = slowest.max(begin.elapsed());
    }
    // The collector is given 10 seconds.
    assert!(slowest < patience(Duration::from_secs(2)), "{slowest:?}");
    let dropped = metric(&node, "carpel_trace_spans_dropped_total");
    assert!(dropped >= 2600 - 2048 - 512, "{dropped}");
    assert_eq!(metric(&node, "carpel_trace_spans_exported_total"), 0);
    drop(collector);
    node.finish().await;
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_is_not_there() {
    let mut node = TestNode::builder().config(CONFIG).start().await;
    let begin = Instant::now();
    let pod = node.run_pod(&node.pod("one")).await;
    node.start_container(&pod, &sleeper("a")).await;
    assert!(node.terminate_daemon().await.success());
    assert!(
        begin.elapsed() < patience(Duration::from_secs(8)),
        "{:?}",
        begin.elapsed()
    );
    let log = node.daemon_log();
    assert_eq!(log.matches("spans are not exported").count(), 1, "{log}");
    node.start_daemon(None).await;
    node.finish().await;
}
