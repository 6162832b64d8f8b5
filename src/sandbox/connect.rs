//! A connection to a port of a pod, for a port-forward.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use carpel_wire::{Family, Reply, RequestBody};
use tokio::net::{TcpSocket, TcpStream};

use crate::error::Error;
use crate::ids::SandboxId;
use crate::node::Node;
use crate::streaming::unpace;
use crate::supervisor::{self, Supervisor};

/// How long each of the two attempts may take. Within a pod a connection is made or refused at once, unless
/// its program is overrun or a rule drops the packets.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Node {
    /// A connection to a port on the loopback interface of a pod's network namespace, IPv4 first, then IPv6.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if the sandbox is not ready, or nobody listens there.
    pub async fn connect(self: &Arc<Self>, id: &SandboxId, port: u16) -> Result<TcpStream, Error> {
        let sandbox = self.sandbox(id).ok_or_else(|| Error::NotFound {
            kind: "sandbox",
            id: id.to_string(),
        })?;
        let supervisor = sandbox
            .supervisor()
            .await
            .ok_or_else(|| sandbox.refuses())?;
        let attempts = [
            (Family::Ipv4, IpAddr::from(Ipv4Addr::LOCALHOST)),
            (Family::Ipv6, IpAddr::from(Ipv6Addr::LOCALHOST)),
        ];
        let mut failures = Vec::new();
        for (family, address) in attempts {
            let address = SocketAddr::new(address, port);
            let attempt = async {
                let socket = socket(&supervisor, family)
                    .await
                    .map_err(|error| crate::error::chain(&error))?;
                let connected = connect(socket, address).await;
                connected.map_err(|error| error.to_string())
            };
            match tokio::time::timeout(TIMEOUT, attempt).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failures.push(format!("{address}: {error}")),
                Err(_) => failures.push(format!("{address}: no answer")),
            }
        }
        let failures = failures.join("; ");
        Err(Error::FailedPrecondition(format!(
            "connect to port {port} of sandbox {id} ({}): {failures}",
            sandbox.pod()
        )))
    }
}

/// A socket that the pod's supervisor has made, in whose network it stays.
async fn socket(supervisor: &Supervisor, family: Family) -> Result<OwnedFd, supervisor::Error> {
    let request = RequestBody::Socket { family };
    let (reply, mut fds) = supervisor.request(request, &[]).await?;
    match (reply, fds.pop()) {
        (Reply::Done, Some(socket)) => Ok(socket),
        (Reply::CallFailed { errno, .. }, _) => Err(io::Error::from_raw_os_error(errno).into()),
        (reply, _) => Err(supervisor::Error::Refused(reply)),
    }
}

async fn connect(socket: OwnedFd, address: SocketAddr) -> io::Result<TcpStream> {
    unpace(&socket);
    let socket = TcpSocket::from_std_stream(StdStream::from(socket));
    let stream = socket.connect(address).await?;
    // What a client types is not to wait for more.
    stream.set_nodelay(true)?;
    Ok(stream)
}
