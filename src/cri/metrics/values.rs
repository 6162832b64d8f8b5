//! From what is known of a pod to its metrics.

use std::collections::BTreeMap;

use carpel_api::cri;

use super::families::{self, Family};
use crate::cgroup::{MemoryAccounts, MemoryUsage, Pressure, TasksLimit};
use crate::spec::config::{Ceiling, Resources};
use crate::stats::{ContainerAccounts, Devices, Interface, Volume};

/// Whose metrics these are: the values of [`families::COMMON`].
pub type Labels = [String; 6];

/// The metrics of a pod or a container.
pub struct Sheet {
    labels: Labels,
    metrics: Vec<cri::Metric>,
}

impl Sheet {
    pub fn new(labels: Labels) -> Self {
        let metrics = Vec::with_capacity(families::ALL.len());
        Self { labels, metrics }
    }

    pub fn done(self) -> Vec<cri::Metric> {
        self.metrics
    }

    /// A figure that was read for this request: it has no time of its own, so that it is as old as the
    /// answer. `None` has no metric: it is not known, which is not zero.
    fn put(&mut self, family: &'static Family, value: impl Into<Option<u64>>) {
        self.put_with(family, &[], value);
    }

    /// With values for the family's own labels.
    fn put_with(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        value: impl Into<Option<u64>>,
    ) {
        self.put_at(family, labels, value, 0);
    }

    fn put_at(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        value: impl Into<Option<u64>>,
        timestamp: i64,
    ) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let Some(value) = value.into() else { return };
        let own = labels.iter().map(|label| (*label).to_owned());
        self.metrics.push(cri::Metric {
            name: family.name.to_owned(),
            timestamp,
            metric_type: family.kind.into(),
            label_values: self.labels.iter().cloned().chain(own).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }

    /// A pod with the node's network has no figures of its own.
    pub fn network(&mut self, interface: &Interface) {
        let figures = [
            (&families::RECEIVED_BYTES, interface.rx_bytes),
            (&families::RECEIVED_PACKETS, interface.rx_packets),
            (&families::RECEIVED_DROPPED, interface.rx_dropped),
            (&families::RECEIVED_ERRORS, interface.rx_errors),
            (&families::SENT_BYTES, interface.tx_bytes),
            (&families::SENT_PACKETS, interface.tx_packets),
            (&families::SENT_DROPPED, interface.tx_dropped),
            (&families::SENT_ERRORS, interface.tx_errors),
        ];
        for (family, value) in figures {
            self.put_with(family, &[&interface.name], value);
        }
    }

    pub fn container(
        &mut self,
        all: &ContainerAccounts,
        volume: Option<&Volume>,
        devices: &mut Devices,
        now: i64,
    ) {
        self.put(&families::LAST_SEEN, seconds_since_1970(now));
        self.put(&families::START_TIME, seconds_since_1970(all.started_at));
        self.cpu(all);
        self.memory(all);
        self.pressures(all);
        self.file_system(all, volume);
        self.block_devices(all, devices);
        self.processes(all);
        self.limits(&all.resources);
    }

    fn cpu(&mut self, all: &ContainerAccounts) {
        let total = all.usage.cpu.map(|cpu| seconds(cpu.total));
        self.put_with(&families::CPU_USAGE, &["total"], total);
        if let Some(cpu) = all.accounts.cpu {
            self.put(&families::CPU_USER, seconds(cpu.user));
            self.put(&families::CPU_SYSTEM, seconds(cpu.system));
        }
        if let Some(throttling) = all.accounts.throttling {
            self.put(&families::CFS_PERIODS, throttling.periods);
            let throttled = throttling.throttled_periods;
            self.put(&families::CFS_THROTTLED_PERIODS, throttled);
            self.put(&families::CFS_THROTTLED, seconds(throttling.throttled));
        }
    }

    fn memory(&mut self, all: &ContainerAccounts) {
        if let Some(memory) = all.usage.memory {
            self.put(&families::MEMORY_USAGE, memory.usage);
            self.put(&families::MEMORY_WORKING_SET, memory.working_set);
            self.put(&families::MEMORY_RSS, memory.rss);
            // Where swap is not accounted for, the kernel lets no cgroup have any of its own.
            let swap = all.usage.swap.map_or(0, |swap| swap.usage);
            self.put(&families::MEMORY_SWAP, swap);
            if let Some(accounts) = all.accounts.memory {
                self.memory_accounts(&accounts);
                self.faults(&memory, &accounts);
            }
        }
        self.put(&families::OOM_EVENTS, all.accounts.oom_kills);
        for pages in &all.accounts.huge_pages {
            self.put_with(&families::HUGEPAGES, &[&pages.size], pages.usage);
            // v2 does not tell it.
            self.put_with(&families::HUGEPAGES_MAX, &[&pages.size], pages.highest);
        }
    }

    fn memory_accounts(&mut self, memory: &MemoryAccounts) {
        self.put(&families::MEMORY_CACHE, memory.cache);
        self.put(&families::MEMORY_MAPPED_FILE, memory.mapped_file);
        self.put(&families::MEMORY_KERNEL, memory.kernel);
        // v2 tells it since Linux 5.19. The limit, which others tell instead, is something else.
        self.put(&families::MEMORY_MAX_USAGE, memory.highest);
        self.put(&families::MEMORY_LIMIT_MET, memory.limit_met);
    }

    /// v2 knows only those of the cgroup with all below it, which then stand for both.
    fn faults(&mut self, usage: &MemoryUsage, accounts: &MemoryAccounts) {
        let all = (usage.faults, usage.major_faults);
        let own = accounts.own_faults.unwrap_or(all);
        for (scope, (faults, major)) in [("container", own), ("hierarchy", all)] {
            self.put_with(&families::MEMORY_FAULTS, &["pgfault", scope], faults);
            self.put_with(&families::MEMORY_FAULTS, &["pgmajfault", scope], major);
        }
    }

    /// v1 has none.
    fn pressures(&mut self, all: &ContainerAccounts) {
        let cpu = all.usage.cpu.and_then(|cpu| cpu.pressure);
        let memory = all.usage.memory.and_then(|memory| memory.pressure);
        let mut put = |stalled, waiting, pressure: Option<Pressure>| {
            let seconds = |microseconds: u64| microseconds / 1_000_000;
            self.put(stalled, pressure.map(|it| seconds(it.full.total)));
            self.put(waiting, pressure.map(|it| seconds(it.some.total)));
        };
        put(&families::CPU_STALLED, &families::CPU_WAITING, cpu);
        put(&families::MEMORY_STALLED, &families::MEMORY_WAITING, memory);
        let io = all.usage.io_pressure;
        put(&families::IO_STALLED, &families::IO_WAITING, io);
    }

    /// The writable layer was measured some time ago, and the metric says when.
    fn file_system(&mut self, all: &ContainerAccounts, volume: Option<&Volume>) {
        let Some(volume) = volume else { return };
        let device = &[volume.device.as_str()];
        if let Some(disk) = all.disk {
            self.put_at(&families::FS_USAGE, device, disk.bytes, disk.at);
        }
        self.put_with(&families::FS_LIMIT, device, volume.bytes);
        self.put_with(&families::FS_INODES, device, volume.inodes);
        self.put_with(&families::FS_INODES_FREE, device, volume.free_inodes);
    }

    /// Only where the container's cgroup has the controller of block devices ("io", on v1 "blkio"). carpel does not
    /// switch it on: it costs at each start, and nothing limits with it. Who wants these figures switches it on in the
    /// pods' parent.
    fn block_devices(&mut self, all: &ContainerAccounts, devices: &mut Devices) {
        for device in &all.accounts.devices {
            let name = devices.name(device.major, device.minor);
            let name = name.as_str();
            self.put_with(&families::FS_READ_BYTES, &[name], device.read_bytes);
            self.put_with(&families::FS_READS, &[name], device.reads);
            self.put_with(&families::FS_WRITTEN_BYTES, &[name], device.written_bytes);
            self.put_with(&families::FS_WRITES, &[name], device.writes);
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            for (operation, bytes) in [("Read", device.read_bytes), ("Write", device.written_bytes)]
            {
                let labels = [name, &major, &minor, operation];
                self.put_with(&families::BLKIO, &labels, bytes);
            }
        }
    }

    fn processes(&mut self, all: &ContainerAccounts) {
        let processes = &all.processes;
        self.put(&families::PROCESSES, processes.count);
        self.put(&families::THREADS, all.usage.pids);
        let most = all.accounts.tasks_limit.map(|limit| match limit {
            TasksLimit::Unlimited => 0,
            TasksLimit::At(most) => most,
        });
        self.put(&families::THREADS_MAX, most);
        self.put(&families::FILE_DESCRIPTORS, processes.descriptors);
        self.put(&families::SOCKETS, processes.sockets);
        // The interface has no -1, which is how others say that there is no limit.
        let open_files = processes.open_files;
        self.put_with(&families::ULIMITS, &["max_open_files"], open_files);
    }

    /// What was not asked for is as the kernel has it in a new cgroup.
    fn limits(&mut self, resources: &Resources) {
        const PERIOD: u64 = 100_000;
        const SHARES: u64 = 1024;
        let period = resources.cpu_period.unwrap_or(PERIOD);
        self.put(&families::SPEC_CPU_PERIOD, period);
        if let Some(Ceiling::At(quota)) = resources.cpu_quota {
            self.put(&families::SPEC_CPU_QUOTA, quota);
        }
        let shares = resources.cpu_shares.unwrap_or(SHARES);
        self.put(&families::SPEC_CPU_SHARES, shares);
        let (memory, swap) = resources.memory_and_swap();
        self.put(&families::SPEC_MEMORY_LIMIT, memory.unwrap_or(0));
        let both = memory.zip(swap);
        let both = both.map_or(0, |(memory, swap)| memory.saturating_add(swap));
        self.put(&families::SPEC_SWAP_LIMIT, both);
        let reserved = reservation(&resources.unified);
        self.put(&families::SPEC_MEMORY_RESERVATION, reserved);
    }
}

/// The kubelet asks for it with a file of cgroup v2.
fn reservation(unified: &BTreeMap<String, String>) -> u64 {
    let files = ["memory.low", "memory.min"];
    let values = files.iter().filter_map(|file| unified.get(*file));
    let numbers = values.filter_map(|text| text.trim().parse().ok());
    numbers.max().unwrap_or(0)
}

/// The interface has whole numbers only.
fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000_000
}

fn seconds_since_1970(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).map_or(0, seconds)
}
