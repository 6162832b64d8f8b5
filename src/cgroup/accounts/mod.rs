//! What a cgroup's accounts hold beside its [`Usage`](super::Usage): read only for metrics, which come rarely.
//!
//! A file that a kernel or a machine does not have leaves its figure out; it never makes a zero of it.

mod parse;
pub(super) mod v1;
pub(super) mod v2;

/// Times are nanoseconds since the cgroup was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    pub cpu: Option<CpuTimes>,
    pub throttling: Option<Throttling>,
    pub memory: Option<MemoryAccounts>,
    /// How many processes were killed because memory ran out.
    pub oom_kills: Option<u64>,
    /// Only where the cgroup is in the hierarchy of block devices.
    pub devices: Vec<DeviceAccounts>,
    pub huge_pages: Vec<HugePages>,
    /// The most processes and threads. `None`: unknown.
    pub tasks_limit: Option<TasksLimit>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTimes {
    pub user: u64,
    pub system: u64,
}

/// What became of the cgroup's quota of CPU time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled: u64,
}

/// Bytes, unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryAccounts {
    /// Pages of files.
    pub cache: u64,
    /// Pages of files that are mapped.
    pub mapped_file: u64,
    /// The kernel's own, for the cgroup.
    pub kernel: Option<u64>,
    /// The highest usage so far.
    pub highest: Option<u64>,
    /// How often the limit was met.
    pub limit_met: Option<u64>,
    /// Page faults of the cgroup alone. v2 knows only those with all below it.
    pub own_faults: Option<(u64, u64)>,
}

/// What went to and from a block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceAccounts {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel writes it: "2MB".
    pub size: String,
    pub usage: u64,
    /// The highest usage so far. v2 does not know it.
    pub highest: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TasksLimit {
    Unlimited,
    At(u64),
}

/// The sizes of huge pages that this kernel has, as the files of cgroups are named.
#[must_use]
pub fn huge_page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| parse::huge_page_size(&name))
        .collect()
}
