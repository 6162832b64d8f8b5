//! From a registry to an image: resolve the name, fetch and unpack what is missing, record.
//!
//! ```text
//! name ─resolve─▶ manifest, configuration ─policy─▶ trusted ─share─▶ claims ─fetch: stream, unpack side by side─▶ staged ─commit─▶ record
//! ```
//!
//! What must always hold: no layer is kept packed, it is unpacked as it comes. A pull that fails or is cancelled leaves
//! nothing but what others use meanwhile; one that was killed leaves what the next start removes.

mod fetch;
mod incoming;
mod progress;
mod resolve;
mod trusted;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

pub use progress::{LayerProgress, Phase, PullProgress, PullState, PulledManifest};

use super::reference::Reference;
use super::registry::{self, Credentials, Registries, Remote};
use super::store::New;
use super::trust::Policy;
use super::{Error, Image, ImageStore};
use crate::store::layers::Claims;
use crate::store::unpack::UnpackError;
use crate::{failpoint, metrics};
use fetch::Fetch;
use resolve::Resolved;

/// What is to be pulled, and as whom. Two that are equal are one pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub reference: Reference,
    pub credentials: Credentials,
}

/// Where images may come from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    pub registries: &'a Registries,
    pub policy: &'a Policy,
}

/// Why a pull failed; image and registry are added to it at the end.
#[derive(Debug)]
enum Failure {
    Registry(registry::Error),
    /// What the registry has under the name cannot be used.
    Unfit(String),
    /// There is nothing for this machine.
    Unsuitable(String),
    /// The policy does not allow it.
    Untrusted(String),
    Layer {
        /// As it is in the registry.
        layer: String,
        source: UnpackError,
    },
    Commit(UnpackError),
    Other(Error),
    Cancelled,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(error) => error.fmt(f),
            Self::Unfit(what) | Self::Unsuitable(what) | Self::Untrusted(what) => f.write_str(what),
            Self::Layer { source, .. } | Self::Commit(source) => source.fmt(f),
            Self::Other(error) => error.fmt(f),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Self {
        match error {
            registry::Error::Cancelled => Self::Cancelled,
            error => Self::Registry(error),
        }
    }
}

impl From<tokio::task::JoinError> for Failure {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Other(Error::Store {
            object: "bug in carpel".into(),
            source: std::io::Error::other(error),
        })
    }
}

impl ImageStore {
    /// Pulls an image. Once `cancel` is cancelled it ends soon, with an error; it must not be dropped before.
    ///
    /// # Errors
    /// [`Error`], with the image and the registry named. Then nothing of the image is left.
    pub async fn pull(
        &self,
        sources: Sources<'_>,
        wanted: &Wanted,
        progress: &Arc<PullProgress>,
        cancel: &CancellationToken,
    ) -> Result<Arc<Image>, Error> {
        let begin = Instant::now();
        let image = wanted.reference.to_string();
        let repository = wanted.reference.repository();
        let remote = sources
            .registries
            .open(repository, wanted.credentials.clone())
            .await
            .map_err(|source| Error::Host {
                image: image.clone(),
                source,
            })?;
        let remote = Arc::new(remote);
        let pulling = async {
            let resolved = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Failure::Cancelled),
                resolved = resolve(self, sources.policy, &remote, &wanted.reference) => resolved?,
            };
            progress.resolved(&image, &resolved);
            let fetch = Fetch::new(
                self,
                sources.registries,
                Arc::clone(&remote),
                &resolved,
                progress,
                cancel,
            );
            self.take(fetch, &wanted.reference, resolved, cancel).await
        };
        let pulled = tokio::select! {
            biased;
            pulled = pulling => pulled,
            never = progress.log(&image) => match never {},
        };
        let (took, bytes) = (begin.elapsed(), progress.received());
        let outcome = match &pulled {
            Ok(_) => metrics::PullOutcome::Success,
            Err(Failure::Cancelled) => metrics::PullOutcome::Cancelled,
            Err(_) => metrics::PullOutcome::Failure,
        };
        metrics::pulled(bytes, took, outcome);
        let origin = remote.registry();
        match pulled {
            Ok(pulled) => {
                tracing::info!(image, registry = origin, id = %pulled.id, bytes, ?took, "image pulled");
                Ok(pulled)
            }
            Err(failure) => Err(failure.about(image, origin)),
        }
    }

    /// Brings the layers and records the image.
    async fn take(
        &self,
        fetch: Fetch,
        reference: &Reference,
        resolved: Resolved,
        cancel: &CancellationToken,
    ) -> Result<Arc<Image>, Failure> {
        let repository = reference.repository();
        let digested = repository.with(resolved.digest);
        // With both a tag and a digest it is the digest that counts.
        let tag = match reference.digest() {
            Some(_) => None,
            None => reference.tagged(),
        };
        if let Some(known) = self.known(&resolved, tag.as_deref(), &digested) {
            return Ok(known);
        }
        let stack = resolved.content.layers();
        let claims = self.layers().share(stack.iter().copied());
        let claims = fetch.run(claims, &stack).await?;
        let new = New {
            id: resolved.id,
            tags: tag.into_iter().collect(),
            digests: vec![digested],
            config: resolved.config,
            content: resolved.content,
            layers: stack,
        };
        let (store, cancelled) = (self.clone(), cancel.is_cancelled());
        let publish = move || store.record(new, claims, cancelled);
        tokio::task::spawn_blocking(publish).await?
    }

    /// The image as it is, if a pull would change nothing.
    fn known(&self, resolved: &Resolved, tag: Option<&str>, digested: &str) -> Option<Arc<Image>> {
        let known = self.resolve(&resolved.id.to_string())?;
        let tagged = tag.is_none_or(|tag| known.tags.iter().any(|known| known == tag));
        let digested = known.digests.iter().any(|known| known == digested);
        (tagged && digested && self.layers().has(&known.layers)).then_some(known)
    }

    fn record(&self, new: New, mut claims: Claims, cancelled: bool) -> Result<Arc<Image>, Failure> {
        let committed = failpoint::hit("pull:committed").map_err(|error| {
            let source = std::io::Error::other(error);
            let object = "record the image".into();
            Failure::Other(Error::Store { object, source })
        });
        let published = match (committed, cancelled) {
            (Err(failure), _) => Err(failure),
            (Ok(()), true) => Err(Failure::Cancelled),
            (Ok(()), false) => self.publish(vec![new]).map_err(Failure::Other),
        };
        if published.is_err() {
            claims.withdraw();
        }
        let image = published?.pop();
        Ok(image.expect("one image was recorded"))
    }

    /// The configuration of an image that is known.
    pub(super) fn configuration(&self, id: super::ImageId) -> Option<String> {
        self.read(|index| Some(index.images.get(&id)?.record.config.clone()))
    }
}

/// What a name stands for, if the policy allows it.
async fn resolve(
    store: &ImageStore,
    policy: &Policy,
    remote: &Remote,
    reference: &Reference,
) -> Result<Resolved, Failure> {
    let resolved = resolve::resolve(remote, reference, store).await?;
    trusted::check(policy, remote, reference, &resolved).await?;
    Ok(resolved)
}

impl Failure {
    fn about(self, image: String, registry: String) -> Error {
        match self {
            Self::Registry(source) => Error::Registry {
                image,
                registry,
                source,
            },
            Self::Unfit(what) => Error::Unfit {
                image,
                registry,
                what: shown(&what),
            },
            Self::Unsuitable(what) => Error::Unsuitable {
                image,
                registry,
                what: shown(&what),
            },
            Self::Untrusted(why) => Error::Untrusted {
                image,
                registry,
                why: shown(&why),
            },
            Self::Layer { layer, source } => Error::Pulled {
                image,
                registry,
                layer,
                source: Box::new(source),
            },
            Self::Commit(source) => Error::Commit {
                image,
                source: Box::new(source),
            },
            Self::Other(error) => error,
            Self::Cancelled => Error::Cancelled { image },
        }
    }
}

/// A text that has parts of a document in it: short, and without characters that a terminal or a log obeys.
fn shown(text: &str) -> String {
    const MOST: usize = 400;
    let is_plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = text.chars().take(MOST).map(is_plain).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_documents_are_shown_short_and_harmless() {
        assert_eq!(
            shown("no image for linux/amd64"),
            "no image for linux/amd64"
        );
        let long = shown(&"\u{1b}[2Jx\n".repeat(1000));
        assert!(long.chars().count() <= 401 && long.ends_with('…'));
        assert!(!long.contains(char::is_control));
    }
}
