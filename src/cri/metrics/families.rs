//! The metrics that there are: cAdvisor's, by name, labels and meaning, so that dashboards made for it go on working.

use carpel_api::cri;
use cri::MetricType::{Counter, Gauge};

/// Labels that every metric has, in this order, before its own. The kubelet adds none.
pub const COMMON: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// A metric.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: cri::MetricType,
    pub help: &'static str,
    /// The labels that it has beside the common ones.
    pub labels: &'static [&'static str],
}

impl Family {
    pub fn descriptor(&self) -> cri::MetricDescriptor {
        let keys = COMMON.iter().chain(self.labels);
        cri::MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: keys.map(|key| (*key).to_owned()).collect(),
        }
    }
}

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal [$($label:literal)*] $help:literal)*) => {
        $(pub static $constant: Family = Family {
            name: $name,
            kind: $kind,
            help: $help,
            labels: &[$($label),*],
        };)*
        /// All of them.
        pub static ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    // ── CPU ──
    CPU_USAGE Counter "container_cpu_usage_seconds_total" ["cpu"]
        "CPU time used, in whole seconds."
    CPU_USER Counter "container_cpu_user_seconds_total" []
        "CPU time used by programs themselves, in whole seconds."
    CPU_SYSTEM Counter "container_cpu_system_seconds_total" []
        "CPU time used by the kernel on behalf of programs, in whole seconds."
    CFS_PERIODS Counter "container_cpu_cfs_periods_total" []
        "Periods over which the CPU quota was enforced."
    CFS_THROTTLED_PERIODS Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the CPU quota was used up."
    CFS_THROTTLED Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time in which the used up CPU quota held processes back, in whole seconds."

    // ── memory ──
    MEMORY_USAGE Gauge "container_memory_usage_bytes" []
        "Memory in use, of any kind and age."
    MEMORY_MAX_USAGE Gauge "container_memory_max_usage_bytes" []
        "Most memory that was in use at a time."
    MEMORY_WORKING_SET Gauge "container_memory_working_set_bytes" []
        "Memory in use, but for pages of files that nobody has used for a while."
    MEMORY_RSS Gauge "container_memory_rss" []
        "Anonymous memory in use, in bytes."
    MEMORY_CACHE Gauge "container_memory_cache" []
        "Memory that holds pages of files, in bytes."
    MEMORY_MAPPED_FILE Gauge "container_memory_mapped_file" []
        "Memory that holds mapped pages of files, in bytes."
    MEMORY_KERNEL Gauge "container_memory_kernel_usage" []
        "Memory that the kernel uses for the container, in bytes."
    MEMORY_SWAP Gauge "container_memory_swap" []
        "Swap in use, in bytes."
    MEMORY_LIMIT_MET Counter "container_memory_failcnt" []
        "How often the memory limit was met."
    MEMORY_FAULTS Counter "container_memory_failures_total" ["failure_type" "scope"]
        "Page faults: all (pgfault) and those that waited for a disk (pgmajfault)."
    OOM_EVENTS Counter "container_oom_events_total" []
        "Processes that were killed because memory ran out."
    HUGEPAGES Gauge "container_hugetlb_usage_bytes" ["pagesize"]
        "Huge pages in use, in bytes."
    HUGEPAGES_MAX Gauge "container_hugetlb_max_usage_bytes" ["pagesize"]
        "Most huge pages that were in use at a time, in bytes."

    // ── disk ──
    FS_USAGE Gauge "container_fs_usage_bytes" ["device"]
        "Space that the writable layer takes."
    FS_LIMIT Gauge "container_fs_limit_bytes" ["device"]
        "Space of the file system that the writable layer is on."
    FS_INODES Gauge "container_fs_inodes_total" ["device"]
        "Inodes of the file system that the writable layer is on."
    FS_INODES_FREE Gauge "container_fs_inodes_free" ["device"]
        "Free inodes of the file system that the writable layer is on."
    FS_READ_BYTES Counter "container_fs_reads_bytes_total" ["device"]
        "Bytes read from the device."
    FS_READS Counter "container_fs_reads_total" ["device"]
        "Reads from the device."
    FS_WRITTEN_BYTES Counter "container_fs_writes_bytes_total" ["device"]
        "Bytes written to the device."
    FS_WRITES Counter "container_fs_writes_total" ["device"]
        "Writes to the device."
    BLKIO Counter "container_blkio_device_usage_total" ["device" "major" "minor" "operation"]
        "Bytes that went to or from the device."

    // ── network, of pods ──
    RECEIVED_BYTES Counter "container_network_receive_bytes_total" ["interface"]
        "Bytes received."
    RECEIVED_PACKETS Counter "container_network_receive_packets_total" ["interface"]
        "Packets received."
    RECEIVED_DROPPED Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets that were dropped as they were received."
    RECEIVED_ERRORS Counter "container_network_receive_errors_total" ["interface"]
        "Errors of receiving."
    SENT_BYTES Counter "container_network_transmit_bytes_total" ["interface"]
        "Bytes sent."
    SENT_PACKETS Counter "container_network_transmit_packets_total" ["interface"]
        "Packets sent."
    SENT_DROPPED Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets that were dropped as they were sent."
    SENT_ERRORS Counter "container_network_transmit_errors_total" ["interface"]
        "Errors of sending."

    // ── pressure ──
    CPU_STALLED Counter "container_pressure_cpu_stalled_seconds_total" []
        "Time in which no process could go on for lack of CPU, in whole seconds."
    CPU_WAITING Counter "container_pressure_cpu_waiting_seconds_total" []
        "Time in which some process waited for CPU, in whole seconds."
    MEMORY_STALLED Counter "container_pressure_memory_stalled_seconds_total" []
        "Time in which no process could go on for lack of memory, in whole seconds."
    MEMORY_WAITING Counter "container_pressure_memory_waiting_seconds_total" []
        "Time in which some process waited for memory, in whole seconds."
    IO_STALLED Counter "container_pressure_io_stalled_seconds_total" []
        "Time in which no process could go on before a disk was done, in whole seconds."
    IO_WAITING Counter "container_pressure_io_waiting_seconds_total" []
        "Time in which some process waited for a disk, in whole seconds."

    // ── processes ──
    PROCESSES Gauge "container_processes" []
        "Processes."
    THREADS Gauge "container_threads" []
        "Threads, those that processes begin with among them."
    THREADS_MAX Gauge "container_threads_max" []
        "Most threads that there may be; 0 is no limit."
    FILE_DESCRIPTORS Gauge "container_file_descriptors" []
        "Descriptors that processes have open."
    SOCKETS Gauge "container_sockets" []
        "Descriptors of sockets that processes have open."
    ULIMITS Gauge "container_ulimits_soft" ["ulimit"]
        "The first process's soft limits."

    // ── the container itself ──
    LAST_SEEN Gauge "container_last_seen" []
        "When these figures were read, in seconds since 1970."
    START_TIME Gauge "container_start_time_seconds" []
        "When the container was started, in seconds since 1970."
    SPEC_CPU_PERIOD Gauge "container_spec_cpu_period" []
        "Period of the CPU quota, in microseconds."
    SPEC_CPU_QUOTA Gauge "container_spec_cpu_quota" []
        "CPU time that may be used in a period, in microseconds."
    SPEC_CPU_SHARES Gauge "container_spec_cpu_shares" []
        "Weight among those that want CPU time; 1024 is one CPU's worth."
    SPEC_MEMORY_LIMIT Gauge "container_spec_memory_limit_bytes" []
        "Most memory that may be used; 0 is no limit."
    SPEC_MEMORY_RESERVATION Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory that is left to the container when others need some; 0 is none."
    SPEC_SWAP_LIMIT Gauge "container_spec_memory_swap_limit_bytes" []
        "Most memory and swap together that may be used; 0 is no limit."
}
