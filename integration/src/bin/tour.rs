//! What `make run` does: starts a daemon on a private root and shows what it can, step by step.
//!
//! `ONCE=1` ends after the tour. The exit status is 0 only if every step held.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use carpel_integration::cri::Cri;
use carpel_integration::image::Image;
use carpel_integration::request::{pod, sh};
use carpel_integration::{Log, bin_dir, container, host, v1};
use serde::Deserialize;
use tempfile::TempDir;

const TAG: &str = "localhost/busybox:tour";
const PAGE: &str = "hello from a pod\n";
const PORT: u16 = 8080;
/// The bridge of the default network.
const BRIDGE: &str = "carpel0";

fn main() -> ExitCode {
    let once = std::env::var_os("ONCE").is_some_and(|value| !value.is_empty() && value != "0");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let screen = Screen::new();
    match runtime.block_on(run(&screen, once)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.failed(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(screen: &Screen, once: bool) -> anyhow::Result<()> {
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    screen.title("carpel: a tour");
    let mut tour = Tour::start(screen).await?;
    let outcome = tokio::select! {
        outcome = tour.walk(screen) => outcome,
        _ = &mut interrupt => Ok(()),
    };
    if outcome.is_ok() && !once {
        tour.invite(screen);
        tokio::select! {
            _ = interrupt => println!(),
            () = tour.daemon_ends() => bail!("the daemon ended\n{}", tour.last_log_lines()),
        }
    }
    let outcome = outcome.map_err(|error| error.context(tour.last_log_lines()));
    // A failed tour is cleaned up as well, but its own error is the one to tell.
    let end = tour.end(screen).await;
    outcome.and(end)
}

/// The daemon under show and the folder with everything it writes.
struct Tour {
    dir: TempDir,
    daemon: Child,
    cri: Cri,
    /// Whether the bridge is somebody else's, too.
    had_bridge: bool,
}

impl Tour {
    async fn start(screen: &Screen) -> anyhow::Result<Self> {
        let begin = Instant::now();
        let dir = tempfile::Builder::new().prefix("carpel-run-").tempdir()?;
        let log = File::create(dir.path().join("daemon.log"))?;
        let had_bridge = Path::new("/sys/class/net").join(BRIDGE).exists();
        let path = |sub: &str| dir.path().join(sub);
        let carpel = bin_dir().join("carpel");
        let mut command = Command::new(&carpel);
        command
            .args(["serve", "--default-network"])
            .arg("--config")
            .arg(path("config.toml"))
            .arg("--root")
            .arg(path("root"))
            .arg("--state")
            .arg(path("state"))
            .arg("--listen")
            .arg(path("carpel.sock"))
            .arg("--netns-dir")
            .arg(path("netns"))
            .arg("--cni-conf-dir")
            .arg(path("net.d"))
            // An empty folder: the tour shows carpel's own plugins, whatever else is installed.
            .arg("--cni-bin-dir")
            .arg(path("bin"))
            .args(["--cgroup-parent", "/carpel-run"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        std::fs::write(path("config.toml"), "")?;
        // Ctrl-C is for the tour: it has pods to remove before the daemon goes.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let daemon = command
            .spawn()
            .with_context(|| carpel.display().to_string())?;
        let cri = Cri::new(&path("carpel.sock"));
        let mut tour = Self {
            dir,
            daemon,
            cri,
            had_bridge,
        };
        let version = tour.first_answer().await?;
        screen.step(
            "daemon",
            &format!(
                "{} {} serves CRI {}",
                version.runtime_name, version.runtime_version, version.runtime_api_version
            ),
            begin,
        );
        Ok(tour)
    }

    async fn first_answer(&mut self) -> anyhow::Result<v1::VersionResponse> {
        let deadline = Instant::now() + host::soon();
        loop {
            match self
                .cri
                .runtime()
                .version(v1::VersionRequest::default())
                .await
            {
                Ok(version) => return Ok(version.into_inner()),
                Err(status) => {
                    if let Some(exit) = self.daemon.try_wait()? {
                        bail!("the daemon ended: {exit}\n{}", self.last_log_lines());
                    }
                    ensure!(
                        Instant::now() < deadline,
                        "the daemon does not answer: {}\n{}",
                        status.message(),
                        self.last_log_lines()
                    );
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
    }

    async fn walk(&self, screen: &Screen) -> anyhow::Result<()> {
        self.import(screen)?;
        let begin = Instant::now();
        let (pod_id, ip) = self.run_pod(screen).await?;
        let server = container("server", &["httpd", "-f", "-p", "8080", "-h", "/www"]);
        let server = self.run_container(screen, &pod_id, server).await?;
        let client =
            "until wget -qO- http://localhost:8080/; do usleep 20000; done; exec sleep 86400";
        let client = self
            .run_container(screen, &pod_id, sh("client", client))
            .await?;
        screen.note(&format!(
            "a pod with two containers in {}",
            millis(begin.elapsed())
        ));

        let begin = Instant::now();
        let page = tokio::task::spawn_blocking(move || host::http_get(ip, PORT, "/")).await??;
        ensure!(page == PAGE, "the page over the pod's IP is {page:?}");
        screen.step(
            "page",
            &format!("http://{ip}:{PORT}/ says {:?}", page.trim()),
            begin,
        );

        self.exec(screen, &server).await?;
        self.log(screen, &client).await?;
        self.timelines(screen, &pod_id, &[("server", &server), ("client", &client)])
            .await
    }

    fn import(&self, screen: &Screen) -> anyhow::Result<()> {
        let begin = Instant::now();
        let file = self.dir.path().join("busybox.tar");
        let archive = Image::busybox().tagged(TAG).oci();
        std::fs::write(&file, &archive)?;
        let size = archive.len() as f64 / f64::from(1 << 20);
        screen.step(
            "image",
            &format!("{TAG}: Debian's busybox in two layers, {size:.1} MiB"),
            begin,
        );
        let begin = Instant::now();
        let output = Command::new(bin_dir().join("carpel"))
            .args(["image", "import"])
            .arg(&file)
            .arg("--endpoint")
            .arg(self.endpoint())
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        screen.step("import", "carpel image import busybox.tar", begin);
        screen.text(&String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    async fn run_pod(&self, screen: &Screen) -> anyhow::Result<(String, IpAddr)> {
        let begin = Instant::now();
        let logs = self.dir.path().join("logs");
        let request = v1::RunPodSandboxRequest {
            config: Some(pod("tour", &logs.display().to_string())),
            ..v1::RunPodSandboxRequest::default()
        };
        let id = self
            .cri
            .runtime()
            .run_pod_sandbox(request)
            .await
            .context("RunPodSandbox")?
            .into_inner()
            .pod_sandbox_id;
        let took = begin.elapsed();
        let status = self
            .pod_status(&id)
            .await?
            .status
            .context("no pod status")?;
        let ip: IpAddr = status
            .network
            .unwrap_or_default()
            .ip
            .parse()
            .context("the pod's IP")?;
        screen.step_took("pod", &format!("{} at {ip}", short(&id)), took);
        Ok((id, ip))
    }

    async fn pod_status(&self, id: &str) -> anyhow::Result<v1::PodSandboxStatusResponse> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let response = self.cri.runtime().pod_sandbox_status(request).await;
        Ok(response.context("PodSandboxStatus")?.into_inner())
    }

    async fn container_status(&self, id: &str) -> anyhow::Result<v1::ContainerStatusResponse> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let response = self.cri.runtime().container_status(request).await;
        Ok(response.context("ContainerStatus")?.into_inner())
    }

    async fn run_container(
        &self,
        screen: &Screen,
        pod: &str,
        mut config: v1::ContainerConfig,
    ) -> anyhow::Result<String> {
        let begin = Instant::now();
        config.image.get_or_insert_default().image = TAG.to_owned();
        let name = config.metadata.clone().unwrap_or_default().name;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        let mut runtime = self.cri.runtime();
        let id = runtime
            .create_container(request)
            .await
            .with_context(|| format!("CreateContainer {name}"))?
            .into_inner()
            .container_id;
        let request = v1::StartContainerRequest {
            container_id: id.clone(),
        };
        runtime
            .start_container(request)
            .await
            .with_context(|| format!("StartContainer {name}"))?;
        screen.step("container", &format!("{} {name}", short(&id)), begin);
        Ok(id)
    }

    async fn exec(&self, screen: &Screen, server: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        let command = "echo $(hostname), $(id -un), $(uname -sr)";
        let request = v1::ExecSyncRequest {
            container_id: server.to_owned(),
            cmd: ["sh", "-c", command].map(str::to_owned).to_vec(),
            timeout: 10,
        };
        let response = self.cri.runtime().exec_sync(request).await;
        let response = response.context("ExecSync")?.into_inner();
        let took = begin.elapsed();
        let said = String::from_utf8_lossy(&response.stdout).trim().to_owned();
        ensure!(
            response.exit_code == 0 && said.starts_with("tour,"),
            "ExecSync: exit code {}: {said}",
            response.exit_code
        );
        screen.step_took("exec", &format!("in the server: {said:?}"), took);
        Ok(())
    }

    /// Shows the log of the client, which has the page that it got over localhost.
    async fn log(&self, screen: &Screen, client: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        let status = self.container_status(client).await?.status;
        let path = PathBuf::from(status.context("no container status")?.log_path);
        let deadline = Instant::now() + host::soon();
        while Log::read(&path).stdout() != PAGE {
            ensure!(
                Instant::now() < deadline,
                "the client did not get the page over localhost: {:?}",
                Log::read(&path)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let name = path.strip_prefix(self.dir.path()).unwrap_or(&path);
        screen.step(
            "log",
            &format!("the client got it over localhost: {}", name.display()),
            begin,
        );
        let lines = std::fs::read_to_string(&path)?;
        let last: Vec<_> = lines.lines().rev().take(2).collect();
        screen.text(&last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        Ok(())
    }

    async fn timelines(
        &self,
        screen: &Screen,
        pod: &str,
        containers: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        screen.note("where the milliseconds went");
        screen.timeline("pod", &spans(&self.pod_status(pod).await?.info)?);
        for (name, id) in containers {
            screen.timeline(name, &spans(&self.container_status(id).await?.info)?);
        }
        Ok(())
    }

    fn invite(&self, screen: &Screen) {
        let endpoint = self.endpoint();
        screen.note("it keeps serving until Ctrl-C");
        screen.text(&format!(
            "crictl --runtime-endpoint {endpoint} ps\n\
             kubelet --container-runtime-endpoint={endpoint} …\n\
             tail -f {}",
            self.dir.path().join("daemon.log").display()
        ));
    }

    async fn daemon_ends(&mut self) {
        while matches!(self.daemon.try_wait(), Ok(None)) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes the pods, stops the daemon, and looks that nothing is left.
    async fn end(&mut self, screen: &Screen) -> anyhow::Result<()> {
        let begin = Instant::now();
        let mut runtime = self.cri.runtime();
        let pods = runtime
            .list_pod_sandbox(v1::ListPodSandboxRequest::default())
            .await
            .context("ListPodSandbox")?
            .into_inner()
            .items;
        for pod in pods {
            let pod_sandbox_id = pod.id;
            let stop = v1::StopPodSandboxRequest {
                pod_sandbox_id: pod_sandbox_id.clone(),
            };
            runtime
                .stop_pod_sandbox(stop)
                .await
                .context("StopPodSandbox")?;
            let remove = v1::RemovePodSandboxRequest { pod_sandbox_id };
            runtime
                .remove_pod_sandbox(remove)
                .await
                .context("RemovePodSandbox")?;
        }
        let pid = i32::try_from(self.daemon.id()).context("a pid")?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        let exit = self.daemon.wait()?;
        ensure!(exit.success(), "the daemon ended with {exit}");
        let left = host::mounts_below(self.dir.path());
        ensure!(left.is_empty(), "mounts left behind: {left:?}");
        let left = host::cgroup_pids("/carpel-run");
        ensure!(left.is_empty(), "processes left behind: {left:?}");
        for dir in host::cgroup_dirs("/carpel-run") {
            std::fs::remove_dir(&dir).with_context(|| dir.display().to_string())?;
        }
        if !self.had_bridge {
            let delete = Command::new("ip")
                .args(["link", "delete", BRIDGE])
                .status()?;
            ensure!(delete.success(), "the bridge {BRIDGE} stays");
        }
        screen.step(
            "gone",
            "the pod removed, the daemon stopped, nothing left behind",
            begin,
        );
        Ok(())
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.dir.path().join("carpel.sock").display())
    }

    fn last_log_lines(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!(
            "the daemon's log ends so:\n{}",
            lines[lines.len().saturating_sub(15)..].join("\n")
        )
    }
}

impl Drop for Tour {
    fn drop(&mut self) {
        // Reached with a running daemon only after an error.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        host::cgroup_pids("/carpel-run")
            .into_iter()
            .for_each(host::kill_9);
        for mount in host::mounts_below(self.dir.path()) {
            let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A span as a verbose status tells it.
#[derive(Debug, Deserialize)]
struct Span {
    name: String,
    start_us: u64,
    duration_us: u64,
}

/// The part of a verbose status's details that is shown here.
#[derive(Debug, Deserialize)]
struct Details {
    timeline: Vec<Span>,
}

fn spans(info: &BTreeMap<String, String>) -> anyhow::Result<Vec<Span>> {
    let text = info.get("info").context("a verbose status has no info")?;
    let mut spans = serde_json::from_str::<Details>(text)
        .context("a verbose status's info")?
        .timeline;
    ensure!(!spans.is_empty(), "the timeline is empty");
    spans.sort_by_key(|span| (span.start_us, std::cmp::Reverse(span.duration_us)));
    Ok(spans)
}

/// The terminal: one line a step, in colour where there is some.
struct Screen {
    colour: bool,
}

impl Screen {
    fn new() -> Self {
        Self {
            colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn title(&self, text: &str) {
        println!("\n  {}\n", self.paint("1", text));
    }

    fn step(&self, name: &str, what: &str, begin: Instant) {
        self.step_took(name, what, begin.elapsed());
    }

    fn step_took(&self, name: &str, what: &str, took: Duration) {
        let (tick, name) = (
            self.paint("32", "✓"),
            self.paint("1", &format!("{name:<10}")),
        );
        println!(
            "  {tick} {name} {what:<68} {:>9}",
            self.paint("2", &millis(took))
        );
    }

    fn note(&self, text: &str) {
        println!("\n  {}\n", self.paint("36", text));
    }

    fn text(&self, text: &str) {
        for line in text.lines() {
            println!("      {}", self.paint("2", line));
        }
    }

    fn failed(&self, error: &anyhow::Error) {
        println!("\n  {} {error:#}", self.paint("31", "✗"));
    }

    fn timeline(&self, whose: &str, spans: &[Span]) {
        const WIDTH: u64 = 40;
        let end = spans
            .iter()
            .map(|s| s.start_us + s.duration_us)
            .max()
            .unwrap_or(1)
            .max(1);
        let column = |us: u64| usize::try_from(us * WIDTH / end).unwrap_or(0);
        let names = spans
            .iter()
            .map(|s| s.name.chars().count())
            .max()
            .unwrap_or(0)
            .max(24);
        for (n, span) in spans.iter().enumerate() {
            let from = column(span.start_us);
            let to = column(span.start_us + span.duration_us).max(from + 1);
            let bar = format!("{}{}", " ".repeat(from), "█".repeat(to - from));
            let took = millis(Duration::from_micros(span.duration_us));
            let label = if n == 0 { whose } else { "" };
            println!(
                "      {} {:<names$} {} {took:>9}",
                self.paint("1", &format!("{label:<8}")),
                span.name,
                self.paint("34", &format!("{bar:<41}")),
            );
        }
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
