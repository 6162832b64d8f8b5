//! `carpel exec`, `attach`: a person's own streams, from a script and at a terminal.

use std::io::Write;
use std::process::{Command, Stdio};

use carpel_integration::cli::{Running, Said, carpel};
use carpel_integration::host::http_get;
use carpel_integration::request::sleeper;
use carpel_integration::{Pod, TestNode, sh};
use nix::sys::signal::Signal;

async fn node_with_container() -> (TestNode, Pod, String) {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("app")).await;
    (node, pod, id)
}

/// Runs `carpel` where the node's streams are served, with this input.
fn with_input(node: &TestNode, args: &[&str], input: &[u8]) -> Said {
    let mut command = carpel(&node.endpoint(), args);
    let (reader, mut writer) = std::io::pipe().unwrap();
    command.stdin(reader);
    let input = input.to_vec();
    let feed = std::thread::spawn(move || writer.write_all(&input));
    let said = node.net.run(|| Said::by(command));
    let _ = feed.join().unwrap();
    said
}

fn said(node: &TestNode, args: &[&str]) -> Said {
    with_input(node, args, b"")
}

fn on_terminal(node: &TestNode, args: &[&str], columns: u16) -> Running {
    let command = carpel(&node.endpoint(), args);
    node.net.run(|| Running::on_terminal(&command, columns))
}

#[tokio::test]
async fn a_command_has_the_streams_of_the_script_that_runs_it() {
    let (node, _, _) = node_with_container().await;
    let text = "line\n".repeat(100_000);
    let script = "cat; echo e >&2; exit 42";
    let args = ["exec", "-i", "app", "sh", "-c", script];
    let answer = with_input(&node, &args, text.as_bytes());
    assert_eq!(answer.status, 42);
    assert_eq!(answer.stderr, "e\n");
    assert!(answer.stdout == text);
    // Without -i there is no input, and output comes as it is written.
    let args = ["exec", "app", "sh", "-c", "cat; echo out; exec sleep 1000"];
    let running = node
        .net
        .run(|| Running::start(carpel(&node.endpoint(), &args)));
    running.wait_for("out\n");
    drop(running);
    // A reader that has enough ends it.
    let mut command = Command::new("sh");
    let carpel = carpel(&node.endpoint(), &[]);
    command
        .args(["-c", "$0 exec app yes | head -n 2"])
        .arg(carpel.get_program())
        .env("CARPEL_ENDPOINT", node.endpoint())
        .stdin(Stdio::null());
    assert_eq!(node.net.run(|| Said::by(command)).ok(), "y\ny\n");
    said(&node, &["exec", "app", "/nonexistent"]).failed(125, "/nonexistent");
    said(&node, &["exec", "--timeout", "1", "-i", "app", "true"]).failed(2, "--timeout");
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_handed_over_and_given_back() {
    let (node, _, id) = node_with_container().await;
    let shell = ["exec", "-it", "app", "sh"];
    let mut running = on_terminal(&node, &shell, 90);
    running.wait_for("# ");
    assert!(!running.is_cooked());
    running.press("stty size\n");
    running.wait_for("40 90\r\n");
    running.resize(123);
    running.press("sleep 0.3; stty size\n");
    running.wait_for("40 123\r\n");
    // Ctrl-C is the other side's.
    running.press("sleep 987\n");
    while node.exec(&id, "ps | grep -c '[s]leep 987' || true").await != "1\n" {
        tokio::task::yield_now().await;
    }
    running.press("\u{3}");
    running.press("echo 4$((1+1))\n");
    running.wait_for("42\r\n");
    running.press("exit 7\n");
    assert_eq!(running.end(), 7);
    assert!(running.is_cooked());
    // Ended from outside it is given back too, and the shell on the other side is hung up.
    for (signal, status) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGINT, 130),
    ] {
        let mut running = on_terminal(&node, &shell, 90);
        running.wait_for("# ");
        running.signal(signal);
        assert_eq!(running.end(), status);
        assert!(running.is_cooked(), "{signal}");
    }
    // As it is when the daemon's connection breaks.
    let mut running = on_terminal(&node, &["exec", "-it", "app", "sh", "-c", "kill -9 $$"], 90);
    assert_eq!(running.end(), 137);
    assert!(running.is_cooked());
    while node.exec(&id, "ls /dev/pts").await != "ptmx\n" {
        tokio::task::yield_now().await;
    }
    // A script has no terminal to give.
    let answer = with_input(
        &node,
        &["exec", "-it", "app", "sh", "-c", "tty; cat"],
        b"x\n",
    );
    assert!(answer.stderr.contains("no terminal"), "{answer:?}");
    assert_eq!(answer.stdout, "not a tty\nx\n");
    node.finish().await;
}

#[tokio::test]
async fn the_terminal_is_given_back_when_the_daemon_dies() {
    let (mut node, _, _) = node_with_container().await;
    let mut running = on_terminal(&node, &["exec", "-it", "app", "sh"], 90);
    running.wait_for("# ");
    node.crash().await;
    assert_eq!(running.end(), 125);
    running.wait_for("broken the connection off");
    assert!(running.is_cooked());
    node.finish().await;
}

#[tokio::test]
async fn one_attaches_to_a_container_and_leaves_it() {
    let (node, pod, _) = node_with_container().await;
    let mut config = sh(
        "tty",
        "while read line; do echo got $line; [ $line = end ] && exit 5; done",
    );
    config.stdin = true;
    config.tty = true;
    let id = node.start_container(&pod, &config).await;
    let mut running = on_terminal(&node, &["attach", "one/tty"], 90);
    running.wait_for("attached to");
    while running.is_cooked() {
        std::thread::yield_now();
    }
    running.press("one\n");
    running.wait_for("got one\r\n");
    running.press("\u{10}\u{11}");
    assert_eq!(running.end(), 0);
    running.wait_for("goes on");
    assert!(running.is_cooked());
    assert_eq!(node.status(&id).await.finished_at, 0);
    let mut running = on_terminal(&node, &["attach", "one/tty"], 90);
    running.wait_for("attached to");
    running.press("end\n");
    assert_eq!(running.end(), 5);
    running.wait_for("got end\r\n");
    node.finish().await;
}

#[tokio::test]
async fn a_script_feeds_a_container() {
    let (node, pod, _) = node_with_container().await;
    let mut config = sh("once", "cat; exit 3");
    config.stdin = true;
    config.stdin_once = true;
    node.start_container(&pod, &config).await;
    let answer = with_input(&node, &["attach", "once"], b"text\n");
    assert_eq!((answer.status, answer.stdout.as_str()), (3, "text\n"));
    said(&node, &["attach", "once"]).failed(125, "does not run");
    // One that takes no input is watched to its end.
    let config = sh(
        "watched",
        "while ! test -e /go; do sleep 0.05; done; echo end; exit 4",
    );
    let id = node.start_container(&pod, &config).await;
    let args = ["attach", "watched"];
    let mut running = node
        .net
        .run(|| Running::start(carpel(&node.endpoint(), &args)));
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    node.exec(&id, "touch /go").await;
    assert_eq!(running.end(), 4);
    running.wait_for("end\n");
    node.finish().await;
}

/// The local port of a "forwarding from" line.
fn local_port(running: &Running) -> u16 {
    running.wait_for("forwarding from 127.0.0.1:");
    let text = running.text();
    let line = text
        .lines()
        .find(|line| line.contains("127.0.0.1:"))
        .unwrap();
    let port = line.split("127.0.0.1:").nth(1).unwrap();
    port.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn ports_of_a_pod_are_reached_here() {
    let (node, pod, _) = node_with_container().await;
    let script = "mkdir /www; head -c 5000000 /dev/zero > /www/zeros; echo hello > /www/x; \
                  exec httpd -f -h /www -p 127.0.0.1:80";
    let id = node.start_container(&pod, &sh("server", script)).await;
    while node
        .exec(&id, "netstat -ltn | grep -c ':80 ' || true")
        .await
        != "1\n"
    {
        tokio::task::yield_now().await;
    }
    let args = ["port-forward", "one", ":80", "0:81"];
    let running = node
        .net
        .run(|| Running::start(carpel(&node.endpoint(), &args)));
    let port = local_port(&running);
    let get = |path: &str| {
        let local = std::net::Ipv4Addr::LOCALHOST.into();
        node.net.run(|| http_get(local, port, path))
    };
    assert!(get("/x").unwrap().ends_with("hello\n"));
    assert!(get("/zeros").unwrap().len() >= 5_000_000);
    // Many at a time.
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..40)
            .map(|_| scope.spawn(|| get("/x").unwrap()))
            .collect();
        for one in all {
            assert!(one.join().unwrap().ends_with("hello\n"));
        }
    });
    // A port that nobody listens on: the connection ends, and it is told why.
    running.wait_for("to 81");
    let text = running.text();
    let line = text.lines().find(|line| line.ends_with("to 81")).unwrap();
    let port = line
        .split_once(" to ")
        .unwrap()
        .0
        .rsplit(':')
        .next()
        .unwrap();
    let address = format!("127.0.0.1:{port}");
    let mut refused = node
        .net
        .run(|| std::net::TcpStream::connect(address))
        .unwrap();
    assert_eq!(std::io::Read::read(&mut refused, &mut [0; 8]).unwrap(), 0);
    drop(running);
    // A pod that has ended is told of before anybody comes.
    node.try_stop_pod(&pod.id).await.unwrap();
    let ended = said(&node, &args);
    assert_eq!((ended.status, ended.stdout.as_str()), (1, ""));
    assert!(ended.stderr.contains("is not ready"), "{}", ended.stderr);
    node.finish().await;
}

#[tokio::test]
async fn files_are_copied_into_a_container_and_out_of_it() {
    let (node, _, id) = node_with_container().await;
    node.exec(
        &id,
        "cd /bin; for name in tar test; do ln -sf busybox $name; done",
    )
    .await;
    let dir = node.dir().join("files");
    let here = |name: &str| dir.join(name).display().to_string();
    std::fs::create_dir_all(dir.join("tree/deep")).unwrap();
    std::fs::write(dir.join("tree/deep/big"), vec![b'x'; 3_000_000]).unwrap();
    std::fs::write(dir.join("one"), "text").unwrap();
    let cp = |from: &str, to: &str| said(&node, &["cp", from, to]);

    // To a name, into a folder, and a folder as a new one and into one that exists.
    assert_eq!(cp(&here("one"), "app:/tmp/two").ok(), "");
    assert_eq!(cp(&here("one"), "default/one/app:/tmp").ok(), "");
    assert_eq!(cp(&here("tree"), "app:/tmp/new").ok(), "");
    assert_eq!(cp(&here("tree"), "app:/tmp").ok(), "");
    let script = "cd /tmp; cat two one; wc -c < new/deep/big; wc -c < tree/deep/big";
    assert_eq!(node.exec(&id, script).await, "texttext3000000\n3000000\n");

    node.exec(&id, "ln -s /etc/passwd /tmp/new/link; chmod 700 /tmp/two")
        .await;
    assert_eq!(cp("app:/tmp/two", &here("back")).ok(), "");
    assert_eq!(std::fs::read(dir.join("back")).unwrap(), b"text");
    std::fs::create_dir(dir.join("into")).unwrap();
    assert_eq!(cp("app:/tmp/two", &here("into")).ok(), "");
    assert_eq!(std::fs::read(dir.join("into/two")).unwrap(), b"text");
    let answer = cp("app:/tmp/new", &here("copy"));
    assert!(
        answer
            .stderr
            .contains("link: a symbolic link to /etc/passwd"),
        "{answer:?}"
    );
    assert_eq!(answer.ok(), "");
    let big = std::fs::read(dir.join("copy/deep/big")).unwrap();
    assert!(big == vec![b'x'; 3_000_000]);
    assert!(!dir.join("copy/link").exists());

    cp("app:/nonexistent", &here("x")).failed(1, "tar in default/one/app ended with status");
    cp(&here("nonexistent"), "app:/tmp").failed(1, "nonexistent");
    cp("nobody:/x", &here("x")).failed(1, "nobody");
    cp(&here("one"), &here("x")).failed(1, "CONTAINER:PATH");
    cp(&here("one"), "app:/none/there").failed(1, "status");
    std::fs::write(dir.join("folder"), "").unwrap();
    cp("app:/tmp/new", &here("folder")).failed(1, "folder");
    node.finish().await;
}
