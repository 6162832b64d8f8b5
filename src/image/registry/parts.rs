//! Parts of a large blob that are fetched beside each other, from a registry that is slow for each connection.
//!
//! ```text
//! connection  ├─ what comes now ─┤ closed
//! part                            ├────────┤ taken          queue: in order, each at most PART bytes in memory
//! part                                      ├────────┤
//! ```
//!
//! What must always hold: all parts of all pulls together take no more than [`AT_ONCE`] times [`PART`] bytes. A part that
//! fails costs what has come of it, and the transfer goes on without any. That the parts fit together is proved by the
//! blob's digest, as everything else about it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::Error;
use super::endpoint::{Endpoint, Range};
use super::transfer::{begin, wanted_blob};
use crate::store::blobs::Digest;

/// Bytes of one part.
const PART: u64 = 4 << 20;
/// Parts of all pulls together: what they take of the memory.
pub(super) const AT_ONCE: usize = 4;
/// Smaller blobs come over one connection.
const LARGE: u64 = 32 << 20;
/// What is left must be worth it.
const LEFT: u64 = 3 * PART;

/// Parts of one blob.
pub(super) struct Parts {
    digest: Digest,
    size: u64,
    /// Whether it is worth trying.
    allowed: bool,
    tasks: JoinSet<()>,
    queue: VecDeque<Fetched>,
    /// Where the part after all of the queue begins.
    next: u64,
}

/// What comes of a part.
pub(super) enum Part {
    Bytes(Bytes),
    /// The registry sends the whole blob instead.
    NoRanges,
    Failed(Error),
}

/// A part that is on its way.
struct Fetched {
    /// The first byte that is yet to be taken.
    position: u64,
    end: u64,
    pieces: mpsc::UnboundedReceiver<Part>,
    _memory: OwnedSemaphorePermit,
}

impl Parts {
    pub(super) fn new(digest: Digest, size: u64) -> Self {
        Self {
            digest,
            size,
            allowed: size >= LARGE,
            tasks: JoinSet::new(),
            queue: VecDeque::new(),
            next: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Where the first of them begins.
    pub(super) fn begin(&self) -> Option<u64> {
        self.queue.front().map(|part| part.position)
    }

    /// Begins to fetch parts, while `position` is what comes now.
    pub(super) fn start(&mut self, endpoint: &Arc<Endpoint>, position: u64) {
        if self.size - position >= LEFT {
            // What comes now is a part itself.
            self.next = position + PART;
            self.fill(endpoint);
        }
    }

    /// Fetches as many more as there may be.
    pub(super) fn fill(&mut self, endpoint: &Arc<Endpoint>) {
        while self.allowed && self.next < self.size && self.queue.len() < AT_ONCE {
            let Ok(memory) = endpoint.parts().try_acquire_owned() else {
                return;
            };
            let (from, end) = (self.next, self.size.min(self.next + PART));
            let (sender, pieces) = mpsc::unbounded_channel();
            let (endpoint, digest) = (Arc::clone(endpoint), self.digest);
            let fetch = async move {
                if let Err(failed) = fetch(&endpoint, digest, from, end, &sender).await {
                    let _ = sender.send(failed);
                }
            };
            self.tasks.spawn(fetch.in_current_span());
            while self.tasks.try_join_next().is_some() {}
            self.queue.push_back(Fetched {
                position: from,
                end,
                pieces,
                _memory: memory,
            });
            self.next = end;
        }
    }

    /// The next bytes in order. `None`: there are no parts.
    pub(super) async fn next(&mut self) -> Option<Part> {
        let part = self.queue.front_mut()?;
        let piece = part.pieces.recv().await;
        if let Some(Part::Bytes(bytes)) = &piece {
            part.position += bytes.len() as u64;
            if part.position == part.end {
                self.queue.pop_front();
            }
        }
        Some(piece.unwrap_or_else(|| {
            let text = "a part ended before its end".to_owned();
            Part::Failed(Error::Broken(text))
        }))
    }

    /// Drops what there is. More may be fetched later.
    pub(super) fn clear(&mut self) {
        self.tasks.abort_all();
        self.queue.clear();
    }

    /// The registry does not like it: there will be none any more.
    pub(super) fn give_up(&mut self) {
        self.allowed = false;
        self.clear();
    }
}

async fn fetch(
    endpoint: &Endpoint,
    digest: Digest,
    from: u64,
    end: u64,
    out: &mpsc::UnboundedSender<Part>,
) -> Result<(), Part> {
    let what = format!("blob {digest}");
    let range = Range {
        from,
        until: Some(end),
    };
    let answer = endpoint.get(&wanted_blob(&what, digest, range)).await;
    let answer = answer.map_err(Part::Failed)?;
    let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
    if !is_part || begin(answer.headers()).map_err(Part::Failed)? != from {
        return Err(Part::NoRanges);
    }
    let (mut body, mut left) = (answer.into_body(), end - from);
    while left > 0 {
        let bytes = body.next().await.map_err(Part::Failed)?;
        let Some(mut bytes) = bytes else {
            let text = format!("a part of {what} ends before its end");
            return Err(Part::Failed(Error::Broken(text)));
        };
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= bytes.len() as u64;
        if out.send(Part::Bytes(bytes)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
