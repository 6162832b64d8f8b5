//! The server that URLs lead to: who may come, and what it does with everybody else.

use std::time::{Duration, Instant};

use carpel_integration::TestNode;
use carpel_integration::certificates;
use carpel_integration::cli::{Said, carpel};
use carpel_integration::request::{container, sleeper};
use carpel_integration::streams::spdy::{COMMAND, Command, PORTS, Spdy, Wanted};
use carpel_integration::streams::urls::exec;
use carpel_integration::streams::websocket::WebSocket;
use carpel_integration::streams::{Outcome, connect, request};
use carpel_integration::v1::{AttachRequest, ExecRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::{node_with_container, refused};

const SPDY: [(&str, &str); 3] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "SPDY/3.1"),
    ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
];

#[tokio::test]
async fn a_url_is_good_once_and_guessed_by_nobody() {
    let (node, _, id) = node_with_container().await;
    let url = node.exec_url(exec(&id, "true")).await;
    let (base, token) = url.rsplit_once('/').unwrap();
    assert!(
        base.starts_with("http://127.0.0.1:") && base.ends_with("/exec"),
        "{url}"
    );
    // 128 bits.
    assert_eq!(token.len(), 22);
    let other = node.exec_url(exec(&id, "true")).await;
    assert_ne!(url, other);
    for strange in [
        format!("{base}/{}", "A".repeat(22)),
        format!("{base}/"),
        format!("{base}/.."),
    ] {
        assert_eq!(
            request(&node.net, "POST", &strange, &SPDY).await.0.status,
            404
        );
    }
    let command = Command::connect(&node.net, &url, &COMMAND, Wanted::OUTPUT).await;
    assert_eq!(command.run(b"").await.outcome(), Outcome::Success);
    assert_eq!(request(&node.net, "POST", &url, &SPDY).await.0.status, 404);
    // A URL of one kind is none of another.
    let strange = other.replace("/exec/", "/attach/");
    assert_eq!(
        request(&node.net, "POST", &strange, &SPDY).await.0.status,
        404
    );
    node.finish().await;
}

#[tokio::test]
async fn both_sides_must_speak_the_same() {
    let (node, pod, id) = node_with_container().await;
    let url = node.exec_url(exec(&id, "true")).await;
    let Err(head) = Spdy::connect(&node.net, &url, &PORTS).await else {
        panic!("an exec speaks no {}", PORTS[0]);
    };
    assert_eq!(head.status, 403);
    let accepted = head.header("x-accepted-stream-protocol-versions");
    assert!(accepted.contains("v4.channel.k8s.io") && accepted.contains(",channel.k8s.io"));
    let url = node.exec_url(exec(&id, "true")).await;
    let Err(head) = Spdy::connect(&node.net, &url, &[]).await else {
        panic!("a client must say what it speaks");
    };
    assert_eq!(head.status, 400);
    let url = node.exec_url(exec(&id, "true")).await;
    assert_eq!(request(&node.net, "GET", &url, &[]).await.0.status, 400);
    let url = node.port_forward_url(&pod, &[80]).await;
    let Err(head) = WebSocket::connect(&node.net, &url, &["v5.channel.k8s.io"]).await else {
        panic!("ports have no v5");
    };
    assert_eq!(head.status, 403);
    node.finish().await;
}

/// What a kubelet passes on from a browser's terminal.
#[tokio::test]
async fn a_browser_may_come_by_way_of_the_kubelet() {
    let (node, _, id) = node_with_container().await;
    let url = node.exec_url(exec(&id, "true")).await;
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "v4.channel.k8s.io"),
        ("Origin", "https://console.example.org"),
        ("X-Forwarded-For", "192.0.2.1"),
    ];
    assert_eq!(
        request(&node.net, "GET", &url, &headers).await.0.status,
        101
    );
    node.finish().await;
}

#[tokio::test]
async fn requests_are_checked_before_there_is_a_url() {
    let (node, pod, id) = node_with_container().await;
    let created = container("created", &["/bin/true"]);
    let created = node.try_create(&pod, &created).await.unwrap();
    let tty_and_stderr = ExecRequest {
        tty: true,
        ..exec(&id, "true")
    };
    let nothing = ExecRequest {
        stdout: false,
        stderr: false,
        ..exec(&id, "true")
    };
    let no_command = ExecRequest {
        cmd: Vec::new(),
        ..exec(&id, "true")
    };
    for (request, code, part) in [
        (tty_and_stderr, Code::InvalidArgument, "stderr: "),
        (nothing, Code::InvalidArgument, "stdout: "),
        (no_command, Code::InvalidArgument, "cmd: "),
        (
            exec("none", "true"),
            Code::NotFound,
            "container none not found",
        ),
        (
            exec(&created, "true"),
            Code::FailedPrecondition,
            "not running",
        ),
    ] {
        refused(node.try_exec_url(request).await, code, part);
    }
    let attach = AttachRequest {
        container_id: created,
        stdout: true,
        ..AttachRequest::default()
    };
    refused(
        node.try_attach_url(attach).await,
        Code::FailedPrecondition,
        "not running",
    );
    for (sandbox, ports, code, part) in [
        ("none", &[80][..], Code::NotFound, "sandbox none not found"),
        (&pod.id, &[0], Code::InvalidArgument, "port[0]: "),
        (&pod.id, &[80, 65536], Code::InvalidArgument, "port[1]: "),
    ] {
        let outcome = node.try_port_forward_url(sandbox, ports).await;
        refused(outcome, code, part);
    }
    node.try_stop_pod(&pod.id).await.unwrap();
    let outcome = node.try_port_forward_url(&pod.id, &[80]).await;
    refused(outcome, Code::FailedPrecondition, "not ready");
    node.finish().await;
}

#[tokio::test]
async fn clients_that_do_not_come_are_bounded() {
    let (node, _, id) = node_with_container().await;
    let mut urls = Vec::new();
    let refusal = loop {
        match node.try_exec_url(exec(&id, "true")).await {
            Ok(url) => urls.push(url),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    assert_eq!(urls.len(), 1000);
    // One that comes makes room for another.
    let command = Command::connect(&node.net, &urls[7], &COMMAND, Wanted::OUTPUT).await;
    assert_eq!(command.run(b"").await.outcome(), Outcome::Success);
    node.exec_url(exec(&id, "true")).await;
    node.finish().await;
}

/// Anybody on the node can connect: that costs nobody else anything.
#[tokio::test]
async fn strangers_are_cut_off() {
    let (node, _, id) = node_with_container().await;
    let url = node.exec_url(exec(&id, "true")).await;
    let mut strangers = Vec::new();
    for round in 0..60 {
        let (mut stream, _) = connect(&node.net, &url).await;
        match round % 3 {
            0 => {}
            1 => stream.write_all(b"POST /exec/").await.unwrap(),
            _ => stream.write_all(&[0xff; 300]).await.unwrap(),
        }
        strangers.push(stream);
    }
    let command = Command::connect(&node.net, &url, &COMMAND, Wanted::OUTPUT).await;
    assert_eq!(command.run(b"").await.outcome(), Outcome::Success);
    let begin = Instant::now();
    for mut stream in strangers {
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        let end = tokio::time::timeout(Duration::from_secs(30), end).await;
        // A reset is an end, too.
        let _ = end.expect("it is cut off");
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
    node.finish().await;
}

/// Whatever is sent after the upgrade, the daemon lives and leaves nothing.
#[tokio::test]
async fn noise_ends_a_connection_and_no_more() {
    let (node, pod, id) = node_with_container().await;
    let mut noise = 0x1234_5678_u32;
    let mut bytes = move |length: usize| -> Vec<u8> {
        let mut next = || {
            noise ^= noise << 13;
            noise ^= noise >> 17;
            noise ^= noise << 5;
            noise as u8
        };
        (0..length).map(|_| next()).collect()
    };
    for round in 0..30 {
        let url = match round % 2 {
            0 => node.exec_url(exec(&id, "exec cat")).await,
            _ => node.port_forward_url(&pod, &[]).await,
        };
        let protocols = if round % 2 == 0 { &COMMAND[..] } else { &PORTS };
        let spdy = Spdy::connect(&node.net, &url, protocols).await;
        let spdy = spdy.unwrap_or_else(|head| panic!("{head:?}"));
        // Control frames of every type first, for random bytes alone seldom are one.
        let mut frames = Vec::new();
        for kind in 1..12 {
            let body = bytes(4 + round);
            frames.extend_from_slice(&[0x80, 3, 0, kind, 0, 0, 0, body.len() as u8]);
            frames.extend(body);
        }
        frames.extend(bytes(2000));
        // It may be thrown out before the end.
        let _ = spdy.raw(&frames).await;
    }
    let command = Command::connect(
        &node.net,
        &node.exec_url(exec(&id, "true")).await,
        &COMMAND,
        Wanted::OUTPUT,
    )
    .await;
    assert_eq!(command.run(b"").await.outcome(), Outcome::Success);
    node.finish().await;
}

#[tokio::test]
async fn the_server_speaks_tls_if_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    certificates::make(dir.path(), "127.0.0.1");
    let (certificate, key, authority) = (path("cert.pem"), path("key.pem"), path("ca.pem"));
    let config = format!("[streaming]\ntls = {{ certificate = {certificate:?}, key = {key:?} }}\n");
    let node = TestNode::builder().config(&config).start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let request = exec(&id, "echo over tls");
    let url = node.exec_url(request).await;
    let (host, secret) = url
        .strip_prefix("https://")
        .unwrap()
        .split_once('/')
        .unwrap();
    // A client of the handshake alone: what comes after it is the same bytes as without TLS.
    let request = format!(
        "GET /{secret} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    );
    let file = dir.path().join("request");
    std::fs::write(&file, request).unwrap();
    let answer = node.net.run(|| {
        use std::io::Write;
        let mut client = std::process::Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error"])
            .args(["-CAfile", &authority, "-connect", host])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(&std::fs::read(&file).unwrap()).unwrap();
        // It ends when the server has closed the connection, as its input does not end before.
        let output = client.wait_with_output().unwrap();
        drop(stdin);
        output.stdout
    });
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.contains("\u{1}over tls\n"), "{answer}");
    assert!(answer.contains("\u{3}{\"status\":\"Success\"}"), "{answer}");
    // A person's client trusts what the machine trusts.
    let run = |trusted: &str| {
        let mut command = carpel(&node.endpoint(), &["exec", &id, "echo", "over tls"]);
        command.env("SSL_CERT_FILE", trusted);
        node.net.run(|| Said::by(command))
    };
    assert_eq!(run(&authority).ok(), "over tls\n");
    let other = tempfile::tempdir().unwrap();
    certificates::make(other.path(), "127.0.0.1");
    let other = other.path().join("ca.pem").display().to_string();
    run(&other).failed(125, "SSL_CERT_FILE");
    node.finish().await;
}
