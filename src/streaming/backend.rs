//! What the connections lead to.

use std::future::Future;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::container::ClientStreams;
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::node::Node;

/// Containers and pods that clients are connected with.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Runs a command with a client's streams; the command's exit code.
    fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        tty: bool,
        client: ClientStreams,
    ) -> impl Future<Output = Result<i32, Error>> + Send;

    /// Connects a client with a container's streams until it exits or the client goes.
    fn attach(
        &self,
        id: &ContainerId,
        client: ClientStreams,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// A connection to a port in a pod.
    fn connect(
        &self,
        id: &SandboxId,
        port: u16,
    ) -> impl Future<Output = Result<TcpStream, Error>> + Send;
}

impl Backend for Arc<Node> {
    async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        tty: bool,
        client: ClientStreams,
    ) -> Result<i32, Error> {
        Node::exec(self, id, command, tty, client).await
    }

    async fn attach(&self, id: &ContainerId, client: ClientStreams) -> Result<(), Error> {
        Node::attach(self, id, client).await
    }

    async fn connect(&self, id: &SandboxId, port: u16) -> Result<TcpStream, Error> {
        Node::connect(self, id, port).await
    }
}
