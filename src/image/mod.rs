//! TEMPORARY STUB — not to be committed.
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageId(pub String);
impl std::fmt::Display for ImageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerId(pub String);
#[derive(Debug, Clone)]
pub struct Image {
    pub id: ImageId,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    pub size: u64,
    pub config: oci_spec::image::ImageConfiguration,
    pub layers: Vec<LayerId>,
}
#[derive(Clone)]
pub struct ImageStore(Arc<(PathBuf, Arc<Image>)>);
impl ImageStore {
    pub fn open(root: &Path) -> std::io::Result<Self> {
        let image = Image {
            id: ImageId("sha256:".to_owned() + &"a".repeat(64)),
            tags: vec!["carpel.test/busybox:latest".into()],
            digests: vec![],
            size: 1,
            config: oci_spec::image::ImageConfiguration::default(),
            layers: vec![LayerId("busybox".into())],
        };
        Ok(Self(Arc::new((root.to_owned(), Arc::new(image)))))
    }
    pub fn resolve(&self, _: &str) -> Option<Arc<Image>> {
        Some(self.0.1.clone())
    }
    pub fn dirs_of(&self, _: &[LayerId]) -> Vec<PathBuf> {
        vec![PathBuf::from("/tmp/bbroot")]
    }
    pub fn collect(&self, _: &HashSet<LayerId>) {}
    pub fn list(&self) -> Vec<Arc<Image>> {
        vec![self.0.1.clone()]
    }
}
