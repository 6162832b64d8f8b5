//! `carpel stats`: what containers or pods use, once or over and over.

use std::collections::HashMap;
use std::time::Duration;

use carpel_api::cri::{
    ContainerStats, ContainerStatsFilter, CpuUsage, ListContainerStatsRequest,
    ListContainerStatsResponse, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse,
    PodSandboxStats, UInt64Value,
};
use clap::Args;

use super::client::{CallError, Client, Connection};
use super::output::{self, FormatArgs, Screen};
use super::resolve::{Among, Catalogue, Object};
use super::table::{Cell, Table, column, flexible, number};
use super::{Outcome, SUCCESS, units};

/// Between two readings of the processors' time, where the runtime keeps none itself.
const SAMPLE: Duration = Duration::from_millis(500);
/// Cursor home, and after the lines: clear what is left of the last picture.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K\n";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR_ALL: &str = "\x1b[2J";

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Containers, or pods for all containers of those [default: all that run]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Show pods instead of containers, with their network and processes
    #[arg(short, long)]
    pods: bool,
    /// Show new figures until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two pictures
    #[arg(long, default_value_t = 2, value_name = "SECONDS", requires = "watch",
          value_parser = clap::value_parser!(u32).range(1..))]
    interval: u32,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl StatsArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let wanted = self.wanted(&Catalogue::fetch(&client).await?)?;
        let screen = Screen::detect();
        let mut meter = Meter::default();
        if !self.format.is_json() && meter.read(&self.sample(&client, &wanted).await?) {
            tokio::time::sleep(SAMPLE).await;
        }
        if self.watch && screen.width.is_some() {
            output::print(CLEAR_ALL)?;
        }
        loop {
            let figures = self.sample(&client, &wanted).await?;
            meter.read(&figures);
            if self.format.is_json() {
                let json = figures.json();
                match self.watch {
                    true => output::print_json_line(&json)?,
                    false => output::print_json(&json)?,
                }
            } else {
                let all = Catalogue::fetch(&client).await?;
                output::print(self.picture(figures.table(&all, &meter), &screen))?;
            }
            if !self.watch {
                return Ok(SUCCESS);
            }
            tokio::time::sleep(Duration::from_secs(self.interval.into())).await;
        }
    }

    /// The ids of what was named; `None`: everything.
    fn wanted(&self, all: &Catalogue) -> anyhow::Result<Option<Wanted>> {
        if self.names.is_empty() {
            return Ok(None);
        }
        let mut wanted = Wanted::default();
        for name in &self.names {
            match (self.pods, all.object(name, Among::Living)?) {
                (false, Object::Container(container)) => {
                    wanted.containers.push(container.id.clone())
                }
                (true, Object::Container(container)) => {
                    wanted.pods.push(container.pod_sandbox_id.clone());
                }
                (_, Object::Pod(pod)) => wanted.pods.push(pod.id.clone()),
            }
        }
        Ok(Some(wanted))
    }

    async fn sample(&self, client: &Client, wanted: &Option<Wanted>) -> Result<Figures, CallError> {
        if self.pods {
            let request = ListPodSandboxStatsRequest::default();
            let mut stats = client.list_pod_sandbox_stats(request).await?.stats;
            if let Some(wanted) = wanted {
                stats.retain(|pod| wanted.pods.contains(&pod_id(pod).to_owned()));
            }
            return Ok(Figures::Pods(stats));
        }
        let Some(wanted) = wanted else {
            let request = ListContainerStatsRequest::default();
            let stats = client.list_container_stats(request).await?.stats;
            return Ok(Figures::Containers(stats));
        };
        // A few filters are cheaper than all the figures, and say what belongs to a pod.
        let by_id = wanted.containers.iter().map(|id| ContainerStatsFilter {
            id: id.clone(),
            ..ContainerStatsFilter::default()
        });
        let by_pod = wanted.pods.iter().map(|pod| ContainerStatsFilter {
            pod_sandbox_id: pod.clone(),
            ..ContainerStatsFilter::default()
        });
        let mut stats: Vec<ContainerStats> = Vec::new();
        for filter in by_id.chain(by_pod) {
            let request = ListContainerStatsRequest {
                filter: Some(filter),
            };
            let more = client.list_container_stats(request).await?.stats;
            let known = |new: &ContainerStats| {
                stats
                    .iter()
                    .any(|old| container_id(old) == container_id(new))
            };
            let more: Vec<_> = more.into_iter().filter(|new| !known(new)).collect();
            stats.extend(more);
        }
        Ok(Figures::Containers(stats))
    }

    /// What is printed: with --watch on a terminal over the last picture.
    fn picture(&self, table: Table, screen: &Screen) -> String {
        let text = table.render(screen);
        match self.watch && screen.width.is_some() {
            true => format!("{HOME}{}{CLEAR_BELOW}", text.replace('\n', CLEAR_LINE)),
            // One picture after the other.
            false if self.watch => format!("{text}\n"),
            false => text,
        }
    }
}

/// Ids of what is wanted.
#[derive(Debug, Default)]
struct Wanted {
    containers: Vec<String>,
    pods: Vec<String>,
}

/// One answer of the runtime.
enum Figures {
    Containers(Vec<ContainerStats>),
    Pods(Vec<PodSandboxStats>),
}

impl Figures {
    fn json(&self) -> serde_json::Value {
        match self {
            Self::Containers(stats) => {
                let stats = stats.clone();
                let answer = ListContainerStatsResponse { stats };
                output::message("ListContainerStatsResponse", &answer)
            }
            Self::Pods(stats) => {
                let stats = stats.clone();
                let answer = ListPodSandboxStatsResponse { stats };
                output::message("ListPodSandboxStatsResponse", &answer)
            }
        }
    }

    fn processors(&self) -> Vec<(&str, &CpuUsage)> {
        let pair = |(id, cpu)| Some((id, cpu?));
        match self {
            Self::Containers(stats) => {
                let all = stats
                    .iter()
                    .map(|one| (container_id(one), one.cpu.as_ref()));
                all.filter_map(pair).collect()
            }
            Self::Pods(stats) => {
                let all = stats.iter().map(|one| {
                    let linux = one.linux.as_ref();
                    (pod_id(one), linux.and_then(|linux| linux.cpu.as_ref()))
                });
                all.filter_map(pair).collect()
            }
        }
    }

    fn table(&self, all: &Catalogue, meter: &Meter) -> Table {
        match self {
            Self::Containers(stats) => containers(stats, all, meter),
            Self::Pods(stats) => pods(stats, meter),
        }
    }
}

fn container_id(stats: &ContainerStats) -> &str {
    stats
        .attributes
        .as_ref()
        .map_or("", |attributes| &attributes.id)
}

fn pod_id(stats: &PodSandboxStats) -> &str {
    stats
        .attributes
        .as_ref()
        .map_or("", |attributes| &attributes.id)
}

fn containers(stats: &[ContainerStats], all: &Catalogue, meter: &Meter) -> Table {
    let mut table = Table::new([
        column("CONTAINER"),
        flexible("NAME"),
        number("CPU"),
        number("MEMORY"),
        number("LIMIT"),
        number("SWAP"),
        number("DISK"),
        flexible("POD"),
    ]);
    let mut stats: Vec<_> = stats.iter().collect();
    // The hungriest first.
    let used = |one: &ContainerStats| memory_in_use(one.memory.as_ref()).unwrap_or(0);
    stats.sort_by_key(|one| std::cmp::Reverse(used(one)));
    for one in stats {
        let id = container_id(one);
        let attributes = one.attributes.clone().unwrap_or_default();
        let container = all.containers.iter().find(|known| known.id == id);
        let pod = container.map(|known| all.container_path(known));
        let pod = pod.and_then(|path| Some(path.rsplit_once('/')?.0.to_owned()));
        let swap = one.swap.as_ref().and_then(|swap| swap.swap_usage_bytes);
        let disk = one
            .writable_layer
            .as_ref()
            .and_then(|layer| layer.used_bytes);
        let memory = one.memory.as_ref();
        table.row([
            units::short(id).into(),
            attributes.metadata.unwrap_or_default().name.into(),
            meter.cell(id),
            size(memory_in_use(memory)),
            size(memory_limit(memory)),
            size(value(swap)),
            size(value(disk)),
            pod.unwrap_or_default().into(),
        ]);
    }
    table
}

fn pods(stats: &[PodSandboxStats], meter: &Meter) -> Table {
    let mut table = Table::new([
        column("POD"),
        flexible("NAMESPACE"),
        flexible("NAME"),
        number("CPU"),
        number("MEMORY"),
        number("PROCESSES"),
        number("RECEIVED"),
        number("SENT"),
    ]);
    let linux = |one: &PodSandboxStats| one.linux.clone().unwrap_or_default();
    let mut stats: Vec<_> = stats.iter().map(|one| (one, linux(one))).collect();
    stats.sort_by_key(|(_, linux)| std::cmp::Reverse(memory_in_use(linux.memory.as_ref())));
    for (one, linux) in stats {
        let metadata = one.attributes.clone().unwrap_or_default().metadata;
        let metadata = metadata.unwrap_or_default();
        let interface = linux.network.and_then(|network| network.default_interface);
        let interface = interface.unwrap_or_default();
        let processes = linux
            .process
            .and_then(|process| value(process.process_count));
        table.row([
            units::short(pod_id(one)).into(),
            metadata.namespace.into(),
            metadata.name.into(),
            meter.cell(pod_id(one)),
            size(memory_in_use(linux.memory.as_ref())),
            processes.map(|n| n.to_string()).unwrap_or_default().into(),
            size(value(interface.rx_bytes)),
            size(value(interface.tx_bytes)),
        ]);
    }
    table
}

fn value(of: Option<UInt64Value>) -> Option<u64> {
    of.map(|of| of.value)
}

/// What cannot be taken back from it without harm.
fn memory_in_use(memory: Option<&carpel_api::cri::MemoryUsage>) -> Option<u64> {
    let memory = memory?;
    value(memory.working_set_bytes).or(value(memory.usage_bytes))
}

/// What it may use at most; `None` without a limit.
fn memory_limit(memory: Option<&carpel_api::cri::MemoryUsage>) -> Option<u64> {
    let available = value(memory?.available_bytes).filter(|bytes| *bytes > 0)?;
    Some(available.saturating_add(memory_in_use(memory)?))
}

fn size(bytes: Option<u64>) -> Cell {
    bytes.map(units::bytes).unwrap_or_default().into()
}

/// How much of a processor each uses: as the runtime says, else from one reading to the next.
#[derive(Debug, Default)]
struct Meter {
    /// Nanoseconds: when, and of processors' time.
    last: HashMap<String, (i64, u64)>,
    /// Billionths of a processor.
    rates: HashMap<String, u64>,
}

impl Meter {
    /// Takes a reading. Returns whether another is needed to know anything.
    fn read(&mut self, figures: &Figures) -> bool {
        let mut needed = false;
        let mut last = HashMap::new();
        let mut rates = HashMap::new();
        for (id, cpu) in figures.processors() {
            let used = value(cpu.usage_core_nano_seconds).unwrap_or(0);
            last.insert(id.to_owned(), (cpu.timestamp, used));
            if let Some(rate) = value(cpu.usage_nano_cores) {
                rates.insert(id.to_owned(), rate);
                continue;
            }
            match self.last.get(id) {
                // The runtime's figures are of the same moment: what was true then still is.
                Some((then, _)) if *then >= cpu.timestamp => {
                    if let Some(rate) = self.rates.get(id) {
                        rates.insert(id.to_owned(), *rate);
                    }
                }
                Some((then, before)) => {
                    let time = u128::from(cpu.timestamp.abs_diff(*then)).max(1);
                    let rate = u128::from(used.saturating_sub(*before)) * 1_000_000_000 / time;
                    rates.insert(id.to_owned(), u64::try_from(rate).unwrap_or(u64::MAX));
                }
                None => needed = true,
            }
        }
        (self.last, self.rates) = (last, rates);
        needed
    }

    /// In percent of one processor.
    fn cell(&self, id: &str) -> Cell {
        let percent = self.rates.get(id).map(|rate| *rate as f64 / 1e7);
        let text = percent.map(|percent| format!("{percent:.1}%"));
        text.unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use carpel_api::cri::{ContainerAttributes, MemoryUsage};

    use super::*;

    fn stats(id: &str, at: i64, cpu: u64, rate: Option<u64>, memory: u64) -> ContainerStats {
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: id.repeat(6),
                ..ContainerAttributes::default()
            }),
            cpu: Some(CpuUsage {
                timestamp: at,
                usage_core_nano_seconds: Some(UInt64Value { value: cpu }),
                usage_nano_cores: rate.map(|value| UInt64Value { value }),
                psi: None,
            }),
            memory: Some(MemoryUsage {
                working_set_bytes: Some(UInt64Value { value: memory }),
                ..MemoryUsage::default()
            }),
            ..ContainerStats::default()
        }
    }

    #[test]
    fn processors_are_metered() {
        let mut meter = Meter::default();
        let first = Figures::Containers(vec![
            stats("aa", 1_000, 500, None, 1 << 20),
            stats("bb", 1_000, 0, Some(1_500_000_000), 2 << 20),
        ]);
        assert!(meter.read(&first));
        let second = Figures::Containers(vec![
            stats("aa", 2_000, 750, None, 1 << 20),
            stats("bb", 2_000, 0, Some(1_500_000_000), 2 << 20),
            ContainerStats::default(),
        ]);
        assert!(!meter.read(&second));
        let screen = Screen {
            width: None,
            colour: false,
        };
        let text = second.table(&Catalogue::default(), &meter).render(&screen);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].starts_with("bbbbbbbbbbbb   -      150.0%   2.0 MiB"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("aaaaaaaaaaaa   -       25.0%   1.0 MiB"),
            "{text}"
        );
        // The same figures once more: the same rate.
        meter.read(&second);
        assert_eq!(meter.rates[&"aa".repeat(6)], 250_000_000);
        // A counter that went back is no rate.
        meter.read(&Figures::Containers(vec![stats("aa", 3_000, 0, None, 0)]));
        assert_eq!(meter.rates[&"aa".repeat(6)], 0);
    }
}
