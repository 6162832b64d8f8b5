//! What an overlay is mounted of, and the mount itself.

use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, open_tree,
    unmount,
};

use super::Failure;
use super::mapped::Mapped;

/// An overlay's folders, opened in the builder's namespace.
pub(super) struct Parts {
    /// The bottom one first.
    pub(super) layers: Vec<OwnedFd>,
    /// `None`: nothing can be written.
    pub(super) top: Option<Top>,
    /// The SELinux label of all that is in it.
    pub(super) label: Option<String>,
}

pub(super) struct Top {
    pub(super) upper: OwnedFd,
    pub(super) work: OwnedFd,
    pub(super) volatile: bool,
}

impl Parts {
    pub(super) fn with_layers(self, mapped: &Mapped) -> Result<Self, Failure> {
        Ok(Self {
            layers: mapped.layers()?,
            ..self
        })
    }

    /// The names of the layers, the top one first, as the kernel wants them.
    fn lower(&self) -> Vec<String> {
        let mut names: Vec<String> = self.layers.iter().rev().map(name).collect();
        // There must be one, and two where there is no upper folder.
        let least = if self.top.is_some() { 1 } else { 2 };
        let missing = least - least.min(names.len());
        names.extend(
            ["/empty", "/none"]
                .map(String::from)
                .into_iter()
                .take(missing),
        );
        names
    }

    pub(super) fn mount_layer_by_layer(&self) -> Result<OwnedFd, Failure> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|e| Failure::mount("fsopen", e))?;
        let set = |key: &'static str, value: &str| {
            fsconfig_set_string(context.as_fd(), key, value)
                .map_err(|error| Failure::context(&context, key, error))
        };
        for layer in self.lower() {
            set("lowerdir+", &layer)?;
        }
        if let Some(top) = &self.top {
            set("upperdir", &name(&top.upper))?;
            set("workdir", &name(&top.work))?;
            set("index", "off")?;
            if top.volatile {
                fsconfig_set_flag(context.as_fd(), "volatile")
                    .map_err(|error| Failure::context(&context, "volatile", error))?;
            }
        }
        if let Some(label) = &self.label {
            set("context", label)?;
        }
        fsconfig_create(context.as_fd())
            .map_err(|error| Failure::context(&context, "create", error))?;
        fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .map_err(|error| Failure::context(&context, "fsmount", error))
    }

    /// As above for kernels before 6.8: mounted in this namespace, cloned out of it, unmounted here.
    pub(super) fn mount_one_string(&self) -> Result<OwnedFd, Failure> {
        let mut options = format!("lowerdir={}", self.lower().join(":"));
        if let Some(top) = &self.top {
            let (upper, work) = (name(&top.upper), name(&top.work));
            // Writing to a String never fails.
            let _ = write!(options, ",upperdir={upper},workdir={work},index=off");
            if top.volatile {
                options.push_str(",volatile");
            }
        }
        if let Some(label) = &self.label {
            // There are commas in it.
            let _ = write!(options, ",context=\"{label}\"");
        }
        let options = std::ffi::CString::new(options)
            .map_err(|_| Failure::mount("mount", rustix::io::Errno::INVAL))?;
        mount(
            "overlay",
            "/overlay",
            "overlay",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .map_err(|error| Failure::mount("mount", error))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root =
            open_tree(CWD, "/overlay", flags).map_err(|error| Failure::mount("open_tree", error));
        unmount("/overlay", UnmountFlags::DETACH)
            .map_err(|error| Failure::mount("umount", error))?;
        root
    }
}

/// How a folder is named to the kernel.
pub(super) fn name(folder: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", folder.as_raw_fd())
}

impl Failure {
    pub(super) fn mount(call: &'static str, error: rustix::io::Errno) -> Self {
        Self::Mount(call, String::new(), error.into())
    }

    /// With the messages that the kernel kept in the file system context.
    pub(super) fn context(context: &OwnedFd, call: &'static str, error: rustix::io::Errno) -> Self {
        let mut detail = String::new();
        let mut message = [0; 512];
        while let Ok(length @ 1..) = rustix::io::read(context, &mut message) {
            let text = String::from_utf8_lossy(&message[..length]);
            // "e " is an error, "w " a warning.
            let text = text
                .trim_end()
                .trim_start_matches("e ")
                .trim_start_matches("w ");
            let _ = write!(detail, ": {text}");
            if detail.len() > 2048 {
                break;
            }
        }
        Self::Mount(call, detail, error.into())
    }
}
