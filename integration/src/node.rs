//! A node to test on: `carpel serve` on folders, cgroups and a network namespace of its own.

mod calls;
mod daemon;

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
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
    net: Option<HostNet>,
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

    /// The machine's network, with what links it has, instead of one with `lo` only.
    #[must_use]
    pub fn net(mut self, net: HostNet) -> Self {
        self.net = Some(net);
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
            net: None,
        }
    }

    fn prepare(mut options: Builder) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("carpel-test-")
            .tempdir()
            .expect("a folder for the node");
        share(dir.path());
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
        let mut config = options.config.clone();
        let socket = format!("socket = {:?}\n", dir.path().join("run/nri.sock"));
        // One node's plugins are no other's.
        match config.find("[nri]\n").map(|at| at + "[nri]\n".len()) {
            Some(_) if config.contains("socket = ") => {}
            Some(at) => config.insert_str(at, &socket),
            None => config.push_str(&format!("\n[nri]\n{socket}")),
        }
        std::fs::write(dir.path().join("config.toml"), config).expect("a file");
        let node = Self {
            cri: Cri::new(&dir.path().join("run/carpel.sock")),
            net: options.net.take().unwrap_or_default(),
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

    /// A pod's network namespace.
    ///
    /// # Panics
    /// If the pod has none.
    #[must_use]
    pub fn pod_net(&self, pod: &Pod) -> HostNet {
        HostNet::at(&self.netns_dir().join(format!("carpel-{}", pod.id)))
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

    /// Waits until the daemon has looked after processes that others left to it, which it does every 5 s.
    pub async fn orphans_reaped(&self) {
        let deadline = Instant::now() + 2 * host::soon();
        let zombie = |leak: &String| leak.ends_with("(zombie)");
        while self.leaks().iter().any(zombie) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

/// Makes a folder a shared mount, as every folder is where systemd is (systemd's src/core/mount-setup.c).
fn share(dir: &Path) {
    let none: Option<&str> = None;
    for (source, flags) in [(Some(dir), MsFlags::MS_BIND), (None, MsFlags::MS_SHARED)] {
        mount(source, dir, none, flags, none)
            .expect("the integration tests need root, and may mount");
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
