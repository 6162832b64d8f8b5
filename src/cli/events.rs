//! `carpel events`: what happens to containers, as it happens.

use std::collections::HashMap;

use carpel_api::cri::{
    ContainerEventResponse, ContainerEventType, ContainerStatus, GetEventsRequest,
};
use clap::Args;

use super::client::Connection;
use super::output::{self, Colour, FormatArgs, Screen, printable};
use super::resolve::{Among, Catalogue};
use super::{Outcome, SUCCESS, units};

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only events of this pod
    #[arg(short, long)]
    pod: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl EventsArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let pod = match &self.pod {
            Some(name) => {
                let all = Catalogue::fetch(&client).await?;
                Some(all.pod(name, Among::Living)?.id.clone())
            }
            None => None,
        };
        let mut runtime = client.runtime();
        let call = runtime.get_container_events(GetEventsRequest {});
        let mut events = client.unbounded("GetContainerEvents", call).await?;
        let screen = Screen::detect();
        let mut names = Names::default();
        loop {
            let event = events.message().await;
            let Some(event) = event.map_err(|status| client.error("GetContainerEvents", status))?
            else {
                // The runtime has no more to say: it is stopping.
                return Ok(SUCCESS);
            };
            let of = event.pod_sandbox_status.as_ref().map(|status| &status.id);
            if pod.is_some() && of != pod.as_ref() {
                continue;
            }
            if self.format.is_json() {
                output::print_json_line(&output::message("ContainerEventResponse", &event))?;
            } else {
                output::print(line(&event, &mut names, &screen))?;
            }
        }
    }
}

/// The names of containers by their ids: an event of one that is deleted no longer has it.
type Names = HashMap<String, String>;

fn line(event: &ContainerEventResponse, names: &mut Names, screen: &Screen) -> String {
    let status = event
        .containers_statuses
        .iter()
        .find(|status| status.id == event.container_id);
    let kind = event.container_event_type();
    let colour = match (kind, status) {
        (ContainerEventType::ContainerStartedEvent, _) => Some(Colour::Green),
        (ContainerEventType::ContainerStoppedEvent, Some(status)) if status.exit_code != 0 => {
            Some(Colour::Red)
        }
        _ => None,
    };
    let word = screen.paint(colour, &format!("{:<8}", word(kind)));
    let (time, id) = (
        units::time(event.created_at),
        units::short(&event.container_id),
    );
    let what = printable(&path(event, status, names));
    let end = end(kind, status);
    format!("{time}  {word}  {id}  {what}{end}\n")
}

fn word(kind: ContainerEventType) -> &'static str {
    match kind {
        ContainerEventType::ContainerCreatedEvent => "created",
        ContainerEventType::ContainerStartedEvent => "started",
        ContainerEventType::ContainerStoppedEvent => "stopped",
        ContainerEventType::ContainerDeletedEvent => "deleted",
    }
}

/// "namespace/pod/container", as much of it as is known. A pod's own events have its id.
fn path(
    event: &ContainerEventResponse,
    status: Option<&ContainerStatus>,
    names: &mut Names,
) -> String {
    let pod = event.pod_sandbox_status.clone().unwrap_or_default();
    let metadata = pod.metadata.unwrap_or_default();
    let pod_path = format!("{}/{}", metadata.namespace, metadata.name);
    if pod.id == event.container_id {
        return format!("{pod_path} (the pod)");
    }
    let name = match status.and_then(|status| status.metadata.as_ref()) {
        Some(metadata) => {
            let name = metadata.name.clone();
            names.insert(event.container_id.clone(), name.clone());
            Some(name)
        }
        None => names.get(&event.container_id).cloned(),
    };
    if event.container_event_type() == ContainerEventType::ContainerDeletedEvent {
        names.remove(&event.container_id);
    }
    match name {
        Some(name) => format!("{pod_path}/{name}"),
        None => format!("{pod_path} (a container)"),
    }
}

/// How a container ended.
fn end(kind: ContainerEventType, status: Option<&ContainerStatus>) -> String {
    match (kind, status) {
        (ContainerEventType::ContainerStoppedEvent, Some(status)) => {
            let reason = printable(&status.reason);
            match reason.as_str() {
                "" => format!("  exit {}", status.exit_code),
                reason => format!("  exit {} ({reason})", status.exit_code),
            }
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use carpel_api::cri::{ContainerMetadata, PodSandboxMetadata, PodSandboxStatus};

    use super::*;

    #[test]
    fn a_line_says_what_happened_to_what() {
        let mut event = ContainerEventResponse {
            container_id: "ab".repeat(32),
            container_event_type: ContainerEventType::ContainerStoppedEvent.into(),
            created_at: 1_767_366_245_000_000_000,
            pod_sandbox_status: Some(PodSandboxStatus {
                id: "cd".repeat(32),
                metadata: Some(PodSandboxMetadata {
                    name: "web".into(),
                    namespace: "ns".into(),
                    ..PodSandboxMetadata::default()
                }),
                ..PodSandboxStatus::default()
            }),
            containers_statuses: vec![ContainerStatus {
                id: "ab".repeat(32),
                metadata: Some(ContainerMetadata {
                    name: "app".into(),
                    attempt: 0,
                }),
                exit_code: 3,
                reason: "Error".into(),
                ..ContainerStatus::default()
            }],
        };
        let screen = Screen {
            width: None,
            colour: false,
        };
        let mut names = Names::new();
        assert_eq!(
            line(&event, &mut names, &screen),
            "2026-01-02T15:04:05Z  stopped   abababababab  ns/web/app  exit 3 (Error)\n"
        );
        // Gone, and still known by its name.
        event.containers_statuses.clear();
        event.set_container_event_type(ContainerEventType::ContainerDeletedEvent);
        assert!(line(&event, &mut names, &screen).ends_with("  ns/web/app\n"));
        assert!(line(&event, &mut names, &screen).ends_with("  ns/web (a container)\n"));
        event.container_id = "cd".repeat(32);
        assert!(line(&event, &mut names, &screen).contains("ns/web (the pod)"));
        assert!(names.is_empty());
    }
}
