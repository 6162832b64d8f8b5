//! The configuration of tuning, checked.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Component, Path, PathBuf},
};

use regex_lite::Regex;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

use crate::{
    error::{Code, Doing, Error},
    netlink::link::{Link, Mac, Setting},
    request::Request,
};

const DATA_DIR: &str = "/run/cni/tuning";
/// One regular expression a line; if it is there, it says which sysctls may be set.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";
const SYSCTLS: &str = "/proc/sys";
const NETWORK_SYSCTLS: &str = "/proc/sys/net";
const MAX_MTU: u32 = 65535;

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    data_dir: String,
    #[serde(flatten)]
    own: RawSettings,
    runtime_config: RawMac,
    args: RawArgs,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawMac {
    mac: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawArgs {
    cni: Option<RawSettings>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSettings {
    sysctl: Option<BTreeMap<String, String>>,
    mac: Option<String>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    queue: Option<u32>,
}

/// What is to be set.
#[derive(Debug)]
pub struct Config {
    /// Key, file, value.
    pub sysctls: Vec<(String, PathBuf, String)>,
    pub mac: Option<Mac>,
    pub promiscuous: bool,
    pub mtu: Option<u32>,
    pub all_multicast: Option<bool>,
    pub queue: Option<u32>,
    /// Where it is noted what was before.
    pub data_dir: PathBuf,
}

impl Config {
    pub fn parse(request: &Request) -> Result<Config, Error> {
        refuse_duplicates(&request.stdin)?;
        let raw: RawConfig = request.config_of("tuning")?;
        let args = raw.args.cni.unwrap_or_default();
        let mut sysctl = raw.own.sysctl.unwrap_or_default();
        sysctl.extend(args.sysctl.unwrap_or_default());
        let name = &request
            .attachment()
            .map(|attachment| attachment.interface.clone())
            .unwrap_or_default();
        let allowed = allowlist(Path::new(ALLOWLIST))?;
        let mut sysctls = Vec::new();
        for (key, value) in sysctl {
            if allowed
                .as_ref()
                .is_some_and(|list| !list.iter().any(|one| one.is_match(&key)))
            {
                let msg = format!("sysctl {key} is not allowed by {ALLOWLIST}");
                return Err(Error::config(msg));
            }
            sysctls.push((key.clone(), sysctl_path(&key, name)?, value));
        }
        // The closer to the container, the more it counts.
        let texts = [args.mac, Some(raw.runtime_config.mac)];
        let text = texts.into_iter().flatten().find(|text| !text.is_empty());
        let mac = match text {
            Some(text) => Some(mac(&text)?),
            None if request.args.mac.is_some() => request.args.mac,
            None => {
                let own = raw.own.mac.filter(|text| !text.is_empty());
                own.map(|text| mac(&text)).transpose()?
            }
        };
        let mtu = args.mtu.or(raw.own.mtu).filter(|mtu| *mtu != 0);
        if let Some(mtu) = mtu.filter(|mtu| *mtu > MAX_MTU) {
            return Err(Error::config(format!("mtu {mtu} is above {MAX_MTU}")));
        }
        let data_dir = Some(raw.data_dir).filter(|path| !path.is_empty());
        Ok(Config {
            sysctls,
            mac,
            promiscuous: args.promisc.or(raw.own.promisc).unwrap_or(false),
            mtu,
            all_multicast: args.allmulti.or(raw.own.allmulti),
            queue: args.queue.or(raw.own.queue),
            data_dir: data_dir.unwrap_or_else(|| DATA_DIR.into()).into(),
        })
    }

    pub fn changes_link(&self) -> bool {
        self.mac.is_some() || !self.settings().is_empty()
    }

    /// The settings of the link but for its hardware address, with their keys.
    pub fn settings(&self) -> Vec<(&'static str, Setting)> {
        settings(
            self.promiscuous.then_some(true),
            self.mtu,
            self.all_multicast,
            self.queue,
        )
    }

    /// Compares a link with what is configured.
    pub fn check(&self, link: &Link) -> Result<(), Error> {
        let differs = |key: &str, is: String, wanted: String| {
            let name = &link.name;
            Err(Error::internal(format!(
                "{key} of {name} is {is}, not {wanted}"
            )))
        };
        if let Some(mac) = self.mac.filter(|mac| *mac != link.mac) {
            return differs("mac", link.mac.to_string(), mac.to_string());
        }
        let numbers = [
            (
                "promisc",
                Some(self.promiscuous.into()),
                (link.promiscuity != 0).into(),
            ),
            ("mtu", self.mtu, link.mtu),
            (
                "allmulti",
                self.all_multicast.map(u32::from),
                link.all_multicast.into(),
            ),
            ("txQLen", self.queue, link.queue),
        ];
        for (key, wanted, is) in numbers {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != is) {
                return differs(key, is.to_string(), wanted.to_string());
            }
        }
        Ok(())
    }
}

/// Those that are given, with their keys.
pub fn settings(
    promiscuous: Option<bool>,
    mtu: Option<u32>,
    all_multicast: Option<bool>,
    queue: Option<u32>,
) -> Vec<(&'static str, Setting)> {
    let all = [
        promiscuous.map(|on| ("promisc", Setting::Promiscuous(on))),
        mtu.map(|mtu| ("mtu", Setting::Mtu(mtu))),
        all_multicast.map(|on| ("allmulti", Setting::AllMulticast(on))),
        queue.map(|length| ("txQLen", Setting::Queue(length))),
    ];
    all.into_iter().flatten().collect()
}

fn mac(text: &str) -> Result<Mac, Error> {
    Mac::parse(text).ok_or_else(|| Error::config(format!("mac {text:?} is no hardware address")))
}

/// The file of a sysctl, which must be one of the network's.
fn sysctl_path(key: &str, interface: &str) -> Result<PathBuf, Error> {
    // Nothing can lead upwards: no dot is left, and the interface's name has been checked.
    let relative = key.replace('.', "/").replacen("IFNAME", interface, 1);
    let path: PathBuf = Path::new(SYSCTLS)
        .join(relative.trim_start_matches('/'))
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .collect();
    if path.starts_with(NETWORK_SYSCTLS) && path != Path::new(NETWORK_SYSCTLS) {
        Ok(path)
    } else {
        Err(Error::config(format!(
            "sysctl {key:?} is not one of the network's"
        )))
    }
}

/// The expressions of the file, or nothing if there is none.
fn allowlist(path: &Path) -> Result<Option<Vec<Regex>>, Error> {
    let named = || path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.doing(Code::Io, named)?,
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let read = lines.map(|line| Regex::new(line).doing(Code::InvalidConfig, named));
    read.collect::<Result<_, _>>().map(Some)
}

/// A sysctl that is named twice has no one value.
fn refuse_duplicates(stdin: &[u8]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Keys {
        #[serde(default, rename = "sysctl")]
        _sysctl: Unique,
    }
    serde_json::from_slice::<Keys>(stdin)
        .map(drop)
        .doing(Code::Decode, || "tuning: sysctl".into())
}

#[derive(Default)]
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Unique, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Unique, E> {
                Ok(Unique)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut seen = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, de::IgnoredAny>()? {
                    if seen.insert(key.clone(), value).is_some() {
                        return Err(de::Error::custom(format!("{key} is there twice")));
                    }
                }
                Ok(Unique)
            }
        }

        from.deserialize_any(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_network_have_a_path() {
        let path = |key: &str| sysctl_path(key, "eth0.5").map(|path| path.display().to_string());
        assert_eq!(
            path("net.ipv4.conf.IFNAME.arp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.5/arp_filter"
        );
        assert_eq!(
            path("net/core/somaxconn").unwrap(),
            "/proc/sys/net/core/somaxconn"
        );
        for key in [
            "kernel.hostname",
            "net",
            "",
            "/etc/passwd",
            "../x",
            "network.x",
            "net...",
        ] {
            assert!(path(key).unwrap_err().is(Code::InvalidConfig), "{key}");
        }
        assert_eq!(path("net/../kernel/x").unwrap(), "/proc/sys/net/kernel/x");
    }

    #[test]
    fn a_key_must_not_come_twice() {
        let twice = br#"{"sysctl":{"net.a":"1","net.a":"2"}}"#;
        let error = refuse_duplicates(twice).unwrap_err();
        assert!(
            error.is(Code::Decode) && error.msg.contains("net.a is there twice"),
            "{error}"
        );
        refuse_duplicates(br#"{"sysctl":{"net.a":"1","net.b":"2"}}"#).unwrap();
        refuse_duplicates(br#"{"sysctl":null}"#).unwrap();
        refuse_duplicates(b"{}").unwrap();
    }

    #[test]
    fn the_allowlist_is_of_expressions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " ^net\\.core\\. \n\nsomething\n").unwrap();
        let list = allowlist(file.path()).unwrap().unwrap();
        assert_eq!(list.len(), 2);
        assert!(list[0].is_match("net.core.somaxconn") && !list[0].is_match("xnet.core.a"));
        std::fs::write(file.path(), "(").unwrap();
        assert!(allowlist(file.path()).is_err());
        assert!(allowlist(Path::new("/nonexistent")).unwrap().is_none());
    }
}
