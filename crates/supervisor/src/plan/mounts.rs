//! The steps that make a container's file system.

use core::ffi::CStr;

use carpel_wire::{FdIndex, MAX_PLAN, NulList, Step};

use crate::number::Decimal;
use crate::sys::{self, BorrowedFd, Errno, Fd, FsContext, Mapping, Resolve, Result, errno};

use super::paths::{self, Links, Missing};
use super::{MALFORMED, Process, string};

/// /dev/null.
const NULL_DEVICE: (u32, u32) = (1, 3);

/// First major number of Unix98 terminals.
const PTS_MAJOR: u32 = 136;

impl Process<'_, '_> {
    pub(super) fn mount_step(&mut self, step: &Step<'_>) -> Result<()> {
        match *step {
            Step::MakeSlave => sys::set_attributes(self.root()?, 0, 0, sys::SLAVE, true),
            Step::NewFs {
                fstype,
                options,
                attrs,
                slot,
            } => {
                let mount = new_file_system(string(fstype)?, options, None, attrs)?;
                self.fill(slot, mount)
            }
            Step::OpenTree {
                path,
                recursive,
                attrs,
                slot,
            } => {
                let from = paths::open(self.root()?, string(path)?, Links::Follow)?;
                let mount = clone_with(from.borrow(), recursive, attrs)?;
                self.fill(slot, mount)
            }
            Step::PivotRoot { root } => self.pivot_root(root),
            Step::Attach {
                mount,
                target,
                no_symlinks,
            } => {
                let links = if no_symlinks {
                    Links::Refuse
                } else {
                    Links::Follow
                };
                self.attach(mount, string(target)?, links)
            }
            Step::SetAttr {
                path,
                set,
                clear,
                recursive,
            } => {
                let mount = paths::open(self.root()?, string(path)?, Links::Follow)?;
                sys::set_attributes(mount.borrow(), set, clear, 0, recursive)
            }
            Step::Propagation {
                path,
                propagation,
                recursive,
            } => {
                let mount = paths::open(self.root()?, string(path)?, Links::Follow)?;
                sys::set_attributes(mount.borrow(), 0, 0, propagation, recursive)
            }
            Step::Mkdir { path, mode } => self.make_directory(string(path)?, mode),
            Step::Symlink { target, path } => self.make_symlink(string(target)?, string(path)?),
            Step::Mknod {
                path,
                mode,
                major,
                minor,
                uid,
                gid,
            } => self.make_node(string(path)?, mode, (major, minor), (uid, gid)),
            Step::Volume { path } => self.volume(string(path)?),
            Step::File {
                content,
                path,
                mode,
            } => self.make_file(content, string(path)?, mode),
            Step::Mask { path } => self.mask(string(path)?),
            Step::RootLabel { mount, label } => label_root(self.take(mount)?.borrow(), label),
            Step::ReadOnly { path } => self.make_read_only(string(path)?),
            Step::Console { number } => self.bind_console(number),
            _ => Err(MALFORMED),
        }
    }

    pub(super) fn root(&mut self) -> Result<BorrowedFd<'_>> {
        let root = match self.root.take() {
            Some(root) => root,
            None => sys::open_root()?,
        };
        Ok(self.root.insert(root).borrow())
    }

    fn pivot_root(&mut self, root: FdIndex) -> Result<()> {
        let new = self.take(root)?;
        sys::attach(new.borrow(), self.root()?)?;
        sys::change_directory(new.borrow())?;
        sys::pivot_to_working_directory()?;
        self.forget_root();
        self.root = Some(sys::open_root()?);
        Ok(())
    }

    fn attach(&mut self, mount: FdIndex, target: &CStr, links: Links) -> Result<()> {
        let mount = self.take(mount)?;
        let directory = sys::status(mount.borrow())?.is_directory();
        let missing = if directory {
            Missing::Directory(0o755)
        } else {
            Missing::File
        };
        let in_proc = target.to_bytes().starts_with(b"/proc/");
        let target = paths::open_or_make(self.root()?, target, links, missing)?;
        // Where an image's link leads, or one that somebody else puts into a shared volume.
        if links == Links::Follow
            && !in_proc
            && sys::file_system(target.borrow())? == sys::PROCFS_MAGIC
        {
            return Err(Errno(errno::EXDEV));
        }
        // The kernel says EINVAL to both, which tells nobody anything.
        match (directory, sys::status(target.borrow())?.is_directory()) {
            (true, false) => Err(Errno(errno::ENOTDIR)),
            (false, true) => Err(Errno(errno::EISDIR)),
            _ => sys::attach(mount.borrow(), target.borrow()),
        }
    }

    /// One descriptor from the path to the mount: a container that shares a volume with this one may exchange what lies
    /// in it meanwhile.
    fn volume(&mut self, path: &CStr) -> Result<()> {
        let missing = Missing::Directory(0o755);
        let place = match paths::open_or_make(self.root()?, path, Links::FollowOnMount, missing) {
            Err(Errno(errno::EXDEV)) => return Ok(()),
            place => place?,
        };
        if !sys::status(place.borrow())?.is_directory() {
            return Err(Errno(errno::ENOTDIR));
        }
        let copy = clone_with(place.borrow(), false, 0)?;
        sys::attach(copy.borrow(), place.borrow())
    }

    fn make_directory(&mut self, path: &CStr, mode: u32) -> Result<()> {
        let missing = Missing::Directory(mode);
        let made = paths::open_or_make(self.root()?, path, Links::Follow, missing)?;
        if sys::status(made.borrow())?.is_directory() {
            Ok(())
        } else {
            Err(Errno(errno::ENOTDIR))
        }
    }

    fn make_symlink(&mut self, target: &CStr, path: &CStr) -> Result<()> {
        let made = paths::in_parent(self.root()?, path, |parent, name| {
            sys::make_symlink(target, parent, name)
        });
        match made {
            Err(Errno(errno::EEXIST)) => Ok(()),
            other => other,
        }
    }

    /// A node that is there already is kept if it is the same device.
    fn make_node(
        &mut self,
        path: &CStr,
        mode: u32,
        device: (u32, u32),
        (uid, gid): (u32, u32),
    ) -> Result<()> {
        paths::in_parent(self.root()?, path, |parent, name| {
            match sys::make_node(parent, name, mode, device) {
                Err(Errno(errno::EEXIST)) => {
                    let found = sys::status_at(parent, name)?;
                    if (found.kind(), found.device) == (mode & sys::S_IFMT, device) {
                        Ok(())
                    } else {
                        Err(Errno(errno::EEXIST))
                    }
                }
                Ok(()) if (uid, gid) != (0, 0) => sys::change_owner(parent, name, uid, gid),
                other => other,
            }
        })
    }

    fn make_file(&mut self, content: FdIndex, path: &CStr, mode: u32) -> Result<()> {
        let content = Mapping::new(self.take(content)?.borrow(), MAX_PLAN)?;
        paths::in_parent(self.root()?, path, |parent, name| {
            let mode = sys::S_IFREG | mode & !sys::S_IFMT;
            sys::make_node(parent, name, mode, (0, 0))?;
            let file = sys::open_in(parent, name, sys::O_WRONLY, Resolve::BENEATH)?;
            sys::write_whole(file.borrow(), content.bytes())
        })
    }

    fn mask(&mut self, path: &CStr) -> Result<()> {
        let Some(target) = found(paths::open(self.root()?, path, Links::Follow))? else {
            return Ok(());
        };
        if !sys::status(target.borrow())?.is_directory() {
            let null = paths::open(self.root()?, c"/dev/null", Links::Refuse)?;
            let status = sys::status(null.borrow())?;
            if !status.is_char_device() || status.device != NULL_DEVICE {
                return Err(Errno(errno::ENODEV));
            }
            let attrs = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NOEXEC;
            let cover = clone_with(null.borrow(), false, attrs)?;
            return sys::attach(cover.borrow(), target.borrow());
        }
        // One file system serves all: the first mask attaches it, the others are copies of that mount.
        let cover = match &self.cover {
            Some(first) => sys::clone_tree(first.borrow(), false)?,
            None => {
                let attrs =
                    sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
                let options = NulList::new(b"size\x004k\0nr_inodes\x001\0mode\x000755\0");
                let label = self.cover_label;
                new_file_system(c"tmpfs", options.unwrap_or_default(), label, attrs)?
            }
        };
        sys::attach(cover.borrow(), target.borrow())?;
        self.cover.get_or_insert(cover);
        Ok(())
    }

    fn make_read_only(&mut self, path: &CStr) -> Result<()> {
        let Some(target) = found(paths::open(self.root()?, path, Links::Follow))? else {
            return Ok(());
        };
        let copy = clone_with(target.borrow(), true, sys::ATTR_RDONLY)?;
        sys::attach(copy.borrow(), target.borrow())
    }

    fn bind_console(&mut self, number: u32) -> Result<()> {
        const FOLDER: &[u8] = b"/dev/pts/";
        let mut path = [0; 32];
        let digits = Decimal::new(i64::from(number));
        path[..FOLDER.len()].copy_from_slice(FOLDER);
        path[FOLDER.len()..FOLDER.len() + digits.bytes().len()].copy_from_slice(digits.bytes());
        let path = CStr::from_bytes_until_nul(&path).map_err(|_| MALFORMED)?;
        let terminal = paths::open(self.root()?, path, Links::Refuse)?;
        let status = sys::status(terminal.borrow())?;
        let device = (PTS_MAJOR + (number >> 8), number & 0xff);
        if !status.is_char_device()
            || ![device, (PTS_MAJOR, number)].contains(&status.device)
            || sys::file_system(terminal.borrow())? != sys::DEVPTS_MAGIC
        {
            return Err(Errno(errno::ENODEV));
        }
        let copy = sys::clone_tree(terminal.borrow(), false)?;
        let links = Links::Refuse;
        let console = paths::open_or_make(self.root()?, c"/dev/console", links, Missing::File)?;
        sys::attach(copy.borrow(), console.borrow())
    }
}

/// A mount's own descriptor leads to its root, but takes no attribute.
fn label_root(mount: BorrowedFd<'_>, label: &[u8]) -> Result<()> {
    let flags = sys::O_RDONLY | sys::O_DIRECTORY;
    let root = sys::open_in(mount, c".", flags, Resolve::BENEATH)?;
    sys::set_attribute(root.borrow(), c"security.selinux", label)
}

/// What is missing is no error where there is nothing to hide.
fn found(opened: Result<Fd>) -> Result<Option<Fd>> {
    match opened {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno(errno::ENOENT | errno::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn new_file_system(
    fstype: &CStr,
    options: NulList<'_>,
    label: Option<&CStr>,
    attrs: u64,
) -> Result<Fd> {
    if !options.is_terminated() {
        return Err(MALFORMED);
    }
    let file_system = FsContext::open(fstype)?;
    let mut strings = options.iter();
    while let Some(key) = strings.next() {
        let value = strings.next().ok_or(MALFORMED)?;
        file_system.set(string(key)?, string(value)?)?;
    }
    if let Some(label) = label {
        file_system.set(c"context", label)?;
    }
    file_system.mount(attrs)
}

fn clone_with(from: BorrowedFd<'_>, recursive: bool, attrs: u64) -> Result<Fd> {
    let copy = sys::clone_tree(from, recursive)?;
    if attrs != 0 {
        sys::set_attributes(copy.borrow(), attrs, 0, 0, recursive)?;
    }
    Ok(copy)
}
