//! Usage as cgroup v2 tells it: one directory, all files in it.

use std::io;

use super::super::dir::Dir;
use super::{CpuUsage, FileReader, MemoryUsage, Pressure, SwapUsage, Usage, Wanted, parse};

/// Reads what the cgroup with this directory uses.
///
/// # Errors
/// As `read(2)`.
pub fn read(dir: &Dir, wanted: Wanted, files: &mut FileReader) -> io::Result<Usage> {
    let stat = files.read(dir, "cpu.stat")?;
    let total = stat.and_then(|text| parse::keyed(text, ["usage_usec"])[0]);
    let cpu = match total {
        Some(microseconds) => Some(CpuUsage {
            total: microseconds.saturating_mul(1000),
            pressure: pressure(dir, files, "cpu.pressure")?,
        }),
        None => None,
    };
    Ok(Usage {
        cpu,
        memory: memory(dir, wanted, files)?,
        swap: swap(dir, wanted, files)?,
        io_pressure: pressure(dir, files, "io.pressure")?,
        pids: files.number_if(wanted.pids, dir, "pids.current")?,
    })
}

fn memory(dir: &Dir, wanted: Wanted, files: &mut FileReader) -> io::Result<Option<MemoryUsage>> {
    // The machine's root has no such file, nor has a cgroup without the controller.
    let Some(usage) = files.number(dir, "memory.current")? else {
        return Ok(None);
    };
    let keys = ["anon", "inactive_file", "pgfault", "pgmajfault"];
    let stat = files.read(dir, "memory.stat")?.unwrap_or_default();
    let [anon, inactive, faults, major] = parse::keyed(stat, keys).map(Option::unwrap_or_default);
    Ok(Some(MemoryUsage {
        usage,
        working_set: usage.saturating_sub(inactive),
        limit: files.number_if(wanted.limits, dir, "memory.max")?,
        rss: anon,
        faults,
        major_faults: major,
        pressure: pressure(dir, files, "memory.pressure")?,
    }))
}

fn swap(dir: &Dir, wanted: Wanted, files: &mut FileReader) -> io::Result<Option<SwapUsage>> {
    Ok(match files.number(dir, "memory.swap.current")? {
        None => None,
        Some(usage) => Some(SwapUsage {
            usage,
            limit: files.number_if(wanted.limits, dir, "memory.swap.max")?,
        }),
    })
}

fn pressure(dir: &Dir, files: &mut FileReader, file: &str) -> io::Result<Option<Pressure>> {
    Ok(files.read(dir, file)?.and_then(parse::pressure))
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
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/usage/fixtures/v2");
        let usage = read(&Dir::open(&path).unwrap(), ALL, &mut FileReader::default()).unwrap();
        let cpu = usage.cpu.unwrap();
        assert_eq!(cpu.total, 48_123_456_000);
        assert_eq!(cpu.pressure.unwrap().some.total, 900);
        let memory = usage.memory.unwrap();
        assert_eq!(memory.usage, 104_857_600);
        assert_eq!(memory.working_set, 104_857_600 - 40_960_000);
        assert_eq!(memory.limit, Some(134_217_728));
        assert_eq!((memory.rss, memory.faults), (50_331_648, 81_920));
        assert_eq!(memory.major_faults, 12);
        assert_eq!(memory.pressure.unwrap().full.avg10, 1.5);
        assert_eq!(
            usage.swap,
            Some(SwapUsage {
                usage: 4096,
                limit: None
            })
        );
        assert_eq!(usage.io_pressure, None, "a kernel without it");
        assert_eq!(usage.pids, Some(7));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let empty = tempfile::tempdir().unwrap();
        let dir = Dir::open(empty.path()).unwrap();
        assert_eq!(
            read(&dir, ALL, &mut FileReader::default()).unwrap(),
            Usage::default()
        );
    }
}
