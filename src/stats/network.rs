//! What went through a pod's interfaces.
//!
//! /proc/PID/net/dev shows the network namespace of that process to whoever may read it: no thread has to
//! enter the namespace, and no descriptor is kept for each pod.

/// Since the interfaces were made, as the pod sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkUsage {
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// The interface that the network's attachment names.
    pub main: Option<Interface>,
    /// The others, without loopback.
    pub others: Vec<Interface>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Reads the figures of the network namespace that the process `pid` is in.
pub(super) fn read(pid: u32, main: &str) -> Option<NetworkUsage> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let mut usage = NetworkUsage {
        at: crate::node::now(),
        main: None,
        others: Vec::new(),
    };
    for interface in text.lines().filter_map(parse) {
        if interface.name == main {
            usage.main = Some(interface);
        } else if interface.name != "lo" {
            usage.others.push(interface);
        }
    }
    Some(usage)
}

/// A line: a name and a colon, 8 columns of what was received, 8 of what was sent.
fn parse(line: &str) -> Option<Interface> {
    // A name may have a colon in it (an old alias), a number not.
    let (name, columns) = line.rsplit_once(':')?;
    let mut numbers = [0; 16];
    let mut words = columns.split_ascii_whitespace();
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    Some(Interface {
        name: name.trim().to_owned(),
        rx_bytes: numbers[0],
        rx_packets: numbers[1],
        rx_errors: numbers[2],
        rx_dropped: numbers[3],
        tx_bytes: numbers[8],
        tx_packets: numbers[9],
        tx_errors: numbers[10],
        tx_dropped: numbers[11],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_understood() {
        let text = include_str!("fixtures/dev");
        let interfaces: Vec<_> = text.lines().filter_map(parse).collect();
        let eth = Interface {
            name: "eth0".into(),
            rx_bytes: 6_342,
            rx_packets: 69,
            rx_errors: 3,
            rx_dropped: 1,
            tx_bytes: 18_446_744_073_709_551_615,
            tx_packets: 5,
            tx_errors: 4,
            tx_dropped: 2,
        };
        let names: Vec<_> = interfaces.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["lo", "eth0", "a:1"]);
        assert_eq!(interfaces[1], eth);
    }

    #[test]
    fn ones_own_namespace_has_loopback_left_out() {
        let usage = read(std::process::id(), "no such interface").unwrap();
        assert!(usage.main.is_none());
        assert!(usage.others.iter().all(|it| it.name != "lo"));
        assert_eq!(read(u32::MAX, "lo"), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line: String) {
            parse(&line);
        }
    }
}
