//! Attached pipes get what the log gets, and neither container nor log knows of them. Sockets of the pod's
//! network. Needs root.

mod pod;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use carpel_wire::{Family, FdIndex, PidNamespace, Reply, RequestBody};
use rustix::net::{bind, connect, getsockname, listen};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use pod::*;

/// Ends of a pipe of this size: read, write.
fn pipe(size: usize) -> (File, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setpipe_size(&write, size).unwrap();
    (read.into(), write)
}

const WIDE: usize = 1 << 20;

fn request(number: u8, stdout: Option<u16>, stderr: Option<u16>) -> RequestBody {
    RequestBody::Attach {
        id: id(number),
        stdout: stdout.map(FdIndex),
        stderr: stderr.map(FdIndex),
    }
}

/// Attaches a pipe of this size to the stdout of a container.
fn attach_sized(daemon: &mut Daemon, number: u8, size: usize) -> File {
    let (read, write) = pipe(size);
    let reply = daemon.ask(request(number, Some(0), None), &[write.as_fd()]);
    assert_eq!(reply.0, Reply::Done);
    read
}

fn attach(daemon: &mut Daemon, number: u8) -> File {
    attach_sized(daemon, number, WIDE)
}

fn log_at(path: &Path) -> File {
    let mut options = File::options();
    options.create(true).append(true).open(path).unwrap()
}

fn texts(path: &Path, stream: &str) -> String {
    let log = std::fs::read_to_string(path).unwrap();
    let lines = log.lines().filter_map(|line| {
        let mut parts = line.splitn(4, ' ').skip(1);
        let found = parts.next() == Some(stream);
        found.then(|| format!("{}\n", parts.nth(1).unwrap()))
    });
    lines.collect()
}

/// Starts a container with a log and a stdin whose write end is returned.
fn start(
    daemon: &mut Daemon,
    rootfs: &Rootfs,
    number: u8,
    script: &str,
    log: Option<&File>,
) -> File {
    let command = ["sh", "-c", script];
    let mut run = Run::container(number, rootfs, &command);
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let ours = write.try_clone().unwrap();
    (run.stdin, run.log) = (Some((read, write)), log);
    let reply = daemon.start(&run);
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    ours.into()
}

fn rest(mut pipe: &File) -> String {
    let mut text = String::new();
    pipe.read_to_string(&mut text).unwrap();
    text
}

fn line(mut pipe: &File) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while text.last() != Some(&b'\n') && pipe.read(&mut byte).unwrap() == 1 {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

fn numbers(last: u32) -> String {
    (1..=last).map(|n| format!("{n}\n")).collect()
}

fn descriptors(pod: &Pod) -> usize {
    let folder = format!("/proc/{}/fd", pod.pid.unwrap());
    std::fs::read_dir(folder).unwrap().count()
}

/// Waits until the supervisor holds so many descriptors.
fn await_descriptors(pod: &Pod, daemon: &mut Daemon, expected: usize) {
    daemon.list_until(|_| descriptors(pod) == expected);
}

#[test]
fn those_who_are_attached_get_both_streams_to_their_end() {
    let (pod, mut daemon) = Pod::ready(false);
    let path = pod.folder.path().join("log");
    let (rootfs, log) = (Rootfs::new(), log_at(&path));
    let script = "read go; seq 1 100000; seq 1 1000 >&2; exit 4";
    let mut stdin = start(&mut daemon, &rootfs, 1, script, Some(&log));
    let first = attach(&mut daemon, 1);
    let ((out, out_write), (err, err_write)) = (pipe(WIDE), pipe(WIDE));
    let both = [err_write.as_fd(), out_write.as_fd()];
    let reply = daemon.ask(request(1, Some(1), Some(0)), &both);
    assert_eq!(reply.0, Reply::Done);
    drop((out_write, err_write));
    stdin.write_all(b"go\n").unwrap();
    assert_eq!(daemon.exit(id(1)), code(4));
    for pipe in [&first, &out] {
        assert_eq!(rest(pipe), numbers(100_000));
    }
    assert_eq!(rest(&err), numbers(1000));
    assert_eq!(texts(&path, "stdout"), numbers(100_000));
    assert_eq!(texts(&path, "stderr"), numbers(1000));
}

#[test]
fn what_an_attached_one_sees_is_in_the_log() {
    let (pod, mut daemon) = Pod::ready(false);
    let path = pod.folder.path().join("log");
    let (rootfs, log) = (Rootfs::new(), log_at(&path));
    let script = "while read n; do echo $n; done";
    let mut stdin = start(&mut daemon, &rootfs, 1, script, Some(&log));
    let pipe = attach(&mut daemon, 1);
    for n in 1..=200 {
        writeln!(stdin, "{n}").unwrap();
        assert_eq!(line(&pipe), format!("{n}\n"));
        assert_eq!(texts(&path, "stdout"), numbers(n));
    }
    // Without a log it is no different.
    let (rootfs, script) = (Rootfs::new(), "read go; echo gone");
    let mut stdin = start(&mut daemon, &rootfs, 2, script, None);
    let pipe = attach(&mut daemon, 2);
    stdin.write_all(b"go\n").unwrap();
    assert_eq!(rest(&pipe), "gone\n");
}

#[test]
fn a_slow_reader_misses_bytes_and_nobody_waits_for_it() {
    let (pod, mut daemon) = Pod::ready(false);
    let path = pod.folder.path().join("log");
    let (rootfs, log) = (Rootfs::new(), log_at(&path));
    let script = "read go; seq 1 100000; read go; echo last";
    let mut stdin = start(&mut daemon, &rootfs, 1, script, Some(&log));
    let slow = attach_sized(&mut daemon, 1, 4096);
    let fast = attach(&mut daemon, 1);
    stdin.write_all(b"go\n").unwrap();
    let expected = numbers(100_000);
    let mut seen = vec![0; expected.len()];
    (&fast).read_exact(&mut seen).unwrap();
    assert_eq!(seen, expected.as_bytes());
    assert_eq!(texts(&path, "stdout"), expected);
    // It has what fitted, and gets what comes when there is room again.
    let mut seen = vec![0; 4096];
    (&slow).read_exact(&mut seen).unwrap();
    assert_eq!(seen, &expected.as_bytes()[..4096]);
    stdin.write_all(b"go\n").unwrap();
    assert_eq!(daemon.exit(id(1)), 0);
    assert_eq!(rest(&slow), "last\n");
    assert_eq!(rest(&fast), "last\n");
}

#[test]
fn a_reader_that_vanishes_leaves_nothing() {
    let (pod, mut daemon) = Pod::ready(false);
    let path = pod.folder.path().join("log");
    let (rootfs, log) = (Rootfs::new(), log_at(&path));
    let script = "while read n; do seq 1 $n; done";
    let mut stdin = start(&mut daemon, &rootfs, 1, script, Some(&log));
    let before = descriptors(&pod);
    // Many more than there is room for, of a container that says nothing.
    for _ in 0..500 {
        drop(attach(&mut daemon, 1));
    }
    await_descriptors(&pod, &mut daemon, before);
    // In the midst of output, beside one that stays.
    let (stays, goes) = (attach(&mut daemon, 1), attach_sized(&mut daemon, 1, 4096));
    writeln!(stdin, "100000").unwrap();
    line(&goes);
    drop(goes);
    let reply = daemon.ask(RequestBody::CloseStdin { id: id(1) }, &[]);
    assert_eq!(reply.0, Reply::Done);
    drop(stdin);
    assert_eq!(daemon.exit(id(1)), 0);
    assert_eq!(rest(&stays), numbers(100_000));
    assert_eq!(texts(&path, "stdout"), numbers(100_000));
}

#[test]
fn there_is_room_for_so_many() {
    let (pod, mut daemon) = Pod::ready(false);
    let roots: Vec<_> = (1..=3).map(|n| (n, Rootfs::new())).collect();
    let script = "read go; echo out; echo err >&2";
    let mut stdins: Vec<_> = roots
        .iter()
        .map(|(number, rootfs)| start(&mut daemon, rootfs, *number, script, None))
        .collect();
    let fill = |daemon: &mut Daemon, number, stdout, stderr| {
        let mut pipes = Vec::new();
        loop {
            let (read, write) = pipe(4096);
            match daemon
                .ask(request(number, stdout, stderr), &[write.as_fd()])
                .0
            {
                Reply::Done => pipes.push(read),
                Reply::Full => return pipes,
                other => panic!("{other:?}"),
            }
        }
    };
    let before = descriptors(&pod);
    let err_of_1 = fill(&mut daemon, 1, None, Some(0));
    assert_eq!(err_of_1.len(), 16);
    // Both or none.
    let ((out, out_write), (err, err_write)) = (pipe(4096), pipe(4096));
    let both = [out_write.as_fd(), err_write.as_fd()];
    let reply = daemon.ask(request(1, Some(0), Some(1)), &both);
    assert_eq!(reply.0, Reply::Full);
    drop((out_write, err_write));
    assert_eq!(rest(&out) + &rest(&err), "");
    let out_of_1 = fill(&mut daemon, 1, Some(0), None);
    let of_2 = [
        fill(&mut daemon, 2, Some(0), None),
        fill(&mut daemon, 2, None, Some(0)),
    ];
    assert_eq!(fill(&mut daemon, 3, Some(0), None).len(), 0);
    for stdin in &mut stdins {
        stdin.write_all(b"go\n").unwrap();
    }
    for pipes in [&out_of_1, &of_2[0]] {
        assert!(pipes.iter().all(|pipe| rest(pipe) == "out\n"));
    }
    for pipes in [&err_of_1, &of_2[1]] {
        assert!(pipes.iter().all(|pipe| rest(pipe) == "err\n"));
    }
    for number in 1..=3 {
        assert_eq!(daemon.exit(id(number)), 0);
        assert_eq!(daemon.forget(id(number)), Reply::Done);
    }
    assert!(descriptors(&pod) < before);
}

#[test]
fn the_end_of_a_stream_is_told() {
    let (pod, mut daemon) = Pod::ready(true);
    let rootfs = Rootfs::new();
    let script = "read go; echo before; exec >&-; read go; sleep 1000 >&2 & exit 3";
    let command = ["sh", "-c", script];
    let mut run = Run::container(1, &rootfs, &command);
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut stdin = File::from(write.try_clone().unwrap());
    run.stdin = Some((read, write));
    // In the pod's PID namespace a child outlives its container's first process, here with its stderr.
    run.pid_namespace = PidNamespace::Pod;
    assert!(matches!(daemon.start(&run), Reply::Started { .. }));
    let out = attach(&mut daemon, 1);
    let (err, err_write) = pipe(4096);
    let reply = daemon.ask(request(1, None, Some(0)), &[err_write.as_fd()]);
    assert_eq!(reply.0, Reply::Done);
    drop(err_write);
    stdin.write_all(b"go\n").unwrap();
    assert_eq!(rest(&out), "before\n");
    // One that comes later learns it at once.
    assert_eq!(rest(&attach(&mut daemon, 1)), "");
    stdin.write_all(b"go\n").unwrap();
    assert_eq!(daemon.exit(id(1)), code(3));
    assert_eq!(daemon.forget(id(1)), Reply::Done);
    assert_eq!(rest(&err), "");
    let reply = daemon.ask(request(1, None, None), &[]);
    assert_eq!(reply.0, Reply::NotFound);
    let reply = daemon.ask(RequestBody::Shutdown, &[]);
    assert_eq!(reply.0, Reply::Done);
    drop(pod);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let (_pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    let _stdin = start(&mut daemon, &rootfs, 1, "read go", None);
    let (_read, write) = pipe(4096);
    for (stdout, stderr) in [(Some(1), None), (Some(0), Some(0)), (None, Some(250))] {
        let reply = daemon.ask(request(1, stdout, stderr), &[write.as_fd()]);
        assert_eq!(reply.0, Reply::Malformed);
    }
    let reply = daemon.ask(request(2, Some(0), None), &[write.as_fd()]);
    assert_eq!(reply.0, Reply::NotFound);
    let reply = daemon.ask(RequestBody::CloseStdin { id: id(2) }, &[]);
    assert_eq!(reply.0, Reply::NotFound);
}

#[test]
fn a_stdin_that_is_closed_has_ended() {
    let (_pod, mut daemon) = Pod::ready(false);
    let rootfs = Rootfs::new();
    let mut stdin = start(&mut daemon, &rootfs, 1, "cat; echo end", None);
    let pipe = attach(&mut daemon, 1);
    stdin.write_all(b"text\n").unwrap();
    drop(stdin);
    assert_eq!(line(&pipe), "text\n");
    assert!(daemon.list()[0].0.held.stdin.is_some());
    for _ in 0..2 {
        let reply = daemon.ask(RequestBody::CloseStdin { id: id(1) }, &[]);
        assert_eq!(reply.0, Reply::Done);
    }
    assert_eq!(rest(&pipe), "end\n");
    assert_eq!(daemon.exit(id(1)), 0);
    assert!(daemon.list()[0].0.held.stdin.is_none());
}

#[test]
fn a_socket_belongs_to_the_pods_network() {
    let (pod, mut daemon) = Pod::ready(false);
    let before = descriptors(&pod);
    for (family, address) in [
        (Family::Ipv4, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        (Family::Ipv6, SocketAddr::from((Ipv6Addr::LOCALHOST, 0))),
    ] {
        let mut socket = || {
            let (reply, mut fds) = daemon.ask(RequestBody::Socket { family }, &[]);
            assert_eq!((reply, fds.len()), (Reply::Done, 1));
            fds.remove(0)
        };
        let (listener, client) = (socket(), socket());
        bind(&listener, &address).unwrap();
        listen(&listener, 1).unwrap();
        let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
        // It does not wait; on the loopback interface it is connected at once nevertheless.
        let connected = connect(&client, &address);
        assert!(matches!(
            connected,
            Ok(()) | Err(rustix::io::Errno::INPROGRESS)
        ));
        let accepted = loop {
            match rustix::net::accept(&listener) {
                Err(rustix::io::Errno::AGAIN) => std::thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        rustix::io::write(&accepted, b"hello").unwrap();
        let mut bytes = [0; 8];
        let read = loop {
            match rustix::io::read(&client, &mut bytes) {
                Err(rustix::io::Errno::AGAIN) => std::thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        assert_eq!(&bytes[..read], b"hello");
        // This process is not in that network.
        assert!(std::net::TcpStream::connect(address).is_err());
    }
    // Its own copy of a socket it closes after it has sent it.
    await_descriptors(&pod, &mut daemon, before);
}
