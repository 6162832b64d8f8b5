//! From a name to the image for this machine: its manifest and configuration.

use super::Failure;
use crate::image::artifact::{Artifact, title};
use crate::image::config::Checked;
use crate::image::document::{Content, Count, Descriptor, INDEX, MANIFEST, MOST_NESTED};
use crate::image::json::MOST_BYTES;
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::image::registry::{Document, Remote};
use crate::image::{ImageId, ImageStore, store};
use crate::store::blobs::Digest;
use crate::store::unpack::Limits;

/// What a name stands for.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Of the index or manifest that the registry has under the name.
    pub digest: Digest,
    /// From that one to the manifest, each named by the one before it.
    pub path: Vec<Digest>,
    pub id: ImageId,
    /// The configuration, of an artifact the manifest: byte for byte.
    pub config: String,
    pub content: store::Content,
    /// Bottom first: what is fetched, and what is made of it.
    pub layers: Vec<(Descriptor, Target)>,
}

/// What a blob becomes.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// A layer that is unpacked, of this diff id.
    Layer(Digest),
    /// A file of this name.
    File(String),
}

/// Manifests and indexes fetched for one name.
const MOST_DOCUMENTS: usize = 32;

/// Asks the registry. What of the answer is known already is not fetched.
pub(super) async fn resolve(
    remote: &Remote,
    reference: &Reference,
    store: &ImageStore,
) -> Result<Resolved, Failure> {
    let document = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => remote.manifest(digest).await?,
        (None, tag) => remote.tagged(tag.unwrap_or("latest")).await?,
    };
    let mut search = Search {
        remote,
        store,
        top: document.digest,
        count: Count::default(),
        pending: Vec::new(),
        others: Vec::new(),
        artifact: None,
    };
    let kind = document.media_type.as_deref().filter(|kind| is_known(kind));
    let content = search.parse(document.digest, &document.bytes, kind)?;
    let path = vec![document.digest];
    if let Some(found) = search.look(content, &document, path).await? {
        return Ok(found);
    }
    for _ in 1..MOST_DOCUMENTS {
        let Some((entry, path)) = search.pending.pop() else {
            return search.nothing();
        };
        if let Some(found) = search.follow(&entry, path).await? {
            return Ok(found);
        }
    }
    Err(Failure::Unfit(format!(
        "leads to more than {MOST_DOCUMENTS} manifests"
    )))
}

fn is_known(kind: &str) -> bool {
    // Registries that serve files say application/json or the like.
    let is_old = kind.starts_with("application/vnd.docker.distribution.manifest.v1");
    INDEX.contains(&kind) || MANIFEST.contains(&kind) || is_old
}

struct Search<'a> {
    remote: &'a Remote,
    store: &'a ImageStore,
    top: Digest,
    count: Count,
    /// What may lead to an image, the most promising last, and the indexes that led to it.
    pending: Vec<(Descriptor, Vec<Digest>)>,
    /// Platforms of what does not fit.
    others: Vec<String>,
    /// Something that is no image.
    artifact: Option<Result<Resolved, Failure>>,
}

impl Search<'_> {
    fn parse(
        &mut self,
        digest: Digest,
        bytes: &[u8],
        kind: Option<&str>,
    ) -> Result<Content, Failure> {
        Content::parse(bytes, kind, &mut self.count)
            .map_err(|why| Failure::Unfit(format!("manifest {digest} {why}")))
    }

    async fn follow(
        &mut self,
        entry: &Descriptor,
        mut path: Vec<Digest>,
    ) -> Result<Option<Resolved>, Failure> {
        let digest = entry.digest;
        let document = self.remote.manifest(digest).await?;
        let length = document.bytes.len() as u64;
        if length != entry.size {
            let said = entry.size;
            let text = format!("manifest {digest} has {length} bytes, not {said}");
            return Err(Failure::Unfit(text));
        }
        let content = self.parse(digest, &document.bytes, Some(&entry.media_type))?;
        path.push(digest);
        self.look(content, &document, path).await
    }

    /// Takes the image that a document is, or remembers where an index leads to.
    async fn look(
        &mut self,
        content: Content,
        document: &Document,
        path: Vec<Digest>,
    ) -> Result<Option<Resolved>, Failure> {
        let entries = match content {
            Content::Manifest { config, layers, .. } if config.is_config() => {
                return self.image(*config, layers, path).await;
            }
            Content::Manifest {
                config,
                layers,
                artifact_type,
            } => {
                let artifact = Artifact::of(&config, artifact_type, &layers);
                // An image goes before.
                self.artifact.get_or_insert_with(|| {
                    resolve_artifact(self.top, document, artifact, &layers, path)
                });
                return Ok(None);
            }
            Content::Index(entries) => entries,
        };
        let mut ranked = Vec::new();
        for entry in entries {
            if entry.is_statement() || !(entry.is_index() || entry.is_manifest()) {
                continue;
            }
            if entry.is_index() && path.len() > MOST_NESTED {
                let text = "has too many indexes within another";
                return Err(Failure::Unfit(text.into()));
            }
            // One that does not say what it is for is asked when all that do have been.
            let rank = match &entry.platform {
                Some(platform) => platform.rank(),
                None => Some(u32::MAX),
            };
            match rank {
                Some(rank) => ranked.push((rank, entry)),
                None => self.others.extend(entry.platform.map(|p| p.to_string())),
            }
        }
        // Of two that fit equally well it is the first, as with other clients.
        ranked.sort_by_key(|(rank, _)| *rank);
        let ranked = ranked.into_iter().map(|(_, entry)| (entry, path.clone()));
        self.pending.extend(ranked.rev());
        Ok(None)
    }

    async fn image(
        &mut self,
        config: Descriptor,
        layers: Vec<Descriptor>,
        path: Vec<Digest>,
    ) -> Result<Option<Resolved>, Failure> {
        for layer in &layers {
            layer.require_layer().map_err(Failure::Unfit)?;
            if layer.size > Limits::default().bytes {
                let text = format!("layer {} has {} bytes", layer.digest, layer.size);
                return Err(Failure::Unfit(text));
            }
        }
        let digest = config.digest;
        let text = self.configuration(&config).await?;
        let wrong = |why| Failure::Unfit(format!("configuration {digest}: {why}"));
        let checked = Checked::parse(text.as_bytes()).map_err(wrong)?;
        if checked.platform.rank().is_none() {
            self.others.push(checked.platform.to_string());
            return Ok(None);
        }
        let (named, there) = (checked.diff_ids.len(), layers.len());
        if named != there {
            let text = format!("names {named} layers, its manifest {there}");
            return Err(wrong(text));
        }
        let targets = checked.diff_ids.iter().copied().map(Target::Layer);
        Ok(Some(Resolved {
            digest: self.top,
            path,
            id: ImageId(digest),
            config: text,
            layers: layers.into_iter().zip(targets).collect(),
            content: store::Content::Image(Box::new(checked)),
        }))
    }

    async fn configuration(&self, config: &Descriptor) -> Result<String, Failure> {
        let digest = config.digest;
        if let Some(known) = self.store.configuration(ImageId(digest)) {
            return Ok(known);
        }
        if config.size > MOST_BYTES {
            let text = format!("configuration {digest} has {} bytes", config.size);
            return Err(Failure::Unfit(text));
        }
        let bytes = self.remote.blob(digest, config.size).await?;
        let no_text = |_| Failure::Unfit(format!("configuration {digest} is no text"));
        String::from_utf8(bytes).map_err(no_text)
    }

    /// What there is if there is no image for any machine; or why there is nothing to take.
    fn nothing(mut self) -> Result<Resolved, Failure> {
        self.others.sort();
        self.others.dedup();
        if let (Some(artifact), true) = (self.artifact, self.others.is_empty()) {
            return artifact;
        }
        let others = match self.others.is_empty() {
            true => "none at all".to_owned(),
            false => self.others.join(", "),
        };
        let this = Platform::this();
        Err(Failure::Unsuitable(format!(
            "no image for {this}, but {others}"
        )))
    }
}

fn resolve_artifact(
    top: Digest,
    document: &Document,
    artifact: Result<Artifact, String>,
    layers: &[Descriptor],
    path: Vec<Digest>,
) -> Result<Resolved, Failure> {
    let digest = document.digest;
    let wrong = |why| Failure::Unfit(format!("manifest {digest} {why}"));
    let artifact = artifact.map_err(wrong)?;
    let config = String::from_utf8(document.bytes.clone());
    let config = config.map_err(|_| wrong("is no text".to_owned()))?;
    let named = layers.iter().filter(|layer| title(layer).is_some());
    let targets = artifact
        .files
        .iter()
        .map(|file| Target::File(file.name.clone()));
    Ok(Resolved {
        digest: top,
        path,
        id: ImageId(digest),
        config,
        layers: named.cloned().zip(targets).collect(),
        content: store::Content::Artifact(artifact),
    })
}
