//! Ranges of addresses and sets of ranges, checked, and the order in which addresses are tried.

use std::{fmt, net::IpAddr};

use serde::Deserialize;

use crate::{
    error::Error,
    ipnet::{self, IpNet, ip_from_number, ip_number, next_ip},
};

/// A range as a configuration writes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RawRange {
    #[serde(with = "ipnet::optional")]
    pub range_start: Option<IpAddr>,
    #[serde(with = "ipnet::optional")]
    pub range_end: Option<IpAddr>,
    pub subnet: Option<IpNet>,
    #[serde(with = "ipnet::optional")]
    pub gateway: Option<IpAddr>,
}

/// A range: start and end belong to it and to the subnet, and start is not after end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

impl Range {
    /// Checks a range and fills in what it leaves out: it starts after the network's own address,
    /// ends before the broadcast address, and the gateway is the subnet's first host.
    pub fn new(raw: &RawRange) -> Result<Range, Error> {
        let subnet = raw
            .subnet
            .ok_or_else(|| Error::config("range without a subnet"))?;
        if subnet.prefix() + 2 > subnet.width() {
            return Err(Error::config(format!(
                "subnet {subnet} is too small to allocate from"
            )));
        }
        if subnet.network() != subnet {
            let network = subnet.network();
            return Err(Error::config(format!(
                "subnet {subnet} has host bits set, not {network}"
            )));
        }
        let first = next_ip(subnet.addr()).expect("a subnet has at least four addresses");
        let last = ip_number(subnet.last()) - u128::from(subnet.addr().is_ipv4());
        let last = ip_from_number(last, subnet.addr()).expect("one less than the last fits");
        let range = Range {
            subnet,
            start: raw.range_start.unwrap_or(first),
            end: raw.range_end.unwrap_or(last),
            gateway: raw.gateway.unwrap_or(first),
        };
        for (what, addr) in [("rangeStart", range.start), ("rangeEnd", range.end)] {
            if !subnet.contains(addr) {
                return Err(Error::config(format!(
                    "{what} {addr} is not in subnet {subnet}"
                )));
            }
        }
        if ip_number(range.start) > ip_number(range.end) {
            return Err(Error::config(format!(
                "range {range} ends before it starts"
            )));
        }
        Ok(range)
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        self.subnet.contains(addr)
            && (ip_number(self.start)..=ip_number(self.end)).contains(&ip_number(addr))
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4()
            && ip_number(self.start) <= ip_number(other.end)
            && ip_number(other.start) <= ip_number(self.end)
    }

    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The address with the length of the subnet's prefix.
    pub fn with_prefix(&self, addr: IpAddr) -> IpNet {
        IpNet::new(addr, self.subnet.prefix()).expect("the address is of the subnet's family")
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family that do not overlap; a container gets one address of each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    pub fn new(raw: &[RawRange]) -> Result<RangeSet, Error> {
        let ranges = raw.iter().map(Range::new).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = ranges.first() else {
            return Err(Error::config("empty range set"));
        };
        if ranges
            .iter()
            .any(|range| range.start.is_ipv4() != first.start.is_ipv4())
        {
            return Err(Error::config("range set with mixed address families"));
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[index + 1..]
                .iter()
                .find(|other| range.overlaps(other))
            {
                return Err(Error::config(format!("ranges {range} and {other} overlap")));
            }
        }
        Ok(RangeSet(ranges))
    }

    pub fn overlaps(&self, other: &RangeSet) -> bool {
        self.0
            .iter()
            .any(|range| other.0.iter().any(|theirs| range.overlaps(theirs)))
    }

    pub fn range_of(&self, addr: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(addr))
    }

    /// Every address that may be handed out, each once: in turn, starting after the one handed out
    /// last, so that an address rests as long as possible before it is used again.
    pub fn candidates(&self, last: Option<IpAddr>) -> Candidates<'_> {
        let resume = last.and_then(|last| {
            let index = self.0.iter().position(|range| range.contains(last))?;
            Some((index, ip_number(last)))
        });
        let (index, next) = match resume {
            // One past the end is where the turn to the next range is taken.
            Some((index, last)) => (index, last.checked_add(1)),
            None => (0, Some(ip_number(self.0[0].start))),
        };
        Candidates {
            set: self,
            index,
            next,
            left: self.0.len() + 1,
            stop: next,
        }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// See [`RangeSet::candidates`].
#[derive(Clone)]
pub struct Candidates<'a> {
    set: &'a RangeSet,
    index: usize,
    /// The next number to try in the current range; none if the numbers ran out.
    next: Option<u128>,
    /// How many ranges are still to be walked, the current one included. The first is walked
    /// twice: from the start point on, and at last up to it.
    left: usize,
    /// Where the last walk ends.
    stop: Option<u128>,
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (&'a Range, IpAddr);

    fn next(&mut self) -> Option<Self::Item> {
        while self.left > 0 {
            let range = &self.set.0[self.index];
            let bound = if self.left == 1 { self.stop } else { None };
            let current = self.next.filter(|&number| {
                number <= ip_number(range.end) && bound.is_none_or(|bound| number < bound)
            });
            let Some(number) = current else {
                self.left -= 1;
                self.index = (self.index + 1) % self.set.0.len();
                self.next = Some(ip_number(self.set.0[self.index].start));
                continue;
            };
            self.next = number.checked_add(1);
            let addr =
                ip_from_number(number, range.start).expect("it is not after the range's end");
            if addr != range.gateway {
                return Some((range, addr));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn raw(subnet: &str, start: Option<&str>, end: Option<&str>) -> RawRange {
        RawRange {
            subnet: Some(subnet.parse().unwrap()),
            range_start: start.map(|text| text.parse().unwrap()),
            range_end: end.map(|text| text.parse().unwrap()),
            gateway: None,
        }
    }

    fn tried(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        let last = last.map(|text| text.parse().unwrap());
        set.candidates(last)
            .map(|(_, addr)| addr.to_string())
            .collect()
    }

    #[test]
    fn defaults_leave_out_network_broadcast_and_gateway() {
        let set = RangeSet::new(&[raw("10.0.0.0/29", None, None)]).unwrap();
        assert_eq!(set.to_string(), "10.0.0.1-10.0.0.6");
        assert_eq!(
            tried(&set, None),
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        let set = RangeSet::new(&[raw("fd00::/126", None, None)]).unwrap();
        assert_eq!(tried(&set, None), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn the_turn_goes_on_after_the_last_one() {
        let set = RangeSet::new(&[
            raw("10.0.0.0/24", Some("10.0.0.10"), Some("10.0.0.12")),
            raw("10.1.0.0/24", Some("10.1.0.1"), Some("10.1.0.2")),
        ])
        .unwrap();
        let expected = ["10.0.0.12", "10.1.0.2", "10.0.0.10", "10.0.0.11"];
        assert_eq!(tried(&set, Some("10.0.0.11")), expected);
        let expected = ["10.0.0.10", "10.0.0.11", "10.0.0.12", "10.1.0.2"];
        assert_eq!(tried(&set, Some("10.1.0.2")), expected);
        // Of another set: the turn is lost, nothing more.
        assert_eq!(tried(&set, Some("1.1.1.1")), expected);
    }

    #[test]
    fn nonsense_is_refused() {
        for (bad, says) in [
            (raw("10.0.0.0/31", None, None), "too small"),
            (raw("fd00::/127", None, None), "too small"),
            (raw("10.0.0.1/24", None, None), "host bits"),
            (
                raw("10.0.0.0/24", Some("10.0.1.1"), None),
                "rangeStart 10.0.1.1 is not in",
            ),
            (
                raw("10.0.0.0/24", None, Some("fd00::1")),
                "rangeEnd fd00::1 is not in",
            ),
            (
                raw("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.8")),
                "ends before",
            ),
            (RawRange::default(), "without a subnet"),
        ] {
            let error = Range::new(&bad).unwrap_err();
            assert!(error.msg.contains(says), "{error}");
        }
        let v4 = raw("10.0.0.0/24", None, None);
        assert!(RangeSet::new(&[]).is_err());
        assert!(RangeSet::new(&[v4.clone(), raw("fd00::/64", None, None)]).is_err());
        assert!(RangeSet::new(&[v4.clone(), raw("10.0.0.128/25", None, None)]).is_err());
    }

    proptest! {
        #[test]
        fn every_address_is_tried_once_whatever_came_last(
            prefix in 24u8..=30,
            bounds in (0u32..256, 0u32..256),
            gateway in 0u32..256,
            last in 0u32..512,
            second: bool,
        ) {
            let net = u32::from_be_bytes([10, 0, 0, 0]);
            let size = 1u32 << (32 - prefix);
            let (low, high) = (bounds.0.min(bounds.1) % size, bounds.0.max(bounds.1) % size);
            prop_assume!(low <= high);
            let mut list = vec![RawRange {
                subnet: IpNet::new(IpAddr::V4(net.into()), prefix),
                range_start: Some(IpAddr::V4((net + low).into())),
                range_end: Some(IpAddr::V4((net + high).into())),
                gateway: Some(IpAddr::V4((net + gateway).into())),
            }];
            if second {
                list.push(raw("10.0.1.0/29", None, None));
            }
            let set = RangeSet::new(&list).unwrap();
            let tried: Vec<u32> = set
                .candidates(Some(IpAddr::V4((net + last).into())))
                .map(|(_, addr)| ip_number(addr) as u32 - net)
                .collect();
            let mut expected: BTreeSet<u32> = (low..=high).filter(|&n| n != gateway).collect();
            if second {
                expected.extend(258..=262);
            }
            prop_assert_eq!(tried.len(), expected.len());
            prop_assert_eq!(tried.into_iter().collect::<BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn the_last_address_of_all_does_not_overflow() {
        let end = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let start = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe";
        let set =
            RangeSet::new(&[raw("ffff:ffff:ffff:ffff::/64", Some(start), Some(end))]).unwrap();
        assert_eq!(tried(&set, None), [start, end]);
        assert_eq!(tried(&set, Some(end)), [start, end]);
    }
}
