//! Limits of every kind: set at the start, changed in place, held.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::v1::{HugepageLimit, LinuxContainerResources, PodSandboxState};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};
use tonic::Code;

use crate::refused;

/// A file of a container's cgroup by its name in v1 or v2: `None` if no hierarchy has it.
pub fn file(node: &TestNode, id: &str, v1: &str, v2: &str) -> Option<String> {
    let name = if host::is_unified() { v2 } else { v1 };
    host::cgroup_dirs(node.cgroup_parent())
        .iter()
        .flat_map(|dir| host::tree(dir))
        .filter(|dir| dir.file_name().is_some_and(|name| name == id))
        .find_map(|dir| fs::read_to_string(dir.join(name)).ok())
        .map(|text| text.trim().to_owned())
}

pub fn memory(megabytes: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: megabytes << 20,
        ..Default::default()
    }
}

fn memory_file(node: &TestNode, id: &str) -> Option<String> {
    file(node, id, "memory.limit_in_bytes", "memory.max")
}

fn swap_file(node: &TestNode, id: &str) -> Option<String> {
    file(node, id, "memory.memsw.limit_in_bytes", "memory.swap.max")
}

/// What stands in the swap file when `both` are allowed together.
fn swap(memory: i64, both: i64) -> Option<String> {
    let megabytes = if host::is_unified() {
        both - memory
    } else {
        both
    };
    Some((megabytes << 20).to_string())
}

fn cpu(node: &TestNode, id: &str) -> Option<String> {
    match host::is_unified() {
        true => file(node, id, "", "cpu.max"),
        false => {
            let quota = file(node, id, "cpu.cfs_quota_us", "")?;
            let period = file(node, id, "cpu.cfs_period_us", "")?;
            Some(format!("{} {period}", quota.replace("-1", "max")))
        }
    }
}

#[tokio::test]
async fn memory_too_little_to_begin_with_is_said_so() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    config.resources().memory_limit_in_bytes = 4096;
    let id = node.try_create(&pod, &config).await.unwrap();
    refused(
        node.try_start(&id).await,
        Code::InvalidArgument,
        "config.linux.resources.memory_limit_in_bytes: 4096 is too low",
    );
    let status = node.status(&id).await;
    assert_eq!(status.reason, "StartError");
    assert!(status.message.contains("memory ran out"), "{status:?}");
    node.finish().await;
}

#[tokio::test]
async fn limits_of_every_kind_are_set() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    *config.resources() = LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 20_000,
        cpu_shares: 2,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 96 << 20,
        oom_score_adj: 555,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        // Most kubelets send each size that the node has with limit 0.
        hugepage_limits: ["2MB", "1GB", "64KB"]
            .map(|size| HugepageLimit {
                page_size: size.into(),
                limit: 0,
            })
            .into(),
        unified: [("pids.max".into(), "77".into())].into(),
    };
    if host::is_unified() {
        let unified = &mut config.resources().unified;
        unified.insert("memory.high".into(), (48 << 20).to_string());
        unified.insert("memory.oom.group".into(), "1".into());
    }
    let id = node.start_container(&pod, &config).await;
    let read = |v1: &str, v2: &str| file(&node, &id, v1, v2);
    assert_eq!(cpu(&node, &id).as_deref(), Some("20000 50000"));
    let least = if host::is_unified() { "1" } else { "2" };
    assert_eq!(read("cpu.shares", "cpu.weight").as_deref(), Some(least));
    assert_eq!(memory_file(&node, &id), Some((64 << 20).to_string()));
    assert_eq!(swap_file(&node, &id), swap(64, 96));
    assert_eq!(read("cpuset.cpus", "cpuset.cpus").as_deref(), Some("0"));
    assert_eq!(read("cpuset.mems", "cpuset.mems").as_deref(), Some("0"));
    assert_eq!(read("pids.max", "pids.max").as_deref(), Some("77"));
    let huge = read("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max");
    assert!(huge.is_none_or(|limit| limit == "0"));
    if host::is_unified() {
        let high = (48 << 20).to_string();
        assert_eq!(read("", "memory.high"), Some(high));
        assert_eq!(read("", "memory.oom.group").as_deref(), Some("1"));
    }
    let pid = node.container_pid(&id);
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "555");
    // Who asks for memory alone gets no swap, as with the peers.
    let mut config = sleeper("b");
    *config.resources() = memory(32);
    let id = node.start_container(&pod, &config).await;
    assert_eq!(swap_file(&node, &id), swap(32, 32));
    node.finish().await;
}

#[tokio::test]
async fn what_the_machine_cannot_limit_is_refused() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let attempt = async |change: &dyn Fn(&mut LinuxContainerResources)| {
        let mut config = sleeper("a");
        change(config.resources());
        let id = node.try_create(&pod, &config).await?;
        let started = node.try_start(&id).await;
        node.try_remove(&id).await.expect("RemoveContainer");
        started
    };
    let unified = |key: &'static str| {
        move |limits: &mut LinuxContainerResources| {
            limits.unified = [(key.to_owned(), "1".to_owned())].into();
        }
    };
    let field = |rest: &str| format!("config.linux.resources.{rest}");
    for key in ["../x.max", "a/b.c", "cgroup.procs", "net.max"] {
        let outcome = attempt(&unified(key)).await;
        let part = field(&format!("unified[{key:?}]"));
        refused(outcome, Code::InvalidArgument, &part);
    }
    let high = attempt(&unified("memory.high")).await;
    if host::is_unified() {
        high.expect("a file of cgroup v2");
        let outcome = attempt(&unified("memory.nosuch")).await;
        refused(outcome, Code::InvalidArgument, "memory.nosuch");
    } else {
        refused(high, Code::InvalidArgument, "this node has cgroup v1");
    }
    let outcome = attempt(&|limits| limits.cpuset_cpus = "4000".into()).await;
    refused(outcome, Code::InvalidArgument, "cpuset.cpus");
    let odd = |limits: &mut LinuxContainerResources| {
        limits.hugepage_limits = vec![HugepageLimit {
            page_size: "3MB".into(),
            limit: 6 << 20,
        }];
    };
    refused(attempt(&odd).await, Code::InvalidArgument, "hugetlb.3MB");
    node.finish().await;
}

#[tokio::test]
async fn limits_change_in_place_and_are_remembered() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    *config.resources() = LinuxContainerResources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        oom_score_adj: 100,
        ..memory(64)
    };
    let id = node.start_container(&pod, &config).await;
    let pid = node.container_pid(&id);
    // Up, as a kubelet resizes: memory and CPU in requests of their own.
    node.try_update(&id, &memory(128)).await.unwrap();
    assert_eq!(memory_file(&node, &id), Some((128 << 20).to_string()));
    assert_eq!(swap_file(&node, &id), swap(128, 128));
    let change = LinuxContainerResources {
        cpu_period: 50_000,
        cpu_shares: 2048,
        oom_score_adj: 300,
        ..Default::default()
    };
    node.try_update(&id, &change).await.unwrap();
    assert_eq!(cpu(&node, &id).as_deref(), Some("50000 50000"));
    let score = || fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score().trim(), "300");
    // Down again, with room for swap.
    let change = LinuxContainerResources {
        memory_swap_limit_in_bytes: 48 << 20,
        cpu_quota: -1,
        cpuset_cpus: "0".into(),
        ..memory(32)
    };
    node.try_update(&id, &change).await.unwrap();
    let expected = LinuxContainerResources {
        cpu_shares: 2048,
        cpu_period: 50_000,
        cpu_quota: -1,
        memory_limit_in_bytes: 32 << 20,
        memory_swap_limit_in_bytes: 48 << 20,
        oom_score_adj: 300,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    // A daemon that begins anew knows them.
    for crash in [false, true] {
        if crash {
            node.crash().await;
        }
        assert_eq!(node.limits(&id).await, expected, "crash: {crash}");
        assert_eq!(cpu(&node, &id).as_deref(), Some("max 50000"));
        assert_eq!(memory_file(&node, &id), Some((32 << 20).to_string()));
        assert_eq!(swap_file(&node, &id), swap(32, 48));
    }
    assert_eq!(node.container_pid(&id), pid, "the same process");
    // What is not said stays, and what was said by others is not undone.
    node.try_update(&id, &memory(64))
        .await
        .expect_err("beyond memory and swap");
    node.try_update(&id, &memory(40)).await.unwrap();
    assert_eq!(swap_file(&node, &id), swap(40, 48));
    node.finish().await;
}

#[tokio::test]
async fn limits_change_before_the_start() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.try_create(&pod, &sleeper("a")).await.unwrap();
    let change = LinuxContainerResources {
        cpuset_cpus: "0".into(),
        oom_score_adj: 400,
        ..memory(48)
    };
    // A CPU manager does this between creation and start.
    node.try_update(&id, &change).await.unwrap();
    node.crash().await;
    node.try_start(&id).await.unwrap();
    assert_eq!(memory_file(&node, &id), Some((48 << 20).to_string()));
    let cpus = file(&node, &id, "cpuset.cpus", "cpuset.cpus");
    assert_eq!(cpus.as_deref(), Some("0"));
    let pid = node.container_pid(&id);
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "400");
    assert_eq!(node.limits(&id).await, change);
    node.finish().await;
}

#[tokio::test]
async fn a_change_that_fails_changes_nothing() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a");
    *config.resources() = LinuxContainerResources {
        cpu_shares: 512,
        ..memory(64)
    };
    let id = node.start_container(&pod, &config).await;
    let files = || {
        let shares = file(&node, &id, "cpu.shares", "cpu.weight");
        // On v2 the file comes with the first limit of that kind, and stays when the limit does not.
        let all = fs::read_to_string("/sys/fs/cgroup/cpuset.cpus.effective").unwrap_or_default();
        let cpus = file(&node, &id, "cpuset.cpus", "cpuset.cpus.effective");
        let cpus = cpus.filter(|cpus| *cpus != all.trim());
        [memory_file(&node, &id), swap_file(&node, &id), shares, cpus]
    };
    let before = (files(), node.limits(&id).await);
    let wrong: [(LinuxContainerResources, &str); 4] = [
        (
            LinuxContainerResources {
                cpuset_cpus: "0".into(),
                cpuset_mems: "4000".into(),
                ..memory(128)
            },
            "cpuset.mems",
        ),
        (
            LinuxContainerResources {
                cpu_quota: 5,
                ..memory(128)
            },
            "linux.cpu_quota: 5 must be",
        ),
        (
            LinuxContainerResources {
                memory_swap_limit_in_bytes: 1,
                ..memory(128)
            },
            "linux.memory_swap_limit_in_bytes: 1 includes memory",
        ),
        (
            LinuxContainerResources {
                hugepage_limits: vec![HugepageLimit {
                    page_size: "3MB".into(),
                    limit: 1,
                }],
                ..memory(128)
            },
            "hugetlb.3MB",
        ),
    ];
    for (limits, part) in wrong {
        refused(
            node.try_update(&id, &limits).await,
            Code::InvalidArgument,
            part,
        );
        assert_eq!((files(), node.limits(&id).await), before, "{part}");
    }
    node.try_stop(&id, 0).await.unwrap();
    let late = node.try_update(&id, &memory(128)).await;
    refused(late, Code::FailedPrecondition, "has exited");
    let unknown = node.try_update("nosuch", &memory(128)).await;
    refused(unknown, Code::NotFound, "nosuch");
    node.finish().await;
}

#[tokio::test]
async fn memory_in_use_is_not_taken_away() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    // tail keeps what has no line end.
    let script =
        "(head -c 16000000 /dev/zero; echo; echo up >&2; sleep 1000) | tail -n 1 >/dev/null";
    let mut config = sh("a", script);
    *config.resources() = memory(128);
    let id = node.start_container(&pod, &config).await;
    node.wait_log(&pod, "a", |log| log.stderr() == "up\n").await;
    let refusal = node.try_update(&id, &memory(8)).await;
    refused(refusal, Code::FailedPrecondition, "are in use");
    assert_eq!(memory_file(&node, &id), Some((128 << 20).to_string()));
    assert_eq!(node.limits(&id).await.memory_limit_in_bytes, 128 << 20);
    assert_eq!(node.exec(&id, "echo alive").await, "alive\n");
    node.finish().await;
}

/// A pod's cgroup as a kubelet makes it, with the pod's limit on memory.
fn pod_cgroup(node: &TestNode, limit: u64) -> String {
    let parent = format!("{}/pod1", node.cgroup_parent());
    for mount in host::cgroup_mounts() {
        let dir = mount.join(parent.trim_start_matches('/'));
        let _ = fs::create_dir_all(&dir);
        if host::is_unified() {
            for above in [dir.parent().and_then(Path::parent), dir.parent()] {
                let file = above.expect("a parent").join("cgroup.subtree_control");
                fs::write(file, "+cpu +memory +pids").expect("controllers");
            }
        }
        for name in ["memory.max", "memory.limit_in_bytes"] {
            let file: PathBuf = dir.join(name);
            if file.exists() {
                fs::write(file, limit.to_string()).expect("the pod's limit");
            }
        }
    }
    parent
}

#[tokio::test]
async fn a_container_at_its_limit_dies_and_its_supervisor_does_not() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.linux().cgroup_parent = pod_cgroup(&node, 64 << 20);
    let pod = node.run_pod(&config).await;
    let supervisor = node.supervisor_pid(&pod).await;
    let bystander = node.start_container(&pod, &sleeper("bystander")).await;
    // It logs as fast as it can, more than the pod's limit, then eats memory meanwhile.
    let script = "i=0; while [ $i -lt 100 ]; do head -c 1000000 /dev/zero | tr '\\0' x | fold -w 1000; i=$((i+1)); done; \
         (yes 0123456789012345678901234567890123456789012345678901234567890123456789 &); \
         exec dd if=/dev/zero of=/dev/null bs=200M count=1";
    let mut config = sh("eater", script);
    *config.resources() = memory(32);
    let id = node.start_container(&pod, &config).await;
    let mut status = node.status(&id).await;
    let deadline = Instant::now() + host::patience(Duration::from_secs(60));
    while status.finished_at == 0 {
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        status = node.status(&id).await;
    }
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status:?}"
    );
    assert_eq!(
        node.pod_status(&pod).await.state(),
        PodSandboxState::SandboxReady
    );
    assert_eq!(node.supervisor_pid(&pod).await, supervisor);
    assert_eq!(node.exec(&bystander, "echo alive").await, "alive\n");
    // What it wrote before is in the log, whole.
    let log = fs::metadata(&status.log_path).expect("a log").len();
    assert!(log > 100_000_000, "{log} bytes");
    let (_, status) = node.run_to_end(&pod, &sh("next", "echo more")).await;
    assert_eq!(status.exit_code, 0);
    node.remove_pods().await;
    for dir in host::cgroup_dirs(node.cgroup_parent()) {
        let tree = host::tree(&dir);
        tree.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    }
    node.finish().await;
}
