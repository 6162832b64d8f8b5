//! What a runtime uses: the proportional set size of its processes, the kernel's memory beside it, and processor
//! time.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

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
    for process in processes(prefixes)? {
        // It may have ended since the folder was read.
        let Ok(rollup) = fs::read_to_string(process.join("smaps_rollup")) else {
            continue;
        };
        reading.pss += field(&rollup, "Pss:");
        reading.processes += 1;
    }
    Ok(reading)
}

/// The processor time of all threads of these processes, to the nanosecond (/proc/PID/task/TID/schedstat).
pub fn processor_time(prefixes: &[String]) -> Result<Duration> {
    let mut total = 0;
    for process in processes(prefixes)? {
        for thread in fs::read_dir(process.join("task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let spent = text.split_whitespace().next();
            total += spent
                .and_then(|spent| spent.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(total))
}

/// Begins to look for the peak anew.
pub fn forget_peak(prefixes: &[String]) -> Result<()> {
    for process in processes(prefixes)? {
        let _ = fs::write(process.join("clear_refs"), "5");
    }
    Ok(())
}

/// The most resident memory that one of these processes has had since [`forget_peak`], in kB.
pub fn peak(prefixes: &[String]) -> Result<u64> {
    let status = |process: &PathBuf| fs::read_to_string(process.join("status")).ok();
    let found = processes(prefixes)?;
    let peaks = found.iter().filter_map(status);
    Ok(peaks.map(|text| field(&text, "VmHWM:")).max().unwrap_or(0))
}

/// Processes that belong to none of the measured runtimes, whatever their names: those that were there before.
static OTHERS: OnceLock<HashSet<PathBuf>> = OnceLock::new();

/// Leaves everything that runs now out of all figures. To be called before the runtimes are started.
pub fn leave_out_present() -> Result<()> {
    let all = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let _ = OTHERS.set(all.collect());
    Ok(())
}

/// The folders in /proc of the processes whose names begin with one of `prefixes`.
fn processes(prefixes: &[String]) -> Result<Vec<PathBuf>> {
    let of_runtime = |process: &PathBuf| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        prefixes
            .iter()
            .any(|prefix| name.starts_with(prefix.get(..15).unwrap_or(prefix)))
    };
    let others = OTHERS.get();
    let all = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let all = all.filter(|process| others.is_none_or(|others| !others.contains(process)));
    Ok(all.filter(of_runtime).collect())
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
