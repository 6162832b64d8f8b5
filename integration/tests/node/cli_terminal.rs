//! The command line on a real terminal: its width, its colours, its Ctrl-C.

use carpel_integration::cli::{Running, carpel};
use carpel_integration::image::BUSYBOX;
use carpel_integration::request::sleeper;
use carpel_integration::{TestNode, sh};

/// A terminal's text without colours.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut parts = text.split("\u{1b}[");
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let end = part
            .find(|c: char| c.is_ascii_alphabetic())
            .map_or(part.len(), |at| at + 1);
        plain.push_str(&part[end..]);
    }
    plain
}

#[tokio::test]
async fn tables_fit_the_terminal() {
    let node = TestNode::start().await;
    let pod = node
        .run_pod(&node.pod("a-pod-with-quite-a-long-name"))
        .await;
    node.start_container(&pod, &sleeper("a-container-with-quite-a-long-name"))
        .await;
    let command = carpel(&node.endpoint(), &["ps"]);
    for (columns, cut) in [(80, true), (200, false)] {
        let mut running = Running::on_terminal(&command, columns);
        assert_eq!(running.end(), 0);
        running.wait_for("Running");
        running.wait_for(if cut { "…" } else { "quite-a-long-name\r\n" });
        let text = plain(&running.text());
        for line in text.lines() {
            assert!(
                line.chars().count() <= usize::from(columns),
                "{columns}: {line:?}"
            );
        }
        assert_eq!(text.contains('…'), cut, "{text}");
    }
    node.finish().await;
}

#[tokio::test]
async fn colour_is_for_terminals_that_want_it() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    node.start_container(&pod, &sleeper("server")).await;
    let mut command = carpel(&node.endpoint(), &["ps"]);
    let mut running = Running::on_terminal(&command, 100);
    assert_eq!(running.end(), 0);
    running.wait_for("\u{1b}[32mRunning\u{1b}[0m");
    command.env("NO_COLOR", "1");
    let mut running = Running::on_terminal(&command, 100);
    assert_eq!(running.end(), 0);
    running.wait_for("Running");
    assert!(!running.text().contains('\u{1b}'), "{:?}", running.text());
    node.finish().await;
}

#[tokio::test]
async fn ctrl_c_ends_what_would_go_on() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    let id = node
        .start_container(&pod, &sh("app", "echo ready; exec sleep 600"))
        .await;
    let mut running = Running::on_terminal(&carpel(&node.endpoint(), &["logs", "-f", "app"]), 80);
    running.wait_for("ready");
    running.press("\u{3}");
    assert_eq!(running.end(), 130);
    assert!(!running.text().contains("panicked"), "{:?}", running.text());
    // The container has not noticed.
    assert_eq!(node.status(&id).await.finished_at, 0);
    let logs = node.dir().join("logs").display().to_string();
    let args = [
        "run",
        "--rm",
        "--name",
        "mine",
        "--log-dir",
        &logs,
        BUSYBOX,
        "sh",
        "-c",
        "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done",
    ];
    let mut running = Running::on_terminal(&carpel(&node.endpoint(), &args), 80);
    running.wait_for("ready");
    running.press("\u{3}");
    assert_eq!(running.end(), 130);
    running.wait_for("bye");
    assert_eq!(node.pods().await.len(), 1);
    node.finish().await;
}
