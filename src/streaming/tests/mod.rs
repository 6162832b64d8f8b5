//! The server over real sockets, with a backend that has no containers.

mod commands;
mod fuzz;
mod outbound;
mod ports;
mod requests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::{Backend, Clients, Request, Server, Settings, Urls, Wanted};
use crate::container::ClientStreams;
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(20);

/// The first word of a command says what it does.
#[derive(Clone, Default)]
pub struct Fake(Arc<State>);

#[derive(Default)]
struct State {
    /// Commands and connections that were begun, and that ended.
    begun: AtomicUsize,
    ended: AtomicUsize,
    changed: Notify,
}

struct Running<'a>(&'a State);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Fake {
    fn begin(&self) -> Running<'_> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
        Running(&self.0)
    }

    /// Waits until so many have begun, and so many ended.
    pub async fn reaches(&self, begun: usize, ended: usize) {
        let reached = async {
            loop {
                let changed = self.0.changed.notified();
                let now = (&self.0.begun, &self.0.ended);
                if now.0.load(Ordering::SeqCst) >= begun && now.1.load(Ordering::SeqCst) >= ended {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(LONG, reached)
            .await
            .expect("it happens soon");
    }
}

impl Backend for Fake {
    async fn exec(
        &self,
        _: &ContainerId,
        command: Vec<String>,
        tty: bool,
        mut client: ClientStreams,
    ) -> Result<i32, Error> {
        let _running = self.begin();
        let argument = command.get(1).map_or("0", String::as_str);
        match command[0].as_str() {
            "cat" => {
                let (stdin, stdout) = (client.stdin.as_mut(), client.stdout.as_mut());
                let (stdin, stdout) = (stdin.expect("stdin"), stdout.expect("stdout"));
                let _ = tokio::io::copy(stdin, stdout).await;
            }
            "exit" => return Ok(argument.parse().expect("a number")),
            "fail" => return Err(Error::Internal("no such program".into())),
            "fill" => {
                let stdout = client.stdout.as_mut().expect("stdout");
                let bytes = vec![b'x'; argument.parse().expect("a number")];
                let _ = stdout.write_all(&bytes).await;
            }
            "both" => {
                client
                    .stdout
                    .expect("stdout")
                    .write_all(b"out")
                    .await
                    .expect("a client");
                client
                    .stderr
                    .expect("stderr")
                    .write_all(b"err")
                    .await
                    .expect("a client");
            }
            "sizes" => {
                assert!(tty);
                let mut sizes = client.resize.expect("a terminal");
                let mut text = String::new();
                for _ in 0..argument.parse().expect("a number") {
                    let size = sizes.recv().await.expect("a size");
                    text += &format!("{}x{} ", size.columns, size.rows);
                }
                let stdout = client.stdout.as_mut().expect("stdout");
                stdout.write_all(text.as_bytes()).await.expect("a client");
            }
            "stuck" => client.gone.cancelled().await,
            other => panic!("{other}"),
        }
        Ok(0)
    }

    async fn attach(&self, _: &ContainerId, mut client: ClientStreams) -> Result<(), Error> {
        let _running = self.begin();
        let stdout = client.stdout.as_mut().expect("stdout");
        let _ = stdout.write_all(b"attached").await;
        Ok(())
    }

    async fn connect(&self, _: &SandboxId, port: u16) -> Result<TcpStream, Error> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        stream.map_err(Error::at(format!("connect to port {port}")))
    }
}

/// A server with a fake behind it.
pub struct Site {
    pub fake: Fake,
    pub clients: Clients,
    urls: Urls,
    address: SocketAddr,
}

impl Site {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(([127, 0, 0, 1], 0).into());
        change(&mut settings);
        let server = Server::bind(&settings).await.expect("a loopback interface");
        let site = Self {
            fake: Fake::default(),
            clients: server.clients(),
            urls: server.urls(),
            address: server.base()["http://".len()..]
                .parse()
                .expect("an address"),
        };
        tokio::spawn(server.serve(site.fake.clone()));
        site
    }

    /// The path of a URL for a request.
    pub fn path(&self, request: Request) -> String {
        let url = self.urls.url(request).expect("a token");
        let base = format!("http://{}", self.address);
        url.strip_prefix(&base).expect("a URL here").to_owned()
    }

    pub fn exec(&self, command: &[&str], wanted: Wanted) -> String {
        self.path(Request::Exec {
            container: ContainerId::random(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            wanted,
        })
    }

    pub fn ports(&self, ports: &[u16]) -> String {
        self.path(Request::PortForward {
            sandbox: SandboxId::random(),
            ports: ports.to_vec(),
        })
    }

    /// Sends a request's head; the answer's head, and the connection.
    pub async fn request(&self, line: &str, headers: &[&str]) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(self.address).await.expect("a server");
        let head = format!(
            "{line} HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n",
            headers.join("\r\n")
        );
        stream.write_all(head.as_bytes()).await.expect("a server");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let byte = stream.read_u8().await.expect("an answer");
            answer.push(byte);
        }
        (String::from_utf8(answer).expect("a head"), stream)
    }

    /// A connection that speaks SPDY.
    pub async fn spdy(&self, path: &str, protocol: &str) -> commands::Spdy {
        let version = format!("X-Stream-Protocol-Version: {protocol}");
        let headers = ["Connection: Upgrade", "Upgrade: SPDY/3.1", &version];
        let (answer, stream) = self.request(&format!("POST {path}"), &headers).await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        commands::Spdy::new(stream)
    }

    /// A connection that speaks WebSocket.
    pub async fn websocket(&self, path: &str, protocol: &str) -> TcpStream {
        let protocol = format!("Sec-WebSocket-Protocol: {protocol}");
        let headers = [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            &protocol,
        ];
        let (answer, stream) = self.request(&format!("GET {path}"), &headers).await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        stream
    }
}
