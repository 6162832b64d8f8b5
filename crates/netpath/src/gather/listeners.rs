//! Who waits for connections in the namespace that the thread is in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::place::Listener;

/// The state of a TCP socket that listens, and of a UDP socket that is not connected.
const LISTENS: &str = "0A";
const UNCONNECTED: &str = "07";

pub(super) fn read(cautions: &mut Vec<String>) -> Vec<Listener> {
    let files = [
        ("tcp", 6, LISTENS),
        ("tcp6", 6, LISTENS),
        ("udp", 17, UNCONNECTED),
        ("udp6", 17, UNCONNECTED),
    ];
    let mut found = Vec::new();
    for (file, protocol, state) in files {
        let text = super::text(file, "who waits for connections", cautions);
        found.extend(
            text.lines()
                .skip(1)
                .filter_map(|line| parse(line, protocol, state)),
        );
    }
    found
}

/// Reads a line: a number, the own address, the other's, the state.
fn parse(line: &str, protocol: u8, wanted: &str) -> Option<Listener> {
    let mut words = line.split_whitespace();
    let (own, state) = (words.nth(1)?, words.nth(1)?);
    if state != wanted {
        return None;
    }
    let (addr, port) = own.split_once(':')?;
    let addr = parse_addr(addr)?;
    Some(Listener {
        protocol,
        // A socket of IPv6 on all addresses takes IPv4, too, unless it says otherwise.
        addr: (addr != IpAddr::V6(Ipv6Addr::UNSPECIFIED)).then_some(addr),
        port: u16::from_str_radix(port, 16).ok()?,
    })
}

/// Reads words of four bytes, each a number of the machine's byte order.
fn parse_addr(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..text.len()).step_by(8) {
        let word = u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes)
            .ok()
            .map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel_are_read() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let found = parse(line, 6, LISTENS).unwrap();
        assert_eq!(
            (found.addr, found.port),
            (Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), 8080)
        );
        let any = "   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(parse(any, 6, LISTENS).unwrap().addr, None);
        assert_eq!(parse(&line.replace(" 0A ", " 01 "), 6, LISTENS), None);
        assert_eq!(parse("nonsense", 6, LISTENS), None);
    }
}
