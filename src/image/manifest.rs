//! What an archive says is in it: OCI layouts (index, manifest) and docker-save's manifest.json.
//!
//! What must always hold: every document is bounded, is what its digest and size say, and is one thing only; of an index
//! the image for the machine that is meant is taken, and if two fit equally well none is. If all are wanted, the names stand
//! for the one that fits this machine, and the others have none but their digests.

use serde::Deserialize;

use super::archive::Members;
use super::config::{Checked, MOST_LAYERS};
use super::document::{Content, Count, Descriptor, MOST_NESTED};
use super::json::{self, MOST_BYTES};
use super::platform::Platforms;
use super::reference::Reference;
use super::{Error, ImageId};
use crate::store::blobs::{Digest, Section};

/// An image of the archive, all of whose documents are checked and whose layers are there.
#[derive(Debug)]
pub(super) struct Found {
    pub id: ImageId,
    pub checked: Checked,
    /// The configuration as it is written.
    pub config: String,
    /// Bottom first, one for each diff id.
    pub layers: Vec<FoundLayer>,
    pub names: Vec<Reference>,
    /// What the names stand for: an index, or the manifest itself.
    pub digest: Option<Digest>,
    /// The manifest, if the archive has one.
    manifest: Option<Digest>,
}

#[derive(Debug, Clone)]
pub(super) struct FoundLayer {
    pub packed: Option<Digest>,
    pub section: Section,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

const IMAGE_NAME: &str = "io.containerd.image.name";
const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";

/// Finds the images that are wanted.
///
/// # Errors
/// [`Error`]: the archive breaks a rule, or has none.
pub(super) fn find(members: &Members, wanted: &Platforms) -> Result<Vec<Found>, Error> {
    let mut search = Search {
        members,
        wanted,
        count: Count::default(),
        others: Vec::new(),
    };
    let mut found = if let Some(index) = members.get("index.json") {
        search.layout(index)?
    } else if let Some(manifest) = members.get("manifest.json") {
        search.saved(manifest)?
    } else {
        return Err(invalid("neither an OCI layout nor written by docker save"));
    };
    if found.is_empty() {
        search.others.sort();
        search.others.dedup();
        let others = search.others.join(", ");
        let others = if others.is_empty() {
            "none at all"
        } else {
            &others
        };
        return Err(Error::Archive(format!(
            "no image for {wanted}, but {others}"
        )));
    }
    if *wanted == Platforms::All {
        let found = found.iter_mut();
        let foreign = found.filter(|image| image.checked.platform.rank().is_none());
        foreign.for_each(Found::leave_names);
    }
    Ok(found)
}

impl Found {
    /// Leaves its names to another image, and keeps what its digest makes of them.
    fn leave_names(&mut self) {
        let digest = self.manifest;
        let names = self.names.drain(..).filter_map(|name| {
            let digest = digest?;
            name.repository().with(digest).parse().ok()
        });
        self.names = names.collect();
        self.digest = None;
    }
}

struct Search<'a> {
    members: &'a Members,
    wanted: &'a Platforms,
    count: Count,
    /// Platforms of what does not fit.
    others: Vec<String>,
}

/// A manifest that fits.
struct Candidate {
    rank: u32,
    digest: Digest,
    found: Found,
}

impl Search<'_> {
    fn layout(&mut self, index: &Section) -> Result<Vec<Found>, Error> {
        if let Some(version) = self.members.get("oci-layout") {
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Layout {
                image_layout_version: String,
            }
            let layout: Layout = read(version, "oci-layout")?;
            if layout.image_layout_version != "1.0.0" {
                return Err(invalid("an OCI layout of an unknown version"));
            }
        }
        let bytes = bounded(index, "index.json")?;
        let Content::Index(entries) = self.content(&bytes, "index.json", None)? else {
            return Err(invalid("index.json is no index"));
        };
        let mut found: Vec<Found> = Vec::new();
        for entry in entries {
            let mut candidates = Vec::new();
            self.collect(&entry, 0, &mut candidates)?;
            if *self.wanted == Platforms::All {
                found.extend(every(candidates, &entry)?);
            } else if let Some(best) = best(candidates)? {
                let mut image = best.found;
                image.names.extend(names(&entry)?);
                image.digest = Some(entry.digest);
                found.push(image);
            }
        }
        Ok(found)
    }

    /// The images that a descriptor leads to, as far as they are wanted.
    fn collect(
        &mut self,
        entry: &Descriptor,
        depth: usize,
        found: &mut Vec<Candidate>,
    ) -> Result<(), Error> {
        if entry.is_statement() {
            return Ok(());
        }
        if let Some(platform) = &entry.platform
            && self.wanted.rank(platform).is_none()
        {
            self.others.push(platform.to_string());
            return Ok(());
        }
        if !entry.is_index() && !entry.is_manifest() {
            return Ok(());
        }
        if entry.is_index() && depth == MOST_NESTED {
            return Err(invalid("too many indexes within another"));
        }
        let name = entry.digest.to_string();
        let bytes = self.blob(entry)?;
        match self.content(&bytes, &name, Some(&entry.media_type))? {
            Content::Index(entries) => entries
                .iter()
                .try_for_each(|entry| self.collect(entry, depth + 1, found)),
            Content::Manifest { config, layers, .. } => {
                found.extend(self.image(entry, &config, &layers)?);
                Ok(())
            }
        }
    }

    fn image(
        &mut self,
        entry: &Descriptor,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<Option<Candidate>, Error> {
        if !config.is_config() {
            // Something else that is kept in registries.
            let kind = config.media_type.escape_debug();
            self.others.push(format!("an artifact ({kind})"));
            return Ok(None);
        }
        let bytes = self.blob(config)?;
        let name = config.digest.to_string();
        let checked = check(&bytes, &name)?;
        let Some(rank) = self.wanted.rank(&checked.platform) else {
            self.others.push(checked.platform.to_string());
            return Ok(None);
        };
        let mut found = Vec::new();
        for layer in layers {
            layer.require_layer().map_err(Error::Archive)?;
            found.push(FoundLayer {
                packed: Some(layer.digest),
                section: self.section(layer)?.clone(),
            });
        }
        let mut found = image(&bytes, checked, found, &name)?;
        found.manifest = Some(entry.digest);
        Ok(Some(Candidate {
            rank,
            digest: entry.digest,
            found,
        }))
    }

    fn saved(&mut self, manifest: &Section) -> Result<Vec<Found>, Error> {
        let entries: Vec<Saved> = read(manifest, "manifest.json")?;
        let mut images = Vec::new();
        for entry in entries {
            let layers = entry.layers.unwrap_or_default();
            self.count.add(layers.len() + 1).map_err(Error::Archive)?;
            let name = entry.config.escape_debug().to_string();
            let missing = || Error::Archive(format!("{name} is missing"));
            let section = self.members.named(&entry.config).ok_or_else(missing)?;
            let bytes = bounded(section, &name)?;
            let checked = check(&bytes, &name)?;
            let last = entry.config.rsplit('/').next().unwrap_or_default();
            let stem = last.strip_suffix(".json").unwrap_or(last);
            if Digest::from_hex(stem).is_ok_and(|named| named != Digest::of(&bytes)) {
                return Err(Error::Archive(format!("{name} is not what its name says")));
            }
            if self.wanted.rank(&checked.platform).is_none() {
                self.others.push(checked.platform.to_string());
                continue;
            }
            let mut found = Vec::new();
            for path in layers {
                let missing = || Error::Archive(format!("{} is missing", path.escape_debug()));
                let section = self.members.named(&path).ok_or_else(missing)?.clone();
                found.push(FoundLayer {
                    packed: None,
                    section,
                });
            }
            let mut image = image(&bytes, checked, found, &name)?;
            for tag in entry.repo_tags.unwrap_or_default() {
                image.names.push(tag.parse()?);
            }
            images.push(image);
        }
        Ok(images)
    }

    fn content(
        &mut self,
        bytes: &[u8],
        name: &str,
        media_type: Option<&str>,
    ) -> Result<Content, Error> {
        Content::parse(bytes, media_type, &mut self.count)
            .map_err(|why| Error::Archive(format!("{name} {why}")))
    }

    fn section(&self, descriptor: &Descriptor) -> Result<&Section, Error> {
        let digest = descriptor.digest;
        let section = self.members.get(&format!("blobs/sha256/{}", digest.hex()));
        let section = section.ok_or_else(|| Error::Archive(format!("blob {digest} is missing")))?;
        if section.len() != descriptor.size {
            let (actual, said) = (section.len(), descriptor.size);
            let text = format!("blob {digest} has {actual} bytes and not {said}");
            return Err(Error::Archive(text));
        }
        Ok(section)
    }

    /// A document, which is small, with its digest checked.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let digest = descriptor.digest;
        let bytes = bounded(self.section(descriptor)?, &digest.to_string())?;
        if Digest::of(&bytes) != digest {
            return Err(Error::Archive(format!(
                "blob {digest} is not what its name says"
            )));
        }
        Ok(bytes)
    }
}

fn image(
    bytes: &[u8],
    checked: Checked,
    layers: Vec<FoundLayer>,
    name: &str,
) -> Result<Found, Error> {
    let (there, named) = (layers.len(), checked.diff_ids.len());
    if there != named {
        let text = format!("{name} names {named} layers, its manifest {there}");
        return Err(Error::Archive(text));
    }
    debug_assert!(named <= MOST_LAYERS);
    let config = String::from_utf8(bytes.to_vec())
        .map_err(|_| Error::Archive(format!("{name} is no text")))?;
    Ok(Found {
        id: ImageId(Digest::of(bytes)),
        checked,
        config,
        layers,
        names: Vec::new(),
        digest: None,
        manifest: None,
    })
}

/// The one that fits best.
fn best(candidates: Vec<Candidate>) -> Result<Option<Candidate>, Error> {
    let mut best: Option<Candidate> = None;
    for candidate in candidates {
        best = match best {
            Some(best) if best.rank < candidate.rank || best.digest == candidate.digest => {
                Some(best)
            }
            Some(best) if best.rank == candidate.rank => {
                let (one, other) = (best.digest, candidate.digest);
                let text = format!("two images for this machine: {one} and {other}");
                return Err(Error::Archive(text));
            }
            _ => Some(candidate),
        };
    }
    Ok(best)
}

/// All of them. Those of this machine have the names of the entry, as if they alone were wanted; the others have names
/// that they leave later.
fn every(candidates: Vec<Candidate>, entry: &Descriptor) -> Result<Vec<Found>, Error> {
    let names = names(entry)?;
    let rank = |candidate: &Candidate| candidate.found.checked.platform.rank();
    let best = candidates.iter().filter_map(rank).min();
    let named = candidates.into_iter().map(|candidate| {
        let mut image = candidate.found;
        image.names.extend(names.clone());
        image.digest = Some(entry.digest);
        let own = image.checked.platform.rank();
        if own.is_some() && own != best {
            image.leave_names();
        }
        image
    });
    Ok(named.collect())
}

/// The names that an entry of index.json gives. One that is a bare tag names nothing.
fn names(entry: &Descriptor) -> Result<Option<Reference>, Error> {
    let annotations = entry.annotations.clone().unwrap_or_default();
    if let Some(name) = annotations.get(IMAGE_NAME) {
        return Ok(Some(name.parse()?));
    }
    match annotations.get(REFERENCE_NAME) {
        Some(name) if name.contains(['/', ':']) => Ok(Some(name.parse()?)),
        _ => Ok(None),
    }
}

fn check(bytes: &[u8], name: &str) -> Result<Checked, Error> {
    Checked::parse(bytes).map_err(|why| Error::Archive(format!("configuration {name}: {why}")))
}

fn bounded(section: &Section, name: &str) -> Result<Vec<u8>, Error> {
    section
        .read(MOST_BYTES)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::InvalidData => Error::Archive(format!("{name}: {source}")),
            _ => Error::Store {
                object: format!("{name} in the spool"),
                source,
            },
        })
}

fn read<T: serde::de::DeserializeOwned>(section: &Section, name: &str) -> Result<T, Error> {
    parse(&bounded(section, name)?, name)
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T, Error> {
    json::parse(bytes).map_err(|why| Error::Archive(format!("{name}: {why}")))
}

fn invalid(what: &str) -> Error {
    Error::Archive(what.to_owned())
}
