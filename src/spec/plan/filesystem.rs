//! The steps that make a container's file system.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use carpel_wire::{FdIndex, NulList, Step, encode_nul_list};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Mount, Spec};

use super::compose::{Composer, terminated};
use super::{CgroupLayout, Error, FdSource, HostFacts, Source, hooks, process};
use crate::spec::config::Propagation;
use crate::spec::host::CgroupHierarchy;
use crate::spec::mounts::{IMAGE_VOLUME, POD_SHM, POD_SYS};
use crate::store::bind::BindMount;

/// The slot of a file system on its way from NewFs to Attach, and that of the pod's /dev/shm.
const NEW: FdIndex = FdIndex(FdIndex::FIRST_SLOT);
const SHM: FdIndex = FdIndex(FdIndex::FIRST_SLOT + 1);
/// Those of a procfs and a sysfs in a user namespace, which may be mounted only while others are in sight.
const PROC: FdIndex = FdIndex(FdIndex::FIRST_SLOT + 2);
const SYS: FdIndex = FdIndex(FdIndex::FIRST_SLOT + 3);

/// MOUNT_ATTR__ATIME: the bits that say one of several ways.
const ATIME_MASK: u64 = 0x70;

const SYMLINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

pub(super) fn compose(
    composer: &mut Composer,
    source: &Source,
    host: &HostFacts,
) -> Result<(), Error> {
    let spec = &source.spec;
    let linux = spec.linux().as_ref().ok_or(Error::Missing("linux"))?;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let process = process(source)?;
    let tty = process.terminal().unwrap_or(false);
    let pod_shm = |mount: &Mount| mount.source().as_deref() == Some(Path::new(POD_SHM));
    if mounts.iter().any(pod_shm) {
        let path = terminated("/dev/shm")?;
        let attrs = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let step = Step::OpenTree {
            path: &path,
            recursive: false,
            attrs,
            slot: SHM,
        };
        composer.step("open the pod's /dev/shm", &step);
    }
    let in_user_namespace = source.in_user_namespace();
    if in_user_namespace {
        prepare(composer, mounts)?;
    }
    let root = composer.fd(FdSource::Rootfs);
    hooks::enter(composer, source, root)?;
    let mut images = HashSet::new();
    for mount in mounts {
        if pod_shm(mount) {
            attach(
                composer,
                "the pod's /dev/shm",
                SHM,
                mount.destination(),
                true,
            )?;
        } else if let Some(slot) = prepared(mount).filter(|_| in_user_namespace) {
            let what = mount.typ().as_deref().unwrap_or_default();
            attach(composer, what, slot, mount.destination(), true)?;
        } else if tty && mount.typ().as_deref() == Some("devpts") {
            let devpts = composer.fd(FdSource::Devpts);
            attach(composer, "devpts", devpts, mount.destination(), true)?;
        } else if mount.source().as_deref() == Some(Path::new(IMAGE_VOLUME)) {
            image_volume(composer, mount.destination())?;
        } else if let Some(volume) = image_index(source, mount, &mut images) {
            mounted_image(composer, mount, volume)?;
        } else if mount.typ().as_deref() == Some("cgroup") {
            cgroup(composer, mount, linux, host)?;
        } else {
            compose_mount(composer, mount, source.mount_label())?;
        }
    }
    let dev_is_bound = mounts
        .iter()
        .any(|mount| mount.destination() == Path::new("/dev") && is_bind(mount));
    if !dev_is_bound {
        devices(composer, linux, mounts)?;
        if tty {
            composer.step(
                "bind the terminal on /dev/console",
                &Step::Console { number: 0 },
            );
        }
    }
    let path = terminated(process.cwd())?;
    let text = format!("make working directory {:?}", process.cwd());
    composer.step(
        text,
        &Step::Mkdir {
            path: &path,
            mode: 0o755,
        },
    );
    hooks::leave(composer, source)?;
    hide(composer, linux)?;
    protect_root(composer, spec);
    Ok(())
}

/// Which of the container's image volumes a mount is. Each is used once.
fn image_index(source: &Source, mount: &Mount, used: &mut HashSet<usize>) -> Option<usize> {
    let mut volumes = source.image_volumes.iter().enumerate();
    let (index, _) = volumes.find(|(index, volume)| {
        volume.container_path == *mount.destination()
            && Some(volume.source()) == *mount.source()
            && !used.contains(index)
    })?;
    used.insert(index);
    Some(index)
}

/// Where a mount waits that is made, or copied from the supervisor's, before the supervisor's root is left.
fn prepared(mount: &Mount) -> Option<FdIndex> {
    let pod_sys = mount.source().as_deref() == Some(Path::new(POD_SYS));
    match mount.typ().as_deref() {
        Some("proc") => Some(PROC),
        Some("sysfs") => Some(SYS),
        _ if pod_sys => Some(SYS),
        _ => None,
    }
}

fn prepare(composer: &mut Composer, mounts: &[Mount]) -> Result<(), Error> {
    for mount in mounts {
        let Some(slot) = prepared(mount) else {
            continue;
        };
        let options = Options::parse(mount)?;
        let target = mount.destination();
        if mount.source().as_deref() == Some(Path::new(POD_SYS)) {
            let path = terminated("/sys")?;
            let step = Step::OpenTree {
                path: &path,
                recursive: false,
                attrs: options.attrs,
                slot,
            };
            composer.step("open the pod's /sys", &step);
        } else {
            let typ = mount.typ().as_deref().unwrap_or_default();
            new_fs_in(composer, typ, &options.data, options.attrs, target, slot)?;
        }
    }
    Ok(())
}

fn is_bind(mount: &Mount) -> bool {
    let bind = |option: &String| option == "bind" || option == "rbind";
    mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(bind)
}

/// What a mount's options mean.
#[derive(Debug)]
struct Options {
    attrs: u64,
    /// Those of what is mounted below it, too.
    recursive_attrs: u64,
    /// A bind mount of the mount alone.
    shallow: bool,
    propagation: Propagation,
    /// Seen in the ids of the user namespace.
    mapped: bool,
    /// For the file system itself: "key", "value", and an empty value for a flag.
    data: Vec<String>,
}

impl Options {
    fn parse(mount: &Mount) -> Result<Self, Error> {
        let mut options = Self {
            attrs: 0,
            recursive_attrs: 0,
            shallow: false,
            propagation: Propagation::Private,
            mapped: false,
            data: Vec::new(),
        };
        for option in mount.options().iter().flatten() {
            match option.as_str() {
                "idmap" | "ridmap" => options.mapped = true,
                "defaults" | "rbind" | "rw" | "suid" | "dev" | "exec" | "relatime" | "atime" => {}
                "ro" => options.attrs |= libc::MOUNT_ATTR_RDONLY,
                "rro" => options.recursive_attrs |= libc::MOUNT_ATTR_RDONLY,
                "rnosuid" => options.recursive_attrs |= libc::MOUNT_ATTR_NOSUID,
                "rnodev" => options.recursive_attrs |= libc::MOUNT_ATTR_NODEV,
                "rnoexec" => options.recursive_attrs |= libc::MOUNT_ATTR_NOEXEC,
                "nosuid" => options.attrs |= libc::MOUNT_ATTR_NOSUID,
                "nodev" => options.attrs |= libc::MOUNT_ATTR_NODEV,
                "noexec" => options.attrs |= libc::MOUNT_ATTR_NOEXEC,
                // The last word counts: the kernel takes one.
                "noatime" => options.attrs = options.attrs & !ATIME_MASK | libc::MOUNT_ATTR_NOATIME,
                "strictatime" => {
                    options.attrs = options.attrs & !ATIME_MASK | libc::MOUNT_ATTR_STRICTATIME;
                }
                "nodiratime" => options.attrs |= libc::MOUNT_ATTR_NODIRATIME,
                "nosymfollow" => options.attrs |= libc::MOUNT_ATTR_NOSYMFOLLOW,
                "private" | "rprivate" => options.propagation = Propagation::Private,
                "slave" | "rslave" => options.propagation = Propagation::HostToContainer,
                "shared" | "rshared" => options.propagation = Propagation::Bidirectional,
                "bind" => options.shallow = true,
                "unbindable" | "runbindable" | "tmpcopyup" | "remount" => {
                    return Err(Error::Mount {
                        path: mount.destination().display().to_string(),
                        reason: format!("option {option:?} is not supported"),
                    });
                }
                data => {
                    let (key, value) = data.split_once('=').unwrap_or((data, ""));
                    options.data.extend([key.to_owned(), value.to_owned()]);
                }
            }
        }
        Ok(options)
    }
}

fn compose_mount(composer: &mut Composer, mount: &Mount, label: Option<&str>) -> Result<(), Error> {
    let mut options = Options::parse(mount)?;
    let target = mount.destination();
    if !is_bind(mount) {
        let typ = mount.typ().as_deref().ok_or_else(|| Error::Mount {
            path: target.display().to_string(),
            reason: "neither a type nor a bind mount".to_owned(),
        })?;
        options.data.extend(context(typ, label));
        new_fs(composer, typ, &options.data, options.attrs, target)?;
        return attach(composer, typ, NEW, target, true);
    }
    if let Some(key) = options.data.first() {
        return Err(Error::Mount {
            path: target.display().to_string(),
            reason: format!("a bind mount has no option {key:?}"),
        });
    }
    let bind = BindMount {
        source: mount.source().clone().unwrap_or_default(),
        // "rbind" beside it says more.
        recursive: !options.shallow || mount.options().iter().flatten().any(|o| o == "rbind"),
        attrs: options.attrs,
        recursive_attrs: options.recursive_attrs,
        propagation: options.propagation,
        mapped: options.mapped,
    };
    // Where a link would lead the container's own protection astray.
    let protected = ["/proc", "/sys", "/dev"]
        .iter()
        .any(|path| target == Path::new(path));
    bind_mount(composer, bind, target, protected)
}

/// The option that labels what is in a file system, for those that are made for a container alone and hold what it puts there.
/// The kernel's own (proc, sysfs, cgroup2) have their labels from the policy.
fn context(typ: &str, label: Option<&str>) -> Vec<String> {
    match label {
        Some(label) if ["tmpfs", "devpts"].contains(&typ) => {
            vec!["context".to_owned(), label.to_owned()]
        }
        _ => Vec::new(),
    }
}

/// Of an image there is one mount, which nothing else is mounted below.
fn mounted_image(composer: &mut Composer, mount: &Mount, volume: usize) -> Result<(), Error> {
    let options = Options::parse(mount)?;
    let what = format!("{:?}", mount.source().clone().unwrap_or_default());
    let attrs = options.attrs | options.recursive_attrs;
    let mounted = composer.fd(FdSource::Image {
        volume,
        attrs: attrs | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
    });
    attach(composer, &what, mounted, mount.destination(), false)
}

fn bind_mount(
    composer: &mut Composer,
    bind: BindMount,
    target: &Path,
    no_symlinks: bool,
) -> Result<(), Error> {
    let what = format!("{:?}", bind.source);
    let mount = composer.fd(FdSource::Mount(bind));
    attach(composer, &what, mount, target, no_symlinks)
}

fn new_fs(
    composer: &mut Composer,
    typ: &str,
    data: &[String],
    attrs: u64,
    target: &Path,
) -> Result<(), Error> {
    new_fs_in(composer, typ, data, attrs, target, NEW)
}

fn new_fs_in(
    composer: &mut Composer,
    typ: &str,
    data: &[String],
    attrs: u64,
    target: &Path,
    slot: FdIndex,
) -> Result<(), Error> {
    let options = encode_nul_list(data).map_err(|option| Error::Nul(option.clone()))?;
    let options = NulList::new(&options).expect("an encoded list ends with a NUL");
    let fstype = terminated(typ)?;
    let step = Step::NewFs {
        fstype: &fstype,
        options,
        attrs,
        slot,
    };
    composer.step(format!("make {typ} for {target:?}"), &step);
    Ok(())
}

fn attach(
    composer: &mut Composer,
    what: &str,
    mount: FdIndex,
    target: &Path,
    no_symlinks: bool,
) -> Result<(), Error> {
    let path = terminated(target)?;
    let step = Step::Attach {
        mount,
        target: &path,
        no_symlinks,
    };
    composer.step(format!("mount {what} on {target:?}"), &step);
    Ok(())
}

/// A mount of its own of what the image has there, with contents and owners: so it stays writable where
/// the root is not.
fn image_volume(composer: &mut Composer, path: &Path) -> Result<(), Error> {
    let target = terminated(path)?;
    let step = Step::Volume { path: &target };
    composer.step(format!("mount the image's volume {path:?}"), &step);
    Ok(())
}

/// v2: the container's own cgroup is the root of what it sees, by its cgroup namespace. v1: a folder with
/// its cgroup of each hierarchy.
fn cgroup(
    composer: &mut Composer,
    mount: &Mount,
    linux: &Linux,
    host: &HostFacts,
) -> Result<(), Error> {
    let options = Options::parse(mount)?;
    let target = mount.destination();
    let hierarchies = match &host.cgroups {
        CgroupLayout::V2 => {
            new_fs(composer, "cgroup2", &options.data, options.attrs, target)?;
            return attach(composer, "cgroup2", NEW, target, true);
        }
        CgroupLayout::V1(hierarchies) => hierarchies,
    };
    let readonly = options.attrs & libc::MOUNT_ATTR_RDONLY;
    let data = ["mode", "0755", "size", "64k"].map(String::from);
    let mut data = data.to_vec();
    data.extend(context("tmpfs", linux.mount_label().as_deref()));
    new_fs(composer, "tmpfs", &data, options.attrs & !readonly, target)?;
    attach(composer, "tmpfs", NEW, target, true)?;
    let path = linux.cgroups_path().as_deref().unwrap_or(Path::new("/"));
    for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.is_shown()) {
        show(composer, hierarchy, path, target, readonly != 0)?;
    }
    if readonly != 0 {
        let path = terminated(target)?;
        let step = Step::SetAttr {
            path: &path,
            set: readonly,
            clear: 0,
            recursive: false,
        };
        composer.step(format!("make {target:?} read-only"), &step);
    }
    Ok(())
}

/// Binds a container's cgroup of one hierarchy, with links from the names of its controllers.
fn show(
    composer: &mut Composer,
    hierarchy: &CgroupHierarchy,
    cgroup: &Path,
    target: &Path,
    readonly: bool,
) -> Result<(), Error> {
    let Some(name) = hierarchy.mounted_on.file_name() else {
        return Ok(());
    };
    let bind = BindMount {
        source: hierarchy
            .mounted_on
            .join(cgroup.strip_prefix("/").unwrap_or(cgroup)),
        recursive: true,
        attrs: if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 },
        recursive_attrs: 0,
        propagation: Propagation::Private,
        mapped: false,
    };
    bind_mount(composer, bind, &target.join(name), true)?;
    for controller in hierarchy
        .controllers
        .split(',')
        .filter(|controller| name != *controller)
    {
        let (path, to) = (terminated(target.join(controller))?, terminated(name)?);
        let step = Step::Symlink {
            target: &to,
            path: &path,
        };
        composer.step(format!("link {:?}", target.join(controller)), &step);
    }
    Ok(())
}

fn devices(composer: &mut Composer, linux: &Linux, mounts: &[Mount]) -> Result<(), Error> {
    for device in linux.devices().iter().flatten() {
        let path = device.path();
        // The terminal's nodes are this container's own, and what is mounted stays in sight.
        let own = path == Path::new("/dev/ptmx") || path == Path::new("/dev/console");
        if !own && !mounts.iter().any(|mount| mount.destination() == path) {
            node(composer, device)?;
        }
    }
    for (path, target) in SYMLINKS {
        let (to, link) = (terminated(target)?, terminated(path)?);
        composer.step(
            format!("link {path:?}"),
            &Step::Symlink {
                target: &to,
                path: &link,
            },
        );
    }
    Ok(())
}

fn node(composer: &mut Composer, device: &LinuxDevice) -> Result<(), Error> {
    let invalid = |reason: &str| Error::Mount {
        path: device.path().display().to_string(),
        reason: reason.to_owned(),
    };
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(invalid("a device node has a type")),
    };
    let number =
        |number: i64| u32::try_from(number).map_err(|_| invalid("a device number is out of range"));
    let path = terminated(device.path())?;
    let step = Step::Mknod {
        path: &path,
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        major: number(device.major())?,
        minor: number(device.minor())?,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    };
    composer.step(format!("make device {:?}", device.path()), &step);
    Ok(())
}

/// What is read-only first: a bind of a path over itself would uncover what is hidden below it.
fn hide(composer: &mut Composer, linux: &Linux) -> Result<(), Error> {
    let normal = |path: &String| terminated(PathBuf::from(path));
    for path in linux.readonly_paths().iter().flatten() {
        let step = Step::ReadOnly {
            path: &normal(path)?,
        };
        composer.step(format!("make {path:?} read-only"), &step);
    }
    let masked = linux.masked_paths().as_deref().unwrap_or_default();
    if let Some(label) = linux
        .mount_label()
        .as_deref()
        .filter(|_| !masked.is_empty())
    {
        let step = Step::MaskLabel {
            label: &terminated(label)?,
        };
        composer.step(format!("mask with SELinux label {label:?}"), &step);
    }
    for path in masked {
        let step = Step::Mask {
            path: &normal(path)?,
        };
        composer.step(format!("mask {path:?}"), &step);
    }
    Ok(())
}

/// Last of all, when nothing has to be made in it any more.
fn protect_root(composer: &mut Composer, spec: &Spec) {
    let readonly = spec
        .root()
        .as_ref()
        .and_then(|root| root.readonly())
        .unwrap_or(false);
    if readonly {
        let set = libc::MOUNT_ATTR_RDONLY;
        let step = Step::SetAttr {
            path: b"/\0",
            set,
            clear: 0,
            recursive: false,
        };
        composer.step("make the root file system read-only", &step);
    }
}
