//! A pod's user namespace: how it is made, and what is wrong with a request. Needs root.

mod pod;

use std::os::fd::AsFd;

use carpel_wire::{Call, FdIndex, IdRange, PidNamespace, Reply, RequestBody, UserStart};

use pod::*;

const NEWUSER: u64 = 0x1000_0000;

fn range(first: u32, count: u32) -> IdRange {
    IdRange { first, count }
}

fn unshare(flags: u64, uids: IdRange, gids: IdRange) -> RequestBody {
    RequestBody::UnshareUser { flags, uids, gids }
}

fn namespace(pid: u32, kind: &str) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

#[test]
fn the_pods_namespaces_belong_to_it_and_the_supervisor_stays_outside() {
    let (pod, mut daemon) = Pod::spawn();
    let pid = daemon.hello_pid;
    let before = ["user", "net", "ipc", "uts", "mnt"].map(|kind| namespace(pid, kind));
    let ids = range(100_000, 65_536);
    let (reply, _) = daemon.ask(unshare(NEWNET | NEWIPC | NEWUTS, ids, ids), &[]);
    assert_eq!(reply, Reply::Done);
    let after = ["user", "net", "ipc", "uts", "mnt"].map(|kind| namespace(pid, kind));
    for (before, after) in before.iter().zip(&after) {
        let own = ["net", "ipc", "uts"].iter();
        let made = own
            .clone()
            .any(|kind| after.to_string_lossy().starts_with(kind));
        assert_eq!(before != after, made, "{before:?}, {after:?}");
    }
    // The process that made them is gone.
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children, "");
    drop(pod);
}

#[test]
fn ids_that_cannot_be_mapped_are_an_error_and_nothing_is_made() {
    let (_pod, mut daemon) = Pod::spawn();
    let pid = daemon.hello_pid;
    let before = namespace(pid, "net");
    let good = range(100_000, 65_536);
    for (uids, gids) in [(range(0, 0), good), (good, range(u32::MAX, 2))] {
        let (reply, _) = daemon.ask(unshare(NEWNET, uids, gids), &[]);
        let failed = matches!(
            reply,
            Reply::CallFailed {
                call: Call::UserNamespace,
                ..
            }
        );
        assert!(failed, "{reply:?}");
    }
    let (reply, _) = daemon.ask(unshare(NEWUSER, good, good), &[]);
    assert_eq!(reply, Reply::Malformed);
    assert_eq!(namespace(pid, "net"), before);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children, "");
}

#[test]
fn a_start_without_its_descriptors_is_malformed_or_fails() {
    let (_pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    let run = Run::container(1, &rootfs, &["busybox", "true"]);
    let plan = run.plan();
    let null = std::fs::File::open("/dev/null").unwrap();
    let start = carpel_wire::Start {
        id: id(1),
        clone_flags: NEWNS,
        pid_namespace: PidNamespace::New,
        target: None,
        cgroup: None,
        plan: FdIndex(0),
        output: carpel_wire::Output::None,
        stdin: None,
        init: true,
    };
    let mut ask = |namespace: u16, locked: u64| {
        let user = UserStart {
            namespace: FdIndex(namespace),
            oom_score_adj: 0,
            locked: [locked, 0, 0, 0],
        };
        let start = start.clone();
        let body = RequestBody::StartUser { start, user };
        daemon.ask(body, &[plan.as_fd(), null.as_fd()]).0
    };
    assert_eq!(ask(7, 0), Reply::Malformed);
    // No namespace, and no mount.
    for (namespace, locked, call) in [
        (1, 0, Call::UserNamespace),
        (1, 1 << 1, Call::LockMounts),
        (1, 1 << 9, Call::LockMounts),
    ] {
        let reply = ask(namespace, locked);
        let failed = matches!(reply, Reply::CallFailed { call: found, .. } if found == call);
        assert!(failed, "{reply:?}");
    }
    // All the same the supervisor goes on.
    assert_eq!(daemon.run(&run), 0);
}
