//! VLANs: the container's port is in one without a tag, or in several with their tags.
//!
//! The machine's address in a VLAN is at a link of its own, `BRIDGE.VLAN`: one end of a pair whose other
//! end is a port of the bridge in that VLAN. It stays, as the bridge does.

use std::collections::BTreeSet;

use rustix::{fd::AsFd, fs, io::Errno, net::netdevice::name_to_index};
use serde::Deserialize;

use super::config::Config;
use crate::{
    error::{Code, Doing, Error},
    hash::hash,
    netfilter::lock,
    netlink::{
        Batch, Socket,
        link::{Link, Mac, Pair, Port},
        vlan::{default_of, is_filtering},
    },
    request::check_interface_name,
    sys, sysctl,
};

const MAX_VLAN: i64 = 4094;

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct RawTrunk {
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
    id: Option<i64>,
}

/// Which VLANs a port is in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Vlans {
    /// Without a tag.
    pub own: Option<u16>,
    /// With their tags, in order.
    pub tagged: Vec<u16>,
    /// It stays in the one that the bridge puts every port in.
    pub keep_default: bool,
}

impl Vlans {
    pub fn new(vlan: i64, trunk: &[RawTrunk], keep_default: bool) -> Result<Vlans, Error> {
        let number = |key: &str, id: i64| {
            let number = u16::try_from(id)
                .ok()
                .filter(|_| (1..=MAX_VLAN).contains(&id));
            let wrong = || Error::config(format!("{key} {id} is not between 1 and {MAX_VLAN}"));
            number.ok_or_else(wrong)
        };
        let mut tagged = BTreeSet::new();
        for (index, item) in trunk.iter().enumerate() {
            let key = |name: &str| format!("vlanTrunk[{index}].{name}");
            match (item.min, item.max) {
                (Some(min), Some(max)) => {
                    let (min, max) = (number(&key("minID"), min)?, number(&key("maxID"), max)?);
                    if min > max {
                        let msg = format!("{} {min} is above maxID {max}", key("minID"));
                        return Err(Error::config(msg));
                    }
                    tagged.extend(min..=max);
                }
                (None, None) => {}
                _ => {
                    let msg = format!("{} and maxID go together only", key("minID"));
                    return Err(Error::config(msg));
                }
            }
            if let Some(id) = item.id {
                tagged.insert(number(&key("id"), id)?);
            }
        }
        let own = if vlan == 0 {
            None
        } else {
            Some(number("vlan", vlan)?)
        };
        Ok(Vlans {
            own,
            tagged: tagged.into_iter().collect(),
            keep_default,
        })
    }

    pub fn are_given(&self) -> bool {
        self.own.is_some() || !self.tagged.is_empty()
    }
}

/// Makes the bridge keep VLANs apart; gives back what it is then.
pub fn filter(socket: &mut Socket, bridge: Link) -> Result<Link, Error> {
    let name = bridge.name.clone();
    let doing = || format!("vlan: make bridge {name} keep VLANs apart");
    if is_filtering(&bridge) {
        return Ok(bridge);
    }
    match socket.filter_vlans(bridge.index) {
        // Some kernels refuse, others do as if they had.
        Err(Errno::OPNOTSUPP) => {}
        done => done.doing(Code::Internal, doing)?,
    }
    let found = socket.link(&name).doing(Code::Internal, doing)?;
    found.filter(is_filtering).ok_or_else(|| {
        let msg = format!("{}: the kernel has no VLAN filtering of bridges", doing());
        Error::new(Code::NotAvailable, msg)
    })
}

/// Puts a port of the bridge in its VLANs.
pub fn put(socket: &mut Socket, bridge: &Link, port: &str, vlans: &Vlans) -> Result<(), Error> {
    let doing = || format!("vlan: put {port} in its VLANs");
    let index = name_to_index(&*socket, port).doing(Code::Internal, doing)?;
    let mut batch = Batch::default();
    let default = default_of(bridge);
    if default != 0 && !vlans.keep_default {
        batch.leave_vlan(index, default);
    }
    if let Some(own) = vlans.own {
        batch.join_vlan(index, own);
    }
    let tagged = vlans.tagged.iter().copied();
    // The one without a tag stays without.
    let tagged: Vec<u16> = tagged.filter(|id| Some(*id) != vlans.own).collect();
    if !tagged.is_empty() {
        batch.join_tagged(index, &tagged);
        if vlans.own.is_none() {
            // What has no tag is in the first, as it was before there were trunks.
            batch.join_vlan(index, 1);
        }
    }
    socket.send(batch).map(drop).doing(Code::Internal, doing)
}

/// The link that has the machine's addresses in the VLAN, made if need be, up.
pub fn ensure_gateway(
    socket: &mut Socket,
    bridge: &Link,
    config: &Config,
    vlan: u16,
) -> Result<Link, Error> {
    let name = format!("{}.{vlan}", bridge.name);
    check_interface_name(&name)
        .map_err(|says| Error::config(format!("vlan: the gateway's link {says}")))?;
    let doing = || format!("vlan: make {name}");
    // Whoever finds the link finds it whole.
    let _lock = lock().doing(Code::Internal, doing)?;
    if let Some(link) = socket.link(&name).doing(Code::Internal, doing)? {
        socket
            .raise(link.index, false)
            .doing(Code::Internal, doing)?;
        return Ok(link);
    }
    let port = format!("veth{:08x}", hash(&["vlan gateway", &name]) as u32);
    let home = fs::openat(
        fs::CWD,
        "/proc/self/ns/net",
        fs::OFlags::RDONLY | fs::OFlags::CLOEXEC,
        fs::Mode::empty(),
    )
    .doing(Code::Internal, doing)?;
    let mut batch = Batch::default();
    batch.add_pair(&Pair {
        host_name: &port,
        host_mac: Mac::random().doing(Code::Internal, doing)?,
        name: &name,
        mac: Mac::random().doing(Code::Internal, doing)?,
        mtu: config.mtu,
        netns: home.as_fd(),
    });
    socket.send(batch).doing(Code::Internal, doing)?;
    let made = plug_in(socket, bridge, config, &port, &name, vlan);
    if made.is_err() {
        // The first error is the one to report.
        let _ = socket.delete_link(&port);
    }
    made
}

fn plug_in(
    socket: &mut Socket,
    bridge: &Link,
    config: &Config,
    port: &str,
    name: &str,
    vlan: u16,
) -> Result<Link, Error> {
    let doing = || format!("vlan: plug {name} in");
    for end in [port, name] {
        sysctl::set_if_there("ipv6", end, "accept_ra", "0");
    }
    let mut batch = Batch::default();
    batch.join_bridge(&Port {
        name: port,
        bridge: bridge.index,
        alias: "",
        hairpin: false,
        isolated: false,
    });
    socket.send(batch).doing(Code::Internal, doing)?;
    let vlans = Vlans {
        own: Some(vlan),
        tagged: Vec::new(),
        keep_default: config.vlans.keep_default,
    };
    put(socket, bridge, port, &vlans)?;
    let index = name_to_index(&*socket, name).doing(Code::Internal, doing)?;
    socket.raise(index, false).doing(Code::Internal, doing)?;
    for end in [port, name] {
        sys::carrier(&*socket, end).doing(Code::Internal, doing)?;
    }
    socket
        .link(name)
        .doing(Code::Internal, doing)?
        .ok_or_else(|| Error::internal(format!("{name} is gone again")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trunk(min: Option<i64>, max: Option<i64>, id: Option<i64>) -> RawTrunk {
        RawTrunk { min, max, id }
    }

    #[test]
    fn trunks_are_sets_of_numbers() {
        let list = [trunk(Some(5), Some(7), Some(3)), trunk(None, None, Some(6))];
        let vlans = Vlans::new(0, &list, false).unwrap();
        assert_eq!((vlans.own, vlans.tagged), (None, vec![3, 5, 6, 7]));
        assert!(!Vlans::new(0, &[], false).unwrap().are_given());
        assert_eq!(Vlans::new(4094, &[], true).unwrap().own, Some(4094));
        for (vlan, item, says) in [
            (4095, trunk(None, None, None), "vlan 4095"),
            (-1, trunk(None, None, None), "vlan -1"),
            (
                0,
                trunk(Some(1), None, None),
                "vlanTrunk[0].minID and maxID",
            ),
            (
                0,
                trunk(Some(9), Some(8), None),
                "vlanTrunk[0].minID 9 is above",
            ),
            (0, trunk(Some(0), Some(8), None), "vlanTrunk[0].minID 0"),
            (0, trunk(None, None, Some(5000)), "vlanTrunk[0].id 5000"),
        ] {
            let error = Vlans::new(vlan, &[item], false).unwrap_err();
            assert!(error.msg.contains(says), "{error}");
        }
    }
}
