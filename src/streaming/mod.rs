//! Exec, attach and port-forward: the HTTP server that clients come to with the token of a request, and the protocols
//! that they speak there.
//!
//! ```text
//! RPC ─▶ Urls::url ─▶ token ─▶ URL ─▶ client ─▶ server ─▶ Tokens::take ─▶ upgrade (which protocol)
//!                                                                │
//!                        ┌────────────────┬──────────────────────┘
//!                      spdy           websocket ◀─ tunnel: spdy within websocket
//!                        └───────┬────────┘
//!                        command │ ports  ─▶ Backend (the node)
//! ```
//!
//! What must always hold: a token is good once. Whatever a client does, a connection holds a bounded amount of memory,
//! waits for nothing for ever, and leaves nothing when it ends: everything of it runs in one task or in tasks that end
//! with that one.

mod backend;
mod command;
pub mod fuzz;
mod inbox;
mod link;
mod outbound;
mod pipe;
mod ports;
mod resize;
mod server;
mod spdy;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod upgrade;
mod websocket;

pub use backend::Backend;
pub use server::{BindError, Clients, Server, Settings, unpace};
pub use tls::TlsError;

use std::sync::Arc;

use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use tokens::Tokens;

/// What a client may do with a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Exec {
        container: ContainerId,
        /// Not empty.
        command: Vec<String>,
        wanted: Wanted,
    },
    Attach {
        container: ContainerId,
        wanted: Wanted,
    },
    PortForward {
        sandbox: SandboxId,
        /// Those of a WebSocket without a tunnel; a SPDY client names others.
        ports: Vec<u16>,
    },
}

/// Which streams a client is to open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    /// Not with a terminal.
    pub stderr: bool,
    pub tty: bool,
}

/// Makes the URLs that clients come to.
#[derive(Clone)]
pub struct Urls {
    tokens: Arc<Tokens>,
    /// "http://HOST:PORT".
    base: String,
}

impl Urls {
    /// A URL that is good once, and soon.
    ///
    /// # Errors
    /// [`Error::ResourceExhausted`] if too many clients are yet to come.
    pub fn url(&self, request: Request) -> Result<String, Error> {
        let path = match request {
            Request::Exec { .. } => "exec",
            Request::Attach { .. } => "attach",
            Request::PortForward { .. } => "portforward",
        };
        let token = self.tokens.keep(request)?;
        Ok(format!("{}/{path}/{token}", self.base))
    }
}
