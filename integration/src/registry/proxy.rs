//! A proxy: requests for http go through it whole, those for https by a tunnel.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::host::HostNet;

/// A proxy that listens in the namespace of a node. Its threads end with the test's process.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Listens on the loopback address. With an authorization, only who shows that is served.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn start(net: &HostNet, authorization: Option<&'static str>) -> Self {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&seen);
        let address = listen(net, move |client| serve(client, &noted, authorization));
        Self { address, seen }
    }

    /// Starts one that is spoken to over TLS at an address of the node, with `cert.pem` and `key.pem` of a folder.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn start_tls(net: &HostNet, address: &str, certificates: &Path) -> Self {
        let plain = Self::start(net, None);
        let acceptor = acceptor(certificates);
        let listener = net.run(|| TcpListener::bind((address, 0)).expect("listen"));
        let own = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket");
        let behind = plain.address;
        net.run(move || {
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().expect("a runtime");
                runtime.block_on(forward(listener, acceptor, behind));
            });
        });
        Self {
            address: own,
            ..plain
        }
    }

    /// `ADDRESS:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The first lines of the requests so far.
    ///
    /// # Panics
    /// If a thread panicked.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }
}

fn acceptor(certificates: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(certificates.join("cert.pem"));
    let chain = chain.and_then(Iterator::collect).expect("certificates");
    let key = PrivateKeyDer::from_pem_file(certificates.join("key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

/// Takes the TLS off and passes on what is in it.
async fn forward(listener: TcpListener, acceptor: TlsAcceptor, to: SocketAddr) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    while let Ok((client, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut client = acceptor.accept(client).await?;
            let mut server = tokio::net::TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

fn serve(
    mut client: TcpStream,
    seen: &Mutex<Vec<String>>,
    authorization: Option<&str>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut head, mut shown) = (String::new(), String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        match line
            .to_ascii_lowercase()
            .starts_with("proxy-authorization: ")
        {
            true => shown = line["proxy-authorization: ".len()..].trim().to_owned(),
            false if line.to_ascii_lowercase().starts_with("connection:") => {}
            false => head.push_str(&line),
        }
    }
    seen.lock().expect("no panic").push(first.trim().to_owned());
    if authorization.is_some_and(|wanted| wanted != shown) {
        let text = "HTTP/1.1 407 X\r\nproxy-authenticate: Basic realm=x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        return client.write_all(text.as_bytes());
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if method == "CONNECT" {
        let server = TcpStream::connect(target)?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let (back, to) = (server.try_clone()?, client.try_clone()?);
        std::thread::spawn(move || pump(back, to));
        return pump(client, server);
    }
    let rest = target.strip_prefix("http://").unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut server = TcpStream::connect(host)?;
    write!(
        server,
        "{method} /{path} HTTP/1.1\r\n{head}connection: close\r\n\r\n"
    )?;
    pump(server, client)
}

/// Serves whoever connects to the loopback address of a node, each in a thread of its own; all end with the test's
/// process.
pub(super) fn listen(
    net: &HostNet,
    serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = net.run(|| TcpListener::bind("127.0.0.1:0").expect("listen"));
    let address = listener.local_addr().expect("an address");
    let serve = Arc::new(serve);
    // A new thread is in the namespace of the one that makes it.
    net.run(move || {
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(client));
            }
        });
    });
    address
}

/// Copies until one of the two is gone.
pub(super) fn pump(mut from: TcpStream, mut to: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        to.write_all(&buffer[..count])?;
    }
}
