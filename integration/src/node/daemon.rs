//! The daemon of a node: started, killed, asked to stop.

use super::*;

impl TestNode {
    /// `carpel serve` with this node's folders, not yet started.
    #[must_use]
    pub fn serve_command(&self) -> Command {
        let path = |sub: &str| self.dir.path().join(sub);
        let mut command = Command::new(crate::bin_dir().join("carpel"));
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"] {
            // Whatever proxy the machine uses, the node has none unless a test says so.
            command.env_remove(name);
            command.env_remove(name.to_lowercase());
        }
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
            let _ = umount2(mount, MntFlags::MNT_DETACH);
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
}
