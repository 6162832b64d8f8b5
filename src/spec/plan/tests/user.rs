//! Plans of pods with a user namespace.

use super::*;
use crate::spec::capability;

pub(super) const IDS: UserNamespace = UserNamespace {
    uids: IdMap {
        host: 100_000,
        count: 65_536,
    },
    gids: IdMap {
        host: 200_000,
        count: 65_536,
    },
};

/// Any container that a pod with a user namespace may have.
fn inside() -> impl Strategy<Value = Fixture> {
    (fixture(), any::<bool>()).prop_map(|(mut fixture, node_network)| {
        fixture.sandbox.user_namespace = Some(IDS);
        fixture.sandbox.ipc = Scope::Pod;
        if node_network {
            fixture.sandbox.network = Scope::Node;
        }
        if fixture.config.security.pid == PidScope::Node {
            fixture.config.security.pid = PidScope::Pod;
        }
        fixture
    })
}

fn check_user(compiled: &Compiled) {
    let steps = steps(compiled);
    let user = compiled.user.expect("a place in the user namespace");
    let source = |index: usize| compiled.fds.get(index);
    assert_eq!(
        source(usize::from(user.namespace.0)),
        Some(&FdSource::UserNamespace)
    );
    for index in 0..256 {
        let locked = user.locked[index / 64] >> (index % 64) & 1 == 1;
        let wanted = matches!(
            source(index),
            Some(FdSource::Mount(mount)) if mount.propagation != Propagation::Bidirectional
        );
        assert_eq!(locked, wanted, "{:?}", source(index));
    }
    let root = position(&steps, |step| *step == Step::Ids { uid: 0, gid: 0 });
    let first = position(&steps, |step| !matches!(step, Step::JoinTasks { .. }));
    assert_eq!(root, first);
    let pivot = position(&steps, |step| matches!(step, Step::PivotRoot { .. }));
    for (at, step) in steps.iter().enumerate() {
        match step {
            // Nobody inside may do these.
            Step::Mknod { .. } | Step::OomScoreAdj { .. } => panic!("{step:?}"),
            Step::NewFs { fstype, .. } if [&b"proc\0"[..], b"sysfs\0"].contains(fstype) => {
                assert!(at < pivot);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_plan_is_in_order(fixture in inside()) {
        let source = fixture.build().unwrap();
        let compiled = compile_container(&source, &fixture.host).unwrap();
        check_plan(&compiled, true);
        check_filesystem(&steps(&compiled));
        check_user(&compiled);
        let exec = compile_exec(&source, &["x".into()], fixture.config.tty, &fixture.host).unwrap();
        check_plan(&exec, true);
        prop_assert_eq!(exec.user, None);
        let entered = steps(&exec).iter().find_map(|step| match step {
            Step::SetNs { flags, .. } => Some(flags & CLONE_NEWUSER),
            _ => None,
        });
        prop_assert_eq!(entered, Some(CLONE_NEWUSER));
        let json = serde_json::to_vec(&source).unwrap();
        let read: Source = serde_json::from_slice(&json).unwrap();
        prop_assert_eq!(&compile_container(&read, &fixture.host).unwrap(), &compiled);
    }
}

#[test]
fn what_comes_from_the_host_has_the_pods_ids() {
    let mut fixture = Fixture::new();
    fixture.config.mounts.push(mount("/data", "/host/data"));
    let mapped = |fixture: &Fixture| {
        let fds = fixture.compile().fds.into_iter();
        let mounts = fds.filter_map(|source| match source {
            FdSource::Mount(mount) => Some((mount.source.display().to_string(), mount.mapped)),
            _ => None,
        });
        mounts.collect::<Vec<_>>()
    };
    let files = [
        "/host/data",
        "/run/s/hosts",
        "/run/s/hostname",
        "/run/s/resolv.conf",
    ];
    let before = mapped(&fixture);
    assert_eq!(before.len(), files.len());
    assert!(before.iter().all(|(_, mapped)| !mapped));
    fixture.sandbox.user_namespace = Some(IDS);
    // Nodes of devices cannot be mapped, and have no owner that matters.
    for (source, mapped) in mapped(&fixture) {
        assert_eq!(mapped, files.contains(&&*source), "{source}");
        assert!(mapped || source.starts_with("/dev/"), "{source}");
    }
}

#[test]
fn rights_in_a_user_namespace_are_not_bounded_by_the_hosts() {
    let mut fixture = Fixture::new();
    fixture.host.bounding_set = 0;
    fixture.config.security.add_capabilities = vec!["ALL".into()];
    let last = |fixture: &Fixture| {
        let compiled = fixture.compile();
        let mut sets = steps(&compiled).into_iter().filter_map(|step| match step {
            Step::Capabilities { permitted, .. } => Some(permitted),
            _ => None,
        });
        sets.next_back()
    };
    assert_eq!(last(&fixture), Some(0));
    fixture.sandbox.user_namespace = Some(IDS);
    assert_eq!(last(&fixture), Some(capability::ALL));
}

#[test]
fn a_pods_sysctls_and_shared_memory_are_its_roots() {
    let mut config = sandbox();
    config.user_namespace = Some(IDS);
    config
        .sysctls
        .insert("kernel.shm_rmid_forced".into(), "1".into());
    let compiled = compile_sandbox(&config, None, &host(true)).unwrap();
    check_plan(&compiled, false);
    let all = steps(&compiled);
    let wanted = Step::SysctlAs {
        uid: 100_000,
        path: b"kernel/shm_rmid_forced\0",
        value: b"1",
    };
    assert!(all.contains(&wanted));
    let pings = Step::Sysctl {
        path: b"net/ipv4/ping_group_range\0",
        value: b"200000 265535",
    };
    assert!(all.contains(&pings));
    let shm = all.iter().find_map(|step| match step {
        Step::NewFs { options, .. } => {
            let words: Vec<_> = options.iter().map(<[u8]>::to_vec).collect();
            words.contains(&b"1777\0".to_vec()).then_some(words)
        }
        _ => None,
    });
    let shm = shm.expect("a /dev/shm");
    assert!(
        shm.ends_with(&[b"uid\0", &b"100000\0"[..], b"gid\0", b"200000\0"].map(<[u8]>::to_vec))
    );
}
