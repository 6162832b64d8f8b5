//! The configuration of bridge, checked.

use serde::Deserialize;

use super::vlan::{RawTrunk, Vlans};
use crate::{
    error::{Code, Error},
    masquerade,
    netlink::link::Mac,
    request::{Request, check_interface_name},
    result::{Dns, null_is_empty},
};

const DEFAULT_BRIDGE: &str = "cni0";
const MAX_MTU: u32 = 65535;

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    #[serde(deserialize_with = "null_is_empty")]
    vlan_trunk: Vec<RawTrunk>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    uplink_interface: String,
    dns: Dns,
    args: RawArgs,
    runtime_config: RawMac,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawArgs {
    cni: Option<RawMac>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawMac {
    mac: Option<String>,
}

/// How containers are joined.
#[derive(Debug)]
pub struct Config {
    /// Name of the bridge, which a link can have.
    pub bridge: String,
    /// The bridge has each subnet's gateway address, and the machine forwards.
    pub is_gateway: bool,
    /// The container's default route goes there.
    pub is_default_gateway: bool,
    /// Addresses of the bridge that are in the way are replaced.
    pub force_address: bool,
    pub ip_masq: bool,
    /// Of the bridge, if it is made, and of both ends of the pair, in bytes.
    pub mtu: Option<u32>,
    pub hairpin: bool,
    pub promiscuous: bool,
    /// Duplicates of the container's IPv6 addresses are looked for, which takes a second or two.
    pub detect_duplicates: bool,
    /// The container's end stays down.
    pub leave_down: bool,
    pub isolated: bool,
    /// Frames under another hardware address than the container's are dropped.
    pub check_macs: bool,
    pub vlans: Vlans,
    pub dns: Dns,
    /// Of the container's interface; none for a random one.
    pub mac: Option<Mac>,
}

impl Config {
    /// Errors: `UnsupportedField` for what would be ignored at the user's cost.
    pub fn parse(request: &Request) -> Result<Config, Error> {
        let raw: RawConfig = request.config_of("bridge")?;
        refuse_unsupported(&raw)?;

        let bridge = if raw.bridge.is_empty() {
            DEFAULT_BRIDGE.into()
        } else {
            raw.bridge
        };
        check_interface_name(&bridge).map_err(|says| Error::config(format!("bridge {says}")))?;
        if raw.hairpin_mode && raw.promisc_mode {
            return Err(Error::config(
                "hairpinMode and promiscMode exclude each other",
            ));
        }
        if raw.mtu > MAX_MTU {
            return Err(Error::config(format!("mtu {} is above {MAX_MTU}", raw.mtu)));
        }
        let mac = [raw.runtime_config.mac, raw.args.cni.and_then(|cni| cni.mac)]
            .into_iter()
            .flatten()
            .find(|text| !text.is_empty())
            .map(|text| {
                Mac::parse(&text)
                    .ok_or_else(|| Error::config(format!("mac {text:?} is no hardware address")))
            })
            .transpose()?
            .or(request.args.mac);
        Ok(Config {
            bridge,
            is_gateway: raw.is_gateway || raw.is_default_gateway,
            is_default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            ip_masq: raw.ip_masq,
            mtu: (raw.mtu != 0).then_some(raw.mtu),
            hairpin: raw.hairpin_mode,
            promiscuous: raw.promisc_mode,
            detect_duplicates: raw.enabledad,
            leave_down: raw.disable_container_interface,
            isolated: raw.port_isolation,
            check_macs: raw.macspoofchk,
            vlans: Vlans::new(raw.vlan, &raw.vlan_trunk, raw.preserve_default_vlan)?,
            dns: raw.dns,
            mac,
        })
    }
}

fn refuse_unsupported(raw: &RawConfig) -> Result<(), Error> {
    if !raw.uplink_interface.is_empty() {
        let msg = "bridge: uplinkInterface is not supported";
        return Err(Error::new(Code::UnsupportedField, msg));
    }
    masquerade::check_backend(&raw.ip_masq_backend)
}
