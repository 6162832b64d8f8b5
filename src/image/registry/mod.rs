//! Registries: fetching manifests and blobs over HTTP, as the OCI distribution specification says.
//!
//! ```text
//! Registries ─open: hosts, auth files─▶ Remote (one repository, one pull) ─▶ Endpoint ─▶ auth ─▶ redirects ─▶ transport
//!                       manifest, blob: retried, resumed, from mirrors      one host                      └▶ dial: proxies
//! ```
//!
//! What must always hold:
//! - Credentials are bound to an [`Origin`]: the registry's own, and its token service if that is of the same site or
//!   was allowed by the operator. No redirect carries them away, no mirror sees them, and no error or log has them.
//! - Everything is bounded: documents, tokens, redirects, attempts, and the time in which nothing comes.
//! - What a registry sends is believed when its digest is right, and not before.

mod auth;
mod auth_file;
mod challenge;
mod dial;
mod endpoint;
mod error;
mod hosts;
mod origin;
mod parts;
mod proxy;
mod remote;
mod retry;
mod setup;
mod transfer;
mod transport;

/// For the fuzzer and its corpus.
pub mod fuzz {
    /// A `hosts.toml`.
    pub fn hosts(bytes: &[u8]) {
        super::hosts::fuzz(bytes);
    }

    /// What a registry asks for in a header.
    pub fn challenge(bytes: &[u8]) {
        if let Ok(header) = std::str::from_utf8(bytes) {
            let found = super::challenge::parse(header);
            assert!(found.len() <= header.len());
        }
    }
}

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use auth::{Credentials, InvalidCredentials};
pub use error::{Error, SetupError};
pub use origin::{InvalidHost, Origin, RegistryHost};
pub use proxy::{InvalidVariable, Proxies};
pub use remote::{Document, Observer, Remote};

use super::reference::Repository;
use transport::Trust;

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Registries that are spoken to over http. Those on the loopback interface are anyway.
    pub plain_http: Vec<RegistryHost>,
    /// Hosts of token services that may be given the credentials of registries of other sites.
    pub token_hosts: Vec<RegistryHost>,
    /// Folders of `HOST/hosts.toml`.
    pub config_path: Vec<PathBuf>,
    /// Files with credentials.
    pub auth_files: Vec<PathBuf>,
    pub proxies: Proxies,
    /// Layers of one image that are fetched at once.
    pub parallel_layers: usize,
    /// How long a registry may take to connect, to answer, and to send the next bytes.
    pub timeout: Duration,
}

/// What came of asking a host whether it is there.
#[derive(Debug)]
pub struct Probe {
    pub origin: Origin,
    pub result: Result<Presence, Error>,
}

/// A host's answer.
#[derive(Debug, Clone, Copy)]
pub struct Presence {
    pub status: http::StatusCode,
    /// Whether it says that it is a registry.
    pub says_so: bool,
    pub time: Duration,
}

/// Layers that all pulls together fetch at once, for each that one of them may.
const PULLS_AT_ONCE: usize = 4;
/// Where the images of this domain are.
const DOCKER_DOMAIN: &str = "docker.io";

/// All registries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registries(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    plain_http: HashSet<RegistryHost>,
    token_hosts: HashSet<String>,
    config_path: Vec<PathBuf>,
    auth_files: Vec<PathBuf>,
    proxies: Arc<Proxies>,
    parallel_layers: usize,
    timeout: Duration,
    trust: Trust,
    transfers: Arc<Semaphore>,
    /// Each is the memory that one part of a blob takes.
    parts: Arc<Semaphore>,
}

impl Registries {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let parallel = settings.parallel_layers.max(1);
        let hosts = settings.token_hosts.into_iter();
        Self(Arc::new(Inner {
            plain_http: settings.plain_http.into_iter().collect(),
            token_hosts: hosts.map(|host| host.name().to_owned()).collect(),
            config_path: settings.config_path,
            auth_files: settings.auth_files,
            proxies: Arc::new(settings.proxies),
            parallel_layers: parallel,
            timeout: settings.timeout,
            trust: Trust::new(),
            transfers: Arc::new(Semaphore::new(parallel * PULLS_AT_ONCE)),
            parts: Arc::new(Semaphore::new(parts::AT_ONCE)),
        }))
    }

    /// Layers of one image that are fetched at once.
    #[must_use]
    pub fn parallel_layers(&self) -> usize {
        self.0.parallel_layers
    }

    /// Permits to fetch a layer, shared by all pulls.
    pub(super) fn transfers(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.transfers)
    }

    /// Where the registry of a domain is, and whether it is spoken to over TLS.
    #[must_use]
    pub fn origin(&self, domain: RegistryHost) -> Origin {
        let host = setup::actual(&domain);
        let plain = self.0.plain_http.contains(&host) || host.is_loopback();
        Origin::of(host, plain)
    }

    /// Asks each host that has the images of a domain whether it is there. Reads this node's files of it.
    ///
    /// # Errors
    /// The domain cannot be a host, or a file is wrong.
    pub async fn probe(&self, domain: &str) -> Result<Vec<Probe>, SetupError> {
        let nobody = Credentials::default();
        let (registries, domain) = (self.clone(), domain.to_owned());
        let read = move || setup::endpoints(&registries, &domain, "", &nobody);
        let mut probes = Vec::new();
        for endpoint in reading(read).await? {
            probes.push(endpoint.probed().await);
        }
        Ok(probes)
    }

    /// Asks whoever is at an origin, without regard to this node's files.
    pub async fn probe_at(&self, origin: Origin) -> Probe {
        setup::bare(self, origin).probed().await
    }

    /// What is wrong with this node's files of registries. Reads them.
    pub async fn faults(&self) -> Vec<SetupError> {
        let registries = self.clone();
        reading(move || setup::faults(&registries)).await
    }

    /// Where a repository is, for one pull. Reads this node's files of it; nothing is sent yet.
    ///
    /// # Errors
    /// The domain cannot be a host, or a file is wrong.
    pub async fn open(
        &self,
        repository: &Repository,
        credentials: Credentials,
    ) -> Result<Remote, SetupError> {
        let (registries, repository) = (self.clone(), repository.clone());
        let read = move || {
            let (domain, path) = (repository.domain(), repository.path());
            setup::endpoints(&registries, domain, path, &credentials)
        };
        Ok(Remote::new(reading(read).await?))
    }
}

/// Reads files beside the threads that answer requests.
async fn reading<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    let read = tokio::task::spawn_blocking(read).await;
    // A panic is a bug of carpel's, and costs the pull that it is for.
    read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
