//! The documents that describe images: indexes and manifests, as archives and registries have them.
//!
//! What must always hold: a document is one thing only, and the thing that its type says.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::json;
use super::platform::Platform;
use crate::store::blobs::Digest;

/// A reference to something by its digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    /// What the manifest that it names is, if that is no image.
    #[serde(default)]
    pub artifact_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

/// What a document is.
#[derive(Debug)]
pub(super) enum Content {
    Index(Vec<Descriptor>),
    Manifest {
        config: Box<Descriptor>,
        layers: Vec<Descriptor>,
        artifact_type: Option<String>,
    },
}

pub(super) const INDEX: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub(super) const MANIFEST: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIG: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// How it is packed is told by its first bytes; writers have often got that part of the type wrong.
const LAYER: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";
const STATEMENT: &str = "vnd.docker.reference.type";

/// Indexes inside of an index.
pub(super) const MOST_NESTED: usize = 2;
/// Descriptors of one archive or pull.
const MOST_DESCRIPTORS: usize = 1000;

/// Counts what the documents of one archive or pull name.
#[derive(Debug, Default)]
pub(super) struct Count(usize);

impl Count {
    /// # Errors
    /// There are too many.
    pub(super) fn add(&mut self, descriptors: usize) -> Result<(), String> {
        self.0 = self.0.saturating_add(descriptors);
        match self.0 > MOST_DESCRIPTORS {
            true => Err(format!("more than {MOST_DESCRIPTORS} descriptors")),
            false => Ok(()),
        }
    }
}

impl Content {
    /// Tells what a document is. `media_type`: what it was announced as.
    ///
    /// # Errors
    /// What is wrong with it, for people, to follow its name.
    pub(super) fn parse(
        bytes: &[u8],
        media_type: Option<&str>,
        count: &mut Count,
    ) -> Result<Self, String> {
        let old = "is of Docker's image manifest schema 1, which nothing writes any more and carpel does not read";
        if media_type.is_some_and(|kind| kind.starts_with(SCHEMA1)) {
            return Err(old.into());
        }
        let document: Document =
            json::parse(bytes).map_err(|why| format!("is malformed: {why}"))?;
        if document.schema_version == 1 || document.fs_layers.is_some() {
            return Err(old.into());
        }
        if document.schema_version != 2 {
            return Err("is of an unknown schema".into());
        }
        let own = document.media_type.as_deref();
        if let (Some(own), Some(given)) = (own, media_type)
            && own != given
        {
            return Err("is of another type than it was announced as".into());
        }
        let kind = media_type.or(own).map(str::to_owned);
        let content = match document {
            Document {
                manifests: Some(manifests),
                config: None,
                layers: None,
                ..
            } => Self::Index(manifests),
            Document {
                manifests: None,
                config: Some(config),
                layers,
                artifact_type,
                ..
            } => Self::Manifest {
                config: Box::new(config),
                layers: layers.unwrap_or_default(),
                artifact_type,
            },
            _ => return Err("is neither an index nor a manifest".into()),
        };
        let (fits, descriptors) = match &content {
            Self::Index(entries) => (INDEX, entries.len()),
            Self::Manifest { layers, .. } => (MANIFEST, layers.len() + 1),
        };
        if kind.is_some_and(|kind| !fits.contains(&kind.as_str())) {
            return Err("is not what its type says".into());
        }
        count.add(descriptors).map_err(|why| format!("has {why}"))?;
        Ok(content)
    }
}

impl Descriptor {
    /// Whether it stands for something about an image and not for one.
    pub(super) fn is_statement(&self) -> bool {
        let annotations = self.annotations.iter().flatten();
        let marked = annotations.into_iter().any(|(key, _)| key == STATEMENT);
        marked || self.platform.as_ref().is_some_and(Platform::is_unknown)
    }

    pub(super) fn is_index(&self) -> bool {
        INDEX.contains(&self.media_type.as_str())
    }

    pub(super) fn is_manifest(&self) -> bool {
        MANIFEST.contains(&self.media_type.as_str())
    }

    /// Whether it is the configuration of an image. Registries keep other things, too.
    pub(super) fn is_config(&self) -> bool {
        CONFIG.contains(&self.media_type.as_str())
    }

    /// Checks that it is a layer.
    ///
    /// # Errors
    /// That it is not, for people.
    pub(super) fn require_layer(&self) -> Result<(), String> {
        let kind = self.media_type.as_str();
        let base = kind.strip_suffix("+gzip").or(kind.strip_suffix("+zstd"));
        let base = base
            .or(kind.strip_suffix(".gzip"))
            .or(kind.strip_suffix(".zstd"));
        match LAYER.contains(&base.unwrap_or(kind)) {
            true => Ok(()),
            false => {
                let (digest, kind) = (self.digest, kind.escape_debug());
                Err(format!("layer {digest} of unknown type {kind}"))
            }
        }
    }
}
