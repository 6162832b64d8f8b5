//! ExecSync: output, exit code, timeout, and who the process is.

use std::time::{Duration, Instant};

use carpel_integration::image::Image;
use carpel_integration::request::sleeper;
use carpel_integration::v1::Int64Value;
use carpel_integration::{ContainerConfigExt, TestNode, host, sh};
use serde_json::json;
use tonic::Code;

use crate::{node_with_container, refused};

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let (node, _, id) = node_with_container().await;
    let response = node
        .try_exec(
            &id,
            &["sh", "-c", "printf 'o\\377'; echo e >&2; exit 42"],
            10,
        )
        .await
        .unwrap();
    assert_eq!(response.stdout, b"o\xff");
    assert_eq!(response.stderr, b"e\n");
    assert_eq!(response.exit_code, 42);
    let response = node
        .try_exec(&id, &["sh", "-c", "kill -9 $$"], 10)
        .await
        .unwrap();
    assert_eq!(response.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn an_exec_is_in_the_container_as_its_user_in_its_folder_with_its_environment() {
    let mut node = TestNode::start().await;
    let image = Image::busybox()
        .tagged("localhost/exec:1")
        .set("WorkingDir", json!("/home/alice"));
    node.import(image.oci()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sleeper("a").env("OWN", b"value");
    config.image.as_mut().unwrap().image = "localhost/exec:1".into();
    config.security().run_as_user = Some(Int64Value { value: 1001 });
    config.security().no_new_privs = true;
    let id = node.start_container(&pod, &config).await;
    let script = "id -u; pwd; echo $OWN $FROM_IMAGE $HOME; grep -E 'CapEff|NoNewPrivs' /proc/self/status; cat /proc/1/comm";
    assert_eq!(
        node.exec(&id, script).await,
        "1001\n/home/alice\nvalue yes /home/alice\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nsh\n"
    );
    let same = "for n in net ipc uts mnt pid cgroup; do readlink /proc/self/ns/$n; done";
    let init = same.replace("self", "1");
    assert_eq!(node.exec(&id, same).await, node.exec(&id, &init).await);
    node.finish().await;
}

#[tokio::test]
async fn more_than_16_mib_is_cut_off_and_the_process_ends() {
    let (node, _, id) = node_with_container().await;
    let response = node
        .try_exec(
            &id,
            &[
                "sh",
                "-c",
                "head -c 20000000 /dev/zero; echo end >&2; exit 3",
            ],
            30,
        )
        .await
        .unwrap();
    // The whole answer is at most what a kubelet takes.
    let length = response.stdout.len();
    assert!(((16 << 20) - 1024..=16 << 20).contains(&length), "{length}");
    assert_eq!(
        (response.stderr.as_slice(), response.exit_code),
        (b"end\n".as_slice(), 3)
    );
    node.finish().await;
}

#[tokio::test]
async fn a_timeout_kills_and_reaps_the_process() {
    let (node, _, id) = node_with_container().await;
    let begin = Instant::now();
    let outcome = node
        .try_exec(&id, &["sh", "-c", "trap '' TERM; sleep 987 & sleep 987"], 1)
        .await;
    refused(outcome, Code::DeadlineExceeded, "");
    assert!(begin.elapsed() < host::patience(Duration::from_secs(3)));
    let left = node
        .exec(&id, "ps | grep 'sleep 987' | grep -v grep | wc -l")
        .await;
    assert_eq!(left.trim(), "0", "processes of the exec after its timeout");
    let zombies = host::all_pids().into_iter().filter(|pid| {
        host::proc_status(*pid, "State").is_some_and(|state| state.starts_with('Z'))
            && std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|text| text.contains(&id))
    });
    assert_eq!(zombies.count(), 0);
    node.finish().await;
}

#[tokio::test]
async fn the_end_of_the_process_ends_the_call_whoever_holds_its_output() {
    let (node, _, id) = node_with_container().await;
    let begin = Instant::now();
    let response = node
        .try_exec(&id, &["sh", "-c", "sleep 30 & echo started"], 20)
        .await
        .unwrap();
    assert_eq!(response.stdout, b"started\n");
    assert!(
        begin.elapsed() < host::patience(Duration::from_secs(3)),
        "{:?}",
        begin.elapsed()
    );
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_cannot_run_is_an_error_that_names_it() {
    let (node, _, id) = node_with_container().await;
    for (command, part) in [
        ("/bin/nonexistent", "no such file"),
        ("nonexistent", "nonexistent"),
        ("/bin/not-executable", "permission denied"),
        ("/etc", "/etc"),
    ] {
        let status = node
            .try_exec(&id, &[command], 10)
            .await
            .expect_err("refused");
        let text = status.message().to_lowercase();
        assert!(text.contains(command) && text.contains(part), "{status}");
    }
    refused(
        node.try_exec(&id, &[], 10).await,
        Code::InvalidArgument,
        "cmd",
    );
    refused(
        node.try_exec(&id, &["true"], -1).await,
        Code::InvalidArgument,
        "timeout",
    );
    node.finish().await;
}

#[tokio::test]
async fn an_exec_needs_a_running_container() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.try_create(&pod, &sleeper("a")).await.unwrap();
    refused(
        node.try_exec(&id, &["true"], 5).await,
        Code::FailedPrecondition,
        "running",
    );
    node.try_start(&id).await.unwrap();
    node.try_stop(&id, 5).await.unwrap();
    refused(
        node.try_exec(&id, &["true"], 5).await,
        Code::FailedPrecondition,
        "running",
    );
    refused(
        node.try_exec(&"b".repeat(64), &["true"], 5).await,
        Code::NotFound,
        "",
    );
    node.finish().await;
}

#[tokio::test]
async fn the_containers_end_ends_its_execs() {
    let (node, _, id) = node_with_container().await;
    let exec = node.try_exec(&id, &["sleep", "1000"], 30);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.try_stop(&id, 0).await.unwrap();
    };
    let begin = Instant::now();
    let (outcome, ()) = tokio::join!(exec, stop);
    assert!(begin.elapsed() < host::patience(Duration::from_secs(3)));
    if let Ok(response) = outcome {
        assert_eq!(response.exit_code, 137);
    }
    node.finish().await;
}

#[tokio::test]
async fn many_execs_at_a_time_each_get_their_own_output() {
    let (node, _, id) = node_with_container().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (cri, id) = (node.cri.clone(), id.clone());
        tasks.spawn(async move {
            let request = carpel_integration::v1::ExecSyncRequest {
                container_id: id,
                cmd: ["sh", "-c", &format!("echo {n}; exit {n}")]
                    .map(str::to_owned)
                    .to_vec(),
                timeout: 30,
            };
            (
                n,
                cri.runtime().exec_sync(request).await.unwrap().into_inner(),
            )
        });
    }
    while let Some(done) = tasks.join_next().await {
        let (n, response) = done.unwrap();
        assert_eq!(
            (response.stdout, response.exit_code),
            (format!("{n}\n").into_bytes(), n)
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn an_exec_reads_no_input() {
    let (node, pod, id) = node_with_container().await;
    assert_eq!(node.exec(&id, "cat; echo end").await, "end\n");
    let mut config = sh("tty", "trap 'exit 0' TERM; sleep 1000 & wait");
    config.tty = true;
    let id = node.start_container(&pod, &config).await;
    assert_eq!(node.exec(&id, "cat; echo end").await, "end\n");
    node.finish().await;
}
