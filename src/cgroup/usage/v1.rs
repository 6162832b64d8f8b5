//! Usage as cgroup v1 tells it: each figure in its controller's hierarchy.

use std::io;

use super::super::dir::Dir;
use super::{CpuUsage, FileReader, MemoryUsage, SwapUsage, Usage, Wanted, parse};

/// The roots of the hierarchies with these controllers, as far as they are mounted.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'a> {
    pub cpuacct: Option<&'a Dir>,
    pub memory: Option<&'a Dir>,
    pub pids: Option<&'a Dir>,
}

/// Reads what the cgroup at `path` uses.
///
/// # Errors
/// As `read(2)`.
pub fn read(
    roots: Roots<'_>,
    path: &str,
    wanted: Wanted,
    files: &mut FileReader,
) -> io::Result<Usage> {
    let path = path.trim_start_matches('/');
    let mut usage = Usage::default();
    if let Some(root) = roots.cpuacct {
        let total = files.number(root, &format!("{path}/cpuacct.usage"))?;
        usage.cpu = total.map(|total| CpuUsage {
            total,
            pressure: None,
        });
    }
    if let Some(root) = roots.memory
        && let Ok(dir) = root.child(path)
    {
        (usage.memory, usage.swap) = memory(&dir, wanted, files)?;
    }
    if let Some(root) = roots.pids.filter(|_| wanted.pids) {
        usage.pids = files.number(root, &format!("{path}/pids.current"))?;
    }
    Ok(usage)
}

/// The "total_" figures are those of the cgroup with all below it, as the usage is.
fn memory(
    dir: &Dir,
    wanted: Wanted,
    files: &mut FileReader,
) -> io::Result<(Option<MemoryUsage>, Option<SwapUsage>)> {
    let Some(usage) = files.number(dir, "memory.usage_in_bytes")? else {
        return Ok((None, None));
    };
    let limit = files.number_if(wanted.limits, dir, "memory.limit_in_bytes")?;
    let keys = [
        "total_rss",
        "total_inactive_file",
        "total_pgfault",
        "total_pgmajfault",
        "total_swap",
    ];
    let stat = files.read(dir, "memory.stat")?.unwrap_or_default();
    let [rss, inactive, faults, major, swapped] = parse::keyed(stat, keys);
    let memory = MemoryUsage {
        usage,
        working_set: usage.saturating_sub(inactive.unwrap_or(0)),
        limit,
        rss: rss.unwrap_or(0),
        faults: faults.unwrap_or(0),
        major_faults: major.unwrap_or(0),
        pressure: None,
    };
    // Without accounting of swap there is neither the line nor the file.
    let swap = match swapped {
        None => None,
        Some(usage) => {
            let both = files.number_if(wanted.limits, dir, "memory.memsw.limit_in_bytes")?;
            let limit = both.map(|both| both.saturating_sub(limit.unwrap_or(0)));
            Some(SwapUsage { usage, limit })
        }
    };
    Ok((Some(memory), swap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const ALL: Wanted = Wanted {
        limits: true,
        pids: true,
    };

    #[test]
    fn the_files_of_a_container_are_understood() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/usage/fixtures/v1");
        let root = Dir::open(&path).unwrap();
        let roots = Roots {
            cpuacct: Some(&root),
            memory: Some(&root),
            pids: Some(&root),
        };
        let usage = read(roots, "/pod/a", ALL, &mut FileReader::default()).unwrap();
        assert_eq!(usage.cpu.unwrap().total, 48_123_456_789);
        let memory = usage.memory.unwrap();
        assert_eq!(memory.usage, 104_857_600);
        assert_eq!(memory.working_set, 104_857_600 - 40_960_000);
        assert_eq!(memory.limit, Some(134_217_728));
        assert_eq!((memory.rss, memory.faults), (50_331_648, 81_920));
        assert_eq!(memory.major_faults, 12);
        assert_eq!(
            usage.swap,
            Some(SwapUsage {
                usage: 4096,
                limit: Some(67_108_864)
            })
        );
        assert_eq!(usage.pids, Some(7));
        let gone = read(roots, "/pod/b", ALL, &mut FileReader::default()).unwrap();
        assert_eq!(gone, Usage::default());
    }
}
