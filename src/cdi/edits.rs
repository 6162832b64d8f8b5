//! What specifications want of a container, laid over its OCI spec.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{Hook as OciHook, LinuxDevice, LinuxDeviceType, Spec};

use super::Error;
use super::document::{ContainerEdits, DeviceNode, Hook, Mount, NetDevice};
use crate::spec::{devices, hooks, mounts, net_devices};

/// The edits of some devices, in the order in which they are made.
#[derive(Debug, Default)]
pub struct Edits {
    env: Vec<String>,
    nodes: Vec<DeviceNode>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    groups: Vec<u32>,
    net_devices: Vec<NetDevice>,
}

impl Edits {
    pub(super) fn add(&mut self, path: &Path, edits: &ContainerEdits) -> Result<(), Error> {
        if edits.intel_rdt.is_some() {
            return Err(Error::Unsupported {
                path: path.to_owned(),
                what: rdt(),
            });
        }
        self.env.extend(edits.env.iter().cloned());
        self.nodes.extend(edits.device_nodes.iter().cloned());
        self.mounts.extend(edits.mounts.iter().cloned());
        self.hooks.extend(edits.hooks.iter().cloned());
        self.groups.extend(&edits.additional_gids);
        self.net_devices.extend(edits.net_devices.iter().cloned());
        Ok(())
    }

    /// Makes the edits.
    ///
    /// # Errors
    /// [`Error::Edit`] for what is not on this node, or cannot be in a container.
    pub fn apply(&self, spec: &mut Spec) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        self.set_variables(spec);
        self.add_nodes(spec)?;
        self.add_mounts(spec)?;
        for hook in &self.hooks {
            hooks::push(spec, &hook.hook_name, oci_hook(hook));
        }
        self.add_groups(spec);
        for device in &self.net_devices {
            net_devices::add(spec, &device.host_interface_name, &device.name)
                .map_err(Error::Edit)?;
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.nodes.is_empty()
            && self.mounts.is_empty()
            && self.hooks.is_empty()
            && self.groups.is_empty()
            && self.net_devices.is_empty()
    }

    fn set_variables(&self, spec: &mut Spec) {
        let Some(process) = spec.process_mut() else {
            return;
        };
        let mut env = process.env().clone().unwrap_or_default();
        for variable in &self.env {
            let name = &variable[..=variable.find('=').unwrap_or(variable.len() - 1)];
            match env.iter_mut().find(|known| known.starts_with(name)) {
                Some(known) => known.clone_from(variable),
                None => env.push(variable.clone()),
            }
        }
        process.set_env(Some(env));
    }

    fn add_groups(&self, spec: &mut Spec) {
        let Some(process) = spec.process_mut() else {
            return;
        };
        let mut user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        for &group in self.groups.iter().filter(|&&group| group != 0) {
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        user.set_additional_gids(Some(groups));
        process.set_user(user);
    }

    fn add_nodes(&self, spec: &mut Spec) -> Result<(), Error> {
        let owner = spec.process().as_ref().map_or((0, 0), |process| {
            (process.user().uid(), process.user().gid())
        });
        for wanted in &self.nodes {
            let node = node(wanted, owner)?;
            let access = match wanted.permissions.as_str() {
                "" => "rwm",
                "none" => "",
                permissions => permissions,
            };
            let host = if wanted.host_path.is_empty() {
                &wanted.path
            } else {
                &wanted.host_path
            };
            devices::add(spec, node, Path::new(host), access).map_err(Error::Edit)?;
        }
        Ok(())
    }

    fn add_mounts(&self, spec: &mut Spec) -> Result<(), Error> {
        if self.mounts.is_empty() {
            return Ok(());
        }
        let mut all = spec.mounts().clone().unwrap_or_default();
        for wanted in &self.mounts {
            let (source, target) = (&wanted.host_path, &wanted.container_path);
            let mount = mounts::extra(target, &wanted.typ, source, &wanted.options);
            mounts::replace(&mut all, mount.map_err(Error::Edit)?);
        }
        spec.set_mounts(Some(all));
        Ok(())
    }
}

/// Why no class of Intel's resource director can be had.
fn rdt() -> &'static str {
    const RESCTRL: &str = "/sys/fs/resctrl/schemata";
    if Path::new(RESCTRL).exists() {
        "intelRdt, which carpel cannot do"
    } else {
        "intelRdt, and resctrl is not mounted on /sys/fs/resctrl: this machine has no such classes"
    }
}

fn oci_hook(hook: &Hook) -> OciHook {
    let mut oci = OciHook::default();
    oci.set_path(hook.path.clone().into())
        .set_timeout(hook.timeout);
    // By what is not there a runtime sees that there are no arguments, not even the program's name.
    if !hook.args.is_empty() {
        oci.set_args(Some(hook.args.clone()));
    }
    if !hook.env.is_empty() {
        oci.set_env(Some(hook.env.clone()));
    }
    oci
}

/// The node, with what its specification leaves out taken from the host's.
fn node(wanted: &DeviceNode, (uid, gid): (u32, u32)) -> Result<LinuxDevice, Error> {
    let host = if wanted.host_path.is_empty() {
        &wanted.path
    } else {
        &wanted.host_path
    };
    let refuse = |why: &str| Error::Edit(format!("device node {}: {why}", wanted.path));
    let path = mounts::normal(&wanted.path).ok_or_else(|| refuse("not a path below the root"))?;
    let found = found(host);
    let whole = !wanted.typ.is_empty() && (wanted.major != 0 || wanted.typ == "p");
    let (typ, major, minor) = match (&found, whole) {
        (_, true) => {
            let typ = match wanted.typ.as_str() {
                "b" => LinuxDeviceType::B,
                "p" => LinuxDeviceType::P,
                _ => LinuxDeviceType::C,
            };
            (typ, wanted.major, wanted.minor)
        }
        (Err(why), false) => return Err(refuse(&format!("host path {host}: {why}"))),
        (Ok(found), false) => {
            let typ = found.typ.as_str();
            let said = if wanted.typ == "u" { "c" } else { &wanted.typ };
            if !said.is_empty() && said != typ {
                return Err(refuse(&format!(
                    "host path {host} is of type {typ}, not {said}"
                )));
            }
            let (major, minor) = match wanted.major {
                0 => (found.major, found.minor),
                major => (major, wanted.minor),
            };
            (found.typ, major, minor)
        }
    };
    let mut node = LinuxDevice::default();
    node.set_path(path.into())
        .set_typ(typ)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(wanted.file_mode.or(found.ok().map(|found| found.mode)))
        .set_uid(Some(wanted.uid.unwrap_or(uid)))
        .set_gid(Some(wanted.gid.unwrap_or(gid)));
    Ok(node)
}

struct Found {
    typ: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: u32,
}

fn found(host: &str) -> Result<Found, String> {
    let metadata = fs::symlink_metadata(host).map_err(|error| error.to_string())?;
    let kind = metadata.file_type();
    let typ = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() {
        LinuxDeviceType::B
    } else if kind.is_fifo() {
        LinuxDeviceType::P
    } else {
        return Err("not a device node".to_owned());
    };
    let device = metadata.rdev();
    Ok(Found {
        typ,
        major: libc::major(device).into(),
        minor: libc::minor(device).into(),
        mode: metadata.mode() & 0o7777,
    })
}
