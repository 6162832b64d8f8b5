//! The daemon from outside: socket, locks, signals, readiness, and the calls about the node itself.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::{TestNode, host, v1};
use tonic::Code;

use crate::refused;

#[tokio::test]
async fn the_socket_is_for_root_alone() {
    let node = TestNode::start().await;
    let metadata = fs::metadata(node.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    for dir in ["root", "state"] {
        let mode = fs::metadata(node.dir().join(dir))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700, "{dir}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_second_daemon_is_refused_with_the_firsts_pid() {
    let node = TestNode::start().await;
    let pid = node.daemon_pid().unwrap();
    let other = node.dir().join("run/other.sock").display().to_string();
    let output = node
        .net
        .run(|| node.serve_command().args(["--listen", &other]).output())
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("carpel: ") && last.contains(&format!("(pid {pid})")),
        "{text}"
    );
    // The first one serves on, and keeps its socket.
    assert!(
        node.cri
            .runtime()
            .version(v1::VersionRequest::default())
            .await
            .is_ok()
    );
    node.finish().await;
}

#[tokio::test]
async fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
    let mut node = TestNode::start().await;
    let other = node.dir().join("other-root").display().to_string();
    let output = node
        .net
        .run(|| node.serve_command().args(["--root", &other]).output())
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("in use") && text.contains(&node.endpoint()),
        "{text}"
    );
    // A daemon that was killed leaves its socket file.
    node.kill_daemon();
    assert!(node.socket().exists());
    node.start_daemon(None).await;
    // Something that is no socket is not ours to delete.
    node.terminate_daemon().await;
    fs::write(node.socket(), "precious").unwrap();
    let output = node.net.run(|| node.serve_command().output()).unwrap();
    assert!(!output.status.success());
    assert_eq!(fs::read_to_string(node.socket()).unwrap(), "precious");
    fs::remove_file(node.socket()).unwrap();
    let listener = UnixListener::bind(node.socket()).unwrap();
    let output = node.net.run(|| node.serve_command().output()).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use"));
    drop(listener);
    node.finish().await;
}

#[tokio::test]
async fn sigterm_stops_serving_at_once_and_leaves_pods_running() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let pid = node.container_pid(&id);
    let started = host::start_time(pid);
    let cri = node.cri.clone();
    let hanging = tokio::spawn({
        let id = id.clone();
        async move {
            let request = v1::ExecSyncRequest {
                container_id: id,
                cmd: vec!["sleep".into(), "1000".into()],
                timeout: 0,
            };
            cri.runtime().exec_sync(request).await
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begin = Instant::now();
    assert!(node.terminate_daemon().await.success());
    assert!(
        begin.elapsed() < host::patience(Duration::from_secs(5)),
        "{:?}",
        begin.elapsed()
    );
    assert!(hanging.await.unwrap().is_err());
    assert!(!node.socket().exists());
    assert_eq!(host::start_time(pid), started);
    node.start_daemon(None).await;
    assert_eq!(
        node.status(&id).await.state(),
        v1::ContainerState::ContainerRunning
    );
    assert_eq!(node.exec(&id, "echo still here").await, "still here\n");
    node.finish().await;
}

#[tokio::test]
async fn systemd_is_told_when_the_daemon_is_ready_and_when_it_stops() {
    let mut node = TestNode::builder().no_image().start().await;
    node.terminate_daemon().await;
    let path = node.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(host::patience(Duration::from_secs(5))))
        .unwrap();
    let mut command = node.serve_command();
    let mut child = node
        .net
        .run(|| command.env("NOTIFY_SOCKET", &path).spawn())
        .unwrap();
    let receive = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("a notification");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let ready = receive();
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    // What was said is true.
    std::os::unix::net::UnixStream::connect(node.socket()).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(receive().contains("STOPPING=1"));
    assert!(child.wait().unwrap().success());
    node.finish().await;
}

#[tokio::test]
async fn a_read_only_disk_is_told_and_what_runs_goes_on() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    assert!(node.condition("RuntimeReady").await.status);
    let root = node.dir().join("root");
    let none = None::<&str>;
    mount(Some(&root), &root, none, MsFlags::MS_BIND, none).unwrap();
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &root, none, flags, none).unwrap();

    let condition = node.condition("RuntimeReady").await;
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (false, "StateNotWritable")
    );
    let what = format!("cannot write to {}: Read-only file system", root.display());
    assert!(condition.message.starts_with(&what), "{condition:?}");
    refused(
        node.try_run_pod(&node.pod("two")).await,
        Code::Internal,
        "Read-only file system",
    );
    assert_eq!(node.exec(&id, "echo alive").await, "alive\n");
    assert_eq!(
        (node.pods().await.len(), node.containers().await.len()),
        (1, 1)
    );
    // The processes end; that this is not on disk yet changes nothing.
    node.try_stop(&id, 0).await.unwrap();

    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    assert!(node.condition("RuntimeReady").await.status);
    node.finish().await;
}

#[tokio::test]
async fn the_node_says_who_it_is() {
    let node = TestNode::builder().no_image().start().await;
    let mut runtime = node.cri.runtime();
    let version = runtime
        .version(v1::VersionRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (version.version.as_str(), version.runtime_name.as_str()),
        ("0.1.0", "carpel")
    );
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_version.is_empty());

    let status = runtime
        .status(v1::StatusRequest { verbose: true })
        .await
        .unwrap()
        .into_inner();
    let conditions = status.status.unwrap().conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions
            .iter()
            .find(|condition| condition.r#type == kind)
            .expect(kind);
        assert!(condition.status, "{condition:?}");
    }
    // The default handler under its empty name, or default pods that want its features are refused.
    assert!(
        status
            .runtime_handlers
            .iter()
            .any(|handler| handler.name.is_empty())
    );
    assert!(status.features.unwrap().supplemental_groups_policy);
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert!(config.is_object());

    let config = runtime
        .runtime_config(v1::RuntimeConfigRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        config.linux.unwrap().cgroup_driver(),
        v1::CgroupDriver::Cgroupfs
    );
    let update = v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig {
                pod_cidr: "10.7.0.0/24".into(),
            }),
        }),
    };
    runtime.update_runtime_config(update).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn what_is_not_there_says_so_by_its_name() {
    let node = TestNode::builder().no_image().start().await;
    let mut runtime = node.cri.runtime();
    macro_rules! unimplemented {
        ($($method:ident($request:ident) $name:literal),* $(,)?) => {$(
            let status = runtime.$method(v1::$request::default()).await.map(drop).expect_err($name);
            assert_eq!(status.code(), Code::Unimplemented, "{}", $name);
            assert!(status.message().contains($name), "{status}");
        )*};
    }
    unimplemented! {
        checkpoint_container(CheckpointContainerRequest) "CheckpointContainer",
        checkpoint_pod(CheckpointPodRequest) "CheckpointPod",
        restore_pod(RestorePodRequest) "RestorePod",
    }
    node.finish().await;
}

#[tokio::test]
async fn the_daemon_raises_its_own_limit_on_open_files() {
    let node = TestNode::builder().no_image().start().await;
    let limits =
        fs::read_to_string(format!("/proc/{}/limits", node.daemon_pid().unwrap())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
    node.finish().await;
}

#[tokio::test]
async fn lists_are_quick_with_pods_there() {
    let node = TestNode::start().await;
    for n in 0..10 {
        let pod = node.run_pod(&node.pod(&format!("p{n}"))).await;
        node.start_container(&pod, &sleeper("a")).await;
    }
    // The quickest: the others also tell what else the machine has to do.
    let mut quickest = Duration::MAX;
    for _ in 0..100 {
        let begin = Instant::now();
        assert_eq!(node.pods().await.len(), 10);
        assert_eq!(node.containers().await.len(), 10);
        quickest = quickest.min(begin.elapsed() / 2);
    }
    let bound = host::patience(Duration::from_millis(10));
    assert!(quickest < bound, "{quickest:?}");
    node.finish().await;
}
