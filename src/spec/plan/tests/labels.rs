//! SELinux labels: who has one, and what speaks of none.

use super::*;

const PROCESS_LABEL: &str = "system_u:system_r:container_t:s0:c1,c2";
const MOUNT_LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

/// Every "key=value" that a file system is made with, by its type.
fn made_with(compiled: &Compiled) -> Vec<(String, Vec<String>)> {
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes)
            .trim_end_matches('\0')
            .to_owned()
    };
    let made = |step: &Step<'_>| match step {
        Step::NewFs {
            fstype, options, ..
        } => {
            let words: Vec<String> = options.iter().map(text).collect();
            let pairs = words.chunks(2).map(|pair| pair.join("="));
            Some((text(fstype), pairs.collect()))
        }
        _ => None,
    };
    steps(compiled).iter().filter_map(made).collect()
}

#[test]
fn labels_are_for_what_is_the_containers_own() {
    let context = format!("context={MOUNT_LABEL}");
    for v2 in [true, false] {
        let mut fixture = Fixture::new();
        fixture.host = host(v2);
        fixture.process_label = Some(PROCESS_LABEL.into());
        fixture.mount_label = Some(MOUNT_LABEL.into());
        let source = fixture.build().unwrap();
        assert_eq!(source.mount_label(), Some(MOUNT_LABEL));
        let container = fixture.compile();
        check_plan(&container, true);
        for (fstype, options) in made_with(&container) {
            let own = ["tmpfs", "devpts"].contains(&fstype.as_str());
            assert_eq!(options.contains(&context), own, "{fstype}: {options:?}");
        }
        let exec = compile_exec(&source, &["x".into()], false, &fixture.host).unwrap();
        for compiled in [&container, &exec] {
            let steps = steps(compiled);
            let label = position(&steps, |step| matches!(step, Step::ExecLabel { .. }));
            let Step::ExecLabel { label } = steps[label] else {
                unreachable!()
            };
            assert_eq!(label, PROCESS_LABEL.as_bytes());
        }
        let steps = steps(&container);
        let mask = |step: &Step<'_>| matches!(step, Step::Mask { .. });
        let label = |step: &Step<'_>| matches!(step, Step::MaskLabel { .. });
        assert!(position(&steps, label) < position(&steps, mask));
    }
}

#[test]
fn without_labels_no_step_speaks_of_them() {
    let container = Fixture::new().compile();
    let sandbox = compile_sandbox(&sandbox(), None, &host(true)).unwrap();
    for compiled in [container, sandbox] {
        let labels = |step: &&Step<'_>| {
            matches!(
                step,
                Step::ExecLabel { .. } | Step::RootLabel { .. } | Step::MaskLabel { .. }
            )
        };
        assert_eq!(steps(&compiled).iter().filter(labels).count(), 0);
        let options = made_with(&compiled)
            .into_iter()
            .flat_map(|(_, options)| options);
        assert!(
            options
                .into_iter()
                .all(|option| !option.contains("context="))
        );
    }
}

#[test]
fn what_a_pods_containers_share_is_labelled_for_all_levels() {
    const SHARED: &str = "system_u:object_r:container_file_t:s0";
    let compiled = compile_sandbox(&sandbox(), Some(SHARED), &host(true)).unwrap();
    check_plan(&compiled, false);
    let labelled: Vec<_> = made_with(&compiled)
        .into_iter()
        .filter(|(_, options)| options.contains(&format!("rootcontext={SHARED}")))
        .collect();
    let [(fstype, options)] = &labelled[..] else {
        panic!("{labelled:?}")
    };
    assert!(fstype == "tmpfs" && options.contains(&"mode=1777".to_owned()));
    let label = |step: &&Step<'_>| matches!(step, Step::RootLabel { label, .. } if *label == SHARED.as_bytes());
    assert_eq!(steps(&compiled).iter().filter(label).count(), 1);
    // The node's own are not a pod's to label.
    let mut config = sandbox();
    config.ipc = Scope::Node;
    let compiled = compile_sandbox(&config, Some(SHARED), &host(true)).unwrap();
    assert!(!format!("{:?}", steps(&compiled)).contains("RootLabel"));
    assert!(
        made_with(&compiled)
            .iter()
            .all(|(_, options)| options.iter().all(|o| !o.contains("context")))
    );
}

#[test]
fn a_reaper_is_shut_in_before_it_executes_its_program() {
    let labels = crate::selinux::Labels {
        process: PROCESS_LABEL.parse().unwrap(),
        mount: MOUNT_LABEL.parse().unwrap(),
    };
    let ids = |count| crate::spec::config::IdMap {
        host: 100_000,
        count,
    };
    let user = |uids, gids| UserNamespace {
        uids: ids(uids),
        gids: ids(gids),
    };
    let large = user(65_536, 65_536);
    for (user, root, nobody) in [
        (None, false, true),
        (Some(large), true, true),
        (Some(user(65_535, 65_536)), true, false),
        (Some(user(65_536, 1)), true, false),
    ] {
        let compiled = compile_reaper(&labels, user).unwrap();
        assert_eq!(compiled.fds, [FdSource::Plan, FdSource::Program]);
        let steps = steps(&compiled);
        check_filesystem(&steps);
        let becomes = |id| {
            let is_it = |step: &Step<'_>| *step == Step::Ids { uid: id, gid: id };
            steps.iter().any(is_it)
        };
        assert_eq!((becomes(0), becomes(65_535)), (root, nobody), "{user:?}");
        let at = |wanted: fn(&Step<'_>) -> bool| position(&steps, wanted);
        let order = [
            at(|step| matches!(step, Step::PivotRoot { .. })),
            at(|step| matches!(step, Step::File { mode: 0o111, .. })),
            at(|step| matches!(step, Step::SetAttr { .. })),
            at(|step| matches!(step, Step::BoundingSet { keep: 0 })),
            at(|step| matches!(step, Step::Groups { gids } if gids.is_empty())),
            at(|step| {
                let (effective, permitted, inheritable) = (0, 0, 0);
                let nothing = Step::Capabilities {
                    effective,
                    permitted,
                    inheritable,
                };
                *step == nothing
            }),
            at(
                |step| matches!(step, Step::ExecLabel { label } if *label == PROCESS_LABEL.as_bytes()),
            ),
            steps.len() - 1,
        ];
        assert!(order.is_sorted(), "{order:?}");
        // What an exec with another label needs no policy to allow.
        let before = |step: &Step<'_>| match step {
            Step::NoNewPrivs => false,
            Step::NewFs { attrs, .. } => attrs & libc::MOUNT_ATTR_NOSUID == 0,
            Step::SetAttr { set, .. } => *set == libc::MOUNT_ATTR_RDONLY,
            _ => true,
        };
        assert!(steps.iter().all(before), "{steps:?}");
        let made = made_with(&compiled);
        let context = format!("context={MOUNT_LABEL}");
        let expected = ["nr_inodes=2".to_owned(), "mode=0755".to_owned(), context];
        assert_eq!(made, [("tmpfs".to_owned(), expected.to_vec())]);
    }
}
