//! Devices of vendors, described by files on the node: the Container Device Interface.
//!
//! A device has a qualified name, `vendor.com/class=name`. What a container has to be given for it (nodes,
//! variables, mounts, hooks, groups) is said in specification files, JSON or YAML, in a few folders. They are read anew
//! for each container that wants a device, so there is nothing to be out of date.
//!
//! ```text
//! names ──find──▶ Edits (spec-level once a file, then the devices') ──apply──▶ OCI spec
//! ```
//!
//! Folders later in the list go before earlier ones. A device that two files of one folder describe is nobody's; a file
//! that cannot be read harms only its own devices, and is named when one of them is asked for.

mod document;
mod edits;
mod name;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use document::Document;
pub use edits::Edits;
pub use name::{QualifiedName, from_annotations};

/// The most files that are read, and the longest.
const MAX_FILES: usize = 4096;
const MAX_FILE: u64 = 4 << 20;

/// The folders in which specifications are.
#[derive(Debug, Clone)]
pub struct Cdi {
    dirs: Vec<PathBuf>,
    /// Whether annotations of a container may name devices.
    pub annotations: bool,
}

/// Why a container gets no device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such device: no specification in {} describes it{}", folders(.dirs), unread(.broken))]
    Unknown {
        dirs: Vec<PathBuf>,
        broken: Vec<String>,
    },
    #[error("{} and {} both describe it", .first.display(), .second.display())]
    Conflict { first: PathBuf, second: PathBuf },
    #[error("{} asks for {what}", .path.display())]
    Unsupported { path: PathBuf, what: &'static str },
    #[error("folder {}: {source}", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("more than {MAX_FILES} specifications")]
    TooMany,
    #[error("{0}")]
    Edit(String),
}

fn folders(dirs: &[PathBuf]) -> String {
    let names: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    names.join(", ")
}

fn unread(broken: &[String]) -> String {
    if broken.is_empty() {
        return String::new();
    }
    format!(" (not read: {})", broken.join("; "))
}

/// The specifications as they are on disk.
#[derive(Default)]
struct Registry {
    /// Where was looked.
    dirs: Vec<PathBuf>,
    files: Vec<(PathBuf, Document)>,
    devices: HashMap<String, Found>,
    /// What could not be read, and why.
    broken: Vec<String>,
}

/// Where a device is described.
#[derive(Clone, Copy)]
struct Found {
    priority: usize,
    file: usize,
    device: usize,
    /// Another file of the same folder.
    conflict: Option<usize>,
}

impl Cdi {
    /// `dirs`: the later one goes before.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>, annotations: bool) -> Self {
        Self { dirs, annotations }
    }

    /// What containers must be given for the devices, in this order.
    ///
    /// # Errors
    /// The first device that cannot be had, and why.
    pub fn find(&self, names: &[QualifiedName]) -> Result<Edits, (String, Error)> {
        if names.is_empty() {
            return Ok(Edits::default());
        }
        let registry = self.read().map_err(|error| (names[0].to_string(), error))?;
        registry.find(names)
    }

    fn read(&self) -> Result<Registry, Error> {
        let mut registry = Registry {
            dirs: self.dirs.clone(),
            ..Registry::default()
        };
        for (priority, dir) in self.dirs.iter().enumerate() {
            for path in specifications(dir)? {
                if registry.files.len() + registry.broken.len() >= MAX_FILES {
                    return Err(Error::TooMany);
                }
                match read_file(&path).and_then(|text| Document::parse(&path, &text)) {
                    Ok(document) => registry.add(priority, path, document),
                    Err(why) => registry.broken.push(format!("{}: {why}", path.display())),
                }
            }
        }
        Ok(registry)
    }
}

impl Registry {
    fn add(&mut self, priority: usize, path: PathBuf, document: Document) {
        let file = self.files.len();
        for (device, described) in document.devices.iter().enumerate() {
            let name = format!("{}={}", document.kind, described.name);
            let found = Found {
                priority,
                file,
                device,
                conflict: None,
            };
            self.devices
                .entry(name)
                .and_modify(|known| {
                    if known.priority < priority {
                        *known = found;
                    } else {
                        known.conflict = Some(file);
                    }
                })
                .or_insert(found);
        }
        self.files.push((path, document));
    }

    fn find(&self, names: &[QualifiedName]) -> Result<Edits, (String, Error)> {
        let mut edits = Edits::default();
        let mut used = Vec::new();
        for name in names {
            let failed = |error| (name.to_string(), error);
            let Some(found) = self.devices.get(name.as_str()) else {
                return Err(failed(Error::Unknown {
                    dirs: self.dirs.clone(),
                    broken: self.broken.clone(),
                }));
            };
            let (path, document) = &self.files[found.file];
            if let Some(other) = found.conflict {
                return Err(failed(Error::Conflict {
                    first: path.clone(),
                    second: self.files[other].0.clone(),
                }));
            }
            if !used.contains(&found.file) {
                used.push(found.file);
                edits.add(path, &document.container_edits).map_err(failed)?;
            }
            let device = &document.devices[found.device];
            edits.add(path, &device.container_edits).map_err(failed)?;
        }
        Ok(edits)
    }
}

/// The files of a folder that are specifications by their names, sorted. A folder that is missing has none.
fn specifications(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Folder {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("json" | "yaml")) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_file(path: &Path) -> Result<String, String> {
    let text = || -> io::Result<String> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = fs::OpenOptions::new();
        // A FIFO is not waited for.
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("longer than {MAX_FILE} bytes")));
        }
        Ok(text)
    };
    text().map_err(|error| error.to_string())
}
