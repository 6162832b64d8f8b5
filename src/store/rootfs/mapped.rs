//! Layers seen through a user namespace: each is cloned, and the clone is given the namespace's ids.
//!
//! The clones are attached in the builder's namespace while an overlay is made of them, because before Linux
//! 6.15 the kernel takes no layer from a detached mount. The overlay has clones of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, mkdirat, unlinkat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::Failure;
use super::anchor::Place;
use crate::sys::{MountAttr, mount_setattr};

/// The layers of one overlay, the bottom one first. Dropped, they are detached.
pub(super) struct Mapped(Vec<Layer>);

struct Layer {
    mount: OwnedFd,
    point: Option<String>,
}

impl Mapped {
    /// `places` are where `layers` lie.
    pub fn of(layers: &[OwnedFd], places: &[Place], namespace: &OwnedFd) -> Result<Self, Failure> {
        let mut mapped = Self(Vec::with_capacity(layers.len()));
        for (number, (layer, place)) in layers.iter().zip(places).enumerate() {
            let mount = clone_with_ids(layer, namespace)
                .map_err(|error| Failure::Map(place.path.clone(), error))?;
            mapped.0.push(Layer { mount, point: None });
            let point = format!("/mapped-{number}");
            mkdirat(CWD, &point, Mode::from_raw_mode(0o700))
                .map_err(|error| Failure::mount("map: mkdir", error))?;
            let layer = mapped.0.last_mut().expect("it was just added");
            let point = layer.point.insert(point);
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&layer.mount, "", CWD, point.as_str(), flags)
                .map_err(|error| Failure::mount("map: move_mount", error))?;
        }
        Ok(mapped)
    }

    pub fn layers(&self) -> Result<Vec<OwnedFd>, Failure> {
        let clone = |layer: &Layer| layer.mount.try_clone();
        let layers = self.0.iter().map(clone).collect::<io::Result<_>>();
        layers.map_err(|error| Failure::Mount("map: dup", String::new(), error))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for point in self.0.iter().filter_map(|layer| layer.point.as_deref()) {
            // What is in the way stays in sight of the next overlay, which says so.
            let _ = unmount(point, UnmountFlags::DETACH);
            let _ = unlinkat(CWD, point, AtFlags::REMOVEDIR);
        }
    }
}

fn clone_with_ids(layer: &OwnedFd, namespace: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(layer, "", flags)?;
    let ids = MountAttr {
        idmap: Some(namespace.as_fd()),
        ..MountAttr::default()
    };
    mount_setattr(mount.as_fd(), false, &ids)?;
    Ok(mount)
}
