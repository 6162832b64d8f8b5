//! Which namespaces a container is in, and the files that go with them.

use std::fs;

use carpel_integration::request::sleeper;
use carpel_integration::v1::{DnsConfig, NamespaceMode};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};
use tonic::Code;

use crate::refused;

fn namespace(pid: i32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}"))
        .expect("a namespace")
        .display()
        .to_string()
}

fn own(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}"))
        .unwrap()
        .display()
        .to_string()
}

#[tokio::test]
async fn containers_of_a_pod_share_network_ipc_and_uts_and_not_with_the_host() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let other = node.run_pod(&node.pod("two")).await;
    let a = node.start_container(&pod, &sleeper("a")).await;
    let b = node.start_container(&pod, &sleeper("b")).await;
    let c = node.start_container(&other, &sleeper("c")).await;
    let [a, b, c] = [a, b, c].map(|id| node.container_pid(&id));
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(a, kind), namespace(b, kind), "{kind}");
        assert_ne!(namespace(a, kind), namespace(c, kind), "{kind}");
        assert_ne!(namespace(a, kind), own(kind), "{kind}");
    }
    assert_ne!(namespace(a, "net"), format!("net:[{}]", node.net.inode()));
    for kind in ["mnt", "pid"] {
        assert_ne!(namespace(a, kind), own(kind), "{kind}");
    }
    // Version 1 has no cgroup namespaces that containers could be given.
    assert_eq!(namespace(a, "cgroup") != own("cgroup"), host::is_unified());
    assert_ne!(namespace(a, "mnt"), namespace(b, "mnt"));
    node.finish().await;
}

#[tokio::test]
async fn a_pods_name_dns_and_hosts_are_in_its_files() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.hostname = "my-pod".into();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.96.0.10".into(), "2001:db8::53".into()],
        searches: vec!["default.svc.cluster.local".into(), "cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.run_pod(&config).await;
    let ip = node.pod_ip(&pod).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    assert_eq!(node.exec(&id, "hostname").await, "my-pod\n");
    assert_eq!(node.exec(&id, "cat /etc/hostname").await, "my-pod\n");
    assert_eq!(
        node.exec(&id, "cat /etc/resolv.conf").await,
        "search default.svc.cluster.local cluster.local\nnameserver 10.96.0.10\nnameserver 2001:db8::53\noptions ndots:5\n"
    );
    let hosts = node.exec(&id, "cat /etc/hosts").await;
    assert!(hosts.contains("127.0.0.1\tlocalhost"), "{hosts}");
    assert!(
        hosts.lines().any(|line| line
            .split_whitespace()
            .eq([ip.to_string().as_str(), "my-pod"])),
        "{hosts}"
    );
    // What one container writes there, the others see.
    node.exec(&id, "echo '192.0.2.1 added' >> /etc/hosts").await;
    let other = sh("b", "grep added /etc/hosts");
    assert_eq!(node.output_of(&pod, &other).await, "192.0.2.1 added\n");
    node.finish().await;
}

#[tokio::test]
async fn without_dns_configuration_the_hosts_resolv_conf_is_copied() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let ours = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(
        node.output_of(&pod, &sh("a", "cat /etc/resolv.conf")).await,
        ours
    );
    node.finish().await;
}

#[tokio::test]
async fn shared_memory_is_the_pods() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let a = node.start_container(&pod, &sleeper("a")).await;
    let b = node.start_container(&pod, &sleeper("b")).await;
    node.exec(&a, "echo shared > /dev/shm/x").await;
    assert_eq!(node.exec(&b, "cat /dev/shm/x").await, "shared\n");
    assert_eq!(
        node.exec(
            &a,
            "df -k /dev/shm | tail -n 1 | sed 's/  */ /g' | cut -d' ' -f2"
        )
        .await,
        "65536\n"
    );
    assert_eq!(node.exec(&a, "stat -c %a /dev/shm").await, "1777\n");
    let other = node.run_pod(&node.pod("two")).await;
    assert_eq!(node.output_of(&other, &sh("c", "ls /dev/shm")).await, "");
    node.finish().await;
}

#[tokio::test]
async fn a_pid_namespace_is_the_containers_the_pods_the_targets_or_the_nodes() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.namespaces().set_pid(NamespaceMode::Pod);
    let pod = node.run_pod(&config).await;
    let with = |name: &str, mode: NamespaceMode, target: &str| {
        let mut config = sleeper(name).env("WHO", name.as_bytes());
        config.namespaces().set_pid(mode);
        config.namespaces().target_id = target.to_owned();
        config
    };
    let a = node
        .start_container(&pod, &with("a", NamespaceMode::Pod, ""))
        .await;
    let b = node
        .start_container(&pod, &with("b", NamespaceMode::Pod, ""))
        .await;
    let own_ns = node
        .start_container(&pod, &with("own", NamespaceMode::Container, ""))
        .await;
    let debug = node
        .start_container(&pod, &with("debug", NamespaceMode::Target, &own_ns))
        .await;
    let pid_ns = |id: &str| namespace(node.container_pid(id), "pid");
    assert_eq!(pid_ns(&a), pid_ns(&b));
    assert_ne!(pid_ns(&a), pid_ns(&own_ns));
    assert_eq!(pid_ns(&own_ns), pid_ns(&debug));
    assert_eq!(
        node.exec(&own_ns, "readlink /proc/1/exe; echo $(cat /proc/1/comm)")
            .await,
        "/bin/busybox\nsh\n"
    );
    // Each sees the other's processes in a namespace that they share.
    let who = "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep ^WHO= | sort -u | tr '\\n' ' '";
    assert_eq!(node.exec(&a, who).await, "WHO=a WHO=b ");
    assert_eq!(node.exec(&own_ns, who).await, "WHO=debug WHO=own ");

    // The first of them ends; the other goes on.
    node.try_stop(&a, 5).await.unwrap();
    assert_eq!(node.exec(&b, "echo alive").await, "alive\n");
    node.finish().await;
}

/// What crictl's users write: containers without namespace options, which is mode POD, in any pod.
#[tokio::test]
async fn containers_that_ask_for_the_pods_pid_namespace_get_one_in_any_pod() {
    let mut node = TestNode::start().await;
    let mut config = node.pod("own");
    config.namespaces().set_pid(NamespaceMode::Container);
    let pod = node.run_pod(&config).await;
    let pods = |name: &str| {
        let mut config = sleeper(name);
        config.namespaces().set_pid(NamespaceMode::Pod);
        config
    };
    let a = node.start_container(&pod, &pods("a")).await;
    let b = node.start_container(&pod, &pods("b")).await;
    let pid_ns = |node: &TestNode, id: &str| namespace(node.container_pid(id), "pid");
    assert_eq!(pid_ns(&node, &a), pid_ns(&node, &b));
    assert_ne!(pid_ns(&node, &a), own("pid"));

    // Also where a later daemon finds it, and after its init was killed, which ends what is in it.
    node.kill_daemon();
    node.start_daemon(None).await;
    let c = node.start_container(&pod, &pods("c")).await;
    assert_eq!(pid_ns(&node, &a), pid_ns(&node, &c));
    let old = pid_ns(&node, &c);
    let init = host::children(node.supervisor_pid(&pod).await)
        .into_iter()
        .find(|&pid| host::describe(pid).contains("carpel-super"));
    host::kill_9(init.expect("no reaper"));
    node.wait_exit(&c).await;
    let d = node.start_container(&pod, &pods("d")).await;
    assert_ne!(pid_ns(&node, &d), old);

    let mut config = node.pod("nodes");
    config.namespaces().set_pid(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    let e = node.start_container(&pod, &pods("e")).await;
    assert_eq!(pid_ns(&node, &e), own("pid"));
    node.finish().await;
}

#[tokio::test]
async fn a_pod_with_the_nodes_pid_and_ipc_is_in_them() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.namespaces().set_pid(NamespaceMode::Node);
    config.namespaces().set_ipc(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    let mut config = sleeper("a");
    config.namespaces().set_pid(NamespaceMode::Node);
    config.namespaces().set_ipc(NamespaceMode::Node);
    let id = node.start_container(&pod, &config).await;
    let pid = node.container_pid(&id);
    assert_eq!(namespace(pid, "pid"), own("pid"));
    assert_eq!(namespace(pid, "ipc"), own("ipc"));
    assert_ne!(namespace(pid, "net"), own("net"));
    let daemon = node.daemon_pid().unwrap();
    assert_eq!(
        node.exec(&id, &format!("cat /proc/{daemon}/comm")).await,
        "carpel-daemon\n"
    );
    // Killed with its whole cgroup, though it is nobody's init.
    node.exec(&id, "sleep 1000 >/dev/null 2>&1 &").await;
    node.try_stop(&id, 1).await.unwrap();
    assert!(!host::runs(pid));
    node.finish().await;
}

#[tokio::test]
async fn a_host_network_pod_is_in_the_nodes_network_without_any_plugin() {
    // The plugin would fail the pod if it were run.
    let node = TestNode::builder().no_network().start().await;
    let mut config = node.pod("one");
    config.hostname = String::new();
    config.namespaces().set_network(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    let mut config = sleeper("a");
    config.namespaces().set_network(NamespaceMode::Node);
    let id = node.start_container(&pod, &config).await;
    let pid = node.container_pid(&id);
    assert_eq!(namespace(pid, "net"), format!("net:[{}]", node.net.inode()));
    let ours = fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert_eq!(node.exec(&id, "cat /etc/hosts").await, ours);
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(node.exec(&id, "hostname").await.trim(), name);
    let options = node
        .pod_status(&pod)
        .await
        .linux
        .unwrap()
        .namespaces
        .unwrap()
        .options
        .unwrap();
    assert_eq!(options.network(), NamespaceMode::Node);
    assert_eq!(host::mounts_below(&node.netns_dir()).len(), 0);
    node.finish().await;
}

#[tokio::test]
async fn namespaced_sysctls_are_set_and_others_refused() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.linux().sysctls = [
        ("net.core.somaxconn", "1234"),
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_local_port_range", "2000 3000"),
        ("fs.mqueue.msg_max", "20"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    let pod = node.run_pod(&config).await;
    let script = "cd /proc/sys; cat net/core/somaxconn kernel/shm_rmid_forced net/ipv4/ip_local_port_range fs/mqueue/msg_max";
    assert_eq!(
        node.output_of(&pod, &sh("a", script)).await,
        "1234\n1\n2000\t3000\n20\n"
    );

    let core_pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for (key, value) in [
        ("kernel.core_pattern", "|/bin/false"),
        ("vm.swappiness", "1"),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=x"),
        ("net.core.somaxconn", "1\nkernel.core_pattern=x"),
        ("net/../kernel/core_pattern", "x"),
        // What only the kernel knows.
        ("net.ipv4.none_such", "1"),
        ("net.core.somaxconn", "banana"),
        ("kernel.msgmax", "banana"),
    ] {
        let mut config = node.pod("refused");
        config.linux().sysctls.insert(key.into(), value.into());
        refused(
            node.try_run_pod(&config).await,
            Code::InvalidArgument,
            &format!("config.linux.sysctls[{key:?}]: "),
        );
    }
    let mut config = node.pod("host");
    config.namespaces().set_network(NamespaceMode::Node);
    config
        .linux()
        .sysctls
        .insert("net.core.somaxconn".into(), "77".into());
    refused(
        node.try_run_pod(&config).await,
        Code::InvalidArgument,
        "net.core.somaxconn",
    );
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
        core_pattern
    );
    assert_eq!(node.pods().await.len(), 1);
    node.orphans_reaped().await;
    node.finish().await;
}

#[tokio::test]
async fn a_pod_may_bind_low_ports_and_ping_without_capabilities() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script =
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range";
    assert_eq!(
        node.output_of(&pod, &sh("a", script)).await,
        "0\n0\t2147483647\n"
    );
    node.finish().await;
}
