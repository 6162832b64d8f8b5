//! The daemon's claim on its folders and its socket: one daemon for each of them.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::config::Endpoint;

/// The lock on a root folder, held while this lives. It goes with the process, however that ends.
#[derive(Debug)]
pub struct RootLock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Makes `dir` if need be and closes it to everybody but its owner.
pub fn private_dir(dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o700)))
        .with_context(|| format!("folder {}", dir.display()))
}

/// Takes the lock of the root folder `root`.
///
/// # Errors
/// Another daemon holds it: its pid is in the text.
pub fn lock_root(root: &Path) -> anyhow::Result<RootLock> {
    let path = root.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("lock file {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| writeln!(file, "{}", std::process::id()))
                .with_context(|| format!("lock file {}", path.display()))?;
            Ok(RootLock(file))
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            // Without a pid the message is poorer, not wrong.
            let _ = file.read_to_string(&mut pid);
            bail!(
                "another carpel (pid {}) serves the root {}; stop it, or choose another folder with --root",
                pid.trim(),
                root.display()
            )
        }
        Err((_, errno)) => {
            Err(std::io::Error::from(errno)).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// Binds the socket. A socket file that nobody listens on any more is replaced.
///
/// # Errors
/// Somebody listens there, or something else is in the way.
pub fn bind(endpoint: &Endpoint) -> anyhow::Result<UnixListener> {
    let path = endpoint.path();
    if let Some(dir) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("folder {}", dir.display()))?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            bail!("{} is in the way: it is no socket", path.display());
        }
        match UnixStream::connect(path) {
            Ok(_) => bail!(
                "{endpoint} is in use by another process; stop it, or choose another with --listen"
            ),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)
                    .with_context(|| format!("stale socket {}", path.display()))?;
            }
            Err(error) => return Err(error).with_context(|| format!("socket {endpoint}")),
        }
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {endpoint}"))?;
    // The process's umask has made it so already, unless a caller changed it.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .with_context(|| format!("socket {endpoint}"))?;
    listener.set_nonblocking(true).context("socket")?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_root(dir.path()).unwrap();
        let error = lock_root(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
        drop(held);
        lock_root(dir.path()).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = format!("unix://{}/s/x.sock", dir.path().display())
            .parse()
            .unwrap();
        drop(bind(&endpoint).unwrap());
        let listener = bind(&endpoint).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(endpoint.path()), 0o600);
        assert_eq!(mode(endpoint.path().parent().unwrap()), 0o700);
        let error = bind(&endpoint).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(listener);
        std::fs::remove_file(endpoint.path()).unwrap();
        std::fs::write(endpoint.path(), "").unwrap();
        let error = bind(&endpoint).unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
    }
}
