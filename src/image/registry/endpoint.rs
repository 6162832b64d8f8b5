//! One host that has a repository: asking it, as whoever the pull is for, and following where it redirects to.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, USER_AGENT};
use http::header::{HeaderMap, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::Semaphore;

use super::auth::{Auth, encode};
use super::challenge;
use super::origin::{Origin, Target};
use super::transport::{Body, Transport};
use super::{Error, Presence, Probe, Registries, retry};

/// The registry itself or a mirror of it, for the time of one pull.
#[derive(Debug)]
pub(super) struct Endpoint {
    part: Part,
    /// It has shown that it is of no use to this pull.
    down: AtomicBool,
}

/// What an endpoint is made of.
#[derive(Debug)]
pub(super) struct Part {
    pub registries: Registries,
    pub transport: Transport,
    pub auth: Auth,
    pub origin: Origin,
    /// The path that all others begin with, without a slash at its end.
    pub root: String,
    pub repository: String,
    /// The domain that a mirror is asked for.
    pub namespace: Option<String>,
    /// Sent to this origin only.
    pub headers: HeaderMap,
    pub pull: bool,
    pub resolve: bool,
}

/// What is asked for: the words that an error calls it by, and where it is.
pub(super) struct Wanted<'a> {
    pub what: &'a str,
    /// Within the repository.
    pub path: String,
    pub accept: Option<HeaderValue>,
    pub range: Range,
}

/// The bytes that are wanted; all, by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub from: u64,
    /// The first byte that is not.
    pub until: Option<u64>,
}

impl Range {
    /// As a header says it, if it is not all.
    fn header(self) -> Option<String> {
        match self {
            Self {
                from: 0,
                until: None,
            } => None,
            Self { from, until: None } => Some(format!("bytes={from}-")),
            Self {
                from,
                until: Some(until),
            } => Some(format!("bytes={from}-{}", until.saturating_sub(1))),
        }
    }
}

const AGENT: &str = concat!("carpel/", env!("CARGO_PKG_VERSION"));
const MOST_REDIRECTS: usize = 5;
/// Challenges answered for one request.
const MOST_RENEWALS: usize = 2;
/// Bytes of an error's body that are looked at, and characters of it that are shown.
const MOST_ERROR: u64 = 16 << 10;
const SHOWN_ERROR: usize = 200;

impl Endpoint {
    pub(super) fn new(part: Part) -> Self {
        let down = AtomicBool::new(false);
        Self { part, down }
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.part.origin
    }

    /// Permits to fetch parts of blobs, shared by all pulls.
    pub(super) fn parts(&self) -> Arc<Semaphore> {
        Arc::clone(&self.part.registries.0.parts)
    }

    /// Whether it may be asked, and is not known to be of no use.
    pub(super) fn serves(&self, resolve: bool) -> bool {
        let may = if resolve {
            self.part.resolve
        } else {
            self.part.pull
        };
        may && !self.down.load(Ordering::Relaxed)
    }

    /// It is asked for nothing more.
    pub(super) fn give_up(&self) {
        self.down.store(true, Ordering::Relaxed);
    }

    fn path(&self, wanted: &Wanted<'_>) -> String {
        let Part {
            root, repository, ..
        } = &self.part;
        let query = match &self.part.namespace {
            Some(domain) => format!("?ns={}", encode(domain)),
            None => String::new(),
        };
        format!("{root}/{repository}/{}{query}", wanted.path)
    }

    pub(super) async fn probed(&self) -> Probe {
        Probe {
            origin: self.part.origin.clone(),
            result: self.probe().await,
        }
    }

    /// Asks whether it is a registry, as nobody.
    async fn probe(&self) -> Result<Presence, Error> {
        let begin = Instant::now();
        let target = self.part.origin.target(&format!("{}/", self.part.root));
        let target = target.map_err(|_| Error::Protocol("malformed path".into()))?;
        let wanted = Wanted {
            what: "",
            path: String::new(),
            accept: None,
            range: Range::default(),
        };
        let request = self.request(&wanted, &target, true, None);
        let request = request.map_err(|_| Error::Protocol("malformed request".into()))?;
        let answer = self.part.transport.send(request).await?;
        let version = answer.headers().get("docker-distribution-api-version");
        let version = version.and_then(|version| version.to_str().ok());
        Ok(Presence {
            status: answer.status(),
            says_so: version.is_some_and(|version| version.starts_with("registry/2")),
            time: begin.elapsed(),
        })
    }

    /// Asks once, proving who asks if the registry wants that, following redirects.
    pub(super) async fn get(&self, wanted: &Wanted<'_>) -> Result<Response<Body>, Error> {
        let scope = format!("repository:{}:pull", self.part.repository);
        for _ in 0..=MOST_RENEWALS {
            let held = self.part.auth.current();
            let (answer, own) = self.follow(wanted, held.header.as_ref()).await?;
            match answer.status() {
                StatusCode::OK => return Ok(answer),
                StatusCode::PARTIAL_CONTENT if wanted.range != Range::default() => {
                    return Ok(answer);
                }
                StatusCode::UNAUTHORIZED if own => {
                    let headers = answer.headers().get_all(WWW_AUTHENTICATE);
                    let texts = headers.iter().filter_map(|header| header.to_str().ok());
                    let challenges: Vec<_> = texts.flat_map(challenge::parse).collect();
                    // Read to its end, the connection can be used again.
                    let _ = answer.into_body().read(MOST_ERROR, "").await;
                    let inner = &self.part.registries.0;
                    self.part
                        .auth
                        .renew(
                            (inner, &self.part.transport),
                            &self.part.origin,
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
        let mut target = self
            .part
            .origin
            .target(&self.path(wanted))
            .map_err(malformed)?;
        for _ in 0..=MOST_REDIRECTS {
            let own = target.origin == self.part.origin;
            let request = self.request(wanted, &target, own, authorization);
            let request = request.map_err(|_| Error::Protocol("malformed request".into()))?;
            let answer = self.part.transport.send(request).await;
            let answer = answer.map_err(|error| elsewhere(&target, own, error))?;
            match answer.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => target = self.redirect(&target, answer.headers())?,
                _ => return Ok((answer, own)),
            }
        }
        let text = format!("redirects more than {MOST_REDIRECTS} times");
        Err(Error::Protocol(text))
    }

    fn request(
        &self,
        wanted: &Wanted<'_>,
        target: &Target,
        own: bool,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::get(target.uri()?).body(Full::default())?;
        let headers = request.headers_mut();
        if own {
            headers.clone_from(&self.part.headers);
        }
        let agent = || HeaderValue::from_static(AGENT);
        headers.entry(USER_AGENT).or_insert_with(agent);
        if let Some(accept) = &wanted.accept {
            headers.insert(ACCEPT, accept.clone());
        }
        if let Some(range) = wanted.range.header() {
            headers.insert(RANGE, HeaderValue::try_from(range)?);
        }
        if let Some(authorization) = authorization.filter(|_| own) {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    fn redirect(&self, from: &Target, headers: &HeaderMap) -> Result<Target, Error> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let target = from.join(location.unwrap_or_default());
        let target = target.map_err(|why| Error::Protocol(format!("redirects to {why}")))?;
        let to = &target.origin;
        if from.origin.is_tls() && !to.is_tls() {
            return Err(Error::Protocol(format!("redirects from https to {to}")));
        }
        if to.is_local() && !self.part.origin.is_local() {
            return Err(Error::Protocol(format!(
                "redirects to {to}, on this machine"
            )));
        }
        Ok(target)
    }

    /// The error that an answer is.
    async fn refusal(&self, wanted: &Wanted<'_>, answer: Response<Body>, own: bool) -> Error {
        let status = answer.status();
        let retry_after = retry::after(answer.headers());
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
        let secrets = self.part.headers.values();
        let mut secrets = secrets.filter_map(|value| value.to_str().ok());
        let leaks = self.part.auth.is_leaked_by(&text)
            || secrets.any(|secret| secret.len() > 3 && text.contains(secret));
        if text.is_empty() || leaks {
            return String::new();
        }
        let shown: String = text.chars().take(SHOWN_ERROR).collect();
        format!(" ({})", shown.escape_debug())
    }
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
