//! What a pod as a whole is to have: kept and shown, and nothing more, because its cgroup is the kubelet's.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use carpel_integration::v1::{HugepageLimit, LinuxContainerResources};
use carpel_integration::{PodConfigExt, TestNode, host};
use serde_json::{Value, json};
use tonic::Code;

use crate::refused;

fn memory(bytes: i64) -> Option<LinuxContainerResources> {
    Some(LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        ..LinuxContainerResources::default()
    })
}

/// All limits of a cgroup, as its files say.
fn limits_of(cgroup: &str) -> Vec<(PathBuf, String)> {
    let names = [
        "memory.limit_in_bytes",
        "cpu.shares",
        "cpu.cfs_quota_us",
        "memory.max",
        "cpu.max",
        "cpu.weight",
    ];
    let dirs = host::cgroup_dirs(cgroup);
    assert!(!dirs.is_empty());
    let files = dirs.iter().flat_map(|dir| names.map(|name| dir.join(name)));
    files
        .filter_map(|file| Some((file.clone(), fs::read_to_string(file).ok()?)))
        .collect()
}

/// What only cgroup v2 has.
fn unified() -> BTreeMap<String, String> {
    let high = ("memory.high".to_owned(), "1000".to_owned());
    host::is_unified().then_some(high).into_iter().collect()
}

#[tokio::test]
async fn update_pod_sandbox_resources() {
    let mut node = TestNode::start().await;
    let parent = format!("{}/pod1", node.cgroup_parent());
    for mount in host::cgroup_mounts() {
        let _ = fs::create_dir_all(mount.join(parent.trim_start_matches('/')));
    }
    let mut config = node.pod("one");
    config.linux().cgroup_parent = parent.clone();
    config.linux().overhead = memory(1 << 20);
    let all = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        hugepage_limits: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        unified: unified(),
        ..LinuxContainerResources::default()
    };
    config.linux().resources = Some(all);
    let pod = node.run_pod(&config).await;
    let before = limits_of(&parent);
    assert!(!before.is_empty());
    let info = node.pod_info(&pod).await;
    assert_eq!(info["overhead"], json!({ "memoryLimitInBytes": 1 << 20 }));
    let mut first = json!({
        "cpuPeriod": 100_000,
        "cpuQuota": 50_000,
        "cpuShares": 512,
        "memoryLimitInBytes": 64 << 20,
        "cpusetCpus": "0",
        "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
    });
    if host::is_unified() {
        first["unified"] = json!(unified());
    }
    assert_eq!(info["resources"], first);
    // What is not said stays; what is said takes the place of all that was there.
    let more = memory(128 << 20);
    node.try_update_pod(&pod.id, None, more.clone())
        .await
        .unwrap();
    let second = json!({ "memoryLimitInBytes": 128 << 20 });
    let shown = |info: &Value| (info["overhead"].clone(), info["resources"].clone());
    let expected = (info["overhead"].clone(), second);
    assert_eq!(shown(&node.pod_info(&pod).await), expected);
    assert_eq!(limits_of(&parent), before, "the kubelet's");
    // It is in the record.
    node.crash().await;
    assert_eq!(shown(&node.pod_info(&pod).await), expected);
    node.try_update_pod(&pod.id, memory(2 << 20), None)
        .await
        .unwrap();
    // A pod that has stopped has a record still.
    node.try_stop_pod(&pod.id).await.unwrap();
    node.try_update_pod(&pod.id, None, memory(1)).await.unwrap();
    let expected = (
        json!({ "memoryLimitInBytes": 2 << 20 }),
        json!({ "memoryLimitInBytes": 1 }),
    );
    assert_eq!(shown(&node.pod_info(&pod).await), expected);
    node.crash().await;
    assert_eq!(shown(&node.pod_info(&pod).await), expected);
    let status = node.pod_status(&pod).await;
    assert_eq!(status.state, 1, "it has stopped, and still so");
    node.remove_pods().await;
    for dir in host::cgroup_dirs(node.cgroup_parent()) {
        let tree = host::tree(&dir);
        tree.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    }
    node.finish().await;
}

#[tokio::test]
async fn update_pod_sandbox_resources_that_are_wrong() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let wrong = |period| {
        Some(LinuxContainerResources {
            cpu_period: period,
            ..LinuxContainerResources::default()
        })
    };
    let update =
        async |id: &str, overhead, resources| node.try_update_pod(id, overhead, resources).await;
    let outcome = update(&pod.id, wrong(5), None).await;
    refused(outcome, Code::InvalidArgument, "overhead.cpu_period: 5 ");
    let outcome = update(&pod.id, memory(1), memory(-1)).await;
    let field = "resources.memory_limit_in_bytes: -1 ";
    refused(outcome, Code::InvalidArgument, field);
    let outcome = update("", None, None).await;
    refused(outcome, Code::InvalidArgument, "pod_sandbox_id");
    let outcome = update("nosuch", None, memory(1)).await;
    refused(outcome, Code::NotFound, "sandbox nosuch not found");
    let info = node.pod_info(&pod).await;
    assert!(info.get("overhead").is_none() && info.get("resources").is_none());
    node.try_stop_pod(&pod.id).await.unwrap();
    node.try_remove_pod(&pod.id).await.unwrap();
    let outcome = update(&pod.id, None, memory(1)).await;
    refused(outcome, Code::NotFound, &pod.id);
    node.finish().await;
}

#[tokio::test]
async fn linux_pod_sandbox_config_overhead_and_resources_that_are_wrong() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.linux().overhead = memory(-5);
    let outcome = node.try_run_pod(&config).await;
    let field = "config.linux.overhead.memory_limit_in_bytes: -5 ";
    refused(outcome, Code::InvalidArgument, field);
    config.linux().overhead = None;
    config.linux().resources = Some(LinuxContainerResources {
        cpuset_cpus: "a".into(),
        ..LinuxContainerResources::default()
    });
    let outcome = node.try_run_pod(&config).await;
    let field = "config.linux.resources.cpuset_cpus: ";
    refused(outcome, Code::InvalidArgument, field);
    node.finish().await;
}
