//! What the kernel can do, found by doing it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::{Check, fail, ok, warn};
use crate::apparmor;
use crate::config::Config;
use crate::cri::parse_kernel_version;
use crate::selinux::{Contexts, Kernel, domain_of};
use crate::store::rootfs::Builder;
use crate::userns::UserNamespace;

const MODULE: &str = "security module";

/// The oldest kernel that carpel is for.
const OLDEST: (u32, u32) = (5, 15);

/// The file system of the daemon's durable state matters to some; `daemon` is the pid of one that runs.
pub async fn checks(config: &Config, daemon: Option<i32>) -> Vec<Check> {
    let root = &config.root;
    let mut checks = vec![version()];
    if nix::unistd::geteuid().is_root() {
        match Sandpit::make(root) {
            Ok(sandpit) => {
                checks.push(overlay(&sandpit));
                checks.extend(layers(&sandpit).await);
            }
            Err(error) => checks.push(fail(
                "overlay",
                format!("{}: {error}", root.display()),
                "make the folder writable for root, or choose another root in the configuration",
            )),
        }
    }
    checks.push(seccomp());
    checks.push(match Kernel::detect() {
        Some(kernel) => selinux(&kernel, config.runtime.selinux, daemon),
        None => apparmor(),
    });
    checks
}

fn version() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let (major, minor) = OLDEST;
    match parse_kernel_version(&release) {
        Some(version) if version >= OLDEST => {
            let machine = uname.machine().to_string_lossy().into_owned();
            ok("kernel", format!("Linux {release} {machine}"))
        }
        Some(_) => fail(
            "kernel",
            format!("Linux {release}"),
            format!("carpel needs Linux {major}.{minor} or later"),
        ),
        None => warn(
            "kernel",
            format!("Linux {release}"),
            format!("its version cannot be read; carpel needs {major}.{minor} or later"),
        ),
    }
}

/// A folder on the file system of the daemon's state, with a few in it. It goes with this.
struct Sandpit(PathBuf);

impl Sandpit {
    fn make(root: &Path) -> io::Result<Self> {
        // Before a daemon's first start the folder is not there: its file system is that of one above.
        let base = root
            .ancestors()
            .find(|dir| dir.is_dir())
            .unwrap_or(Path::new("/"));
        let dir = base.join(format!(".carpel-doctor-{}", std::process::id()));
        fs::create_dir(&dir)?;
        let sandpit = Self(dir);
        for name in ["a", "b", "upper", "work"] {
            fs::create_dir(sandpit.folder(name))?;
        }
        Ok(sandpit)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Sandpit {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An overlay of two layers, as each container has one.
fn overlay(sandpit: &Sandpit) -> Check {
    match mount_overlay(sandpit, true) {
        Ok(_) => ok("overlay", "works, layer by layer (lowerdir+)"),
        Err(new) => match mount_overlay(sandpit, false) {
            Ok(_) => ok(
                "overlay",
                "works; no lowerdir+ before Linux 6.8, so paths of layers are joined",
            ),
            Err(_) => fail(
                "overlay",
                format!(
                    "{}: {new}",
                    sandpit.0.parent().unwrap_or(Path::new("/")).display()
                ),
                "load the module overlay, and give carpel a root on ext4, xfs or btrfs: an overlay \
                 cannot lie on another one, as in a container, nor on a network's file system",
            ),
        },
    }
}

/// Mounts an overlay that nobody sees; it goes with the descriptor.
fn mount_overlay(sandpit: &Sandpit, one_by_one: bool) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (a, b) = (sandpit.folder("a"), sandpit.folder("b"));
    if one_by_one {
        fsconfig_set_string(context.as_fd(), "lowerdir+", &a)?;
        fsconfig_set_string(context.as_fd(), "lowerdir+", &b)?;
    } else {
        let both = format!("{}:{}", a.display(), b.display());
        fsconfig_set_string(context.as_fd(), "lowerdir", both)?;
    }
    fsconfig_set_string(context.as_fd(), "upperdir", sandpit.folder("upper"))?;
    fsconfig_set_string(context.as_fd(), "workdir", sandpit.folder("work"))?;
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// User namespaces, and layers and volumes seen through one.
async fn layers(sandpit: &Sandpit) -> Vec<Check> {
    let namespace = match UserNamespace::make() {
        Ok(namespace) => namespace,
        Err(error) => {
            return vec![warn(
                "user namespaces",
                format!("not here: {error}"),
                "pods with hostUsers: false will not start: raise the sysctl user.max_user_namespaces",
            )];
        }
    };
    let mapped = match mapped_overlay(sandpit, &namespace).await {
        Ok(()) => ok(
            "idmapped mounts",
            "work on the file system of carpel's root, and as layers",
        ),
        Err(why) => warn(
            "idmapped mounts",
            format!("not here: {why}"),
            "pods with hostUsers: false will not start: they need Linux 5.19 and ext4, xfs or btrfs \
             below carpel's root",
        ),
    };
    vec![ok("user namespaces", "can be made"), mapped]
}

/// An overlay of a layer that is seen in the namespace's ids, as a container of such a pod has it.
async fn mapped_overlay(sandpit: &Sandpit, namespace: &UserNamespace) -> Result<(), String> {
    let builder = Builder::start().map_err(|error| error.to_string())?;
    let overlay = namespace.overlay(&sandpit.0, "a");
    let overlay = overlay.map_err(|error| error.to_string())?;
    let made = builder.overlay(overlay).await;
    made.map(drop).map_err(|error| crate::error::chain(&error))
}

fn seccomp() -> Check {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("errno") => ok("seccomp", "filters work"),
        _ => fail(
            "seccomp",
            "the kernel has no filters",
            "use a kernel with CONFIG_SECCOMP_FILTER: containers are confined by it",
        ),
    }
}

/// Where there is no SELinux: the kernel enforces one of them at most.
fn apparmor() -> Check {
    match (apparmor::is_enabled(), apparmor::has_parser()) {
        (true, true) => ok(
            MODULE,
            "AppArmor: containers have the profile carpel-default unless they ask for another",
        ),
        (true, false) => warn(
            MODULE,
            "AppArmor, but apparmor_parser is not installed",
            "install it (Debian: apparmor), or load the profile carpel-default by other means: without it containers are unconfined",
        ),
        // Not a shortcoming: the runtime's default is then no profile.
        (false, _) => ok(
            MODULE,
            "none: pods that ask for an AppArmor profile of their own are refused, SELinux labels mean nothing",
        ),
    }
}

fn selinux(kernel: &Kernel, labels: bool, daemon: Option<i32>) -> Check {
    let mode = match kernel.is_enforcing() {
        true => "SELinux, enforcing",
        false => "SELinux, permissive",
    };
    if !labels {
        return warn(
            MODULE,
            format!("{mode}, but runtime.selinux is false"),
            "take it out of the configuration: containers have no labels, and run in carpel's own domain",
        );
    }
    let contexts = match Contexts::read() {
        Ok(contexts) => contexts,
        Err(error) => {
            return warn(
                MODULE,
                format!("{mode}, but its policy has no labels for containers: {error}"),
                "install one (Fedora, RHEL: container-selinux) and restart carpel: containers run in carpel's own domain",
            );
        }
    };
    let process = &contexts.process;
    // The doctor's own domain says nothing about the daemon's.
    let domain = daemon.and_then(|pid| domain_of(&pid.to_string()).ok());
    let refused = |domain: &String| matches!(kernel.may_run_as(domain, process), Ok(false));
    match domain.filter(refused) {
        Some(domain) if kernel.is_enforcing() => fail(
            MODULE,
            format!("{mode}: the daemon, {domain}, may not start containers as {process}"),
            "give carpel's programs the type of a runtime's (container-selinux: semanage fcontext -a -t \
             container_runtime_exec_t PATH, then restorecon PATH) and restart carpel, or set runtime.selinux to false",
        ),
        _ => ok(
            MODULE,
            format!(
                "{mode}: containers are {} unless they ask for another type",
                process.kind()
            ),
        ),
    }
}
