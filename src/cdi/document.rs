//! A specification file: what may be in it, and since which version.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use super::name::{check_device, check_kind};
use crate::spec::net_devices;

/// The versions that are known, oldest first.
pub(super) const VERSIONS: [&str; 8] = [
    "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];

pub(super) const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document {
    cdi_version: String,
    pub kind: String,
    #[serde(default, deserialize_with = "or_null")]
    annotations: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    #[serde(default, deserialize_with = "or_null")]
    pub container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub name: String,
    #[serde(default, deserialize_with = "or_null")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_null")]
    pub container_edits: ContainerEdits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct ContainerEdits {
    #[serde(deserialize_with = "or_null")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "or_null")]
    pub mounts: Vec<Mount>,
    #[serde(deserialize_with = "or_null")]
    pub hooks: Vec<Hook>,
    // The specification itself writes it both ways.
    #[serde(alias = "additionalGIDs", deserialize_with = "or_null")]
    pub additional_gids: Vec<u32>,
    #[serde(deserialize_with = "or_null")]
    pub net_devices: Vec<NetDevice>,
    pub intel_rdt: Option<IntelRdt>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub path: String,
    #[serde(default)]
    pub host_path: String,
    #[serde(default, rename = "type")]
    pub typ: String,
    #[serde(default)]
    pub major: i64,
    #[serde(default)]
    pub minor: i64,
    #[serde(default)]
    pub file_mode: Option<u32>,
    #[serde(default)]
    pub permissions: String,
    #[serde(default)]
    pub uid: Option<u32>,
    #[serde(default)]
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default, deserialize_with = "or_null")]
    pub options: Vec<String>,
    #[serde(default, rename = "type")]
    pub typ: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub hook_name: String,
    pub path: String,
    #[serde(default, deserialize_with = "or_null")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "or_null")]
    pub env: Vec<String>,
    #[serde(default)]
    pub timeout: Option<i64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IntelRdt {
    schemata: Option<IgnoredAny>,
    #[serde(default)]
    enable_monitoring: bool,
}

/// `null`, as YAML writes an empty list.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Document {
    /// Reads and checks a file.
    pub fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let json = path
            .extension()
            .is_some_and(|extension| extension == "json");
        let document: Self = if json {
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else {
            serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?
        };
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), String> {
        check_kind(&self.kind).map_err(|why| format!("kind: {:?} {why}", self.kind))?;
        if self.devices.is_empty() {
            return Err("devices: there is none".to_owned());
        }
        let mut names = HashSet::new();
        for (index, device) in self.devices.iter().enumerate() {
            let name = &device.name;
            check_device(name).map_err(|why| format!("devices[{index}].name: {name:?} {why}"))?;
            if !names.insert(name) {
                return Err(format!("devices[{index}].name: {name:?} is there twice"));
            }
            device
                .container_edits
                .check()
                .map_err(|why| format!("devices[{index}].containerEdits.{why}"))?;
        }
        self.container_edits
            .check()
            .map_err(|why| format!("containerEdits.{why}"))?;
        self.check_version()
    }

    fn check_version(&self) -> Result<(), String> {
        let version = self
            .cdi_version
            .strip_prefix('v')
            .unwrap_or(&self.cdi_version);
        let Some(position) = VERSIONS.iter().position(|known| *known == version) else {
            let known = VERSIONS.join(", ");
            return Err(format!(
                "cdiVersion: {:?} is none of {known}",
                self.cdi_version
            ));
        };
        let (needed, what) = self.needed();
        if VERSIONS.iter().position(|known| *known == needed) > Some(position) {
            return Err(format!(
                "cdiVersion: {version} has no {what}, which came with {needed}"
            ));
        }
        Ok(())
    }

    /// The version that this file needs, and what for.
    fn needed(&self) -> (&'static str, &'static str) {
        let all = || {
            let devices = self.devices.iter().map(|device| &device.container_edits);
            devices.chain([&self.container_edits])
        };
        let rdt = |edits: &ContainerEdits, newer: bool| {
            edits
                .intel_rdt
                .as_ref()
                .is_some_and(|rdt| !newer || rdt.schemata.is_some() || rdt.enable_monitoring)
        };
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let annotated = !self.annotations.is_empty()
            || self
                .devices
                .iter()
                .any(|device| !device.annotations.is_empty());
        let digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
        if all().any(|edits| !edits.net_devices.is_empty()) {
            ("1.1.0", "netDevices")
        } else if all().any(|edits| rdt(edits, true)) {
            ("1.1.0", "schemata or enableMonitoring of intelRdt")
        } else if all().any(|edits| rdt(edits, false)) {
            ("0.7.0", "intelRdt")
        } else if all().any(|edits| !edits.additional_gids.is_empty()) {
            ("0.7.0", "additionalGids")
        } else if annotated {
            ("0.6.0", "annotations")
        } else if class.contains('.') {
            ("0.6.0", "dots in a class")
        } else if self.devices.iter().any(digit) {
            ("0.5.0", "names that begin with a digit")
        } else if all().any(|edits| {
            edits
                .device_nodes
                .iter()
                .any(|node| !node.host_path.is_empty())
        }) {
            ("0.5.0", "hostPath of deviceNodes")
        } else if all().any(|edits| edits.mounts.iter().any(|mount| !mount.typ.is_empty())) {
            ("0.4.0", "type of mounts")
        } else {
            (VERSIONS[0], "")
        }
    }
}

impl ContainerEdits {
    /// What is wrong, beginning with the field.
    fn check(&self) -> Result<(), String> {
        variables(&self.env).map_err(|why| format!("env{why}"))?;
        for (index, node) in self.device_nodes.iter().enumerate() {
            node.check()
                .map_err(|why| format!("deviceNodes[{index}].{why}"))?;
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            mount
                .check()
                .map_err(|why| format!("mounts[{index}].{why}"))?;
        }
        for (index, hook) in self.hooks.iter().enumerate() {
            hook.check()
                .map_err(|why| format!("hooks[{index}].{why}"))?;
        }
        for (index, device) in self.net_devices.iter().enumerate() {
            let fields = [
                ("hostInterfaceName", &device.host_interface_name),
                ("name", &device.name),
            ];
            for (field, name) in fields {
                net_devices::check_name(name)
                    .map_err(|why| format!("netDevices[{index}].{field}: {name:?} {why}"))?;
            }
        }
        Ok(())
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        absolute(&self.path).map_err(|why| format!("path: {why}"))?;
        if !self.host_path.is_empty() {
            absolute(&self.host_path).map_err(|why| format!("hostPath: {why}"))?;
        }
        if !matches!(self.typ.as_str(), "" | "b" | "c" | "u" | "p") {
            return Err(format!("type: {:?} is none of b, c, u, p", self.typ));
        }
        let permissions = &self.permissions;
        if permissions != "none" && !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(format!(
                "permissions: {permissions:?} is neither \"none\" nor of r, w, m"
            ));
        }
        Ok(())
    }
}

impl Mount {
    fn check(&self) -> Result<(), String> {
        if self.host_path.is_empty() {
            return Err("hostPath: is empty".to_owned());
        }
        if self.host_path.contains('\0') || self.options.iter().any(|option| option.contains('\0'))
        {
            return Err("holds a NUL byte".to_owned());
        }
        absolute(&self.container_path).map_err(|why| format!("containerPath: {why}"))
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        if !HOOKS.contains(&self.hook_name.as_str()) {
            return Err(format!(
                "hookName: {:?} is none of {}",
                self.hook_name,
                HOOKS.join(", ")
            ));
        }
        absolute(&self.path).map_err(|why| format!("path: {why}"))?;
        if self.args.iter().any(|argument| argument.contains('\0')) {
            return Err("args: holds a NUL byte".to_owned());
        }
        if self.timeout.is_some_and(|timeout| timeout <= 0) {
            return Err("timeout: must be greater than 0".to_owned());
        }
        variables(&self.env).map_err(|why| format!("env{why}"))
    }
}

fn variables(list: &[String]) -> Result<(), String> {
    for (index, variable) in list.iter().enumerate() {
        let named = variable.find('=').is_some_and(|position| position > 0);
        if !named || variable.contains('\0') {
            return Err(format!(
                "[{index}]: {variable:?} is not of the form \"NAME=value\""
            ));
        }
    }
    Ok(())
}

fn absolute(path: &str) -> Result<(), String> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(format!("{path:?} is not absolute"))
    }
}
