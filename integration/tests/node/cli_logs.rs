//! `carpel logs`: what was written, and what is being written.

use std::fs;
use std::path::Path;
use std::time::Duration;

use carpel_integration::cli::{Running, Said, carpel};
use carpel_integration::{TestNode, sh, v1};

fn logs(node: &TestNode, args: &[&str]) -> Said {
    Said::by(carpel(&node.endpoint(), &[&["logs"], args].concat()))
}

fn follow(node: &TestNode, args: &[&str]) -> Running {
    Running::start(carpel(&node.endpoint(), &[&["logs", "-f"], args].concat()))
}

#[tokio::test]
async fn a_log_is_shown_as_it_was_written() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    // A line of 20 KiB is two entries of the file.
    let script = "echo one; head -c 20000 /dev/zero | tr '\\0' x; echo; echo last";
    let id = node.start_container(&pod, &sh("app", script)).await;
    node.wait_exit(&id).await;
    let long = "x".repeat(20_000);
    assert_eq!(
        logs(&node, &["web/app"]).ok(),
        format!("one\n{long}\nlast\n")
    );
    // A container of its own: which of two streams is logged first is nobody's promise.
    let complaint = node
        .start_container(&pod, &sh("complaint", "echo err >&2"))
        .await;
    node.wait_exit(&complaint).await;
    let said = logs(&node, &["complaint"]);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", "err\n"));
    assert_eq!(
        logs(&node, &["app", "--tail", "2"]).ok(),
        format!("{long}\nlast\n")
    );
    assert_eq!(logs(&node, &["app", "-n", "0"]).ok(), "");
    assert_eq!(
        logs(
            &node,
            &["app", "--since", "2001-01-01T00:00:00Z", "-n", "1"]
        )
        .ok(),
        "last\n"
    );
    assert_eq!(
        logs(&node, &["app", "--since", "2100-01-01T00:00:00Z"]).ok(),
        ""
    );
    assert_eq!(logs(&node, &["app", "--since", "1h", "-n1"]).ok(), "last\n");
    let stamped = logs(&node, &["app", "-t", "--tail", "1"]).ok();
    assert!(
        stamped.starts_with("20") && stamped.ends_with("Z last\n"),
        "{stamped}"
    );
    let json = logs(&node, &["app", "-o", "json", "--tail", "1"]).json();
    assert_eq!(
        (&json["stream"], &json["log"]),
        (&"stdout".into(), &"last\n".into())
    );
    // To follow what is over is to show it.
    assert_eq!(
        logs(&node, &["-f", "app"]).ok(),
        format!("one\n{long}\nlast\n")
    );
    node.finish().await;
}

#[tokio::test]
async fn following_ends_with_the_container() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    let id = node
        .try_create(
            &pod,
            &sh(
                "app",
                "for i in 1 2 3; do echo $i; sleep 0.2; done; echo end",
            ),
        )
        .await
        .unwrap();
    // Before there is a log at all.
    let mut running = follow(&node, &["app"]);
    std::thread::sleep(Duration::from_millis(100));
    node.try_start(&id).await.unwrap();
    running.wait_for("1\n");
    assert_eq!(running.end(), 0);
    assert_eq!(running.text(), "1\n2\n3\nend\n");
    node.finish().await;
}

#[tokio::test]
async fn following_goes_through_rotations_and_a_daemons_crash() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    let script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); [ $((i % 10)) = 0 ] && usleep 5000; done";
    let id = node.start_container(&pod, &sh("app", script)).await;
    let path = node.status(&id).await.log_path;
    let mut running = follow(&node, &["app"]);
    running.wait_for("\n50\n");
    for turn in 0..5 {
        fs::rename(&path, format!("{path}.{turn}")).unwrap();
        let request = v1::ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        node.cri
            .runtime()
            .reopen_container_log(request)
            .await
            .unwrap();
        if turn == 2 {
            node.crash().await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(Path::new(&path).exists());
    assert_eq!(running.end(), 0);
    let expected: String = (0..3000).map(|n| format!("{n}\n")).collect();
    assert!(
        running.text() == expected,
        "lines are missing or come twice"
    );
    node.finish().await;
}

/// As a kubelet rotates: the newest of the old files stays as it is, those before it are packed.
async fn rotate(node: &TestNode, id: &str, path: &str, time: &str) {
    fs::rename(path, format!("{path}.{time}")).unwrap();
    let request = v1::ReopenContainerLogRequest {
        container_id: id.to_owned(),
    };
    let mut runtime = node.cri.runtime();
    runtime.reopen_container_log(request).await.unwrap();
}

#[tokio::test]
async fn what_was_rotated_away_is_shown_too() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    // Each signal makes it write two more lines.
    let script = "n=0; say() { echo $n; n=$((n+1)); echo $n; n=$((n+1)); }; trap say USR1; \
                  trap 'exit 0' TERM; say; while :; do sleep 0.02; done";
    let id = node.start_container(&pod, &sh("app", script)).await;
    let path = node.status(&id).await.log_path;
    let mut running = follow(&node, &["app"]);
    running.wait_for("1\n");
    for (time, last) in [("20261126-120000", 3), ("20261126-130000", 5)] {
        rotate(&node, &id, &path, time).await;
        node.exec(&id, "kill -USR1 1").await;
        running.wait_for(&format!("\n{last}\n"));
    }
    let packed = std::process::Command::new("gzip")
        .arg(format!("{path}.20261126-120000"))
        .status();
    assert!(packed.unwrap().success());
    let all = "0\n1\n2\n3\n4\n5\n";
    assert_eq!(logs(&node, &["app"]).ok(), all);
    for (count, from) in [("1", 10), ("2", 8), ("3", 6), ("4", 4), ("5", 2), ("9", 0)] {
        let told = logs(&node, &["app", "--tail", count]).ok();
        assert_eq!(told, all[from..], "{count}");
    }
    assert_eq!(logs(&node, &["app", "--since", "1h"]).ok(), all);
    assert_eq!(
        logs(&node, &["app", "--since", "1h", "--tail", "5"]).ok(),
        all[2..]
    );
    let mut again = follow(&node, &["app", "--tail", "3"]);
    again.wait_for("3\n4\n5\n");
    node.exec(&id, "kill -USR1 1").await;
    again.wait_for("5\n6\n7\n");
    // One that is damaged is named, after all that can be read.
    fs::write(format!("{path}.20261126-110000.gz"), "no gzip").unwrap();
    let said = logs(&node, &["app"]);
    assert_eq!(said.stdout, "0\n1\n2\n3\n4\n5\n6\n7\n");
    said.failed(1, "20261126-110000.gz");
    node.try_stop(&id, 5).await.unwrap();
    assert_eq!((running.end(), again.end()), (0, 0));
    assert_eq!(again.text(), "3\n4\n5\n6\n7\n");
    node.finish().await;
}

#[tokio::test]
async fn following_ends_when_nobody_reads() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    node.start_container(&pod, &sh("app", "echo one; exec sleep 600"))
        .await;
    let mut command = carpel(&node.endpoint(), &["logs", "-f", "app"]);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    assert_eq!(line, "one\n");
    drop(reader);
    let status = tokio::task::spawn_blocking(move || child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    node.finish().await;
}
