//! From images to the archive of an OCI layout, which every runtime can import.
//!
//! What must always hold: an exported image has the same id, the same configuration byte for byte, and the same layers bit for
//! bit; what was not proved to be so is refused before the first byte. The layers are not packed, as they are not kept
//! packed: the manifest, and so the digest reference, is another one than the registry's.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use serde_json::json;

use super::{Error, Image, ImageStore};
use crate::store::blobs::{Digest, Hash};
use crate::store::layers::LayerId;
use crate::store::unpack::RecreateError;
use crate::store::verify::StreamError;

const BLOCK: usize = 512;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer of the archive. Its digest is its diff id.
struct Blob<'a> {
    id: LayerId,
    length: u64,
    image: &'a Image,
}

impl ImageStore {
    /// Writes the archive of images to `out`. Every layer is read twice: once to prove that it is what was unpacked.
    ///
    /// # Errors
    /// [`Error::Export`]: a layer is damaged, or its tar stream was not kept; those of `out`.
    pub fn export(
        &self,
        images: &[Arc<Image>],
        out: &mut dyn Write,
        proceed: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let mut blobs: BTreeMap<Digest, Blob> = BTreeMap::new();
        for image in images {
            if image.artifact.is_some() {
                return Err(Error::Export {
                    image: image.title(),
                    why: "it is an artifact, and not all of one is kept".to_owned(),
                });
            }
            for (&id, diff) in image.layers.iter().zip(image.diff_ids()) {
                if blobs.contains_key(&diff) {
                    continue;
                }
                let length = self.layers().measure_stream(id, diff, proceed);
                let length = length.map_err(|error| of_layer(error, image, diff))?;
                blobs.insert(diff, Blob { id, length, image });
            }
        }
        let mut archive = Archive(out);
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for (&diff, blob) in &blobs {
            self.layer(&mut archive, diff, blob, proceed)?;
        }
        let mut entries = Vec::new();
        for image in images {
            entries.extend(self.documents(&mut archive, image, &blobs)?);
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        });
        archive.file("index.json", index.to_string().as_bytes())?;
        archive.end()
    }

    fn layer(
        &self,
        archive: &mut Archive,
        diff: Digest,
        blob: &Blob,
        proceed: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        archive.header(&path(diff), blob.length)?;
        let mut checked = Checked {
            out: &mut *archive.0,
            hash: Hash::default(),
        };
        let written = self.layers().write_stream(blob.id, &mut checked, proceed);
        written.map_err(|error| of_layer(error, blob.image, diff))?;
        if checked.hash.finish() != (diff, blob.length) {
            let error = RecreateError::Damaged("changed meanwhile".to_owned());
            return Err(of_layer(error.into(), blob.image, diff));
        }
        archive.fill(blob.length)
    }

    /// Writes an image's configuration and manifest; gives its entries in the index, one for each tag.
    fn documents(
        &self,
        archive: &mut Archive,
        image: &Image,
        blobs: &BTreeMap<Digest, Blob>,
    ) -> Result<Vec<serde_json::Value>, Error> {
        let removed = || Error::Export {
            image: image.title(),
            why: "it was removed meanwhile".to_owned(),
        };
        let config = self.configuration(image.id).ok_or_else(removed)?;
        let layers = image.diff_ids().into_iter().map(|diff| {
            json!({
                "mediaType": LAYER,
                "digest": diff.to_string(),
                "size": blobs[&diff].length,
            })
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": image.id.to_string(), "size": config.len() },
            "layers": layers.collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string();
        let digest = Digest::of(manifest.as_bytes());
        archive.file(&path(image.id.0), config.as_bytes())?;
        archive.file(&path(digest), manifest.as_bytes())?;
        let mut platform = json!({
            "architecture": image.config.architecture(),
            "os": image.config.os(),
        });
        if let Some(variant) = image.config.variant() {
            platform["variant"] = json!(variant);
        }
        let entry = json!({
            "mediaType": MANIFEST,
            "digest": digest.to_string(),
            "size": manifest.len(),
            "platform": platform,
        });
        if image.tags.is_empty() {
            return Ok(vec![entry]);
        }
        let named = image.tags.iter().map(|tag| {
            let mut entry = entry.clone();
            entry["annotations"] = json!({
                "io.containerd.image.name": tag,
                "org.opencontainers.image.ref.name": tag,
            });
            entry
        });
        Ok(named.collect())
    }
}

fn path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn of_layer(error: StreamError, image: &Image, diff: Digest) -> Error {
    let image = image.title();
    let why = match error {
        StreamError::Recreate(RecreateError::Cancelled) => return Error::Cancelled { image },
        StreamError::Recreate(RecreateError::Write(error)) => return of_archive(error),
        StreamError::NotKept => format!(
            "layer {diff}: {error}; the image can be removed, pulled again and exported then"
        ),
        StreamError::Recreate(error) => format!(
            "layer {diff} is damaged: {error}; `carpel image verify --repair` sets it aside"
        ),
    };
    Error::Export { image, why }
}

fn of_archive(source: io::Error) -> Error {
    let object = "archive".to_owned();
    Error::Store { object, source }
}

/// Passes on and hashes.
struct Checked<'a> {
    out: &'a mut dyn Write,
    hash: Hash,
}

impl Write for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hash.write_all(&bytes[..length])?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A tar archive of files that is being written.
struct Archive<'a>(&'a mut dyn Write);

impl Archive<'_> {
    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        self.header(path, bytes.len() as u64)?;
        self.0.write_all(bytes).map_err(of_archive)?;
        self.fill(bytes.len() as u64)
    }

    fn header(&mut self, path: &str, length: u64) -> Result<(), Error> {
        self.0.write_all(&header(path, length)).map_err(of_archive)
    }

    /// Fills up the last block of a file.
    fn fill(&mut self, length: u64) -> Result<(), Error> {
        let rest = length.wrapping_neg() % BLOCK as u64;
        let zeros = [0; BLOCK];
        let rest = usize::try_from(rest).unwrap_or(0);
        self.0.write_all(&zeros[..rest]).map_err(of_archive)
    }

    fn end(&mut self) -> Result<(), Error> {
        let ended = self.0.write_all(&[0; 2 * BLOCK]);
        ended.and_then(|()| self.0.flush()).map_err(of_archive)
    }
}

/// The header of a file, which is the same whenever it is made.
fn header(path: &str, length: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    match length >> 33 {
        0 => put(124, format!("{length:011o}\0").as_bytes()),
        // GNU's form for what eleven digits do not hold.
        _ => put(124, &[&[0x80, 0, 0, 0][..], &length.to_be_bytes()].concat()),
    }
    put(136, b"00000000000\0");
    put(148, &[b' '; 8]);
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
