//! From a stream to images: spool, find, unpack what is missing, record.

use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::archive::Members;
use super::manifest::{self, Found, FoundLayer};
use super::platform::Platforms;
use super::reference::Reference;
use super::store::{Content, New};
use super::{Error, Image, ImageStore};
use crate::store::blobs::Digest;
use crate::store::layers::{Claims, LayerId, LayerStore, Staged};
use crate::store::unpack::{Expected, Limits, UnpackError};

/// Under which names images are recorded.
#[derive(Debug, Clone)]
pub enum Names {
    /// Those that the archive gives, perhaps none.
    FromArchive,
    /// These, whatever the archive says. The archive must have one image.
    Given(Vec<Reference>),
}

/// What of an archive is imported.
#[derive(Debug, Clone)]
pub struct Selection {
    pub names: Names,
    pub platforms: Platforms,
}

impl Default for Selection {
    /// What is for this machine, under the archive's own names.
    fn default() -> Self {
        Self {
            names: Names::FromArchive,
            platforms: Platforms::This,
        }
    }
}

/// How far an import is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes of the archive in all.
    Received {
        bytes: u64,
    },
    /// The store has the layer already.
    Shared {
        layer: Digest,
    },
    Unpacking {
        layer: Digest,
    },
    Unpacked {
        layer: Digest,
    },
    Recorded {
        image: String,
    },
}

/// Layers unpacked at once, at most.
const MOST_WORKERS: usize = 4;

/// A layer that has to be unpacked.
struct Job {
    id: LayerId,
    image: String,
    diff: Digest,
    layer: FoundLayer,
}

impl ImageStore {
    /// Imports the images that are wanted of an archive: an OCI layout or what docker save writes, perhaps packed
    /// with gzip or zstd. It is read once, to its end. Blocks, for as long as that takes.
    ///
    /// `progress` is called from several threads.
    ///
    /// # Errors
    /// [`Error`]. Then nothing of the archive is left, neither images nor layers.
    pub fn import(
        &self,
        archive: impl Read + Send,
        selection: &Selection,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<Arc<Image>>, Error> {
        let members = Members::read(archive, &self.temporary(), progress)?;
        let mut found = manifest::find(&members, &selection.platforms)?;
        rename(&mut found, &selection.names)?;
        let found = merge(found)?;
        let stacks: Vec<Vec<LayerId>> = found
            .iter()
            .map(|image| LayerId::chain(&image.checked.diff_ids))
            .collect();
        let always = || true;
        let wanted = stacks.iter().flatten().copied();
        let mut claims = self
            .layers()
            .claim(wanted, &always)
            .map_err(|source| commit(&found, source))?;
        let jobs = jobs(&found, &stacks, &claims, progress);
        let staged = unpack(&jobs, self.layers(), progress)?;
        claims
            .commit(staged, &stacks, &always)
            .map_err(|source| commit(&found, source))?;
        let new = found
            .into_iter()
            .zip(stacks)
            .map(|(image, layers)| new(image, layers))
            .collect();
        let images = self.publish(new);
        if images.is_err() {
            claims.withdraw();
        }
        let images = images?;
        for image in &images {
            let image = image.id.to_string();
            progress(Progress::Recorded { image });
        }
        Ok(images)
    }
}

fn rename(found: &mut [Found], names: &Names) -> Result<(), Error> {
    let Names::Given(given) = names else {
        return Ok(());
    };
    match found {
        [image] => image.names.clone_from(given),
        _ => {
            let count = found.len();
            let text = format!("{count} images, so no name can be given for them");
            return Err(Error::Archive(text));
        }
    }
    Ok(())
}

/// Makes one of those that are the same image under several names.
fn merge(found: Vec<Found>) -> Result<Vec<Found>, Error> {
    let mut images: Vec<Found> = Vec::new();
    let mut owners = HashMap::new();
    for image in found {
        for tag in image.names.iter().filter_map(Reference::tagged) {
            if owners
                .insert(tag.clone(), image.id)
                .is_some_and(|owner| owner != image.id)
            {
                return Err(Error::Archive(format!("two images named {tag}")));
            }
        }
        match images.iter_mut().find(|known| known.id == image.id) {
            Some(known) if known.digest == image.digest => known.names.extend(image.names),
            // Another manifest of the same configuration has its own digest for each name.
            _ => images.push(image),
        }
    }
    Ok(images)
}

fn title(image: &Found) -> String {
    let name = image.names.iter().find_map(Reference::tagged);
    name.unwrap_or_else(|| image.id.to_string())
}

fn commit(found: &[Found], source: UnpackError) -> Error {
    let image = found.iter().map(title).collect::<Vec<_>>().join(", ");
    let source = Box::new(source);
    Error::Commit { image, source }
}

fn new(image: Found, layers: Vec<LayerId>) -> New {
    let digests = (image.names.iter())
        .filter_map(|name| match image.digest {
            Some(digest) => Some(name.repository().with(digest)),
            None => name.digested(),
        })
        .collect();
    New {
        tags: image.names.iter().filter_map(Reference::tagged).collect(),
        digests,
        id: image.id,
        config: image.config,
        content: Content::Image(Box::new(image.checked)),
        layers,
    }
}

fn jobs(
    found: &[Found],
    stacks: &[Vec<LayerId>],
    claims: &Claims,
    progress: &dyn Fn(Progress),
) -> Vec<Job> {
    let mut jobs: HashMap<LayerId, Job> = HashMap::new();
    for (image, stack) in found.iter().zip(stacks) {
        let diffs = image.checked.diff_ids.iter();
        for ((&id, &diff), layer) in stack.iter().zip(diffs).zip(&image.layers) {
            if !claims.missing().contains(&id) {
                progress(Progress::Shared { layer: diff });
                continue;
            }
            jobs.entry(id).or_insert_with(|| Job {
                id,
                image: title(image),
                diff,
                layer: layer.clone(),
            });
        }
    }
    // The largest first, so that no thread is left alone with it at the end.
    let mut jobs: Vec<Job> = jobs.into_values().collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(job.layer.section.len()));
    jobs
}

/// Unpacks the layers, several at once. The first error stops the others.
fn unpack(
    jobs: &[Job],
    layers: &LayerStore,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Staged>, Error> {
    let limits = Limits::default();
    let next = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let staged = Mutex::new(Vec::new());
    let failed = Mutex::new(None);
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            progress(Progress::Unpacking { layer: job.diff });
            let expected = Expected {
                packed: job.layer.packed,
                diff: job.diff,
            };
            let proceed = || !stopped.load(Ordering::Relaxed);
            let packed = job.layer.section.reader();
            match layers.unpack(job.id, packed, expected, &limits, &proceed) {
                Ok(layer) => {
                    progress(Progress::Unpacked { layer: job.diff });
                    staged
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(layer);
                }
                Err(source) => {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert((job, source));
                    stopped.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = jobs.len().min(cores).min(MOST_WORKERS);
    // A panic in one is passed on when all have ended, and is then this import's.
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    if let Some((job, source)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(Error::Layer {
            image: job.image.clone(),
            layer: job.diff,
            source: Box::new(source),
        });
    }
    Ok(staged.into_inner().unwrap_or_else(PoisonError::into_inner))
}
