//! The pods that are meant: who they are, and where their network namespaces are.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use carpel_api::cri::{
    NamespaceMode, PodSandbox, PodSandboxState, PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use carpel_netpath::gather::Namespace;
use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::resolve::pod_name;

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub protocol: String,
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

/// A pod, as its runtime tells of it.
#[derive(Debug)]
pub struct Subject {
    pub id: String,
    /// "namespace/name".
    pub name: String,
    /// The primary one first.
    pub ips: Vec<IpAddr>,
    /// It has the network of the node.
    pub is_host: bool,
    /// None with the network of the node.
    pub netns: Option<PathBuf>,
    pub host_ports: Vec<HostPort>,
}

impl Subject {
    /// Asks the runtime about a pod.
    pub async fn ask(client: &Client, pod: &PodSandbox) -> anyhow::Result<Self> {
        let name = pod_name(pod);
        if pod.state() != PodSandboxState::SandboxReady {
            bail!("pod {name} is stopped: it has no network any more");
        }
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let answer = client.pod_sandbox_status(request).await?;
        Self::read(name, &answer)
    }

    fn read(name: String, answer: &PodSandboxStatusResponse) -> anyhow::Result<Self> {
        let status = answer
            .status
            .as_ref()
            .context("an answer without a status")?;
        let network = status.network.iter();
        let ips = network.flat_map(|network| {
            let more = network.additional_ips.iter().map(|ip| ip.ip.as_str());
            std::iter::once(network.ip.as_str()).chain(more)
        });
        let options = status
            .linux
            .as_ref()
            .and_then(|linux| linux.namespaces.as_ref());
        let options = options.and_then(|namespaces| namespaces.options.as_ref());
        let is_host = options.is_some_and(|options| options.network() == NamespaceMode::Node);
        let info = answer
            .info
            .get("info")
            .and_then(|text| serde_json::from_str(text).ok());
        let info: Value = info.unwrap_or_default();
        let netns = namespace_path(&info);
        if !is_host && netns.is_none() {
            bail!("pod {name}: the runtime does not say where its network namespace is");
        }
        Ok(Self {
            id: status.id.clone(),
            name,
            ips: ips.filter_map(|ip| ip.parse().ok()).collect(),
            is_host,
            netns: netns.filter(|_| !is_host),
            host_ports: host_ports(&info),
        })
    }

    /// Opens the pod's network namespace. `runtime` is the process that told of it, in whose sight the path is.
    pub fn open(&self, runtime: Option<i32>) -> anyhow::Result<Namespace> {
        match &self.netns {
            None => node(runtime),
            Some(path) => {
                let found = seen_by(runtime, path);
                Namespace::open(&found).with_context(|| format!("pod {}", self.name))
            }
        }
    }
}

/// The network namespace that the runtime is in, which is the node's.
pub fn node(runtime: Option<i32>) -> anyhow::Result<Namespace> {
    let path = match runtime {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        None => PathBuf::from("/proc/self/ns/net"),
    };
    Ok(Namespace::open(&path)?)
}

/// A path as the runtime sees it: it may be in a container itself.
fn seen_by(runtime: Option<i32>, path: &Path) -> PathBuf {
    let through = runtime.and_then(|pid| {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        Some(root.join(path.strip_prefix("/").ok()?))
    });
    through
        .filter(|path| path.exists())
        .unwrap_or_else(|| path.to_owned())
}

/// What a runtime says of a namespace in the details of a status: carpel, containerd and CRI-O each in its own way.
fn namespace_path(info: &Value) -> Option<PathBuf> {
    if let Some(path) = info["netns"].as_str() {
        return Some(path.into());
    }
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
    let network = namespaces
        .into_iter()
        .flatten()
        .find(|one| one["type"] == "network");
    if let Some(path) = network
        .and_then(|one| one["path"].as_str())
        .filter(|path| !path.is_empty())
    {
        return Some(path.into());
    }
    let pid = info["pid"].as_u64().filter(|pid| *pid > 0)?;
    Some(format!("/proc/{pid}/ns/net").into())
}

/// The host ports that a pod has asked for: carpel tells them under "portMappings", containerd in the pod's
/// configuration.
fn host_ports(info: &Value) -> Vec<HostPort> {
    let own = info["portMappings"].as_array();
    let configured = info["config"]["port_mappings"].as_array();
    let all = own.or(configured).into_iter().flatten();
    let read = |one: &Value| {
        let number = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| one[*name].as_u64())?;
            u16::try_from(found).ok().filter(|port| *port != 0)
        };
        let text = |names: [&str; 2]| names.iter().find_map(|name| one[*name].as_str());
        let protocol = match &one["protocol"] {
            Value::String(text) => text.to_lowercase(),
            Value::Number(number) if number.as_u64() == Some(1) => "udp".into(),
            Value::Number(number) if number.as_u64() == Some(2) => "sctp".into(),
            _ => "tcp".into(),
        };
        Some(HostPort {
            protocol,
            host_ip: text(["hostIP", "host_ip"]).and_then(|text| text.parse().ok()),
            host_port: number(["hostPort", "host_port"])?,
            container_port: number(["containerPort", "container_port"])?,
        })
    };
    all.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_runtime_says_it_in_its_own_way() {
        let path = |info: Value| namespace_path(&info).map(|path| path.display().to_string());
        let carpel = json!({ "netns": "/run/netns/carpel-1", "pid": 7 });
        assert_eq!(path(carpel).as_deref(), Some("/run/netns/carpel-1"));
        let spec = json!({ "linux": { "namespaces": [
            { "type": "pid" }, { "type": "network", "path": "/var/run/netns/cni-1" }] } });
        let containerd = json!({ "pid": 7, "runtimeSpec": spec });
        assert_eq!(path(containerd).as_deref(), Some("/var/run/netns/cni-1"));
        assert_eq!(path(json!({ "pid": 7 })).as_deref(), Some("/proc/7/ns/net"));
        assert_eq!(path(json!({ "pid": 0 })), None);
        assert_eq!(path(Value::Null), None);
    }

    #[test]
    fn host_ports_of_carpel_and_containerd() {
        let expected = HostPort {
            protocol: "udp".into(),
            host_ip: Some("192.0.2.1".parse().unwrap()),
            host_port: 8080,
            container_port: 80,
        };
        let carpel = json!({ "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1" }] });
        let containerd = json!({ "config": { "port_mappings": [
            { "host_port": 8080, "container_port": 80, "protocol": 1, "host_ip": "192.0.2.1" },
            { "container_port": 81 }] } });
        assert_eq!(host_ports(&carpel), std::slice::from_ref(&expected));
        assert_eq!(host_ports(&containerd), [expected]);
    }
}
