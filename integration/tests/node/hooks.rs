//! OCI hooks: programs that run at points of a container's life, as a base spec or a CDI device asks for them.

mod user_namespace;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::v1::{CdiDevice, ContainerState};
use carpel_integration::{PodConfigExt, TestNode, host, sh};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use crate::refused;

/// A folder with a base spec and the programs and traces of its hooks.
struct Hooked(TempDir);

impl Hooked {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A script of the host's shell, that finds its folder in $DIR.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let dir = self.0.path().display();
        fs::write(&path, format!("#!/bin/sh\nDIR={dir}\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn node(&self, hooks: Value) -> TestNode {
        let base = self.path("base.json");
        let spec = json!({"ociVersion": "1.0.2", "hooks": hooks});
        fs::write(&base, spec.to_string()).unwrap();
        let config = format!("[runtime]\nbase_spec = {base:?}\n");
        TestNode::builder().config(&config).start().await
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

fn hook(path: &Path) -> Value {
    json!([{"path": path}])
}

#[tokio::test]
async fn hooks_run_in_order_each_in_its_place() {
    let hooked = Hooked::new();
    let note =
        "cat > $DIR/$1.json; echo $1 >> $DIR/order; readlink /proc/self/ns/mnt > $DIR/$1.mnt";
    let note = hooked.script("note", note);
    let at = |point: &str| json!([{"path": note, "args": ["note", point], "env": ["X=1", "PATH=/usr/bin:/bin"]}]);
    let mut node = hooked
        .node(json!({
            "prestart": at("prestart"),
            "createRuntime": at("createRuntime"),
            "createContainer": at("createContainer"),
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /started; id -u >> /started"]}],
            "poststart": at("poststart"),
            "poststop": at("poststop"),
        }))
        .await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let before = "prestart\ncreateRuntime\ncreateContainer\npoststart\n";
    assert_eq!(hooked.read("order"), before);
    let pid = node.container_pid(&id);
    let state = |name: &str| -> Value { serde_json::from_str(&hooked.read(name)).unwrap() };
    for (point, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
    ] {
        let state = state(&format!("{point}.json"));
        assert_eq!(state["id"], id.as_str(), "{point}");
        assert_eq!(state["status"], status, "{point}");
        assert_eq!(state["pid"], pid, "{point}");
        assert_eq!(
            state["annotations"]["io.kubernetes.cri.container-name"],
            "a"
        );
        // The daemon's namespace, or the container's own.
        let own = format!(
            "{}\n",
            fs::read_link("/proc/self/ns/mnt").unwrap().display()
        );
        assert_eq!(
            hooked.read(&format!("{point}.mnt")) == own,
            point != "createContainer",
            "{point}"
        );
    }
    let started: Value = {
        let text = node.exec(&id, "cat /started").await;
        let (json, uid) = text.rsplit_once("}").unwrap();
        assert_eq!(uid.trim(), "0");
        serde_json::from_str(&format!("{json}}}")).unwrap()
    };
    assert_eq!(
        (started["status"].as_str(), started["pid"].as_i64()),
        (Some("created"), Some(pid.into()))
    );
    // The bundle is one, and goes with the container.
    let bundle = PathBuf::from(state("createContainer.json")["bundle"].as_str().unwrap());
    let spec: Value =
        serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(spec["root"]["path"], "rootfs");
    assert!(spec["hooks"]["poststop"].is_array());
    assert_eq!(
        fs::read_dir(bundle.join("rootfs")).unwrap().count(),
        0,
        "the host sees no mount"
    );
    // After the daemon's death the hooks are known as before.
    node.crash().await;
    node.try_stop(&id, 5).await.unwrap();
    assert_eq!(hooked.read("order"), format!("{before}poststop\n"));
    let stopped = state("poststop.json");
    assert_eq!(
        (stopped["status"].as_str(), stopped.get("pid")),
        (Some("stopped"), None)
    );
    node.try_remove(&id).await.unwrap();
    assert!(!bundle.exists());
    node.finish().await;
}

#[tokio::test]
async fn a_create_container_hook_mounts_into_the_root_file_system_in_sight_of_the_host() {
    // As that of a kind node does, which finds its way by the bundle.
    let hooked = Hooked::new();
    fs::write(hooked.path("product"), "kind\n").unwrap();
    let script = "bundle=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\n\
                  mount -o ro,bind $DIR/product $bundle/rootfs/etc/hostname\n\
                  echo made > $bundle/rootfs/made\ntest -d $bundle/rootfs/proc/1";
    let script = hooked.script("mount", script);
    let node = hooked.node(json!({"createContainer": hook(&script)})).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh(
        "a",
        "cat /etc/hostname /made; grep -c ' / ' /proc/self/mountinfo; touch /x 2>&1 | grep -o Read-only",
    );
    let security = config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    security.readonly_rootfs = true;
    let id = node.start_container(&pod, &config).await;
    node.wait_exit(&id).await;
    let log = node.log(&pod, "a");
    let lines: Vec<_> = log.stdout().lines().map(str::to_owned).collect();
    assert_eq!(lines[..2], ["kind", "made"], "{log:?}");
    assert_eq!(lines.last().unwrap(), "Read-only", "{log:?}");
    // Nothing of the host is left in the container, and nothing of the container on the host.
    let config = sh(
        "b",
        "cut -d' ' -f5 /proc/self/mountinfo; cat /proc/self/mountinfo",
    );
    let text = node.output_of(&pod, &config).await;
    let dir = hooked.0.path().display().to_string();
    assert!(
        !text.contains("master:") && !text.contains("shared:"),
        "{text}"
    );
    assert!(!host::mountinfo("self").contains(&format!("{dir}/product")));
    assert_eq!(host::mounts_below(node.dir()).len(), 1);
    node.finish().await;
}

#[tokio::test]
async fn a_hook_that_fails_fails_the_start_by_its_name() {
    for (point, path, text) in [
        ("createRuntime", None, "exit status 3: broken here"),
        ("createContainer", None, "exit status 3: broken here"),
        ("prestart", None, "exit status 3: broken here"),
        (
            "createContainer",
            Some("/none/hook"),
            "exit status 127: cannot be executed: error 2",
        ),
        (
            "createRuntime",
            Some("/none/hook"),
            "No such file or directory",
        ),
        ("startContainer", Some("/bin/false"), "exit status 1"),
    ] {
        let hooked = Hooked::new();
        let script = hooked.script("fail", "echo broken >&2; echo here >&2; exit 3");
        let stop = hooked.script("stop", "echo stopped >> $DIR/order");
        let path = path.map_or(script, PathBuf::from);
        let node = hooked
            .node(json!({point: hook(&path), "poststop": hook(&stop)}))
            .await;
        let pod = node.run_pod(&node.pod("one")).await;
        let id = node.try_create(&pod, &sleeper("a")).await.unwrap();
        let outcome = node.try_start(&id).await;
        let named = if point == "prestart" {
            "createRuntime"
        } else {
            point
        };
        let status = outcome.clone().unwrap_err();
        assert!(
            status
                .message()
                .contains(&format!("{named} hook {path:?}: ")),
            "{status}"
        );
        refused(outcome, Code::Internal, text);
        let status = node.status(&id).await;
        assert_eq!(
            (status.reason.as_str(), status.exit_code),
            ("StartError", 128)
        );
        assert!(status.message.contains(named), "{status:?}");
        assert_eq!(hooked.read("order"), "stopped\n");
        node.finish().await;
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_hooks_of_a_start() {
    for point in ["createRuntime", "createContainer", "poststart"] {
        let hooked = Hooked::new();
        let slow = "sleep 3600 & echo $! > $DIR/child; echo $$ > $DIR/self; touch $DIR/begun; wait";
        let slow = hooked.script("slow", slow);
        let node = hooked
            .node(json!({point: [{"path": slow, "timeout": 600}]}))
            .await;
        let pod = node.run_pod(&node.pod("one")).await;
        let id = node.try_create(&pod, &sleeper("a")).await.unwrap();
        let stop = async {
            let deadline = Instant::now() + host::soon();
            while !hooked.path("begun").exists() {
                assert!(Instant::now() < deadline, "{}", node.daemon_log());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            node.try_stop(&id, 1).await
        };
        let (started, stopped) = tokio::join!(node.try_start(&id), stop);
        stopped.unwrap();
        if point == "poststart" {
            started.unwrap();
        } else {
            refused(started, Code::FailedPrecondition, "while its hooks run");
        }
        let status = node.status(&id).await;
        assert_eq!(status.state(), ContainerState::ContainerExited, "{point}");
        if point != "createContainer" {
            // Those of the host's; the others are the container's processes.
            for name in ["self", "child"] {
                let pid: i32 = hooked.read(name).trim().parse().unwrap();
                // The hook's own child is the daemon's then, who looks for such every 5 s.
                let deadline = Instant::now() + 2 * host::soon();
                while Path::new(&format!("/proc/{pid}")).exists() {
                    assert!(Instant::now() < deadline, "{point}: {name}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        node.finish().await;
    }
}

#[tokio::test]
async fn a_hook_has_its_time_and_no_more() {
    for point in ["createRuntime", "createContainer", "poststart"] {
        let hooked = Hooked::new();
        // Its child holds its output, too.
        let slow = hooked.script("slow", "echo the reason >&2; sleep 3600; true");
        let node = hooked
            .node(json!({point: [{"path": slow, "timeout": 1}]}))
            .await;
        let pod = node.run_pod(&node.pod("one")).await;
        let id = node.try_create(&pod, &sleeper("a")).await.unwrap();
        let outcome = node.try_start(&id).await;
        if point == "poststart" {
            // Too late to fail: it is reported.
            outcome.unwrap();
            let log = node.daemon_log();
            assert!(
                log.contains("poststart hook") && log.contains("not done after 1 s"),
                "{log}"
            );
        } else {
            let status = outcome.unwrap_err();
            assert!(status.message().contains(point), "{status}");
            let late = ["not done after 1 s", "timed out"];
            assert!(
                late.iter().any(|text| status.message().contains(text)),
                "{status}"
            );
            assert!(status.message().ends_with(": the reason"), "{status}");
        }
        node.orphans_reaped().await;
        node.finish().await;
    }
}

#[tokio::test]
async fn late_hooks_that_fail_are_reported() {
    let hooked = Hooked::new();
    let fail = hooked.script("fail", "echo broken >&2; exit 3");
    let node = hooked
        .node(json!({"poststart": hook(&fail), "poststop": hook(&fail)}))
        .await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sh("a", "exit 0")).await;
    assert_eq!(node.wait_exit(&id).await.exit_code, 0);
    let log = node.daemon_log();
    for point in ["poststart", "poststop"] {
        assert!(
            log.contains(&format!("{point} hook {fail:?}: exit status 3: broken"))
                || log.contains(&format!("{point} hook")),
            "{log}"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn start_container_hooks_have_the_containers_rights_only() {
    let hooked = Hooked::new();
    let script = "grep -E 'CapEff|Seccomp:' /proc/self/status > /tmp/rights; id -u >> /tmp/rights";
    let node = hooked
        .node(json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}))
        .await;
    let pod = node.run_pod(&node.pod("one")).await;
    let config = sh(
        "a",
        "grep -E 'CapEff|Seccomp:' /proc/self/status; id -u; cat /tmp/rights",
    );
    let output = node.output_of(&pod, &config).await;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.len(), 6, "{output}");
    assert_eq!(lines[..3], lines[3..], "{output}");
    node.finish().await;
}

#[tokio::test]
async fn a_cdi_device_brings_hooks() {
    let hooked = Hooked::new();
    let note = hooked.script("note", "cat > $DIR/state");
    let document = json!({
        "cdiVersion": "0.5.0",
        "kind": "vendor.com/gpu",
        "devices": [{"name": "all", "containerEdits": {
            "hooks": [{"hookName": "createContainer", "path": note, "args": ["note"]}],
        }}],
    });
    fs::write(hooked.path("a.json"), document.to_string()).unwrap();
    let config = format!("[cdi]\ndirs = [{:?}]\n", hooked.0.path());
    let node = TestNode::builder().config(&config).start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    node.output_of(&pod, &sh("plain", "echo x")).await;
    assert_eq!(hooked.read("state"), "");
    let mut config = sh("a", "echo ran");
    config.cdi_devices = vec![CdiDevice {
        name: "vendor.com/gpu=all".into(),
    }];
    assert_eq!(node.output_of(&pod, &config).await, "ran\n");
    assert!(hooked.read("state").contains("\"status\":\"creating\""));
    node.finish().await;
}

#[tokio::test]
async fn a_shared_pid_namespace_has_hooks_too() {
    let hooked = Hooked::new();
    let note = hooked.script("note", "cat > $DIR/state");
    let node = hooked
        .node(json!({"createContainer": hook(&note), "createRuntime": hook(&note)}))
        .await;
    let mut config = node.pod("one");
    config
        .namespaces()
        .set_pid(carpel_integration::v1::NamespaceMode::Pod);
    let pod = node.run_pod(&config).await;
    let mut config = sleeper("a");
    carpel_integration::ContainerConfigExt::namespaces(&mut config)
        .set_pid(carpel_integration::v1::NamespaceMode::Pod);
    let id = node.start_container(&pod, &config).await;
    let state: Value = serde_json::from_str(&hooked.read("state")).unwrap();
    assert_eq!(state["pid"], node.container_pid(&id));
    node.finish().await;
}

#[tokio::test]
async fn the_daemon_may_die_on_the_way_of_hooks() {
    for name in carpel::failpoint::HOOKS {
        for armed in [(*name).to_owned(), format!("{name}:error")] {
            let hooked = Hooked::new();
            let note = hooked.script("note", "echo x >> $DIR/order");
            let mut node = hooked
                .node(json!({"createRuntime": hook(&note), "createContainer": hook(&note)}))
                .await;
            assert!(node.terminate_daemon().await.success());
            node.start_daemon(Some(&armed)).await;
            let pod = node.run_pod(&node.pod("one")).await;
            let id = node.try_create(&pod, &sleeper("a")).await.unwrap();
            node.try_start(&id).await.expect_err(&armed);
            if armed == *name {
                assert_eq!(node.wait_daemon_end().await.signal(), Some(9), "{name}");
                node.start_daemon(None).await;
            }
            // It has not run: it may be started now, or has failed, as its process was quicker to give up.
            let status = node.status(&id).await;
            assert_ne!(
                status.state(),
                ContainerState::ContainerRunning,
                "{status:?}"
            );
            node.finish().await;
            // The process that waited has not gone on without the daemon.
            let before = if name.ends_with("bundle") { "" } else { "x\n" };
            assert_eq!(hooked.read("order"), before, "{armed}");
        }
    }
}

#[tokio::test]
async fn base_spec_is_checked_before_anything_starts() {
    let hooked = Hooked::new();
    let base = hooked.path("base.json");
    let node = hooked.node(json!({})).await;
    let command = node.serve_command();
    let config = hooked.path("config.toml");
    fs::write(&config, format!("[runtime]\nbase_spec = {base:?}\n")).unwrap();
    for (spec, text) in [
        (
            json!({"ociVersion": "1.0.2", "linux": {"sysctl": {"a": "b"}}}),
            "linux.sysctl: carpel cannot do it",
        ),
        (
            json!({"ociVersion": "1.0.2", "hooks": {"poststop": [{"path": "x"}]}}),
            "the path is not absolute",
        ),
        (json!([]), "not an object"),
    ] {
        fs::write(&base, spec.to_string()).unwrap();
        let program = command.get_program().to_owned();
        let check = std::process::Command::new(&program)
            .args(["config", "check", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(!check.status.success() && stderr.contains(text), "{stderr}");
        assert!(stderr.contains("base.json"), "{stderr}");
    }
    node.finish().await;
}
