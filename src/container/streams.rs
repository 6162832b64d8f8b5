//! The client's side of a command's or a container's standard streams, below every protocol.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A client's side of a command's or a container's standard streams, whatever protocol it speaks.
pub struct ClientStreams {
    /// Ends where the client has closed its side (half-close). `None`: not asked for.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// A write waits for the client (flow control) and fails when it is gone. `None`: not asked for.
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Sizes of the client's terminal, as they change. `None`: no terminal.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
    /// Cancelled when the client's connection is gone.
    pub gone: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}
