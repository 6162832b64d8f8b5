//! The range of pod addresses that the kubelet was given for its node (UpdateRuntimeConfig). It replaces the
//! subnet of the default network, fills in a template of a configuration, and is told to plugins that have the
//! capability ipRanges; other networks have addresses of their own.
//!
//! The kubelet says it once, not again to a daemon that starts anew: it is kept in a file.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tracing::info;

use super::cache::{read_bounded, write_atomically};
use super::conf::{self, MAX_FILE, NetworkConf};
use super::{folder, template};

const FILE: &str = "pod-cidr";
/// What is made of the template.
const GENERATED: &str = "10-carpel.conflist";

/// A text that is no range of pod addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pod CIDR {0:?} is not a subnet, or one of IPv4 and one of IPv6, with room for pods")]
pub struct InvalidPodCidr(String);

/// A subnet, or one of each family, in the order in which the kubelet names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodCidr(Vec<(IpAddr, u8)>);

impl PodCidr {
    /// Reads "10.1.0.0/24" or "10.1.0.0/24,fd00::/64".
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPodCidr> {
        let subnets: Option<Vec<_>> = text.split(',').map(subnet).collect();
        match subnets.as_deref() {
            Some([_]) => {}
            Some([a, b]) if a.0.is_ipv4() != b.0.is_ipv4() => {}
            _ => return Err(InvalidPodCidr(text.chars().take(128).collect())),
        }
        Ok(Self(subnets.unwrap_or_default()))
    }

    /// What was stored in `dir`, if anything.
    pub(super) fn load(dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match read_bounded(&dir.join(FILE), 256) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let text = String::from_utf8_lossy(&bytes);
        let parsed = Self::parse(text.trim());
        parsed
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn values(&self) -> template::Values {
        template::Values {
            ranges: self.texts().collect(),
            routes: self.routes().map(str::to_owned).collect(),
        }
    }

    pub(super) fn store(&self, dir: &Path) -> io::Result<()> {
        write_atomically(dir, FILE, &[self.to_string().as_bytes()])
    }

    /// The range as the capability ipRanges has it: an address of each family.
    pub(super) fn ip_ranges(&self) -> Value {
        let subnets = self.texts();
        subnets
            .map(|subnet| json!([{ "subnet": subnet }]))
            .collect()
    }

    fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(ip, bits)| format!("{ip}/{bits}"))
    }

    /// Everywhere, in each of the families.
    fn routes(&self) -> impl Iterator<Item = &'static str> {
        let everywhere = |ip: &IpAddr| if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        self.0.iter().map(move |(ip, _)| everywhere(ip))
    }

    /// Makes the network's plugins give out addresses of these subnets, where they use host-local.
    pub(super) fn apply(&self, network: &mut NetworkConf) {
        let ipams = network
            .plugins
            .iter_mut()
            .filter_map(|plugin| plugin.raw.get_mut("ipam"));
        for ipam in ipams.filter_map(Value::as_object_mut) {
            if ipam.get("type").and_then(Value::as_str) != Some("host-local") {
                continue;
            }
            for old in ["subnet", "rangeStart", "rangeEnd", "gateway"] {
                ipam.remove(old);
            }
            ipam.insert("ranges".into(), self.ip_ranges());
            let routes = ipam.entry("routes").or_insert_with(|| json!([]));
            let Value::Array(routes) = routes else {
                continue;
            };
            for all in self.routes() {
                if !routes.iter().any(|route| route["dst"] == all) {
                    routes.push(json!({"dst": all}));
                }
            }
        }
    }
}

impl fmt::Display for PodCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().collect::<Vec<_>>().join(","))
    }
}

/// Why no configuration was made of the template.
#[derive(Debug, thiserror::Error)]
pub enum Unwritten {
    #[error("network.conf_template {}: {error}", .path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("network.conf_template {}: {invalid}", .path.display())]
    Template {
        path: PathBuf,
        invalid: template::Invalid,
    },
    #[error("network.conf_template {} is no network configuration when filled in: {invalid}", .path.display())]
    Conf {
        path: PathBuf,
        invalid: conf::Invalid,
    },
    #[error("{}: {error}", .path.display())]
    Write { path: PathBuf, error: io::Error },
}

/// A configuration to be made as soon as the range is known.
#[derive(Debug)]
pub(super) struct Template {
    pub path: PathBuf,
    /// The folder of configurations.
    pub conf_dir: PathBuf,
}

impl Template {
    /// Writes the configuration, unless there is one: somebody else's, or this one as somebody has changed it.
    /// `before` is the range that the last one was made for.
    pub(super) fn fill_in(
        &self,
        cidr: &PodCidr,
        before: Option<&PodCidr>,
    ) -> Result<(), Unwritten> {
        let path = self.path.clone();
        let text = match read_bounded(&path, MAX_FILE) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => return Err(Unwritten::Read { path, error }),
        };
        let filled = match template::render(&text, &cidr.values()) {
            Ok(filled) => filled,
            Err(invalid) => return Err(Unwritten::Template { path, invalid }),
        };
        if let Err(invalid) = NetworkConf::parse(filled.as_bytes()) {
            return Err(Unwritten::Conf { path, invalid });
        }
        let at = self.conf_dir.join(GENERATED);
        let now = read_bounded(&at, MAX_FILE).unwrap_or_default();
        let is_ours = before
            .and_then(|before| template::render(&text, &before.values()).ok())
            .is_some_and(|old| old.as_bytes() == now);
        if now == filled.as_bytes() {
            return Ok(());
        }
        if !is_ours && folder::scan(&self.conf_dir).network.is_some() {
            info!(
                "{} holds a network configuration: none is made of {}",
                self.conf_dir.display(),
                self.path.display()
            );
            return Ok(());
        }
        self.write(&filled)
            .map_err(|error| Unwritten::Write { path: at, error })
    }

    fn write(&self, text: &str) -> io::Result<()> {
        std::fs::create_dir_all(&self.conf_dir)?;
        write_atomically(&self.conf_dir, GENERATED, &[text.as_bytes()])?;
        // Whoever looks at the folder reads the others, too.
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(self.conf_dir.join(GENERATED), mode)
    }
}

/// Reads a subnet that has room for a gateway and a pod. Bits of a host are taken off.
fn subnet(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.trim().split_once('/')?;
    if bits.is_empty() || !bits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits: u8 = bits.parse().ok()?;
    match ip.parse().ok()? {
        IpAddr::V4(ip) if (1..=30).contains(&bits) => {
            let mask = u32::MAX << (32 - bits);
            Some((IpAddr::V4((u32::from(ip) & mask).into()), bits))
        }
        IpAddr::V6(ip) if (1..=126).contains(&bits) => {
            let mask = u128::MAX << (128 - bits);
            Some((IpAddr::V6((u128::from(ip) & mask).into()), bits))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subnet_or_one_of_each_family() {
        for (text, canonical) in [
            ("10.1.2.0/24", "10.1.2.0/24"),
            ("10.1.2.3/24", "10.1.2.0/24"),
            ("fd00:1::/64, 10.1.0.0/16", "fd00:1::/64,10.1.0.0/16"),
        ] {
            assert_eq!(PodCidr::parse(text).unwrap().to_string(), canonical);
        }
        for bad in [
            "",
            "10.1.2.0",
            "10.1.2.0/31",
            "10.1.2.0/0",
            "10.1.2.0/+8",
            "fd00::/127",
            "x/8",
            "10.0.0.0/8,11.0.0.0/8",
            "10.0.0.0/8,fd00::/64,fd01::/64",
            "10.0.0.0/8,",
        ] {
            let text = PodCidr::parse(bad).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("pod CIDR {bad:?} is not")),
                "{text}"
            );
        }
    }

    #[test]
    fn it_is_kept_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(PodCidr::load(dir.path()).unwrap(), None);
        let cidr = PodCidr::parse("10.1.2.0/24").unwrap();
        cidr.store(dir.path()).unwrap();
        assert_eq!(PodCidr::load(dir.path()).unwrap(), Some(cidr));
        std::fs::write(dir.path().join(FILE), "x").unwrap();
        assert!(PodCidr::load(dir.path()).is_err());
    }

    #[test]
    fn it_replaces_the_ranges_of_host_local() {
        let list = br#"{"cniVersion":"1.0.0","name":"n","plugins":[
            {"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/8","rangeStart":"10.0.0.9",
                "routes":[{"dst":"0.0.0.0/0"}]}},
            {"type":"other","ipam":{"type":"dhcp"}}, {"type":"portmap"}]}"#;
        let mut network = NetworkConf::parse(list).unwrap();
        PodCidr::parse("10.9.0.0/24,fd00::/64")
            .unwrap()
            .apply(&mut network);
        let expected = json!({"type": "host-local",
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
        assert_eq!(network.plugins[0].raw["ipam"], expected);
        assert_eq!(network.plugins[1].raw["ipam"], json!({"type": "dhcp"}));
    }
}
