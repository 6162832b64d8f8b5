//! What hooks of a pod with a user namespace see: the host as it is, but for what its root, who is nobody there, could
//! not pass on the way to the bundle.

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchown, mkdirat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

use crate::spec::config::UserNamespace;
use crate::spec::hooks::ROOTFS;
use crate::sys::{MountAttr, mount_setattr};

/// What of a bundle's path has to be covered: the first folder that is not everybody's to pass, or the bundle.
pub(in crate::container) fn cover(bundle: &Path) -> PathBuf {
    let everybodys = |metadata: Metadata| metadata.mode() & 0o1 != 0;
    let mut way: Vec<&Path> = bundle.ancestors().collect();
    way.reverse();
    way.into_iter()
        .find(|path| *path == bundle || !path.metadata().is_ok_and(everybodys))
        .unwrap_or(bundle)
        .to_owned()
}

/// The mounts of the host, detached, with its root as theirs. What the host mounts later arrives there, and nothing
/// goes the other way.
pub(super) fn host_mounts() -> io::Result<OwnedFd> {
    // In a namespace of the thread's own: what the kernel copies for that leaves out mount namespaces that are bound
    // somewhere, which could not be attached anywhere later.
    let copy = || -> io::Result<OwnedFd> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let mounts = open_tree(CWD, "/", flags)?;
        let slaves = MountAttr {
            propagation: libc::MS_SLAVE,
            ..MountAttr::default()
        };
        mount_setattr(mounts.as_fd(), true, &slaves)?;
        Ok(mounts)
    };
    let thread = std::thread::Builder::new().name("host-mounts".to_owned());
    let copied = thread.spawn(copy)?.join();
    copied.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// A file system for `cover` with the bundle in it, owned by the root of the pod's user namespace.
pub(super) fn covered(
    bundle: &Path,
    cover: &Path,
    config: &[u8],
    user: UserNamespace,
) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("mode", "0755"), ("size", "16m"), ("nr_inodes", "1k")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let give = |file: &OwnedFd| {
        let (uid, gid) = (user.uids.host, user.gids.host);
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
    };
    let mut folder = mount.try_clone()?;
    let below = bundle.strip_prefix(cover).map_err(io::Error::other)?;
    for name in below {
        folder = make_folder(&folder, name.as_ref())?;
    }
    give(&folder)?;
    give(&make_folder(&folder, ROOTFS.as_ref())?)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(&folder, "config.json", flags, Mode::from_raw_mode(0o644))?;
    give(&file)?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, config)?;
    Ok(mount)
}

fn make_folder(parent: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_folder_that_is_not_everybodys_is_covered() {
        // Wherever the tests' folder lies, everybody may pass until there.
        let folder = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in("/tmp")
            .unwrap();
        let bundle = folder.path().join("a/bundles/id");
        fs::create_dir_all(&bundle).unwrap();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        set(&bundle, 0o700);
        assert_eq!(cover(&bundle), bundle);
        set(&folder.path().join("a"), 0o710);
        assert_eq!(cover(&bundle), folder.path().join("a"));
        // What is not there yet will be made as nobody else's.
        assert_eq!(cover(&folder.path().join("b/c")), folder.path().join("b"));
    }
}
