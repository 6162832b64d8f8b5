//! What plugins want of a container that is created.

use std::fs;

use carpel_integration::api::nri::{
    CdiDevice, ContainerAdjustment, Hook, Hooks, KeyValue, LinuxContainerAdjustment, LinuxDevice,
    LinuxIoPriority, LinuxMemory, LinuxNamespace, LinuxNetDevice, LinuxPids, LinuxRdt,
    LinuxResources, LinuxSeccomp, LinuxSyscall, Mount, OptionalFileMode, OptionalInt,
    OptionalInt64, OptionalString, OptionalUInt32, PosixRlimit, ValidateContainerAdjustmentRequest,
    ValidateContainerAdjustmentResponse,
};
use carpel_integration::{ContainerConfigExt, Pod, host};
use serde_json::json;

use super::*;

async fn node_with_pod() -> (TestNode, Pod) {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    (node, pod)
}

fn key(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        r#type: typ.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment {
        linux: Some(linux),
        ..ContainerAdjustment::default()
    }
}

fn int64(value: i64) -> Option<OptionalInt64> {
    Some(OptionalInt64 { value })
}

#[tokio::test]
async fn variables_arguments_mounts_limits_and_hooks() {
    let (mut node, pod) = node_with_pod().await;
    let dir = node.dir().join("given");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "given\n").unwrap();
    let note = dir.join("note");
    let script = format!("#!/bin/sh\ncat > {}/state\n", dir.display());
    fs::write(&note, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&note, mode).unwrap();
    let script = "echo $NEW $OLD ${GONE-none}; cat /given/file; touch /given/x 2>&1 | grep -o Read-only; \
                  ls /dropped | wc -l; ulimit -n; cat /proc/self/oom_score_adj; cat /proc/sys/kernel/msgmax; \
                  stat -c '%a %t:%T' /dev/given; test -e /dev/full || echo none";
    let adjust = ContainerAdjustment {
        annotations: [("from".to_owned(), "plugin".to_owned())].into(),
        env: vec![key("NEW", "new"), key("OLD", "changed"), key("-GONE", "")],
        args: ["/bin/sh", "-c", script].map(String::from).into(),
        mounts: vec![
            mount("/given", "bind", dir.to_str().unwrap(), &["rbind", "ro"]),
            mount("-/dropped", "", "", &[]),
        ],
        hooks: Some(Hooks {
            create_runtime: vec![Hook {
                path: note.display().to_string(),
                timeout: Some(OptionalInt { value: 5 }),
                ..Hook::default()
            }],
            ..Hooks::default()
        }),
        rlimits: vec![PosixRlimit {
            r#type: "RLIMIT_NOFILE".into(),
            soft: 321,
            hard: 321,
        }],
        linux: Some(LinuxContainerAdjustment {
            oom_score_adj: Some(OptionalInt { value: 77 }),
            sysctl: [("kernel.msgmax".to_owned(), "9000".to_owned())].into(),
            devices: vec![
                LinuxDevice {
                    path: "/dev/given".into(),
                    r#type: "c".into(),
                    major: 1,
                    minor: 11,
                    file_mode: Some(OptionalFileMode { value: 0o600 }),
                    uid: Some(OptionalUInt32 { value: 0 }),
                    gid: None,
                },
                LinuxDevice {
                    path: "-/dev/full".into(),
                    ..LinuxDevice::default()
                },
            ],
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    };
    let first = plugin(&node, wanting("00", "first", adjust)).await;
    let last = plugin(&node, Behaviour::new("99", "last")).await;
    let config = sh("a", "echo not this")
        .env("OLD", b"old")
        .env("GONE", b"\xff")
        .mount(&dir, "/dropped");
    let id = node.try_create(&pod, &config).await.unwrap();
    // The next one has seen it so.
    let seen: CreateContainerRequest = last.wait_for("CreateContainer", 1).await.request();
    let seen = seen.container.unwrap();
    assert_eq!(seen.args[2], script);
    assert_eq!(seen.annotations["from"], "plugin");
    assert!(seen.env.contains(&"OLD=changed".to_owned()));
    assert!(!seen.env.iter().any(|entry| entry.starts_with("GONE")));
    assert!(
        seen.mounts
            .iter()
            .any(|mount| mount.destination == "/given")
    );
    assert!(
        !seen
            .mounts
            .iter()
            .any(|mount| mount.destination == "/dropped")
    );
    assert!(
        !seen
            .linux
            .unwrap()
            .devices
            .iter()
            .any(|device| device.path == "/dev/full")
    );
    // What was wanted then is the container's, without its plugins and with another daemon.
    drop((first, last));
    node.crash().await;
    node.try_start(&id).await.unwrap();
    node.wait_exit(&id).await;
    let output = node.log(&pod, "a").stdout();
    let wanted = "new changed none\ngiven\nRead-only\n0\n321\n77\n9000\n600 1:b\nnone\n";
    assert_eq!(output, wanted);
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("state")).unwrap()).unwrap();
    assert_eq!(state["annotations"]["from"], "plugin");
    node.finish().await;
}

#[tokio::test]
async fn limits_are_the_containers_and_told_as_such() {
    let (mut node, pod) = node_with_pod().await;
    let adjust = linux(LinuxContainerAdjustment {
        resources: Some(LinuxResources {
            memory: Some(LinuxMemory {
                limit: int64(64 << 20),
                ..LinuxMemory::default()
            }),
            pids: Some(LinuxPids { limit: 33 }),
            ..LinuxResources::default()
        }),
        ..LinuxContainerAdjustment::default()
    });
    let plugin = plugin(&node, wanting("00", "limits", adjust)).await;
    let mut config = sleeper("a");
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: 1 << 30,
        ..LinuxContainerResources::default()
    });
    let id = node.start_container(&pod, &config).await;
    let check = async |node: &TestNode| {
        let limits = node.limits(&id).await;
        assert_eq!(
            (limits.cpu_shares, limits.memory_limit_in_bytes),
            (512, 64 << 20)
        );
        let cgroup = format!("{}/{id}", node.cgroup_parent());
        let read = |names: [&str; 2]| {
            let dirs = host::cgroup_dirs(&cgroup);
            let files = dirs.iter().flat_map(|dir| names.map(|name| dir.join(name)));
            files
                .filter_map(|file| fs::read_to_string(file).ok())
                .next()
        };
        let memory = read(["memory.max", "memory.limit_in_bytes"]);
        assert_eq!(memory.as_deref().map(str::trim), Some("67108864"));
        assert_eq!(
            read(["pids.max", "pids.max"]).as_deref().map(str::trim),
            Some("33")
        );
    };
    check(&node).await;
    drop(plugin);
    node.crash().await;
    check(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn devices_of_files_interfaces_and_filters() {
    let folder = tempfile::tempdir().unwrap();
    let document = json!({
        "cdiVersion": "0.5.0",
        "kind": "vendor.com/class",
        "devices": [{"name": "x", "containerEdits": {"env": ["CDI=x"]}}],
    });
    fs::write(folder.path().join("a.json"), document.to_string()).unwrap();
    let config = format!("[cdi]\ndirs = [{:?}]\n", folder.path());
    let node = TestNode::builder().config(&config).start().await;
    node.net.command(&[
        "sh",
        "-ec",
        "ip link add ext0 type veth peer name far0; ip link set far0 up",
    ]);
    let pod = node.run_pod(&node.pod("one")).await;
    let adjust = ContainerAdjustment {
        cdi_devices: vec![CdiDevice {
            name: "vendor.com/class=x".into(),
        }],
        linux: Some(LinuxContainerAdjustment {
            net_devices: [(
                "ext0".to_owned(),
                LinuxNetDevice {
                    name: "data0".into(),
                },
            )]
            .into(),
            seccomp_policy: Some(LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".into(),
                syscalls: vec![LinuxSyscall {
                    names: vec!["mkdir".into(), "mkdirat".into()],
                    action: "SCMP_ACT_ERRNO".into(),
                    errno_ret: Some(OptionalUInt32 { value: 28 }),
                    args: Vec::new(),
                }],
                ..LinuxSeccomp::default()
            }),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    };
    let plugin = plugin(&node, wanting("00", "devices", adjust)).await;
    let script =
        "echo $CDI; ls /sys/class/net | tr '\\n' ' '; mkdir /tmp/x 2>&1 | grep -o 'No space'";
    let output = node.output_of(&pod, &sh("a", script)).await;
    assert_eq!(output, "x\ndata0 eth0 lo No space\n");
    node.net.command(&["ip", "link", "del", "ext0"]);
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn a_cgroup_of_its_choice() {
    let (node, pod) = node_with_pod().await;
    let path = format!("{}/chosen", node.cgroup_parent());
    let adjust = |path: &str| {
        linux(LinuxContainerAdjustment {
            cgroups_path: path.to_owned(),
            ..LinuxContainerAdjustment::default()
        })
    };
    let chooses = plugin(&node, wanting("00", "chooses", adjust(&path))).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    assert!(!host::cgroup_pids(&path).is_empty());
    // There is one container in it.
    refused(
        node.try_create(&pod, &sleeper("b")).await,
        Code::FailedPrecondition,
        "there is such a cgroup already",
    );
    node.try_remove(&id).await.unwrap();
    assert!(host::cgroup_dirs(&path).is_empty());
    drop(chooses);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for bad in ["relative", "/a/../b", "/"] {
        let wrong = plugin(&node, wanting("00", "wrong", adjust(bad))).await;
        refused(
            node.try_create(&pod, &sleeper("b")).await,
            Code::FailedPrecondition,
            "linux.cgroups_path",
        );
        drop(wrong);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    node.finish().await;
}

#[tokio::test]
async fn two_that_say_the_same_are_refused_unless_the_second_takes_away_first() {
    let (node, pod) = node_with_pod().await;
    let env = |entries: Vec<KeyValue>| ContainerAdjustment {
        env: entries,
        ..ContainerAdjustment::default()
    };
    let first = wanting("00", "first", env(vec![key("X", "first")]));
    let first = plugin(&node, first).await;
    let second = wanting("10", "second", env(vec![key("X", "second")]));
    let second = plugin(&node, second).await;
    refused(
        node.try_create(&pod, &sleeper("a")).await,
        Code::FailedPrecondition,
        "plugins \"00-first\" and \"10-second\" both set Env \"X\"",
    );
    assert!(node.containers().await.is_empty());
    drop(second);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let third = env(vec![key("-X", ""), key("X", "third")]);
    let third = plugin(&node, wanting("20", "third", third)).await;
    assert_eq!(node.output_of(&pod, &sh("a", "echo $X")).await, "third\n");
    drop(first);
    drop(third);
    node.finish().await;
}

#[tokio::test]
async fn one_that_validates_has_the_last_word() {
    let (node, pod) = node_with_pod().await;
    let env = ContainerAdjustment {
        env: vec![key("X", "1")],
        ..ContainerAdjustment::default()
    };
    let wants = plugin(&node, wanting("00", "wants", env)).await;
    let events = 1 << (nri::Event::ValidateContainerAdjustment as i32 - 1);
    let configure = Answer::message(&nri::ConfigureResponse { events });
    let judge = Behaviour::new("90", "judge")
        .answers("Configure", configure)
        .on("ValidateContainerAdjustment", |request| {
            let request: ValidateContainerAdjustmentRequest =
                prost::Message::decode(request).unwrap();
            let container = request.container.unwrap();
            let owners = &request.owners.unwrap().owners[&container.id];
            let owner = &owners.compound[&(nri::Field::Env as i32)].owners["X"];
            assert!(
                !container.env.iter().any(|entry| entry.starts_with("X=")),
                "pristine"
            );
            assert_eq!(request.adjust.unwrap().env.len(), 1);
            Answer::message(&ValidateContainerAdjustmentResponse {
                reject: container.name == "bad",
                reason: format!("{owner} wants X, {} were asked", request.plugins.len()),
            })
        });
    let judge = plugin(&node, judge).await;
    node.start_container(&pod, &sleeper("good")).await;
    refused(
        node.try_create(&pod, &sleeper("bad")).await,
        Code::FailedPrecondition,
        "plugin \"90-judge\" rejects: 00-wants wants X, 2 were asked",
    );
    assert_eq!(judge.events(), ["ValidateContainerAdjustment"; 2]);
    drop(wants);
    drop(judge);
    node.finish().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_its_field() {
    let (node, pod) = node_with_pod().await;
    let resources = |resources| {
        linux(LinuxContainerAdjustment {
            resources: Some(resources),
            ..LinuxContainerAdjustment::default()
        })
    };
    let text = |value: &str| {
        Some(OptionalString {
            value: value.into(),
        })
    };
    let none = LinuxContainerAdjustment::default;
    let mounted = |mount| ContainerAdjustment {
        mounts: vec![mount],
        ..ContainerAdjustment::default()
    };
    let hook = |hook| ContainerAdjustment {
        hooks: Some(Hooks {
            poststop: vec![hook],
            ..Hooks::default()
        }),
        ..ContainerAdjustment::default()
    };
    let cases = [
        (
            linux(LinuxContainerAdjustment {
                io_priority: Some(LinuxIoPriority::default()),
                ..none()
            }),
            "linux.io_priority: carpel cannot do it",
        ),
        (
            linux(LinuxContainerAdjustment {
                namespaces: vec![LinuxNamespace {
                    r#type: "-cgroup".into(),
                    path: String::new(),
                }],
                ..none()
            }),
            "linux.namespaces: carpel cannot do it",
        ),
        (
            linux(LinuxContainerAdjustment {
                rdt: Some(LinuxRdt {
                    clos_id: text("a"),
                    ..LinuxRdt::default()
                }),
                ..none()
            }),
            "linux.rdt: carpel cannot do it",
        ),
        (
            resources(LinuxResources {
                blockio_class: text("fast"),
                ..LinuxResources::default()
            }),
            "resources.blockio_class: carpel cannot do it",
        ),
        (
            resources(LinuxResources {
                memory: Some(LinuxMemory {
                    limit: int64(-5),
                    ..LinuxMemory::default()
                }),
                ..LinuxResources::default()
            }),
            "memory_limit_in_bytes: -5 must not be negative",
        ),
        (
            mounted(mount("/x", "bind", "/none/such", &["rbind"])),
            "mounts[0]: mount on /x: host path /none/such",
        ),
        (
            mounted(mount("/proc/1", "tmpfs", "tmpfs", &[])),
            "mounts[0]: mounts: /proc/1",
        ),
        (
            hook(Hook {
                path: "relative".into(),
                ..Hook::default()
            }),
            "hooks.poststop[0]: path \"relative\" is not absolute",
        ),
        (
            ContainerAdjustment {
                rlimits: vec![PosixRlimit {
                    r#type: "RLIMIT_NONE".into(),
                    ..PosixRlimit::default()
                }],
                ..ContainerAdjustment::default()
            },
            "rlimits: \"RLIMIT_NONE\": there is no such limit",
        ),
        (
            ContainerAdjustment {
                env: vec![key("a=b", "")],
                ..ContainerAdjustment::default()
            },
            "env: \"a=b\" is no variable",
        ),
        (
            ContainerAdjustment {
                cdi_devices: vec![CdiDevice { name: "x".into() }],
                ..ContainerAdjustment::default()
            },
            "CDI_devices: \"x\" is not of the form",
        ),
        (
            linux(LinuxContainerAdjustment {
                sysctl: [("vm.swappiness".to_owned(), "1".to_owned())].into(),
                ..none()
            }),
            "vm.swappiness",
        ),
        (
            linux(LinuxContainerAdjustment {
                seccomp_policy: Some(LinuxSeccomp {
                    default_action: "SCMP_ACT_NONE".into(),
                    ..LinuxSeccomp::default()
                }),
                ..none()
            }),
            "linux.seccomp_policy",
        ),
    ];
    for (adjust, text) in cases {
        let wrong = plugin(&node, wanting("00", "wrong", adjust)).await;
        let status = node.try_create(&pod, &sleeper("a")).await.unwrap_err();
        assert!(status.message().contains(text), "{text}: {status}");
        assert!(
            matches!(
                status.code(),
                Code::FailedPrecondition | Code::InvalidArgument
            ),
            "{status}"
        );
        let undone = ["CreateContainer", "StopContainer", "RemoveContainer"];
        assert_eq!(wrong.events(), undone);
        drop(wrong);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(node.containers().await.is_empty());
    node.finish().await;
}
