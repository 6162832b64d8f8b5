//! `carpel stop`: pods and containers, several at a time.

use std::collections::HashSet;
use std::io::Write;

use carpel_api::cri::{Container, ContainerState, StopPodSandboxRequest};
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::json;

use super::client::{CallError, Client, Connection};
use super::output::{self, FormatArgs};
use super::resolve::{Among, Catalogue, Object};
use super::{FAILURE, Outcome, SUCCESS};

/// Seconds that a container has to end by itself.
pub const GRACE: u32 = 10;

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Pods and containers
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Seconds that a container has to end by itself before it is killed
    #[arg(short, long, default_value_t = GRACE, value_name = "SECONDS")]
    time: u32,
    /// Kill at once: the same as --time 0
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl StopArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let grace = if self.force { 0 } else { self.time };
        let stopped = each(self.names, async |name| {
            stop(&client, &all, &all.object(name, Among::Living)?, grace).await?;
            Ok(())
        });
        report("stopped", stopped.await, self.format.is_json())
    }
}

/// Stops a pod or a container. The containers of a pod get their grace, too, all at the same time.
///
/// # Errors
/// The runtime's answer.
pub async fn stop(
    client: &Client,
    all: &Catalogue,
    object: &Object<'_>,
    grace: u32,
) -> Result<(), CallError> {
    let pod = match object {
        Object::Container(container) => {
            return client.stop_container(&container.id, grace.into()).await;
        }
        Object::Pod(pod) => pod,
    };
    let running = all.containers_of(&pod.id).filter(|c| runs(c));
    let stops = running.map(|container| client.stop_container(&container.id, grace.into()));
    futures::future::try_join_all(stops).await?;
    let request = StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    client.stop_pod_sandbox(request).await.map(drop)
}

/// Whether a container has to be stopped.
pub fn runs(container: &Container) -> bool {
    matches!(
        container.state(),
        ContainerState::ContainerRunning | ContainerState::ContainerUnknown
    )
}

/// What was done, and what was not with its error.
type Done = Vec<(String, anyhow::Result<()>)>;

/// Does something with every name, all at the same time. A name that is given twice is done once.
pub async fn each(mut names: Vec<String>, work: impl AsyncFn(&str) -> anyhow::Result<()>) -> Done {
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let all = names
        .iter()
        .map(async |name| (name.clone(), work(name).await));
    all.collect::<FuturesUnordered<_>>().collect().await
}

/// Prints the names of what is done and the errors of what is not.
///
/// # Errors
/// As `write(2)`.
pub fn report(verb: &str, done: Done, json: bool) -> Outcome {
    let mut names = Vec::new();
    let mut status = SUCCESS;
    for (name, outcome) in done {
        match outcome {
            Ok(()) => names.push(name),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "carpel: {error:#}");
                status = FAILURE;
            }
        }
    }
    if json {
        output::print_json(&json!({ verb: names }))?;
    } else {
        output::print(
            names
                .iter()
                .map(|name| format!("{name}\n"))
                .collect::<String>(),
        )?;
    }
    Ok(status)
}
