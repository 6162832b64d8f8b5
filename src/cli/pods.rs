//! `carpel pods`: the pod sandboxes.

use std::collections::HashMap;

use carpel_api::cri::{
    ContainerState, ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter,
    PodSandboxState, PodSandboxStateValue, PodSandboxStatusRequest,
};
use clap::{Args, ValueEnum};
use futures::StreamExt;

use super::client::{Client, Connection};
use super::output::{self, Colour, ListArgs, Screen};
use super::resolve::{Catalogue, pod_state};
use super::table::{Cell, Table, column, flexible, number};
use super::{Outcome, SUCCESS, labels, units};

/// How many pods' statuses are asked for at a time.
const PARALLEL: usize = 16;

#[derive(Debug, Args)]
pub struct PodsArgs {
    /// Only those whose name contains TEXT
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Only those of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only those in this state
    #[arg(short, long, value_enum)]
    state: Option<StateArg>,
    /// Only those with this label; several must all be there
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = labels::parse)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StateArg {
    Ready,
    #[value(name = "notready")]
    NotReady,
}

impl PodsArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let mut pods = client.list_pod_sandbox(self.request()).await?.items;
        pods.retain(|pod| self.shows(pod));
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
        if self.list.quiet {
            output::print_ids(pods.iter().map(|one| one.id.as_str()))?;
        } else if self.list.format.is_json() {
            let answer = ListPodSandboxResponse { items: pods };
            output::print_json(&output::message("ListPodSandboxResponse", &answer))?;
        } else {
            let (all, ips) = tokio::join!(Catalogue::fetch(&client), ips(&client, &pods));
            output::print(self.table(&pods, &all?, &ips, &Screen::detect()))?;
        }
        Ok(SUCCESS)
    }

    fn request(&self) -> ListPodSandboxRequest {
        let state = self.state.map(|state| match state {
            StateArg::Ready => PodSandboxState::SandboxReady,
            StateArg::NotReady => PodSandboxState::SandboxNotready,
        });
        let filter = PodSandboxFilter {
            state: state.map(|state| PodSandboxStateValue {
                state: state.into(),
            }),
            label_selector: self.label.iter().cloned().collect(),
            ..PodSandboxFilter::default()
        };
        ListPodSandboxRequest {
            filter: Some(filter),
        }
    }

    /// What the runtime's filter cannot say.
    fn shows(&self, pod: &PodSandbox) -> bool {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let (name, namespace) = (self.name.as_ref(), self.namespace.as_ref());
        name.is_none_or(|text| metadata.name.contains(text.as_str()))
            && namespace.is_none_or(|wanted| metadata.namespace == *wanted)
    }

    fn table(
        &self,
        pods: &[PodSandbox],
        all: &Catalogue,
        ips: &HashMap<String, String>,
        screen: &Screen,
    ) -> String {
        let now = units::now();
        let mut table = Table::new([
            column("POD"),
            flexible("NAMESPACE"),
            flexible("NAME"),
            column("STATE"),
            number("RUNNING"),
            column("IP"),
            column("AGE"),
        ]);
        for pod in pods {
            let metadata = pod.metadata.clone().unwrap_or_default();
            let (mut running, mut containers) = (0, 0);
            for container in all.containers_of(&pod.id) {
                containers += 1;
                running += u32::from(container.state() == ContainerState::ContainerRunning);
            }
            let id = if self.list.no_trunc {
                &pod.id
            } else {
                units::short(&pod.id)
            };
            table.row([
                id.into(),
                metadata.namespace.into(),
                metadata.name.into(),
                state_cell(pod.state()),
                format!("{running}/{containers}").into(),
                ips.get(&pod.id).cloned().unwrap_or_default().into(),
                units::age(pod.created_at, now).into(),
            ]);
        }
        let screen = Screen {
            width: screen.width.filter(|_| !self.list.no_trunc),
            ..*screen
        };
        table.render(&screen)
    }
}

/// A pod's state in a word.
pub fn state_cell(state: PodSandboxState) -> Cell {
    let colour = match state {
        PodSandboxState::SandboxReady => Colour::Green,
        PodSandboxState::SandboxNotready => Colour::Yellow,
    };
    Cell::coloured(pod_state(state), colour)
}

/// The pods' main addresses by the pods' ids. A pod with the node's network has none, nor one that has just
/// gone.
async fn ips(client: &Client, pods: &[PodSandbox]) -> HashMap<String, String> {
    let ready = pods
        .iter()
        .filter(|pod| pod.state() == PodSandboxState::SandboxReady);
    let asked = ready.map(|pod| async {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: false,
        };
        let status = client.pod_sandbox_status(request).await.ok()?.status?;
        Some((pod.id.clone(), status.network?.ip))
    });
    let answers = futures::stream::iter(asked).buffer_unordered(PARALLEL);
    answers.filter_map(std::future::ready).collect().await
}

#[cfg(test)]
mod tests {
    use carpel_api::cri::{Container, PodSandboxMetadata};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        pods: PodsArgs,
    }

    #[test]
    fn a_row_counts_what_runs() {
        let args = Line::try_parse_from(["pods", "-n", "ns", "--name", "we"]).unwrap();
        let pod = PodSandbox {
            id: "ab".repeat(32),
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                namespace: "ns".into(),
                ..PodSandboxMetadata::default()
            }),
            ..PodSandbox::default()
        };
        assert!(args.pods.shows(&pod));
        assert!(!args.pods.shows(&PodSandbox::default()));
        let container = |state: ContainerState| Container {
            pod_sandbox_id: pod.id.clone(),
            state: state.into(),
            ..Container::default()
        };
        let all = Catalogue {
            pods: vec![pod.clone()],
            containers: vec![
                container(ContainerState::ContainerRunning),
                container(ContainerState::ContainerExited),
                Container::default(),
            ],
        };
        let ips = HashMap::from([(pod.id.clone(), "10.0.0.7".to_owned())]);
        let screen = Screen {
            width: None,
            colour: false,
        };
        assert_eq!(
            args.pods.table(&[pod], &all, &ips, &screen),
            "POD            NAMESPACE   NAME   STATE   RUNNING   IP         AGE\n\
             abababababab   ns          web    Ready       1/2   10.0.0.7   -\n"
        );
    }
}
