//! Plans of containers with hooks.

use oci_spec::runtime::Hook;

use super::*;
use crate::spec::hooks;

fn hook(path: &str) -> Hook {
    let mut hook = Hook::default();
    hook.set_path(path.into());
    hook
}

fn compile(fixture: &Fixture, points: &[&str]) -> Compiled {
    let mut source = fixture.build().unwrap();
    for point in points {
        hooks::push(&mut source.spec, point, hook("/bin/hook"));
    }
    if !points.is_empty() {
        source.bundle = Some("/run/b/1".into());
    }
    if source.in_user_namespace() && hooks::in_sight(&source.spec) {
        source.cover = Some("/run/b".into());
    }
    compile_container(&source, &fixture.host).unwrap()
}

/// The steps that have to do with hooks, and others to tell their places by.
fn order(compiled: &Compiled) -> Vec<&'static str> {
    let wanted = [
        "enter the host's",
        "enter a copy of the host's",
        "copy the host's",
        "keep mounts",
        "mount the bundle over \"/run/b\"",
        "mount the root",
        "enter the root",
        "become root",
        "make proc",
        "mount proc",
        "make working",
        "wait for hooks",
        "createContainer hook",
        "mask",
        "load the seccomp profile",
        "startContainer hook",
        "exec",
    ];
    let mut order: Vec<&str> = Vec::new();
    for step in &compiled.steps {
        if let Some(name) = wanted.iter().find(|name| step.starts_with(*name))
            && order.last() != Some(name)
        {
            order.push(name);
        }
    }
    let meetings = compiled
        .fds
        .iter()
        .filter(|fd| **fd == FdSource::HookChannel);
    assert!(meetings.count() <= 1);
    order
}

#[test]
fn hooks_keep_a_container_in_sight_of_the_host() {
    let fixture = Fixture::new();
    let of = |points: &[&str]| order(&compile(&fixture, points));
    let plain = of(&[]);
    assert_eq!(
        plain[..4],
        ["enter the root", "make proc", "mount proc", "make working"]
    );
    assert!(
        !plain
            .iter()
            .any(|step| step.contains("hook") || step.contains("host's"))
    );
    assert_eq!(of(&["poststart", "poststop"]), plain);
    let in_sight = [
        "enter the host's",
        "copy the host's",
        "keep mounts",
        "mount the root",
        "make proc",
        "mount proc",
        "make working",
        "wait for hooks",
        "createContainer hook",
        "enter the root",
        "mask",
    ];
    assert_eq!(of(&["createContainer", "prestart"])[..11], in_sight);
    let inside = of(&["startContainer"]);
    assert_eq!(
        inside[..3],
        ["wait for hooks", "enter the root", "make proc"]
    );
    assert_eq!(inside[inside.len() - 2..], ["startContainer hook", "exec"]);
}

#[test]
fn in_a_user_namespace_what_is_in_sight_is_a_copy_that_is_locked() {
    let mut fixture = Fixture::new();
    fixture.sandbox.user_namespace = Some(super::user::IDS);
    let compiled = compile(&fixture, &["createContainer", "prestart"]);
    let in_sight = [
        "become root",
        "make proc",
        "enter a copy of the host's",
        "mount the bundle over \"/run/b\"",
        "mount the root",
        "mount proc",
        "make working",
        "wait for hooks",
        "createContainer hook",
        "enter the root",
        "mask",
    ];
    assert_eq!(order(&compiled)[..11], in_sight);
    let locked = compiled.user.unwrap().locked;
    let is_locked = |source: &FdSource| {
        let index = compiled.fds.iter().position(|fd| fd == source).unwrap();
        locked[index / 64] >> (index % 64) & 1 == 1
    };
    assert!(is_locked(&FdSource::HostMounts));
    assert!(!is_locked(&FdSource::BundleCover));
    // A hook that runs inside only needs none of it.
    let inside = compile(&fixture, &["startContainer"]);
    assert!(!inside.fds.contains(&FdSource::HostMounts));
}
