//! The members of an image archive: read from a stream, once, into a spool.
//!
//! What must always hold: a member's path is normal and stays inside the archive, links included; two members of one
//! path are an error, because readers differ in which of them they take.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use super::{Error, Progress};
use crate::store::blobs::{Section, Spool};
use crate::store::unpack::tar::{Archive, Kind};
use crate::store::unpack::{Bounded, Limits, UnpackError};

/// The files of an archive.
#[derive(Debug)]
pub(super) struct Members {
    members: HashMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    File(Section),
    /// To another member: docker-save does so for layers that two images share.
    Link(String),
}

/// Links followed for one member.
const MOST_LINKS: usize = 8;
/// Received bytes between two reports.
const REPORT: u64 = 8 << 20;

/// Bytes after the end of the archive that are read, at most.
const MOST_REST: u64 = 16 << 20;

fn limits() -> Limits {
    Limits {
        entries: 100_000,
        bytes: 1 << 40,
        ..Limits::default()
    }
}

impl Members {
    /// Reads a tar stream, perhaps packed by gzip or zstd, to its end.
    ///
    /// # Errors
    /// [`Error`], also if the disk is full.
    pub(super) fn read(
        archive: impl Read,
        temporary: &Path,
        progress: &dyn Fn(Progress),
    ) -> Result<Self, Error> {
        let store = |source| Error::Store {
            object: "spool of the archive".into(),
            source,
        };
        let mut spool = Spool::new(temporary).map_err(store)?;
        let limits = limits();
        let counting = Counting {
            inner: archive,
            count: 0,
            reported: 0,
            progress,
        };
        let stream = Bounded::without_digest(counting, &limits).map_err(of_stream)?;
        let mut archive = Archive::new(stream, &limits);
        let mut members = HashMap::new();
        while let Some(entry) = archive.next()? {
            let is_folder = entry.kind == Kind::Directory;
            let (Some(path), false) = (normal("", &entry.path), is_folder) else {
                continue;
            };
            let member = match entry.kind {
                Kind::File { sparse: None, .. } => {
                    let mut split = Split {
                        inner: &mut archive,
                        failed: None,
                    };
                    let section = spool.append(&mut split);
                    match (section, split.failed) {
                        (_, Some(error)) => return Err(of_stream(error)),
                        (Err(error), None) => return Err(store(error)),
                        (Ok(section), None) => Member::File(section),
                    }
                }
                Kind::Symlink(target) => match normal(folder(&path), &target) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                Kind::Hardlink(target) => match normal("", &target) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            if members.contains_key(&path) {
                return Err(Error::Archive(format!("two members {path}")));
            }
            members.insert(path, member);
        }
        // Whoever writes to a pipe must not fail because of what fills the archive's last blocks.
        let mut rest = archive.into_inner().take(MOST_REST);
        io::copy(&mut rest, &mut io::sink()).map_err(of_stream)?;
        Ok(Self { members })
    }

    /// The file at `path`, which must be normal, through links.
    pub(super) fn get(&self, path: &str) -> Option<&Section> {
        let mut path = path;
        for _ in 0..=MOST_LINKS {
            match self.members.get(path)? {
                Member::File(section) => return Some(section),
                Member::Link(target) => path = target,
            }
        }
        None
    }

    /// The file at a path from a document.
    pub(super) fn named(&self, path: &str) -> Option<&Section> {
        self.get(&normal("", path.as_bytes())?)
    }
}

impl From<UnpackError> for Error {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Read(source) => Self::Read(source),
            other => Self::Archive(other.to_string()),
        }
    }
}

fn of_stream(error: io::Error) -> Error {
    UnpackError::from(error).into()
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Joins `path` to `folder` and resolves "." and "..". `None` for what is no text, absolute or outside.
fn normal(folder: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    if path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Tells an error of reading from one of writing, which a full disk is.
struct Split<'a, R> {
    inner: &'a mut R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Split<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).or_else(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return Err(error);
            }
            // What was appended so far is not used.
            self.failed = Some(error);
            Ok(0)
        })
    }
}

struct Counting<'a, R> {
    inner: R,
    count: u64,
    reported: u64,
    progress: &'a dyn Fn(Progress),
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count += length as u64;
        if self.count >= self.reported + REPORT || (length == 0 && self.count > self.reported) {
            self.reported = self.count;
            (self.progress)(Progress::Received { bytes: self.count });
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (folder, path, expected) in [
            ("", "a", Some("a")),
            ("", "./a//b/", Some("a/b")),
            ("x", "../y/layer.tar", Some("y/layer.tar")),
            ("x", "../../y", None),
            ("", "..", None),
            ("", "a/../../b", None),
            ("", "/a", None),
            ("", ".", None),
        ] {
            assert_eq!(
                normal(folder, path.as_bytes()).as_deref(),
                expected,
                "{path}"
            );
        }
        assert_eq!(normal("", b"\xff"), None);
    }
}
