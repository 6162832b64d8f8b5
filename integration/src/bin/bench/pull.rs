//! How fast an image comes from a registry, and how much memory that takes.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use carpel_api::cri::{ImageSpec, PullImageRequest, RemoveImageRequest};
use carpel_integration::image::{Image, Layer, Packing};

use crate::cycle::Peer;
use crate::usage;

const LAYERS: usize = 6;
/// Of each layer, unpacked, in bytes.
const LAYER: u64 = 50 << 20;
/// Files beyond this size are left out, so that there are many.
const FILE: u64 = 4 << 20;
const TIMES: usize = 3;

/// What a pull took.
pub struct Pull {
    /// Unpacked bytes per second, of the fastest pull.
    pub mib_per_second: f64,
    /// The most memory of the runtime's largest process, in MiB.
    pub peak_mib: f64,
}

/// An image of what programs and libraries this machine has: 6 layers, 300 MiB in all.
pub fn image(tag: &str, packing: Packing) -> Result<Image> {
    let mut files = Files::below("/usr/lib".as_ref());
    let mut image = Image::tiny(tag).packed(packing);
    image.layers.clear();
    for number in 0..LAYERS {
        let mut layer = Layer::default();
        let mut left = LAYER;
        while left > 0 {
            let content = files.next().context("too few files in /usr/lib")?;
            left = left.saturating_sub(content.len() as u64);
            layer = layer.file(&format!("{number}/{left}"), 0o644, &content);
        }
        image.layers.push(layer);
    }
    Ok(image)
}

/// Ordinary files of a folder and those below it, in the order of their names.
struct Files(Vec<std::path::PathBuf>);

impl Files {
    fn below(dir: &Path) -> Self {
        let mut paths = Vec::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(found) if found.is_dir() => folders.push(entry.path()),
                    Ok(found) if found.is_file() && found.len() <= FILE => paths.push(entry.path()),
                    _ => {}
                }
            }
        }
        paths.sort_unstable_by(|a, b| b.cmp(a));
        Self(paths)
    }
}

impl Iterator for Files {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(std::fs::read(self.0.pop()?).unwrap_or_default())
    }
}

/// Pulls an image some times, removing it after each.
pub async fn measure(peer: &Peer, image: &str) -> Result<Pull> {
    let spec = ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    };
    let mut fastest = f64::MAX;
    usage::forget_peak(peer.processes())?;
    for _ in 0..TIMES {
        let start = Instant::now();
        let pull = PullImageRequest {
            image: Some(spec.clone()),
            ..PullImageRequest::default()
        };
        peer.images().pull_image(pull).await?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
        let remove = RemoveImageRequest {
            image: Some(spec.clone()),
        };
        peer.images().remove_image(remove).await?;
    }
    let mib = ((LAYERS as u64 * LAYER) >> 20) as f64;
    Ok(Pull {
        mib_per_second: mib / fastest,
        peak_mib: usage::peak(peer.processes())? as f64 / 1024.0,
    })
}
