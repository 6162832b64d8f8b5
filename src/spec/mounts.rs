//! The mounts of a container, in the order in which they are made.
//!
//! First the file systems that every container has, then everything that is mounted from the host:
//! /dev/shm and the files in /etc, the image's volumes, and last the request's own, all of these sorted
//! so that a folder comes before what lies in it. The request's mounts take the place of defaults at the
//! same path; one on /dev takes the place of all below it.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount as OciMount;
use rustix::fs::{PROC_SUPER_MAGIC, statfs};

use super::config::{Mount, MountSource, Propagation, Scope};
use super::devices::Devices;
use super::host::CgroupLayout;
use super::oci::{ContainerInput, Error, ImageVolume};

/// The source of the pod's /dev/shm, which is mounted in the supervisor's namespace only. It is relative,
/// so that no path of the host is ever taken for it.
pub const POD_SHM: &str = "pod:/dev/shm";

/// The source of an image's volume: the image's own directory at that path, which stays writable under a
/// read-only root. It is relative, as [`POD_SHM`].
pub const IMAGE_VOLUME: &str = "image:volume";

/// The source of the pod's /sys, where it is the host's network that it shows: a user namespace cannot mount it
/// anew. It is in the supervisor's namespace, and relative, as [`POD_SHM`].
pub const POD_SYS: &str = "pod:/sys";

/// The group that terminals belong to.
pub const TTY: u32 = 5;

/// Files of a procfs that may have something mounted over them, as lxcfs does. Anything else would let a
/// container fake what is below /proc.
const MOUNTABLE_IN_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// A path without ".", ".." and doubled slashes. `None` if it is not absolute, or leads above the root or
/// to it.
pub(crate) fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.strip_prefix('/')?.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty() && !path.contains('\0')).then(|| format!("/{}", parts.join("/")))
}

pub(super) fn build(input: &ContainerInput<'_>) -> Result<Vec<OciMount>, Error> {
    let requested = &input.config.mounts;
    for mount in requested {
        let source = match &mount.source {
            MountSource::Host(path) => path,
            MountSource::Image { .. } => Path::new(IMAGE_VOLUME),
        };
        check(&mount.container_path, source)?;
    }
    let volumes = super::oci::image_volumes(input.image, input.config);
    for path in &volumes {
        check(path, Path::new(IMAGE_VOLUME))?;
    }
    let covered = |path: &str| requested.iter().any(|mount| mount.container_path == path);
    let dev_covered = covered("/dev");
    let mut mounts: Vec<OciMount> = defaults(input)
        .into_iter()
        .filter(|mount| {
            let path = mount.destination();
            let in_dev = path.starts_with("/dev") && path != Path::new("/dev");
            let replaced = path.to_str().is_some_and(covered) || dev_covered && in_dev;
            !replaced
        })
        .collect();
    let mut from_host: Vec<OciMount> = Vec::new();
    if !covered("/dev/shm") {
        from_host.push(shm(input));
    }
    for (path, source) in [
        ("/etc/hosts", &input.files.hosts),
        ("/etc/hostname", &input.files.hostname),
        ("/etc/resolv.conf", &input.files.resolv_conf),
    ] {
        if !covered(path) {
            let readonly = input.config.security.readonly_rootfs;
            let access = if readonly { "ro" } else { "rw" };
            let file = mount(path, "bind", source, &["rbind", "rprivate", access]);
            from_host.push(mapped(input, file));
        }
    }
    for path in &volumes {
        from_host.push(mount(path, "bind", IMAGE_VOLUME, &["bind", "rprivate"]));
    }
    let mut images = input.image_volumes.iter();
    for mount in requested {
        let made = from_request(mount, &mut images)?;
        // An image's layers are mapped one by one.
        from_host.push(match mount.source {
            MountSource::Host(_) => mapped(input, made),
            MountSource::Image { .. } => made,
        });
    }
    // Stable: of two at one path the later one lies on top.
    from_host.sort_by_key(|mount| mount.destination().components().count());
    mounts.append(&mut from_host);
    Ok(mounts)
}

/// A mount that no request asks for, but the description of a device, say.
///
/// # Errors
/// Why it cannot be in a container.
pub(crate) fn extra(
    destination: &str,
    typ: &str,
    source: &str,
    options: &[String],
) -> Result<OciMount, String> {
    let refuse = |why: &str| Err(format!("mount on {destination}: {why}"));
    let Some(path) = normal(destination) else {
        return refuse("not a path below the root");
    };
    let host = Path::new(source);
    check(&path, host).map_err(|error| error.to_string())?;
    let is_bind = |option: &String| option == "bind" || option == "rbind";
    let bind = typ == "bind" || options.iter().any(is_bind);
    if bind {
        if let Err(error) = std::fs::metadata(host) {
            return refuse(&format!("host path {source}: {error}"));
        }
        if !host.is_absolute() {
            return refuse("its host path is not absolute");
        }
    } else if typ.is_empty() {
        return refuse("neither a type nor a bind mount");
    }
    let mut mount = OciMount::default();
    mount
        .set_destination(path.into())
        .set_typ(Some(if bind { "bind" } else { typ }.to_owned()))
        .set_source(Some(host.to_owned()))
        .set_options(Some(options.to_vec()));
    Ok(mount)
}

/// Takes a mount in, in the place of those at the same path.
pub(crate) fn replace(all: &mut Vec<OciMount>, mount: OciMount) {
    all.retain(|known| known.destination() != mount.destination());
    all.push(mount);
    // Stable: a folder comes before what lies in it, and all else stays in its order.
    all.sort_by_key(|mount| mount.destination().components().count());
}

/// What may be mounted where.
pub(crate) fn check(path: &str, source: &Path) -> Result<(), Error> {
    let refuse = |reason| {
        Err(Error::Mount {
            path: path.to_owned(),
            reason,
        })
    };
    if normal(path).as_deref() != Some(path) {
        return refuse("not the absolute and normal path of something below the root");
    }
    if path == "/proc" {
        let procfs = statfs(source).is_ok_and(|found| found.f_type == PROC_SUPER_MAGIC);
        if !procfs {
            return refuse("only a proc file system can be mounted there");
        }
    } else if path.starts_with("/proc/") && !MOUNTABLE_IN_PROC.contains(&path) {
        return refuse("inside /proc nothing can be mounted");
    }
    Ok(())
}

fn mount(path: &str, typ: &str, source: impl Into<PathBuf>, options: &[&str]) -> OciMount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    let mut mount = OciMount::default();
    mount
        .set_destination(path.into())
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options));
    mount
}

fn defaults(input: &ContainerInput<'_>) -> Vec<OciMount> {
    let privileged = input.config.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    // The group of terminals, if there is one.
    let user = input.sandbox.user_namespace;
    let tty = user.is_none_or(|user| user.gids.to_host(TTY).is_some());
    let mut pts_options = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    pts_options.extend(tty.then_some("gid=5"));
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount("/dev/pts", "devpts", "devpts", &pts_options),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        sysfs(input, access),
    ];
    let cgroup_options = ["nosuid", "noexec", "nodev", "relatime", access];
    // Without a namespace of its own it sees all cgroups. The host's mount is bound, because a new mount
    // from the first cgroup namespace would reset the options of the whole hierarchy.
    // In a user namespace it could not write to any other's.
    if privileged && user.is_none() && input.host.cgroups == CgroupLayout::V2 {
        mounts.push(mount(
            "/sys/fs/cgroup",
            "bind",
            "/sys/fs/cgroup",
            &["rbind", "rprivate"],
        ));
    } else {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup_options));
    }
    mounts
}

fn sysfs(input: &ContainerInput<'_>, access: &str) -> OciMount {
    let options = ["nosuid", "noexec", "nodev", access];
    if input.sandbox.user_namespace.is_some() && input.sandbox.network == Scope::Node {
        return mount("/sys", "bind", POD_SYS, &options);
    }
    mount("/sys", "sysfs", "sysfs", &options)
}

/// In a pod with a user namespace, what comes from the host is seen in its ids.
fn mapped(input: &ContainerInput<'_>, mut mount: OciMount) -> OciMount {
    if input.sandbox.user_namespace.is_some() {
        let mut options = mount.options().clone().unwrap_or_default();
        options.push("ridmap".to_owned());
        mount.set_options(Some(options));
    }
    mount
}

/// The nodes of devices, where a container may make none: those of the host, unless something else is
/// mounted there.
pub(super) fn bind_devices(mounts: &mut Vec<OciMount>, devices: &Devices) {
    let on = |path: &Path| mounts.iter().any(|mount| mount.destination() == path);
    let dev_is_bound = mounts.iter().any(|mount| {
        mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("bind")
    });
    if dev_is_bound {
        return;
    }
    let nodes = devices.nodes.iter().map(|node| node.path());
    let bound: Vec<OciMount> = nodes
        .filter(|path| !on(path))
        .filter_map(|path| Some((path, devices.sources.get(path)?)))
        .map(|(path, source)| device(&path.to_string_lossy(), source))
        .collect();
    mounts.extend(bound);
}

/// A node of the host's.
pub(super) fn device(path: &str, source: &Path) -> OciMount {
    mount(path, "bind", source, &["rbind", "rprivate"])
}

fn shm(input: &ContainerInput<'_>) -> OciMount {
    let source = if input.sandbox.ipc == Scope::Pod {
        POD_SHM
    } else {
        "/dev/shm"
    };
    mount("/dev/shm", "bind", source, &["rbind", "rprivate"])
}

fn from_request<'a>(
    request: &Mount,
    images: &mut impl Iterator<Item = &'a ImageVolume>,
) -> Result<OciMount, Error> {
    let source = match &request.source {
        MountSource::Host(path) => path.clone(),
        MountSource::Image { .. } => match images.next() {
            Some(image) => image.source(),
            None => {
                return Err(Error::Mount {
                    path: request.container_path.clone(),
                    reason: "its image was not looked up",
                });
            }
        },
    };
    let access = match (request.readonly, request.recursive_readonly) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let propagation = match request.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let mut options = vec!["rbind", propagation, access];
    options.extend(request.options.iter().map(String::as_str));
    Ok(mount(&request.container_path, "bind", source, &options))
}
