//! Logs are exact: under load, across rotation, across daemons, on a full disk. Needs root.

mod pod;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use carpel_wire::{FdIndex, Reply, RequestBody};
use rustix::fs::{FallocateFlags, fallocate};

use pod::*;

fn log_at(path: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

/// The texts of a log's lines of one stream, with their tags; panics on a line that is none.
fn lines(log: &str, stream: &str) -> Vec<(String, String)> {
    assert!(log.is_empty() || log.ends_with('\n'));
    let mut found = Vec::new();
    for line in log.lines() {
        let mut parts = line.splitn(4, ' ');
        let (time, name, tag, text) = (
            parts.next().unwrap(),
            parts.next().unwrap(),
            parts.next().unwrap(),
            parts.next().unwrap(),
        );
        assert!(
            time.len() == 30 && time.starts_with("20") && time.ends_with('Z'),
            "{line}"
        );
        assert!(
            ["stdout", "stderr"].contains(&name) && ["F", "P"].contains(&tag),
            "{line}"
        );
        if name == stream {
            found.push((tag.to_owned(), text.to_owned()));
        }
    }
    found
}

fn texts(log: &str, stream: &str) -> Vec<String> {
    lines(log, stream)
        .into_iter()
        .map(|(_, text)| text)
        .collect()
}

#[test]
fn both_streams_are_whole_at_the_exit() {
    let (pod, mut daemon) = Pod::ready(false);
    let path = pod.folder.path().join("log");
    let script = "seq 1 200000; seq 1 1000 >&2; printf 'no newline'; exit 4";
    let (rootfs, log, command) = (Rootfs::new(), log_at(&path), ["sh", "-c", script]);
    let mut run = Run::container(1, &rootfs, &command);
    run.log = Some(&log);
    assert_eq!(daemon.run(&run), code(4));
    let log = std::fs::read_to_string(&path).unwrap();
    let mut expected: Vec<_> = (1..=200_000).map(|n| n.to_string()).collect();
    expected.push("no newline".to_owned());
    let out = lines(&log, "stdout");
    assert_eq!(out.last().unwrap().0, "P");
    assert_eq!(texts(&log, "stdout"), expected);
    expected.truncate(1000);
    assert_eq!(texts(&log, "stderr"), expected);
}

#[test]
fn nothing_is_lost_by_rotation_or_another_daemon() {
    let (pod, mut daemon) = Pod::ready(false);
    let path = |n: usize| pod.folder.path().join(format!("log.{n}"));
    let rootfs = Rootfs::new();
    let log = log_at(&path(0));
    let mut run = Run::container(1, &rootfs, &["seq", "1", "3000000"]);
    run.log = Some(&log);
    let reply = daemon.start(&run);
    assert!(matches!(reply, Reply::Started { .. }));
    let first = run.id;
    let mut rotations = 0;
    loop {
        rotations += 1;
        if rotations % 3 == 0 {
            daemon = pod.connect();
        }
        let log = log_at(&path(rotations));
        let request = RequestBody::ReopenLog {
            id: first,
            log: FdIndex(0),
        };
        assert_eq!(daemon.ask(request, &[log.as_fd()]).0, Reply::Done);
        if daemon.list()[0].0.exited.is_some() {
            break;
        }
    }
    let all: String = (0..=rotations)
        .map(|n| std::fs::read_to_string(path(n)).unwrap())
        .collect();
    let found = texts(&all, "stdout");
    assert_eq!(found.len(), 3_000_000, "{rotations} rotations");
    assert!(
        found
            .iter()
            .zip(1..)
            .all(|(text, n)| *text == n.to_string())
    );
    println!("{rotations} rotations");
    assert_eq!(daemon.list()[0].0.dropped_lines, 0);
}

#[test]
fn a_full_disk_drops_and_counts_lines_and_stops_nobody() {
    let (_pod, mut daemon) = Pod::ready(false);
    let disk = {
        use rustix::mount::*;
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&context, "size", "256k").unwrap();
        fsconfig_create(&context).unwrap();
        Rootfs(
            fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::empty(),
            )
            .unwrap(),
        )
    };
    let (rootfs, log) = (Rootfs::new(), log_at(&disk.path("log")));
    let script = "seq 1 100000; sleep 1000";
    let command = ["sh", "-c", script];
    let mut run = Run::container(1, &rootfs, &command);
    run.log = Some(&log);
    assert!(matches!(daemon.start(&run), Reply::Started { .. }));
    let counted = |daemon: &mut Daemon| {
        let text = std::fs::read_to_string(disk.path("log")).unwrap();
        // A line that the disk cut short is seen until the supervisor has taken it back.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        (
            texts(&text[..whole], "stdout").len() as u64,
            daemon.list()[0].0.dropped_lines,
        )
    };
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    let (written, dropped) = loop {
        let (written, dropped) = counted(&mut daemon);
        if written + dropped == 100_000 {
            break (written, dropped);
        }
        assert!(Instant::now() < deadline, "{written} {dropped}");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(written > 1000 && dropped > 1000, "{written} {dropped}");
    assert!(
        std::fs::read_to_string(disk.path("log"))
            .unwrap()
            .ends_with('\n')
    );
    // Room again: it goes on by itself.
    fallocate(&log, FallocateFlags::empty(), 0, 1).unwrap();
    rustix::fs::ftruncate(&log, 0).unwrap();
    let mut run = Run::exec(2, 1, &["sh", "-c", "echo again > /proc/1/fd/1"]);
    run.steps.clear();
    run.steps.push(carpel_wire::Step::SetNs {
        pidfd: FdIndex::TARGET,
        flags: NEWNS,
    });
    assert_eq!(daemon.run(&run), 0);
    let deadline = Instant::now() + patience(Duration::from_secs(5));
    while counted(&mut daemon).0 != 1 {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(daemon.signal(id(1), 9), Reply::Done);
    assert_eq!(daemon.exit(id(1)), 9);
}

#[test]
fn output_goes_on_after_the_exit_while_somebody_holds_the_pipe() {
    let (pod, mut daemon) = Pod::ready(true);
    let path = pod.folder.path().join("log");
    let (rootfs, log) = (Rootfs::new(), log_at(&path));
    let script = "(while :; do echo x; done) & sleep 0.1; printf last >&2";
    let command = ["sh", "-c", script];
    let mut run = Run::container(1, &rootfs, &command);
    run.log = Some(&log);
    // In the pod's PID namespace a child outlives its container's first process.
    run.pid_namespace = carpel_wire::PidNamespace::Pod;
    assert!(matches!(daemon.start(&run), Reply::Started { .. }));
    assert_eq!(daemon.exit(run.id), 0);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        lines(&text, "stderr"),
        [("P".to_owned(), "last".to_owned())]
    );
    let before = path.metadata().unwrap().len();
    std::thread::sleep(Duration::from_millis(50));
    assert!(path.metadata().unwrap().len() > before);
    assert_eq!(daemon.forget(run.id), Reply::Done);
    let after = path.metadata().unwrap().len();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(path.metadata().unwrap().len(), after);
    assert_eq!(daemon.ask(RequestBody::Shutdown, &[]).0, Reply::Done);
}

#[test]
fn a_flood_starves_nobody() {
    let (_pod, mut daemon) = Pod::ready(false);
    let floods: Vec<_> = (1..=4).map(|n| (n, Rootfs::new())).collect();
    let null = File::options().append(true).open("/dev/null").unwrap();
    for (number, rootfs) in &floods {
        let mut run = Run::container(*number, rootfs, &["yes"]);
        run.log = Some(&null);
        assert!(matches!(daemon.start(&run), Reply::Started { .. }));
    }
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(daemon.run(&Run::exec(9, 1, &["true"])), 0);
            begin.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "exec under four floods: p50 {:?}, slowest {:?}",
        times[25], times[49]
    );
    assert!(times[25] < patience(Duration::from_secs(2)));
    for (number, _) in &floods {
        assert_eq!(daemon.signal(id(*number), 9), Reply::Done);
        assert_eq!(daemon.exit(id(*number)), 9);
    }
}
