//! A supervisor is killed, and another goes on with its pod. Needs root.

mod pod;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use carpel_wire::{Adopt, Entry, FdIndex, Held, PidNamespace, Reply, RequestBody};
use rustix::process::{
    Pid, WaitId, WaitIdOptions, WaitOptions, set_child_subreaper, waitid, waitpid,
};

use pod::*;

/// Orphans come to this process, as they do to the daemon.
fn be_subreaper() {
    set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// The containers of a pod with what their supervisor holds for them.
fn held(daemon: &mut Daemon) -> Vec<(Entry, Vec<OwnedFd>)> {
    let mut entries = daemon.list();
    entries.retain(|(entry, _)| entry.init);
    entries
}

fn adopt(daemon: &mut Daemon, (entry, fds): &(Entry, Vec<OwnedFd>)) -> Reply {
    let adopt = Adopt {
        id: entry.id,
        pid: entry.pid,
        started_at: entry.started_at,
        held: entry.held,
    };
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    daemon.ask(RequestBody::Adopt(adopt), &fds).0
}

/// Kills the supervisor and has another go on with what it held.
fn replace(mut pod: Pod, mut daemon: Daemon, shared: bool) -> (Pod, Daemon) {
    let (namespaces, held) = (pod.namespaces(), held(&mut daemon));
    pod.kill();
    let (mut pod, mut daemon) = pod.successor();
    for process in &held {
        assert_eq!(adopt(&mut daemon, process), Reply::Done);
        assert_eq!(adopt(&mut daemon, process), Reply::Exists);
    }
    pod.take_over(&mut daemon, &namespaces, shared);
    (pod, daemon)
}

fn reap(pid: u32) {
    waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::NOHANG)
        .unwrap()
        .unwrap();
}

/// Since Linux 6.15 a pidfd tells the code of a process that has been reaped.
fn keeps_exit_codes() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap();
    let numbers: Vec<u32> = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok())
        .take(2)
        .collect();
    numbers >= vec![6, 15]
}

fn log_file(pod: &Pod, name: &str) -> File {
    let mut options = File::options();
    let options = options.create(true).append(true).read(true);
    options.open(pod.folder.path().join(name)).unwrap()
}

/// The texts of the log's lines.
fn lines(pod: &Pod, name: &str) -> Vec<String> {
    let log = std::fs::read_to_string(pod.folder.path().join(name)).unwrap();
    let text = |line: &str| line.splitn(4, ' ').nth(3).unwrap().to_owned();
    log.lines().map(text).collect()
}

#[test]
fn lines_and_exit_codes_survive_three_supervisors() {
    be_subreaper();
    let (mut pod, mut daemon) = Pod::ready(false);
    let roots: Vec<_> = (0..4).map(|_| Rootfs::new()).collect();
    let scripts: Vec<_> = (1..=4)
        .map(|n| format!("i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; busybox usleep 10000; done; exit {n}"))
        .collect();
    let logs: Vec<_> = (1..=4).map(|n| log_file(&pod, &n.to_string())).collect();
    for (number, ((rootfs, script), log)) in (1..).zip(roots.iter().zip(&scripts).zip(&logs)) {
        let command = ["sh", "-c", script];
        let mut run = Run::container(number, rootfs, &command);
        run.log = Some(log);
        assert!(matches!(daemon.start(&run), Reply::Started { .. }));
    }
    let pids: Vec<_> = held(&mut daemon)
        .iter()
        .map(|(entry, _)| entry.pid)
        .collect();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(70));
        (pod, daemon) = replace(pod, daemon, false);
    }
    let now: Vec<_> = held(&mut daemon)
        .iter()
        .map(|(entry, _)| entry.pid)
        .collect();
    assert_eq!(now, pids);
    assert_eq!(daemon.run(&Run::exec(9, 1, &["true"])), 0);
    for number in 1..=4_u8 {
        assert_eq!(daemon.exit(id(number)), code(number.into()));
        assert_eq!(daemon.forget(id(number)), Reply::Done);
        let found = lines(&pod, &number.to_string());
        // One that a supervisor had read when it was killed may be missing, and only such a one.
        let numbers: Vec<u32> = found.iter().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        assert!(
            numbers.len() >= 57 && numbers.last() == Some(&60),
            "{numbers:?}"
        );
    }
    let mut exits: Vec<_> = pod
        .exits()
        .iter()
        .map(|exit| (exit.id, exit.wait_status))
        .collect();
    exits.sort_unstable();
    let expected: Vec<_> = (1..=4).map(|n| (id(n), code(n.into()))).collect();
    assert_eq!(exits, expected);
    assert_eq!(daemon.ask(RequestBody::Shutdown, &[]).0, Reply::Done);
}

#[test]
fn a_container_that_exits_while_there_is_no_supervisor_has_its_code_and_its_lines() {
    be_subreaper();
    for reaped in [false, true] {
        let (mut pod, mut daemon) = Pod::ready(false);
        let (rootfs, log) = (Rootfs::new(), log_file(&pod, "log"));
        let command = [
            "sh",
            "-c",
            "busybox usleep 100000; seq 1 3000; echo -n rest; exit 77",
        ];
        let mut run = Run::container(1, &rootfs, &command);
        run.log = Some(&log);
        assert!(matches!(daemon.start(&run), Reply::Started { .. }));
        let (namespaces, held) = (pod.namespaces(), held(&mut daemon));
        pod.kill();
        let how = if reaped {
            WaitIdOptions::EXITED
        } else {
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT
        };
        let pidfd = WaitId::PidFd(held[0].1[0].as_fd());
        waitid(pidfd, how).unwrap().unwrap();
        let (mut pod, mut daemon) = pod.successor();
        assert_eq!(adopt(&mut daemon, &held[0]), Reply::Done);
        pod.take_over(&mut daemon, &namespaces, false);
        let found = daemon.exit(id(1));
        let kept = !reaped || keeps_exit_codes();
        assert_eq!(
            found,
            if kept {
                code(77)
            } else {
                carpel_wire::UNKNOWN_STATUS
            }
        );
        let mut expected: Vec<_> = (1..=3000).map(|n: u32| n.to_string()).collect();
        expected.push("rest".to_owned());
        assert_eq!(lines(&pod, "log"), expected);
        assert_eq!(pod.exits()[0].wait_status, found);
    }
}

#[test]
fn signals_are_told_exactly() {
    be_subreaper();
    let (pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    assert!(matches!(
        daemon.start(&Run::container(1, &rootfs, &["sleep", "1000"])),
        Reply::Started { .. }
    ));
    let (pod, mut daemon) = replace(pod, daemon, false);
    assert_eq!(daemon.forget(id(1)), Reply::Busy);
    assert_eq!(daemon.ask(RequestBody::Shutdown, &[]).0, Reply::Busy);
    assert_eq!(daemon.signal(id(1), 9), Reply::Done);
    assert_eq!(daemon.exit(id(1)), 9);
    assert_eq!(daemon.signal(id(1), 9), Reply::NotFound);
    // It runs no more, and a new one can be started where it was.
    let rootfs = Rootfs::new();
    assert_eq!(daemon.forget(id(1)), Reply::Done);
    assert_eq!(daemon.run(&Run::container(1, &rootfs, &["true"])), 0);
    drop(pod);
}

#[test]
fn a_successor_is_in_the_namespaces_of_the_first() {
    be_subreaper();
    let (pod, mut daemon) = Pod::ready(true);
    let rootfs = Rootfs::new();
    let mut run = Run::container(1, &rootfs, &["sleep", "1000"]);
    run.pid_namespace = PidNamespace::Pod;
    assert!(matches!(daemon.start(&run), Reply::Started { .. }));
    let links = |pod: &Pod| {
        let pid = pod.pid.unwrap();
        ["mnt", "net", "ipc", "uts", "cgroup"]
            .map(|name| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap())
    };
    let mounts = |pod: &Pod| {
        std::fs::read_to_string(format!("/proc/{}/mountinfo", pod.pid.unwrap())).unwrap()
    };
    let before = (links(&pod), mounts(&pod));
    let reaper = pod.reaper.as_ref().unwrap().0;
    let pid = held(&mut daemon)[0].0.pid;
    let (pod, mut daemon) = replace(pod, daemon, true);
    assert_eq!((links(&pod), mounts(&pod)), before);
    assert_eq!(
        pod.reaper.as_ref().unwrap().0,
        reaper,
        "the reaper lives on"
    );
    // Old and new see each other.
    let rootfs = Rootfs::new();
    let mut run = Run::container(
        2,
        &rootfs,
        &[
            "sh",
            "-c",
            "cat /proc/[0-9]*/comm | busybox grep -c sleep; busybox hostname",
        ],
    );
    run.pid_namespace = PidNamespace::Pod;
    let (text, status) = output_of(&mut daemon, run);
    assert_eq!((text.as_str(), status), ("1\na-pod\n", 0));
    assert_eq!(daemon.signal(id(1), 15), Reply::Done);
    assert_eq!(daemon.exit(id(1)), 15);
    // Until its zombie is gone, which is this process's to reap, the reaper cannot end.
    reap(pid);
    assert_eq!(daemon.ask(RequestBody::Shutdown, &[]).0, Reply::Done);
    let gone = waitid(
        WaitId::PidFd(pod.reaper.as_ref().unwrap().1.as_fd()),
        WaitIdOptions::EXITED,
    );
    assert!(gone.unwrap().is_some(), "the reaper ends with the pod");
}

#[test]
fn a_dead_reaper_is_replaced() {
    be_subreaper();
    let (mut pod, _daemon) = Pod::ready(true);
    let (first, pidfd) = pod.reaper.take().unwrap();
    let namespaces = pod.namespaces();
    pod.kill();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
    let (mut pod, mut daemon) = pod.successor();
    pod.take_over(&mut daemon, &namespaces, true);
    assert_ne!(pod.reaper.as_ref().unwrap().0, first);
    let rootfs = Rootfs::new();
    let mut run = Run::container(1, &rootfs, &["true"]);
    run.pid_namespace = PidNamespace::Pod;
    assert_eq!(daemon.run(&run), 0);
}

#[test]
fn nonsense_is_not_adopted() {
    let (pod, mut daemon) = Pod::ready(false);
    let null = OwnedFd::from(File::open("/dev/null").unwrap());
    let held = |pidfd, stream| Held {
        pidfd,
        streams: [stream, None],
        ..Held::default()
    };
    let index = |number| Some(carpel_wire::FdIndex(number));
    for held in [
        held(None, None),
        held(index(3), None),
        held(index(0), index(0)),
        held(index(0), index(9)),
    ] {
        let adopt = Adopt {
            id: id(1),
            pid: 1,
            started_at: 0,
            held,
        };
        assert_eq!(
            daemon.ask(RequestBody::Adopt(adopt), &[null.as_fd()]).0,
            Reply::Malformed
        );
    }
    // What cannot be watched is no pidfd.
    let adopt = Adopt {
        id: id(1),
        pid: 1,
        started_at: 0,
        held: held(index(0), None),
    };
    let reply = daemon.ask(RequestBody::Adopt(adopt), &[null.as_fd()]).0;
    assert!(
        matches!(reply, Reply::CallFailed { errno: 1, .. }),
        "{reply:?}"
    );
    assert!(daemon.list().is_empty());
    drop(pod);
}

#[test]
fn those_who_were_attached_are_told_and_attach_anew() {
    be_subreaper();
    let (pod, mut daemon) = Pod::ready(false);
    let (rootfs, command) = (Rootfs::new(), ["sh", "-c", "read go; echo gone"]);
    let mut run = Run::container(1, &rootfs, &command);
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    run.stdin = Some(pipe());
    assert!(matches!(daemon.start(&run), Reply::Started { .. }));
    let attach = |daemon: &mut Daemon| {
        let (read, write) = pipe();
        let attach = RequestBody::Attach {
            id: id(1),
            stdout: Some(FdIndex(0)),
            stderr: None,
        };
        assert_eq!(daemon.ask(attach, &[write.as_fd()]).0, Reply::Done);
        File::from(read)
    };
    let first = attach(&mut daemon);
    let (_pod, mut daemon) = replace(pod, daemon, false);
    assert_eq!(std::io::read_to_string(first).unwrap(), "");
    let second = attach(&mut daemon);
    // As long as it is not closed it stays open, with the new supervisor too.
    drop(run);
    let close = RequestBody::CloseStdin { id: id(1) };
    assert_eq!(daemon.ask(close, &[]).0, Reply::Done);
    assert_eq!(std::io::read_to_string(second).unwrap(), "gone\n");
    assert_eq!(daemon.exit(id(1)), 0);
}
