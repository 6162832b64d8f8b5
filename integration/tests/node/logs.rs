//! The log files: the CRI's format, whole, in order, rotated, and never in a container's way.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use carpel_integration::request::sleeper;
use carpel_integration::v1::{ContainerState, ContainerStatusRequest, ReopenContainerLogRequest};
use carpel_integration::{Log, TestNode, host, sh};
use tonic::{Code, Status};

use crate::refused;

async fn reopen(node: &TestNode, id: &str) -> Result<(), Status> {
    let request = ReopenContainerLogRequest {
        container_id: id.to_owned(),
    };
    node.cri
        .runtime()
        .reopen_container_log(request)
        .await
        .map(drop)
}

#[tokio::test]
async fn a_line_has_its_time_its_stream_and_its_tag() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "echo out; sleep 0.1; echo err >&2; sleep 0.1; echo; sleep 0.1; printf 'no end'";
    let (log, _) = node.run_to_end(&pod, &sh("a", script)).await;
    let lines: Vec<_> = log
        .0
        .iter()
        .map(|line| {
            (
                line.stream.as_str(),
                line.partial,
                String::from_utf8_lossy(&line.text).into_owned(),
            )
        })
        .collect();
    assert_eq!(
        lines[..3],
        [
            ("stdout", false, "out".into()),
            ("stderr", false, "err".into()),
            ("stdout", false, String::new())
        ]
    );
    // What was cut off by the end is a line that is not complete.
    assert_eq!(lines[3], ("stdout", true, "no end".into()));
    assert_eq!(lines.len(), 4);
    assert!(log.0.windows(2).all(|pair| pair[0].time < pair[1].time));
    // 2026-01-02T03:04:05.123456789Z
    assert!(log.0.iter().all(|line| line.time.len() >= 30), "{log:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_long_line_comes_in_parts_of_at_most_16_kib() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo next; head -c 16384 /dev/zero | tr '\\0' y; echo";
    let (log, _) = node.run_to_end(&pod, &sh("a", script)).await;
    assert!(log.0.iter().all(|line| line.text.len() <= 16384));
    assert_eq!(
        log.stdout(),
        format!("{}\nnext\n{}\n", "x".repeat(40_000), "y".repeat(16_384))
    );
    let x = log.0.iter().filter(|line| line.text.first() == Some(&b'x'));
    assert!((3..=4).contains(&x.count()));
    node.finish().await;
}

#[tokio::test]
async fn nothing_is_lost_at_the_end_and_streams_do_not_mix() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "seq 1 50000; seq 50001 100000 >&2; seq 100001 150000; printf last";
    let (log, _) = node.run_to_end(&pod, &sh("a", script)).await;
    let lines =
        |range: std::ops::RangeInclusive<u32>| range.map(|n| format!("{n}\n")).collect::<String>();
    assert_eq!(
        log.stdout(),
        lines(1..=50_000) + &lines(100_001..=150_000) + "last"
    );
    assert_eq!(log.stderr(), lines(50_001..=100_000));
    node.finish().await;
}

#[tokio::test]
async fn bytes_that_are_no_text_arrive() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let (log, _) = node
        .run_to_end(&pod, &sh("a", r"printf 'a\000b\377\r\tc\n'"))
        .await;
    assert_eq!(log.0.len(), 1);
    assert_eq!(log.0[0].text, b"a\0b\xff\r\tc");
    node.finish().await;
}

#[tokio::test]
async fn a_rotated_log_goes_on_in_the_new_file_without_a_gap() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); echo $n; [ $((n % 100)) = 0 ] && usleep 20000; done";
    let id = node.start_container(&pod, &sh("a", script)).await;
    let path = node.log_dir("one").join("a.log");
    let mut whole = String::new();
    for n in 0..4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let rotated = node.log_dir("one").join(format!("a.log.{n}"));
        fs::rename(&path, &rotated).unwrap();
        reopen(&node, &id).await.unwrap();
        whole += &Log::read(&rotated).stdout();
        assert!(path.exists());
    }
    assert_eq!(node.wait_exit(&id).await.exit_code, 0);
    whole += &Log::read(&path).stdout();
    assert_eq!(
        whole,
        (1..=3000).map(|n| format!("{n}\n")).collect::<String>()
    );
    node.finish().await;
}

#[tokio::test]
async fn a_log_that_was_deleted_is_made_again_and_one_of_an_exited_container_is_not() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sh("a", "trap 'exit 0' TERM; trap 'echo again' USR1; echo first; while true; do sleep 1000 & wait; done")).await;
    node.wait_log(&pod, "a", |log| log.stdout() == "first\n")
        .await;
    fs::remove_file(node.log_dir("one").join("a.log")).unwrap();
    reopen(&node, &id).await.unwrap();
    node.exec(&id, "kill -USR1 1").await;
    node.wait_log(&pod, "a", |log| log.stdout() == "again\n")
        .await;
    node.try_stop(&id, 5).await.unwrap();
    refused(
        reopen(&node, &id).await,
        Code::FailedPrecondition,
        "running",
    );
    refused(reopen(&node, &"a".repeat(64)).await, Code::NotFound, "");
    node.finish().await;
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_never_the_container() {
    let node = TestNode::start().await;
    let disk = node.log_dir("one");
    fs::create_dir_all(&disk).unwrap();
    let mount =
        |args: &[&str]| assert!(Command::new("mount").args(args).status().unwrap().success());
    let at = disk.display().to_string();
    mount(&["-t", "tmpfs", "-o", "size=256k", "none", &at]);
    let pod = node.run_pod(&node.pod("one")).await;
    let script =
        "trap 'echo after; exit 0' TERM; seq 1 200000; echo done > /tmp/done; sleep 1000 & wait";
    let id = node.start_container(&pod, &sh("a", script)).await;
    let deadline = std::time::Instant::now() + host::patience(Duration::from_secs(10));
    while node
        .try_exec(&id, &["test", "-e", "/tmp/done"], 5)
        .await
        .unwrap()
        .exit_code
        != 0
    {
        assert!(
            std::time::Instant::now() < deadline,
            "the container is blocked by its log"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    mount(&["-o", "remount,size=16m", "none", &at]);
    node.try_stop(&id, 10).await.unwrap();
    let status = node.status(&id).await;
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 0)
    );
    let text = Log::read(&Path::new(&at).join("a.log")).stdout();
    assert!(
        text.starts_with("1\n2\n"),
        "what came before the disk was full"
    );
    assert!(
        text.ends_with("\nafter\n"),
        "what came when there was room again"
    );
    // 1 to 200,000 and "after" were written; what is missing is counted.
    let missing = 200_001 - text.lines().count();
    assert!(missing > 1000);
    let request = ContainerStatusRequest {
        container_id: id.clone(),
        verbose: true,
    };
    let response = node.cri.runtime().container_status(request).await;
    let info = response.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let counted = info["droppedLogLines"].as_u64().expect("a number");
    assert!(
        counted.abs_diff(missing as u64) <= 1,
        "{counted} of {missing}"
    );
    node.remove_pods().await;
    let _ = nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH);
    node.finish().await;
}

#[tokio::test]
async fn without_a_log_path_output_goes_nowhere() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("a", "seq 1 100000; exit 4");
    config.log_path = String::new();
    let id = node.start_container(&pod, &config).await;
    assert_eq!(node.wait_exit(&id).await.exit_code, 4);
    assert!(!node.log_dir("one").join("a.log").exists());
    // A sandbox without a folder of logs has none, either.
    let mut config = node.pod("two");
    config.log_directory = String::new();
    let pod = node.run_pod(&config).await;
    let mut config = sh("b", "echo x");
    config.log_path = String::new();
    let id = node.start_container(&pod, &config).await;
    assert_eq!(node.wait_exit(&id).await.exit_code, 0);
    node.finish().await;
}

#[tokio::test]
async fn a_log_may_lie_in_a_folder_below_and_outlives_its_container() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("a", "echo deep");
    config.log_path = "a/0.log".into();
    let (log, status) = node.run_to_end(&pod, &config).await;
    assert_eq!(log.stdout(), "deep\n");
    let path = node.log_dir("one").join("a/0.log");
    assert_eq!(status.log_path, path.display().to_string());
    // A second attempt appends to its own file; the first one's stays when the container goes.
    node.try_remove(&status.id).await.unwrap();
    assert_eq!(Log::read(&path).stdout(), "deep\n");
    node.finish().await;
}

#[tokio::test]
async fn a_flood_from_one_container_leaves_others_alone() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut flood = sh("flood", "yes > /dev/stderr");
    flood.log_path = String::new();
    node.start_container(&pod, &flood).await;
    let quiet = node.start_container(&pod, &sleeper("quiet")).await;
    for _ in 0..20 {
        assert_eq!(node.exec(&quiet, "echo quick").await, "quick\n");
    }
    assert!(host::runs(node.container_pid(&quiet)));
    node.finish().await;
}
