//! A registry that does whatever a test wants it to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::host::{HostNet, kill_9};
use crate::image::{Built, digest};

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Request {
    /// The header of this name, or "".
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Whether it is for a blob.
    #[must_use]
    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What a client is answered.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

/// How an answer is sent.
#[derive(Debug, Clone)]
pub enum Body {
    Whole(Vec<u8>),
    /// So many bytes of it, then the connection is closed.
    Cut(Vec<u8>, usize),
    /// So many bytes of it, then nothing.
    Stalled(Vec<u8>, usize),
    /// So many bytes of it; when the client's machine has them, this process of it is killed.
    Deadly(Vec<u8>, usize, i32),
    /// One byte at a time, with a pause after each.
    Slow(Vec<u8>, Duration),
    /// So many bytes in a second.
    Paced(Vec<u8>, usize),
    /// Spaces, as many as there are taken.
    Endless,
}

impl Reply {
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::with(status, &[], b"")
    }

    #[must_use]
    pub fn with(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self {
            status,
            headers: headers.collect(),
            body: Body::Whole(body.to_vec()),
        }
    }

    /// What a registry says of an error.
    #[must_use]
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let text = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
        Self::with(
            status,
            &[("content-type", "application/json")],
            text.to_string().as_bytes(),
        )
    }

    /// Sends the body in another way.
    #[must_use]
    pub fn sent(mut self, how: impl FnOnce(Vec<u8>) -> Body) -> Self {
        if let Body::Whole(bytes) = self.body {
            self.body = how(bytes);
        }
        self
    }
}

/// What a registry has.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// By path: type and bytes.
    things: BTreeMap<String, (String, Vec<u8>)>,
}

impl Content {
    /// An image under a tag and its digest.
    #[must_use]
    pub fn image(self, repository: &str, tag: &str, image: &Built) -> Self {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let blobs = image.layers.iter().chain([&image.config]);
        let with = blobs.fold(self, |content, blob| content.blob(repository, blob));
        with.manifest(repository, tag, kind, &image.manifest)
    }

    #[must_use]
    pub fn blob(mut self, repository: &str, bytes: &[u8]) -> Self {
        let path = format!("/v2/{repository}/blobs/{}", digest(bytes));
        let kind = "application/octet-stream".to_owned();
        self.things.insert(path, (kind, bytes.to_vec()));
        self
    }

    /// A manifest or index under a tag and its digest.
    #[must_use]
    pub fn manifest(mut self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> Self {
        for name in [tag, &digest(bytes)] {
            let path = format!("/v2/{repository}/manifests/{name}");
            self.things.insert(path, (kind.to_owned(), bytes.to_vec()));
        }
        self
    }

    /// The index of what refers to a digest.
    #[must_use]
    pub fn referrers(mut self, repository: &str, digest: &str, index: &[u8]) -> Self {
        let path = format!("/v2/{repository}/referrers/{digest}");
        let kind = "application/vnd.oci.image.index.v1+json".to_owned();
        self.things.insert(path, (kind, index.to_vec()));
        self
    }

    /// Answers as a good registry does, with parts of blobs if asked for.
    #[must_use]
    pub fn answer(&self, request: &Request) -> Reply {
        let Some((kind, bytes)) = self.things.get(&request.path) else {
            return Reply::error(404, "UNKNOWN", "unknown to this registry");
        };
        let mut headers = vec![("content-type", kind.clone())];
        if !request.is_blob() {
            headers.push(("docker-content-digest", digest(bytes)));
        }
        let range = request.header("range").trim_start_matches("bytes=");
        let (from, last) = range.split_once('-').unwrap_or_default();
        let (status, bytes) = match from.parse::<usize>() {
            Ok(from) if request.is_blob() => {
                let all = bytes.len();
                let last = last.parse::<usize>().unwrap_or(all).min(all - 1);
                headers.push(("content-range", format!("bytes {from}-{last}/{all}")));
                (206, &bytes[from..=last])
            }
            _ => (200, &bytes[..]),
        };
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        Reply::with(status, &headers, bytes)
    }
}

/// A server in the namespace of a node. It goes when it is dropped.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

impl Fake {
    /// Listens on the loopback address.
    #[must_use]
    pub fn start(
        net: &HostNet,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(net, "127.0.0.1:0", handler)
    }

    /// Listens at `ADDRESS:PORT`; port 0 is one that is free.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn start_at(
        net: &HostNet,
        address: &str,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = net.run(|| TcpListener::bind(address).expect("listen"));
        let fake = Self {
            address: listener.local_addr().expect("an address"),
            seen: Arc::default(),
            stopped: Arc::default(),
        };
        listener.set_nonblocking(true).expect("a socket");
        let (seen, stopped) = (Arc::clone(&fake.seen), Arc::clone(&fake.stopped));
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                std::thread::spawn(move || {
                    stream.set_nonblocking(false).expect("a socket");
                    let _ = serve(stream, &seen, &*handler);
                });
            }
        });
        fake
    }

    /// `ADDRESS:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What has been asked so far.
    ///
    /// # Panics
    /// If a handler panicked.
    #[must_use]
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("no handler panicked").clone()
    }

    /// How many requests were for a path that has `part` in it.
    #[must_use]
    pub fn count(&self, part: &str) -> usize {
        let seen = self.seen();
        seen.iter()
            .filter(|request| request.path.contains(part))
            .count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<Request>>, handler: &Handler) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read(&mut reader)? {
        seen.lock()
            .expect("no handler panicked")
            .push(request.clone());
        let reply = handler(&request);
        if !write(&stream, reply)? {
            break;
        }
    }
    stream.shutdown(std::net::Shutdown::Both)
}

fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Some(Request {
        method,
        path,
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }))
}

/// Sends an answer; whether the connection goes on.
fn write(mut stream: &TcpStream, reply: Reply) -> std::io::Result<bool> {
    let (bytes, sent) = match &reply.body {
        Body::Whole(bytes) | Body::Slow(bytes, _) | Body::Paced(bytes, _) => {
            (bytes.as_slice(), bytes.len())
        }
        Body::Cut(bytes, sent) | Body::Stalled(bytes, sent) | Body::Deadly(bytes, sent, _) => {
            (bytes.as_slice(), *sent)
        }
        Body::Endless => (&[][..], 0),
    };
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match reply.body {
        Body::Endless => head.push_str("connection: close\r\n\r\n"),
        _ => head.push_str(&format!("content-length: {}\r\n\r\n", bytes.len())),
    }
    stream.write_all(head.as_bytes())?;
    match reply.body {
        Body::Slow(bytes, pause) => {
            for byte in bytes {
                stream.write_all(&[byte])?;
                std::thread::sleep(pause);
            }
            Ok(true)
        }
        Body::Paced(bytes, rate) => {
            let begin = Instant::now();
            let mut sent = 0;
            for piece in bytes.chunks(16 << 10) {
                stream.write_all(piece)?;
                sent += piece.len();
                let due = Duration::from_secs_f64(sent as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(begin.elapsed()));
            }
            Ok(true)
        }
        Body::Endless => loop {
            stream.write_all(&[b' '; 64 << 10])?;
        },
        Body::Whole(_) => stream.write_all(bytes).map(|()| true),
        Body::Cut(..) => stream.write_all(&bytes[..sent]).map(|()| false),
        Body::Deadly(bytes, sent, pid) => {
            stream.write_all(&bytes[..sent])?;
            // Both ends are on this machine: what is sent has come.
            kill_9(pid);
            Ok(false)
        }
        Body::Stalled(..) => {
            stream.write_all(&bytes[..sent])?;
            // Until the client has had enough.
            let _ = stream.read(&mut [0; 16]);
            Ok(false)
        }
    }
}
