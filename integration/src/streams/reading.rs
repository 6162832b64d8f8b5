//! The receiving side of the SPDY client.

use std::io::{self, ErrorKind};

use flate2::{Decompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use super::spdy::{DICTIONARY, Event, Shared, Sink, lock};

/// Most bytes of a payload that are read at a time, where they are counted.
const READ: usize = 256 << 10;

/// Reads a connection to its end, and hands out what comes.
pub struct Reading<R> {
    /// A frame's two words are read one by one and then its payload, as spdystream does: so small frames cost this
    /// client what they cost kubectl.
    reader: R,
    /// Where bytes go that are counted.
    counted: Vec<u8>,
    unpacker: Decompress,
    shared: Shared,
    away: watch::Sender<Option<u32>>,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    /// `away` gets the status of the server's GOAWAY.
    pub fn new(reader: R, shared: Shared, away: watch::Sender<Option<u32>>) -> Self {
        Self {
            reader,
            counted: vec![0; READ],
            unpacker: Decompress::new(true),
            shared,
            away,
        }
    }

    pub async fn run(mut self) {
        // An error is the end of the connection.
        let _ = self.read().await;
        let mut table = lock(&self.shared);
        table.lost = true;
        table.streams.clear();
        table.replies.clear();
        table.pings.clear();
    }

    async fn read(&mut self) -> io::Result<()> {
        loop {
            let first = self.reader.read_u32().await?;
            let second = self.reader.read_u32().await?;
            let (flags, length) = (second >> 24, (second & 0x00ff_ffff) as usize);
            if first >> 31 == 0 {
                if self.is_counted(first) {
                    self.count(first, length).await?;
                } else {
                    let body = self.body(length).await?;
                    self.event(first, Event::Data(body));
                }
                if flags & 1 != 0 {
                    self.event(first, Event::Fin);
                }
            } else {
                let body = self.body(length).await?;
                assert_eq!(first >> 16, 0x8003, "a control frame of version 3");
                self.control(first & 0xffff, flags, &body);
            }
        }
    }

    async fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).await?;
        Ok(body)
    }

    fn is_counted(&self, id: u32) -> bool {
        let table = lock(&self.shared);
        matches!(table.streams.get(&id), Some(Sink::Counter(..)))
    }

    /// Reads the data of a stream for its number of bytes.
    async fn count(&mut self, id: u32, mut length: usize) -> io::Result<()> {
        while length > 0 {
            let most = length.min(READ);
            let now = self.reader.read(&mut self.counted[..most]).await?;
            if now == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            length -= now;
            let mut table = lock(&self.shared);
            if let Some(Sink::Counter(left, _)) = table.streams.get_mut(&id) {
                *left = left.saturating_sub(now);
                if *left == 0
                    && let Some(Sink::Counter(_, all)) = table.streams.remove(&id)
                {
                    // Whoever does not wait any more does not care.
                    let _ = all.send(());
                }
            }
        }
        Ok(())
    }

    fn event(&self, id: u32, event: Event) {
        let mut table = lock(&self.shared);
        match table.streams.get(&id) {
            // Whoever does not listen any more does not care.
            Some(Sink::Events(stream)) => drop(stream.send(event)),
            // It has ended before it was to.
            Some(Sink::Counter(..)) => drop(table.streams.remove(&id)),
            None => {}
        }
    }

    fn control(&mut self, kind: u32, flags: u32, body: &[u8]) {
        let word = |index: usize| {
            let bytes = body[index * 4..][..4].try_into().expect("4 bytes");
            u32::from_be_bytes(bytes)
        };
        match kind {
            2 => {
                let id = word(0);
                let headers = self.unpack(&body[4..]);
                assert_eq!(&headers[..4], 0_u32.to_be_bytes(), "headers in a reply");
                assert_eq!(headers.len(), 4);
                assert_eq!(flags, 0);
                let reply = lock(&self.shared).replies.remove(&id);
                reply
                    .expect("a stream that waits for a reply")
                    .send(())
                    .ok();
            }
            3 => {
                assert_eq!(body.len(), 8);
                assert_ne!(word(1), 0, "a reset has a reason");
                self.event(word(0), Event::Reset(word(1)));
            }
            4 => assert_eq!(body.len(), 4 + 8 * word(0) as usize),
            6 => {
                let answered = lock(&self.shared).pings.remove(&word(0));
                answered.expect("a ping of ours").send(()).ok();
            }
            7 => {
                assert_eq!(body.len(), 8);
                self.away.send_replace(Some(word(1)));
            }
            9 => assert_eq!((body.len(), word(1) >> 31), (8, 0)),
            other => panic!("a control frame of type {other}"),
        }
    }

    fn unpack(&mut self, packed: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(4096);
        let before = self.unpacker.total_in();
        let first = self
            .unpacker
            .decompress_vec(packed, &mut block, FlushDecompress::Sync);
        if let Err(error) = first {
            error
                .needs_dictionary()
                .expect("a dictionary is all that is missing");
            let used = (self.unpacker.total_in() - before) as usize;
            self.unpacker
                .set_dictionary(DICTIONARY)
                .expect("the known dictionary");
            let rest = &packed[used..];
            let rest = self
                .unpacker
                .decompress_vec(rest, &mut block, FlushDecompress::Sync);
            rest.expect("a zlib stream");
        }
        block
    }
}
