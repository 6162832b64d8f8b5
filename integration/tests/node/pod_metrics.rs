//! ListMetricDescriptors and ListPodSandboxMetrics: cAdvisor's metrics, told by the runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::v1::{
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, Metric, MetricDescriptor,
    MetricType, NamespaceMode, PodSandboxMetrics, StreamPodSandboxMetricsRequest,
};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};

/// What critest looks for.
const NAMES: [&str; 56] = [
    "container_blkio_device_usage_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_quota",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_reservation_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
    "container_ulimits_soft",
];

async fn descriptors(node: &TestNode) -> BTreeMap<String, MetricDescriptor> {
    let request = ListMetricDescriptorsRequest {};
    let response = node.cri.runtime().list_metric_descriptors(request).await;
    let all = response.expect("ListMetricDescriptors").into_inner();
    let count = all.descriptors.len();
    let by_name: BTreeMap<_, _> = all
        .descriptors
        .into_iter()
        .map(|descriptor| (descriptor.name.clone(), descriptor))
        .collect();
    assert_eq!(by_name.len(), count, "each once");
    by_name
}

async fn metrics(node: &TestNode) -> Vec<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest {};
    let response = node.cri.runtime().list_pod_sandbox_metrics(request).await;
    let response = response.expect("ListPodSandboxMetrics");
    response.into_inner().pod_metrics
}

/// The labels of a metric by their names.
fn labels<'a>(
    descriptors: &'a BTreeMap<String, MetricDescriptor>,
    metric: &'a Metric,
) -> BTreeMap<&'a str, &'a str> {
    let keys = &descriptors[&metric.name].label_keys;
    assert_eq!(keys.len(), metric.label_values.len(), "{metric:?}");
    let pairs = keys.iter().zip(&metric.label_values);
    pairs
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

/// The value of the only metric of this name, or of the first with these labels at its end.
fn value(metrics: &[Metric], name: &str, own: &[&str]) -> u64 {
    let name = format!("container_{name}");
    let mut found = metrics
        .iter()
        .filter(|metric| metric.name == name && metric.label_values.ends_with(&strings(own)));
    let metric = found.next().unwrap_or_else(|| panic!("no {name} {own:?}"));
    assert_eq!(found.next(), None);
    metric.value.expect("a value").value
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn list_metric_descriptors() {
    let node = TestNode::start().await;
    let descriptors = descriptors(&node).await;
    for name in NAMES {
        let descriptor = descriptors
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not described"));
        assert!(!descriptor.help.is_empty());
        // The kubelet adds none.
        for key in ["pod", "namespace", "container"] {
            assert!(descriptor.label_keys.iter().any(|it| it == key), "{name}");
        }
    }
    assert_eq!(descriptors.len(), NAMES.len());
    node.finish().await;
}

#[tokio::test]
async fn list_pod_sandbox_metrics_of_all_kinds() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    node.try_create(&pod, &sleeper("created")).await.unwrap();
    let (_, exited) = node.run_to_end(&pod, &sh("exited", "true")).await;
    let stopped = node.run_pod(&node.pod("stopped")).await;
    node.try_stop_pod(&stopped.id).await.unwrap();
    let descriptors = descriptors(&node).await;
    let pods = metrics(&node).await;
    let [all] = &pods[..] else {
        panic!("only the pod that is ready: {pods:?}");
    };
    assert_eq!(all.pod_sandbox_id, pod.id);
    let [container] = &all.container_metrics[..] else {
        panic!("only the container that runs, not {}: {all:?}", exited.id);
    };
    assert_eq!(container.container_id, id);
    // At the very first request, each that the machine can tell.
    let told: BTreeSet<_> = all
        .metrics
        .iter()
        .chain(&container.metrics)
        .map(|metric| metric.name.as_str())
        .collect();
    let missing: Vec<_> = NAMES
        .into_iter()
        .filter(|name| !told.contains(name))
        .collect();
    for name in &missing {
        let optional = match *name {
            // The container's cgroup has none of these controllers here.
            "container_blkio_device_usage_total" => true,
            name if name.starts_with("container_fs_reads") => true,
            name if name.starts_with("container_fs_writes") => true,
            name if name.starts_with("container_hugetlb") => true,
            // Nothing was asked for.
            "container_spec_cpu_quota" => true,
            "container_memory_max_usage_bytes" => host::is_unified() && host::kernel() < (5, 19),
            name if name.starts_with("container_pressure") => !host::is_unified(),
            _ => false,
        };
        assert!(optional, "{name} is not told");
    }
    for metric in &container.metrics {
        let labels = labels(&descriptors, metric);
        assert_eq!(
            (labels["pod"], labels["namespace"], labels["container"]),
            ("one", "default", "a")
        );
        assert_eq!(labels["name"], id);
        assert!(labels["id"].starts_with('/') && labels["id"].contains(&id));
        assert!(labels["image"].contains("busybox"), "{labels:?}");
    }
    for metric in &all.metrics {
        let labels = labels(&descriptors, metric);
        assert_eq!(
            (labels["pod"], labels["namespace"], labels["container"]),
            ("one", "default", "")
        );
        assert_eq!(labels["interface"], "eth0");
    }
    // As a stream the same.
    let request = StreamPodSandboxMetricsRequest {};
    let stream = node.cri.runtime().stream_pod_sandbox_metrics(request).await;
    let mut stream = stream.expect("StreamPodSandboxMetrics").into_inner();
    let first = stream.message().await.unwrap().expect("a message");
    let [same] = &first.pod_sandbox_metrics[..] else {
        panic!("the pod that is ready: {first:?}");
    };
    assert_eq!(same.pod_sandbox_id, pod.id);
    assert_eq!(same.metrics.len(), all.metrics.len());
    assert_eq!(
        same.container_metrics[0].metrics.len(),
        container.metrics.len()
    );
    assert_eq!(stream.message().await.unwrap(), None);
    node.finish().await;
}

#[tokio::test]
async fn list_pod_sandbox_metrics_with_the_figures_of_the_kernel() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    // A CPU second and more, held back by its quota; a socket; ten descriptors.
    let script = "nc -l -p 99 </dev/null & \
         exec 10</dev/null 11</dev/null 12</dev/null; \
         head -c 3000000 /dev/zero >/big; cat /big >/dev/null; \
         while :; do :; done";
    let mut config = sh("busy", script);
    let resources = config.resources();
    resources.memory_limit_in_bytes = 128 << 20;
    resources.cpu_quota = 20_000;
    resources.cpu_period = 100_000;
    resources.cpu_shares = 512;
    let id = node.start_container(&pod, &config).await;
    node.exec(&id, "ping -c 2 -s 1000 10.118.0.1").await;
    let of_container = async || {
        let pods = metrics(&node).await;
        assert_eq!(pods[0].container_metrics[0].container_id, id);
        pods[0].clone()
    };
    let deadline = Instant::now() + host::patience(Duration::from_secs(30));
    let all = loop {
        let all = of_container().await;
        let metrics = &all.container_metrics[0].metrics;
        let busy = value(metrics, "cpu_usage_seconds_total", &["total"]) >= 1
            // It has written its file.
            && value(metrics, "memory_cache", &[]) >= 2_900_000
            && value(metrics, "cpu_cfs_throttled_periods_total", &[]) > 0;
        if busy {
            break all;
        }
        assert!(Instant::now() < deadline, "not busy");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let figures = &all.container_metrics[0].metrics;
    let of = |name: &str| value(figures, name, &[]);
    assert!(of("cpu_cfs_periods_total") >= of("cpu_cfs_throttled_periods_total"));
    assert!(of("cpu_user_seconds_total") <= value(figures, "cpu_usage_seconds_total", &["total"]));
    assert!(of("memory_working_set_bytes") <= of("memory_usage_bytes"));
    assert!(of("memory_usage_bytes") <= 128 << 20);
    if !host::is_unified() || host::kernel() >= (5, 19) {
        assert!(of("memory_max_usage_bytes") >= 2_900_000);
    }
    assert!(value(figures, "memory_failures_total", &["pgfault", "container"]) > 0);
    assert_eq!(of("memory_swap") + of("oom_events_total"), 0);
    // The shell and its nc, each with three descriptors at least, and three more and a socket.
    assert_eq!((of("processes"), of("threads")), (2, 2));
    assert!((9..=20).contains(&of("file_descriptors")), "{figures:?}");
    assert_eq!(of("sockets"), 1);
    let limit = node.exec(&id, "ulimit -n").await;
    assert_eq!(
        value(figures, "ulimits_soft", &["max_open_files"]).to_string(),
        limit.trim()
    );
    assert_eq!(of("spec_memory_limit_bytes"), 128 << 20);
    assert_eq!(of("spec_memory_swap_limit_bytes"), 128 << 20);
    assert_eq!(of("spec_cpu_quota"), 20_000);
    assert_eq!(of("spec_cpu_period"), 100_000);
    assert_eq!(of("spec_cpu_shares"), 512);
    let started = u64::try_from(node.status(&id).await.started_at).unwrap() / 1_000_000_000;
    assert_eq!(of("start_time_seconds"), started);
    assert!((started..started + 600).contains(&of("last_seen")));
    let disk = |name: &str| {
        let metric = figures.iter().find(|metric| metric.name == name);
        metric.expect(name).value.unwrap().value
    };
    assert!(disk("container_fs_inodes_total") >= disk("container_fs_inodes_free"));
    assert!(disk("container_fs_limit_bytes") > disk("container_fs_usage_bytes"));
    let interface = |name: &str| value(&all.metrics, name, &["eth0"]);
    assert!(interface("network_receive_bytes_total") > 2000);
    assert!(interface("network_transmit_packets_total") >= 2);
    assert_eq!(interface("network_receive_errors_total"), 0);
    let kind = |name: &str| {
        let metric = figures.iter().find(|metric| metric.name == name);
        metric.expect(name).metric_type()
    };
    assert_eq!(kind("container_memory_rss"), MetricType::Gauge);
    assert_eq!(
        kind("container_cpu_usage_seconds_total"),
        MetricType::Counter
    );
    node.finish().await;
}

#[tokio::test]
async fn list_pod_sandbox_metrics_of_a_pod_with_the_nodes_network() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.namespaces().set_network(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    node.start_container(&pod, &sleeper("a")).await;
    let pods = metrics(&node).await;
    assert_eq!(
        pods[0].metrics,
        [],
        "what the node's interfaces carry is not its"
    );
    assert_eq!(pods[0].container_metrics.len(), 1);
    node.finish().await;
}
