mod fixture;
mod hooks;
mod invariants;
mod labels;
mod user;

use carpel_wire::{PidNamespace, Steps};
use proptest::prelude::*;

use self::fixture::{Fixture, host, image, mount, sandbox};
use self::invariants::{check_filesystem, check_plan};
use super::*;
use crate::ids::ContainerId;
use crate::spec::config::*;

fn steps(compiled: &Compiled) -> Vec<Step<'_>> {
    Steps(&compiled.plan)
        .map(|step| step.expect("a plan that was just written"))
        .collect()
}

fn position(steps: &[Step<'_>], what: impl Fn(&Step<'_>) -> bool) -> usize {
    steps.iter().position(what).expect("the step is there")
}

/// Every descriptor that a step names.
fn indexes(step: &Step<'_>) -> Vec<FdIndex> {
    match *step {
        Step::JoinTasks { tasks } => vec![tasks],
        Step::SetNs { pidfd, .. } => vec![pidfd],
        Step::SetNsFd { namespace, .. } => vec![namespace],
        Step::NewFs { slot, .. } | Step::OpenTree { slot, .. } => vec![slot],
        Step::PivotRoot { root } => vec![root],
        Step::Attach { mount, .. } | Step::RootLabel { mount, .. } => vec![mount],
        Step::File { content, .. } => vec![content],
        Step::Stdio {
            stdin,
            stdout,
            stderr,
        } => vec![stdin, stdout, stderr],
        _ => Vec::new(),
    }
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof!["[a-c]", "[a-z]{1,8}"], 1..5)
        .prop_map(|parts| format!("/v/{}", parts.join("/")))
}

fn fixture() -> impl Strategy<Value = Fixture> {
    let mounts = proptest::collection::vec((path(), any::<bool>(), 0..3_u8), 0..40);
    let flags = (any::<[bool; 8]>(), 0..3_u8, 0..4_u8);
    (mounts, flags, any::<u64>(), any::<bool>()).prop_map(
        |(mounts, (flags, seccomp, pid), bounding, v2)| {
            let [
                tty,
                no_new_privs,
                readonly,
                privileged,
                node_ipc,
                dev,
                shm,
                hosts,
            ] = flags;
            let mut fixture = Fixture::new();
            fixture.host = host(v2);
            fixture.host.bounding_set &= bounding;
            let security = &mut fixture.config.security;
            security.no_new_privs = no_new_privs;
            security.readonly_rootfs = readonly;
            security.privileged = privileged;
            if bounding & 1 != 0 {
                security.apparmor = AppArmorProfile::Localhost("web".into());
                security.add_ambient_capabilities = vec!["NET_ADMIN".into(), "SYS_TIME".into()];
            }
            if seccomp == 0 {
                security.seccomp = SeccompProfile::Unconfined;
            }
            security.pid = match pid {
                0 => PidScope::Container,
                1 => PidScope::Pod,
                2 => PidScope::Node,
                _ => PidScope::Target(ContainerId::random()),
            };
            fixture.config.tty = tty;
            if node_ipc {
                fixture.sandbox.ipc = Scope::Node;
            }
            for (path, readonly, propagation) in mounts {
                let mut mount = mount(&path, "/tmp");
                mount.readonly = readonly;
                mount.recursive_readonly = readonly && propagation == 0;
                mount.propagation = match propagation {
                    0 => Propagation::Private,
                    1 => Propagation::HostToContainer,
                    _ => Propagation::Bidirectional,
                };
                fixture.config.mounts.push(mount);
            }
            for (wanted, path) in [(dev, "/dev"), (shm, "/dev/shm"), (hosts, "/etc/hosts")] {
                if wanted {
                    fixture.config.mounts.push(mount(path, path));
                }
            }
            fixture
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_plan_is_in_order(fixture in fixture()) {
        let source = fixture.build().unwrap();
        let compiled = compile_container(&source, &fixture.host).unwrap();
        check_plan(&compiled, true);
        check_filesystem(&steps(&compiled));
        let exec = compile_exec(&source, &["x".into()], fixture.config.tty, &fixture.host).unwrap();
        check_plan(&exec, true);
        // A later daemon compiles the same from the record.
        let json = serde_json::to_vec(&source).unwrap();
        let read: Source = serde_json::from_slice(&json).unwrap();
        prop_assert_eq!(&compile_container(&read, &fixture.host).unwrap(), &compiled);
        prop_assert_eq!(&compile_exec(&read, &["x".into()], fixture.config.tty, &fixture.host).unwrap(), &exec);
    }
}

#[test]
fn a_pods_plan() {
    for v2 in [true, false] {
        let compiled = compile_sandbox(&sandbox(), None, &host(v2)).unwrap();
        check_plan(&compiled, false);
        assert_eq!(compiled.clone_flags, CLONE_NEWNS);
        assert_eq!(
            sandbox_namespaces(&sandbox()),
            CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC
        );
        assert_eq!(
            compiled
                .steps
                .iter()
                .filter(|step| step.starts_with("set sysctl"))
                .count(),
            2
        );
    }
    let mut config = sandbox();
    config
        .sysctls
        .insert("net.ipv4.ping_group_range".into(), "0 1".into());
    config
        .sysctls
        .insert("net.ipv4.conf.eth0/1.forwarding".into(), "1".into());
    let compiled = compile_sandbox(&config, None, &host(true)).unwrap();
    let sysctls: Vec<_> = steps(&compiled)
        .iter()
        .filter_map(|step| match step {
            Step::Sysctl { path, value } => Some((path.to_vec(), value.to_vec())),
            _ => None,
        })
        .collect();
    let wanted: [(&[u8], &[u8]); 3] = [
        (b"net/ipv4/ip_unprivileged_port_start\0", b"0"),
        (b"net/ipv4/conf/eth0.1/forwarding\0", b"1"),
        (b"net/ipv4/ping_group_range\0", b"0 1"),
    ];
    assert_eq!(
        sysctls,
        wanted.map(|(path, value)| (path.to_vec(), value.to_vec()))
    );
    let mut config = sandbox();
    (config.network, config.ipc) = (Scope::Node, Scope::Node);
    let compiled = compile_sandbox(&config, None, &host(true)).unwrap();
    assert_eq!(sandbox_namespaces(&config), 0);
    assert!(
        !compiled.steps.iter().any(|step| step.contains("hostname")
            || step.contains("sysctl")
            || step.contains("shm"))
    );
}

#[test]
fn too_many_mounts_are_refused() {
    let mut fixture = Fixture::new();
    for number in 0..300 {
        fixture
            .config
            .mounts
            .push(mount(&format!("/m{number}"), "/tmp"));
    }
    let error = compile_container(&fixture.build().unwrap(), &fixture.host)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "mounts: 303 need a file descriptor each, 236 can be had"
    );
}

type Strings = Vec<Vec<u8>>;

/// Arguments, environment and candidates of a Plan.
fn exec_of(compiled: &Compiled) -> (Strings, Strings, Strings) {
    let steps = steps(compiled);
    let Some(Step::Exec {
        candidates,
        arguments,
        environment,
    }) = steps.last()
    else {
        panic!("no exec");
    };
    let list = |list: &carpel_wire::NulList<'_>| {
        list.iter()
            .map(|text| text[..text.len() - 1].to_vec())
            .collect()
    };
    (list(arguments), list(environment), list(candidates))
}

#[test]
fn commands_and_arguments() {
    let strings = |list: &[&str]| {
        list.iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let entry: &[&str] = &["/entry"];
    for (command, args, entrypoint, cmd, expected) in [
        (
            &[][..],
            &[][..],
            entry,
            &["one"][..],
            &["/entry", "one"][..],
        ),
        (&[], &["two"], entry, &["one"], &["/entry", "two"]),
        (&["sh"], &[], entry, &["one"], &["sh"]),
        (&["sh"], &["-c"], entry, &["one"], &["sh", "-c"]),
        (&[], &[], &[""], &["one"], &["one"]),
        (&[], &[], &[], &["one"], &["one"]),
    ] {
        let mut fixture = Fixture::new();
        fixture.image = image(entrypoint, cmd, &[], "", &[]);
        (fixture.config.command, fixture.config.args) = (strings(command), strings(args));
        let (arguments, ..) = exec_of(&fixture.compile());
        assert_eq!(
            arguments,
            expected
                .iter()
                .map(|text| text.as_bytes().to_vec())
                .collect::<Vec<_>>()
        );
    }
    let mut fixture = Fixture::new();
    fixture.image = image(&[], &[], &[], "", &[]);
    assert_eq!(
        fixture.build().unwrap_err().to_string(),
        "no command specified: neither the request nor the image has one"
    );
    fixture.config.command = strings(&["a\0b"]);
    assert_eq!(
        fixture.build().unwrap_err().to_string(),
        "command: \"a\\0b\" holds a NUL byte"
    );
}

#[test]
fn the_environment_and_the_search_path() {
    let mut fixture = Fixture::new();
    fixture.config.command = vec!["tool".into()];
    fixture.config.env = vec![
        ("B".into(), b"\xff".to_vec()),
        ("PATH".into(), b"/a::/\xfe".to_vec()),
    ];
    fixture.config.tty = true;
    let source = fixture.build().unwrap();
    let (_, environment, candidates) = exec_of(&compile_container(&source, &fixture.host).unwrap());
    let expected: [&[u8]; 6] = [
        b"PATH=/a::/\xfe",
        b"TERM=xterm",
        b"HOSTNAME=pod-1",
        b"A=image",
        b"B=\xff",
        b"HOME=/home/a",
    ];
    assert_eq!(environment, expected);
    let expected: [&[u8]; 3] = [b"/a/tool", b"./tool", b"/\xfe/tool"];
    assert_eq!(candidates, expected);
    let exec = compile_exec(&source, &["/bin/x".into()], true, &fixture.host).unwrap();
    assert_eq!(exec_of(&exec).2, [b"/bin/x".to_vec()]);
    fixture.config.env = vec![("A".into(), b"\0".to_vec())];
    assert_eq!(
        fixture.build().unwrap_err().to_string(),
        "envs: \"A\" holds a NUL byte"
    );
    fixture.config.env = vec![("HOME".into(), b"/r\nroot2::0:0".to_vec())];
    assert!(
        fixture
            .build()
            .unwrap_err()
            .to_string()
            .starts_with("envs: HOME=")
    );
}

#[test]
fn an_exec_has_the_rights_of_its_container() {
    let mut fixture = Fixture::new();
    fixture.config.security.no_new_privs = true;
    fixture.config.security.apparmor = AppArmorProfile::Localhost("web".into());
    let source = fixture.build().unwrap();
    let container = compile_container(&source, &fixture.host).unwrap();
    let exec = compile_exec(&source, &["x".into()], false, &fixture.host).unwrap();
    let rights = |compiled: &Compiled| {
        let steps = steps(compiled);
        let from = position(&steps, |step| matches!(step, Step::Umask { .. }));
        format!("{:?}", &steps[from..steps.len() - 1])
    };
    assert_eq!(rights(&container), rights(&exec));
    assert!(rights(&exec).contains("AppArmor"));
    assert!(!rights(&exec).contains("ExecLabel"));
    assert_eq!(exec.pid_namespace, PidNamespace::Of(fixture.id.object()));
    assert_eq!(
        exec.fds,
        [
            FdSource::Plan,
            FdSource::CgroupDir,
            FdSource::Stdin,
            FdSource::Stdout,
            FdSource::Stderr
        ]
    );
    assert_eq!(
        compile_exec(&source, &[], false, &fixture.host)
            .unwrap_err()
            .to_string(),
        oci::Error::NoCommand.to_string()
    );
}

#[test]
fn namespaces_by_scope() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.compile().clone_flags, CLONE_NEWNS | CLONE_NEWCGROUP);
    assert_eq!(fixture.compile().pid_namespace, PidNamespace::New);
    fixture.config.security.privileged = true;
    fixture.config.security.pid = PidScope::Node;
    let compiled = fixture.compile();
    assert_eq!(
        (compiled.clone_flags, compiled.pid_namespace),
        (CLONE_NEWNS, PidNamespace::Host)
    );
    assert!(
        !compiled
            .steps
            .iter()
            .any(|step| step.contains("seccomp") || step.starts_with("mask"))
    );
    let all = fixture.host.bounding_set;
    assert!(
        steps(&compiled)
            .iter()
            .any(|step| matches!(step, Step::BoundingSet { keep } if *keep == all))
    );
}

#[test]
fn the_requests_mounts_come_before_defaults() {
    let mut fixture = Fixture::new();
    fixture.image = image(
        &["x"],
        &[],
        &[],
        "/",
        &["/data", "/data/below", "/a/../b/", "/etc/hosts", "relative"],
    );
    fixture.config.mounts = vec![
        mount("/data/deep", "/x"),
        mount("/etc/hosts", "/x"),
        mount("/data", "/y"),
    ];
    let source = fixture.build().unwrap();
    let mounts: Vec<_> = source
        .spec
        .mounts()
        .iter()
        .flatten()
        .map(|m| m.destination().to_str().unwrap())
        .collect();
    assert_eq!(
        mounts[6..],
        [
            "/b",
            "/data",
            "/dev/shm",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/data/deep",
            "/etc/hosts"
        ]
    );
    fixture.config.mounts = vec![mount("/dev", "/dev")];
    let compiled = fixture.compile();
    assert!(
        !steps(&compiled)
            .iter()
            .any(|step| matches!(step, Step::Mknod { .. } | Step::Symlink { .. }))
    );
}

#[test]
fn bad_mounts_and_capabilities_are_named() {
    let build = |change: fn(&mut Fixture)| {
        let mut fixture = Fixture::new();
        change(&mut fixture);
        fixture.build().unwrap_err().to_string()
    };
    let text = build(|fixture| fixture.config.mounts = vec![mount("/proc/1", "/tmp")]);
    assert_eq!(text, "mounts: /proc/1: inside /proc nothing can be mounted");
    let text = build(|fixture| fixture.config.mounts = vec![mount("/proc", "/tmp")]);
    assert_eq!(
        text,
        "mounts: /proc: only a proc file system can be mounted there"
    );
    for bad in ["/", "/a/../../b", "relative", "/a//b", "/a\0"] {
        let mut fixture = Fixture::new();
        fixture.config.mounts = vec![mount(bad, "/tmp")];
        assert!(
            matches!(fixture.build(), Err(oci::Error::Mount { .. })),
            "{bad:?}"
        );
    }
    let text = build(|fixture| fixture.config.security.add_capabilities = vec!["FLY".into()]);
    assert_eq!(text, "capabilities: \"FLY\" is not a capability");
    let text = build(|fixture| {
        fixture.config.security.seccomp = SeccompProfile::Localhost("/etc/shadow".into());
    });
    assert_eq!(
        text,
        "seccomp: seccomp profile /etc/shadow: not a profile (line 1, column 1)"
    );
    let text = build(|fixture| fixture.config.working_dir = Some("a".into()));
    assert_eq!(text, "working_dir \"a\": not an absolute path");
}

#[test]
fn no_annotation_of_the_request_reaches_a_runtime() {
    let source = Fixture::new().build().unwrap();
    let annotations = source.spec.annotations().as_ref().unwrap();
    assert!(
        annotations
            .keys()
            .all(|key| key.starts_with("io.kubernetes.cri."))
    );
}

#[test]
fn a_container_compiles_quickly() {
    let fixture = Fixture::new();
    fixture.compile();
    let start = std::time::Instant::now();
    let source = fixture.build().unwrap();
    let built = start.elapsed();
    compile_container(&source, &fixture.host).unwrap();
    let compiled = start.elapsed();
    println!("build {built:?}, compile {:?}", compiled - built);
    assert!(compiled < std::time::Duration::from_millis(100));
}
