//! Accounts as cgroup v2 keeps them: one directory, all files in it.

use std::io;

use super::super::dir::Dir;
use super::super::usage::{FileReader, keyed_figures};
use super::{Accounts, CpuTimes, HugePages, MemoryAccounts, Throttling, parse};

/// Reads the accounts of the cgroup with this directory.
///
/// # Errors
/// As `read(2)`.
pub fn read(dir: &Dir, sizes: &[String], files: &mut FileReader) -> io::Result<Accounts> {
    let stat = files.read(dir, "cpu.stat")?.unwrap_or_default();
    let keys = [
        "user_usec",
        "system_usec",
        "nr_periods",
        "nr_throttled",
        "throttled_usec",
    ];
    let [user, system, periods, throttled_periods, throttled] = keyed_figures(stat, keys);
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    let times = user.zip(system).map(|(user, system)| CpuTimes {
        user: nanoseconds(user),
        system: nanoseconds(system),
    });
    // Without the controller only the times are told.
    let throttling = periods.and_then(|periods| {
        Some(Throttling {
            periods,
            throttled_periods: throttled_periods?,
            throttled: nanoseconds(throttled?),
        })
    });
    let events = files.read(dir, "memory.events")?.unwrap_or_default();
    let [limit_met, oom_kills] = keyed_figures(events, ["max", "oom_kill"]);
    Ok(Accounts {
        cpu: times,
        throttling,
        memory: memory(dir, limit_met, files)?,
        oom_kills,
        devices: files
            .read(dir, "io.stat")?
            .map(parse::io_stat)
            .unwrap_or_default(),
        huge_pages: huge_pages(dir, sizes, files)?,
        tasks_limit: files.read(dir, "pids.max")?.and_then(parse::tasks_limit),
    })
}

fn memory(
    dir: &Dir,
    limit_met: Option<u64>,
    files: &mut FileReader,
) -> io::Result<Option<MemoryAccounts>> {
    let Some(stat) = files.read(dir, "memory.stat")? else {
        return Ok(None);
    };
    let [cache, mapped_file] = keyed_figures(stat, ["file", "file_mapped"]);
    Ok(Some(MemoryAccounts {
        cache: cache.unwrap_or(0),
        mapped_file: mapped_file.unwrap_or(0),
        kernel: kernel(stat),
        // Since Linux 5.19.
        highest: files.number(dir, "memory.peak")?,
        limit_met,
        own_faults: None,
    }))
}

/// The sum, which is there since Linux 5.18, or what it is made of.
fn kernel(stat: &str) -> Option<u64> {
    let [sum] = keyed_figures(stat, ["kernel"]);
    let parts = keyed_figures(stat, ["kernel_stack", "pagetables", "percpu", "slab"]);
    sum.or_else(|| parts.into_iter().flatten().reduce(u64::saturating_add))
}

/// The highest usage of huge pages is not told.
fn huge_pages(dir: &Dir, sizes: &[String], files: &mut FileReader) -> io::Result<Vec<HugePages>> {
    let mut all = Vec::with_capacity(sizes.len());
    for size in sizes {
        if let Some(usage) = files.number(dir, &format!("hugetlb.{size}.current"))? {
            all.push(HugePages {
                size: size.clone(),
                usage,
                highest: None,
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceAccounts, TasksLimit};
    use super::*;
    use std::path::Path;

    #[test]
    fn the_files_of_a_container_are_understood() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/usage/fixtures/v2");
        let sizes = ["1GB".to_owned(), "2MB".to_owned()];
        let dir = Dir::open(&path).unwrap();
        let accounts = read(&dir, &sizes, &mut FileReader::default()).unwrap();
        let expected = Accounts {
            cpu: Some(CpuTimes {
                user: 40_000_000_000,
                system: 8_123_456_000,
            }),
            throttling: Some(Throttling {
                periods: 10,
                throttled_periods: 2,
                throttled: 1_500_000,
            }),
            memory: Some(MemoryAccounts {
                cache: 52_428_800,
                mapped_file: 8_192_000,
                kernel: Some(2_097_152),
                highest: Some(110_000_000),
                limit_met: Some(3),
                own_faults: None,
            }),
            oom_kills: Some(1),
            devices: vec![DeviceAccounts {
                major: 254,
                minor: 0,
                read_bytes: 4096,
                written_bytes: 512,
                reads: 2,
                writes: 1,
            }],
            huge_pages: vec![HugePages {
                size: "2MB".to_owned(),
                usage: 2_097_152,
                highest: None,
            }],
            tasks_limit: Some(TasksLimit::Unlimited),
        };
        assert_eq!(accounts, expected);
        let empty = tempfile::tempdir().unwrap();
        let empty = Dir::open(empty.path()).unwrap();
        let nothing = read(&empty, &sizes, &mut FileReader::default()).unwrap();
        assert_eq!(nothing, Accounts::default());
    }

    #[test]
    fn an_old_kernel_tells_its_own_memory_in_parts() {
        let stat = "kernel_stack 1\npagetables 2\npercpu 4\nslab 8\n";
        assert_eq!(kernel(stat), Some(15));
        assert_eq!(kernel("anon 1\n"), None);
    }
}
