//! A node to test on: `carpel serve` on folders, cgroups and a network namespace of its own.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Status;

use crate::cri::Cri;
use crate::host::{self, HostNet};
use crate::image::Image;
use crate::leaks::{Baseline, Place};
use crate::log::Log;
use crate::{request, v1};

/// Whose CNI plugins a node uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugins {
    /// carpel's own.
    Carpel,
    /// Those of Debian's containernetworking-plugins.
    Debian,
}

/// What is unusual about a node. [`TestNode::start`] is this with nothing unusual.
#[derive(Debug)]
pub struct Builder {
    plugins: Plugins,
    conflist: Option<Value>,
    busybox: bool,
    args: Vec<String>,
    env: Vec<(String, String)>,
    config: String,
}

impl Builder {
    #[must_use]
    pub fn plugins(mut self, plugins: Plugins) -> Self {
        self.plugins = plugins;
        self
    }

    /// No network configuration.
    #[must_use]
    pub fn no_network(mut self) -> Self {
        self.conflist = None;
        self
    }

    /// The network configuration, instead of [`bridge`]'s.
    #[must_use]
    pub fn conflist(mut self, conflist: Value) -> Self {
        self.conflist = Some(conflist);
        self
    }

    /// No image imported.
    #[must_use]
    pub fn no_image(mut self) -> Self {
        self.busybox = false;
        self
    }

    /// A flag of `carpel serve`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// A variable of the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The text of the configuration file.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = toml.to_owned();
        self
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(self) -> TestNode {
        let mut node = TestNode::prepare(self);
        let import = node.options.busybox;
        node.start_daemon(None).await;
        node.baseline = node.place().baseline();
        if import {
            node.import(busybox_archive()).await;
        }
        node
    }
}

/// The bridge network of a node, with addresses kept in `ipam`, and more plugins behind it.
#[must_use]
pub fn bridge(ipam: &Path, more: &[Value]) -> Value {
    let mut plugins = vec![json!({
        "type": "bridge",
        "bridge": "carpel0",
        "isGateway": true,
        "ipMasq": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.118.0.0/16" }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": ipam,
        },
    })];
    plugins.extend_from_slice(more);
    json!({ "cniVersion": "1.0.0", "name": "test", "plugins": plugins })
}

/// A sandbox that a test made.
#[derive(Debug, Clone)]
pub struct Pod {
    pub id: String,
    pub config: v1::PodSandboxConfig,
}

/// A running daemon with everything that belongs to it. End each test with [`TestNode::finish`].
#[derive(Debug)]
pub struct TestNode {
    /// The client. A new one after each start of the daemon.
    pub cri: Cri,
    /// What is the host's network for this node.
    pub net: HostNet,
    dir: TempDir,
    name: String,
    cgroup_parent: String,
    options: Builder,
    daemon: Option<Child>,
    baseline: Baseline,
    finished: bool,
}

impl TestNode {
    /// A node with carpel's own plugins, a bridge network and the busybox image.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            plugins: Plugins::Carpel,
            conflist: Some(Value::Null),
            busybox: true,
            args: Vec::new(),
            env: Vec::new(),
            config: String::new(),
        }
    }

    fn prepare(options: Builder) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("carpel-test-")
            .tempdir()
            .expect("a folder for the node");
        let name = dir
            .path()
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .to_lowercase();
        for sub in [
            "root", "state", "run", "netns", "net.d", "bin", "logs", "ipam",
        ] {
            std::fs::create_dir(dir.path().join(sub)).expect("a folder");
        }
        std::fs::write(dir.path().join("config.toml"), &options.config).expect("a file");
        let node = Self {
            cri: Cri::new(&dir.path().join("run/carpel.sock")),
            net: HostNet::new(),
            cgroup_parent: format!("/{name}"),
            dir,
            name,
            options,
            daemon: None,
            baseline: Baseline::default(),
            finished: false,
        };
        if let Some(conflist) = &node.options.conflist {
            let conflist = match conflist {
                Value::Null => bridge(&node.ipam_dir(), &[]),
                given => given.clone(),
            };
            node.write_conflist("10-test.conflist", &conflist);
        }
        node
    }

    // ---- the daemon ----

    /// `carpel serve` with this node's folders, not yet started.
    #[must_use]
    pub fn serve_command(&self) -> Command {
        let path = |sub: &str| self.dir.path().join(sub);
        let mut command = Command::new(crate::bin_dir().join("carpel"));
        command
            .arg("serve")
            .arg("--config")
            .arg(path("config.toml"))
            .arg("--root")
            .arg(path("root"))
            .arg("--state")
            .arg(path("state"))
            .arg("--listen")
            .arg(self.endpoint())
            .arg("--netns-dir")
            .arg(path("netns"))
            .arg("--cni-conf-dir")
            .arg(self.conf_dir())
            .arg("--cni-bin-dir")
            .arg(self.plugin_dir())
            .args(["--cgroup-parent", &self.cgroup_parent])
            .args(["--log-level", "debug"])
            .args(&self.options.args)
            .envs(self.options.env.iter().map(|(k, v)| (k, v)))
            .env("CARPEL_TEST_NODE", &self.name)
            .stdin(Stdio::null());
        if self.options.plugins == Plugins::Debian {
            command.args(["--cni-bin-dir", "/usr/lib/cni"]);
        }
        command
    }

    /// Starts the daemon (which must not run), with a failpoint armed if one is named, and waits until
    /// it answers.
    ///
    /// # Panics
    /// If it ends instead or does not answer soon.
    pub async fn start_daemon(&mut self, failpoint: Option<&str>) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.daemon_log_path())
            .expect("the daemon's log");
        let mut command = self.serve_command();
        command
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        if let Some(name) = failpoint {
            command.env("CARPEL_FAILPOINT", name);
        }
        let child = self
            .net
            .run(|| command.spawn())
            .unwrap_or_else(|error| {
                panic!(
                    "{}: {error}: build the binaries with `make build`, or name their folder in CARPEL_BIN_DIR",
                    crate::bin_dir().join("carpel").display()
                )
            });
        self.daemon = Some(child);
        self.cri = Cri::new(&self.socket());
        let deadline = Instant::now() + host::soon();
        loop {
            let version = self
                .cri
                .runtime()
                .version(v1::VersionRequest::default())
                .await;
            // UNIMPLEMENTED is an answer, too.
            match version {
                Ok(_) => return,
                Err(status) if status.code() == tonic::Code::Unimplemented => return,
                Err(status) => {
                    if let Some(exit) = self.try_wait() {
                        panic!("the daemon ended at its start: {exit}");
                    }
                    assert!(
                        Instant::now() < deadline,
                        "no answer from the daemon: {status}"
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    /// Whose plugins the daemon uses from its next start on.
    pub fn set_plugins(&mut self, plugins: Plugins) {
        self.options.plugins = plugins;
    }

    /// A variable of the daemon's environment from its next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.options.env.push((name.to_owned(), value.to_owned()));
    }

    /// Kills the daemon as a crash would. Pods go on.
    pub fn kill_daemon(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().expect("kill the daemon");
            child.wait().expect("wait for the daemon");
        }
    }

    /// Kills the daemon and starts it again.
    pub async fn crash(&mut self) {
        self.kill_daemon();
        self.start_daemon(None).await;
    }

    /// What a reboot does: every process dies, mounts and volatile state are gone, the disk stays.
    pub fn reboot(&mut self) {
        self.kill_everything();
        for mount in host::mounts_below(self.dir.path()).iter().rev() {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
        for dir in ["state", "netns", "run"] {
            let dir = self.dir.path().join(dir);
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir(&dir).expect("a folder");
        }
        self.net = HostNet::new();
    }

    /// Waits until the daemon has ended by itself, as it does at a failpoint.
    ///
    /// # Panics
    /// If it does not soon.
    pub async fn wait_daemon_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + host::soon();
        loop {
            if let Some(status) = self.try_wait() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon goes on running");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Stops the daemon with SIGTERM and returns how it ended.
    ///
    /// # Panics
    /// If it does not end soon.
    pub async fn terminate_daemon(&mut self) -> ExitStatus {
        let pid = self.daemon_pid().expect("the daemon runs");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signal the daemon");
        self.wait_daemon_end().await
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self
            .daemon
            .as_mut()?
            .try_wait()
            .expect("wait for the daemon")?;
        self.daemon = None;
        Some(status)
    }

    #[must_use]
    pub fn daemon_pid(&self) -> Option<i32> {
        let id = self.daemon.as_ref()?.id();
        Some(i32::try_from(id).expect("a pid"))
    }

    /// What the daemon has logged so far, in all its lives.
    #[must_use]
    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.daemon_log_path()).unwrap_or_default()
    }

    fn daemon_log_path(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    // ---- where things are ----

    /// A folder of the test's own: it goes with the node.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/carpel.sock")
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    #[must_use]
    pub fn netns_dir(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    /// host-local's folder.
    #[must_use]
    pub fn ipam_dir(&self) -> PathBuf {
        self.dir.path().join("ipam")
    }

    /// The first folder that plugins are looked for in: a test may put its own there.
    #[must_use]
    pub fn plugin_dir(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    #[must_use]
    pub fn conf_dir(&self) -> PathBuf {
        self.dir.path().join("net.d")
    }

    #[must_use]
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// Writes a network configuration.
    ///
    /// # Panics
    /// If it cannot.
    pub fn write_conflist(&self, name: &str, conflist: &Value) {
        // As an editor does it: whoever watches the folder sees a whole file or none.
        let temporary = self.dir.path().join("conflist.new");
        std::fs::write(&temporary, conflist.to_string()).expect("write the configuration");
        std::fs::rename(temporary, self.conf_dir().join(name)).expect("place the configuration");
    }

    /// Puts a plugin that is a shell script where plugins are looked for first.
    ///
    /// # Panics
    /// If it cannot.
    pub fn write_plugin(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.plugin_dir().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write the plugin");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    // ---- images and pods ----

    /// Imports an archive. What the images take on disk is no leak.
    ///
    /// # Panics
    /// If it fails.
    pub async fn import(&mut self, archive: Vec<u8>) -> Vec<crate::api::carpel::ImportedImage> {
        let images = self.cri.import(archive).await.expect("import");
        let before = std::mem::take(&mut self.baseline);
        self.baseline = self.place().keep_files(before);
        images
    }

    /// A pod's configuration: the name is its hostname, too, and names its folder of logs.
    #[must_use]
    pub fn pod(&self, name: &str) -> v1::PodSandboxConfig {
        request::pod(name, &self.log_dir(name).display().to_string())
    }

    /// The folder of a pod's logs.
    #[must_use]
    pub fn log_dir(&self, pod: &str) -> PathBuf {
        self.dir.path().join("logs").join(pod)
    }

    /// RunPodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_run_pod(&self, config: &v1::PodSandboxConfig) -> Result<Pod, Status> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..v1::RunPodSandboxRequest::default()
        };
        let response = self.cri.runtime().run_pod_sandbox(request).await?;
        Ok(Pod {
            id: response.into_inner().pod_sandbox_id,
            config: config.clone(),
        })
    }

    /// RunPodSandbox.
    ///
    /// # Panics
    /// If it fails.
    pub async fn run_pod(&self, config: &v1::PodSandboxConfig) -> Pod {
        self.try_run_pod(config).await.expect("RunPodSandbox")
    }

    /// CreateContainer; the container's id.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_create(
        &self,
        pod: &Pod,
        config: &v1::ContainerConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        let response = self.cri.runtime().create_container(request).await?;
        Ok(response.into_inner().container_id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_start(&self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.cri.runtime().start_container(request).await.map(drop)
    }

    /// CreateContainer and StartContainer; the container's id.
    ///
    /// # Panics
    /// If one of them fails.
    pub async fn start_container(&self, pod: &Pod, config: &v1::ContainerConfig) -> String {
        let id = self.try_create(pod, config).await.expect("CreateContainer");
        self.try_start(&id).await.expect("StartContainer");
        id
    }

    /// Runs a container to its end and returns its log and its status.
    ///
    /// # Panics
    /// If it does not start or end.
    pub async fn run_to_end(
        &self,
        pod: &Pod,
        config: &v1::ContainerConfig,
    ) -> (Log, v1::ContainerStatus) {
        let id = self.start_container(pod, config).await;
        let status = self.wait_exit(&id).await;
        (Log::read(Path::new(&status.log_path)), status)
    }

    /// What a shell script in a new container of a new pod prints, with its exit code asserted to be 0.
    ///
    /// # Panics
    /// If anything fails.
    pub async fn output_of(&self, pod: &Pod, config: &v1::ContainerConfig) -> String {
        let (log, status) = self.run_to_end(pod, config).await;
        assert_eq!(status.exit_code, 0, "{log:?}");
        log.stdout()
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_status(&self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let response = self.cri.runtime().container_status(request).await?;
        response
            .into_inner()
            .status
            .ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// ContainerStatus.
    ///
    /// # Panics
    /// If it fails.
    pub async fn status(&self, id: &str) -> v1::ContainerStatus {
        self.try_status(id).await.expect("ContainerStatus")
    }

    /// Waits until a container has exited and returns its status.
    ///
    /// # Panics
    /// If it does not exit soon.
    pub async fn wait_exit(&self, id: &str) -> v1::ContainerStatus {
        let deadline = Instant::now() + host::soon();
        loop {
            let status = self.status(id).await;
            if status.state() == v1::ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "{id} does not exit: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// PodSandboxStatus, verbose.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_pod_status(&self, id: &str) -> Result<v1::PodSandboxStatusResponse, Status> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let response = self.cri.runtime().pod_sandbox_status(request).await?;
        Ok(response.into_inner())
    }

    /// Pid of a pod's supervisor.
    ///
    /// # Panics
    /// If the status does not tell it.
    pub async fn supervisor_pid(&self, pod: &Pod) -> i32 {
        let response = self.try_pod_status(&pod.id).await;
        let info = &response.expect("PodSandboxStatus").info["info"];
        let info: Value = serde_json::from_str(info).expect("JSON");
        let pid = info["pid"].as_i64().expect("a pid");
        i32::try_from(pid).expect("a pid")
    }

    /// PodSandboxStatus.
    ///
    /// # Panics
    /// If it fails.
    pub async fn pod_status(&self, pod: &Pod) -> v1::PodSandboxStatus {
        let response = self
            .try_pod_status(&pod.id)
            .await
            .expect("PodSandboxStatus");
        response.status.expect("a status")
    }

    /// The pod's address.
    ///
    /// # Panics
    /// If it has none.
    pub async fn pod_ip(&self, pod: &Pod) -> IpAddr {
        let network = self.pod_status(pod).await.network.expect("a network");
        network.ip.parse().expect("an address")
    }

    /// ExecSync with a timeout in seconds (0: none).
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_exec(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        let response = self.cri.runtime().exec_sync(request).await?;
        Ok(response.into_inner())
    }

    /// What a shell script prints in a running container, with its exit code asserted to be 0.
    ///
    /// # Panics
    /// If it fails.
    pub async fn exec(&self, id: &str, script: &str) -> String {
        let timeout = host::soon().as_secs().cast_signed();
        let response = self
            .try_exec(id, &["/bin/sh", "-c", script], timeout)
            .await
            .expect("ExecSync");
        assert_eq!(response.exit_code, 0, "{script}: {response:?}");
        String::from_utf8_lossy(&response.stdout).into_owned()
    }

    /// StopContainer with a grace period in seconds.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.cri.runtime().stop_container(request).await.map(drop)
    }

    /// UpdateContainerResources.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_update(
        &self,
        id: &str,
        limits: &v1::LinuxContainerResources,
    ) -> Result<(), Status> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits.clone()),
            ..Default::default()
        };
        let mut runtime = self.cri.runtime();
        runtime.update_container_resources(request).await.map(drop)
    }

    /// The limits that a container is said to have.
    ///
    /// # Panics
    /// If its status has none.
    pub async fn limits(&self, id: &str) -> v1::LinuxContainerResources {
        let resources = self.status(id).await.resources;
        resources.and_then(|all| all.linux).expect("limits")
    }

    /// RemoveContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_remove(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.cri.runtime().remove_container(request).await.map(drop)
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.cri.runtime().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.cri
            .runtime()
            .remove_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// A condition of the node's Status.
    pub async fn condition(&self, kind: &str) -> v1::RuntimeCondition {
        let mut runtime = self.cri.runtime();
        let response = runtime.status(v1::StatusRequest::default()).await;
        let status = response.expect("status").into_inner().status;
        let mut conditions = status.expect("conditions").conditions.into_iter();
        conditions
            .find(|condition| condition.r#type == kind)
            .expect(kind)
    }

    /// ListPodSandbox without a filter.
    ///
    /// # Panics
    /// If it fails.
    pub async fn pods(&self) -> Vec<v1::PodSandbox> {
        let request = v1::ListPodSandboxRequest::default();
        let response = self.cri.runtime().list_pod_sandbox(request).await;
        response.expect("ListPodSandbox").into_inner().items
    }

    /// ListContainers without a filter.
    ///
    /// # Panics
    /// If it fails.
    pub async fn containers(&self) -> Vec<v1::Container> {
        let request = v1::ListContainersRequest::default();
        let response = self.cri.runtime().list_containers(request).await;
        response.expect("ListContainers").into_inner().containers
    }

    /// The log of a container by its name.
    #[must_use]
    pub fn log(&self, pod: &Pod, container: &str) -> Log {
        Log::read(&Path::new(&pod.config.log_directory).join(format!("{container}.log")))
    }

    /// Waits until a container's log satisfies `enough` and returns it.
    ///
    /// # Panics
    /// If it does not soon.
    pub async fn wait_log(&self, pod: &Pod, container: &str, enough: impl Fn(&Log) -> bool) -> Log {
        let deadline = Instant::now() + host::soon();
        loop {
            let log = self.log(pod, container);
            if enough(&log) {
                return log;
            }
            assert!(Instant::now() < deadline, "the log stays so: {log:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Pid of a container's first process on the host, found by its cgroup.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn container_pid(&self, id: &str) -> i32 {
        let cgroup = host::cgroup_dirs(&self.cgroup_parent)
            .iter()
            .flat_map(|dir| host::tree(dir))
            .find(|dir| {
                dir.file_name()
                    .is_some_and(|name| name.to_string_lossy().contains(id))
            })
            .unwrap_or_else(|| panic!("no cgroup of {id}"));
        let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).expect("cgroup.procs");
        procs
            .lines()
            .filter_map(|line| line.parse().ok())
            // A child may have gone meanwhile.
            .filter_map(|pid| Some((host::start_time(pid)?, pid)))
            .min()
            .unwrap_or_else(|| panic!("no process in {}", cgroup.display()))
            .1
    }

    // ---- the end ----

    fn place(&self) -> Place<'_> {
        Place {
            dir: self.dir.path(),
            net: &self.net,
            cgroup_parent: &self.cgroup_parent,
            marker: format!("CARPEL_TEST_NODE={}", self.name),
            daemon: self.daemon_pid(),
        }
    }

    /// What is there now and should not be if there were no pods.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        self.place().leaks(&self.baseline)
    }

    /// Waits until nothing is left behind.
    ///
    /// # Panics
    /// If something stays.
    pub async fn assert_no_leaks(&self) {
        let deadline = Instant::now() + host::patience(Duration::from_secs(3));
        loop {
            let leaks = self.leaks();
            if leaks.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left behind:\n  {}",
                leaks.join("\n  ")
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops and removes every pod.
    ///
    /// # Panics
    /// If that fails.
    pub async fn remove_pods(&self) {
        for pod in self.pods().await {
            self.try_stop_pod(&pod.id).await.expect("StopPodSandbox");
            self.try_remove_pod(&pod.id)
                .await
                .expect("RemovePodSandbox");
        }
    }

    /// Ends the test: removes all pods, stops the daemon (started again if a test killed it), and makes
    /// sure at each step that nothing is left behind.
    ///
    /// # Panics
    /// If something is.
    pub async fn finish(mut self) {
        if self.daemon.is_none() {
            self.start_daemon(None).await;
        }
        self.remove_pods().await;
        self.assert_no_leaks().await;
        let exit = self.terminate_daemon().await;
        assert!(exit.success(), "the daemon ended with {exit}");
        assert!(!self.socket().exists(), "the daemon left its socket");
        self.assert_no_leaks().await;
        self.finished = true;
    }

    /// Kills the daemon, then everything that it made.
    fn kill_everything(&mut self) {
        let marked = self.place().marked();
        // A daemon that is killed first cannot make anything new.
        self.kill_daemon();
        for pid in marked {
            host::kill_9(pid);
        }
        let deadline = Instant::now() + host::patience(Duration::from_secs(2));
        while Instant::now() < deadline {
            let pids = host::cgroup_pids(&self.cgroup_parent);
            if pids.is_empty() {
                break;
            }
            pids.into_iter().for_each(host::kill_9);
            std::thread::sleep(Duration::from_millis(5));
        }
        for dir in host::cgroup_dirs(&self.cgroup_parent) {
            for dir in host::tree(&dir) {
                let _ = std::fs::remove_dir(dir);
            }
        }
    }

    /// Kills and deletes whatever there is.
    fn wreck(&mut self) {
        self.kill_everything();
        for mount in host::mounts_below(self.dir.path()).iter().rev() {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking {
            eprintln!("---- log of the daemon ----\n{}----", self.daemon_log());
        }
        self.wreck();
        assert!(
            self.finished || panicking,
            "a test must end with TestNode::finish"
        );
    }
}

/// The busybox image's archive, made once in a process.
fn busybox_archive() -> Vec<u8> {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| Image::busybox().oci()).clone()
}
