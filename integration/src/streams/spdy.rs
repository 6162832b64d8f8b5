//! A SPDY/3.1 client (draft 3.1) that behaves as spdystream does: it opens one stream after the other, waits for each to
//! be replied to, sends no SETTINGS and no WINDOW_UPDATE unless it is told to, and takes whatever comes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};

use super::reading::Reading;
use super::{Head, request, soon};
use crate::host::HostNet;

pub(super) const DICTIONARY: &[u8] = include_bytes!("spdy3.dictionary");

/// The protocols that kubectl and crictl offer for commands, in their order.
pub const COMMAND: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
pub const PORTS: [&str; 1] = ["portforward.k8s.io"];

pub use super::command::{Command, Wanted};

type Writer = Arc<tokio::sync::Mutex<Box<dyn AsyncWrite + Send + Unpin>>>;

/// What happens on a stream.
pub(super) enum Event {
    Data(Vec<u8>),
    Fin,
    Reset(u32),
}

/// Where the data of a stream goes.
pub(super) enum Sink {
    Events(mpsc::UnboundedSender<Event>),
    /// It is counted until so many bytes have come, and kept nowhere.
    Counter(usize, oneshot::Sender<()>),
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Fin,
    /// With this status.
    Reset(u32),
    /// With its connection.
    Lost,
}

#[derive(Default)]
pub(super) struct Table {
    pub streams: HashMap<u32, Sink>,
    pub replies: HashMap<u32, oneshot::Sender<()>>,
    pub pings: HashMap<u32, oneshot::Sender<()>>,
    pub lost: bool,
}

pub(super) type Shared = Arc<Mutex<Table>>;

/// A connection.
pub struct Spdy {
    writer: Writer,
    packer: Compress,
    shared: Shared,
    next_stream: u32,
    next_ping: u32,
    /// The status of the server's GOAWAY, once it has come.
    went_away: watch::Receiver<Option<u32>>,
    reading: tokio::task::JoinHandle<()>,
    /// What the server agreed to.
    pub protocol: String,
}

impl Drop for Spdy {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// The sending side of a stream.
#[derive(Clone)]
pub struct Sender {
    pub id: u32,
    /// The connection's: it ends with that, and not with its last stream.
    writer: Weak<tokio::sync::Mutex<Box<dyn AsyncWrite + Send + Unpin>>>,
}

/// A stream that the server has replied to.
pub struct Stream {
    pub sender: Sender,
    events: mpsc::UnboundedReceiver<Event>,
    shared: Shared,
}

impl Spdy {
    /// Asks for an upgrade, as client-go does.
    ///
    /// # Errors
    /// The answer, if it is another.
    ///
    /// # Panics
    /// If there is none, or not a right one.
    pub async fn connect(net: &HostNet, url: &str, protocols: &[&str]) -> Result<Self, Head> {
        let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
        headers.extend(
            protocols
                .iter()
                .map(|name| ("X-Stream-Protocol-Version", *name)),
        );
        let (head, stream) = request(net, "POST", url, &headers).await;
        if head.status != 101 {
            return Err(head);
        }
        assert!(
            head.header("upgrade").eq_ignore_ascii_case("SPDY/3.1"),
            "{head:?}"
        );
        assert!(
            head.header("connection").eq_ignore_ascii_case("upgrade"),
            "{head:?}"
        );
        let protocol = head.header("x-stream-protocol-version").to_owned();
        let (reader, writer) = stream.into_split();
        Ok(Self::over(reader, writer, protocol))
    }

    /// Speaks over anything.
    pub fn over(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        protocol: String,
    ) -> Self {
        let writer: Writer = Arc::new(tokio::sync::Mutex::new(Box::new(writer)));
        let shared = Shared::default();
        let (away, went_away) = watch::channel(None);
        let reading = Reading::new(reader, Arc::clone(&shared), away);
        let mut packer = Compress::new(Compression::best(), true);
        packer.set_dictionary(DICTIONARY).expect("a dictionary");
        Self {
            writer,
            packer,
            shared,
            next_stream: 1,
            next_ping: 1,
            went_away,
            reading: tokio::spawn(reading.run()),
            protocol,
        }
    }

    /// Opens a stream and waits until it is replied to.
    ///
    /// # Errors
    /// How it ended instead.
    ///
    /// # Panics
    /// If nothing happens soon.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> Result<Stream, End> {
        let id = self.next_stream;
        self.next_stream += 2;
        let (events, mut stream) = mpsc::unbounded_channel();
        let (reply, replied) = oneshot::channel();
        {
            let mut table = lock(&self.shared);
            table.streams.insert(id, Sink::Events(events));
            table.replies.insert(id, reply);
        }
        let packed = self.pack(headers);
        let mut body = id.to_be_bytes().to_vec();
        // No associated stream, no priority, no slot.
        body.extend_from_slice(&[0; 6]);
        body.extend_from_slice(&packed);
        self.control(1, 0, &body).await;
        let outcome = async {
            tokio::select! {
                biased;
                replied = replied => replied.map_err(|_| End::Lost),
                event = stream.recv() => match event {
                    Some(Event::Reset(status)) => Err(End::Reset(status)),
                    Some(Event::Data(_) | Event::Fin) => panic!("no reply to stream {id}"),
                    None => Err(End::Lost),
                },
            }
        };
        let outcome = tokio::time::timeout(soon(), outcome).await;
        outcome.expect("a reply soon")?;
        let sender = Sender {
            id,
            writer: Arc::downgrade(&self.writer),
        };
        Ok(Stream {
            sender,
            events: stream,
            shared: Arc::clone(&self.shared),
        })
    }

    fn pack(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = u32::try_from(headers.len())
            .expect("few")
            .to_be_bytes()
            .to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&u32::try_from(text.len()).expect("short").to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() * 2 + 1024);
        let packing = self
            .packer
            .compress_vec(&block, &mut packed, FlushCompress::Sync);
        packing.expect("it is deflated");
        packed
    }

    /// Sends a control frame.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn control(&self, kind: u16, flags: u8, body: &[u8]) {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        let length = u32::try_from(body.len()).expect("short");
        frame.extend_from_slice(&(u32::from(flags) << 24 | length).to_be_bytes());
        frame.extend_from_slice(body);
        self.raw(&frame).await.expect("a server");
    }

    /// Sends anything.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn raw(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.lock().await.write_all(bytes).await
    }

    /// Sends a ping and waits for the answer.
    ///
    /// # Panics
    /// If none comes soon.
    pub async fn ping(&mut self) {
        let id = self.next_ping;
        self.next_ping += 2;
        let (sender, answer) = oneshot::channel();
        lock(&self.shared).pings.insert(id, sender);
        self.control(6, 0, &id.to_be_bytes()).await;
        let answer = tokio::time::timeout(soon(), answer).await;
        answer.expect("an answer soon").expect("a connection");
    }

    /// Waits for the server to go away; the status that it says.
    ///
    /// # Panics
    /// If it does not soon.
    pub async fn goes_away(&mut self) -> Option<u32> {
        let change = self.went_away.wait_for(Option::is_some);
        let change = tokio::time::timeout(soon(), change).await;
        // An error: the connection ended without it.
        change
            .expect("it goes away soon")
            .ok()
            .and_then(|status| *status)
    }
}

pub(super) fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Table> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::ops::Deref for Stream {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

impl Sender {
    /// Sends a frame of data.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&self, bytes: &[u8], fin: bool) -> std::io::Result<()> {
        let mut head = self.id.to_be_bytes().to_vec();
        let length = u32::try_from(bytes.len()).expect("at most 16 MiB");
        assert!(length < 1 << 24);
        head.extend_from_slice(&(u32::from(fin) << 24 | length).to_be_bytes());
        let writer = self.writer.upgrade();
        let writer = writer.ok_or(std::io::ErrorKind::NotConnected)?;
        let mut writer = writer.lock().await;
        writer.write_all(&head).await?;
        writer.write_all(bytes).await
    }

    /// Sends data in frames of 32 KiB, as Go's copying does.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        for piece in bytes.chunks(32 << 10) {
            self.send(piece, false).await?;
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub async fn close(&self) {
        // A connection that is gone is closed.
        let _ = self.send(&[], true).await;
    }

    /// Ends the stream in both directions.
    pub async fn reset(&self) {
        let mut frame = vec![0x80, 3, 0, 3, 0, 0, 0, 8];
        frame.extend_from_slice(&self.id.to_be_bytes());
        frame.extend_from_slice(&5_u32.to_be_bytes());
        if let Some(writer) = self.writer.upgrade() {
            let _ = writer.lock().await.write_all(&frame).await;
        }
    }
}

impl Stream {
    /// The next data.
    ///
    /// # Errors
    /// How the stream ended instead.
    pub async fn next(&mut self) -> Result<Vec<u8>, End> {
        match self.events.recv().await {
            Some(Event::Data(bytes)) => Ok(bytes),
            Some(Event::Fin) => Err(End::Fin),
            Some(Event::Reset(status)) => Err(End::Reset(status)),
            None => Err(End::Lost),
        }
    }

    /// Waits until `count` bytes have come, which are looked at by nobody: so that whoever measures a server does not
    /// measure the client.
    ///
    /// # Errors
    /// The stream has ended before that; at most so many bytes were missing.
    pub async fn skip(&mut self, count: usize) -> Result<(), usize> {
        let mut left = count;
        let (all, counted) = oneshot::channel();
        {
            // While the table is locked nothing more is put into the channel.
            let mut table = lock(&self.shared);
            loop {
                match self.events.try_recv() {
                    Ok(Event::Data(bytes)) => left = left.saturating_sub(bytes.len()),
                    Ok(Event::Fin | Event::Reset(_)) => return missing(left),
                    Err(_) => break,
                }
            }
            match table.streams.get_mut(&self.id) {
                Some(sink) if left > 0 => *sink = Sink::Counter(left, all),
                _ => return missing(left),
            }
        }
        counted.await.map_err(|_| left)
    }

    /// Everything that comes until `enough`.
    ///
    /// # Panics
    /// If it does not come soon.
    pub async fn read_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut all = Vec::new();
        let read = async {
            while !enough(&all) {
                match self.next().await {
                    Ok(bytes) => all.extend_from_slice(&bytes),
                    Err(end) => {
                        panic!("{end:?} after {:?}", String::from_utf8_lossy(&all))
                    }
                }
            }
        };
        tokio::time::timeout(soon(), read)
            .await
            .expect("it comes soon");
        all
    }

    /// Everything that comes, and how it ended.
    ///
    /// # Panics
    /// If it does not soon.
    pub async fn read_to_end(&mut self) -> (Vec<u8>, End) {
        let mut all = Vec::new();
        loop {
            match tokio::time::timeout(soon(), self.next())
                .await
                .expect("more, or the end, soon")
            {
                Ok(bytes) => all.extend_from_slice(&bytes),
                Err(end) => return (all, end),
            }
        }
    }
}

fn missing(count: usize) -> Result<(), usize> {
    match count {
        0 => Ok(()),
        count => Err(count),
    }
}
