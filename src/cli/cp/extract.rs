//! A tar archive from a container becomes files of this machine.
//!
//! What must always hold: whatever the archive says, nothing outside the destination is read or written. So its
//! links are not made, links that are here are not followed, and every name is opened in the folder before it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use super::shown;
use crate::store::unpack::Limits;
use crate::store::unpack::tar::{Archive, Entry, Kind};

/// Rights of a folder, before the umask has its say.
const FOLDER: Mode = Mode::from_raw_mode(0o777);

/// Unpacks what the archive has as `name`, which is a file or a folder ("."): all of it. A folder becomes `to`,
/// a file too, unless a folder is there.
///
/// # Errors
/// The archive is not as it must be, has nothing to be copied, or something cannot be written.
pub fn extract(
    archive: impl Read,
    name: &str,
    to: &Path,
    warn: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    let mut archive = Archive::new(archive, &limits());
    let mut root: Option<Root> = None;
    while let Some(entry) = archive.next().context("read the archive")? {
        let path = relative(&entry.path, name)?;
        let root = match &mut root {
            Some(root) => root,
            empty => match Root::new(&entry, name, to)? {
                Some(root) => empty.insert(root),
                None => {
                    warn(skipped(&entry));
                    continue;
                }
            },
        };
        root.take(&entry, &path, &mut archive, warn)?;
    }
    // So that whoever writes is not told that nobody listens.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    match root {
        Some(_) => Ok(()),
        None => bail!("nothing was copied"),
    }
}

/// There is as much as there is: only what memory is taken for is bounded.
fn limits() -> Limits {
    Limits {
        entries: u64::MAX,
        bytes: u64::MAX,
        ..Limits::default()
    }
}

/// Where an entry belongs, below what is copied.
fn relative(path: &[u8], name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(OsStr::from_bytes(path));
    let mut below = PathBuf::new();
    let mut expected = (name != ".").then_some(name);
    for component in path.components() {
        match (component, expected.take()) {
            (Component::CurDir, still) => expected = still,
            (Component::Normal(found), None) => below.push(found),
            (Component::Normal(found), Some(expected)) if found == expected => {}
            _ => bail!(
                "the archive has {}, which does not belong there",
                shown(path)
            ),
        }
    }
    if expected.is_some() {
        bail!(
            "the archive has {}, which does not belong there",
            shown(path)
        );
    }
    Ok(below)
}

fn skipped(entry: &Entry) -> String {
    let path = Path::new(OsStr::from_bytes(&entry.path));
    let what = match &entry.kind {
        Kind::Symlink(target) => format!("a symbolic link to {}", target.escape_ascii()),
        Kind::Hardlink(target) => {
            format!("a link to {}, which was not copied", target.escape_ascii())
        }
        Kind::File { .. } => "a file with holes".to_owned(),
        _ => "no file or folder".to_owned(),
    };
    format!("skipping {}: {what}", shown(path))
}

/// The folder that everything is put in.
struct Root {
    folder: OwnedFd,
    /// What is copied is a file, of this name in the folder.
    file: Option<PathBuf>,
    /// What is copied as the archive has it, for links.
    name: String,
}

impl Root {
    /// By the first entry. `None`: it is nothing that is copied.
    fn new(entry: &Entry, name: &str, to: &Path) -> anyhow::Result<Option<Self>> {
        let (folder, file) = match entry.kind {
            Kind::Directory => (to.to_owned(), None),
            Kind::File { .. } if to.is_dir() => (to.to_owned(), Some(name.into())),
            Kind::File { .. } => {
                let file = to.file_name().context("a path without a name")?;
                let folder = match to.parent() {
                    Some(folder) if folder != Path::new("") => folder,
                    _ => Path::new("."),
                };
                (folder.to_owned(), Some(file.into()))
            }
            _ => return Ok(None),
        };
        let at = || shown(&folder);
        std::fs::create_dir_all(&folder).with_context(at)?;
        // The person names it, and may name a link.
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = openat(CWD, &folder, flags, Mode::empty());
        Ok(Some(Self {
            folder: opened.map_err(io::Error::from).with_context(at)?,
            file,
            name: name.to_owned(),
        }))
    }

    fn take(
        &self,
        entry: &Entry,
        below: &Path,
        archive: &mut Archive<impl Read>,
        warn: &mut dyn FnMut(String),
    ) -> anyhow::Result<()> {
        let path = match &self.file {
            Some(file) if below == Path::new("") => file.as_path(),
            Some(_) => bail!("the archive has more than the file that was asked for"),
            None => below,
        };
        let at = || shown(path);
        match &entry.kind {
            Kind::Directory => self.folder(path).map(drop).with_context(at),
            Kind::File { sparse: None, .. } => {
                let mut file = self.create(path, entry.mode).with_context(at)?;
                io::copy(archive, &mut file).map(drop).with_context(at)
            }
            // The same file again, which is here by now.
            Kind::Hardlink(target) => {
                let first = relative(target, &self.name)?;
                let Ok(mut first) = self.open(&first) else {
                    warn(skipped(entry));
                    return Ok(());
                };
                let mut file = self.create(path, entry.mode).with_context(at)?;
                io::copy(&mut first, &mut file).map(drop).with_context(at)
            }
            _ => {
                warn(skipped(entry));
                Ok(())
            }
        }
    }

    /// The folder at a path, made if it is missing.
    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut folder = self.folder.try_clone()?;
        for name in path {
            match mkdirat(&folder, name, FOLDER) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            folder = open_folder(&folder, name.as_ref())?;
        }
        Ok(folder)
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        let folder = self.folder(path.parent().unwrap_or(Path::new("")))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o777);
        Ok(openat(&folder, file_name(path)?, flags | safe, mode)?.into())
    }

    /// A file that has been unpacked.
    fn open(&self, path: &Path) -> io::Result<File> {
        let mut folder = self.folder.try_clone()?;
        for name in path.parent().into_iter().flatten() {
            folder = open_folder(&folder, name.as_ref())?;
        }
        let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let flags = OFlags::RDONLY | safe;
        Ok(openat(&folder, file_name(path)?, flags, Mode::empty())?.into())
    }
}

fn open_folder(folder: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::empty())?)
}

fn file_name(path: &Path) -> io::Result<&OsStr> {
    path.file_name()
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::cli::cp::pack::pack;

    /// An archive of what `make` puts into a folder.
    fn archive(name: &str, make: impl FnOnce(&Path)) -> Vec<u8> {
        let source = tempfile::tempdir().unwrap();
        make(source.path());
        let (mut bytes, mut warnings) = (Vec::new(), Vec::new());
        let path = source.path().join(name);
        pack(&mut bytes, &path, name.as_bytes(), &mut |text| {
            warnings.push(text)
        })
        .unwrap();
        assert!(bytes.len().is_multiple_of(10_240), "{}", bytes.len());
        bytes
    }

    fn unpack(bytes: &[u8], name: &str, to: &Path) -> anyhow::Result<Vec<String>> {
        let mut warnings = Vec::new();
        extract(bytes, name, to, &mut |text| warnings.push(text)).map(|()| warnings)
    }

    /// A header with a valid sum, for what no program would write.
    fn entry(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        for at in [108, 116] {
            block[at..at + 7].copy_from_slice(b"0000000");
        }
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000000000");
        block[148..156].fill(b' ');
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = block.to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn with_end(entries: &[Vec<u8>]) -> Vec<u8> {
        [entries.concat(), vec![0; 1024]].concat()
    }

    #[test]
    fn a_folder_comes_back_as_it_was() {
        let long = "x".repeat(200);
        let bytes = archive("a", |root| {
            let deep = root.join("a/b").join(&long);
            std::fs::create_dir_all(&deep).unwrap();
            std::fs::write(deep.join("file"), vec![7; 200_000]).unwrap();
            std::fs::write(root.join("a/run"), "#!").unwrap();
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(root.join("a/run"), mode).unwrap();
            std::fs::create_dir(root.join("a/empty")).unwrap();
            symlink("run", root.join("a/link")).unwrap();
        });
        let to = tempfile::tempdir().unwrap();
        let folder = to.path().join("new/c");
        let warnings = unpack(&bytes, "a", &folder).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("a/link: a symbolic link to run"));
        let file = folder.join("b").join(&long).join("file");
        assert_eq!(std::fs::read(file).unwrap(), vec![7; 200_000]);
        let mode = folder.join("run").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(folder.join("empty").is_dir() && !folder.join("link").exists());
        // Again, over what is there.
        unpack(&bytes, "a", &folder).unwrap();
    }

    #[test]
    fn a_file_goes_to_a_name_or_into_a_folder() {
        let bytes = archive("f", |root| std::fs::write(root.join("f"), "text").unwrap());
        let to = tempfile::tempdir().unwrap();
        unpack(&bytes, "f", to.path()).unwrap();
        unpack(&bytes, "f", &to.path().join("g")).unwrap();
        for name in ["f", "g"] {
            assert_eq!(std::fs::read(to.path().join(name)).unwrap(), b"text");
        }
    }

    #[test]
    fn nothing_outside_the_destination_is_touched() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let absolute = secret.to_str().unwrap();
        let folder = || entry(b'5', "a/", "", b"");
        let evil = |name: &str| entry(b'0', name, "", b"evil");
        let link = |name: &str, target: &str| entry(b'2', name, target, b"");
        let same = |name: &str, target: &str| entry(b'1', name, target, b"");
        for entries in [
            vec![folder(), evil("a/../../secret")],
            vec![folder(), evil("../secret")],
            vec![folder(), evil(absolute)],
            vec![folder(), evil("b/c")],
            vec![evil("a"), evil("a/b")],
            vec![folder(), same("a/x", "../secret")],
            vec![folder(), same("a/x", absolute)],
        ] {
            let to = tempfile::tempdir_in(outside.path()).unwrap();
            let outcome = unpack(&with_end(&entries), "a", &to.path().join("d"));
            assert!(outcome.is_err());
        }
        // A link of the archive's is not there to be followed.
        let to = tempfile::tempdir_in(outside.path()).unwrap();
        let through = [folder(), link("a/l", ".."), evil("a/l/secret")];
        unpack(&with_end(&through), "a", to.path()).unwrap();
        assert_eq!(std::fs::read(to.path().join("l/secret")).unwrap(), b"evil");
        let over = [
            folder(),
            link("a/s", absolute),
            evil("a/s"),
            same("a/t", "a/none"),
        ];
        assert_eq!(unpack(&with_end(&over), "a", to.path()).unwrap().len(), 2);
        // One that is here is not followed either.
        symlink("..", to.path().join("here")).unwrap();
        symlink(&secret, to.path().join("file")).unwrap();
        for name in ["a/here/secret", "a/file"] {
            let bytes = with_end(&[folder(), evil(name)]);
            assert!(unpack(&bytes, "a", to.path()).is_err(), "{name}");
        }
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
    }

    #[test]
    fn an_archive_that_ends_too_early_is_an_error() {
        let bytes = archive("f", |root| {
            std::fs::write(root.join("f"), [1; 5000]).unwrap()
        });
        let to = tempfile::tempdir().unwrap();
        assert!(unpack(&bytes[..2000], "f", to.path()).is_err());
        assert!(unpack(&with_end(&[]), "f", to.path()).is_err());
    }

    #[test]
    fn a_file_that_is_there_twice_is_copied_twice() {
        let first = entry(b'0', "./a/one", "", b"text");
        let second = entry(b'1', "./a/two", "./a/one", b"");
        let bytes = with_end(&[entry(b'5', "./a/", "", b""), first, second]);
        let to = tempfile::tempdir().unwrap();
        unpack(&bytes, "a", to.path()).unwrap();
        assert_eq!(std::fs::read(to.path().join("two")).unwrap(), b"text");
    }
}
