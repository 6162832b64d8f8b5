//! Images: their names, their import and pull, and the store that answers for them.
//!
//! ```text
//! archive ─spool─▶ members ─manifest─▶ found ─claim, unpack, sync─┐
//! registry ──resolve──▶ manifest ──share, fetch, unpack, sync──▶ layers ─record─▶ Image ─remove─▶ retired ─▶ collected
//! ```
//!
//! What must always hold: an image counts whole or not at all. It counts from the moment its record has its name, which is
//! after all its layers are on disk; what is left of an import that was killed is nameless, in `tmp/`, or a layer that
//! no image has. Lists and look-ups are answered from memory.

mod archive;
mod artifact;
mod config;
mod document;
mod export;
pub mod fuzz;
mod import;
mod index;
mod json;
mod manifest;
pub mod pinned;
mod platform;
pub mod pull;
pub mod reference;
pub mod registry;
mod store;
pub mod trust;
mod upkeep;
mod verify;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::store::blobs::Digest;
use crate::store::layers::LayerId;
use crate::store::unpack::{UnpackError, is_no_space};

pub use artifact::{Artifact, ArtifactFile};
pub use config::ImageUser;
pub use import::{Names, Progress, Selection};
pub use pinned::Pinned;
pub use platform::{InvalidPlatform, Platform, Platforms};
pub use reference::{InvalidReference, Reference};
pub use store::ImageStore;
pub use upkeep::{Pruned, Unused, Usage, Used};
pub use verify::VerifyStep;

/// The identity of an image: the digest of its configuration. Of an artifact, that of its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub(crate) Digest);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An image as it is now. While one is held its layers are not collected, even if the image is removed.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: ImageId,
    /// `repository:tag`, sorted.
    pub tags: Vec<String>,
    /// `repository@sha256:…`, sorted.
    pub digests: Vec<String>,
    /// Bytes on disk, layers shared with other images included. Never 0.
    pub size: u64,
    /// Empty of an artifact.
    pub config: ImageConfiguration,
    /// It is no container image, and no container can be made from it.
    pub artifact: Option<Artifact>,
    /// Bottom first.
    pub layers: Vec<LayerId>,
    pub user: ImageUser,
    /// Neither the kubelet nor a person who clears away what is unused may take it.
    pub pinned: bool,
}

/// Why an operation on images did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The archive breaks its format or carpel's rules.
    #[error("image archive: {0}")]
    Archive(String),
    #[error("read image archive: {0}")]
    Read(io::Error),
    #[error("image {image}: unpack layer {layer}: {source}")]
    Layer {
        image: String,
        layer: Digest,
        source: Box<UnpackError>,
    },
    #[error("image {image}: {source}")]
    Commit {
        image: String,
        source: Box<UnpackError>,
    },
    #[error("{object}: {source}")]
    Store { object: String, source: io::Error },
    #[error("image {image}: registry: {source}")]
    Host {
        image: String,
        source: registry::SetupError,
    },
    #[error("image {image}: registry {registry}: {source}")]
    Registry {
        image: String,
        registry: String,
        source: registry::Error,
    },
    /// What a registry has under the name breaks its format or carpel's rules.
    #[error("image {image} of registry {registry}: {what}")]
    Unfit {
        image: String,
        registry: String,
        what: String,
    },
    /// A registry has nothing for this machine under the name.
    #[error("image {image} of registry {registry}: {what}")]
    Unsuitable {
        image: String,
        registry: String,
        what: String,
    },
    /// The policy does not allow it.
    #[error("image {image} of registry {registry}: {why}")]
    Untrusted {
        image: String,
        registry: String,
        why: String,
    },
    #[error("image {image} of registry {registry}: unpack layer {layer}: {source}")]
    Pulled {
        image: String,
        registry: String,
        layer: String,
        source: Box<UnpackError>,
    },
    /// The configuration pins it.
    #[error("image {image} is pinned by the daemon's configuration: image.pinned has {pattern:?}")]
    Kept { image: String, pattern: String },
    #[error("image {image}: export: {why}")]
    Export { image: String, why: String },
    #[error("image {image}: cancelled")]
    Cancelled { image: String },
}

impl Error {
    /// Whether the disk is full or a quota used up.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Layer { source, .. }
            | Self::Commit { source, .. }
            | Self::Pulled { source, .. } => source.is_no_space(),
            Self::Store { source, .. } => is_no_space(source),
            _ => false,
        }
    }

    /// Whether what was asked for is at fault, so that asking again is of no use.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::Reference(_) | Self::Archive(_) | Self::Unfit { .. } => true,
            Self::Host { source, .. } => matches!(source, registry::SetupError::Host(_)),
            Self::Registry { source, .. } => {
                use registry::Error::{Content, Protocol};
                matches!(source, Content(_) | Protocol(_))
            }
            Self::Layer { source, .. }
            | Self::Commit { source, .. }
            | Self::Pulled { source, .. } => source.is_invalid(),
            _ => false,
        }
    }
}
