//! Reading ahead: two stages of a pipeline, each on a thread of its own.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::store::blobs::read_some;

/// Bytes of one piece, and pieces that are under way.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// What a stage reads of the one before it.
pub(super) struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    /// Pieces that have been read, to be filled again.
    empty: Sender<Vec<u8>>,
    piece: Vec<u8>,
    position: usize,
}

/// Runs `consume` on what `reader` gives, while a thread reads on. Returns the reader, too, at wherever it is.
///
/// # Errors
/// If there can be no thread.
pub(super) fn ahead<R: Read + Send, T>(
    mut reader: R,
    consume: impl FnOnce(Ahead) -> T,
) -> io::Result<(T, R)> {
    let (sender, pieces) = sync_channel(PIECES);
    let (empty, emptied) = channel();
    for _ in 0..PIECES {
        // Made when they are first needed: most layers are small.
        let _ = empty.send(Vec::new());
    }
    let ahead = Ahead {
        pieces,
        empty,
        piece: Vec::new(),
        position: 0,
    };
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("unpack".into());
        let reading = builder.spawn_scoped(scope, move || {
            fill(&mut reader, &sender, &emptied);
            reader
        })?;
        let outcome = consume(ahead);
        // What it read from is dropped by now, so that the thread ends.
        match reading.join() {
            Ok(reader) => Ok((outcome, reader)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn fill(
    reader: &mut impl Read,
    pieces: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) {
    while let Ok(mut piece) = empty.recv() {
        piece.resize(PIECE, 0);
        let mut length = 0;
        let mut failed = None;
        while length < PIECE {
            match read_some(reader, &mut piece[length..]) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        piece.truncate(length);
        let ended = length < PIECE;
        if length > 0 && pieces.send(Ok(piece)).is_err() {
            return;
        }
        if let Some(error) = failed {
            let _ = pieces.send(Err(error));
        }
        if ended {
            return;
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.position == self.piece.len() {
            let done = std::mem::take(&mut self.piece);
            self.position = 0;
            if done.capacity() > 0 {
                // The reader is gone when there is nothing more to read.
                let _ = self.empty.send(done);
            }
            match self.pieces.recv() {
                Ok(piece) => self.piece = piece?,
                Err(_) => return Ok(0),
            }
        }
        let left = &self.piece[self.position..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.position += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(usize);

    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("broken"));
            }
            let count = buffer.len().min(self.0).min(70_001);
            buffer[..count].fill(7);
            self.0 -= count;
            Ok(count)
        }
    }

    #[test]
    fn all_of_it_comes_in_order() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        for length in [0, 1, PIECE, PIECE * 2, bytes.len()] {
            let (read, rest) = ahead(&bytes[..length], |mut stream| {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).map(|_| all)
            })
            .unwrap();
            assert!(read.unwrap() == bytes[..length]);
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn an_error_comes_after_what_was_read_before_it() {
        let (outcome, _) = ahead(Broken(300_000), |mut stream| {
            let mut all = Vec::new();
            let error = stream.read_to_end(&mut all).unwrap_err();
            (all.len(), error.to_string())
        })
        .unwrap();
        assert_eq!(outcome, (300_000, "broken".into()));
    }

    #[test]
    fn a_consumer_that_has_enough_ends_the_reading() {
        let (first, _) = ahead(io::repeat(9), |mut stream| {
            let mut first = [0; 10];
            stream.read_exact(&mut first).map(|()| first)
        })
        .unwrap();
        assert_eq!(first.unwrap(), [9; 10]);
    }
}
