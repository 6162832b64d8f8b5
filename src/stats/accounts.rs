//! Everything that is known of the pods that run, for metrics. These come rarely, so that they may cost some dozens of
//! files for each container; but nothing that grows with what a container has stored.

use std::collections::HashMap;
use std::sync::Arc;

use super::network::{self, Interface};
use super::processes::{self, Processes};
use super::{DiskUsage, Pods, fill_limits, in_parts};
use crate::cgroup::{Accounts, FileReader, Usage, Wanted, huge_page_sizes};
use crate::container::Container;
use crate::error::Error;
use crate::ids::ContainerId;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::spec::config::Resources;

/// A pod that is ready.
#[derive(Debug, Clone, Default)]
pub struct SandboxAccounts {
    /// The sandbox's own.
    pub cgroup: String,
    /// Without loopback; none with the node's network.
    pub interfaces: Vec<Interface>,
    /// Those that run.
    pub containers: Vec<(ContainerId, ContainerAccounts)>,
}

/// A container that runs.
#[derive(Debug, Clone, Default)]
pub struct ContainerAccounts {
    pub cgroup: String,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    pub usage: Usage,
    pub accounts: Accounts,
    pub processes: Processes,
    /// `None` until it was walked for the first time.
    pub disk: Option<DiskUsage>,
    /// The limits in force.
    pub resources: Resources,
}

/// The file system that images and writable layers are on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// "/dev/sda1"; empty if it is on no device of its own.
    pub device: String,
    pub bytes: u64,
    pub inodes: u64,
    pub free_inodes: u64,
}

impl Node {
    /// The accounts of these sandboxes, in their order. One that is not ready has none.
    ///
    /// # Errors
    /// Only if the daemon itself is broken.
    pub async fn accounts(
        self: &Arc<Self>,
        sandboxes: Vec<Arc<Sandbox>>,
    ) -> Result<Vec<Option<SandboxAccounts>>, Error> {
        self.walker.wanted();
        let node = Arc::clone(self);
        let pods = Pods::of(&node);
        let read = move |part: &[Arc<Sandbox>]| {
            let sizes = huge_page_sizes();
            let mut files = FileReader::default();
            let read =
                |sandbox: &Arc<Sandbox>| node.read_accounts(sandbox, &pods, &sizes, &mut files);
            part.iter().map(read).collect()
        };
        in_parts(sandboxes, read)
            .await
            .map_err(Error::at("read the accounts of pods"))
    }

    fn read_accounts(
        &self,
        sandbox: &Sandbox,
        pods: &Pods,
        sizes: &[String],
        files: &mut FileReader,
    ) -> Option<SandboxAccounts> {
        let live = sandbox.live()?;
        let containers = pods.containers.get(&sandbox.id).into_iter().flatten();
        let containers = containers.filter_map(|container| {
            let accounts = self.read_container_accounts(container, sizes, files)?;
            Some((container.id, accounts))
        });
        let containers = containers.collect();
        let network = sandbox.netns.as_ref().and_then(|_| {
            let main = live.attachment.as_ref().map(|it| it.interface.as_str());
            network::read(live.supervisor.pid(), main.unwrap_or("eth0"))
        });
        // Whoever died meanwhile may have left its number to another.
        let network = network.filter(|_| live.supervisor.is_alive());
        let interfaces = network.map(|network| network.main.into_iter().chain(network.others));
        Some(SandboxAccounts {
            cgroup: sandbox.cgroup.clone(),
            interfaces: interfaces.into_iter().flatten().collect(),
            containers,
        })
    }

    fn read_container_accounts(
        &self,
        container: &Container,
        sizes: &[String],
        files: &mut FileReader,
    ) -> Option<ContainerAccounts> {
        let running = container.running()?;
        let wanted = Wanted {
            limits: false,
            pids: true,
        };
        let mut usage = self.read_cgroup(&container.cgroup, wanted, files)?;
        fill_limits(&mut usage, container);
        let cgroup = self.cgroups.open(&container.cgroup);
        let accounts = cgroup.accounts(sizes, files);
        let pids = cgroup.pids().unwrap_or_default();
        Some(ContainerAccounts {
            cgroup: container.cgroup.clone(),
            started_at: running.started_at,
            usage,
            accounts: accounts.unwrap_or_else(|error| {
                tracing::warn!(cgroup = container.cgroup, %error, "accounts cannot be read");
                Accounts::default()
            }),
            processes: processes::read(&pids, running.pid),
            disk: container.remembered.disk(),
            resources: self.with_defaults(&container.limits().resources),
        })
    }

    /// What the node's folder is on. `None` if the kernel does not say.
    #[must_use]
    pub fn volume(&self) -> Option<Volume> {
        let root = &self.paths.root;
        let stat = rustix::fs::stat(root).ok()?;
        let space = rustix::fs::statvfs(root).ok()?;
        let (major, minor) = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        Some(Volume {
            device: Devices::default().name(major, minor),
            bytes: space.f_blocks.saturating_mul(space.f_frsize),
            inodes: space.f_files,
            free_inodes: space.f_ffree,
        })
    }
}

/// Names of block devices, each looked up once.
#[derive(Debug, Default)]
pub struct Devices(HashMap<(u32, u32), String>);

impl Devices {
    /// "/dev/sda"; empty for what is no block device.
    pub fn name(&mut self, major: u32, minor: u32) -> String {
        let name = self.0.entry((major, minor)).or_insert_with(|| {
            let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
            let name = link
                .ok()
                .and_then(|link| Some(link.file_name()?.to_owned()));
            name.map(|name| format!("/dev/{}", name.to_string_lossy()))
                .unwrap_or_default()
        });
        name.clone()
    }
}
