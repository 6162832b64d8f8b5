//! Paths of a container: opened, and made where they are missing, without ever leaving its root.
//!
//! What exists is found by the kernel, with openat2(2). What is missing is made component by component
//! from descriptors: a link that someone puts in the way meanwhile is an error, it is not followed.
//! Where only the last name is missing, as it is nearly always, the kernel finds its parent at once.
//!
//! Modes are exact: the process that carries out a Plan has no umask meanwhile.

use core::ffi::CStr;

use crate::sys::{self, BorrowedFd, Errno, Fd, Resolve, Result, errno};

/// The longest path, with its NUL, in bytes. The kernel's limit is the same (PATH_MAX).
const LONGEST: usize = 4096;

/// As many links as the kernel follows in one path.
const MOST_LINKS: u32 = 40;

/// Whether symbolic links in a path are followed, inside the root (also onto what is mounted in it, or else that is EXDEV),
/// or are an error (ELOOP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    Follow,
    FollowOnMount,
    Refuse,
}

impl Links {
    fn resolve(self) -> Resolve {
        match self {
            Links::Follow => Resolve::IN_ROOT,
            Links::FollowOnMount => Resolve::IN_ROOT_MOUNT,
            Links::Refuse => Resolve::IN_ROOT_NO_LINKS,
        }
    }

    /// How a path without links is opened.
    fn resolve_plain(self) -> Resolve {
        match self {
            Links::Follow | Links::Refuse => Resolve::IN_ROOT,
            Links::FollowOnMount => Resolve::IN_ROOT_MOUNT,
        }
    }
}

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A directory of this mode.
    Directory(u32),
    /// An empty file.
    File,
}

/// Opens what is at `path`, as O_PATH.
pub fn open(root: BorrowedFd<'_>, path: &CStr, links: Links) -> Result<Fd> {
    sys::open_in(root, path, sys::O_PATH, links.resolve())
}

/// Opens what is at `path`, as O_PATH, and makes it, and its parents with mode 0755, if it is missing.
/// A link that leads to nothing is followed like any other: what it names is made, inside the root.
pub fn open_or_make(
    root: BorrowedFd<'_>,
    path: &CStr,
    links: Links,
    missing: Missing,
) -> Result<Fd> {
    match open(root, path, links) {
        Err(Errno(errno::ENOENT)) => {}
        other => return other,
    }
    let make = |parent: BorrowedFd<'_>, name: &CStr| match missing {
        Missing::Directory(mode) => sys::make_directory(parent, name, mode),
        Missing::File => sys::make_node(parent, name, sys::S_IFREG | 0o644, (0, 0)),
    };
    let open = |parent: BorrowedFd<'_>, name: &CStr| {
        sys::open_in(parent, name, sys::O_PATH, Resolve::BENEATH)
    };
    if let Some((parent, name)) = existing_parent(root, path.to_bytes(), links) {
        let parent = parent.as_ref().map_or(root, Fd::borrow);
        match make(parent, name.terminated()) {
            Ok(()) => return open(parent, name.terminated()),
            // A link to nothing, most likely.
            Err(Errno(errno::EEXIST)) => {}
            Err(error) => return Err(error),
        }
    }
    let place = Place::find(root, path.to_bytes(), links)?;
    let (parent, name) = place.make_parents(root)?;
    let parent = parent.as_ref().map_or(root, Fd::borrow);
    match make(parent, name) {
        Ok(()) | Err(Errno(errno::EEXIST)) => open(parent, name),
        Err(error) => Err(error),
    }
}

/// Does `make` with the last name of `path` in its parent directory, which is made if it is missing.
/// The last name itself is never followed.
pub fn in_parent<T>(
    root: BorrowedFd<'_>,
    path: &CStr,
    make: impl FnOnce(BorrowedFd<'_>, &CStr) -> Result<T>,
) -> Result<T> {
    let path = path.to_bytes();
    let (parent, name) = split(path);
    if matches!(name, b"" | b"." | b"..") {
        return Err(Errno(errno::EINVAL));
    }
    if let Some((parent, name)) = existing_parent(root, path, Links::Follow) {
        return make(parent.as_ref().map_or(root, Fd::borrow), name.terminated());
    }
    let mut place = Place::find(root, parent, Links::Follow)?;
    place.push(name)?;
    let (parent, name) = place.make_parents(root)?;
    make(parent.as_ref().map_or(root, Fd::borrow), name)
}

/// Everything up to the last slash, and what is behind it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte == b'/');
    path.split_at(end.map_or(0, |slash| slash + 1))
}

/// The parent directory of `path` (`None` is the root) and the last name, if the directory is there and
/// both are short. `None` otherwise: then the path is walked.
fn existing_parent(root: BorrowedFd<'_>, path: &[u8], links: Links) -> Option<(Option<Fd>, Text)> {
    let (parent, name) = split(path);
    if matches!(name, b"" | b"." | b"..") {
        return None;
    }
    let name = Text::new(name)?;
    if parent.iter().all(|byte| *byte == b'/') {
        return Some((None, name));
    }
    let parent = Text::new(parent)?;
    let flags = sys::O_PATH | sys::O_DIRECTORY;
    let parent = sys::open_in(root, parent.terminated(), flags, links.resolve()).ok()?;
    Some((Some(parent), name))
}

/// A short string with a NUL behind it.
struct Text([u8; Self::LONGEST + 1]);

impl Text {
    /// The longest name (NAME_MAX).
    const LONGEST: usize = 255;

    fn new(bytes: &[u8]) -> Option<Self> {
        let mut text = [0; Self::LONGEST + 1];
        text[..Self::LONGEST]
            .get_mut(..bytes.len())?
            .copy_from_slice(bytes);
        Some(Self(text))
    }

    fn terminated(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// A path below the root, free of links and dots: names with slashes between them, then a NUL.
struct Place {
    path: [u8; LONGEST],
    length: usize,
}

impl Place {
    /// Where `path` leads, as far as it exists; what is missing is taken as it is written.
    fn find(root: BorrowedFd<'_>, path: &[u8], links: Links) -> Result<Self> {
        let mut place = Self {
            path: [0; LONGEST],
            length: 0,
        };
        let mut rest = Rest::new(path)?;
        let mut exists = true;
        let mut followed = 0;
        while let Some(name) = rest.next_name() {
            match name {
                b"." => continue,
                b".." => {
                    place.pop();
                    exists = true;
                    continue;
                }
                name => place.push(name)?,
            }
            if !exists {
                continue;
            }
            let flags = sys::O_PATH | sys::O_NOFOLLOW;
            let found = match sys::open_in(root, place.path()?, flags, links.resolve_plain()) {
                Err(Errno(errno::ENOENT)) => {
                    exists = false;
                    continue;
                }
                other => other?,
            };
            if sys::status(found.borrow())?.is_symlink() {
                followed += 1;
                if links == Links::Refuse || followed > MOST_LINKS {
                    return Err(Errno(errno::ELOOP));
                }
                let mut target = [0; LONGEST];
                let target = sys::read_link(found.borrow(), &mut target)?;
                if target.starts_with(b"/") {
                    place.length = 0;
                } else {
                    place.pop();
                }
                rest.prepend(target)?;
            }
        }
        Ok(place)
    }

    fn push(&mut self, name: &[u8]) -> Result<()> {
        let start = self.length + usize::from(self.length > 0);
        let end = start + name.len();
        if end >= LONGEST {
            return Err(Errno(errno::ENAMETOOLONG));
        }
        if start > 0 {
            self.path[start - 1] = b'/';
        }
        self.path[start..end].copy_from_slice(name);
        self.path[end] = 0;
        self.length = end;
        Ok(())
    }

    fn pop(&mut self) {
        let names = &self.path[..self.length];
        self.length = names.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.path[self.length] = 0;
    }

    fn path(&self) -> Result<&CStr> {
        string(&self.path[..=self.length])
    }

    /// Makes all directories but for the last name. Returns the last directory, unless it is the root,
    /// and the name.
    fn make_parents(&self, root: BorrowedFd<'_>) -> Result<(Option<Fd>, &CStr)> {
        let mut parent: Option<Fd> = None;
        let mut start = 0;
        while let Some(length) = self.path[start..self.length]
            .iter()
            .position(|byte| *byte == b'/')
        {
            let mut name = [0; 256];
            let place = name.get_mut(..length).ok_or(Errno(errno::ENAMETOOLONG))?;
            place.copy_from_slice(&self.path[start..start + length]);
            let name = string(&name[..=length.min(255)])?;
            let above = parent.as_ref().map_or(root, Fd::borrow);
            parent = Some(enter_or_make(above, name)?);
            start += length + 1;
        }
        if start == self.length {
            return Err(Errno(errno::EEXIST));
        }
        Ok((parent, string(&self.path[start..=self.length])?))
    }
}

/// Opens the directory `name`, which is made if it is missing.
fn enter_or_make(parent: BorrowedFd<'_>, name: &CStr) -> Result<Fd> {
    let flags = sys::O_PATH | sys::O_DIRECTORY;
    match sys::open_in(parent, name, flags, Resolve::BENEATH) {
        Err(Errno(errno::ENOENT)) => {}
        other => return other,
    }
    match sys::make_directory(parent, name, 0o755) {
        Ok(()) | Err(Errno(errno::EEXIST)) => sys::open_in(parent, name, flags, Resolve::BENEATH),
        Err(error) => Err(error),
    }
}

fn string(bytes: &[u8]) -> Result<&CStr> {
    CStr::from_bytes_with_nul(bytes).map_err(|_| Errno(errno::EINVAL))
}

/// What of a path is still to be walked: it stands at the end of the buffer, so that a link's target
/// can be put before it.
struct Rest {
    text: [u8; LONGEST],
    start: usize,
}

impl Rest {
    fn new(path: &[u8]) -> Result<Self> {
        let mut rest = Self {
            text: [0; LONGEST],
            start: LONGEST,
        };
        rest.prepend(path)?;
        Ok(rest)
    }

    fn prepend(&mut self, path: &[u8]) -> Result<()> {
        let needed = path.len() + 1;
        let start = self
            .start
            .checked_sub(needed)
            .ok_or(Errno(errno::ENAMETOOLONG))?;
        self.text[start..self.start - 1].copy_from_slice(path);
        self.text[self.start - 1] = b'/';
        self.start = start;
        Ok(())
    }

    fn next_name(&mut self) -> Option<&[u8]> {
        let slashes = self.text[self.start..]
            .iter()
            .take_while(|byte| **byte == b'/')
            .count();
        let first = self.start + slashes;
        let rest = &self.text[first..];
        let length = rest.iter().position(|byte| *byte == b'/')?;
        self.start = first + length;
        Some(&rest[..length])
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn root(path: &Path) -> Fd {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let flags = sys::O_PATH | sys::O_DIRECTORY;
        sys::open_in(
            sys::open_root().unwrap().borrow(),
            &path,
            flags,
            Resolve::IN_ROOT,
        )
        .unwrap()
    }

    fn make(directory: &Path, path: &str, links: Links, missing: Missing) -> Result<()> {
        let path = CString::new(path).unwrap();
        sys::set_umask(0);
        open_or_make(root(directory).borrow(), &path, links, missing).map(drop)
    }

    #[test]
    fn missing_targets_are_made_with_their_parents() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        make(
            at,
            "/a/./b//../c/d",
            Links::Refuse,
            Missing::Directory(0o1777),
        )
        .unwrap();
        make(at, "e/f", Links::Follow, Missing::File).unwrap();
        assert_eq!(
            at.join("a/c/d").metadata().unwrap().permissions().mode() & 0o7777,
            0o1777
        );
        assert_eq!(
            at.join("a/c").metadata().unwrap().permissions().mode() & 0o7777,
            0o755
        );
        assert!(!at.join("a/b").exists());
        assert!(at.join("e/f").is_file());
        make(at, "/", Links::Refuse, Missing::Directory(0o755)).unwrap();
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let folder = tempfile::tempdir().unwrap();
        let (at, outside) = (folder.path().join("root"), folder.path().join("outside"));
        std::fs::create_dir_all(at.join("etc")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink("../run/systemd/resolv.conf", at.join("etc/resolv.conf")).unwrap();
        symlink(&outside, at.join("away")).unwrap();
        symlink("../../../outside/up", at.join("up")).unwrap();
        make(&at, "/etc/resolv.conf", Links::Follow, Missing::File).unwrap();
        assert!(at.join("run/systemd/resolv.conf").is_file());
        make(&at, "/away/file", Links::Follow, Missing::File).unwrap();
        make(&at, "/up/file", Links::Follow, Missing::File).unwrap();
        assert!(at.join("outside/up/file").is_file());
        let inside = at.join(outside.strip_prefix("/").unwrap()).join("file");
        assert!(inside.is_file());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn links_can_be_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        symlink("/tmp", at.join("proc")).unwrap();
        symlink("nowhere", at.join("dev")).unwrap();
        for path in ["/proc", "/dev", "/dev/shm"] {
            let error = make(at, path, Links::Refuse, Missing::Directory(0o755)).unwrap_err();
            assert!(
                matches!(error.0, errno::ELOOP | errno::ENOTDIR),
                "{path}: {error:?}"
            );
        }
        symlink("round", at.join("round")).unwrap();
        let round = make(at, "/round/x", Links::Follow, Missing::File);
        assert_eq!(round, Err(Errno(errno::ELOOP)));
    }

    #[test]
    fn what_exists_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        std::fs::write(at.join("file"), "kept").unwrap();
        let before = at.join("file").metadata().unwrap().ino();
        make(at, "/file", Links::Follow, Missing::Directory(0o700)).unwrap();
        assert_eq!(at.join("file").metadata().unwrap().ino(), before);
        let below = make(at, "/file/x", Links::Follow, Missing::File);
        assert_eq!(below, Err(Errno(errno::ENOTDIR)));
    }

    #[test]
    fn a_node_is_made_in_its_parent_and_never_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        symlink("/elsewhere", at.join("link")).unwrap();
        let directory = root(at);
        let made = in_parent(directory.borrow(), c"/link", |parent, name| {
            sys::make_symlink(c"x", parent, name)
        });
        assert_eq!(made, Err(Errno(errno::EEXIST)));
        in_parent(directory.borrow(), c"/a/b", |parent, name| {
            sys::make_symlink(c"target", parent, name)
        })
        .unwrap();
        assert_eq!(
            std::fs::read_link(at.join("a/b")).unwrap(),
            Path::new("target")
        );
        for path in [c"/", c"/a/..", c"/a/", c""] {
            let made = in_parent(directory.borrow(), path, |_, _| Ok(()));
            assert_eq!(made, Err(Errno(errno::EINVAL)));
        }
    }

    #[test]
    fn paths_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "/x".repeat(3000),
            "y".repeat(256),
            format!("{}/z", "y".repeat(256)),
        ] {
            let made = make(
                folder.path(),
                &path,
                Links::Follow,
                Missing::Directory(0o755),
            );
            assert_eq!(made, Err(Errno(errno::ENAMETOOLONG)));
        }
    }
}
