//! `carpel inspect`, and where the milliseconds of a start went.

use carpel_integration::TestNode;
use carpel_integration::cli::{Said, carpel};
use carpel_integration::image::BUSYBOX;
use carpel_integration::request::{sh, sleeper};

fn inspect(node: &TestNode, args: &[&str]) -> Said {
    Said::by(carpel(&node.endpoint(), &[&["inspect"], args].concat()))
}

#[tokio::test]
async fn everything_that_the_runtime_says_is_shown() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    let server = node.start_container(&pod, &sleeper("server")).await;
    let failed = node.start_container(&pod, &sh("failed", "exit 137")).await;
    node.wait_exit(&failed).await;

    let text = inspect(&node, &["web"]).ok();
    let ip = node.pod_ip(&pod).await.to_string();
    for part in [
        "default/web",
        &pod.id,
        "Ready",
        &ip,
        &server[..12],
        "failed (exited",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = inspect(&node, &["failed"]).ok();
    assert!(text.contains("Exited with 137, SIGKILL (Error)"), "{text}");
    assert!(text.contains("\"exit 137\""), "{text}");
    let text = inspect(&node, &[BUSYBOX]).ok();
    for part in [
        "sha256:",
        "platform      linux/",
        "command       /bin/sh -c \"echo from the image\"",
        "FROM_IMAGE=yes",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let json = inspect(&node, &["web", "-o", "json"]).json();
    assert_eq!(json["status"]["network"]["ip"], ip);
    assert_eq!(json["status"]["state"], "SANDBOX_READY");
    assert_eq!(json["containersStatuses"].as_array().map(Vec::len), Some(2));
    assert!(json["info"]["info"]["netns"].is_string());
    let json = inspect(&node, &["web/server", "-o", "json"]).json();
    assert_eq!(json["status"]["id"], server);
    assert!(json["info"]["info"]["runtimeSpec"]["process"]["args"].is_array());
    let json = inspect(&node, &["-t", "image", BUSYBOX, "-o", "json"]).json();
    assert_eq!(json["image"]["repoTags"][0], BUSYBOX);
    let json = inspect(&node, &["server", "failed", "-o", "json"]).json();
    assert_eq!(json.as_array().map(Vec::len), Some(2));
    node.finish().await;
}

#[tokio::test]
async fn a_timeline_is_drawn() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    node.start_container(&pod, &sleeper("server")).await;
    let text = inspect(&node, &["--timeline", "web"]).ok();
    assert!(text.starts_with("default/web  "), "{text}");
    assert!(
        text.contains("\nserver  ") && text.contains('█') && text.contains(" ms"),
        "{text}"
    );
    let svg = inspect(&node, &["--timeline", "web", "-o", "svg"]).ok();
    assert!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
        "{svg}"
    );
    assert!(
        svg.contains("default/web") && svg.contains("<rect"),
        "{svg}"
    );
    let json = inspect(&node, &["--timeline", "web", "-o", "json"]).json();
    let spans = json["timelines"][0]["spans"].as_array().expect("spans");
    assert!(
        spans.len() > 2 && spans[0]["durationMicros"].is_u64(),
        "{json}"
    );
    inspect(&node, &["web", "-o", "svg"]).failed(1, "--timeline");
    node.finish().await;
}

#[tokio::test]
async fn the_disk_is_accounted_for() {
    let node = TestNode::start().await;
    let df = |args: &[&str]| Said::by(carpel(&node.endpoint(), &[&["df"], args].concat()));
    let text = df(&["-v"]).ok();
    let root = node.dir().join("root").display().to_string();
    for part in ["images", "containers", &root, BUSYBOX, "%"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = df(&["-o", "json"]).json();
    assert!(
        json["imageFilesystems"][0]["usedBytes"]["value"].is_string(),
        "{json}"
    );
    assert_eq!(json["images"].as_array().map(Vec::len), Some(1));
    node.finish().await;
}
