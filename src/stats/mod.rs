//! What pods and containers use, for those who ask over the CRI.
//!
//! ```text
//! cgroup files ──read at each request──▶ cpu, memory, swap, pressure, pids
//! /proc/<supervisor>/net/dev ──────────▶ network
//! more cgroup files, /proc/<pid>/fd ───▶ accounts, for metrics only
//! writable layers ──walked in the background, when somebody asks──▶ remembered ──▶ disk
//! ```
//!
//! What must always hold: no request walks a disk, and none but that of metrics a list of processes (and then
//! so many descriptors and no more). Figures of what is gone are left out, never zero.

mod accounts;
mod disk;
mod network;
mod processes;
mod rate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use accounts::{ContainerAccounts, Devices, SandboxAccounts, Volume};
pub(crate) use disk::Walker;
pub use disk::{DiskTotal, DiskUsage};
pub use network::{Interface, NetworkUsage};
pub use processes::Processes;
pub(crate) use rate::Rate;

use tokio::task::JoinError;

use crate::cgroup::{FileReader, Usage, Wanted};
use crate::container::Container;
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::node::Node;
use crate::sandbox::Sandbox;

/// What is remembered of a container between two requests.
#[derive(Default)]
pub(crate) struct Remembered {
    rate: Rate,
    disk: Mutex<Option<DiskUsage>>,
}

impl Remembered {
    /// The writable layer, as it was when it was last walked.
    pub fn disk(&self) -> Option<DiskUsage> {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_disk(&self, usage: DiskUsage) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(usage);
    }
}

/// The figures of a cgroup.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// When they were read, nanoseconds since the epoch.
    pub at: i64,
    pub usage: Usage,
    /// CPU time per second over the last moment, in nanoseconds. Unknown at the first look at a cgroup.
    pub nano_cores: Option<u64>,
}

/// The figures of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerFigures {
    /// `None` if it does not run.
    pub figures: Option<Figures>,
    /// `None` until it was walked for the first time.
    pub disk: Option<DiskUsage>,
}

/// The figures of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxFigures {
    pub figures: Figures,
    /// `None` with the node's network.
    pub network: Option<NetworkUsage>,
    pub containers: Vec<(ContainerId, ContainerFigures)>,
}

impl Node {
    /// The figures of these containers, in their order. One that is gone has none.
    ///
    /// # Errors
    /// Only if the daemon itself is broken.
    pub async fn container_figures(
        self: &Arc<Self>,
        containers: Vec<Arc<Container>>,
    ) -> Result<Vec<ContainerFigures>, Error> {
        self.walker.wanted();
        let node = Arc::clone(self);
        let read = move |part: &[Arc<Container>]| {
            let mut files = FileReader::default();
            let read =
                |container: &Arc<Container>| node.read_container(container, false, &mut files);
            part.iter().map(read).collect()
        };
        in_parts(containers, read)
            .await
            .map_err(Error::at("read the figures of containers"))
    }

    /// The figures of these sandboxes, in their order. One that is not ready has none.
    ///
    /// # Errors
    /// Only if the daemon itself is broken.
    pub async fn sandbox_figures(
        self: &Arc<Self>,
        sandboxes: Vec<Arc<Sandbox>>,
    ) -> Result<Vec<Option<SandboxFigures>>, Error> {
        self.walker.wanted();
        let node = Arc::clone(self);
        let pods = Pods::of(&node);
        let read = move |part: &[Arc<Sandbox>]| {
            let mut files = FileReader::default();
            let read = |sandbox: &Arc<Sandbox>| node.read_sandbox(sandbox, &pods, &mut files);
            part.iter().map(read).collect()
        };
        in_parts(sandboxes, read)
            .await
            .map_err(Error::at("read the figures of pods"))
    }

    /// The space that all writable layers take, as far as it is known.
    #[must_use]
    pub fn writable_layers(&self) -> DiskTotal {
        self.walker.wanted();
        self.containers()
            .iter()
            .filter_map(|container| container.remembered.disk())
            .collect()
    }

    fn read_container(
        &self,
        container: &Container,
        pids: bool,
        files: &mut FileReader,
    ) -> ContainerFigures {
        let wanted = Wanted {
            limits: false,
            pids,
        };
        let figures = container.running().and_then(|running| {
            let mut usage = self.read_cgroup(&container.cgroup, wanted, files)?;
            fill_limits(&mut usage, container);
            let started = Some(running.started_at);
            Some(figures(usage, &container.remembered.rate, started))
        });
        ContainerFigures {
            figures,
            disk: container.remembered.disk(),
        }
    }

    fn read_sandbox(
        &self,
        sandbox: &Sandbox,
        pods: &Pods,
        files: &mut FileReader,
    ) -> Option<SandboxFigures> {
        let live = sandbox.live()?;
        let own_cgroup = pods.own_cgroup(sandbox);
        let containers = pods.containers.get(&sandbox.id);
        let containers: Vec<_> = containers
            .into_iter()
            .flatten()
            .map(|container| {
                let figures = self.read_container(container, own_cgroup.is_none(), files);
                (container.id, figures)
            })
            .collect();
        let wanted = Wanted {
            limits: own_cgroup.is_some(),
            pids: true,
        };
        let usage = match own_cgroup {
            Some(parent) => self.read_cgroup(parent, wanted, files)?,
            None => {
                let own = self.read_cgroup(&sandbox.cgroup, wanted, files)?;
                let others = containers
                    .iter()
                    .filter_map(|(_, all)| all.figures.as_ref());
                others.fold(own, |sum, figures| add(sum, &figures.usage))
            }
        };
        let network = sandbox.netns.as_ref().and_then(|_| {
            let main = live.attachment.as_ref().map(|it| it.interface.as_str());
            network::read(live.supervisor.pid(), main.unwrap_or("eth0"))
        });
        // Whoever died meanwhile may have left its number to another.
        let network = network.filter(|_| live.supervisor.is_alive());
        Some(SandboxFigures {
            figures: figures(usage, &sandbox.rate, Some(sandbox.created_at)),
            network,
            containers,
        })
    }

    /// `None` if the cgroup is gone, or cannot be read, which is not worth failing a whole list for.
    fn read_cgroup(&self, path: &str, wanted: Wanted, files: &mut FileReader) -> Option<Usage> {
        match self.cgroups.open(path).usage(wanted, files) {
            Ok(usage) => Some(usage).filter(|usage| *usage != Usage::default()),
            Err(error) => {
                tracing::warn!(cgroup = path, %error, "figures cannot be read");
                None
            }
        }
    }
}

/// Has `read` done for a list by as many threads as are worth it. The kernel's part takes some tens of
/// microseconds for each cgroup, so that this decides how long a long list takes.
async fn in_parts<T, R>(
    list: Vec<Arc<T>>,
    read: impl Fn(&[Arc<T>]) -> Vec<R> + Send + Sync + 'static,
) -> Result<Vec<R>, JoinError>
where
    T: Send + Sync + 'static,
    R: Send + 'static,
{
    /// A thread costs as much as some cgroups.
    const LEAST: usize = 8;
    const THREADS: usize = 4;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let size = list.len().div_ceil(threads.min(THREADS)).max(LEAST);
    let read = Arc::new(read);
    let parts: Vec<_> = list
        .chunks(size)
        .map(|part| {
            let (part, read) = (part.to_vec(), Arc::clone(&read));
            tokio::task::spawn_blocking(move || read(&part))
        })
        .collect();
    let mut all = Vec::with_capacity(list.len());
    for part in parts {
        all.extend(part.await?);
    }
    Ok(all)
}

/// A container's limits are those that it was given: they need not be read.
fn fill_limits(usage: &mut Usage, container: &Container) {
    let (memory, swap) = container.memory_limits();
    if let Some(usage) = &mut usage.memory {
        usage.limit = memory;
    }
    if let Some(usage) = &mut usage.swap {
        usage.limit = swap;
    }
}

fn figures(usage: Usage, rate: &Rate, started_at: Option<i64>) -> Figures {
    let at = crate::node::now();
    let nano_cores = usage
        .cpu
        .and_then(|cpu| rate.sample(at, cpu.total, started_at));
    Figures {
        at,
        usage,
        nano_cores,
    }
}

/// The pods of the node, as far as one has to do with others.
struct Pods {
    containers: HashMap<SandboxId, Vec<Arc<Container>>>,
    /// How many sandboxes have this parent.
    parents: HashMap<String, usize>,
}

impl Pods {
    fn of(node: &Node) -> Self {
        let mut containers: HashMap<_, Vec<_>> = HashMap::new();
        for container in node.containers() {
            let of_pod = containers.entry(container.sandbox).or_default();
            of_pod.push(container);
        }
        let mut parents = HashMap::new();
        for sandbox in node.sandboxes() {
            if let Some(parent) = &sandbox.config.cgroup_parent {
                *parents.entry(parent.clone()).or_default() += 1;
            }
        }
        Self {
            containers,
            parents,
        }
    }

    /// The cgroup that holds this pod and nothing else: the parent that a kubelet makes for each pod. Its
    /// figures also hold what containers used that are gone.
    fn own_cgroup<'a>(&self, sandbox: &'a Sandbox) -> Option<&'a str> {
        let parent = sandbox.config.cgroup_parent.as_deref()?;
        (self.parents.get(parent) == Some(&1)).then_some(parent)
    }
}

/// The sum of what can be summed: pressures cannot.
fn add(sum: Usage, other: &Usage) -> Usage {
    let mut sum = Usage {
        io_pressure: None,
        ..sum
    };
    if let (Some(sum), Some(other)) = (&mut sum.cpu, &other.cpu) {
        sum.total += other.total;
        sum.pressure = None;
    }
    if let (Some(sum), Some(other)) = (&mut sum.memory, &other.memory) {
        sum.usage += other.usage;
        sum.working_set += other.working_set;
        sum.rss += other.rss;
        sum.faults += other.faults;
        sum.major_faults += other.major_faults;
        sum.limit = None;
        sum.pressure = None;
    }
    if let (Some(sum), Some(other)) = (&mut sum.swap, &other.swap) {
        sum.usage += other.usage;
        sum.limit = None;
    }
    if let (Some(sum), Some(other)) = (&mut sum.pids, &other.pids) {
        *sum += other;
    }
    sum
}
