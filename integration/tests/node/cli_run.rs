//! `carpel run`, `exec`, `stop`, `rm`: a container's whole life from a terminal.

use std::fs;
use std::time::Duration;

use carpel_integration::TestNode;
use carpel_integration::cli::{Running, Said, carpel};
use carpel_integration::image::{BUSYBOX, Image};
use carpel_integration::registry::{Content, Fake};
use nix::sys::signal::Signal;

/// `carpel run` with its logs below the node's folder.
fn run(node: &TestNode, args: &[&str]) -> std::process::Command {
    let logs = node.dir().join("logs").display().to_string();
    carpel(
        &node.endpoint(),
        &[&["run", "--log-dir", &logs], args].concat(),
    )
}

/// Where the node's streams are served.
fn other(node: &TestNode, args: &[&str]) -> Said {
    node.net.run(|| Said::by(carpel(&node.endpoint(), args)))
}

fn no_logs(node: &TestNode) {
    let left: Vec<_> = fs::read_dir(node.dir().join("logs"))
        .unwrap()
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_run_shows_output_passes_its_status_on_and_leaves_nothing() {
    let node = TestNode::start().await;
    let script = "echo out; echo err >&2; exit 7";
    let said = Said::by(run(&node, &["--rm", BUSYBOX, "sh", "-c", script]));
    assert_eq!(
        (said.status, said.stdout.as_str(), said.stderr.as_str()),
        (7, "out\n", "err\n")
    );
    assert!(node.pods().await.is_empty());
    no_logs(&node);
    // Without --rm it stays, to be looked at.
    assert_eq!(
        Said::by(run(&node, &["--name", "done", BUSYBOX, "echo", "hi"])).ok(),
        "hi\n"
    );
    assert_eq!(other(&node, &["logs", "done"]).ok(), "hi\n");
    let twice = Said::by(run(&node, &["--name", "done", BUSYBOX, "echo", "again"]));
    assert_eq!((twice.status, twice.stdout.as_str()), (125, ""));
    assert!(
        twice.stderr.contains("carpel rm -f default/done"),
        "{}",
        twice.stderr
    );
    assert_eq!(other(&node, &["rm", "done"]).ok(), "done\n");
    assert!(node.pods().await.is_empty());
    no_logs(&node);
    node.finish().await;
}

#[tokio::test]
async fn an_image_that_is_not_there_is_pulled() {
    let node = TestNode::builder().no_image().start().await;
    let content = Content::default().image("a/busybox", "1", &Image::busybox().build());
    let pause = Duration::from_millis(300);
    let registry = Fake::start(&node.net, move |request| {
        if request.is_blob() {
            // There is something to see meanwhile.
            std::thread::sleep(pause);
        }
        content.answer(request)
    });
    let name = format!("{}/a/busybox:1", registry.host());
    let missing = format!("{}/a/missing:1", registry.host());
    let said = Said::by(run(&node, &["--rm", &missing, "true"]));
    said.failed(125, &missing);
    assert!(node.pods().await.is_empty());

    // With a terminal: bars, then the container's output alone.
    let mut running = Running::on_terminal(&run(&node, &["--rm", &name, "echo", "hi"]), 90);
    assert_eq!(running.end(), 0);
    running.wait_for("hi\r\n");
    let text = running.text();
    for part in [&format!("pulling {name}"), "MiB", "["] {
        assert!(text.contains(part), "{part}: {text:?}");
    }
    let width = |line: &str| line.rsplit('\r').next().unwrap_or_default().len();
    assert!(text.lines().all(|line| width(line) < 400), "{text:?}");
    assert!(text.ends_with("hi\r\n"), "{text:?}");
    // The image is there now: the registry is not asked again.
    let asked = registry.seen().len();
    assert_eq!(
        Said::by(run(&node, &["--rm", &name, "echo", "hi"])).ok(),
        "hi\n"
    );
    assert_eq!(registry.seen().len(), asked);
    let _ = other(&node, &["image", "rm", &name]).ok();

    // `pull` itself, in plain lines and with its figures.
    let said = other(&node, &["pull", &name]);
    assert!(
        said.stderr.contains(&format!("{name}: pulled\n")),
        "{said:?}"
    );
    assert!(said.stdout.contains(&name), "{said:?}");
    let json = other(&node, &["pull", "-o", "json", &name]).json();
    assert!(json.to_string().contains("sha256:"), "{json:#}");
    other(&node, &["pull", &missing]).failed(1, "not found");
    let advice = "`carpel doctor --registry 127.0.0.1:1` looks into it";
    other(&node, &["pull", "127.0.0.1:1/a/b"]).failed(1, advice);
    let _ = other(&node, &["image", "rm", &name]).ok();
    node.finish().await;
}

#[tokio::test]
async fn an_annotation_of_a_clusters_pod_deletes_nothing_of_the_hosts() {
    let node = TestNode::start().await;
    let folder = node.dir().join("precious");
    fs::create_dir(&folder).unwrap();
    let mut config = node.pod("web");
    let value = folder.display().to_string();
    config
        .annotations
        .insert("carpel.run/log-folder".into(), value);
    config
        .labels
        .insert("io.kubernetes.pod.uid".into(), "1".into());
    let pod = node.run_pod(&config).await;
    let id = node
        .start_container(&pod, &carpel_integration::sh("app", "echo hi"))
        .await;
    node.wait_exit(&id).await;
    let log = node.status(&id).await.log_path;
    other(&node, &["rm", "web"]).failed(1, "stop it first");
    assert_eq!(other(&node, &["rm", "-f", "web"]).ok(), "web\n");
    assert!(folder.exists() && fs::exists(&log).unwrap());
    node.finish().await;
}

#[tokio::test]
async fn what_a_name_holds_is_not_obeyed_by_the_terminal() {
    let node = TestNode::start().await;
    let said = other(&node, &["logs", "a\u{1b}[2Jb"]);
    assert!(!said.stderr.contains('\u{1b}'), "{said:?}");
    let pod = node.run_pod(&node.pod("web")).await;
    let id = node
        .start_container(&pod, &carpel_integration::request::sleeper("app"))
        .await;
    let said = other(&node, &["exec", &id, "no\u{1b}[2Jsuch"]);
    assert_eq!(said.status, 125);
    assert!(!said.stderr.contains('\u{1b}'), "{said:?}");
    node.finish().await;
}

#[tokio::test]
async fn flags_reach_the_container() {
    let node = TestNode::start().await;
    let shared = node.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "from the host\n").unwrap();
    let mount = format!("{}:/mnt:ro", shared.display());
    let script =
        "echo $A; cat /mnt/file; touch /mnt/x 2>/dev/null || echo read-only; id -u; pwd; hostname";
    let said = Said::by(run(
        &node,
        &[
            "--rm", "--name", "flags", "-e", "A=b", "-v", &mount, "-u", "7", "-w", "/tmp", "-m",
            "64m", BUSYBOX, "sh", "-c", script,
        ],
    ));
    assert_eq!(said.ok(), "b\nfrom the host\nread-only\n7\n/tmp\nflags\n");
    node.finish().await;
}

#[tokio::test]
async fn a_detached_run_is_worked_with_by_name() {
    let node = TestNode::start().await;
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    for name in ["one", "two"] {
        let id = Said::by(run(
            &node,
            &["-d", "--name", name, BUSYBOX, "sh", "-c", script],
        ))
        .ok();
        assert_eq!(id.trim().len(), 64, "{id}");
    }
    let said = other(
        &node,
        &["exec", "one", "sh", "-c", "echo in; echo err >&2; exit 9"],
    );
    assert_eq!(
        (said.status, said.stdout.as_str(), said.stderr.as_str()),
        (9, "in\n", "err\n")
    );
    assert_eq!(
        other(&node, &["exec", "one", "--", "echo", "-n", "x"]).ok(),
        "x"
    );
    other(&node, &["exec", "one", "/nonexistent"]).failed(125, "nonexistent");
    other(&node, &["exec", "-i", "-o", "json", "one", "cat"]).failed(125, "-o json");
    let slow = other(&node, &["exec", "--timeout", "1", "one", "sleep", "60"]);
    assert_eq!(slow.status, 125, "{slow:?}");

    other(&node, &["rm", "one"]).failed(1, "stop it first");
    let mut stopped: Vec<_> = other(&node, &["stop", "one", "two", "one"])
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    stopped.sort();
    assert_eq!(stopped, ["one", "two"]);
    assert_eq!(other(&node, &["ps", "-q"]).ok(), "");
    other(&node, &["exec", "one", "true"]).failed(125, "does not run");
    let said = other(&node, &["rm", "one", "nonsense", "two"]);
    assert!(
        said.stdout.contains("one\n") && said.stdout.contains("two\n"),
        "{said:?}"
    );
    said.failed(1, "nonsense");
    assert!(node.pods().await.is_empty());
    no_logs(&node);
    node.finish().await;
}

#[tokio::test]
async fn what_does_not_start_leaves_nothing() {
    let node = TestNode::start().await;
    for args in [
        &[BUSYBOX, "/nonexistent"][..],
        &["-u", "nobody-at-all", BUSYBOX, "true"],
        &["-v", "/proc/nothing:/x", BUSYBOX, "true"],
        &["--pull", "never", "localhost/nothing:1"],
        &["localhost/nothing:1"],
        &["--name", "not a name", BUSYBOX, "true"],
    ] {
        let said = Said::by(run(&node, args));
        assert_eq!(said.status, 125, "{args:?}: {said:?}");
        assert!(said.stderr.contains("carpel: "), "{said:?}");
        assert!(node.pods().await.is_empty(), "{args:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_signal_stops_the_container_and_removes_what_was_to_be_removed() {
    let node = TestNode::start().await;
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut running = Running::start(run(&node, &["--rm", BUSYBOX, "sh", "-c", script]));
        running.wait_for("ready\n");
        running.signal(signal);
        assert_eq!(running.end(), status);
        assert_eq!(running.text(), "ready\nbye\n");
        assert!(node.pods().await.is_empty());
    }
    // One that does not want to end is killed by the second.
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running = Running::start(run(&node, &["--rm", BUSYBOX, "sh", "-c", script]));
    running.wait_for("ready\n");
    running.signal(Signal::SIGINT);
    std::thread::sleep(std::time::Duration::from_millis(200));
    running.signal(Signal::SIGINT);
    assert_eq!(running.end(), 130);
    assert!(node.pods().await.is_empty());
    node.finish().await;
}
