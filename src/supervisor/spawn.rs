//! Starting a supervisor and making it the pod's.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::client::{REPLY_TIMEOUT, Supervisor};
use super::socket;
use crate::ids::SandboxId;
use crate::store::memfd;

/// The supervisor's program in a sealed memfd.
///
/// Containers are cloned from it, so for a moment it is what their /proc/PID/exe shows: sealed, it can
/// never be written to from inside one (CVE-2019-5736). It also stays the same while the file on disk
/// is being upgraded.
#[derive(Debug, Clone)]
pub struct Binary(Arc<OwnedFd>);

impl Binary {
    /// Reads the program at `path`.
    ///
    /// # Errors
    /// As `open(2)`, `memfd_create(2)`.
    pub fn load(path: &Path) -> io::Result<Self> {
        let mut program = Vec::new();
        File::open(path)?.read_to_end(&mut program)?;
        Ok(Self(Arc::new(memfd::sealed_program(
            c"carpel-supervisor",
            &program,
        )?)))
    }

    /// A descriptor of the program, sealed.
    ///
    /// # Errors
    /// As `fcntl(2)`.
    pub(crate) fn program(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl Supervisor {
    /// Starts a supervisor that listens in `dir`, and connects to it. It does nothing yet.
    ///
    /// The pidfd returned is of the process as spawned, which ends once the pod is set up. It may be reaped by
    /// others then (see [`crate::node::orphans`]), so it is known by nothing else.
    ///
    /// # Errors
    /// As `bind(2)`, `posix_spawn(3)`, and [`Supervisor::connect`].
    #[tracing::instrument(name = "spawn supervisor", level = "debug", skip_all)]
    pub async fn spawn(
        binary: &Binary,
        dir: &Path,
        sandbox: &SandboxId,
    ) -> Result<(Self, OwnedFd), super::Error> {
        let listener = socket::listen(dir)?;
        // The descriptor number is the same in the child, before its program is executed.
        let child = Command::new(format!("/proc/self/fd/{}", binary.0.as_fd().as_raw_fd()))
            .arg0("carpel-supervisor")
            .arg(sandbox.to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // It is not reaped yet, whatever it does.
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                end(child).await;
                return Err(io::Error::from(error).into());
            }
        };
        let connected = Self::connect(dir, REPLY_TIMEOUT).await;
        match connected {
            Ok(supervisor) => Ok((supervisor, pidfd)),
            Err(error) => {
                end(child).await;
                Err(error)
            }
        }
    }
}

/// Kills a supervisor that cannot be used, and reaps it.
async fn end(mut child: Child) {
    let _ = child.kill();
    let _ = tokio::task::spawn_blocking(move || child.wait()).await;
}
