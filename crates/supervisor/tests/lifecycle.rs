//! A pod's life, end to end: set up, processes, exits, a daemon that comes and goes. Needs root.

mod pod;

use std::os::fd::{AsFd, OwnedFd};

use carpel_wire::{Call, FdIndex, PidNamespace, Reply, RequestBody, SignalScope, Step};

use pod::*;

fn text(daemon: &mut Daemon, run: Run<'_>) -> String {
    let (text, status) = output_of(daemon, run);
    assert_eq!(status, 0, "{text}");
    text
}

#[test]
fn a_pod_has_namespaces_of_its_own() {
    let (pod, mut daemon) = Pod::ready(false);
    let pid = pod.pid.unwrap();
    assert_eq!(pod.connect().hello_pid, pid);
    let mut daemon_again = pod.connect();
    assert!(daemon_again.ready);
    for namespace in ["net", "uts", "ipc", "mnt"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of("self"), of(&pid.to_string()), "{namespace}");
    }
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 4, "{mounts}");
    let (reply, fds) = pod.set_up(&mut daemon_again, NEWNS, &[], true);
    assert!(
        matches!(
            reply,
            Reply::Ready {
                reaper_pid: None,
                ..
            }
        ),
        "{reply:?}"
    );
    assert_eq!(fds.len(), 1);
    assert!(daemon.receive().is_none(), "the older connection is closed");

    let rootfs = Rootfs::new();
    let command = [
        "sh",
        "-c",
        "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ip addr",
    ];
    let found = text(
        &mut daemon_again,
        Run::container(1, &rootfs, &["busybox", "hostname"]),
    );
    assert_eq!(found, "a-pod\n");
    let rootfs = Rootfs::new();
    std::os::unix::fs::symlink("busybox", rootfs.path("bin/hostname")).unwrap();
    std::os::unix::fs::symlink("busybox", rootfs.path("bin/ip")).unwrap();
    let found = text(&mut daemon_again, Run::container(2, &rootfs, &command));
    assert!(
        found.starts_with("a-pod\n80\n") && found.contains("127.0.0.1/8"),
        "{found}"
    );
    assert_eq!(daemon_again.ask(RequestBody::Shutdown, &[]).0, Reply::Done);
    assert!(daemon_again.receive().is_none());
}

#[test]
fn a_failed_set_up_is_told_and_leaves_nothing() {
    for (flags, steps, expected) in [
        (
            NEWNS,
            vec![Step::MakeSlave, new_fs(b"nofs\0", b"")],
            Reply::StepFailed { step: 1, errno: 19 },
        ),
        (
            NEWNS,
            vec![Step::PivotRoot { root: SLOT }],
            Reply::StepFailed { step: 0, errno: 9 },
        ),
        (NEWUTS, vec![], Reply::Malformed),
        (NEWNS | 0x100, vec![], Reply::Malformed),
    ] {
        let (pod, mut daemon) = Pod::spawn();
        assert_eq!(pod.set_up(&mut daemon, flags, &steps, false).0, expected);
        if matches!(expected, Reply::StepFailed { .. }) {
            assert!(daemon.receive().is_none(), "the supervisor ends");
        }
    }
}

#[test]
fn exit_codes_and_signals_are_exact() {
    let (pod, mut daemon) = Pod::ready(false);
    let mut expected = Vec::new();
    for (number, (script, status)) in
        (1..).zip([("exit 0", 0), ("exit 7", code(7)), ("exit 255", code(255))])
    {
        let rootfs = Rootfs::new();
        let command = ["sh", "-c", script];
        assert_eq!(
            daemon.run(&Run::container(number, &rootfs, &command)),
            status
        );
        expected.push((id(number), status));
    }
    for (number, signal, scope) in [(10, 9, SignalScope::Process), (11, 9, SignalScope::Group)] {
        let rootfs = Rootfs::new();
        let run = Run::container(number, &rootfs, &["sleep", "1000"]);
        assert!(matches!(daemon.start(&run), Reply::Started { .. }));
        assert_eq!(daemon.forget(run.id), Reply::Busy);
        assert_eq!(daemon.ask(RequestBody::Shutdown, &[]).0, Reply::Busy);
        assert_eq!(daemon.start(&run), Reply::Exists);
        assert_eq!(
            daemon
                .ask(
                    RequestBody::Signal {
                        id: run.id,
                        signal,
                        scope
                    },
                    &[]
                )
                .0,
            Reply::Done
        );
        assert_eq!(daemon.exit(run.id), signal);
        assert_eq!(daemon.signal(run.id, 9), Reply::NotFound);
        assert_eq!(daemon.forget(run.id), Reply::Done);
        assert_eq!(daemon.forget(run.id), Reply::NotFound);
        expected.push((run.id, signal));
    }
    let found: Vec<_> = pod
        .exits()
        .iter()
        .map(|exit| (exit.id, exit.wait_status))
        .collect();
    assert_eq!(found, expected);
    assert!(daemon.list().is_empty());
}

#[test]
fn a_command_runs_in_a_container_until_that_is_gone() {
    let (_pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    assert!(matches!(
        daemon.start(&Run::container(1, &rootfs, &["sleep", "1000"])),
        Reply::Started { .. }
    ));
    let found = text(
        &mut daemon,
        Run::exec(2, 1, &["sh", "-c", "echo $$; cat /proc/1/comm; ls /"]),
    );
    assert_eq!(found, "2\nsleep\nbin\ndev\netc\nproc\nsys\ntmp\n");
    assert_eq!(
        daemon.run(&Run::exec(3, 1, &["sh", "-c", "exit 3"])),
        code(3)
    );
    assert_eq!(daemon.list().len(), 1, "execs leave the table");

    // A command that outlives its container's init is killed with it, and both exits are told.
    assert!(matches!(
        daemon.start(&Run::exec(4, 1, &["sleep", "1000"])),
        Reply::Started { .. }
    ));
    assert_eq!(daemon.signal(id(1), 9), Reply::Done);
    assert_eq!(daemon.exit(id(4)), 9);
    assert_eq!(daemon.exit(id(1)), 9);
    assert_eq!(daemon.start(&Run::exec(5, 1, &["true"])), Reply::NotFound);
    assert_eq!(daemon.start(&Run::exec(6, 9, &["true"])), Reply::NotFound);
}

#[test]
fn containers_share_a_pid_namespace_with_the_reaper() {
    let (_pod, mut daemon) = Pod::ready(true);
    let rootfs = Rootfs::new();
    // The child of the killed shell becomes the reaper's, which nobody inside can kill.
    let script = "sh -c 'sleep 0.05 & exit' ; kill -9 1; sleep 0.2; cat /proc/1/comm; ps -o comm | grep -c sleep; echo $$";
    let command = ["sh", "-c", script];
    let mut run = Run::container(1, &rootfs, &command);
    run.pid_namespace = PidNamespace::Pod;
    std::os::unix::fs::symlink("busybox", rootfs.path("bin/grep")).unwrap();
    let found = text(&mut daemon, run);
    assert_eq!(found, "carpel-supervis\n0\n2\n");
    // Two containers see each other; neither is the other's init.
    let (first, second) = (Rootfs::new(), Rootfs::new());
    for (number, rootfs) in [(2, &first), (3, &second)] {
        let mut run = Run::container(number, rootfs, &["sleep", "1000"]);
        run.pid_namespace = PidNamespace::Pod;
        assert!(matches!(daemon.start(&run), Reply::Started { .. }));
    }
    let mut run = Run::exec(
        4,
        3,
        &[
            "sh",
            "-c",
            "cat /proc/1/comm; cat /proc/[0-9]*/comm | busybox grep -c sleep; ls /proc/1/root/ | busybox wc -l",
        ],
    );
    run.pid_namespace = PidNamespace::Pod;
    let found = text(&mut daemon, run);
    assert_eq!(found, "carpel-supervis\n2\n0\n");
    for number in [2, 3] {
        assert_eq!(daemon.signal(id(number), 15), Reply::Done);
        assert_eq!(daemon.exit(id(number)), 15);
    }
}

#[test]
fn a_failed_start_names_the_step_and_leaves_nothing() {
    let (pod, mut daemon) = Pod::ready(false);
    let chdir = |path| vec![Step::Chdir { path }];
    let bad = |steps: Vec<Step<'static>>,
               late: Vec<Step<'static>>,
               command: &'static [&'static str]| { (steps, late, command) };
    let cases = [
        (bad(vec![], vec![], &["missing"]), 8, 2),
        (bad(vec![], vec![], &["/etc"]), 8, 13),
        (bad(vec![], vec![], &["/bin/busybox/x"]), 8, 20),
        (bad(vec![], chdir(b"/nowhere\0"), &["true"]), 8, 2),
        (bad(vec![], chdir(b"/bin/busybox\0"), &["true"]), 8, 20),
        (bad(vec![], chdir(b"/proc/self/fd/5\0"), &["true"]), 8, 2),
        (bad(vec![], chdir(b"unterminated"), &["true"]), 8, 74),
        (
            bad(
                vec![Step::Attach {
                    mount: FdIndex(99),
                    target: b"/x\0",
                    no_symlinks: false,
                }],
                vec![],
                &["true"],
            ),
            6,
            9,
        ),
        (
            bad(
                vec![new_fs(b"tmpfs\0", b"nosuch\x001\0")],
                vec![],
                &["true"],
            ),
            6,
            22,
        ),
        (
            bad(
                vec![new_fs(b"tmpfs\0", b""), attach(b"/bin/busybox\0")],
                vec![],
                &["true"],
            ),
            7,
            20,
        ),
        (
            bad(
                vec![Step::Sysctl {
                    path: b"../1/oom_score_adj\0",
                    value: b"1",
                }],
                vec![],
                &["true"],
            ),
            6,
            18,
        ),
        (
            bad(vec![], vec![Step::Groups { gids: b"abc" }], &["true"]),
            8,
            22,
        ),
    ];
    for ((steps, late_steps, command), step, errno) in cases {
        let rootfs = Rootfs::new();
        let mut run = Run::container(1, &rootfs, command);
        (run.steps, run.late_steps) = (steps, late_steps);
        assert_eq!(
            daemon.start(&run),
            Reply::StepFailed { step, errno },
            "{command:?}"
        );
    }
    assert!(daemon.list().is_empty() && pod.exits().is_empty());
    assert_eq!(daemon.ask(RequestBody::Shutdown, &[]).0, Reply::Done);
}

#[test]
fn a_process_that_dies_before_exec_is_told_apart() {
    let (_pod, mut daemon) = Pod::ready(false);
    // A filter that kills whatever execs: load the call's number; 59 kills, all else is allowed.
    let number = if cfg!(target_arch = "x86_64") {
        59_u32
    } else {
        221
    };
    let mut program = Vec::new();
    for (code, jump_true, jump_false, value) in [
        (0x20_u16, 0_u8, 0_u8, 0_u32),
        (0x15, 0, 1, number),
        (0x06, 0, 0, 0x8000_0000),
        (0x06, 0, 0, 0x7fff_0000),
    ] {
        program.extend_from_slice(&code.to_ne_bytes());
        program.extend_from_slice(&[jump_true, jump_false]);
        program.extend_from_slice(&value.to_ne_bytes());
    }
    for _ in 0..50 {
        let rootfs = Rootfs::new();
        let mut run = Run::container(1, &rootfs, &["true"]);
        run.late_steps = vec![Step::Seccomp {
            program: &program,
            flags: 0,
        }];
        let reply = daemon.start(&run);
        assert!(
            matches!(reply, Reply::Died { wait_status } if wait_status & 0x7f == 31),
            "{reply:?}"
        );
    }
    // One that forbids it is a failed step.
    program[20..24].copy_from_slice(&0x0005_0001_u32.to_ne_bytes());
    let rootfs = Rootfs::new();
    let mut run = Run::container(1, &rootfs, &["true"]);
    run.late_steps = vec![Step::Seccomp {
        program: &program,
        flags: 0,
    }];
    assert_eq!(daemon.start(&run), Reply::StepFailed { step: 9, errno: 1 });
}

#[test]
fn the_newest_daemon_wins_and_learns_everything() {
    let (pod, mut old) = Pod::ready(false);
    let rootfs: Vec<_> = (0..4).map(|_| Rootfs::new()).collect();
    assert!(matches!(
        old.start(&Run::container(1, &rootfs[0], &["sleep", "1000"])),
        Reply::Started { .. }
    ));
    assert!(matches!(
        old.start(&Run::container(
            2,
            &rootfs[1],
            &["sh", "-c", "sleep 0.1; exit 5"]
        )),
        Reply::Started { .. }
    ));
    assert!(matches!(
        old.start(&Run::exec(3, 1, &["sleep", "0.1"])),
        Reply::Started { .. }
    ));
    // A start whose daemon goes away before it is answered, and one that fails then.
    Run::container(4, &rootfs[2], &["sleep", "1000"]).send(&mut old);
    Run::container(5, &rootfs[3], &["missing"]).send(&mut old);
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(old);
    std::thread::sleep(std::time::Duration::from_millis(300));

    let mut new = pod.connect();
    let entries = new.list();
    let exited = |number: u8| {
        let (entry, fds) = entries
            .iter()
            .find(|(entry, _)| entry.id == id(number))
            .unwrap();
        let held = [entry.held.pidfd, entry.held.log, entry.held.stdin];
        let held = held.into_iter().chain(entry.held.streams).flatten();
        assert_eq!(fds.len(), held.count());
        assert_eq!(entry.held.pidfd.is_some(), entry.exited.is_none());
        entry.exited.map(|(status, _)| status)
    };
    assert_eq!(
        (exited(1), exited(2), exited(4)),
        (None, Some(code(5)), None)
    );
    assert!(
        entries.iter().all(|(entry, _)| entry.id != id(3)),
        "an exec nobody waits for is dropped"
    );
    assert!(
        pod.exits()
            .iter()
            .any(|exit| (exit.id, exit.wait_status) == (id(2), code(5)))
    );
    assert_eq!(new.signal(id(4), 9), Reply::Done);
    assert_eq!(new.exit(id(4)), 9);
    let mut newest = pod.connect();
    assert!(new.receive().is_none());
    assert_eq!(newest.signal(id(1), 9), Reply::Done);
    assert_eq!(newest.exit(id(1)), 9);
}

#[test]
fn nonsense_is_refused_and_nothing_of_it_stays() {
    let (pod, mut daemon) = Pod::ready(false);
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", pod.pid.unwrap()))
            .unwrap()
            .count()
    };
    let before = open();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let many = vec![null.as_fd(); 253];
    daemon.send_raw(&[0xff; 100], &many[..10]);
    assert_eq!(daemon.reply(0).0, Reply::Malformed);
    daemon.send_raw(&[7, 5, 0], &many);
    assert_eq!(daemon.reply(7).0, Reply::Malformed);
    daemon.send_raw(&[8; 5000], &[null.as_fd()]);
    assert_eq!(daemon.reply(8).0, Reply::Malformed);
    let log = RequestBody::ReopenLog {
        id: id(1),
        log: FdIndex(0),
    };
    assert_eq!(daemon.ask(log.clone(), &[]).0, Reply::Malformed);
    assert_eq!(daemon.ask(log, &[null.as_fd()]).0, Reply::NotFound);
    // Plans that are no Plans.
    let rootfs = Rootfs::new();
    let run = Run::container(1, &rootfs, &["true"]);
    let unsealed = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    for (memfd, reply) in [
        (sealed(b""), Reply::StepFailed { step: 0, errno: 74 }),
        (
            sealed(&[0xee; 50]),
            Reply::StepFailed { step: 0, errno: 74 },
        ),
        (
            unsealed,
            Reply::CallFailed {
                call: Call::MapPlan,
                errno: 1,
            },
        ),
        (
            null.try_clone().unwrap(),
            Reply::CallFailed {
                call: Call::MapPlan,
                errno: 22,
            },
        ),
    ] {
        let start = carpel_wire::Start {
            id: run.id,
            clone_flags: NEWNS,
            pid_namespace: PidNamespace::New,
            target: None,
            cgroup: None,
            plan: FdIndex(0),
            output: carpel_wire::Output::None,
            stdin: None,
            init: true,
        };
        assert_eq!(
            daemon.ask(RequestBody::Start(start), &[memfd.as_fd()]).0,
            reply
        );
    }
    assert_eq!(open(), before);
    assert_eq!(daemon.run(&run), 0);
    assert_eq!(open(), before);
}

#[test]
fn the_table_is_bounded_and_every_answer_arrives() {
    let (pod, mut daemon) = Pod::ready(false);
    let start = |number: u16| {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&number.to_le_bytes());
        (id, ["true"])
    };
    // Many starts at once, their answers and exits left unread.
    let rootfs = Rootfs::new();
    assert!(matches!(
        daemon.start(&Run::container(255, &rootfs, &["sleep", "1000"])),
        Reply::Started { .. }
    ));
    let mut asked = Vec::new();
    for number in 0..255 {
        let (id, command) = start(number);
        let mut run = Run::exec(0, 255, &command);
        (run.id, run.init) = (id, true);
        asked.push(run.send(&mut daemon));
    }
    for seq in asked {
        let (reply, fds) = daemon.reply(seq);
        assert!(
            matches!(reply, Reply::Started { .. }) && fds.len() == 1,
            "{reply:?}"
        );
    }
    for number in 0..255 {
        assert_eq!(daemon.exit(start(number).0), 0);
    }
    assert_eq!(daemon.start(&Run::exec(254, 255, &["true"])), Reply::Full);
    assert_eq!(daemon.list().len(), 256);
    assert_eq!(pod.exits().len(), 255);
    assert_eq!(daemon.forget(start(3).0), Reply::Done);
    assert_eq!(daemon.run(&Run::exec(254, 255, &["true"])), 0);
}
