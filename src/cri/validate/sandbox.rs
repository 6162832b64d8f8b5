//! RunPodSandbox.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use carpel_api::cri;

use super::mounts::unknown;
use super::{Field, Platform, Rejected, Shown, limits, security, sysctl, text};
use crate::spec::config::{Dns, PodName, PortMapping, Protocol, SandboxConfig, Scope};

/// The kernel's HOST_NAME_MAX.
const MAX_HOSTNAME: usize = 64;
const MAX_PORT_MAPPINGS: usize = 4096;
const MAX_DNS_ENTRIES: usize = 64;

/// How messages name the sandbox of a request.
struct Subject(String);

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sandbox {}", Shown(&self.0))
    }
}

/// Checks a RunPodSandbox request.
///
/// # Errors
/// The first field that is wrong or asks for what carpel cannot do.
pub fn run_pod_sandbox(
    request: cri::RunPodSandboxRequest,
    platform: Platform,
) -> Result<SandboxConfig, Rejected> {
    let field = Field::root("config");
    let config = request.config.ok_or_else(|| field.must_be_set())?;
    let name = config.metadata.clone().unwrap_or_default();
    let subject = Subject(format!("{}/{}", name.namespace, name.name));
    let handler = handler(&Field::root("runtime_handler"), request.runtime_handler);
    handler
        .and_then(|handler| check(&field, config, handler, platform))
        .map_err(|rejected| rejected.about(&subject))
}

/// The handlers of this build: only the default, which has no name.
pub(super) fn handler(field: &Field<'_>, name: String) -> Result<String, Rejected> {
    if !name.is_empty() {
        return Err(field.invalid(format_args!("no handler {} is configured", Shown(&name))));
    }
    Ok(name)
}

fn check(
    field: &Field<'_>,
    config: cri::PodSandboxConfig,
    runtime_handler: String,
    platform: Platform,
) -> Result<SandboxConfig, Rejected> {
    if config
        .windows
        .as_ref()
        .is_some_and(|windows| *windows != Default::default())
    {
        return Err(field.member("windows").unsupported("this node runs Linux"));
    }
    let linux = config.linux.unwrap_or_default();
    let linux_field = field.member("linux");
    // Kept with the request, and shown: the pod's cgroup is the kubelet's to limit.
    for (name, limits) in [
        ("overhead", &linux.overhead),
        ("resources", &linux.resources),
    ] {
        limits::of_pod(&linux_field.member(name), limits.as_ref(), platform)?;
    }
    let security::SandboxSecurity {
        namespaces,
        privileged,
        selinux,
    } = security::sandbox(
        &linux_field.member("security_context"),
        linux.security_context,
        platform,
    )?;
    Ok(SandboxConfig {
        name: metadata(&field.member("metadata"), config.metadata)?,
        hostname: hostname(
            &field.member("hostname"),
            config.hostname,
            namespaces.network,
        )?,
        log_directory: match config.log_directory.as_str() {
            "" => None,
            path => Some(text::absolute_path(&field.member("log_directory"), path)?.into()),
        },
        dns: dns(&field.member("dns_config"), config.dns_config)?,
        port_mappings: port_mappings(&field.member("port_mappings"), &config.port_mappings)?,
        labels: text::opaque_map(&field.member("labels"), config.labels)?,
        annotations: text::opaque_map(&field.member("annotations"), config.annotations)?,
        cgroup_parent: cgroup_parent(&linux_field.member("cgroup_parent"), &linux.cgroup_parent)?,
        sysctls: sysctl::sysctls(
            &linux_field.member("sysctls"),
            linux.sysctls,
            namespaces.network,
            namespaces.ipc,
        )?,
        network: namespaces.network,
        ipc: namespaces.ipc,
        pid: namespaces.pid,
        user_namespace: namespaces.user,
        privileged,
        selinux,
        runtime_handler,
    })
}

fn metadata(field: &Field<'_>, raw: Option<cri::PodSandboxMetadata>) -> Result<PodName, Rejected> {
    let raw = raw.ok_or_else(|| field.must_be_set())?;
    text::name(&field.member("name"), &raw.name)?;
    text::name(&field.member("namespace"), &raw.namespace)?;
    text::name(&field.member("uid"), &raw.uid)?;
    Ok(PodName {
        namespace: raw.namespace,
        name: raw.name,
        uid: raw.uid,
        attempt: raw.attempt,
    })
}

/// A pod with the node's network has the node's name, whatever was sent.
fn hostname(field: &Field<'_>, raw: String, network: Scope) -> Result<Option<String>, Rejected> {
    if raw.is_empty() {
        return Ok(None);
    }
    text::name(field, &raw)?;
    text::at_most(field, raw.len(), MAX_HOSTNAME)?;
    Ok((network == Scope::Pod).then_some(raw))
}

fn dns(field: &Field<'_>, raw: Option<cri::DnsConfig>) -> Result<Option<Dns>, Rejected> {
    let Some(raw) = raw else { return Ok(None) };
    let servers = field.member("servers");
    for (list_field, list) in [
        (&servers, &raw.servers),
        (&field.member("searches"), &raw.searches),
        (&field.member("options"), &raw.options),
    ] {
        text::no_more_than(list_field, list.len(), MAX_DNS_ENTRIES)?;
        for (index, entry) in list.iter().enumerate() {
            text::word(&list_field.index(index), entry)?;
        }
    }
    for (index, server) in raw.servers.iter().enumerate() {
        let (address, _zone) = server.split_once('%').unwrap_or((server, ""));
        if address.parse::<IpAddr>().is_err() {
            return Err(servers
                .index(index)
                .invalid(format_args!("{} is no IP address", Shown(server))));
        }
    }
    let dns = Dns {
        servers: raw.servers,
        searches: raw.searches,
        options: raw.options,
    };
    Ok((dns != Dns::default()).then_some(dns))
}

fn port_mappings(
    field: &Field<'_>,
    raw: &[cri::PortMapping],
) -> Result<Vec<PortMapping>, Rejected> {
    text::no_more_than(field, raw.len(), MAX_PORT_MAPPINGS)?;
    let mut taken = BTreeSet::new();
    let mut mappings = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let entry = field.index(index);
        let Some(mapping) = port_mapping(&entry, raw)? else {
            continue;
        };
        if !taken.insert((raw.protocol, mapping.host_port, mapping.host_ip)) {
            return Err(entry
                .member("host_port")
                .invalid(format_args!("{} is mapped twice", mapping.host_port)));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

/// `None` for a port that is only declared.
fn port_mapping(
    field: &Field<'_>,
    raw: &cri::PortMapping,
) -> Result<Option<PortMapping>, Rejected> {
    let protocol = match cri::Protocol::try_from(raw.protocol) {
        Ok(cri::Protocol::Tcp) => Protocol::Tcp,
        Ok(cri::Protocol::Udp) => Protocol::Udp,
        Ok(cri::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => return Err(unknown(&field.member("protocol"), raw.protocol)),
    };
    let port = |field: &Field<'_>, port: i32| {
        u16::try_from(port).map_err(|_| field.invalid(format_args!("{port} is no port")))
    };
    let host_port = port(&field.member("host_port"), raw.host_port)?;
    let container_field = field.member("container_port");
    let container_port = port(&container_field, raw.container_port)?;
    let host_ip = match raw.host_ip.as_str() {
        "" => None,
        ip => Some(ip.parse::<IpAddr>().map_err(|_| {
            field
                .member("host_ip")
                .invalid(format_args!("{} is no IP address", Shown(ip)))
        })?),
    };
    if host_port == 0 {
        return Ok(None);
    }
    if container_port == 0 {
        return Err(container_field.invalid("0 is no port"));
    }
    Ok(Some(PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip,
    }))
}

fn cgroup_parent(field: &Field<'_>, raw: &str) -> Result<Option<String>, Rejected> {
    if raw.is_empty() {
        return Ok(None);
    }
    if raw.trim_end_matches('/').ends_with(".slice") {
        return Err(field.unsupported(format_args!(
            "{} is in the form of the systemd cgroup driver, which is not supported yet; set the kubelet's cgroupDriver to cgroupfs",
            Shown(raw)
        )));
    }
    text::absolute_path(field, raw).map(Some)
}
