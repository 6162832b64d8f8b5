//! What must hold of every plan.

use super::*;

/// What holds for every Plan.
pub(super) fn check_plan(compiled: &Compiled, purpose_is_process: bool) {
    let steps = steps(compiled);
    assert_eq!(steps.len(), compiled.steps.len());
    assert_eq!(compiled.fds[0], FdSource::Plan);
    assert!(compiled.fds.len() <= carpel_wire::MAX_FDS);
    let mut filled = [false; FdIndex::SLOTS as usize];
    let mut used = vec![0; compiled.fds.len()];
    for step in &steps {
        for FdIndex(index) in indexes(step) {
            match index.checked_sub(FdIndex::FIRST_SLOT).map(usize::from) {
                _ if FdIndex(index) == FdIndex::TARGET => {}
                None => used[usize::from(index)] += 1,
                Some(slot) => {
                    // A slot is filled once, then used up.
                    let fills = matches!(step, Step::NewFs { .. } | Step::OpenTree { .. });
                    assert_eq!(filled[slot], !fills, "{step:?}");
                    filled[slot] = fills;
                }
            }
        }
    }
    assert_eq!(filled, [false; FdIndex::SLOTS as usize]);
    for (source, used) in compiled.fds.iter().zip(used) {
        match source {
            FdSource::Plan | FdSource::CgroupDir | FdSource::UserNamespace => assert_eq!(used, 0),
            FdSource::TerminalSlave => assert_eq!(used, 3),
            other => assert_eq!(used, 1, "{other:?}"),
        }
    }
    let execs = steps
        .iter()
        .filter(|step| matches!(step, Step::Exec { .. }))
        .count();
    assert_eq!(execs, usize::from(purpose_is_process));
    if purpose_is_process {
        assert!(matches!(steps.last(), Some(Step::Exec { .. })));
        check_privileges(&steps);
    }
}

fn check_privileges(steps: &[Step<'_>]) {
    let at = |what: fn(&Step<'_>) -> bool| position(steps, what);
    let last = |what: fn(&Step<'_>) -> bool| steps.iter().rposition(what).expect("it is there");
    let bounding = at(|step| matches!(step, Step::BoundingSet { .. }));
    let order = [
        at(|step| matches!(step, Step::SetSid)),
        at(|step| matches!(step, Step::Stdio { .. })),
        bounding,
        at(|step| matches!(step, Step::KeepCaps)),
        at(|step| matches!(step, Step::Groups { .. })),
        // Before it there may be the step to root of a user namespace.
        last(|step| matches!(step, Step::Ids { .. })),
        at(|step| matches!(step, Step::Capabilities { .. })),
        at(|step| matches!(step, Step::Chdir { .. })),
        at(|step| matches!(step, Step::Ambient { .. })),
        steps.len() - 1,
    ];
    assert!(order.is_sorted(), "{order:?}");
    // Nothing touches the file system once privileges are going.
    assert!(
        steps[bounding..]
            .iter()
            .all(|step| indexes(step).is_empty())
    );
    let last_capset = steps
        .iter()
        .rposition(|step| matches!(step, Step::Capabilities { .. }))
        .unwrap();
    let no_new_privs = steps
        .iter()
        .position(|step| matches!(step, Step::NoNewPrivs));
    if let Some(seccomp) = steps
        .iter()
        .position(|step| matches!(step, Step::Seccomp { .. }))
    {
        match no_new_privs {
            Some(no_new_privs) => assert_eq!(seccomp, no_new_privs + 1),
            None => assert!(seccomp < last_capset && seccomp > order[6]),
        }
    }
    if let Some(label) = steps
        .iter()
        .position(|step| matches!(step, Step::AppArmor { .. } | Step::ExecLabel { .. }))
    {
        assert!(order[7] < label && label < last_capset);
        let seccomp = steps
            .iter()
            .position(|step| matches!(step, Step::Seccomp { .. }));
        assert!(seccomp.is_none_or(|seccomp| label < seccomp));
    }
    let Step::Capabilities {
        permitted,
        inheritable,
        ..
    } = steps[last_capset]
    else {
        unreachable!()
    };
    let Step::Ambient { raise } = steps[order[8]] else {
        unreachable!()
    };
    assert_eq!((raise & !permitted, inheritable), (0, raise));
    let Step::BoundingSet { keep } = steps[bounding] else {
        unreachable!()
    };
    assert_eq!(permitted & !keep, 0);
}

pub(super) fn check_filesystem(steps: &[Step<'_>]) {
    let pivot = position(steps, |step| matches!(step, Step::PivotRoot { .. }));
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::JoinTasks { .. } | Step::OomScoreAdj { .. } | Step::OpenTree { .. } => {
                assert!(at < pivot)
            }
            Step::Attach { .. }
            | Step::Volume { .. }
            | Step::File { .. }
            | Step::Mknod { .. }
            | Step::Mask { .. }
            | Step::ReadOnly { .. } => {
                assert!(at > pivot);
            }
            _ => {}
        }
    }
    let attached: Vec<&[u8]> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Attach { target: path, .. } | Step::Volume { path } => {
                Some(&path[..path.len() - 1])
            }
            _ => None,
        })
        .collect();
    let host_mounts = attached
        .iter()
        .position(|path| *path == b"/dev/shm")
        .unwrap_or(0);
    for (at, path) in attached.iter().enumerate().skip(host_mounts) {
        let below = |later: &&&[u8]| {
            later.len() < path.len() && path.starts_with(later) && path[later.len()] == b'/'
        };
        assert!(
            !attached[at + 1..].iter().any(|later| below(&later)),
            "{attached:?}"
        );
    }
    let first_hidden = steps
        .iter()
        .position(|step| matches!(step, Step::Mask { .. } | Step::ReadOnly { .. }));
    let last_made = steps.iter().rposition(|step| {
        matches!(
            step,
            Step::Attach { .. }
                | Step::Volume { .. }
                | Step::File { .. }
                | Step::Mknod { .. }
                | Step::Mkdir { .. }
                | Step::Symlink { .. }
        )
    });
    if let (Some(hidden), Some(made)) = (first_hidden, last_made) {
        assert!(made < hidden);
    }
}
