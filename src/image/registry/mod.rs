//! Registries: fetching manifests and blobs over HTTP, as the OCI distribution specification says.
//!
//! ```text
//! Registries ─open─▶ Remote (one repository, one pull) ─get─▶ auth ─▶ redirects ─▶ transport
//!                       manifest, blob: retried, resumed
//! ```
//!
//! What must always hold:
//! - Credentials are bound to an [`Origin`]: the registry's own, and its token service if that is of the same site or
//!   was allowed by the operator. No redirect carries them away, and no error or log has them.
//! - Everything is bounded: documents, tokens, redirects, attempts, and the time in which nothing comes.
//! - What a registry sends is believed when its digest is right, and not before.

mod auth;
mod challenge;
mod error;
mod origin;
mod remote;
mod retry;
mod transport;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use auth::{Credentials, InvalidCredentials};
pub use error::Error;
pub use origin::{InvalidHost, Origin, RegistryHost};
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
    /// Layers of one image that are fetched at once.
    pub parallel_layers: usize,
    /// How long a registry may take to connect, to answer, and to send the next bytes.
    pub timeout: Duration,
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
    parallel_layers: usize,
    timeout: Duration,
    trust: Trust,
    transfers: Arc<Semaphore>,
}

impl Registries {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let parallel = settings.parallel_layers.max(1);
        let hosts = settings.token_hosts.into_iter();
        Self(Arc::new(Inner {
            plain_http: settings.plain_http.into_iter().collect(),
            token_hosts: hosts.map(|host| host.name().to_owned()).collect(),
            parallel_layers: parallel,
            timeout: settings.timeout,
            trust: Trust::new(),
            transfers: Arc::new(Semaphore::new(parallel * PULLS_AT_ONCE)),
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
        let host = match domain.to_string().as_str() {
            DOCKER_DOMAIN => RegistryHost::docker(),
            _ => domain,
        };
        let plain = self.0.plain_http.contains(&host) || host.is_loopback();
        Origin::of(host, plain)
    }

    /// Where a repository is, for one pull. Nothing is sent yet.
    ///
    /// # Errors
    /// If the domain cannot be a host.
    pub fn open(
        &self,
        repository: &Repository,
        credentials: Credentials,
    ) -> Result<Remote, InvalidHost> {
        let origin = self.origin(repository.domain().parse()?);
        let path = repository.path().to_owned();
        Ok(Remote::new(self.clone(), origin, path, credentials))
    }
}
