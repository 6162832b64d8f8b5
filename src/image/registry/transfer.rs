//! A blob on its way: from one host, begun again where it broke, its end fetched beside its beginning if that helps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use tokio::sync::mpsc;

use super::Error;
use super::endpoint::{Endpoint, Range, Wanted};
use super::parts::{Part, Parts};
use super::remote::Observer;
use super::retry::Attempts;
use super::transport::Body;
use crate::store::blobs::Digest;

/// A blob on its way.
pub(super) struct Transfer<'a> {
    /// What an error calls it.
    what: String,
    digest: Digest,
    size: u64,
    /// So many bytes have come.
    position: u64,
    out: &'a mpsc::Sender<Bytes>,
    observer: &'a dyn Observer,
    pace: Pace,
    parts: Parts,
}

/// What a transfer waits for.
#[derive(Debug, Default)]
struct Pace {
    sender: Duration,
    receiver: Duration,
}

/// How long the pace is looked at, and how often the time that the sender takes must be that of the receiver for a
/// transfer to be slow.
const WINDOW: Duration = Duration::from_millis(500);
const SLOW: u32 = 4;

impl<'a> Transfer<'a> {
    pub(super) fn new(
        digest: Digest,
        size: u64,
        out: &'a mpsc::Sender<Bytes>,
        observer: &'a dyn Observer,
    ) -> Self {
        Self {
            what: format!("blob {digest}"),
            digest,
            size,
            position: 0,
            out,
            observer,
            pace: Pace::default(),
            parts: Parts::new(digest, size),
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Gets the rest of it from an endpoint.
    pub(super) async fn run(
        &mut self,
        endpoint: &Arc<Endpoint>,
        mut attempts: Attempts,
    ) -> Result<(), Error> {
        while self.position < self.size {
            let before = self.position;
            let Err(error) = self.attempt(endpoint).await else {
                continue;
            };
            if self.position > before {
                attempts.progress();
            }
            self.observer.retrying();
            if let Err(error) = attempts.failed(error).await {
                // What it has sent ahead is no better.
                self.parts.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    async fn attempt(&mut self, endpoint: &Arc<Endpoint>) -> Result<(), Error> {
        if self.parts.begin() == Some(self.position) {
            return self.take_parts(endpoint).await;
        }
        let (mut body, mut skip) = self.rest(endpoint).await?;
        let size = self.size;
        while self.position < size {
            let end = self.parts.begin().unwrap_or(size);
            if self.position == end {
                drop(body);
                return self.take_parts(endpoint).await;
            }
            let begin = Instant::now();
            let Some(mut bytes) = body.next().await? else {
                let text = format!("{} ends after {} of {size} bytes", self.what, self.position);
                return Err(Error::Broken(text));
            };
            self.pace.sender += begin.elapsed();
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            let mut bytes = bytes.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
            if self.position + bytes.len() as u64 > size {
                let text = format!("{} has more than {size} bytes", self.what);
                return Err(Error::Content(text));
            }
            bytes.truncate(usize::try_from(end - self.position).unwrap_or(usize::MAX));
            self.pass_on(bytes).await?;
            if self.pace.is_slow() && self.parts.is_empty() {
                self.parts.start(endpoint, self.position);
            }
        }
        Ok(())
    }

    /// Asks for the rest of it; returns the answer's body, and how many bytes of that have come before.
    async fn rest(&self, endpoint: &Endpoint) -> Result<(Body, u64), Error> {
        let Self { what, size, .. } = self;
        let range = Range {
            from: self.position,
            until: None,
        };
        let answer = endpoint.get(&wanted_blob(what, self.digest, range)).await?;
        let from = match answer.status() {
            StatusCode::PARTIAL_CONTENT => begin(answer.headers())?,
            // The registry knows no ranges: what has come before comes again.
            _ => 0,
        };
        if from > self.position {
            return Err(Error::Protocol(format!("sends another range of {what}")));
        }
        if let Some(length) = length(answer.headers())
            && from.saturating_add(length) != *size
        {
            let all = from.saturating_add(length);
            let text = format!("{what} has {all} bytes, not {size}");
            return Err(Error::Content(text));
        }
        Ok((answer.into_body(), self.position - from))
    }

    /// Takes what has been fetched ahead, while more is. When there is no more of it, the rest comes as usual.
    async fn take_parts(&mut self, endpoint: &Arc<Endpoint>) -> Result<(), Error> {
        loop {
            self.parts.fill(endpoint);
            match self.parts.next().await {
                Some(Part::Bytes(bytes)) => self.pass_on(bytes).await?,
                Some(Part::Failed(error)) => {
                    self.parts.give_up();
                    // What is wrong with parts only, the rest shows not to be.
                    if error.is_transient() {
                        return Err(error);
                    }
                }
                Some(Part::NoRanges) => self.parts.give_up(),
                None => return Ok(()),
            }
        }
    }

    async fn pass_on(&mut self, bytes: Bytes) -> Result<(), Error> {
        let count = bytes.len() as u64;
        if count > 0 {
            let begin = Instant::now();
            self.out.send(bytes).await.map_err(|_| Error::Abandoned)?;
            self.pace.receiver += begin.elapsed();
            self.position += count;
            self.observer.received(self.position);
        }
        Ok(())
    }
}

impl Pace {
    /// Whether it is the sender that the transfer has waited for lately, for the most part.
    fn is_slow(&mut self) -> bool {
        if self.sender + self.receiver < WINDOW {
            return false;
        }
        let seen = std::mem::take(self);
        seen.sender >= seen.receiver * SLOW
    }
}

pub(super) fn wanted_blob(what: &str, digest: Digest, range: Range) -> Wanted<'_> {
    Wanted {
        what,
        path: format!("blobs/{digest}"),
        accept: None,
        range,
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Where a partial answer begins.
pub(super) fn begin(headers: &HeaderMap) -> Result<u64, Error> {
    let parse = || {
        let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (from, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
        from.trim().parse().ok()
    };
    parse().ok_or_else(|| Error::Protocol("sends a part, and does not say which".into()))
}
