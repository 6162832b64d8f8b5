//! A client's side of a command's or a container's standard streams.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::node::Node;

/// A client's side of a command's or a container's standard streams, whatever protocol it speaks.
pub struct ClientStreams {
    /// Ends where the client has closed its side (half-close). `None`: not asked for.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// A write waits for the client (flow control) and fails when it is gone. `None`: not asked for.
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Sizes of the client's terminal, as they change. `None`: no terminal.
    pub resize: Option<tokio::sync::mpsc::Receiver<TerminalSize>>,
    /// Cancelled when the client's connection is gone.
    pub gone: tokio_util::sync::CancellationToken,
}

/// In characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

impl Node {
    /// Runs a command with a client's streams; the command's exit code. Checks that the container runs.
    ///
    /// # Errors
    /// [`Error::Unimplemented`], for now.
    pub async fn exec(
        self: &Arc<Self>,
        id: &ContainerId,
        _command: Vec<String>,
        _tty: bool,
        _client: ClientStreams,
    ) -> Result<i32, Error> {
        Err(Error::Unimplemented(format!("exec in container {id}")))
    }

    /// Connects a client with a running container's streams until it exits or the client goes.
    ///
    /// # Errors
    /// [`Error::Unimplemented`], for now.
    pub async fn attach(
        self: &Arc<Self>,
        id: &ContainerId,
        _client: ClientStreams,
    ) -> Result<(), Error> {
        Err(Error::Unimplemented(format!("attach to container {id}")))
    }

    /// A connection to a port on the loopback interface of a pod's network namespace, IPv4 first, then IPv6.
    ///
    /// # Errors
    /// [`Error::Unimplemented`], for now.
    pub async fn connect(
        self: &Arc<Self>,
        id: &SandboxId,
        port: u16,
    ) -> Result<tokio::net::TcpStream, Error> {
        Err(Error::Unimplemented(format!("port {port} of sandbox {id}")))
    }
}
