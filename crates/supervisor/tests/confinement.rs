//! What a container gets and what it does not: descriptors, privileges, mounts, and nothing outside its
//! root, whatever its image holds. Needs root.

mod pod;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use carpel_wire::{FdIndex, Output, PidNamespace, Reply, RequestBody, Start, Step};

use pod::*;

fn output(daemon: &mut Daemon, run: Run<'_>) -> String {
    let (text, status) = output_of(daemon, run);
    assert_eq!(status, 0, "{text}");
    text
}

const STATUS: [&str; 3] = [
    "sh",
    "-c",
    "ls /proc/self/fd | busybox tr '\\n' ' '; echo; umask; busybox grep -E 'Sig[BI]|ShdPnd|Cap|NoNew|Groups' /proc/self/status; \
     readlink /proc/self/cwd; busybox env | busybox sort",
];

#[test]
fn a_process_gets_what_its_plan_says_and_nothing_else() {
    let (pod, mut daemon) = Pod::ready(false);
    let open = std::fs::read_dir(format!("/proc/{}/fd", pod.pid.unwrap()))
        .unwrap()
        .count();
    let rootfs = Rootfs::new();
    symlink("busybox", rootfs.path("bin/readlink")).unwrap();
    assert!(matches!(
        daemon.start(&Run::container(9, &rootfs, &["sleep", "1000"])),
        Reply::Started { .. }
    ));
    let target = Rootfs::new();
    symlink("busybox", target.path("bin/readlink")).unwrap();
    const TWO: u64 = 1 << 10 | 1 << 5;
    let gids = [7_u32.to_le_bytes(), 8_u32.to_le_bytes()].concat();
    let late_steps = vec![
        Step::BoundingSet {
            keep: TWO | 1 << 21,
        },
        Step::KeepCaps,
        Step::Groups { gids: &gids },
        Step::Ids {
            uid: 1000,
            gid: 1001,
        },
        Step::Capabilities {
            effective: TWO | 1 << 21,
            permitted: TWO | 1 << 21,
            inheritable: 0,
        },
        Step::NoNewPrivs,
        Step::Capabilities {
            effective: TWO,
            permitted: TWO,
            inheritable: 1 << 10,
        },
        Step::Ambient { raise: 1 << 10 },
        Step::Umask { mask: 0o027 },
        Step::Chdir { path: b"/tmp\0" },
    ];
    for exec in [false, true] {
        let mut run = if exec {
            Run::exec(1, 9, &STATUS)
        } else {
            Run::container(1, &target, &STATUS)
        };
        run.environment = &["PATH=/bin", "A=\x01b c"];
        run.late_steps = late_steps.clone();
        let text = output(&mut daemon, run);
        // `ls` opens the folder itself as 3.
        assert!(text.starts_with("0 1 2 3 \n0027\n"), "{text}");
        for line in [
            "Groups:\t7 8 ",
            "ShdPnd:\t0000000000000000",
            "SigBlk:\t0000000000000000",
            "SigIgn:\t0000000000000000",
            "CapInh:\t0000000000000400",
            "CapPrm:\t0000000000000400",
            "CapEff:\t0000000000000400",
            "CapBnd:\t0000000000200420",
            "CapAmb:\t0000000000000400",
            "NoNewPrivs:\t1",
            "/tmp",
            "A=\x01b c",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
    // Without such steps: root as the supervisor is, nothing inheritable, the usual umask.
    let text = output(&mut daemon, Run::exec(2, 9, &STATUS));
    assert!(
        text.starts_with("0 1 2 3 \n0022\n") && text.contains("CapInh:\t0000000000000000\n"),
        "{text}"
    );
    assert_eq!(daemon.signal(id(9), 9), Reply::Done);
    assert_eq!(daemon.exit(id(9)), 9);
    assert_eq!(daemon.forget(id(9)), Reply::Done);
    let after = std::fs::read_dir(format!("/proc/{}/fd", pod.pid.unwrap()))
        .unwrap()
        .count();
    assert_eq!(after, open, "the supervisor keeps nothing");
}

#[test]
fn long_argument_lists_pass() {
    let (_pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    let arguments: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
    let mut command = vec!["sh", "-c", "echo $#"];
    command.extend(arguments.iter().map(String::as_str));
    let run = Run::container(1, &rootfs, &command);
    assert_eq!(output(&mut daemon, run), "19999\n");
}

#[test]
fn links_in_an_image_lead_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path();
    std::fs::write(canary.join("file"), "canary").unwrap();
    let before = canary.metadata().unwrap().mtime_nsec();
    let (_pod, mut daemon) = Pod::ready(false);
    for name in ["proc", "dev"] {
        for to in [
            canary.to_str().unwrap(),
            "/tmp",
            "../../../../tmp",
            "nowhere",
            "/",
        ] {
            let rootfs = Rootfs::new();
            std::fs::remove_dir(rootfs.path(name)).unwrap();
            symlink(to, rootfs.path(name)).unwrap();
            let reply = daemon.start(&Run::container(1, &rootfs, &["true"]));
            let step = if name == "proc" { 2 } else { 4 };
            assert!(
                matches!(reply, Reply::StepFailed { step: at, errno: 20 | 40 } if at == step),
                "{reply:?}"
            );
        }
    }
    // Where links may be followed they are, inside.
    let rootfs = Rootfs::new();
    symlink(canary, rootfs.path("data")).unwrap();
    symlink("/proc/1/root", rootfs.path("magic")).unwrap();
    symlink("../../../..", rootfs.path("up")).unwrap();
    let (data, magic) = (Rootfs::empty(), b"/magic/tmp/x\0");
    std::fs::write(data.path("inside"), "").unwrap();
    let script = format!("ls {} /made; busybox readlink /up/linked", canary.display());
    let command = ["sh", "-c", &script];
    let mut run = Run::container(1, &rootfs, &command);
    run.steps = vec![
        new_fs(b"tmpfs\0", b""),
        Step::Attach {
            mount: SLOT,
            target: b"/data\0",
            no_symlinks: false,
        },
        Step::Mkdir {
            path: b"/up/made/below\0",
            mode: 0o700,
        },
        Step::Symlink {
            target: b"x\0",
            path: b"/up/linked\0",
        },
    ];
    let text = output(&mut daemon, run);
    assert!(
        text.contains("/made:\nbelow\n") && text.ends_with("\nx\n"),
        "{text}"
    );
    let rootfs = Rootfs::new();
    symlink("/proc/1/root", rootfs.path("magic")).unwrap();
    let mut run = Run::container(2, &rootfs, &["true"]);
    run.steps = vec![Step::Mkdir {
        path: magic,
        mode: 0o755,
    }];
    let reply = daemon.start(&run);
    assert_eq!(reply, Reply::StepFailed { step: 6, errno: 40 });
    assert_eq!(std::fs::read_dir(canary).unwrap().count(), 1);
    assert_eq!(canary.metadata().unwrap().mtime_nsec(), before);
}

/// What a link in the image leads to may be another container's to exchange, if they share a volume.
#[test]
fn an_images_volume_lies_on_its_root_alone() {
    let (_pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    symlink("/vol", rootfs.path("a")).unwrap();
    std::fs::create_dir_all(rootfs.path("own")).unwrap();
    std::fs::write(rootfs.path("own/kept"), "").unwrap();
    symlink("/own", rootfs.path("linked")).unwrap();
    let script = "busybox cut -d' ' -f5 /proc/self/mountinfo; ls /own /deep";
    let command = ["sh", "-c", script];
    let mut run = Run::container(1, &rootfs, &command);
    run.steps = vec![
        new_fs(b"tmpfs\0", b""),
        attach(b"/vol\0"),
        Step::Symlink {
            target: b"/proc\0",
            path: b"/vol/x\0",
        },
        Step::Volume { path: b"/a/x\0" },
        Step::Volume { path: b"/a/y\0" },
        Step::Volume { path: b"/vol/z\0" },
        Step::Volume {
            path: b"/proc/self\0",
        },
        Step::Volume { path: b"/linked\0" },
        Step::Volume {
            path: b"/deep/new\0",
        },
    ];
    let text = output(&mut daemon, run);
    let (mounts, listed) = text.split_once("/deep:\n").unwrap();
    let volumes: Vec<&str> = mounts
        .lines()
        .filter(|at| !at.starts_with("/dev"))
        .collect();
    assert_eq!(listed, "new\n\n/own:\nkept\n", "{text}");
    assert_eq!(
        volumes,
        ["/", "/proc", "/vol", "/own", "/deep/new"],
        "{text}"
    );

    // Nor does anything else get onto a procfs by a link.
    let rootfs = Rootfs::new();
    symlink("/proc", rootfs.path("p")).unwrap();
    let mut run = Run::container(2, &rootfs, &["true"]);
    run.steps = vec![
        new_fs(b"tmpfs\0", b""),
        Step::Attach {
            mount: SLOT,
            target: b"/p/sys\0",
            no_symlinks: false,
        },
    ];
    assert_eq!(daemon.start(&run), Reply::StepFailed { step: 7, errno: 18 });
}

#[test]
fn masks_and_read_only_paths_hold() {
    let (_pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    std::fs::create_dir_all(rootfs.path("etc/secret")).unwrap();
    std::fs::write(rootfs.path("etc/secret/key"), "x").unwrap();
    std::fs::write(rootfs.path("etc/key"), "x").unwrap();
    let script = "ls /etc/secret /etc/other | busybox wc -w; cat /etc/key | busybox wc -c; \
        cat /proc/version | busybox wc -c; echo 1 2>&1 > /proc/sys/net/ipv4/ip_forward; echo x 2>&1 > /etc/secret/y; \
        echo x > /etc/key; echo ok > /tmp/z; cat /tmp/z; busybox umount /etc/key 2>&1; cat /etc/key";
    std::fs::create_dir_all(rootfs.path("etc/other/x")).unwrap();
    let command = ["sh", "-c", script];
    let mut run = Run::container(1, &rootfs, &command);
    run.steps = [
        &b"/etc/secret\0"[..],
        b"/etc/key\0",
        b"/proc/version\0",
        b"/etc/other\0",
        b"/nowhere/x\0",
    ]
    .iter()
    .map(|path| Step::Mask { path })
    .collect();
    run.steps.extend([
        Step::ReadOnly {
            path: b"/proc/sys\0",
        },
        Step::ReadOnly {
            path: b"/missing\0",
        },
        Step::SetAttr {
            path: b"/proc\0",
            set: 2,
            clear: 0,
            recursive: false,
        },
        Step::Propagation {
            path: b"/\0",
            propagation: 1 << 18,
            recursive: true,
        },
    ]);
    run.late_steps = vec![Step::BoundingSet { keep: 0 }];
    let text = output(&mut daemon, run);
    // Two folders' headings, no bytes of either file, and no way to undo it.
    let expected = "2\n0\n0\n\
        sh: can't create /proc/sys/net/ipv4/ip_forward: Read-only file system\n\
        sh: can't create /etc/secret/y: Read-only file system\n\
        ok\numount: can't unmount /etc/key: Operation not permitted\n";
    assert_eq!(text, expected);

    // A mask is a real /dev/null, or there is no start.
    let rootfs = Rootfs::new();
    std::fs::write(rootfs.path("etc/key"), "x").unwrap();
    let mut run = Run::container(2, &rootfs, &["true"]);
    run.steps = vec![
        new_fs(b"tmpfs\0", b""),
        attach(b"/dev\0"),
        Step::Symlink {
            target: b"/etc/key\0",
            path: b"/dev/null\0",
        },
        Step::Mask {
            path: b"/etc/key\0",
        },
    ];
    assert_eq!(daemon.start(&run), Reply::StepFailed { step: 9, errno: 40 });
    run.steps[2] = Step::Mknod {
        path: b"/dev/null\0",
        mode: 0o20666,
        major: 1,
        minor: 5,
        uid: 0,
        gid: 0,
    };
    let rootfs = Rootfs::new();
    std::fs::write(rootfs.path("etc/key"), "x").unwrap();
    run.rootfs = Some(&rootfs);
    assert_eq!(daemon.start(&run), Reply::StepFailed { step: 9, errno: 19 });
}

#[test]
fn devices_have_their_mode_and_owner() {
    let (_pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    let device = |path, minor| Step::Mknod {
        path,
        mode: 0o20666,
        major: 1,
        minor,
        uid: 5,
        gid: 6,
    };
    let mut run = Run::container(1, &rootfs, &["true"]);
    run.steps = vec![
        device(b"/etc/deep/zero\0", 5),
        device(b"/etc/deep/zero\0", 5),
        Step::Mkdir {
            path: b"/sticky\0",
            mode: 0o1777,
        },
    ];
    assert_eq!(daemon.run(&run), 0, "one that is there already is no error");
    let found = rootfs.path("etc/deep/zero").metadata().unwrap();
    assert!(found.file_type().is_char_device());
    assert_eq!(
        (
            found.mode() & 0o7777,
            found.uid(),
            found.gid(),
            found.rdev()
        ),
        (0o666, 5, 6, 0x105)
    );
    assert_eq!(
        rootfs.path("sticky").metadata().unwrap().mode() & 0o7777,
        0o1777
    );
    let rootfs = Rootfs::new();
    let mut run = Run::container(2, &rootfs, &["true"]);
    run.steps = vec![device(b"/dev/zero\0", 5), device(b"/dev/zero\0", 3)];
    assert_eq!(daemon.start(&run), Reply::StepFailed { step: 7, errno: 17 });
}

#[test]
fn a_terminal_is_the_console_and_the_log() {
    let (pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    let devpts = {
        use rustix::mount::*;
        let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&context, "ptmxmode", "0666").unwrap();
        fsconfig_create(&context).unwrap();
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .unwrap()
    };
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let master = rustix::fs::openat(&devpts, "ptmx", flags, rustix::fs::Mode::empty()).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY,
    )
    .unwrap();
    let script = "tty; test -t 0 && test -c /dev/console && echo terminal; echo on console > /dev/console; exit 3";
    symlink("busybox", rootfs.path("bin/tty")).unwrap();
    let command = ["sh", "-c", script];
    let mut run = Run::container(1, &rootfs, &command);
    run.steps = vec![
        Step::Attach {
            mount: FdIndex(7),
            target: b"/dev/pts\0",
            no_symlinks: true,
        },
        Step::Console { number: 0 },
    ];
    run.late_steps = vec![Step::ControllingTerminal];
    let log = File::options()
        .create(true)
        .append(true)
        .open(pod.folder.path().join("log"))
        .unwrap();
    let plan = run.plan();
    let start = Start {
        id: run.id,
        clone_flags: NEWNS,
        pid_namespace: PidNamespace::New,
        target: None,
        cgroup: None,
        plan: FdIndex(0),
        output: Output::Terminal {
            master: FdIndex(6),
            log: Some(FdIndex(4)),
        },
        stdin: None,
        init: true,
    };
    let slave_fd = slave.as_fd();
    let fds = [
        plan.as_fd(),
        slave_fd,
        slave_fd,
        slave_fd,
        log.as_fd(),
        rootfs.0.as_fd(),
        master.as_fd(),
        devpts.as_fd(),
    ];
    let reply = daemon.ask(RequestBody::Start(start), &fds).0;
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    drop(slave);
    assert_eq!(daemon.exit(run.id), code(3));
    let text = std::fs::read_to_string(pod.folder.path().join("log")).unwrap();
    let texts: Vec<_> = text
        .lines()
        .map(|line| line.splitn(4, ' ').nth(3).unwrap())
        .collect();
    assert_eq!(texts, ["/dev/pts/0", "terminal", "on console"], "{text}");
    // The number of a terminal that is none.
    let rootfs = Rootfs::new();
    let mut run = Run::container(2, &rootfs, &["true"]);
    run.steps = vec![Step::Console { number: 7 }];
    assert_eq!(daemon.start(&run), Reply::StepFailed { step: 6, errno: 2 });
}

/// No policy has this label, and a kernel without SELinux has none at all.
#[test]
fn what_has_no_label_does_not_run() {
    const LABEL: &[u8] = b"no_u:no_r:no_t:s0\0";
    let (_pod, mut daemon) = Pod::ready(false);
    let label = &LABEL[..LABEL.len() - 1];
    let run = |daemon: &mut Daemon, steps: Vec<Step<'_>>, late_steps: Vec<Step<'_>>| {
        let rootfs = Rootfs::new();
        daemon.start(&Run {
            steps,
            late_steps,
            ..Run::container(1, &rootfs, &["true"])
        })
    };
    let reply = run(&mut daemon, vec![], vec![Step::ExecLabel { label }]);
    // Without any security module there may be no file for it.
    let refused = matches!(
        reply,
        Reply::StepFailed {
            step: 8,
            errno: 22 | 2
        }
    );
    assert!(refused, "{reply:?}");
    let path = b"/tmp\0";
    let steps = vec![Step::MaskLabel { label: LABEL }, Step::Mask { path }];
    let reply = run(&mut daemon, steps, vec![]);
    let refused = matches!(reply, Reply::StepFailed { step: 7, errno: 22 });
    assert!(refused, "{reply:?}");
    // Root may give a tmpfs any; the mount is used up by it.
    let steps = vec![
        new_fs(b"tmpfs\0", b""),
        Step::RootLabel { mount: SLOT, label },
        attach(path),
    ];
    let reply = run(&mut daemon, steps, vec![]);
    let refused = matches!(reply, Reply::StepFailed { step: 8, errno: 9 });
    assert!(refused, "{reply:?}");
}
