//! Accounts as cgroup v1 keeps them: each in its controller's hierarchy.

use std::io;

use super::super::dir::Dir;
use super::super::usage::{FileReader, keyed_figures};
use super::{Accounts, CpuTimes, HugePages, MemoryAccounts, Throttling, parse};

/// The roots of the hierarchies with these controllers, as far as they are mounted.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'a> {
    pub cpu: Option<&'a Dir>,
    pub cpuacct: Option<&'a Dir>,
    pub memory: Option<&'a Dir>,
    pub pids: Option<&'a Dir>,
    pub blkio: Option<&'a Dir>,
    pub hugetlb: Option<&'a Dir>,
}

/// The kernel counts these times in hundredths of a second, whatever its clock is.
const TICK: u64 = 10_000_000;

/// Reads the accounts of the cgroup at `path`.
///
/// # Errors
/// As `read(2)`.
pub fn read(
    roots: Roots<'_>,
    path: &str,
    sizes: &[String],
    files: &mut FileReader,
) -> io::Result<Accounts> {
    let path = path.trim_start_matches('/');
    let mut accounts = Accounts::default();
    if let Some(root) = roots.cpuacct {
        let text = files.read(root, &format!("{path}/cpuacct.stat"))?;
        accounts.cpu = text.and_then(|text| {
            let [user, system] = keyed_figures(text, ["user", "system"]);
            Some(CpuTimes {
                user: user?.saturating_mul(TICK),
                system: system?.saturating_mul(TICK),
            })
        });
    }
    if let Some(root) = roots.cpu {
        let text = files.read(root, &format!("{path}/cpu.stat"))?;
        accounts.throttling = text.and_then(|text| {
            let keys = ["nr_periods", "nr_throttled", "throttled_time"];
            let [periods, throttled_periods, throttled] = keyed_figures(text, keys);
            Some(Throttling {
                periods: periods?,
                throttled_periods: throttled_periods?,
                throttled: throttled?,
            })
        });
    }
    if let Some(root) = roots.memory
        && let Ok(dir) = root.child(path)
    {
        accounts.memory = memory(&dir, files)?;
        let text = files.read(&dir, "memory.oom_control")?;
        accounts.oom_kills = text.and_then(|text| keyed_figures(text, ["oom_kill"])[0]);
    }
    if let Some(root) = roots.pids {
        let text = files.read(root, &format!("{path}/pids.max"))?;
        accounts.tasks_limit = text.and_then(parse::tasks_limit);
    }
    if let Some(root) = roots.blkio
        && let Ok(dir) = root.child(path)
    {
        let bytes = blkio(&dir, "io_service_bytes", files)?;
        let operations = blkio(&dir, "io_serviced", files)?;
        accounts.devices = parse::blkio(&bytes, &operations);
    }
    if let Some(root) = roots.hugetlb
        && let Ok(dir) = root.child(path)
    {
        accounts.huge_pages = huge_pages(&dir, sizes, files)?;
    }
    Ok(accounts)
}

/// The "total_" figures are those of the cgroup with all below it.
fn memory(dir: &Dir, files: &mut FileReader) -> io::Result<Option<MemoryAccounts>> {
    let Some(stat) = files.read(dir, "memory.stat")? else {
        return Ok(None);
    };
    let keys = ["pgfault", "pgmajfault", "total_cache", "total_mapped_file"];
    let [faults, major, cache, mapped_file] = keyed_figures(stat, keys);
    Ok(Some(MemoryAccounts {
        cache: cache.unwrap_or(0),
        mapped_file: mapped_file.unwrap_or(0),
        own_faults: faults.zip(major),
        kernel: files.number(dir, "memory.kmem.usage_in_bytes")?,
        highest: files.number(dir, "memory.max_usage_in_bytes")?,
        limit_met: files.number(dir, "memory.failcnt")?,
    }))
}

/// Of the cgroup with all below it, where the kernel tells that.
fn blkio(dir: &Dir, what: &str, files: &mut FileReader) -> io::Result<String> {
    for suffix in ["_recursive", ""] {
        let file = format!("blkio.throttle.{what}{suffix}");
        if let Some(text) = files.read(dir, &file)? {
            return Ok(text.to_owned());
        }
    }
    Ok(String::new())
}

fn huge_pages(dir: &Dir, sizes: &[String], files: &mut FileReader) -> io::Result<Vec<HugePages>> {
    let mut all = Vec::with_capacity(sizes.len());
    for size in sizes {
        if let Some(usage) = files.number(dir, &format!("hugetlb.{size}.usage_in_bytes"))? {
            let highest = files.number(dir, &format!("hugetlb.{size}.max_usage_in_bytes"))?;
            all.push(HugePages {
                size: size.clone(),
                usage,
                highest,
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
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/usage/fixtures/v1");
        let root = Dir::open(&path).unwrap();
        let roots = Roots {
            cpu: Some(&root),
            cpuacct: Some(&root),
            memory: Some(&root),
            pids: Some(&root),
            blkio: Some(&root),
            hugetlb: Some(&root),
        };
        let sizes = ["1GB".to_owned(), "2MB".to_owned()];
        let accounts = read(roots, "/pod/a", &sizes, &mut FileReader::default()).unwrap();
        let expected = Accounts {
            cpu: Some(CpuTimes {
                user: 40_000_000_000,
                system: 8_120_000_000,
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
                own_faults: Some((94_868, 0)),
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
                highest: Some(4_194_304),
            }],
            tasks_limit: Some(TasksLimit::At(100)),
        };
        assert_eq!(accounts, expected);
        let gone = read(roots, "/pod/b", &sizes, &mut FileReader::default()).unwrap();
        assert_eq!(gone, Accounts::default());
    }
}
