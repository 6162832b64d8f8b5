//! The device nodes of a container: those that every container has, those that the request names, and for
//! a privileged one those of the host.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use super::config::Device;
use super::{mounts, oci};

/// The nodes that every container has: name, minor. All are of major 1, but tty (5:0), mode 0666.
const DEFAULT: [(&str, i64, i64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// What of a /dev belongs to its own container and not to another: not folders of devices.
const FOLDERS_PASSED_OVER: [&str; 7] =
    ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// How deep a folder of devices is walked.
const DEPTH: usize = 16;

/// The most devices that a container gets.
const MOST: usize = 4096;

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("device {path}: {source}", path = .path.display())]
    Stat { path: PathBuf, source: io::Error },
    #[error("device {}: not a device node", .0.display())]
    NoDevice(PathBuf),
    #[error("device {}: more than {MOST} device nodes", .0.display())]
    TooMany(PathBuf),
}

/// The nodes of a container, and what its cgroup allows beyond the runtime's own list.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub nodes: Vec<LinuxDevice>,
    /// By a node's path, the path on the host of the one that it is like.
    pub sources: HashMap<PathBuf, PathBuf>,
    pub rules: Vec<LinuxDeviceCgroup>,
}

/// A later node takes the place of an earlier one at the same path.
///
/// In a user namespace nobody is the host's root, or in its groups. So there a privileged container gets of
/// the host's devices those that everybody may use.
pub(super) fn build(
    wanted: &[Device],
    privileged: bool,
    in_user_namespace: bool,
) -> Result<Devices, Error> {
    let mut devices = Devices::default();
    for (path, major, minor) in DEFAULT {
        let default = node(
            path.into(),
            LinuxDeviceType::C,
            (major, minor),
            0o666,
            (0, 0),
        );
        devices.add(default, Path::new(path));
    }
    if privileged {
        let dev = Path::new("/dev");
        devices.walk(dev, dev, dev, None, 0)?;
        if in_user_namespace {
            let open_to_all = |node: &LinuxDevice| node.file_mode().unwrap_or(0) & 0o006 != 0;
            devices.nodes.retain(open_to_all);
        }
        devices.rules.push(rule(true, None, None, "rwm"));
    } else {
        devices.rules.push(rule(false, None, None, "rwm"));
    }
    for device in wanted {
        // Links lead to the device that is meant: /dev/disk/by-id.
        let host = fs::canonicalize(&device.host_path).map_err(|source| Error::Stat {
            path: device.host_path.clone(),
            source,
        })?;
        let container = if device.container_path.is_empty() {
            &device.host_path
        } else {
            Path::new(&device.container_path)
        };
        let permissions = Some(device.permissions.as_str());
        let metadata = fs::symlink_metadata(&host).map_err(|source| Error::Stat {
            path: host.clone(),
            source,
        })?;
        if metadata.is_dir() {
            devices.walk(&device.host_path, &host, container, permissions, 0)?;
        } else {
            let node = from_metadata(container, &metadata)
                .ok_or_else(|| Error::NoDevice(device.host_path.clone()))?;
            devices.add_with_rule(node, &host, permissions);
        }
    }
    Ok(devices)
}

/// Gives a spec one more node, in the place of one at the same path, and lets it be used.
///
/// # Errors
/// In a user namespace nobody makes nodes: the host's is bound, and `host` is not that one.
pub(crate) fn add(
    spec: &mut Spec,
    node: LinuxDevice,
    host: &Path,
    access: &str,
) -> Result<(), String> {
    if oci::in_user_namespace(spec) && node.typ() != LinuxDeviceType::P {
        let found = fs::metadata(host)
            .ok()
            .and_then(|found| from_metadata(host, &found));
        let same = found.is_some_and(|found| {
            let number = |node: &LinuxDevice| (node.typ(), node.major(), node.minor());
            number(&found) == number(&node)
        });
        if !same {
            return Err(format!(
                "device node {}: in a pod with a user namespace it is the host's, and {} is not that device",
                node.path().display(),
                host.display()
            ));
        }
        let path = node.path().to_string_lossy();
        let bound = mounts::device(&path, host);
        let mut all = spec.mounts().clone().unwrap_or_default();
        mounts::replace(&mut all, bound);
        spec.set_mounts(Some(all));
    }
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    let mut nodes = linux.devices().clone().unwrap_or_default();
    nodes.retain(|known| known.path() != node.path());
    let (typ, number) = (node.typ(), (node.major(), node.minor()));
    nodes.push(node);
    linux.set_devices(Some(nodes));
    if typ != LinuxDeviceType::P && !access.is_empty() {
        add_rule(spec, rule(true, Some(typ), Some(number), access));
    }
    Ok(())
}

/// Adds a rule of the devices that may be used; a later one counts more.
pub(crate) fn add_rule(spec: &mut Spec, rule: LinuxDeviceCgroup) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
}

/// Takes the node at a path out of a spec. What may be used stays as it is.
pub(crate) fn remove(spec: &mut Spec, path: &Path) {
    let bound =
        |mount: &oci_spec::runtime::Mount| mount.destination() == path && path.starts_with("/dev");
    if let Some(linux) = spec.linux_mut() {
        let mut nodes = linux.devices().clone().unwrap_or_default();
        nodes.retain(|known| known.path() != path);
        linux.set_devices(Some(nodes));
    }
    if oci::in_user_namespace(spec) {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.retain(|mount| !bound(mount));
        spec.set_mounts(Some(mounts));
    }
}

impl Devices {
    fn add(&mut self, node: LinuxDevice, host: &Path) {
        self.sources.insert(node.path().clone(), host.to_owned());
        self.nodes.retain(|known| known.path() != node.path());
        self.nodes.push(node);
    }

    fn add_with_rule(&mut self, node: LinuxDevice, host: &Path, permissions: Option<&str>) {
        if let Some(permissions) = permissions
            && node.typ() != LinuxDeviceType::P
        {
            let number = Some((node.major(), node.minor()));
            self.rules
                .push(rule(true, Some(node.typ()), number, permissions));
        }
        self.add(node, host);
    }

    /// Adds every device below a folder. What is no device is passed over, links too.
    fn walk(
        &mut self,
        object: &Path,
        host: &Path,
        container: &Path,
        permissions: Option<&str>,
        depth: usize,
    ) -> Result<(), Error> {
        let failed = |source| Error::Stat {
            path: host.to_owned(),
            source,
        };
        for entry in fs::read_dir(host).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            // One that has just gone is no device.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let inside = container.join(&name);
            if metadata.is_dir() {
                let passed_over = FOLDERS_PASSED_OVER.iter().any(|folder| name == *folder);
                if !passed_over && depth < DEPTH {
                    self.walk(object, &entry.path(), &inside, permissions, depth + 1)?;
                }
            } else if name != "console"
                && let Some(node) = from_metadata(&inside, &metadata)
            {
                self.add_with_rule(node, &entry.path(), permissions);
                if self.nodes.len() > MOST {
                    return Err(Error::TooMany(object.to_owned()));
                }
            }
        }
        Ok(())
    }
}

/// The node that is like what was found on the host; `None` if that is no device.
fn from_metadata(path: &Path, metadata: &fs::Metadata) -> Option<LinuxDevice> {
    let kind = metadata.file_type();
    let typ = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() {
        LinuxDeviceType::B
    } else if kind.is_fifo() {
        LinuxDeviceType::P
    } else {
        return None;
    };
    let device = metadata.rdev();
    let number = (
        i64::from(libc::major(device)),
        i64::from(libc::minor(device)),
    );
    let owner = (metadata.uid(), metadata.gid());
    Some(node(
        path.to_owned(),
        typ,
        number,
        metadata.mode() & 0o7777,
        owner,
    ))
}

fn node(
    path: PathBuf,
    typ: LinuxDeviceType,
    (major, minor): (i64, i64),
    mode: u32,
    (uid, gid): (u32, u32),
) -> LinuxDevice {
    let mut node = LinuxDevice::default();
    node.set_path(path)
        .set_typ(typ)
        .set_major(major)
        .set_minor(minor);
    node.set_file_mode(Some(mode))
        .set_uid(Some(uid))
        .set_gid(Some(gid));
    node
}

fn rule(
    allow: bool,
    typ: Option<LinuxDeviceType>,
    number: Option<(i64, i64)>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(typ)
        .set_access(Some(access.to_owned()));
    rule.set_major(number.map(|(major, _)| major))
        .set_minor(number.map(|(_, minor)| minor));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &Path, container: &str) -> Device {
        Device {
            container_path: container.into(),
            host_path: host.into(),
            permissions: "rw".into(),
        }
    }

    fn find<'a>(devices: &'a Devices, path: &str) -> Option<&'a LinuxDevice> {
        devices
            .nodes
            .iter()
            .find(|node| node.path() == Path::new(path))
    }

    #[test]
    fn the_host_says_what_a_device_is() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("link")).unwrap();
        let wanted = [
            device(&folder.path().join("link"), "/dev/mine"),
            device(Path::new("/dev/full"), "/dev/null"),
        ];
        let devices = build(&wanted, false, false).unwrap();
        let mine = find(&devices, "/dev/mine").unwrap();
        assert_eq!(
            (mine.typ(), mine.major(), mine.minor()),
            (LinuxDeviceType::C, 1, 5)
        );
        assert_eq!(find(&devices, "/dev/null").unwrap().minor(), 7);
        assert_eq!(devices.nodes.len(), 7);
        let rules: Vec<_> = devices
            .rules
            .iter()
            .map(|rule| (rule.allow(), rule.minor()))
            .collect();
        assert_eq!(rules, [(false, None), (true, Some(5)), (true, Some(7))]);
    }

    #[test]
    fn a_folder_of_devices_is_walked() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::create_dir(folder.path().join("pts")).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let fifo = |name: &str| {
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
            nix::unistd::mkfifo(&folder.path().join(name), mode).unwrap();
        };
        fifo("a/b/one");
        fifo("pts/two");
        fifo("console");
        let devices = build(&[device(folder.path(), "/dev/set")], false, false).unwrap();
        assert_eq!(devices.nodes.len(), 7);
        assert_eq!(
            find(&devices, "/dev/set/a/b/one").unwrap().typ(),
            LinuxDeviceType::P
        );
    }

    #[test]
    fn what_is_no_device_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = build(&[device(file.path(), "/dev/x")], false, false)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            format!("device {}: not a device node", file.path().display())
        );
        let error = build(
            &[device(Path::new("/dev/none-such"), "/dev/x")],
            false,
            false,
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("device /dev/none-such: No such file"),
            "{error}"
        );
    }

    #[test]
    fn a_privileged_container_has_the_hosts_devices() {
        let devices = build(&[], true, false).unwrap();
        assert!(find(&devices, "/dev/null").is_some());
        assert!(find(&devices, "/dev/console").is_none());
        assert!(
            !devices
                .nodes
                .iter()
                .any(|node| node.path().starts_with("/dev/pts"))
        );
        assert!(devices.rules[0].allow());
    }

    #[test]
    fn in_a_user_namespace_it_has_those_that_everybody_may_use() {
        let devices = build(&[], true, true).unwrap();
        assert_eq!(
            devices.sources[Path::new("/dev/null")],
            Path::new("/dev/null")
        );
        let modes = devices.nodes.iter().map(|node| node.file_mode().unwrap());
        assert!(modes.clone().count() >= DEFAULT.len());
        assert!(modes.into_iter().all(|mode| mode & 0o006 != 0));
    }
}
