//! Who one is inside, what one may do there, and which namespaces belong to it.

use carpel_integration::request::sleeper;
use carpel_integration::streams::Outcome;
use carpel_integration::streams::spdy::{COMMAND, Command, Wanted};
use carpel_integration::streams::urls::exec_on_terminal;
use carpel_integration::v1::{self, NamespaceMode};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};

use super::{inside, namespace, node_with_container, node_with_pod, own, pod, with};

#[tokio::test]
async fn root_of_a_container_is_nobody_on_the_host() {
    let (node, one, id) = node_with_container().await;
    let script =
        "cat /proc/self/uid_map /proc/self/gid_map | sed 's/  */ /g'; id; cat /proc/self/setgroups";
    assert_eq!(
        node.output_of(&one, &inside(sh("b", script))).await,
        " 0 200000 65536\n 0 200000 65536\nuid=0(root) gid=0(root) groups=0(root)\nallow\n"
    );
    let pid = node.container_pid(&id);
    let real = |field| host::proc_status(pid, field).expect("a status");
    assert_eq!(real("Uid").split_whitespace().next(), Some("200000"));
    assert_eq!(real("Gid").split_whitespace().next(), Some("200000"));
    assert_eq!(real("Groups").trim(), "200000");
    let other = node.start_container(&one, &inside(sleeper("c"))).await;
    let other = node.container_pid(&other);
    for kind in ["user", "net", "ipc", "uts"] {
        assert_eq!(namespace(pid, kind), namespace(other, kind), "{kind}");
        assert_ne!(namespace(pid, kind), own(kind), "{kind}");
    }
    let two = node.run_pod(&pod(&node, "two")).await;
    let third = node.start_container(&two, &inside(sleeper("d"))).await;
    assert_ne!(
        namespace(pid, "user"),
        namespace(node.container_pid(&third), "user")
    );
    node.finish().await;
}

#[tokio::test]
async fn the_pods_namespaces_are_roots_to_change() {
    let (node, one) = node_with_pod().await;
    let script = "hostname other && hostname && ip link set lo mtu 1400 && ip -o link show lo | grep -c 'mtu 1400' \
                  && mkdir /m && mount -t tmpfs none /m && echo mounted && unshare -n true && echo unshared";
    let config = with(&["SYS_ADMIN", "NET_ADMIN"], sh("a", script));
    assert_eq!(
        node.output_of(&one, &config).await,
        "other\n1\nmounted\nunshared\n"
    );
    // Nothing of the host's: neither its messages nor its sysctls nor its disk.
    let refusals = "dmesg -c >/dev/null 2>&1 && echo dmesg; \
                    echo x > /proc/sys/kernel/core_pattern && echo core; mknod /null c 1 3 && echo mknod; \
                    mount -t ext4 /dev/vda /m && echo disk; true";
    let config = with(&["ALL"], sh("b", refusals));
    let (log, status) = node.run_to_end(&one, &config).await;
    assert_eq!(
        (log.stdout().as_str(), status.exit_code),
        ("", 0),
        "{log:?}"
    );
    node.finish().await;
}

#[tokio::test]
async fn capabilities_are_those_that_are_asked_for() {
    let (node, one) = node_with_pod().await;
    let script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2 | tr '\\n' ' '";
    let sets = |inheritable: &str, own: &str, ambient: &str| {
        format!("{inheritable} {own} {own} {own} {ambient} ")
    };
    let zero = "0".repeat(16);
    assert_eq!(
        node.output_of(&one, &inside(sh("default", script))).await,
        sets(&zero, "00000000a80425fb", &zero)
    );
    let all = host::proc_status(node.supervisor_pid(&one).await, "CapBnd");
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    let full = (1_u64 << (last.trim().parse::<u32>().unwrap() + 1)) - 1;
    let full = format!("{full:016x}");
    assert!(all.is_some());
    // Also what the daemon itself may lack.
    assert_eq!(
        node.output_of(&one, &with(&["ALL"], sh("all", script)))
            .await,
        sets(&zero, &full, &zero)
    );
    let mut dropped = inside(sh("none", script));
    dropped
        .security()
        .capabilities
        .get_or_insert_default()
        .drop_capabilities = vec!["ALL".into()];
    assert_eq!(
        node.output_of(&one, &dropped).await,
        sets(&zero, &zero, &zero)
    );
    node.finish().await;
}

#[tokio::test]
async fn users_and_their_groups_are_looked_up_in_the_image() {
    let (node, one) = node_with_pod().await;
    let script = "id -u; id -g; id -G; echo $HOME; echo into > /home/alice/file && stat -c '%u %g' /home/alice/file";
    let mut config = inside(sh("a", script));
    config.security().run_as_username = "alice".into();
    config.security().supplemental_groups = vec![4000];
    assert_eq!(
        node.output_of(&one, &config).await,
        "1001\n1001\n1001 2000 4000\n/home/alice\n1001 1001\n"
    );
    // A command has the same, and root may change to others.
    let mut sleeps = inside(sleeper("b"));
    sleeps.security().run_as_username = "alice".into();
    let id = node.start_container(&one, &sleeps).await;
    assert_eq!(node.exec(&id, "id -u; id -G").await, "1001\n1001 2000\n");
    assert_eq!(namespace(node.container_pid(&id), "user"), {
        let other = node.start_container(&one, &inside(sleeper("c"))).await;
        namespace(node.container_pid(&other), "user")
    });
    let pid = node.container_pid(&id);
    let uid = host::proc_status(pid, "Uid").unwrap();
    assert_eq!(uid.split_whitespace().next(), Some("201001"));
    node.finish().await;
}

#[tokio::test]
async fn a_command_is_in_all_of_its_containers_namespaces() {
    let (node, _one, id) = node_with_container().await;
    let pid = node.container_pid(&id);
    let kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}"));
    let seen = node.exec(&id, &script.join(";")).await;
    let expected: String = kinds.map(|kind| namespace(pid, kind) + "\n").concat();
    assert_eq!(seen, expected);
    assert_eq!(
        node.exec(
            &id,
            "id; cat /proc/self/oom_score_adj; echo x > /made; stat -c '%u %g' /made"
        )
        .await,
        "uid=0(root) gid=0(root) groups=0(root)\n0\n0 0\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn terminals_belong_to_their_user() {
    let (node, one) = node_with_pod().await;
    let script = "tty; stat -c '%u %g %a' /dev/pts/0 /dev/console; echo anew > $(tty)";
    let mut config = inside(sh("a", script));
    config.tty = true;
    config.security().run_as_username = "alice".into();
    assert_eq!(
        node.output_of(&one, &config).await.replace('\r', ""),
        "/dev/pts/0\n1001 5 620\n1001 5 620\nanew\n"
    );
    // Root's, of a container without one of its own.
    let id = node.start_container(&one, &inside(sleeper("b"))).await;
    let script = "tty; stat -c '%u %g %a' $(tty); echo anew > $(tty)";
    let url = node.exec_url(exec_on_terminal(&id, script)).await;
    let command = Command::connect(&node.net, &url, &COMMAND, Wanted::TERMINAL).await;
    let ran = command.run(b"").await;
    assert_eq!(ran.stdout(), "/dev/pts/0\r\n0 5 620\r\nanew\r\n");
    assert_eq!(ran.outcome(), Outcome::Success);
    node.finish().await;
}

#[tokio::test]
async fn standard_streams_can_be_opened_anew() {
    let (node, one) = node_with_pod().await;
    for user in ["root", "alice"] {
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; echo fd > /proc/self/fd/1";
        let mut config = inside(sh(user, script));
        config.security().run_as_username = user.into();
        let (log, status) = node.run_to_end(&one, &config).await;
        assert_eq!(status.exit_code, 0, "{user}: {log:?}");
        assert_eq!(log.stdout(), "out\nfd\n", "{user}");
    }
    let id = node.start_container(&one, &inside(sleeper("c"))).await;
    assert_eq!(node.exec(&id, "echo out > /dev/stdout").await, "out\n");
    node.finish().await;
}

#[tokio::test]
async fn sysctls_are_set_and_readable() {
    let node = TestNode::start().await;
    let mut config = pod(&node, "one");
    config.linux().sysctls = [
        ("net.core.somaxconn", "1234"),
        ("net.ipv4.ip_local_port_range", "2000 3000"),
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmax", "4096"),
        ("fs.mqueue.msg_max", "20"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    let one = node.run_pod(&config).await;
    let script = "cd /proc/sys; cat net/core/somaxconn net/ipv4/ip_local_port_range kernel/shm_rmid_forced \
                  kernel/msgmax fs/mqueue/msg_max net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start";
    assert_eq!(
        node.output_of(&one, &inside(sh("a", script))).await,
        "1234\n2000\t3000\n1\n4096\n20\n0\t65535\n0\n"
    );
    // A range of groups is one of the pod's.
    let mut config = pod(&node, "two");
    config
        .linux()
        .sysctls
        .insert("net.ipv4.ping_group_range".into(), "1001 1002".into());
    let two = node.run_pod(&config).await;
    let script = "cat /proc/sys/net/ipv4/ping_group_range";
    assert_eq!(
        node.output_of(&two, &inside(sh("b", script))).await,
        "1001\t1002\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn the_pod_has_a_network() {
    let (node, one) = node_with_pod().await;
    let server = inside(sh(
        "web",
        "httpd -h /www -p 80; trap 'exit 0' TERM; echo up; sleep 3600 & wait",
    ));
    let mut server = server;
    server.security().run_as_username = "alice".into();
    node.start_container(&one, &server).await;
    node.wait_log(&one, "web", |log| log.stdout() == "up\n")
        .await;
    let ip = node.pod_ip(&one).await;
    let page = node
        .net
        .run(|| host::http_get(ip, 80, "/index.html"))
        .expect("an answer");
    assert!(page.ends_with("hello from a pod\n"), "{page}");
    // Also without capabilities, and from the inside.
    let mut client = inside(sh("client", "wget -qO - http://127.0.0.1/index.html"));
    client.security().run_as_username = "alice".into();
    client
        .security()
        .capabilities
        .get_or_insert_default()
        .drop_capabilities = vec!["ALL".into()];
    assert_eq!(node.output_of(&one, &client).await, "hello from a pod\n");
    node.finish().await;
}

#[tokio::test]
async fn the_nodes_network_can_be_had() {
    let node = TestNode::builder().no_network().start().await;
    let mut config = pod(&node, "one");
    config.hostname = String::new();
    config.namespaces().set_network(NamespaceMode::Node);
    let one = node.run_pod(&config).await;
    let network = |config| {
        let mut config = inside(config);
        config.namespaces().set_network(NamespaceMode::Node);
        config
    };
    let id = node.start_container(&one, &network(sleeper("a"))).await;
    let pid = node.container_pid(&id);
    assert_eq!(namespace(pid, "net"), format!("net:[{}]", node.net.inode()));
    assert_ne!(namespace(pid, "user"), own("user"));
    assert_ne!(namespace(pid, "ipc"), own("ipc"));
    let seen = node
        .exec(
            &id,
            "ls /sys/class/net | head -n 1; grep -c ' /sys sysfs ro' /proc/mounts",
        )
        .await;
    assert!(seen.ends_with("\n1\n"), "{seen}");
    // Root of the pod is not root of that network.
    let mut admin = with(
        &["ALL"],
        sh("b", "ip link set lo mtu 1400 2>/dev/null || echo refused"),
    );
    admin.namespaces().set_network(NamespaceMode::Node);
    assert_eq!(node.output_of(&one, &admin).await, "refused\n");
    node.finish().await;
}

#[tokio::test]
async fn a_pid_namespace_is_the_containers_the_pods_or_the_targets() {
    let node = TestNode::start().await;
    let mut config = pod(&node, "one");
    config.namespaces().set_pid(NamespaceMode::Pod);
    let one = node.run_pod(&config).await;
    let in_mode = |name: &str, mode: NamespaceMode, target: &str| {
        let mut config = inside(sleeper(name)).env("WHO", name.as_bytes());
        config.namespaces().set_pid(mode);
        config.namespaces().target_id = target.to_owned();
        config
    };
    let a = node
        .start_container(&one, &in_mode("a", NamespaceMode::Pod, ""))
        .await;
    let b = node
        .start_container(&one, &in_mode("b", NamespaceMode::Pod, ""))
        .await;
    let own_ns = node
        .start_container(&one, &in_mode("own", NamespaceMode::Container, ""))
        .await;
    let debug = node
        .start_container(&one, &in_mode("debug", NamespaceMode::Target, &own_ns))
        .await;
    let pid_ns = |id: &str| namespace(node.container_pid(id), "pid");
    assert_eq!(pid_ns(&a), pid_ns(&b));
    assert_ne!(pid_ns(&a), pid_ns(&own_ns));
    assert_eq!(pid_ns(&own_ns), pid_ns(&debug));
    let who = "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep ^WHO= | sort -u | tr '\\n' ' '";
    assert_eq!(node.exec(&a, who).await, "WHO=a WHO=b ");
    assert_eq!(node.exec(&own_ns, who).await, "WHO=debug WHO=own ");
    // Process 1 of a shared one is nobody's to end, or to look into.
    assert_eq!(
        node.exec(
            &a,
            "kill -9 1; ls /proc/1/root/ 2>/dev/null; stat -c %u /proc/1/status"
        )
        .await,
        "65534\n"
    );
    node.try_stop(&a, 5).await.unwrap();
    assert_eq!(node.exec(&b, "echo alive").await, "alive\n");
    node.finish().await;
}

#[tokio::test]
async fn oom_score_adj_is_set() {
    let (node, one) = node_with_pod().await;
    let mut config = inside(sh("a", "cat /proc/self/oom_score_adj"));
    config.resources().oom_score_adj = 777;
    assert_eq!(node.output_of(&one, &config).await, "777\n");
    let supervisor = node.supervisor_pid(&one).await;
    let own = std::fs::read_to_string(format!("/proc/{supervisor}/oom_score_adj")).unwrap();
    assert_ne!(own.trim(), "777");
    node.finish().await;
}

#[tokio::test]
async fn a_privileged_container_has_every_right_that_is_its_pods() {
    let node = TestNode::start().await;
    let mut config = pod(&node, "one");
    config.security().privileged = true;
    let one = node.run_pod(&config).await;
    let script = "mkdir /m && mount -t tmpfs none /m && echo mounted; test -c /dev/full && echo x > /dev/null && \
                  echo devices; test -e /dev/vda && echo disk; ls /sys/fs/cgroup | head -n 1 | wc -l";
    let mut config = inside(sh("a", script));
    config.security().privileged = true;
    assert_eq!(node.output_of(&one, &config).await, "mounted\ndevices\n1\n");
    node.finish().await;
}

#[tokio::test]
async fn a_seccomp_profile_and_no_new_privs_apply() {
    let (node, one) = node_with_pod().await;
    for no_new_privs in [false, true] {
        let script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | cut -f2 | tr '\\n' ' '";
        let mut config = inside(sh(&format!("c{no_new_privs}"), script));
        config.security().no_new_privs = no_new_privs;
        config.security().seccomp = Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
        let expected = format!("{} 2 ", u8::from(no_new_privs));
        assert_eq!(node.output_of(&one, &config).await, expected);
    }
    node.finish().await;
}
