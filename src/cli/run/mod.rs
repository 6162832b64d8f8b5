//! `carpel run`: one container in a pod of its own, as a person at a terminal wants it.
//!
//! ```text
//! image here? ──▶ RunPodSandbox ──▶ CreateContainer ──▶ StartContainer ──▶ its log until it exits
//!     └ pull          └───────────── an error: the pod is removed ┘           (with -d: not)
//! ```
//!
//! The pod is as a kubelet would make it (see `request`), and stays until it is removed: `--rm` does so when
//! the container has exited.

mod options;
mod request;

use std::path::PathBuf;

use anyhow::Context;
use carpel_api::cri::{
    Container, CreateContainerRequest, Device, ImageSpec, ImageStatusRequest, KeyValue,
    ListPodSandboxRequest, Mount, PodSandbox, PodSandboxConfig, PortMapping, RunPodSandboxRequest,
    StartContainerRequest,
};
use clap::{Args, ValueEnum};
use indicatif::MultiProgress;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::client::{Client, Connection};
use super::logs::{Printer, follow};
use super::output::{self, FormatArgs};
use super::progress::Pull;
use super::pull::{LoginArgs, pull};
use super::resolve::Catalogue;
use super::{INTERRUPTED, OWN_FAILURE, Outcome, SUCCESS};
use super::{exec, labels, rm, stop, units};

/// Annotation of a pod that this command has made: its folder of logs, which goes with the pod.
pub const LOG_FOLDER: &str = "carpel.run/log-folder";

/// The exit status of a process that SIGTERM has ended, as a shell shows it.
const TERMINATED: u8 = 143;

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The image: pulled if it is not here
    image: String,
    /// The command and its arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Name of the pod and its container [default: made from the image's]
    #[arg(long)]
    name: Option<String>,
    /// Namespace of the pod
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Leave it running and print the pod's id
    #[arg(short, long)]
    detach: bool,
    /// Remove the pod when the container has exited
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Whether the image is pulled
    #[arg(long, value_enum, default_value_t = PullWhen::Missing)]
    pull: PullWhen,
    /// Set a variable; KEY alone passes the value that it has here
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = options::env)]
    env: Vec<KeyValue>,
    /// Mount a folder or file of the host's; options are ro, rro, rslave and rshared
    #[arg(short = 'v', long, value_name = "HOST:CONTAINER[:OPTIONS]", value_parser = options::mount)]
    mount: Vec<Mount>,
    /// Make a port of the container reachable at the host (by the network's portmap plugin)
    #[arg(short, long, value_name = "[[IP:]HOST:]PORT[/PROTO]", value_parser = options::port)]
    publish: Vec<PortMapping>,
    /// Most memory, as in 512m
    #[arg(short, long, value_name = "SIZE", value_parser = units::parse_bytes)]
    memory: Option<u64>,
    /// Most processors, as in 1.5
    #[arg(long, value_name = "N", value_parser = options::cpus)]
    cpus: Option<u32>,
    /// Give it all capabilities and devices of the host
    #[arg(long)]
    privileged: bool,
    /// Add a capability, as in NET_ADMIN, or ALL
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Give it a device of the host's
    #[arg(long, value_name = "HOST[:CONTAINER[:rwm]]", value_parser = options::device)]
    device: Vec<Device>,
    /// Who it runs as, instead of the image's user
    #[arg(short, long, value_name = "USER[:GID]", value_parser = options::user)]
    user: Option<options::User>,
    /// Folder that it runs in, instead of the image's
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Program to run, instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Make its root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Network: the pod's own or the host's
    #[arg(long, value_enum, default_value_t = Space::Own, value_name = "WHOSE")]
    network: Space,
    /// PID namespace: the container's own or the host's
    #[arg(long, value_enum, default_value_t = Space::Own, value_name = "WHOSE")]
    pid: Space,
    /// The pod's hostname [default: its name]
    #[arg(long)]
    hostname: Option<String>,
    /// Label of pod and container
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = labels::parse)]
    label: Vec<(String, String)>,
    /// Annotation of pod and container
    #[arg(long, value_name = "KEY=VALUE", value_parser = labels::parse)]
    annotation: Vec<(String, String)>,
    /// Runtime handler of the pod
    #[arg(long, default_value = "", hide_default_value = true)]
    runtime: String,
    /// Folder in which the pod gets one for its logs
    #[arg(long, default_value = "/var/log/pods", value_name = "DIR")]
    log_dir: PathBuf,
    #[command(flatten)]
    login: LoginArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PullWhen {
    /// If it is not here
    Missing,
    Always,
    Never,
}

/// Whose a namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Space {
    Own,
    Host,
}

/// What was made, for the rest of the command.
struct Running {
    client: Client,
    pod: PodSandbox,
    container: Container,
}

impl RunArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        if let Some(name) = &self.name {
            self.check_name(&client, name).await?;
        }
        let mut signals = Signals::new()?;
        tokio::select! {
            outcome = self.provide_image(&client) => outcome?,
            status = signals.next() => {
                super::progress::leave_line();
                return Ok(status);
            }
        }
        // What is made from here on is either finished or undone.
        let running = self.start(client, &mut signals).await?;
        let running = match running {
            Ok(running) => running,
            Err(status) => return Ok(status),
        };
        if self.detach {
            if self.format.is_json() {
                let (pod, container) = (&running.pod.id, &running.container.id);
                output::print_json(&json!({ "podSandboxId": pod, "containerId": container }))?;
            } else {
                output::print(format!("{}\n", running.pod.id))?;
            }
            return Ok(SUCCESS);
        }
        let outcome = running.attend(&mut signals, self.format.is_json()).await;
        if self.rm {
            running.remove().await?;
        }
        outcome
    }

    /// A runtime takes several pods of one name, a person does not.
    async fn check_name(&self, client: &Client, name: &str) -> anyhow::Result<()> {
        let filter = ListPodSandboxRequest::default();
        let pods = client.list_pod_sandbox(filter).await?.items;
        let mut metadata = pods.iter().filter_map(|pod| pod.metadata.as_ref());
        if metadata.any(|other| other.name == *name && other.namespace == self.namespace) {
            let namespace = &self.namespace;
            anyhow::bail!(
                "there is a pod {namespace}/{name} already: remove it first (carpel rm -f {namespace}/{name}), \
                 or choose another --name"
            );
        }
        Ok(())
    }

    async fn provide_image(&self, client: &Client) -> anyhow::Result<()> {
        if self.pull != PullWhen::Always {
            let request = ImageStatusRequest {
                image: Some(spec(&self.image)),
                verbose: false,
            };
            if client.image_status(request).await?.image.is_some() {
                return Ok(());
            }
        }
        if self.pull == PullWhen::Never {
            anyhow::bail!(
                "image {} is not here, and --pull never forbids to get it",
                self.image
            );
        }
        let credentials = self.login.load()?.for_image(&self.image);
        let progress = Pull::begin(&self.image, false, &MultiProgress::new());
        pull(client, &self.image, credentials, progress)
            .await
            .map(drop)
    }

    /// Makes the pod and starts the container. On an error, or if a signal comes meanwhile (whose status is the
    /// inner error), nothing is left.
    async fn start(
        &self,
        client: Client,
        signals: &mut Signals,
    ) -> anyhow::Result<Result<Running, u8>> {
        let config = self.pod_config();
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.runtime.clone(),
        };
        let pod = client
            .run_pod_sandbox(request)
            .await
            .context("make the pod")?;
        let pod = PodSandbox {
            id: pod.pod_sandbox_id,
            metadata: config.metadata.clone(),
            annotations: config.annotations.clone(),
            ..PodSandbox::default()
        };
        let mut running = Running {
            client,
            container: Container {
                pod_sandbox_id: pod.id.clone(),
                ..Container::default()
            },
            pod,
        };
        let outcome = tokio::select! {
            outcome = running.start(self, config) => outcome.map(|()| None),
            status = signals.next() => Ok(Some(status)),
        };
        match outcome {
            Ok(None) => Ok(Ok(running)),
            Ok(Some(status)) => running.remove().await.map(|()| Err(status)),
            Err(error) => {
                // The first error is the one to tell.
                let _ = running.remove().await;
                Err(error)
            }
        }
    }
}

impl Running {
    async fn start(&mut self, args: &RunArgs, pod: PodSandboxConfig) -> anyhow::Result<()> {
        let config = args.container_config(&pod);
        self.container.metadata.clone_from(&config.metadata);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod),
        };
        let created = self.client.create_container(request).await;
        self.container.id = created.context("make the container")?.container_id;
        let request = StartContainerRequest {
            container_id: self.container.id.clone(),
        };
        let started = self.client.start_container(request).await;
        started.map(drop).context("start the container")
    }

    /// Shows what the container writes until it exits, and returns how it did. The first Ctrl-C asks it to stop,
    /// the second kills it.
    async fn attend(&self, signals: &mut Signals, json: bool) -> Outcome {
        let id = &self.container.id;
        let status = self.client.require_status(id).await?;
        let mut printer = Printer::new(None, false, json);
        let mut end = std::pin::pin!(follow(&self.client, &status, None, &mut printer));
        let status = tokio::select! {
            end = &mut end => {
                return Ok(match end? {
                    Some(status) => exec::exit_status(status.exit_code),
                    // Somebody has removed it.
                    None => OWN_FAILURE,
                });
            }
            status = signals.next() => status,
        };
        let stop = async {
            tokio::select! {
                stopped = self.client.stop_container(id, stop::GRACE.into()) => stopped,
                _ = signals.next() => self.client.stop_container(id, 0).await,
            }
        };
        let (stopped, shown) = tokio::join!(stop, end);
        stopped?;
        shown?;
        Ok(status)
    }

    /// Removes the pod and everything in it.
    async fn remove(&self) -> anyhow::Result<()> {
        let mut all = Catalogue::default();
        if !self.container.id.is_empty() {
            all.containers.push(self.container.clone());
        }
        let removed = rm::remove_pod(&self.client, &all, &self.pod).await;
        removed.with_context(|| format!("remove pod {}", units::short(&self.pod.id)))
    }
}

/// What asks this command to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for one and returns the exit status that goes with it.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPTED,
            _ = self.terminate.recv() => TERMINATED,
        }
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        user_specified_image: image.to_owned(),
        ..ImageSpec::default()
    }
}
