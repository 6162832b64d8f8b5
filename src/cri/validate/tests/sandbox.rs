//! RunPodSandbox.

use super::*;

#[test]
fn bad_sandboxes_are_named() {
    type Case = (fn(&mut cri::PodSandboxConfig), &'static str);
    fn name(config: &mut cri::PodSandboxConfig) -> &mut cri::PodSandboxMetadata {
        config.metadata.get_or_insert_default()
    }
    fn linux(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxPodSandboxConfig {
        config.linux.get_or_insert_default()
    }
    fn port(host: i32, container: i32) -> cri::PortMapping {
        cri::PortMapping {
            host_port: host,
            container_port: container,
            ..Default::default()
        }
    }
    let cases: &[Case] = &[
        (|c| name(c).uid.clear(), "metadata.uid: must not be empty"),
        (
            |c| name(c).uid = "../../x".into(),
            "metadata.uid: \"../../x\" must not contain '/', only letters, digits, \"-\", \"_\" and \".\"",
        ),
        (
            |c| c.hostname = "a\nb".into(),
            "hostname: \"a\\nb\" must not contain '\\n', only letters, digits, \"-\", \"_\" and \".\"",
        ),
        (
            |c| c.hostname = "x".repeat(65),
            "hostname: is 65 bytes long, more than 64",
        ),
        (
            |c| c.log_directory = "var/log".into(),
            "log_directory: \"var/log\" must be absolute",
        ),
        (
            |c| c.log_directory = "/var/../etc".into(),
            "log_directory: \"/var/../etc\" must not contain \"..\"",
        ),
        (
            |c| {
                c.dns_config = Some(cri::DnsConfig {
                    servers: vec!["dns.local".into()],
                    ..Default::default()
                })
            },
            "dns_config.servers[0]: \"dns.local\" is no IP address",
        ),
        (
            |c| {
                c.dns_config = Some(cri::DnsConfig {
                    searches: vec!["a\nnameserver 1.2.3.4".into()],
                    ..Default::default()
                })
            },
            "dns_config.searches[0]: \"a\\nnameserver 1.2.3.4\" must not contain '\\n'",
        ),
        (
            |c| c.port_mappings = vec![port(65536, 80)],
            "port_mappings[0].host_port: 65536 is no port",
        ),
        (
            |c| c.port_mappings = vec![port(-1, 80)],
            "port_mappings[0].host_port: -1 is no port",
        ),
        (
            |c| c.port_mappings = vec![port(80, 0)],
            "port_mappings[0].container_port: 0 is no port",
        ),
        (
            |c| c.port_mappings = vec![port(80, 80), port(80, 81)],
            "port_mappings[1].host_port: 80 is mapped twice",
        ),
        (
            |c| {
                c.port_mappings = vec![cri::PortMapping {
                    protocol: 3,
                    ..port(80, 80)
                }]
            },
            "port_mappings[0].protocol: 3 is no known value",
        ),
        (
            |c| {
                c.port_mappings = vec![cri::PortMapping {
                    host_ip: "x".into(),
                    ..port(80, 80)
                }]
            },
            "port_mappings[0].host_ip: \"x\" is no IP address",
        ),
        (
            |c| c.labels = [("a".into(), "x".repeat(2 << 20))].into(),
            "labels: is 2097153 bytes long, more than 1048576",
        ),
        (
            |c| {
                c.annotations = (0..10_001)
                    .map(|i| (i.to_string(), String::new()))
                    .collect()
            },
            "annotations: has 10001 entries, more than 10000",
        ),
        (
            |c| linux(c).cgroup_parent = "kubepods".into(),
            "linux.cgroup_parent: \"kubepods\" must be absolute",
        ),
        (
            |c| linux(c).cgroup_parent = "/a/../b".into(),
            "linux.cgroup_parent: \"/a/../b\" must not contain \"..\"",
        ),
        (
            |c| linux(c).sysctls = [("kernel.shmmax".into(), "1+x".into())].into(),
            "linux.sysctls[\"kernel.shmmax\"]: value \"1+x\" must not contain '+'",
        ),
    ];
    for (spoil, why) in cases {
        let result = sandbox(spoil, PLATFORM).map(|_| ());
        assert_eq!(result, Err(invalid(why, "sandbox \"ns/pod\"")));
    }
    let result = sandbox(|config| name(config).name = "a/b".into(), PLATFORM).map(|_| ());
    let why =
        "metadata.name: \"a/b\" must not contain '/', only letters, digits, \"-\", \"_\" and \".\"";
    assert_eq!(result, Err(invalid(why, "sandbox \"ns/a/b\"")));
    let result = sandbox(|config| config.metadata = None, PLATFORM).map(|_| ());
    assert_eq!(
        result,
        Err(invalid("metadata: must be set", "sandbox \"/\""))
    );
    let systemd = sandbox(
        |config| linux(config).cgroup_parent = "kubepods.slice".into(),
        PLATFORM,
    );
    let why = "linux.cgroup_parent: \"kubepods.slice\" is in the form of the systemd cgroup driver, which is not supported yet; set the kubelet's cgroupDriver to cgroupfs";
    assert_eq!(
        systemd.map(|_| ()),
        Err(unsupported(why, "sandbox \"ns/pod\""))
    );
    let none = run_pod_sandbox(cri::RunPodSandboxRequest::default(), PLATFORM);
    assert_eq!(
        none.map(|_| ()),
        Err(Rejected::Invalid("config: must be set".into()))
    );
    let handler = cri::RunPodSandboxRequest {
        runtime_handler: "kata".into(),
        ..sandbox_request()
    };
    assert_eq!(
        run_pod_sandbox(handler, PLATFORM).map(|_| ()),
        Err(Rejected::Invalid(
            "runtime_handler: no handler \"kata\" is configured (sandbox \"ns/pod\")".into()
        ))
    );
}

#[test]
fn bad_sandbox_contexts_are_named() {
    type Case = (SandboxChange, &'static str);
    fn options(context: &mut cri::LinuxSandboxSecurityContext) -> &mut cri::NamespaceOption {
        context.namespace_options.get_or_insert_default()
    }
    let cases: &[Case] = &[
        (
            |c| options(c).network = 1,
            "namespace_options.network: must be POD or NODE",
        ),
        (
            |c| options(c).network = 7,
            "namespace_options.network: 7 is no known value",
        ),
        (
            |c| options(c).ipc = 3,
            "namespace_options.ipc: must be POD or NODE",
        ),
        (
            |c| options(c).pid = -1,
            "namespace_options.pid: -1 is no known value",
        ),
        (
            |c| (options(c).pid, options(c).target_id) = (3, "a".repeat(64)),
            "namespace_options.pid: TARGET is for containers",
        ),
        (
            |c| options(c).target_id = "a".repeat(64),
            "namespace_options.target_id: needs pid TARGET",
        ),
        (
            |c| c.run_as_user = Some(cri::Int64Value { value: -1 }),
            "run_as_user: -1 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.run_as_group = Some(cri::Int64Value { value: 1 }),
            "run_as_group: needs run_as_user or run_as_username",
        ),
        (
            |c| c.supplemental_groups = vec![1 << 32],
            "supplemental_groups[0]: 4294967296 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.seccomp = Some(profile(ProfileType::Localhost, "x.json")),
            "seccomp.localhost_ref: \"x.json\" must be absolute",
        ),
    ];
    for (spoil, why) in cases {
        let result = sandbox_security(*spoil).map(|_| ());
        let why = format!("linux.security_context.{why}");
        assert_eq!(result, Err(invalid(&why, "sandbox \"ns/pod\"")));
    }
    let node: SandboxChange = |context| {
        let options = context.namespace_options.get_or_insert_default();
        options.network = 2;
        options.userns_options = Some(cri::UserNamespace {
            mode: 2,
            ..Default::default()
        });
    };
    let config = sandbox_security(node).expect("a pod with the node's network");
    assert_eq!((config.network, config.hostname), (Scope::Node, None));
}

fn ids(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
    cri::IdMapping {
        host_id,
        container_id,
        length,
    }
}

fn with_user_namespace(
    uids: &[cri::IdMapping],
    gids: &[cri::IdMapping],
) -> Result<Option<UserNamespace>, Rejected> {
    sandbox_security_of(&|context| {
        let options = context.namespace_options.get_or_insert_default();
        options.userns_options = Some(cri::UserNamespace {
            mode: 0,
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        });
    })
    .map(|config| config.user_namespace)
}

#[test]
fn a_user_namespace_has_one_mapping_of_each_kind() {
    let good = [ids(0, 100_000, 65_536)];
    let map = |host, count| IdMap { host, count };
    assert_eq!(
        with_user_namespace(&good, &[ids(0, 7, u32::MAX - 7)]),
        Ok(Some(UserNamespace {
            uids: map(100_000, 65_536),
            gids: map(7, u32::MAX - 7)
        }))
    );
    type Mappings<'a> = &'a [cri::IdMapping];
    let cases: [(Mappings<'_>, Mappings<'_>, &str); 6] = [
        (&[], &good, "uids: must be one mapping, not 0"),
        (
            &good,
            &[good[0], good[0]],
            "gids: must be one mapping, not 2",
        ),
        (
            &[ids(1, 100_000, 10)],
            &good,
            "uids[0].container_id: must be 0, not 1: id 0 has to be mapped",
        ),
        (
            &good,
            &[ids(0, 100_000, 0)],
            "gids[0].length: must not be 0",
        ),
        (
            &good,
            &[ids(0, 8, u32::MAX - 7)],
            "gids[0]: 4294967288 ids from 8 on are more than there are",
        ),
        (&[], &[], "uids: must be one mapping, not 0"),
    ];
    for (uids, gids, why) in cases {
        let why = format!("linux.security_context.namespace_options.userns_options.{why}");
        assert_eq!(
            with_user_namespace(uids, gids),
            Err(invalid(&why, "sandbox \"ns/pod\""))
        );
    }
}

#[test]
fn a_user_namespace_excludes_the_nodes_pid_and_ipc() {
    let options = |change: fn(&mut cri::NamespaceOption)| {
        sandbox_security_of(&|context| {
            let options = context.namespace_options.get_or_insert_default();
            let mapping = vec![ids(0, 100_000, 65_536)];
            options.userns_options = Some(cri::UserNamespace {
                mode: 0,
                uids: mapping.clone(),
                gids: mapping,
            });
            change(options);
        })
    };
    for (field, refused) in [
        ("pid", options(|options| options.pid = 2)),
        ("ipc", options(|options| options.ipc = 2)),
    ] {
        let why = format!(
            "linux.security_context.namespace_options.{field}: NODE cannot be had in a user namespace"
        );
        assert_eq!(
            refused.map(|_| ()),
            Err(invalid(&why, "sandbox \"ns/pod\""))
        );
    }
    let config = options(|options| options.network = 2).expect("the host's network");
    assert!(config.user_namespace.is_some());
}
