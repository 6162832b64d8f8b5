//! A layer on its way: written by a task, read by the thread that unpacks it.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Reads what a task sends. Its end before all has come is an error.
pub(super) struct Incoming {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    /// Bytes that are yet to be sent.
    left: u64,
}

impl Incoming {
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>, size: u64) -> Self {
        Self {
            pieces,
            piece: Bytes::new(),
            left: size,
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if self.left == 0 || buffer.is_empty() {
                return Ok(0);
            }
            let Some(piece) = self.pieces.blocking_recv() else {
                let text = "the transfer broke off";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
            };
            self.left = self.left.saturating_sub(piece.len() as u64);
            self.piece = piece;
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_or_an_error() {
        let read = |size| {
            let (sender, pieces) = mpsc::channel(4);
            for piece in ["ab", "", "cde"] {
                sender.try_send(Bytes::from(piece)).unwrap();
            }
            drop(sender);
            let mut text = String::new();
            Incoming::new(pieces, size)
                .read_to_string(&mut text)
                .map(|_| text)
        };
        assert_eq!(read(5).unwrap(), "abcde");
        assert_eq!(
            read(6).unwrap_err().kind(),
            io::ErrorKind::ConnectionAborted
        );
    }
}
