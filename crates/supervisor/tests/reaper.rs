//! The reaper that carries out a Plan and executes the supervisor's program: as one with an SELinux label does. Needs
//! root.

mod pod;

use std::fs::read_to_string;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use carpel_wire::{
    BE_REAPER, Call, FdIndex, MAX_PLAN, NulList, PidNamespace, Reply, RequestBody, Step,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use pod::*;

const NOBODY: u32 = 65535;
const RDONLY: u64 = 1;
const PROGRAM: &[u8] = b"/carpel-supervisor\0";

/// What the daemon compiles, but for the labels: `late` are the steps right before the last.
fn steps<'a>(arguments: &'a [u8], late: &[Step<'a>]) -> Vec<Step<'a>> {
    let mut steps = vec![
        new_fs(b"tmpfs\0", b"nr_inodes\x002\0mode\x000755\0"),
        Step::PivotRoot { root: SLOT },
        Step::File {
            content: FdIndex(1),
            path: PROGRAM,
            mode: 0o111,
        },
        Step::SetAttr {
            path: b"/\0",
            set: RDONLY,
            clear: 0,
            recursive: false,
        },
        Step::BoundingSet { keep: 0 },
        Step::Groups { gids: &[] },
        Step::Ids {
            uid: NOBODY,
            gid: NOBODY,
        },
        Step::Capabilities {
            effective: 0,
            permitted: 0,
            inheritable: 0,
        },
    ];
    steps.extend(late);
    steps.push(Step::Exec {
        candidates: NulList::new(PROGRAM).unwrap(),
        arguments: NulList::new(arguments).unwrap(),
        environment: NulList::default(),
    });
    steps
}

fn as_reaper() -> Vec<u8> {
    [&PROGRAM[1..], BE_REAPER].concat()
}

fn share(daemon: &mut Daemon, steps: &[Step<'_>]) -> (Reply, Vec<OwnedFd>) {
    let program = sealed(&std::fs::read(binary()).unwrap());
    let body = RequestBody::SharePidsAs {
        namespace: None,
        plan: FdIndex(0),
    };
    daemon.ask(body, &[plan(steps).as_fd(), program.as_fd()])
}

/// Takes the reaper of a pod that was set up without one.
fn take(pod: &mut Pod, (reply, mut fds): (Reply, Vec<OwnedFd>)) -> u32 {
    let Reply::Ready {
        reaper_pid: Some(pid),
        ..
    } = reply
    else {
        panic!("{reply:?}")
    };
    pod.reaper = Some((pid, fds.pop().unwrap()));
    pid
}

/// Retries what another process does after it has answered.
fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(Duration::from_secs(10));
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn it_has_given_everything_up_and_outlives_its_supervisor() {
    let (mut pod, mut daemon) = Pod::ready(false);
    let arguments = as_reaper();
    let shared = share(&mut daemon, &steps(&arguments, &[]));
    let pid = take(&mut pod, shared);
    let proc = |name: &str| format!("/proc/{pid}/{name}");
    assert_eq!(
        std::fs::read(proc("cmdline")).unwrap(),
        b"carpel-supervisor\0--reaper\0"
    );
    let status = read_to_string(proc("status")).unwrap();
    for line in [
        "Name:\tcarpel-supervis",
        "Uid:\t65535\t65535\t65535\t65535",
        "Gid:\t65535\t65535\t65535\t65535",
        "Groups:\t ",
        "SigBlk:\tfffffffffffbfeff",
        "SigIgn:\t0000000000010000",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(
            status.lines().any(|found| found == line),
            "{line}\n{status}"
        );
    }
    soon("it has files", || {
        std::fs::read_dir(proc("fd")).unwrap().count() == 0
    });
    let mounts = read_to_string(proc("mountinfo")).unwrap();
    assert!(
        mounts.lines().count() == 1 && mounts.contains(" / / ro,"),
        "{mounts}"
    );
    let root: Vec<_> = std::fs::read_dir(proc("root")).unwrap().collect();
    assert_eq!(root.len(), 1, "{root:?}");
    // Whom nobody of its user may look into belongs to root.
    assert_eq!(std::fs::metadata(proc("status")).unwrap().uid(), 0);
    let rollup = read_to_string(proc("smaps_rollup")).unwrap();
    let of = |field: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // The rest is its program, which lies in the pod's own file system and is counted once.
    let program = std::fs::metadata(binary()).unwrap().len().div_ceil(4096) * 4;
    println!("{program} kB program, {} kB else", of("Anonymous:"));
    assert!(of("Anonymous:") <= 32 && of("Rss:") <= program + 32);

    // A second request finds it there.
    let shared = share(&mut daemon, &steps(&arguments, &[]));
    assert_eq!(take(&mut pod, shared), pid);
    // It reaps.
    let rootfs = Rootfs::new();
    let script = "sh -c 'sleep 0.05 & exit'; sleep 0.3; ps -o stat,comm | busybox grep -c '^Z'";
    let command = ["sh", "-c", script];
    let mut run = Run::container(1, &rootfs, &command);
    run.pid_namespace = PidNamespace::Pod;
    let (text, _) = output_of(&mut daemon, run);
    assert_eq!(text, "0\n");

    let namespaces = pod.namespaces();
    pod.kill();
    let (mut pod, mut daemon) = pod.successor();
    pod.take_over(&mut daemon, &namespaces, false);
    assert_eq!(pod.reaper.as_ref().unwrap().0, pid);
    // One that has died is replaced by the same request.
    let (_, pidfd) = pod.reaper.take().unwrap();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    soon("it lives", || {
        let mut death = [PollFd::new(&pidfd, PollFlags::IN)];
        poll(&mut death, Some(&Timespec::default())).unwrap() == 1
    });
    let shared = share(&mut daemon, &steps(&arguments, &[]));
    assert_ne!(take(&mut pod, shared), pid);
    let rootfs = Rootfs::new();
    let mut run = Run::container(2, &rootfs, &["true"]);
    run.pid_namespace = PidNamespace::Pod;
    assert_eq!(daemon.run(&run), 0);
}

#[test]
fn what_fails_is_told_and_leaves_nothing() {
    let (pod, mut daemon) = Pod::ready(false);
    let arguments = as_reaper();
    let label = b"no_u:no_r:no_t:s0";
    let labelled = steps(&arguments, &[Step::ExecLabel { label }]);
    let (reply, _) = share(&mut daemon, &labelled);
    // Without any security module there may be no file for it.
    let refused = matches!(
        reply,
        Reply::StepFailed {
            step: 8,
            errno: 22 | 2
        }
    );
    assert!(refused, "{reply:?}");
    // A program that says nothing.
    let (reply, _) = share(&mut daemon, &steps(&PROGRAM[1..], &[]));
    let ended = matches!(
        reply,
        Reply::CallFailed {
            call: Call::Clone,
            errno: 10
        }
    );
    assert!(ended, "{reply:?}");
    let twice = [Step::File {
        content: FdIndex(1),
        path: PROGRAM,
        mode: 0o111,
    }];
    let (reply, _) = share(&mut daemon, &steps(&arguments, &twice));
    assert_eq!(reply, Reply::StepFailed { step: 8, errno: 9 });
    let body = |namespace, plan| RequestBody::SharePidsAs {
        namespace,
        plan: FdIndex(plan),
    };
    let plan = plan(&steps(&arguments, &[]));
    for body in [body(None, 1), body(Some(FdIndex(1)), 0)] {
        let (reply, _) = daemon.ask(body, &[plan.as_fd()]);
        assert_eq!(reply, Reply::Malformed);
    }
    let supervisor = pod.pid.unwrap();
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    soon("something is left", || {
        read_to_string(&children).unwrap().is_empty()
    });
}

/// What may still be written is no content for a file.
#[test]
fn a_file_is_what_a_sealed_memfd_holds() {
    let (_pod, mut daemon) = Pod::ready(false);
    // The Plan itself, which is in use; /dev/null.
    for (content, errnos) in [(0, [9, 9]), (1, [1, 22])] {
        let rootfs = Rootfs::new();
        let mut run = Run::container(1, &rootfs, &["true"]);
        run.steps = vec![Step::File {
            content: FdIndex(content),
            path: b"/etc/deep/file\0",
            mode: 0o640,
        }];
        let reply = daemon.start(&run);
        let Reply::StepFailed { step: 6, errno } = reply else {
            panic!("{content}: {reply:?}")
        };
        assert!(errnos.contains(&errno), "{content}: {errno}");
        assert!(!rootfs.path("etc/deep").exists());
    }
    // A program that did not fit would be refused the same way.
    let program = std::fs::metadata(binary()).unwrap().len();
    assert!(program < MAX_PLAN as u64);
}
