//! Matches and targets of iptables inside of rules of nf_tables: blobs, laid out as the kernel's modules have them.

use std::net::IpAddr;

use carpel_netlink::as_text;
use carpel_netlink::ipnet::IpNet;
use carpel_netlink::netfilter::listing::{ListedStep, number};

use super::{Step, Test, Verdict};

/// Flags of `struct nf_nat_range2`.
const MAP_ADDRESSES: u32 = 1;
const PORTS_GIVEN: u32 = 2;
/// The state of `struct xt_conntrack_mtinfo3`.
const MATCH_STATE: u16 = 1;

struct Blob<'a> {
    name: String,
    revision: u32,
    info: &'a [u8],
}

impl<'a> Blob<'a> {
    fn of(listed: &'a ListedStep) -> Self {
        let mut blob = Blob {
            name: String::new(),
            revision: 0,
            info: &[],
        };
        let mut rest = listed.data.as_slice();
        // Borrowed from the list itself, not from the attributes that name it.
        while let Some((length, kind)) = head(rest) {
            let value = rest.get(4..length).unwrap_or_default();
            match kind {
                1 => blob.name = as_text(value),
                2 => blob.revision = number(value),
                3 => blob.info = value,
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        blob
    }

    fn u8(&self, at: usize) -> Option<u8> {
        self.info.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.info.get(at..at + 2)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn port(&self, at: usize) -> Option<u16> {
        self.u16(at).map(u16::from_be)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.info.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn addr(&self, at: usize, is_ipv4: bool) -> Option<IpAddr> {
        if is_ipv4 {
            let bytes: [u8; 4] = self.info.get(at..at + 4)?.try_into().ok()?;
            Some(bytes.into())
        } else {
            let bytes: [u8; 16] = self.info.get(at..at + 16)?.try_into().ok()?;
            Some(bytes.into())
        }
    }
}

/// Length and kind of the attribute that bytes begin with.
fn head(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
    (length >= 4).then_some((length, kind & 0x3fff))
}

/// A match or target as a step, and as text.
pub(super) fn step(listed: &ListedStep) -> (Step, String) {
    let blob = Blob::of(listed);
    if listed.name == "target" {
        return target(&blob).unwrap_or_else(|| {
            let text = blob.name.clone();
            (Step::Unknown(text.clone()), text)
        });
    }
    let (test, equal, text) = matching(&blob).unwrap_or_else(|| {
        let text = match blob.name.as_str() {
            "statistic" => "by chance".to_owned(),
            name => format!("-m {name} …"),
        };
        let test = match blob.name.as_str() {
            "statistic" => Test::Random,
            _ => Test::Unsure,
        };
        (test, true, text)
    });
    (Step::Test { test, equal }, text)
}

/// The text of a comment.
pub(super) fn comment(listed: &ListedStep) -> Option<String> {
    let blob = Blob::of(listed);
    (listed.name == "match" && blob.name == "comment").then(|| as_text(blob.info))
}

fn matching(blob: &Blob<'_>) -> Option<(Test, bool, String)> {
    let shown = |ranges: &[(u16, u16)]| {
        let texts = ranges.iter().map(|(low, high)| match low == high {
            true => low.to_string(),
            false => format!("{low}:{high}"),
        });
        texts.collect::<Vec<_>>().join(",")
    };
    Some(match (blob.name.as_str(), blob.revision) {
        ("comment", _) => (Test::Always, true, String::new()),
        ("tcp" | "udp", 0) => return ports(blob),
        ("multiport", 1) => {
            let count = usize::from(blob.u8(1)?).min(15);
            let mut ranges = Vec::new();
            let mut at = 0;
            while at < count {
                let low = blob.u16(2 + at * 2)?;
                let is_range = blob.u8(32 + at)? != 0;
                let high = if is_range {
                    at += 1;
                    blob.u16(2 + at * 2)?
                } else {
                    low
                };
                ranges.push((low, high));
                at += 1;
            }
            let (source, destination, word) = match blob.u8(0)? {
                0 => (true, false, "--sports"),
                1 => (false, true, "--dports"),
                _ => (true, true, "--ports"),
            };
            let text = format!("{word} {}", shown(&ranges));
            let test = Test::Ports {
                source,
                destination,
                ranges,
            };
            (test, blob.u8(47)? == 0, text)
        }
        ("state", 0) => {
            let mask = blob.u32(0)?;
            (Test::State(mask), true, format!("--state {}", states(mask)))
        }
        ("conntrack", 2 | 3) => {
            let (flags, inverted) = (blob.u16(146)?, blob.u16(148)?);
            let mask = u32::from(blob.u16(150)?);
            let is_state = flags & !0x2000 == MATCH_STATE;
            if !is_state {
                return None;
            }
            let text = format!("--ctstate {}", states(mask));
            (Test::State(mask), inverted & MATCH_STATE == 0, text)
        }
        ("addrtype", 1) => {
            let (source, dest, flags) = (blob.u16(0)?, blob.u16(2)?, blob.u32(4)?);
            // One of the two, and not for one interface only.
            if flags & !3 != 0 || (source != 0) == (dest != 0) {
                return None;
            }
            let (is_source, types, inverted) = match source {
                0 => (false, dest, flags & 2 != 0),
                types => (true, types, flags & 1 != 0),
            };
            let word = if is_source {
                "--src-type"
            } else {
                "--dst-type"
            };
            let kind = if types == 4 {
                "LOCAL".to_owned()
            } else {
                format!("{types:#x}")
            };
            let test = Test::AddressType {
                source: is_source,
                types: u32::from(types),
            };
            (test, !inverted, format!("{word} {kind}"))
        }
        ("mark", 1) => {
            let (value, mask) = (blob.u32(0)?, blob.u32(4)?);
            let text = format!("mark {value:#x}/{mask:#x}");
            (Test::Mark { value, mask }, blob.u8(8)? == 0, text)
        }
        _ => return None,
    })
    .map(|(test, equal, text)| {
        let text = if equal { text } else { format!("! {text}") };
        (test, equal, text)
    })
}

/// Ports of `struct xt_tcp` and `struct xt_udp`.
fn ports(blob: &Blob<'_>) -> Option<(Test, bool, String)> {
    let source = (blob.u16(0)?, blob.u16(2)?);
    let destination = (blob.u16(4)?, blob.u16(6)?);
    let inverted = if blob.name == "tcp" {
        let (option, flag_mask) = (blob.u8(8)?, blob.u8(9)?);
        if option != 0 || flag_mask != 0 {
            return None;
        }
        blob.u8(11)?
    } else {
        blob.u8(8)?
    };
    let all = (0, u16::MAX);
    let show = |(low, high): (u16, u16)| match low == high {
        true => low.to_string(),
        false => format!("{low}:{high}"),
    };
    Some(match (source == all, destination == all) {
        (true, true) => (Test::Always, true, String::new()),
        (true, false) => {
            let text = format!("{} dport {}", blob.name, show(destination));
            let test = Test::Ports {
                source: false,
                destination: true,
                ranges: vec![destination],
            };
            (test, inverted & 2 == 0, text)
        }
        (false, true) => {
            let text = format!("{} sport {}", blob.name, show(source));
            let test = Test::Ports {
                source: true,
                destination: false,
                ranges: vec![source],
            };
            (test, inverted & 1 == 0, text)
        }
        (false, false) => return None,
    })
}

fn states(mask: u32) -> String {
    let names = [
        (1, "INVALID"),
        (1 << 3, "NEW"),
        (1 << 2, "RELATED"),
        (1 << 1, "ESTABLISHED"),
        (1 << 8, "UNTRACKED"),
        (1 << 6, "SNAT"),
        (1 << 7, "DNAT"),
    ];
    let set = names.iter().filter(|(bit, _)| mask & bit != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

fn target(blob: &Blob<'_>) -> Option<(Step, String)> {
    let name = blob.name.as_str();
    Some(match (name, blob.revision) {
        ("DNAT" | "SNAT", _) => translation(blob)?,
        ("MASQUERADE", _) => (Step::Masquerade, name.to_owned()),
        ("MARK", 2) => {
            let (value, mask) = (blob.u32(0)?, blob.u32(4)?);
            let text = format!("MARK set {value:#x}/{mask:#x}");
            (Step::Mark { value, mask }, text)
        }
        ("REJECT", _) => (Step::Verdict(Verdict::Reject), name.to_owned()),
        ("NFQUEUE", _) => (Step::Verdict(Verdict::Queue), name.to_owned()),
        (
            "LOG" | "NFLOG" | "TRACE" | "NOTRACK" | "CT" | "TCPMSS" | "CHECKSUM" | "CONNMARK"
            | "CLASSIFY" | "DSCP" | "TOS" | "HL" | "TTL" | "SECMARK" | "CONNSECMARK" | "SET"
            | "LED" | "AUDIT" | "RATEEST",
            _,
        ) => (Step::Quiet, name.to_owned()),
        _ => return None,
    })
}

/// DNAT and SNAT: `struct nf_nat_ipv4_multi_range_compat`, `struct nf_nat_range` or `struct nf_nat_range2`.
fn translation(blob: &Blob<'_>) -> Option<(Step, String)> {
    let source = blob.name == "SNAT";
    let (flags, addr, port) = if blob.info.len() <= 24 {
        let flags = blob.u32(4)?;
        (flags, blob.addr(8, true)?, blob.port(16)?)
    } else {
        // Whether the field of sixteen bytes holds four is told by the rest being empty.
        let wide = blob.info.get(8..20)?;
        let is_ipv4 = wide.iter().all(|byte| *byte == 0);
        (blob.u32(0)?, blob.addr(4, is_ipv4)?, blob.port(36)?)
    };
    let address = (flags & MAP_ADDRESSES != 0).then_some(addr);
    let port = (flags & PORTS_GIVEN != 0).then_some(port);
    let to = match (address, port) {
        (Some(addr), port) => crate::packet::endpoint(addr, port),
        (None, Some(port)) => format!(":{port}"),
        (None, None) => return None,
    };
    let text = format!("{} to {to}", blob.name);
    let step = Step::Translate {
        source,
        address,
        port,
    };
    Some((step, text))
}

/// A network as iptables writes it: with a prefix, or a mask that is one.
pub(super) fn network(text: &str, is_ipv4: bool) -> Option<IpNet> {
    let width = if is_ipv4 { 32 } else { 128 };
    let (addr, prefix) = match text.split_once('/') {
        None => (text, width),
        Some((addr, prefix)) => {
            let prefix = match prefix.parse::<u8>() {
                Ok(prefix) => prefix,
                Err(_) => {
                    let mask: IpAddr = prefix.parse().ok()?;
                    let bits = carpel_netlink::ipnet::ip_number(mask);
                    let ones = bits.count_ones();
                    let shift = u32::from(width).checked_sub(ones)?;
                    let wanted = u128::MAX.checked_shl(shift).map(|mask| {
                        if is_ipv4 {
                            mask & u128::from(u32::MAX)
                        } else {
                            mask
                        }
                    });
                    if ones != 0 && wanted != Some(bits) {
                        return None;
                    }
                    u8::try_from(ones).ok()?
                }
            };
            (addr, prefix)
        }
    };
    IpNet::new(addr.parse().ok()?, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_prefix_of_its_family() {
        for (text, is_ipv4, expected) in [
            ("10.1.0.0/16", true, Some("10.1.0.0/16")),
            ("10.1.0.0/255.255.0.0", true, Some("10.1.0.0/16")),
            ("0.0.0.0/0.0.0.0", true, Some("0.0.0.0/0")),
            ("10.1.0.7", true, Some("10.1.0.7/32")),
            ("fd00::/ffff:ffff::", false, Some("fd00::/32")),
            ("10.1.0.0/255.0.255.0", true, None),
            ("10.1.0.0/ffff:ffff:ffff::", true, None),
            ("fd00::/255.255.0.0", false, None),
        ] {
            let found = network(text, is_ipv4).map(|net| net.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
