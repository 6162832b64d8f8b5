use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use carpel_api::cri;

use super::families;
use crate::cgroup::{
    Accounts, CpuTimes, CpuUsage, DeviceAccounts, HugePages, MemoryAccounts, MemoryUsage, Pressure,
    Stall, SwapUsage, TasksLimit, Throttling, Usage,
};
use crate::cri::tests::fake::{self, Fake};
use crate::spec::config::{Ceiling, Resources};
use crate::stats::{ContainerAccounts, DiskUsage, Processes};

/// A container of which everything is known, each figure with a value of its own.
fn known() -> ContainerAccounts {
    let second = 1_000_000_000;
    let pressure = |full: u64, some: u64| {
        let stall = |total: u64| Stall {
            total: total * 1_000_000 + 7,
            ..Stall::default()
        };
        Some(Pressure {
            full: stall(full),
            some: stall(some),
        })
    };
    ContainerAccounts {
        cgroup: "/pods/a".into(),
        started_at: 41 * second + 5,
        usage: Usage {
            cpu: Some(CpuUsage {
                total: 42 * 1_000_000_000 + 999_999_999,
                pressure: pressure(1, 2),
            }),
            memory: Some(MemoryUsage {
                usage: 50,
                working_set: 51,
                limit: Some(52),
                rss: 53,
                faults: 54,
                major_faults: 55,
                pressure: pressure(3, 4),
            }),
            swap: Some(SwapUsage {
                usage: 56,
                limit: None,
            }),
            io_pressure: pressure(5, 6),
            pids: Some(57),
        },
        accounts: Accounts {
            cpu: Some(CpuTimes {
                user: 30 * 1_000_000_000,
                system: 12 * 1_000_000_000,
            }),
            throttling: Some(Throttling {
                periods: 60,
                throttled_periods: 61,
                throttled: 62 * 1_000_000_000,
            }),
            memory: Some(MemoryAccounts {
                cache: 63,
                mapped_file: 64,
                kernel: Some(65),
                highest: Some(66),
                limit_met: Some(67),
                own_faults: Some((68, 69)),
            }),
            oom_kills: Some(70),
            devices: vec![DeviceAccounts {
                major: 0,
                minor: 9999,
                read_bytes: 71,
                written_bytes: 72,
                reads: 73,
                writes: 74,
            }],
            huge_pages: vec![HugePages {
                size: "2MB".into(),
                usage: 75,
                highest: Some(76),
            }],
            tasks_limit: Some(TasksLimit::Unlimited),
        },
        processes: Processes {
            count: 77,
            descriptors: Some(78),
            sockets: Some(79),
            open_files: Some(80),
        },
        disk: Some(DiskUsage {
            at: 81,
            bytes: 82,
            inodes: 83,
        }),
        resources: Resources {
            cpu_period: Some(84),
            cpu_quota: Some(Ceiling::At(85)),
            cpu_shares: Some(86),
            memory_limit: Some(87),
            memory_swap_limit: Some(Ceiling::At(88)),
            unified: [("memory.min".into(), "89".into())].into(),
            ..Resources::default()
        },
    }
}

/// The metrics of one pod with one container, and the descriptors.
async fn answers(
    accounts: ContainerAccounts,
) -> (
    BTreeMap<String, cri::MetricDescriptor>,
    cri::PodSandboxMetrics,
) {
    let fake = Arc::new(Fake {
        accounts,
        ..Fake::default()
    });
    let mut client = fake::runtime(&fake).await;
    let pod = fake::run(&mut client, fake::sandbox_config("pod")).await;
    fake::create(&mut client, &pod, fake::container_config("web")).await;
    let request = cri::ListMetricDescriptorsRequest {};
    let response = client.list_metric_descriptors(request).await;
    let descriptors = response.expect("descriptors").into_inner().descriptors;
    assert_eq!(descriptors.len(), families::ALL.len());
    let by_name = |it: cri::MetricDescriptor| (it.name.clone(), it);
    let descriptors: BTreeMap<_, _> = descriptors.into_iter().map(by_name).collect();
    assert_eq!(descriptors.len(), families::ALL.len(), "each once");
    let request = cri::ListPodSandboxMetricsRequest {};
    let response = client.list_pod_sandbox_metrics(request).await;
    let mut pods = response.expect("metrics").into_inner().pod_metrics;
    assert_eq!(pods.len(), 1);
    (descriptors, pods.remove(0))
}

/// A metric's own labels and value, by its name.
fn figures(pod: &cri::PodSandboxMetrics) -> BTreeSet<(String, Vec<String>, u64)> {
    let containers = pod.container_metrics.iter();
    let all = containers
        .flat_map(|container| &container.metrics)
        .chain(&pod.metrics);
    let figure = |metric: &cri::Metric| {
        let own = metric.label_values[families::COMMON.len()..].to_vec();
        (metric.name.clone(), own, metric.value.expect("one").value)
    };
    all.map(figure).collect()
}

#[tokio::test]
async fn every_metric_is_described_and_told() {
    let (descriptors, pod) = answers(known()).await;
    let told = figures(&pod);
    for (name, descriptor) in &descriptors {
        assert!(!descriptor.help.is_empty());
        let labels = told.iter().find(|(of, _, _)| of == name);
        let (_, labels, _) = labels.unwrap_or_else(|| panic!("{name} is not told"));
        let keys = &descriptor.label_keys;
        assert_eq!(keys[..6], families::COMMON);
        assert_eq!(labels.len() + 6, keys.len(), "{name}");
    }
    assert!(
        told.iter()
            .all(|(name, _, _)| descriptors.contains_key(name))
    );
    let labels = |metric: &cri::Metric| metric.label_values[..6].to_vec();
    let container = &pod.container_metrics[0];
    let id = container.container_id.as_str();
    assert_eq!(
        labels(&container.metrics[0]),
        ["web", "/pods/a", "busybox", id, "ns", "pod"]
    );
    let sandbox = pod.pod_sandbox_id.as_str();
    assert_eq!(
        labels(&pod.metrics[0]),
        ["", "/pods/x", "", sandbox, "ns", "pod"]
    );
    let times: BTreeSet<_> = container
        .metrics
        .iter()
        .filter(|metric| metric.timestamp != 0)
        .map(|metric| (metric.name.as_str(), metric.timestamp))
        .collect();
    assert_eq!(times, [("container_fs_usage_bytes", 81)].into());
}

#[tokio::test]
async fn every_figure_goes_where_it_belongs() {
    let (_, pod) = answers(known()).await;
    let told = figures(&pod);
    for (name, labels, value) in [
        ("cpu_usage_seconds_total", vec!["total"], 42),
        ("cpu_user_seconds_total", vec![], 30),
        ("cpu_system_seconds_total", vec![], 12),
        ("cpu_cfs_periods_total", vec![], 60),
        ("cpu_cfs_throttled_periods_total", vec![], 61),
        ("cpu_cfs_throttled_seconds_total", vec![], 62),
        ("memory_usage_bytes", vec![], 50),
        ("memory_working_set_bytes", vec![], 51),
        ("memory_rss", vec![], 53),
        ("memory_swap", vec![], 56),
        ("memory_cache", vec![], 63),
        ("memory_mapped_file", vec![], 64),
        ("memory_kernel_usage", vec![], 65),
        ("memory_max_usage_bytes", vec![], 66),
        ("memory_failcnt", vec![], 67),
        ("memory_failures_total", vec!["pgfault", "container"], 68),
        ("memory_failures_total", vec!["pgmajfault", "container"], 69),
        ("memory_failures_total", vec!["pgfault", "hierarchy"], 54),
        ("memory_failures_total", vec!["pgmajfault", "hierarchy"], 55),
        ("oom_events_total", vec![], 70),
        ("hugetlb_usage_bytes", vec!["2MB"], 75),
        ("hugetlb_max_usage_bytes", vec!["2MB"], 76),
        ("fs_usage_bytes", vec!["/dev/x1"], 82),
        ("fs_limit_bytes", vec!["/dev/x1"], 1000),
        ("fs_inodes_total", vec!["/dev/x1"], 100),
        ("fs_inodes_free", vec!["/dev/x1"], 10),
        ("fs_reads_bytes_total", vec![""], 71),
        ("fs_writes_bytes_total", vec![""], 72),
        ("fs_reads_total", vec![""], 73),
        ("fs_writes_total", vec![""], 74),
        (
            "blkio_device_usage_total",
            vec!["", "0", "9999", "Read"],
            71,
        ),
        (
            "blkio_device_usage_total",
            vec!["", "0", "9999", "Write"],
            72,
        ),
        ("network_receive_packets_total", vec!["eth0"], 5),
        ("pressure_cpu_stalled_seconds_total", vec![], 1),
        ("pressure_cpu_waiting_seconds_total", vec![], 2),
        ("pressure_memory_stalled_seconds_total", vec![], 3),
        ("pressure_memory_waiting_seconds_total", vec![], 4),
        ("pressure_io_stalled_seconds_total", vec![], 5),
        ("pressure_io_waiting_seconds_total", vec![], 6),
        ("processes", vec![], 77),
        ("threads", vec![], 57),
        ("threads_max", vec![], 0),
        ("file_descriptors", vec![], 78),
        ("sockets", vec![], 79),
        ("ulimits_soft", vec!["max_open_files"], 80),
        ("start_time_seconds", vec![], 41),
        ("spec_cpu_period", vec![], 84),
        ("spec_cpu_quota", vec![], 85),
        ("spec_cpu_shares", vec![], 86),
        ("spec_memory_limit_bytes", vec![], 87),
        ("spec_memory_swap_limit_bytes", vec![], 88),
        ("spec_memory_reservation_limit_bytes", vec![], 89),
    ] {
        let labels = labels.into_iter().map(str::to_owned).collect();
        let expected = (format!("container_{name}"), labels, value);
        assert!(
            told.contains(&expected),
            "{expected:?} is not among {told:?}"
        );
    }
}

#[tokio::test]
async fn what_is_not_known_is_left_out() {
    let (_, pod) = answers(ContainerAccounts::default()).await;
    let names: Vec<_> = pod.container_metrics[0]
        .metrics
        .iter()
        .map(|metric| metric.name.trim_start_matches("container_"))
        .collect();
    let expected = [
        "last_seen",
        "start_time_seconds",
        "fs_limit_bytes",
        "fs_inodes_total",
        "fs_inodes_free",
        "processes",
        "spec_cpu_period",
        "spec_cpu_shares",
        "spec_memory_limit_bytes",
        "spec_memory_swap_limit_bytes",
        "spec_memory_reservation_limit_bytes",
    ];
    assert_eq!(names, expected);
}
