//! What a pod tells its plugins beyond the network's configuration: capability arguments and CNI_ARGS.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::Error;
use super::pod_cidr::PodCidr;
use crate::ids::SandboxId;
use crate::spec::config::{Dns, PodName, PortMapping, Protocol};

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits per second that can be asked for: 1 k to 1 P, as Kubernetes limits it.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Bits: no limit of the burst in effect, and still a number that every plugin takes.
const BURST: u64 = u32::MAX as u64;

/// A pod as the network sees it.
#[derive(Debug, Clone)]
pub struct PodNetwork {
    pub sandbox: SandboxId,
    pub name: PodName,
    /// The name of the pod's network namespace, see [`super::netns`].
    pub netns: PathBuf,
    pub port_mappings: Vec<PortMapping>,
    pub cgroup_parent: Option<String>,
    pub dns: Option<Dns>,
    pub annotations: BTreeMap<String, String>,
    pub hostname: Option<String>,
}

impl PodNetwork {
    /// All that plugins can ask for by a capability, each under the capability's name.
    /// `range` is what the node's pods have their addresses from, if the kubelet has said it.
    pub(super) fn capabilities(
        &self,
        range: Option<&PodCidr>,
    ) -> Result<Map<String, Value>, Error> {
        let mut values = Map::new();
        if let Some(range) = range {
            values.insert("ipRanges".into(), range.ip_ranges());
        }
        values.insert("aliases".into(), self.aliases());
        if !self.port_mappings.is_empty() {
            let mappings = port_mappings(&self.port_mappings);
            values.insert("portMappings".into(), Value::Array(mappings));
        }
        if let Some(bandwidth) = bandwidth(&self.annotations)? {
            values.insert("bandwidth".into(), bandwidth);
        }
        if let Some(dns) = &self.dns {
            let dns =
                json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
            values.insert("dns".into(), dns);
        }
        if let Some(cgroup) = &self.cgroup_parent {
            values.insert("cgroupPath".into(), json!(cgroup));
        }
        if !self.annotations.is_empty() {
            values.insert(
                "io.kubernetes.cri.pod-annotations".into(),
                json!(self.annotations),
            );
        }
        Ok(values)
    }

    /// The names under which others on the network may look for the pod.
    fn aliases(&self) -> Value {
        let name = &self.name.name;
        let hostname = self.hostname.as_ref().filter(|hostname| *hostname != name);
        std::iter::once(name).chain(hostname).cloned().collect()
    }

    /// The value of CNI_ARGS.
    pub(super) fn args(&self) -> Result<String, Error> {
        let sandbox = self.sandbox.to_string();
        let pairs = [
            ("K8S_POD_NAMESPACE", self.name.namespace.as_str()),
            ("K8S_POD_NAME", &self.name.name),
            ("K8S_POD_INFRA_CONTAINER_ID", &sandbox),
            ("K8S_POD_UID", &self.name.uid),
        ];
        let mut args = String::from("IgnoreUnknown=1");
        for (key, value) in pairs {
            // A ";" would begin an argument that nobody asked for.
            if value.contains(|c: char| c == ';' || c.is_control()) {
                let value = value.to_owned();
                return Err(Error::Argument { key, value });
            }
            args.extend([";", key, "=", value]);
        }
        Ok(args)
    }
}

/// Ports of the node as plugins are told them.
#[must_use]
pub fn port_mappings(mappings: &[PortMapping]) -> Vec<Value> {
    mappings.iter().map(port_mapping).collect()
}

fn port_mapping(mapping: &PortMapping) -> Value {
    let protocol = match mapping.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": protocol,
        "hostIP": mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}

fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>, Error> {
    let mut value = Map::new();
    for (key, rate, burst) in [
        (INGRESS, "ingressRate", "ingressBurst"),
        (EGRESS, "egressRate", "egressBurst"),
    ] {
        let Some(text) = annotations.get(key) else {
            continue;
        };
        let bits = quantity(text).filter(|bits| RATES.contains(bits));
        let bits = bits.ok_or_else(|| Error::Bandwidth {
            annotation: key,
            value: text.chars().take(64).collect(),
        })?;
        value.insert(rate.into(), json!(bits));
        value.insert(burst.into(), json!(BURST));
    }
    Ok((!value.is_empty()).then_some(Value::Object(value)))
}

/// Reads a Kubernetes quantity ("10M", "1.5Gi", "1e6") and rounds it up to a whole number.
/// `None`: it is none, or is negative, or is too large.
fn quantity(text: &str) -> Option<u64> {
    if text.len() > 40 {
        return None;
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = unsigned.split_at(end.unwrap_or(unsigned.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    let (binary, exponent) = scale(suffix)?;
    let digits = digits.checked_mul(binary)?;
    let exponent = exponent.checked_sub(places)?;
    let power = 10u128.checked_pow(exponent.unsigned_abs())?;
    let value = if exponent >= 0 {
        digits.checked_mul(power)?
    } else {
        digits.div_ceil(power)
    };
    u64::try_from(value).ok()
}

/// A suffix as a factor and a power of ten.
fn scale(suffix: &str) -> Option<(u128, i32)> {
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    if let Some(at) = decimal.iter().position(|s| *s == suffix) {
        return Some((1, i32::try_from(at).ok()? * 3 - 9));
    }
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(at) = binary.iter().position(|s| *s == suffix) {
        return Some((1 << (10 * (at + 1)), 0));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-36..=36).contains(&exponent).then_some((1, exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes_quantities() {
        let cases = [
            ("0", Some(0)),
            ("10M", Some(10_000_000)),
            ("1.5Gi", Some(1_610_612_736)),
            ("1e6", Some(1_000_000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1E3", Some(1_000)),
            (".5k", Some(500)),
            ("+7", Some(7)),
            ("1500m", Some(2)),
            ("1n", Some(1)),
            ("5e-1", Some(1)),
            ("20E", None),
            ("-1", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("1x", None),
            ("1 M", None),
            ("1e99999999999", None),
            ("99999999999999999999999999999999999999E", None),
        ];
        for (text, value) in cases {
            assert_eq!(quantity(text), value, "{text}");
        }
    }

    #[test]
    fn bandwidth_is_read_within_its_limits() {
        let of = |value: &str| bandwidth(&BTreeMap::from([(INGRESS.to_owned(), value.to_owned())]));
        let expected = json!({"ingressRate": 10_000_000, "ingressBurst": u32::MAX});
        assert_eq!(of("10M").unwrap(), Some(expected));
        assert_eq!(bandwidth(&BTreeMap::new()).unwrap(), None);
        for bad in ["999", "1001P", "fast", "2P"] {
            let text = of(bad).unwrap_err().to_string();
            assert!(text.contains(INGRESS) && text.contains(bad), "{text}");
        }
    }
}
