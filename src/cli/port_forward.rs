//! `carpel port-forward`: ports of a pod as ports of this machine.
//!
//! Each connection is one of its own to the runtime, so that none waits for another.

use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf, BytesMut};
use carpel_api::cri::{PodSandboxState, PortForwardRequest};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::client::{Client, Connection};
use super::resolve::{Among, Catalogue, pod_name};
use super::stream::websocket::{self, Frame, Incoming, Message};
use super::{Outcome, output};

/// The one protocol for ports that every runtime speaks over a WebSocket.
const PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 512;
/// How long a pod may be silent after our side has said all it will. The protocol cannot tell it so.
const LAST_WORDS: Duration = Duration::from_secs(30);
const READ: usize = 32 << 10;
const WAITING: usize = 4;

#[derive(Debug, Args)]
pub struct PortForwardArgs {
    /// The pod
    #[arg(value_name = "POD")]
    name: String,
    /// A port of the pod, and of this machine if that is another; "0:80" or ":80": any that is free
    #[arg(value_name = "[LOCAL:]PORT", required = true)]
    ports: Vec<Mapping>,
    /// Address to listen on; may be given more than once [default: 127.0.0.1 and ::1]
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    #[command(flatten)]
    connection: Connection,
}

/// What the command line says about one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    /// 0: any that is free.
    local: u16,
    remote: u16,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a port, or two with a colon")]
struct BadMapping;

impl FromStr for Mapping {
    type Err = BadMapping;

    fn from_str(text: &str) -> Result<Self, BadMapping> {
        let port = |text: &str| text.parse::<u16>().map_err(|_| BadMapping);
        let (local, remote) = match text.split_once(':') {
            Some(("", remote)) => (0, port(remote)?),
            Some((local, remote)) => (port(local)?, port(remote)?),
            None => (port(text)?, port(text)?),
        };
        match remote {
            0 => Err(BadMapping),
            _ => Ok(Self { local, remote }),
        }
    }
}

impl PortForwardArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let pod = all.pod(&self.name, Among::Living)?;
        if pod.state() != PodSandboxState::SandboxReady {
            bail!("pod {} is not ready: its ports have ended", pod_name(pod));
        }
        let forward = Arc::new(Forward {
            client,
            pod: pod.id.clone(),
            name: pod_name(pod),
            room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        });
        let mut listeners = Vec::new();
        for mapping in &self.ports {
            for listener in listen(&self.address, *mapping).await? {
                let address = listener.local_addr()?;
                output::print(format!("forwarding from {address} to {}\n", mapping.remote))?;
                listeners.push((listener, mapping.remote));
            }
        }
        let mut serving = JoinSet::new();
        for (listener, remote) in listeners {
            serving.spawn(Arc::clone(&forward).serve(listener, remote));
        }
        while let Some(ended) = serving.join_next().await {
            ended?;
        }
        bail!("nothing is listened on any more")
    }
}

/// Listens on each address, with the same port on all of them.
async fn listen(addresses: &[IpAddr], mapping: Mapping) -> anyhow::Result<Vec<TcpListener>> {
    let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let (addresses, all) = match addresses {
        [] => (&both[..], false),
        addresses => (addresses, true),
    };
    let mut listeners = Vec::new();
    let mut port = mapping.local;
    let mut failed = None;
    for address in addresses {
        let address = SocketAddr::new(*address, port);
        let bound = TcpListener::bind(address).await;
        match bound.with_context(|| format!("listen on {address}")) {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(listener);
            }
            Err(error) if all => return Err(error),
            // A machine may have only one of the two.
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    match failed {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

struct Forward {
    client: Client,
    /// Id of the pod, and its name.
    pod: String,
    name: String,
    room: Arc<Semaphore>,
}

impl Forward {
    async fn serve(self: Arc<Self>, listener: TcpListener, remote: u16) {
        loop {
            let Ok(room) = Arc::clone(&self.room).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((local, _)) => {
                    let forward = Arc::clone(&self);
                    tokio::spawn(async move {
                        forward.connection(local, remote).await;
                        drop(room);
                    });
                }
                Err(error) => {
                    tell(format_args!("port {remote}: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, local: TcpStream, remote: u16) {
        if let Err(error) = self.connect(local, remote).await {
            tell(format_args!("port {remote} of {}: {error:#}", self.name));
        }
    }

    async fn connect(&self, local: TcpStream, remote: u16) -> anyhow::Result<()> {
        let request = PortForwardRequest {
            pod_sandbox_id: self.pod.clone(),
            port: vec![remote.into()],
        };
        let url = self.client.port_forward(request).await?.url;
        let (_, mut incoming, mut outgoing) = websocket::connect(&url, &PROTOCOLS).await?;
        let _ = local.set_nodelay(true);
        let (from, mut to) = local.into_split();
        let (to_send, mut sending) = mpsc::channel(WAITING);
        let send = async {
            while let Some(frame) = sending.recv().await {
                if outgoing.send(frame).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = down(&mut incoming, &mut to, &to_send, up(from, &to_send)) => outcome,
            () = send => Ok(()),
        };
        let _ = to.shutdown().await;
        outcome
    }
}

/// From here to the pod, until we have said all.
async fn up(mut from: OwnedReadHalf, to_send: &mpsc::Sender<Frame>) {
    loop {
        let mut bytes = BytesMut::with_capacity(READ);
        if !matches!(from.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
        if to_send
            .send(Frame::Data(DATA, bytes.freeze()))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// From the pod to here, until it has said all; or it is silent after `up` has ended.
async fn down(
    incoming: &mut Incoming,
    to: &mut OwnedWriteHalf,
    to_send: &mpsc::Sender<Frame>,
    up: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    // Each channel begins with the port's number.
    let mut heads = [2_usize; 2];
    let mut errors = Vec::new();
    let mut up = std::pin::pin!(up);
    let mut said_all = false;
    loop {
        let message = tokio::select! {
            message = incoming.message() => message?,
            () = &mut up, if !said_all => {
                said_all = true;
                continue;
            }
            () = tokio::time::sleep(LAST_WORDS), if said_all => None,
        };
        let mut bytes = match message {
            Some(Message::Data(bytes)) if !bytes.is_empty() => bytes,
            Some(Message::Ping(bytes)) => {
                let _ = to_send.try_send(Frame::Pong(bytes));
                continue;
            }
            Some(Message::Data(_)) => continue,
            None => break,
        };
        let channel = bytes.get_u8();
        if let Some(head) = heads.get_mut(usize::from(channel)) {
            let count = bytes.len().min(*head);
            bytes.advance(count);
            *head -= count;
        }
        match channel {
            DATA => to.write_all(&bytes).await?,
            ERROR => errors.extend_from_slice(&bytes),
            _ => {}
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => bail!(String::from_utf8_lossy(&errors).trim().to_owned()),
    }
}

/// Whoever reads it or not.
fn tell(words: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "carpel: {words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_with_other_tools() {
        let mapping = |local, remote| Ok(Mapping { local, remote });
        assert_eq!("80".parse(), mapping(80, 80));
        assert_eq!("8080:80".parse(), mapping(8080, 80));
        assert_eq!(":80".parse(), mapping(0, 80));
        assert_eq!("0:80".parse(), mapping(0, 80));
        for bad in ["", "x", "80:", "80:0", "0", "1:2:3", "70000", "-1"] {
            assert_eq!(bad.parse::<Mapping>(), Err(BadMapping), "{bad}");
        }
    }
}
