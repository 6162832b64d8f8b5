//! Every field of every request: which value of it is refused and how, or why none can be wrong. The list of
//! fields is the interface's own, so that a field that comes to it comes to this table.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const NOT_SERVED: &str = "the call is refused whole";

/// Calls that have no validator: they take nothing that matters, or are not served.
const UNCHECKED: [(&str, &str); 8] = [
    ("CheckpointContainerRequest", NOT_SERVED),
    ("CheckpointPodRequest", NOT_SERVED),
    ("RestorePodRequest", NOT_SERVED),
    (
        "UpdatePodSandboxResourcesRequest",
        "judged by its own validator, if served",
    ),
    ("VersionRequest", "the client's version is for the log"),
    ("StatusRequest", "on or off"),
    // Read by the client of a registry, which checks its own answers.
    ("ImageFsInfoRequest", "empty"),
    ("RuntimeConfigRequest", "empty"),
];

type Sandbox = cri::PodSandboxConfig;
type Container = cri::ContainerConfig;

fn pod(change: impl FnOnce(&mut Sandbox)) -> Option<Rejected> {
    sandbox(change, PLATFORM).err()
}

fn pod_linux(change: impl FnOnce(&mut cri::LinuxPodSandboxConfig)) -> Option<Rejected> {
    pod(|config| change(config.linux.get_or_insert_default()))
}

fn pod_context(change: SandboxChange) -> Option<Rejected> {
    sandbox_security(change).err()
}

fn app(change: impl FnOnce(&mut Container)) -> Option<Rejected> {
    container(change, PLATFORM).err()
}

fn context(change: ContainerChange) -> Option<Rejected> {
    container_security(change, PLATFORM).err()
}

fn on_selinux(change: impl FnOnce(&mut cri::SeLinuxOption)) -> Option<Rejected> {
    let linux = |config: &mut Container| {
        let linux = config.linux.get_or_insert_default();
        let context = linux.security_context.get_or_insert_default();
        change(context.selinux_options.get_or_insert_default());
    };
    container(linux, PLATFORM).err()
}

fn limits(change: impl FnOnce(&mut cri::LinuxContainerResources)) -> Option<Rejected> {
    app(|config| {
        let linux = config.linux.get_or_insert_default();
        change(linux.resources.get_or_insert_default());
    })
}

fn image_mount(sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: "/a".into(),
        readonly: true,
        image: Some(cri::ImageSpec {
            image: "b".into(),
            ..Default::default()
        }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

fn mount(change: impl FnOnce(&mut cri::Mount)) -> Option<Rejected> {
    let mut mount = cri::Mount {
        container_path: "/a".into(),
        host_path: "/b".into(),
        ..Default::default()
    };
    change(&mut mount);
    app(|config| config.mounts = vec![mount])
}

fn device(change: impl FnOnce(&mut cri::Device)) -> Option<Rejected> {
    let mut device = cri::Device {
        container_path: "/dev/a".into(),
        host_path: "/dev/b".into(),
        permissions: "r".into(),
    };
    change(&mut device);
    app(|config| config.devices = vec![device])
}

fn port(change: impl FnOnce(&mut cri::PortMapping)) -> Option<Rejected> {
    let mut port = cri::PortMapping {
        container_port: 80,
        host_port: 80,
        ..Default::default()
    };
    change(&mut port);
    pod(|config| config.port_mappings = vec![port])
}

fn dns(change: impl FnOnce(&mut cri::DnsConfig)) -> Option<Rejected> {
    pod(|config| change(config.dns_config.get_or_insert_default()))
}

fn env(key: &str, value: &[u8]) -> Option<Rejected> {
    let (key, value) = (key.to_owned(), value.to_vec());
    app(|config| config.envs = vec![cri::KeyValue { key, value }])
}

fn userns(change: impl FnOnce(&mut cri::UserNamespace)) -> Option<Rejected> {
    pod_linux(|linux| {
        let context = linux.security_context.get_or_insert_default();
        let options = context.namespace_options.get_or_insert_default();
        change(options.userns_options.get_or_insert_default());
    })
}

/// A mapping that no user namespace takes, whether carpel makes them or not.
fn mapping(change: impl FnOnce(&mut cri::IdMapping)) -> Option<Rejected> {
    let mut mapping = cri::IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65_536,
    };
    change(&mut mapping);
    userns(|userns| (userns.uids, userns.gids) = (vec![mapping], vec![mapping]))
}

fn image(change: impl FnOnce(&mut cri::ImageSpec)) -> Option<Rejected> {
    let mut image = cri::ImageSpec {
        image: "localhost/a:1".into(),
        ..Default::default()
    };
    change(&mut image);
    image_name(Some(image)).err()
}

fn auth(change: impl FnOnce(&mut cri::AuthConfig)) -> Option<Rejected> {
    let mut auth = cri::AuthConfig::default();
    change(&mut auth);
    let image = Some(cri::ImageSpec {
        image: "localhost/a:1".into(),
        ..Default::default()
    });
    let request = cri::PullImageRequest {
        image,
        auth: Some(auth),
        sandbox_config: None,
    };
    pull_image(request).err()
}

fn big() -> BTreeMap<String, String> {
    [("a".into(), "x".repeat(2 << 20))].into()
}

fn value(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

const NO_ID: &str = "../x";

mod table;

/// The fields of the messages that requests hold, as the interface's files say them: message, field, type.
fn interface() -> Vec<(String, String, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/cri");
    let mut fields = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the interface's folder") {
        let file = entry.expect("a file of the interface").path();
        let text = std::fs::read_to_string(file).expect("a file of the interface");
        let mut open: Vec<Option<String>> = Vec::new();
        for line in text.lines() {
            let line = line.split("//").next().unwrap_or_default().trim();
            if line.ends_with('{') {
                let name = line.strip_prefix("message ");
                open.push(name.map(|name| name.trim_end_matches('{').trim().to_owned()));
            } else if line.starts_with('}') {
                open.pop();
            } else if let (Some(Some(message)), Some((head, _))) =
                (open.last(), line.split_once(" = "))
                && let Some((kind, name)) = head.rsplit_once(' ')
            {
                let kind = kind
                    .trim_start_matches("repeated ")
                    .trim_start_matches("optional ");
                fields.push((message.clone(), name.to_owned(), kind.to_owned()));
            }
        }
    }
    fields
}

/// Messages that are one value, or that are refused whole.
fn is_leaf(kind: &str) -> bool {
    kind == "Int64Value" || kind.ends_with("StateValue") || kind.starts_with("Windows")
}

#[test]
fn every_field_of_every_request_has_a_rule() {
    let fields = interface();
    let is_message =
        |kind: &str| !is_leaf(kind) && fields.iter().any(|(message, ..)| message == kind);
    let unchecked = |message: &str| UNCHECKED.iter().any(|(name, _)| *name == message);
    let mut wanted: Vec<&str> = fields
        .iter()
        .map(|(message, ..)| message.as_str())
        .filter(|message| message.ends_with("Request") && !unchecked(message))
        .collect();
    let mut seen = BTreeSet::new();
    let mut leaves = BTreeSet::new();
    while let Some(message) = wanted.pop() {
        if !seen.insert(message) {
            continue;
        }
        for (_, name, kind) in fields.iter().filter(|(of, ..)| of == message) {
            if is_message(kind) {
                wanted.push(kind);
            } else {
                leaves.insert(format!("{message}.{name}"));
            }
        }
    }
    let bad = table::RULES.iter().map(|(field, ..)| *field);
    let free = table::FREE.iter().map(|(field, _)| *field);
    let ruled: BTreeSet<String> = bad.chain(free).map(str::to_owned).collect();
    let without: Vec<_> = leaves.difference(&ruled).collect();
    assert!(without.is_empty(), "fields without a rule: {without:#?}");
    let gone: Vec<_> = ruled.difference(&leaves).collect();
    assert!(gone.is_empty(), "rules of no field: {gone:#?}");
    assert!(leaves.len() > 100, "{} fields", leaves.len());
}

#[test]
fn a_bad_value_is_refused_by_the_fields_name() {
    for (field, reason) in table::FREE {
        println!("{field}: no bad value: {reason}");
    }
    let mut wrong = Vec::new();
    for (field, attempt, named) in table::RULES {
        let named = named.replace("CTX", "config.linux.security_context");
        let Some(rejected) = attempt() else {
            wrong.push(format!("{field}: accepted"));
            continue;
        };
        let code = match rejected {
            Rejected::Invalid(_) => "INVALID_ARGUMENT",
            Rejected::Unsupported(_) => "UNIMPLEMENTED",
        };
        println!("{field}: {code}: {rejected}");
        if !rejected.to_string().starts_with(&named) {
            wrong.push(format!(
                "{field}: {rejected:?} does not begin with {named:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
