//! Clients of exec, attach and port-forward, written against the protocols' specifications and sharing no code with
//! the server: SPDY/3.1 as spdystream speaks it, WebSocket as RFC 6455 says.

mod command;
mod reading;
pub mod session;
pub mod spdy;
pub mod urls;
pub mod websocket;

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::host::{HostNet, patience};

/// How long anything that should happen soon may take.
#[must_use]
pub fn soon() -> Duration {
    patience(Duration::from_secs(20))
}

/// The head of an HTTP answer.
#[derive(Debug, Clone)]
pub struct Head {
    pub status: u16,
    /// By name in lower case; one that comes more than once has its values joined by commas.
    pub headers: HashMap<String, String>,
}

impl Head {
    /// A header, or "".
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Connects with the host of a URL, from the node's network namespace.
///
/// # Panics
/// If nobody listens there, or it is no URL of the streaming server.
pub async fn connect(net: &HostNet, url: &str) -> (TcpStream, String) {
    let rest = url.strip_prefix("http://").expect("a plain URL");
    let (host, path) = rest.split_once('/').expect("a path");
    let stream = net
        .run(|| std::net::TcpStream::connect(host))
        .unwrap_or_else(|error| panic!("connect to {host}: {error}"));
    stream.set_nodelay(true).expect("a socket");
    stream.set_nonblocking(true).expect("a socket");
    let stream = TcpStream::from_std(stream).expect("a runtime");
    (stream, format!("/{path}"))
}

/// Sends a request without a body to a URL and reads the head of the answer, and no byte more.
///
/// # Panics
/// If there is no answer.
pub async fn request(
    net: &HostNet,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
) -> (Head, TcpStream) {
    let (mut stream, path) = connect(net, url).await;
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: node\r\nUser-Agent: test\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        text += "Content-Length: 0\r\n";
    }
    text += "\r\n";
    stream.write_all(text.as_bytes()).await.expect("a server");
    let head = tokio::time::timeout(soon(), read_head(&mut stream)).await;
    (head.expect("an answer soon"), stream)
}

async fn read_head(stream: &mut TcpStream) -> Head {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.expect("an answer"));
    }
    let text = String::from_utf8(bytes).expect("a head");
    let mut lines = text.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    let mut headers: HashMap<String, String> = HashMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let values = headers.entry(name.to_lowercase()).or_default();
        if !values.is_empty() {
            values.push(',');
        }
        values.push_str(value.trim());
    }
    Head {
        status: status
            .and_then(|status| status.parse().ok())
            .expect("a status"),
        headers,
    }
}

/// How a command ended, as its error stream says it in `v4` and `v5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    ExitCode(u8),
    /// The message.
    Failed(String),
}

impl Outcome {
    /// Reads the document as client-go does.
    ///
    /// # Panics
    /// If it is not as client-go reads it.
    #[must_use]
    pub fn read(document: &[u8]) -> Self {
        let text = String::from_utf8_lossy(document);
        let status: Value =
            serde_json::from_slice(document).unwrap_or_else(|error| panic!("{error}: {text}"));
        match (status["status"].as_str(), status["reason"].as_str()) {
            (Some("Success"), None) => Self::Success,
            (Some("Failure"), Some("NonZeroExitCode")) => {
                let causes = status["details"]["causes"].as_array().expect("causes");
                let code = causes.iter().find(|cause| cause["reason"] == "ExitCode");
                let code = code.and_then(|cause| cause["message"].as_str());
                let code = code.and_then(|code| code.parse().ok());
                Self::ExitCode(code.unwrap_or_else(|| panic!("no exit code: {text}")))
            }
            (Some("Failure"), Some(_)) => {
                let message = status["message"].as_str().expect("a message");
                Self::Failed(message.to_owned())
            }
            other => panic!("{other:?}: {text}"),
        }
    }
}

/// What a command wrote, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// What came on the error stream.
    pub status: Vec<u8>,
}

impl Ran {
    /// # Panics
    /// As [`Outcome::read`] does.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::read(&self.status)
    }

    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}
