//! One repository, for the time of one pull: at its registry, and at the mirrors of that.
//!
//! ```text
//! document, blob, stream ─▶ mirror ─fails─▶ mirror ─fails─▶ registry      a stream goes on where it broke
//! ```

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use http::header::HeaderMap;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

use super::Error;
use super::endpoint::{Endpoint, Range, Wanted};
use super::origin::Origin;
use super::retry::Attempts;
use super::transfer::{Transfer, wanted_blob};
use crate::image::document::{INDEX, MANIFEST};
use crate::image::json::MOST_BYTES;
use crate::store::blobs::Digest;

/// A repository.
#[derive(Debug)]
pub struct Remote {
    /// In the order in which they are asked; never empty.
    endpoints: Vec<Arc<Endpoint>>,
    served: Mutex<Served>,
}

/// Who has answered, and who has not.
#[derive(Debug, Default)]
struct Served {
    /// Where the last document came from, or what went wrong at last.
    by: Option<Origin>,
    /// Hosts that did not give what they were asked for, and why.
    failed: Vec<String>,
    /// Blobs that a host sent, at least in part, behind which there are others.
    sent: HashMap<Digest, usize>,
}

/// A manifest or index, whose bytes are what its digest says.
#[derive(Debug, Clone)]
pub struct Document {
    pub digest: Digest,
    pub media_type: Option<String>,
    pub bytes: Vec<u8>,
}

/// Is told how far a transfer is.
pub trait Observer: Send + Sync {
    /// So many bytes have come.
    fn received(&self, bytes: u64);
    /// It broke, and is tried again after a while.
    fn retrying(&self);
}

/// Hosts that are told of in an error, beside the last one.
const MOST_TOLD: usize = 3;

impl Remote {
    pub(super) fn new(endpoints: Vec<Endpoint>) -> Self {
        let endpoints = endpoints.into_iter().map(Arc::new).collect();
        let served = Mutex::default();
        Self { endpoints, served }
    }

    /// What an error or a log calls the registry: who was asked last, and which hosts failed before.
    #[must_use]
    pub fn registry(&self) -> String {
        let served = self.served();
        let last = self.endpoints.last().map(|last| last.origin());
        let by = served.by.as_ref().or(last);
        let by = by.map(ToString::to_string).unwrap_or_default();
        match served.failed.as_slice() {
            [] => by,
            failed => {
                let told = &failed[..failed.len().min(MOST_TOLD)];
                format!("{by} (after {})", told.join("; "))
            }
        }
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the host that sent a blob out from now on, as it was not what it should be: whether there is another one.
    pub fn distrust(&self, digest: Digest, why: &dyn Display) -> bool {
        let mut served = self.served();
        let Some(endpoint) = served.sent.remove(&digest).map(|at| &self.endpoints[at]) else {
            return false;
        };
        endpoint.give_up();
        let text = format!("{}: blob {digest}: {why}", endpoint.origin());
        tracing::debug!(error = text, "the next host is asked");
        served.failed.push(text);
        true
    }

    /// The next endpoint to ask from a place in their order, and whether it is the last one.
    fn next(&self, from: usize, resolve: bool) -> Option<(usize, &Arc<Endpoint>, bool)> {
        let mut rest = self.endpoints.iter().enumerate().skip(from);
        let (at, endpoint) = rest.find(|(_, endpoint)| endpoint.serves(resolve))?;
        let last = !rest.any(|(_, endpoint)| endpoint.serves(resolve));
        Some((at, endpoint, last))
    }

    /// The attempts that an endpoint is worth: behind a mirror there is another.
    fn attempts(last: bool) -> Attempts {
        match last {
            true => Attempts::default(),
            false => Attempts::hasty(),
        }
    }

    /// Goes on with the next endpoint, unless there is none or nobody wants the answer any more.
    fn failed(&self, endpoint: &Endpoint, last: bool, error: Error) -> Result<(), Error> {
        let gone = matches!(error, Error::Abandoned | Error::Cancelled);
        let mut served = self.served();
        if last || gone {
            served.by = Some(endpoint.origin().clone());
            return Err(error);
        }
        let origin = endpoint.origin();
        tracing::debug!(registry = %origin, %error, "the next host is asked");
        let text = format!("{origin}: {error}");
        if !served.failed.contains(&text) {
            served.failed.push(text);
        }
        // One that does not have this may have the rest.
        if !matches!(error, Error::NotFound { .. }) {
            endpoint.give_up();
        }
        Ok(())
    }

    fn nobody(resolve: bool) -> Error {
        let what = if resolve {
            "resolve a tag"
        } else {
            "be pulled from"
        };
        Error::Protocol(format!("its hosts.toml names no host that may {what}"))
    }

    /// The manifest or index under a tag.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn tagged(&self, tag: &str) -> Result<Document, Error> {
        self.document(tag, None).await
    }

    /// The manifest or index of a digest.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn manifest(&self, digest: Digest) -> Result<Document, Error> {
        self.document(&digest.to_string(), Some(digest)).await
    }

    /// The index of what refers to a manifest or index: signatures, among other things.
    ///
    /// # Errors
    /// [`Error`]; [`Error::NotFound`] also of a registry that does not know what that is.
    pub async fn referrers(&self, digest: Digest) -> Result<Document, Error> {
        let what = format!("referrers of {digest}");
        let wanted = Wanted {
            what: &what,
            path: format!("referrers/{digest}"),
            accept: HeaderValue::from_str(INDEX[0]).ok(),
            range: Range::default(),
        };
        let take = |headers: HeaderMap, bytes: Vec<u8>| {
            Ok(Document {
                digest: Digest::of(&bytes),
                media_type: media_type(&headers),
                bytes,
            })
        };
        self.read(&wanted, true, take).await
    }

    async fn document(&self, name: &str, digest: Option<Digest>) -> Result<Document, Error> {
        let accept = [INDEX, MANIFEST].concat().join(", ");
        let what = format!("manifest {name}");
        let wanted = Wanted {
            what: &what,
            path: format!("manifests/{name}"),
            accept: HeaderValue::from_str(&accept).ok(),
            range: Range::default(),
        };
        let take = |headers: HeaderMap, bytes: Vec<u8>| {
            let actual = Digest::of(&bytes);
            let said = headers.get("docker-content-digest");
            let said = said.and_then(|said| said.to_str().ok()?.parse().ok());
            for expected in digest.into_iter().chain(said) {
                check(&what, expected, actual)?;
            }
            Ok(Document {
                digest: actual,
                media_type: media_type(&headers),
                bytes,
            })
        };
        self.read(&wanted, digest.is_none(), take).await
    }

    /// A blob that is small, checked.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn blob(&self, digest: Digest, size: u64) -> Result<Vec<u8>, Error> {
        let what = format!("blob {digest}");
        let take = |_, bytes: Vec<u8>| {
            if bytes.len() as u64 != size {
                let actual = bytes.len();
                let text = format!("{what} has {actual} bytes, not {size}");
                return Err(Error::Content(text));
            }
            check(&what, digest, Digest::of(&bytes))?;
            Ok(bytes)
        };
        self.read(&wanted_blob(&what, digest, Range::default()), false, take)
            .await
    }

    /// Something small, from the first endpoint that has it as it should be, in as many attempts as it takes.
    async fn read<T>(
        &self,
        wanted: &Wanted<'_>,
        resolve: bool,
        take: impl Fn(HeaderMap, Vec<u8>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut from = 0;
        while let Some((at, endpoint, last)) = self.next(from, resolve) {
            let read = async {
                let (headers, bytes) = read(endpoint, wanted, Self::attempts(last)).await?;
                take(headers, bytes)
            };
            match read.await {
                Ok(taken) => {
                    let mut served = self.served();
                    served.by = Some(endpoint.origin().clone());
                    return Ok(taken);
                }
                Err(error) => self.failed(endpoint, last, error)?,
            }
            from = at + 1;
        }
        Err(Self::nobody(resolve))
    }

    /// Sends the bytes of a blob, `size` in all, to `out`. A connection that breaks is made again and goes on where it
    /// broke, at the next endpoint if it must. The digest is for the receiver to check.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Abandoned`] if the receiver is gone.
    pub async fn stream(
        &self,
        digest: Digest,
        size: u64,
        out: &mpsc::Sender<Bytes>,
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        let mut transfer = Transfer::new(digest, size, out, observer);
        let mut from = 0;
        while let Some((at, endpoint, last)) = self.next(from, false) {
            let before = transfer.position();
            let outcome = transfer.run(endpoint, Self::attempts(last)).await;
            if transfer.position() > before && !last {
                self.served().sent.entry(digest).or_insert(at);
            }
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) => self.failed(endpoint, last, error)?,
            }
            from = at + 1;
        }
        Err(Self::nobody(false))
    }
}

async fn read(
    endpoint: &Endpoint,
    wanted: &Wanted<'_>,
    mut attempts: Attempts,
) -> Result<(HeaderMap, Vec<u8>), Error> {
    loop {
        let attempt = async {
            let (head, body) = endpoint.get(wanted).await?.into_parts();
            Ok((head.headers, body.read(MOST_BYTES, wanted.what).await?))
        };
        match attempt.await {
            Ok(read) => return Ok(read),
            Err(error) => attempts.failed(error).await?,
        }
    }
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next().unwrap_or_default();
    Some(kind.trim().to_ascii_lowercase())
}

fn check(what: &str, expected: Digest, actual: Digest) -> Result<(), Error> {
    match expected == actual {
        true => Ok(()),
        false => Err(Error::Content(format!(
            "{what} is {actual}, not {expected}"
        ))),
    }
}
