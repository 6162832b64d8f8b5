//! `carpel rm`: pods and containers, several at a time.

use std::path::Path;

use anyhow::{Context, bail};
use carpel_api::cri::{
    PodSandbox, PodSandboxState, RemoveContainerRequest, RemovePodSandboxRequest,
};
use clap::Args;

use super::Outcome;
use super::client::{CallError, Client, Connection};
use super::output::FormatArgs;
use super::resolve::{Among, Catalogue, Object, pod_name};
use super::run::LOG_FOLDER;
use super::stop::{each, report, runs};

/// A label of every pod that a kubelet makes.
const KUBELETS: &str = "io.kubernetes.pod.uid";

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Pods and containers
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Remove what runs, too: it is killed
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl RmArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let removed = each(self.names, async |name| {
            remove(&client, &all, &all.object(name, Among::All)?, self.force).await
        });
        report("removed", removed.await, self.format.is_json())
    }
}

async fn remove(
    client: &Client,
    all: &Catalogue,
    object: &Object<'_>,
    force: bool,
) -> anyhow::Result<()> {
    match object {
        Object::Container(container) => {
            let path = all.container_path(container);
            if runs(container) && !force {
                bail!("container {path} runs; stop it first (`carpel stop`), or remove it with -f");
            }
            let request = RemoveContainerRequest {
                container_id: container.id.clone(),
            };
            let removed = client.remove_container(request).await;
            removed
                .map(drop)
                .with_context(|| format!("remove container {path}"))
        }
        Object::Pod(pod) => {
            let name = pod_name(pod);
            let living = all.containers_of(&pod.id).filter(|c| runs(c)).count();
            if !force && living > 0 {
                bail!(
                    "pod {name} has running containers; stop it first (`carpel stop`), or remove it with -f"
                );
            }
            if !force && pod.state() == PodSandboxState::SandboxReady && !ours(pod) {
                bail!("pod {name} is ready; stop it first (`carpel stop`), or remove it with -f");
            }
            let removed = remove_pod(client, all, pod).await;
            removed.with_context(|| format!("remove pod {name}"))
        }
    }
}

/// Whether `carpel run` has made the pod: then it is as dead as its container. Whoever may make pods in a cluster may
/// annotate them, too, and none of those has a say in what is deleted here: the kubelet's have its label.
fn ours(pod: &PodSandbox) -> bool {
    pod.annotations.contains_key(LOG_FOLDER) && !pod.labels.contains_key(KUBELETS)
}

/// Removes a pod with its containers. Of one that `carpel run` has made the logs go, too: nobody else would
/// remove them.
///
/// # Errors
/// The runtime's answer.
pub async fn remove_pod(
    client: &Client,
    all: &Catalogue,
    pod: &PodSandbox,
) -> Result<(), CallError> {
    let mut logs = Vec::new();
    if ours(pod) {
        for container in all.containers_of(&pod.id) {
            if let Ok(status) = client.require_status(&container.id).await {
                logs.push(status.log_path);
            }
        }
    }
    let request = RemovePodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    client.remove_pod_sandbox(request).await?;
    for log in logs.iter().filter(|log| !log.is_empty()) {
        remove_log(Path::new(log));
    }
    if let Some(folder) = pod.annotations.get(LOG_FOLDER)
        && ours(pod)
    {
        // Only if it is empty: what else is in there is somebody else's.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(())
}

/// Removes a log and its folder, if nothing else is in that. A log that stays is no reason to fail.
fn remove_log(log: &Path) {
    let _ = std::fs::remove_file(log);
    if let Some(folder) = log.parent() {
        let _ = std::fs::remove_dir(folder);
    }
}
