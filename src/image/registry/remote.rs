//! One repository, for the time of one pull.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::header::{HeaderMap, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::mpsc;

use super::auth::{Auth, Credentials};
use super::challenge;
use super::origin::{Origin, Target};
use super::retry::Attempts;
use super::transport::{Body, Transport};
use super::{Error, Registries};
use crate::image::document::{INDEX, MANIFEST};
use crate::image::json::MOST_BYTES;
use crate::store::blobs::Digest;

/// A repository at its registry.
#[derive(Debug)]
pub struct Remote {
    registries: Registries,
    transport: Transport,
    origin: Origin,
    path: String,
    auth: Auth,
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

/// What is asked for: the words that an error calls it by, and where it is.
struct Wanted<'a> {
    what: &'a str,
    path: String,
    accept: Option<HeaderValue>,
    /// The first byte that is wanted.
    from: u64,
}

const AGENT: &str = concat!("carpel/", env!("CARGO_PKG_VERSION"));
const MOST_REDIRECTS: usize = 5;
/// Challenges answered for one request.
const MOST_RENEWALS: usize = 2;
/// Bytes of an error's body that are looked at, and characters of it that are shown.
const MOST_ERROR: u64 = 16 << 10;
const SHOWN_ERROR: usize = 200;

impl Remote {
    pub(super) fn new(
        registries: Registries,
        origin: Origin,
        path: String,
        credentials: Credentials,
    ) -> Self {
        Self {
            transport: Transport::new(registries.clone()),
            registries,
            origin,
            path,
            auth: Auth::new(credentials),
        }
    }

    /// The registry that is asked.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
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

    async fn document(&self, name: &str, digest: Option<Digest>) -> Result<Document, Error> {
        let accept = [INDEX, MANIFEST].concat().join(", ");
        let what = format!("manifest {name}");
        let wanted = Wanted {
            what: &what,
            path: format!("/v2/{}/manifests/{name}", self.path),
            accept: HeaderValue::from_str(&accept).ok(),
            from: 0,
        };
        let (headers, bytes) = self.read(&wanted, MOST_BYTES).await?;
        let actual = Digest::of(&bytes);
        let said = headers.get("docker-content-digest");
        let said = said.and_then(|said| said.to_str().ok()?.parse().ok());
        for expected in digest.into_iter().chain(said) {
            check(&what, expected, actual)?;
        }
        let media_type = headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let media_type = media_type.map(|kind| {
            let kind = kind.split(';').next().unwrap_or_default();
            kind.trim().to_ascii_lowercase()
        });
        Ok(Document {
            digest: actual,
            media_type,
            bytes,
        })
    }

    /// A blob that is small, checked.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn blob(&self, digest: Digest, size: u64) -> Result<Vec<u8>, Error> {
        let what = format!("blob {digest}");
        let (_, bytes) = self
            .read(&self.wanted_blob(&what, digest, 0), MOST_BYTES)
            .await?;
        if bytes.len() as u64 != size {
            let actual = bytes.len();
            return Err(Error::Content(format!(
                "{what} has {actual} bytes, not {size}"
            )));
        }
        check(&what, digest, Digest::of(&bytes))?;
        Ok(bytes)
    }

    fn wanted_blob<'a>(&self, what: &'a str, digest: Digest, from: u64) -> Wanted<'a> {
        Wanted {
            what,
            path: format!("/v2/{}/blobs/{digest}", self.path),
            accept: None,
            from,
        }
    }

    /// Something small, in as many attempts as it takes.
    async fn read(&self, wanted: &Wanted<'_>, most: u64) -> Result<(HeaderMap, Vec<u8>), Error> {
        let mut attempts = Attempts::default();
        loop {
            let attempt = async {
                let (head, body) = self.get(wanted).await?.into_parts();
                Ok((head.headers, body.read(most, wanted.what).await?))
            };
            match attempt.await {
                Ok(read) => return Ok(read),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// Sends the bytes of a blob, `size` in all, to `out`. A connection that breaks is made again and goes on where it
    /// broke. The digest is for the receiver to check.
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
        let mut attempts = Attempts::default();
        let mut position = 0;
        while position < size {
            let before = position;
            let transfer = self.transfer(digest, size, &mut position, out, observer);
            if let Err(error) = transfer.await {
                if position > before {
                    attempts.progress();
                }
                observer.retrying();
                attempts.failed(error).await?;
            }
        }
        Ok(())
    }

    async fn transfer(
        &self,
        digest: Digest,
        size: u64,
        position: &mut u64,
        out: &mpsc::Sender<Bytes>,
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        let what = format!("blob {digest}");
        let answer = self
            .get(&self.wanted_blob(&what, digest, *position))
            .await?;
        let from = match answer.status() {
            StatusCode::PARTIAL_CONTENT => begin(answer.headers())?,
            // The registry knows no ranges: what has come before comes again.
            _ => 0,
        };
        if from > *position {
            return Err(Error::Protocol(format!("sends another range of {what}")));
        }
        if let Some(length) = length(answer.headers())
            && from + length != size
        {
            let all = from + length;
            return Err(Error::Content(format!(
                "{what} has {all} bytes, not {size}"
            )));
        }
        let mut body = answer.into_body();
        let mut skip = *position - from;
        while *position < size {
            let Some(mut bytes) = body.next().await? else {
                let text = format!("{what} ends after {position} of {size} bytes");
                return Err(Error::Broken(text));
            };
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            let bytes = bytes.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
            let count = bytes.len() as u64;
            if *position + count > size {
                return Err(Error::Content(format!("{what} has more than {size} bytes")));
            }
            if count > 0 {
                out.send(bytes).await.map_err(|_| Error::Abandoned)?;
                *position += count;
                observer.received(*position);
            }
        }
        Ok(())
    }

    /// Asks once, proving who asks if the registry wants that, following redirects.
    async fn get(&self, wanted: &Wanted<'_>) -> Result<Response<Body>, Error> {
        let scope = format!("repository:{}:pull", self.path);
        for _ in 0..=MOST_RENEWALS {
            let held = self.auth.current();
            let (answer, own) = self.follow(wanted, held.header.as_ref()).await?;
            match answer.status() {
                StatusCode::OK => return Ok(answer),
                StatusCode::PARTIAL_CONTENT if wanted.from > 0 => return Ok(answer),
                StatusCode::UNAUTHORIZED if own => {
                    let headers = answer.headers().get_all(WWW_AUTHENTICATE);
                    let texts = headers.iter().filter_map(|header| header.to_str().ok());
                    let challenges: Vec<_> = texts.flat_map(challenge::parse).collect();
                    // Read to its end, the connection can be used again.
                    let _ = answer.into_body().read(MOST_ERROR, "").await;
                    let inner = &self.registries.0;
                    self.auth
                        .renew(
                            (inner, &self.transport),
                            &self.origin,
                            &scope,
                            &challenges,
                            &held,
                        )
                        .await?;
                }
                _ => return Err(self.refusal(wanted, answer, own).await),
            }
        }
        Err(Error::Denied("it refuses the credentials".into()))
    }

    /// The answer at the end of all redirects, and whether it is the registry's own.
    async fn follow(
        &self,
        wanted: &Wanted<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response<Body>, bool), Error> {
        let malformed = |_| Error::Protocol("malformed path".into());
        let mut target = self.origin.target(&wanted.path).map_err(malformed)?;
        for _ in 0..=MOST_REDIRECTS {
            let own = target.origin == self.origin;
            let request = request(wanted, &target, authorization.filter(|_| own));
            let request = request.map_err(|_| Error::Protocol("malformed request".into()))?;
            let answer = self.transport.send(request).await;
            let answer = answer.map_err(|error| elsewhere(&target, own, error))?;
            match answer.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => target = self.redirect(&target, answer.headers())?,
                _ => return Ok((answer, own)),
            }
        }
        let text = format!("redirects more than {MOST_REDIRECTS} times");
        Err(Error::Protocol(text))
    }

    fn redirect(&self, from: &Target, headers: &HeaderMap) -> Result<Target, Error> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let target = from.join(location.unwrap_or_default());
        let target = target.map_err(|why| Error::Protocol(format!("redirects to {why}")))?;
        let to = &target.origin;
        if from.origin.is_tls() && !to.is_tls() {
            return Err(Error::Protocol(format!("redirects from https to {to}")));
        }
        if to.is_local() && !self.origin.is_local() {
            return Err(Error::Protocol(format!(
                "redirects to {to}, on this machine"
            )));
        }
        Ok(target)
    }

    /// The error that an answer is.
    async fn refusal(&self, wanted: &Wanted<'_>, answer: Response<Body>, own: bool) -> Error {
        let status = answer.status();
        let retry_after = answer.headers().get(RETRY_AFTER);
        let retry_after = retry_after
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        // What others say may hold what only they and the registry should know.
        let detail = match own {
            true => self.detail(answer.into_body()).await,
            false => " from where the registry redirects to".to_owned(),
        };
        if status == StatusCode::NOT_FOUND {
            let what = wanted.what.to_owned();
            return Error::NotFound { what, detail };
        }
        Error::of_status(status, detail, retry_after)
    }

    /// What the registry says about an error, fit to be shown.
    async fn detail(&self, body: Body) -> String {
        #[derive(Deserialize)]
        struct Answer {
            errors: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let bytes = body.read(MOST_ERROR, "").await.unwrap_or_default();
        let answer = serde_json::from_slice::<Answer>(&bytes).ok();
        let Some(error) = answer.and_then(|answer| answer.errors.into_iter().next()) else {
            return String::new();
        };
        let text = match error.message.is_empty() {
            true => error.code,
            false => error.message,
        };
        if text.is_empty() || self.auth.is_leaked_by(&text) {
            return String::new();
        }
        let shown: String = text.chars().take(SHOWN_ERROR).collect();
        format!(" ({})", shown.escape_debug())
    }
}

fn request(
    wanted: &Wanted<'_>,
    target: &Target,
    authorization: Option<&HeaderValue>,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let mut request = Request::get(target.uri()?).header(USER_AGENT, AGENT);
    if let Some(accept) = &wanted.accept {
        request = request.header(ACCEPT, accept);
    }
    if wanted.from > 0 {
        request = request.header(RANGE, format!("bytes={}-", wanted.from));
    }
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    request.body(Full::default())
}

/// Says where it happened, if that is not the registry itself.
fn elsewhere(target: &Target, own: bool, error: Error) -> Error {
    let at = |text: String| format!("{text} (redirected to {})", target.origin);
    match error {
        error if own => error,
        Error::Connect(text) => Error::Connect(at(text)),
        Error::Tls(text) => Error::Tls(at(text)),
        other => other,
    }
}

fn check(what: &str, expected: Digest, actual: Digest) -> Result<(), Error> {
    match expected == actual {
        true => Ok(()),
        false => Err(Error::Content(format!(
            "{what} is {actual}, not {expected}"
        ))),
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Where a partial answer begins.
fn begin(headers: &HeaderMap) -> Result<u64, Error> {
    let parse = || {
        let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (from, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
        from.trim().parse().ok()
    };
    parse().ok_or_else(|| Error::Protocol("sends a part, and does not say which".into()))
}
