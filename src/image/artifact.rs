//! OCI artifacts: content of registries that is no container image, mounted as files.
//!
//! What must always hold: the files of an artifact have plain names, below its folder and none within another; what the
//! store has of one is its manifest, byte for byte, and its files.

use std::collections::BTreeSet;

use serde::Serialize;

use super::config::MOST_LAYERS;
use super::document::{Content, Count, Descriptor};
use crate::store::blobs::Digest;
use crate::store::layers::LayerId;
use crate::store::unpack::Limits;

/// What an artifact is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// Its type, as its maker named it.
    #[serde(rename = "type")]
    pub kind: String,
    pub files: Vec<ArtifactFile>,
}

/// A blob that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArtifactFile {
    /// Where it is in the artifact's folder.
    pub name: String,
    pub digest: Digest,
    pub size: u64,
}

/// Where the name of a blob is. Others than the first are what models have.
const TITLES: [&str; 3] = [
    "org.opencontainers.image.title",
    "org.cncf.model.filepath",
    "org.cnai.model.filepath",
];
const LONGEST_NAME: usize = 1024;
const LONGEST_PART: usize = 255;

impl Artifact {
    /// Reads a manifest again that was one of an artifact.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn parse(manifest: &[u8]) -> Result<Self, String> {
        match Content::parse(manifest, None, &mut Count::default())? {
            Content::Manifest {
                config,
                layers,
                artifact_type,
            } if !config.is_config() => Self::of(&config, artifact_type, &layers),
            _ => Err("is no manifest of an artifact".into()),
        }
    }

    /// What a manifest describes. Blobs without a name cannot be mounted, and are left out.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn of(
        config: &Descriptor,
        kind: Option<String>,
        layers: &[Descriptor],
    ) -> Result<Self, String> {
        let kind = kind.filter(|kind| !kind.is_empty());
        let kind = kind.unwrap_or_else(|| config.media_type.clone());
        let mut files = Vec::new();
        for layer in layers {
            let Some(name) = title(layer) else {
                continue;
            };
            let (name, digest, size) = (name.to_owned(), layer.digest, layer.size);
            let wrong = |why| format!("blob {digest} is named {:?}, {why}", shown(&name));
            check(&name).map_err(wrong)?;
            if size > Limits::default().bytes {
                return Err(format!("blob {digest} has {size} bytes"));
            }
            files.push(ArtifactFile { name, digest, size });
        }
        let kind_shown = kind.escape_debug();
        if files.is_empty() {
            return Err(format!(
                "is an artifact of type {kind_shown}, none of whose blobs has a name ({}): there is nothing in it to be mounted",
                TITLES[0]
            ));
        }
        if files.len() > MOST_LAYERS {
            let count = files.len();
            return Err(format!("{count} files, more than {MOST_LAYERS}"));
        }
        distinct(&files)?;
        Ok(Self { kind, files })
    }

    /// The layers that its files are, in their order.
    pub(super) fn layers(&self) -> Vec<LayerId> {
        let id = |file: &ArtifactFile| LayerId::of_file(&file.name, file.digest);
        self.files.iter().map(id).collect()
    }
}

/// The name that a blob has.
pub(super) fn title(layer: &Descriptor) -> Option<&str> {
    let annotations = layer.annotations.as_ref()?;
    let names = TITLES.iter().filter_map(|key| annotations.get(*key));
    names.map(String::as_str).next()
}

fn check(name: &str) -> Result<(), &'static str> {
    if name.len() > LONGEST_NAME {
        return Err("which is too long");
    }
    if name.starts_with('/') {
        return Err("which is absolute");
    }
    if name.contains(char::is_control) {
        return Err("which has a control character in it");
    }
    let wrong = |part: &str| matches!(part, "" | "." | "..") || part.len() > LONGEST_PART;
    match name.split('/').any(wrong) {
        true => Err("which is no path of a file"),
        false => Ok(()),
    }
}

/// None is twice there, and none is a folder of another.
fn distinct(files: &[ArtifactFile]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for file in files {
        if !names.insert(file.name.as_str()) {
            return Err(format!("two blobs are named {:?}", shown(&file.name)));
        }
    }
    for file in files {
        let mut folder = file.name.as_str();
        while let Some((parent, _)) = folder.rsplit_once('/') {
            if names.contains(parent) {
                let (name, parent) = (shown(&file.name), shown(parent));
                return Err(format!("blob {name:?} lies in another, {parent:?}"));
            }
            folder = parent;
        }
    }
    Ok(())
}

fn shown(name: &str) -> String {
    name.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(names: &[&str]) -> Result<Artifact, String> {
        let digest = Digest::of(b"{}").to_string();
        let layers = names.iter().map(|name| {
            let annotations = match *name {
                "" => json!({}),
                name => json!({ "org.opencontainers.image.title": name }),
            };
            json!({ "mediaType": "text/plain", "digest": digest, "size": 2, "annotations": annotations })
        });
        let manifest = json!({
            "schemaVersion": 2,
            "artifactType": "application/x-test",
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": 2 },
            "layers": layers.collect::<Vec<_>>(),
        });
        Artifact::parse(manifest.to_string().as_bytes())
    }

    #[test]
    fn files_are_named_and_others_left_out() {
        let artifact = parse(&["a", "", "folder/b", ".wh.a", "ünï code"]).unwrap();
        assert_eq!(artifact.kind, "application/x-test");
        let names: Vec<_> = artifact
            .files
            .iter()
            .map(|file| file.name.as_str())
            .collect();
        assert_eq!(names, ["a", "folder/b", ".wh.a", "ünï code"]);
        assert_ne!(artifact.layers()[0], artifact.layers()[1]);
    }

    #[test]
    fn names_that_lead_elsewhere_or_clash_are_refused() {
        let long = format!("a/{}", "b".repeat(256));
        for (names, part) in [
            (&["../a"][..], "no path of a file"),
            (&["a/../../b"], "no path of a file"),
            (&["a//b"], "no path of a file"),
            (&["a/"], "no path of a file"),
            (&["."], "no path of a file"),
            (&[&long], "no path of a file"),
            (&["/etc/passwd"], "absolute"),
            (&["a\0b"], "control character"),
            (&["a\nb"], "control character"),
            (&[&"a/".repeat(600)], "too long"),
            (&["a", "a"], "two blobs are named \"a\""),
            (&["a/b", "a"], "blob \"a/b\" lies in another, \"a\""),
            (&["a", "a/b/c"], "blob \"a/b/c\" lies in another, \"a\""),
            (&[""], "there is nothing in it to be mounted"),
            (&[], "there is nothing in it to be mounted"),
        ] {
            let error = parse(names).unwrap_err();
            assert!(error.contains(part), "{names:?}: {error}");
        }
        let many: Vec<_> = (0..128).map(|n| n.to_string()).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(
            parse(&many)
                .unwrap_err()
                .contains("128 files, more than 127")
        );
    }

    proptest! {
        #[test]
        fn a_checked_name_is_plain(name in "[./a\0]{0,12}") {
            if check(&name).is_ok() {
                prop_assert!(!name.starts_with('/'));
                prop_assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }
}
