//! Exec over SPDY, in the shape of what kubectl (through the kubelet) and crictl send.

use std::time::{Duration, Instant};

use carpel_integration::streams::spdy::{COMMAND, Command, End, Spdy, Wanted};
use carpel_integration::streams::urls::{exec, exec_on_terminal, exec_with_input};
use carpel_integration::streams::{Outcome, Ran};
use carpel_integration::v1::ExecRequest;
use carpel_integration::{TestNode, host};
use sha2::{Digest, Sha256};

use crate::node_with_container;

const INPUT: Wanted = Wanted {
    stdin: true,
    ..Wanted::OUTPUT
};

async fn connect(node: &TestNode, request: ExecRequest, wanted: Wanted) -> Command {
    let url = node.exec_url(request).await;
    Command::connect(&node.net, &url, &COMMAND, wanted).await
}

async fn run(node: &TestNode, request: ExecRequest, wanted: Wanted, input: &[u8]) -> Ran {
    let command = connect(node, request, wanted).await;
    command.run(input).await
}

#[tokio::test]
async fn output_errors_and_exit_code_come_back() {
    let (node, _, id) = node_with_container().await;
    let request = exec(&id, "echo out; echo err >&2; exit 42");
    let command = connect(&node, request, Wanted::OUTPUT).await;
    assert_eq!(command.spdy.protocol, "v4.channel.k8s.io");
    let ran = command.run(b"").await;
    assert_eq!(
        (ran.stdout(), ran.stderr()),
        ("out\n".into(), "err\n".into())
    );
    assert_eq!(ran.outcome(), Outcome::ExitCode(42));
    let ran = run(&node, exec(&id, "true"), Wanted::OUTPUT, b"").await;
    assert_eq!(ran.outcome(), Outcome::Success);
    let ran = run(&node, exec(&id, "kill -9 $$"), Wanted::OUTPUT, b"").await;
    assert_eq!(ran.outcome(), Outcome::ExitCode(137));
    node.finish().await;
}

#[tokio::test]
async fn input_ends_where_the_client_says() {
    let (node, _, id) = node_with_container().await;
    let request = exec_with_input(&id, "cat; echo done");
    let mut command = connect(&node, request, INPUT).await;
    let stdin = command.stdin.take().unwrap();
    let stdout = command.stdout.as_mut().unwrap();
    stdin.send(b"hello", false).await.unwrap();
    assert_eq!(stdout.read_until(|bytes| bytes.len() >= 5).await, b"hello");
    stdin.send(b"\n", true).await.unwrap();
    let ran = command.run(b"").await;
    assert_eq!(ran.stdout(), "\ndone\n");
    assert_eq!(ran.outcome(), Outcome::Success);
    node.finish().await;
}

/// To kubectl a connection that ends without a word is a command that has succeeded: it exited with 0 when carpel
/// was upgraded under it.
#[tokio::test]
async fn a_client_is_told_that_the_daemon_stops() {
    let (mut node, pod, id) = node_with_container().await;
    let request = exec(&id, "echo ready; exec sleep 1000");
    let mut command = connect(&node, request, Wanted::OUTPUT).await;
    let stdout = command.stdout.as_mut().unwrap();
    stdout.read_until(|bytes| bytes.ends_with(b"ready\n")).await;
    let begin = Instant::now();
    let (exit, ran) = tokio::join!(node.terminate_daemon(), command.run(b""));
    assert!(exit.success(), "the daemon ended with {exit}");
    let outcome = ran.outcome();
    let told =
        matches!(&outcome, Outcome::Failed(text) if text.contains("carpel is being stopped"));
    assert!(told, "{outcome:?}");
    assert!(begin.elapsed() < host::patience(Duration::from_secs(1)));
    node.start_daemon(None).await;
    assert_eq!(node.pods().await[0].id, pod.id);
    let ran = run(&node, exec(&id, "echo again"), Wanted::OUTPUT, b"").await;
    assert_eq!(ran.stdout(), "again\n");
    node.finish().await;
}

/// As `kubectl cp` in both directions at once: much more than any buffer on the way.
#[tokio::test]
async fn much_comes_through_whole() {
    let (node, _, id) = node_with_container().await;
    let input: Vec<u8> = (0..24_u32 << 20)
        .map(|n| (n ^ n >> 8 ^ n >> 16) as u8)
        .collect();
    let ran = run(&node, exec_with_input(&id, "cat"), INPUT, &input).await;
    assert_eq!(ran.outcome(), Outcome::Success);
    assert_eq!(Sha256::digest(&ran.stdout), Sha256::digest(&input));
    node.finish().await;
}

/// The command does not read: the client is held up, and no memory is taken for what it sends.
#[tokio::test]
async fn what_a_command_does_not_read_is_not_kept() {
    let (node, _, id) = node_with_container().await;
    let rss = || {
        let rss = host::proc_status(node.daemon_pid().unwrap(), "VmRSS").unwrap();
        rss.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = rss();
    let mut held_up = Vec::new();
    for _ in 0..8 {
        let request = exec_with_input(&id, "echo ready; exec sleep 1000");
        let mut command = connect(&node, request, INPUT).await;
        let stdout = command.stdout.as_mut().unwrap();
        stdout.read_until(|bytes| bytes.ends_with(b"ready\n")).await;
        let stdin = command.stdin.take().unwrap();
        let sending = tokio::spawn(async move {
            let piece = vec![7; 1 << 20];
            for _ in 0..64 {
                if stdin.send(&piece, false).await.is_err() {
                    return;
                }
            }
            panic!("64 MiB went nowhere");
        });
        held_up.push((command, sending));
    }
    // Of 512 MiB, as much has gone as goes: nothing moves any more.
    let mut last = 0;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let now = rss();
        assert!(now < before + (64 << 10), "from {before} to {now} KiB");
        if now == last {
            break;
        }
        last = now;
    }
    for (command, sending) in held_up {
        sending.abort();
        let sent = sending.await;
        assert!(
            sent.is_err_and(|end| end.is_cancelled()),
            "all of it was taken"
        );
        drop(command);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_echoes_and_has_a_size() {
    let (node, _, id) = node_with_container().await;
    let script = "until [ \"$(stty size)\" = '33 100' ]; do sleep 0.02; done; echo sized; \
                  while read line; do echo got $line; done";
    let request = exec_on_terminal(&id, script);
    let mut command = connect(&node, request, Wanted::TERMINAL).await;
    let resize = command.resize.take().unwrap();
    resize
        .send(b"{\"Width\":100,\"Height\":33}", false)
        .await
        .unwrap();
    let stdin = command.stdin.take().unwrap();
    let stdout = command.stdout.as_mut().unwrap();
    stdout
        .read_until(|bytes| contains(bytes, "sized\r\n"))
        .await;
    stdin.send(b"word\n", false).await.unwrap();
    stdout
        .read_until(|bytes| contains(bytes, "got word\r\n"))
        .await;
    // ^D: the end of input, as a person types it.
    stdin.send(b"\x04", false).await.unwrap();
    let ran = command.run(b"").await;
    assert_eq!(ran.outcome(), Outcome::Success);
    node.finish().await;
}

/// Clients send the size when they have their streams, and a program asks for it when it starts.
#[tokio::test]
async fn a_terminal_has_its_size_before_its_program() {
    let (node, _, id) = node_with_container().await;
    for round in 0..20 {
        let request = exec_on_terminal(&id, "stty size");
        let mut command = connect(&node, request, Wanted::TERMINAL).await;
        let resize = command.resize.take().unwrap();
        let size = format!("{{\"Width\":{},\"Height\":33}}", 100 + round);
        resize.send(size.as_bytes(), false).await.unwrap();
        let ran = command.run(b"").await;
        assert_eq!(ran.outcome(), Outcome::Success);
        let expected = format!("33 {}\r\n", 100 + round);
        assert!(contains(&ran.stdout, &expected), "{:?}", ran.stdout);
    }
    // Without a size it starts, too.
    let command = connect(&node, exec_on_terminal(&id, "echo on"), Wanted::TERMINAL).await;
    let ran = command.run(b"").await;
    assert!(contains(&ran.stdout, "on\r\n"), "{:?}", ran.stdout);
    node.finish().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error() {
    let (node, _, id) = node_with_container().await;
    let request = ExecRequest {
        cmd: vec!["/no/such/program".into()],
        ..exec(&id, "")
    };
    for protocols in [&["v4.channel.k8s.io"][..], &["v2.channel.k8s.io"]] {
        let url = node.exec_url(request.clone()).await;
        let command = Command::connect(&node.net, &url, protocols, Wanted::OUTPUT).await;
        let ran = command.run(b"").await;
        let message = match protocols[0] {
            "v4.channel.k8s.io" => match ran.outcome() {
                Outcome::Failed(message) => message,
                other => panic!("{other:?}"),
            },
            _ => String::from_utf8(ran.status).unwrap(),
        };
        let expected = "Internal error occurred: error executing command in container: ";
        assert!(message.starts_with(expected), "{message}");
        assert!(message.contains("/no/such/program"), "{message}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_ended_meanwhile_is_an_error() {
    let (node, _, id) = node_with_container().await;
    let url = node.exec_url(exec(&id, "true")).await;
    node.try_stop(&id, 10).await.unwrap();
    let command = Command::connect(&node.net, &url, &COMMAND, Wanted::OUTPUT).await;
    match command.run(b"").await.outcome() {
        Outcome::Failed(message) => assert!(message.contains("not running"), "{message}"),
        other => panic!("{other:?}"),
    }
    node.finish().await;
}

/// A client that says that it does flow control gets what its windows let through, and no more.
#[tokio::test]
async fn windows_are_heeded_if_there_are_any() {
    let (node, _, id) = node_with_container().await;
    let url = node.exec_url(exec(&id, "head -c 300000 /dev/zero")).await;
    let mut spdy = Spdy::connect(&node.net, &url, &COMMAND).await.unwrap();
    // SETTINGS: an initial window of 1000 bytes.
    spdy.control(4, 0, &[0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 3, 0xe8])
        .await;
    let mut error = spdy.open(&[("streamtype", "error")]).await.unwrap();
    let mut stdout = spdy.open(&[("streamtype", "stdout")]).await.unwrap();
    let _stderr = spdy.open(&[("streamtype", "stderr")]).await.unwrap();
    let first = stdout.read_until(|bytes| bytes.len() >= 1000).await;
    assert_eq!(first.len(), 1000);
    spdy.ping().await;
    let window = |id: u32, delta: u32| [id.to_be_bytes(), delta.to_be_bytes()].concat();
    spdy.control(9, 0, &window(0, 1 << 20)).await;
    spdy.control(9, 0, &window(stdout.id, 1 << 20)).await;
    let (rest, end) = stdout.read_to_end().await;
    assert_eq!((rest.len(), end), (299_000, End::Fin));
    let (status, _) = error.read_to_end().await;
    assert_eq!(Outcome::read(&status), Outcome::Success);
    drop(spdy);
    node.finish().await;
}

/// Failing commands on terminals, and clients that go in the middle: nothing is left of them.
#[tokio::test]
async fn nothing_is_left_of_many() {
    let (node, _, id) = node_with_container().await;
    let threads = || {
        let threads = host::proc_status(node.daemon_pid().unwrap(), "Threads").unwrap();
        threads.parse::<usize>().unwrap()
    };
    let before = threads();
    for round in 0..150 {
        let request = match round % 3 {
            0 => ExecRequest {
                cmd: vec!["/no/such/program".into()],
                ..exec_on_terminal(&id, "")
            },
            1 => exec_on_terminal(&id, "exec cat"),
            _ => exec_on_terminal(&id, "yes"),
        };
        let mut command = connect(&node, request, Wanted::TERMINAL).await;
        let resize = command.resize.take().unwrap();
        resize
            .send(b"{\"Width\":100,\"Height\":33}", false)
            .await
            .unwrap();
        match round % 3 {
            0 => assert!(matches!(
                command.run(b"").await.outcome(),
                Outcome::Failed(_)
            )),
            1 => drop(command),
            _ => {
                let stdout = command.stdout.as_mut().unwrap();
                stdout.read_until(|bytes| bytes.len() > 10_000).await;
            }
        }
    }
    // A thread for blocking work ends when it has had none for 10 s.
    let begin = Instant::now();
    while threads() > before {
        assert!(begin.elapsed() < host::patience(Duration::from_secs(30)));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Descriptors, processes and all else.
    node.finish().await;
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}
