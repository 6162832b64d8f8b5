//! Folders and files of sandboxes and containers.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::spec::config::UserNamespace;

/// Makes a folder that only root may enter, with its parents. One that is there is fine.
///
/// # Errors
/// As `mkdir(2)`.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the folder that a container sees as "/": owner and mode are those of the image's own, whatever
/// our umask, as an overlay shows its upper folder's; in a pod with a user namespace the owner is who has that
/// number there.
///
/// # Errors
/// As `mkdir(2)`, `chown(2)`, `chmod(2)`.
pub(crate) fn make_root_dir(
    path: &Path,
    top_layer: Option<&Path>,
    user: Option<UserNamespace>,
) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(path)?;
    let (mut mode, mut uid, mut gid) = (0o755, 0, 0);
    if let Some(layer) = top_layer {
        let root = std::fs::metadata(layer)?;
        (mode, uid, gid) = (root.mode() & 0o7777, root.uid(), root.gid());
    }
    if let Some(user) = user {
        uid = user.uids.to_host(uid).unwrap_or(user.uids.host);
        gid = user.gids.to_host(gid).unwrap_or(user.gids.host);
    }
    std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Removes a folder and all that is in it. Missing is fine.
///
/// # Errors
/// As `unlink(2)`.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    crate::store::remove_tree::remove_tree(path)
}

/// Removes all that is in a folder, except one file. A missing folder is fine.
///
/// # Errors
/// As `unlink(2)`.
pub(crate) fn remove_entries_but(dir: &Path, kept: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        if path != kept {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Bytes in a JSON record.
pub(crate) mod base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(D::Error::custom)
    }
}
