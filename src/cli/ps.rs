//! `carpel ps`: the containers.

use carpel_api::cri::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ContainerStatus,
    ListContainersRequest, ListContainersResponse,
};
use clap::{Args, ValueEnum};
use futures::StreamExt;

use super::client::{Client, Connection};
use super::output::{self, Colour, ListArgs, Screen};
use super::resolve::{Among, Catalogue, container_name, container_state, pod_name};
use super::table::{Cell, Table, column, flexible};
use super::{Outcome, SUCCESS, labels, units};

/// How many containers' statuses are asked for at a time.
const PARALLEL: usize = 16;

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Show those that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Only those whose name contains TEXT
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Only those of this pod
    #[arg(short, long)]
    pod: Option<String>,
    /// Only those in this state; several may be given
    #[arg(short, long, value_enum)]
    state: Vec<StateArg>,
    /// Only those with this label; several must all be there
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = labels::parse)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateArg {
    Created,
    Running,
    Exited,
    Unknown,
}

impl From<StateArg> for ContainerState {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Created => Self::ContainerCreated,
            StateArg::Running => Self::ContainerRunning,
            StateArg::Exited => Self::ContainerExited,
            StateArg::Unknown => Self::ContainerUnknown,
        }
    }
}

impl PsArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let mut all = Catalogue::fetch(&client).await?;
        let mut containers = client
            .list_containers(self.request(&all)?)
            .await?
            .containers;
        containers.retain(|container| self.shows(container));
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        if self.list.quiet {
            output::print_ids(containers.iter().map(|one| one.id.as_str()))?;
        } else if self.list.format.is_json() {
            let answer = ListContainersResponse { containers };
            output::print_json(&output::message("ListContainersResponse", &answer))?;
        } else {
            all.containers = containers;
            let ends = ends(&client, &all.containers).await;
            output::print(self.table(&all, &ends, &Screen::detect()))?;
        }
        Ok(SUCCESS)
    }

    fn request(&self, all: &Catalogue) -> anyhow::Result<ListContainersRequest> {
        let pod = match &self.pod {
            Some(name) => all.pod(name, Among::Living)?.id.clone(),
            None => String::new(),
        };
        let state = match self.state[..] {
            [one] => Some(one.into()),
            [] if !self.all => Some(ContainerState::ContainerRunning),
            _ => None,
        };
        let filter = ContainerFilter {
            pod_sandbox_id: pod,
            state: state.map(|state| ContainerStateValue {
                state: state.into(),
            }),
            label_selector: self.label.iter().cloned().collect(),
            ..ContainerFilter::default()
        };
        Ok(ListContainersRequest {
            filter: Some(filter),
        })
    }

    /// What the runtime's filter cannot say.
    fn shows(&self, container: &Container) -> bool {
        let states = &self.state;
        let state = states.is_empty() || states.iter().any(|s| container.state() == (*s).into());
        let name = self.name.as_ref();
        state && name.is_none_or(|text| container_name(container).contains(text.as_str()))
    }

    fn table(&self, all: &Catalogue, ends: &[Option<ContainerStatus>], screen: &Screen) -> String {
        let now = units::now();
        let pods = all.pods_by_id();
        let mut table = Table::new([
            column("CONTAINER"),
            flexible("NAME"),
            column("STATE"),
            column("AGE"),
            flexible("IMAGE"),
            flexible("POD"),
        ]);
        for (container, end) in all.containers.iter().zip(ends) {
            let pod = pods.get(container.pod_sandbox_id.as_str());
            let image = container.image.as_ref();
            let image = image.map_or("", |image| match image.user_specified_image.as_str() {
                "" => image.image.as_str(),
                name => name,
            });
            table.row([
                self.id(&container.id).into(),
                container_name(container).into(),
                state_cell(container.state(), end.as_ref()),
                units::age(container.created_at, now).into(),
                self.image(image).into(),
                pod.map_or_else(
                    || self.id(&container.pod_sandbox_id).to_owned(),
                    |p| pod_name(p),
                )
                .into(),
            ]);
        }
        let screen = Screen {
            width: screen.width.filter(|_| !self.list.no_trunc),
            ..*screen
        };
        table.render(&screen)
    }

    fn id<'a>(&self, id: &'a str) -> &'a str {
        if self.list.no_trunc {
            id
        } else {
            units::short(id)
        }
    }

    /// An image as a person calls it: a bare digest by its first digits.
    fn image<'a>(&self, image: &'a str) -> &'a str {
        match image.starts_with("sha256:") {
            true => self.id(image),
            false => image,
        }
    }
}

/// The statuses of the containers that have exited, for their exit codes, in the containers' order.
async fn ends(client: &Client, containers: &[Container]) -> Vec<Option<ContainerStatus>> {
    let statuses = containers.iter().map(|container| async {
        match container.state() {
            // One that is removed at this moment is shown without its exit code.
            ContainerState::ContainerExited => client.require_status(&container.id).await.ok(),
            _ => None,
        }
    });
    let statuses = futures::stream::iter(statuses).buffered(PARALLEL);
    statuses.collect().await
}

/// A container's state with what one wants to know of it at once.
pub fn state_cell(state: ContainerState, end: Option<&ContainerStatus>) -> Cell {
    let word = container_state(state);
    match (state, end) {
        (ContainerState::ContainerRunning, _) => Cell::coloured(word, Colour::Green),
        (ContainerState::ContainerExited, Some(end)) => {
            let text = match end.reason.as_str() {
                reason @ ("OOMKilled" | "StartError" | "ContainerCannotRun") => {
                    format!("{word} ({}, {reason})", end.exit_code)
                }
                _ => format!("{word} ({})", end.exit_code),
            };
            match end.exit_code {
                0 => text.into(),
                _ => Cell::coloured(text, Colour::Red),
            }
        }
        (ContainerState::ContainerUnknown, _) => Cell::coloured(word, Colour::Yellow),
        _ => word.into(),
    }
}

#[cfg(test)]
mod tests {
    use carpel_api::cri::{ContainerMetadata, ImageSpec};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        ps: PsArgs,
    }

    fn ps(args: &[&str]) -> PsArgs {
        let line = [&["ps"], args].concat();
        Line::try_parse_from(line).unwrap().ps
    }

    #[test]
    fn the_filter_is_what_was_asked_for() {
        let filter = |args: &[&str]| {
            let request = ps(args).request(&Catalogue::default()).unwrap();
            request.filter.unwrap()
        };
        let state = |args: &[&str]| filter(args).state.map(|s| s.state());
        assert_eq!(state(&[]), Some(ContainerState::ContainerRunning));
        assert_eq!(state(&["-a"]), None);
        assert_eq!(
            state(&["-s", "exited"]),
            Some(ContainerState::ContainerExited)
        );
        assert_eq!(state(&["-s", "exited", "-s", "created"]), None);
        assert_eq!(filter(&["-l", "a=b"]).label_selector["a"], "b");
        assert!(Line::try_parse_from(["ps", "-l", "nonsense"]).is_err());
        assert!(ps(&["-p", "x"]).request(&Catalogue::default()).is_err());
        let mut container = Container {
            state: ContainerState::ContainerExited.into(),
            ..Container::default()
        };
        container.metadata.get_or_insert_default().name = "web-1".into();
        assert!(ps(&["-s", "exited", "-s", "created"]).shows(&container));
        assert!(!ps(&["-s", "running", "-s", "created"]).shows(&container));
        assert!(ps(&["--name", "web"]).shows(&container));
        assert!(!ps(&["--name", "db"]).shows(&container));
    }

    #[test]
    fn a_row_says_how_it_ended() {
        let container = Container {
            id: "ab".repeat(32),
            metadata: Some(ContainerMetadata {
                name: "app".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: format!("sha256:{}", "0".repeat(64)),
                ..ImageSpec::default()
            }),
            state: ContainerState::ContainerExited.into(),
            ..Container::default()
        };
        let end = ContainerStatus {
            exit_code: 137,
            reason: "OOMKilled".into(),
            ..ContainerStatus::default()
        };
        let all = Catalogue {
            pods: vec![],
            containers: vec![container],
        };
        let screen = Screen {
            width: None,
            colour: false,
        };
        let text = ps(&[]).table(&all, &[Some(end)], &screen);
        let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected = [
            "abababababab",
            "app",
            "Exited",
            "(137,",
            "OOMKilled)",
            "-",
            "000000000000",
            "-",
        ];
        assert_eq!(row, expected);
    }
}
