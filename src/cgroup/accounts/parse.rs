//! The kernel's texts. What they do not say as expected is left out.

use super::{DeviceAccounts, TasksLimit};

/// The file pids.max.
pub fn tasks_limit(text: &str) -> Option<TasksLimit> {
    match text.trim() {
        "max" => Some(TasksLimit::Unlimited),
        number => number.parse().ok().map(TasksLimit::At),
    }
}

/// "hugepages-2048kB" as files of cgroups say it: "2MB".
pub fn huge_page_size(name: &str) -> Option<String> {
    let kilobytes: u64 = name
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    Some(match kilobytes {
        size if size >= 1 << 20 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    })
}

/// io.stat: a line for each device, "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
pub fn io_stat(text: &str) -> Vec<DeviceAccounts> {
    text.lines().filter_map(io_stat_line).collect()
}

fn io_stat_line(line: &str) -> Option<DeviceAccounts> {
    let mut words = line.split_ascii_whitespace();
    let mut device = device(words.next()?)?;
    let mut any = false;
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let figure = match key {
            "rbytes" => &mut device.read_bytes,
            "wbytes" => &mut device.written_bytes,
            "rios" => &mut device.reads,
            "wios" => &mut device.writes,
            _ => continue,
        };
        *figure = value.parse().ok()?;
        any = true;
    }
    // A device that nothing went to may have a line of its own with nothing in it.
    any.then_some(device)
}

/// The two files blkio.throttle.io_service_bytes and blkio.throttle.io_serviced: a line for each device and operation,
/// "8:0 Read 4096", and sums of them.
pub fn blkio(bytes: &str, operations: &str) -> Vec<DeviceAccounts> {
    let mut devices: Vec<DeviceAccounts> = Vec::new();
    for (text, counts) in [(bytes, false), (operations, true)] {
        for (of, operation, value) in text.lines().filter_map(blkio_line) {
            let at = devices
                .iter()
                .position(|it| (it.major, it.minor) == (of.major, of.minor));
            let at = at.unwrap_or_else(|| {
                devices.push(of);
                devices.len() - 1
            });
            let device = &mut devices[at];
            let figure = match (operation, counts) {
                ("Read", false) => &mut device.read_bytes,
                ("Write", false) => &mut device.written_bytes,
                ("Read", true) => &mut device.reads,
                ("Write", true) => &mut device.writes,
                // The same divided otherwise, and sums.
                _ => continue,
            };
            *figure = value;
        }
    }
    devices
}

fn blkio_line(line: &str) -> Option<(DeviceAccounts, &str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let device = device(words.next()?)?;
    Some((device, words.next()?, words.next()?.parse().ok()?))
}

fn device(text: &str) -> Option<DeviceAccounts> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceAccounts {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..DeviceAccounts::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_named_as_the_kernel_names_files() {
        for (folder, file) in [
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-kB", None),
            ("other", None),
        ] {
            assert_eq!(huge_page_size(folder).as_deref(), file);
        }
    }

    #[test]
    fn devices_are_told_in_two_ways() {
        let sda = DeviceAccounts {
            major: 8,
            minor: 16,
            read_bytes: 4096,
            written_bytes: 512,
            reads: 2,
            writes: 1,
        };
        let text = "8:16 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n7:0 \nbroken\n";
        assert_eq!(io_stat(text), [sda]);
        let bytes = "8:16 Read 4096\n8:16 Write 512\n8:16 Sync 4608\n8:16 Total 4608\nTotal 4608\n";
        let operations = "8:16 Read 2\n8:16 Write 1\n8:16 Total 3\nTotal 3\n";
        assert_eq!(blkio(bytes, operations), [sda]);
        assert_eq!(blkio("Total 0\n", ""), []);
    }

    #[test]
    fn a_limit_of_tasks_may_be_none() {
        assert_eq!(tasks_limit("max\n"), Some(TasksLimit::Unlimited));
        assert_eq!(tasks_limit("32\n"), Some(TasksLimit::At(32)));
        assert_eq!(tasks_limit(""), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_them_panic(text: String) {
            tasks_limit(&text);
            huge_page_size(&text);
            io_stat(&text);
            blkio(&text, &text);
        }
    }
}
