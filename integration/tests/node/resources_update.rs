//! UpdateContainerResources, field by field.

use std::fs;

use carpel_integration::request::sleeper;
use carpel_integration::v1::{HugepageLimit, LinuxContainerResources};
use carpel_integration::{ContainerConfigExt, TestNode, host};
use tonic::Code;

use crate::refused;
use crate::resources::{file, memory};

/// The sizes of huge pages that the machine has, as cgroups name them: "2MB".
fn huge_page_sizes() -> Vec<String> {
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten();
    let kilobytes = sizes.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse::<u64>()
            .ok()
    });
    kilobytes
        .map(|size| match size {
            size if size >= 1 << 20 => format!("{}GB", size >> 20),
            size if size >= 1 << 10 => format!("{}MB", size >> 10),
            size => format!("{size}KB"),
        })
        .collect()
}

/// One field after the other, up and down again in the running container: the kernel's file has each value and
/// the status says what was asked for.
#[tokio::test]
async fn each_limit_changes_up_and_down() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    *config.resources() = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        ..memory(64)
    };
    let id = node.start_container(&pod, &config).await;
    type Change<'a> = &'a dyn Fn(&mut LinuxContainerResources, i64);
    let v2 = host::is_unified();
    // The field, its file in v1 and in v2, values, and what the file has for them in v1 and v2.
    type Values<'a> = [(i64, &'a str, &'a str); 3];
    let numbers: [(Change<'_>, &str, &str, Values<'_>); 5] = [
        (
            &|l, v| l.cpu_period = v,
            "cpu.cfs_period_us",
            "cpu.max",
            [
                (200_000, "200000", "50000 200000"),
                (400_000, "400000", "50000 400000"),
                (100_000, "100000", "50000 100000"),
            ],
        ),
        (
            &|l, v| l.cpu_quota = v,
            "cpu.cfs_quota_us",
            "cpu.max",
            [
                (150_000, "150000", "150000 100000"),
                (-1, "-1", "max 100000"),
                (20_000, "20000", "20000 100000"),
            ],
        ),
        (
            &|l, v| l.cpu_shares = v,
            "cpu.shares",
            "cpu.weight",
            [
                (262_144, "262144", "10000"),
                (2, "2", "1"),
                (1024, "1024", "100"),
            ],
        ),
        (
            &|l, v| l.memory_limit_in_bytes = v,
            "memory.limit_in_bytes",
            "memory.max",
            [
                (256 << 20, "268435456", "268435456"),
                (32 << 20, "33554432", "33554432"),
                (64 << 20, "67108864", "67108864"),
            ],
        ),
        (
            &|l, v| l.memory_swap_limit_in_bytes = v,
            "memory.memsw.limit_in_bytes",
            "memory.swap.max",
            [
                (128 << 20, "134217728", "67108864"),
                (96 << 20, "100663296", "33554432"),
                (64 << 20, "67108864", "0"),
            ],
        ),
    ];
    for (change, old, new, steps) in numbers {
        for (value, in_v1, in_v2) in steps {
            let mut update = LinuxContainerResources::default();
            change(&mut update, value);
            let mut expected = node.limits(&id).await;
            change(&mut expected, value);
            if old == "memory.limit_in_bytes" {
                expected.memory_swap_limit_in_bytes = 0;
            }
            node.try_update(&id, &update).await.unwrap();
            let wanted = if v2 { in_v2 } else { in_v1 };
            assert_eq!(
                file(&node, &id, old, new).as_deref(),
                Some(wanted),
                "{new}: {value}"
            );
            assert_eq!(node.limits(&id).await, expected, "{new}: {value}");
        }
    }
    let mut texts = vec![("pids.max", ["100", "50", "max"])];
    if v2 {
        texts.extend([
            ("memory.high", ["50331648", "41943040", "max"]),
            ("memory.min", ["8388608", "16777216", "0"]),
            ("memory.low", ["8388608", "16777216", "0"]),
            ("memory.oom.group", ["1", "0", "1"]),
            ("memory.swap.max", ["8388608", "4194304", "0"]),
            ("cpu.max.burst", ["20000", "10000", "0"]),
            ("cpu.idle", ["1", "0", "0"]),
        ]);
    }
    for (key, values) in texts {
        for value in values {
            let update = LinuxContainerResources {
                unified: [(key.to_owned(), value.to_owned())].into(),
                ..Default::default()
            };
            node.try_update(&id, &update).await.unwrap();
            assert_eq!(file(&node, &id, key, key).as_deref(), Some(value), "{key}");
            assert_eq!(node.limits(&id).await.unified[key], value);
        }
    }
    node.finish().await;
}

/// Every size that the machine has; one that it has not, or a machine without the controller, is refused.
#[tokio::test]
async fn hugepage_limits_of_every_size_change() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let sizes = huge_page_sizes();
    let controlled = match host::is_unified() {
        true => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|all| all.contains("hugetlb")),
        false => host::cgroup_mounts()
            .iter()
            .any(|mount| mount.ends_with("hugetlb")),
    };
    for limit in [4 << 30, 2 << 30, 0] {
        let update = LinuxContainerResources {
            hugepage_limits: sizes
                .iter()
                .map(|size| HugepageLimit {
                    page_size: size.clone(),
                    limit,
                })
                .collect(),
            ..Default::default()
        };
        let outcome = node.try_update(&id, &update).await;
        if !controlled && limit > 0 && !sizes.is_empty() {
            refused(outcome, Code::InvalidArgument, "hugetlb");
            continue;
        }
        outcome.expect("limits of every size, or nothing to forbid");
        for size in sizes.iter().filter(|_| controlled) {
            let (old, new) = (
                format!("hugetlb.{size}.limit_in_bytes"),
                format!("hugetlb.{size}.max"),
            );
            assert_eq!(
                file(&node, &id, &old, &new),
                Some(limit.to_string()),
                "{size}"
            );
        }
        assert_eq!(
            node.limits(&id).await.hugepage_limits,
            update.hugepage_limits
        );
    }
    node.finish().await;
}
