//! Plugins that are installed: started with the daemon, each connected by its standard input.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use futures::future::join_all;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::accept::Launched;
use super::plugin::Identity;
use super::{MOST, Nri};

/// The longest configuration of a plugin.
const MAX_CONFIG: u64 = 1 << 20;

/// Where plugins find programs if the daemon itself was given no PATH.
const FALLBACK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where installed plugins are, and what they are given to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// Programs named NN-name.
    pub plugins: PathBuf,
    /// NN-name.conf, or else name.conf.
    pub config: PathBuf,
}

impl Nri {
    /// Starts what is installed, and waits until each is ready or has failed.
    pub(super) async fn launch(self: &Arc<Self>, folders: &Folders) {
        let programs = match programs(&folders.plugins) {
            Ok(programs) => programs,
            Err(error) => {
                let folder = folders.plugins.display();
                tracing::warn!(%error, "plugins in {folder} are not started");
                return;
            }
        };
        let starts = programs.into_iter().take(MOST).map(|(path, identity)| async move {
            let outcome = match start(folders, &path, identity) {
                Ok((stream, launched)) => self.welcome(stream, Some(launched)).await,
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = outcome {
                tracing::warn!(plugin = %path.display(), why, "an installed plugin is not used");
            }
        });
        join_all(starts).await;
    }
}

/// The programs of a folder, in order. None is fine.
fn programs(folder: &Path) -> io::Result<Vec<(PathBuf, Identity)>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut programs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let executable = path
            .metadata()
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        if !executable {
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        match Identity::of_file(&file) {
            Ok(identity) => programs.push((path, identity)),
            Err(why) => {
                tracing::warn!(plugin = %path.display(), why, "an installed plugin is not used");
            }
        }
    }
    programs.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(programs)
}

fn start(folders: &Folders, path: &Path, identity: Identity) -> io::Result<(UnixStream, Launched)> {
    let config = configuration(&folders.config, &identity)?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let path_variable = std::env::var_os("PATH").unwrap_or_else(|| FALLBACK_PATH.into());
    let process: Child = Command::new(path)
        .env_clear()
        .env("PATH", path_variable)
        .env("NRI_PLUGIN_NAME", &identity.name)
        .env("NRI_PLUGIN_IDX", &identity.index)
        // The number of the descriptor.
        .env("NRI_PLUGIN_SOCKET", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let launched = Launched {
        identity,
        config,
        process,
    };
    Ok((UnixStream::from_std(ours)?, launched))
}

/// The text of a plugin's configuration; empty if there is none.
fn configuration(folder: &Path, identity: &Identity) -> io::Result<String> {
    for name in [identity.to_string(), identity.name.clone()] {
        let path = folder.join(format!("{name}.conf"));
        let failed =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        match path.metadata() {
            Ok(found) if found.len() > MAX_CONFIG => {
                let text = format!("longer than {MAX_CONFIG} bytes");
                return Err(failed(io::Error::other(text)));
            }
            Ok(_) => return std::fs::read_to_string(&path).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(String::new())
}
