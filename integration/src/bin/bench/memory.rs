//! What a runtime weighs: the proportional set size of its processes, and the kernel's memory beside it.

use std::fs;

use anyhow::Result;
use serde::Serialize;

/// A reading, in kB.
pub struct Reading {
    /// PSS of all processes of the runtime.
    pss: u64,
    processes: u64,
    /// Slab, kernel stacks, page tables and per-CPU memory of the whole machine.
    kernel: u64,
}

/// What the held pods took, in kB.
#[derive(Debug, Clone, Serialize)]
pub struct Weight {
    /// PSS of the whole runtime while the pods were held.
    pub total_pss: u64,
    /// PSS that each pod added, and what the kernel took for each.
    pub pss_per_pod: f64,
    pub kernel_per_pod: f64,
    /// Processes of the runtime while the pods were held.
    pub processes: u64,
}

impl Reading {
    pub fn since(&self, before: &Self, pods: u32) -> Weight {
        let each = |now: u64, then: u64| (now as f64 - then as f64) / f64::from(pods.max(1));
        Weight {
            total_pss: self.pss,
            pss_per_pod: each(self.pss, before.pss),
            kernel_per_pod: each(self.kernel, before.kernel),
            processes: self.processes,
        }
    }
}

/// Reads the memory of the processes whose names begin with one of `prefixes`.
pub fn read(prefixes: &[String]) -> Result<Reading> {
    let mut reading = Reading {
        pss: 0,
        processes: 0,
        kernel: kernel()?,
    };
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !prefixes
            .iter()
            .any(|prefix| name.starts_with(prefix.get(..15).unwrap_or(prefix)))
        {
            continue;
        }
        // It may have ended since the folder was read.
        let Ok(rollup) = fs::read_to_string(entry.path().join("smaps_rollup")) else {
            continue;
        };
        reading.pss += field(&rollup, "Pss:");
        reading.processes += 1;
    }
    Ok(reading)
}

fn kernel() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(["Slab:", "KernelStack:", "PageTables:", "Percpu:"]
        .iter()
        .map(|name| field(&text, name))
        .sum())
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}
