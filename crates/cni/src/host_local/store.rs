//! The addresses in use, on disk, in the format of the reference host-local.
//!
//! One folder per network. A file named after an address holds who has it: container id, CR LF,
//! interface name. `last_reserved_ip.N` holds the address handed out last from range set N, `lock` is
//! locked with flock around everything. An address file appears with all its content or not at all.

use std::{
    fs::DirBuilder,
    net::IpAddr,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags},
    io::{self, Errno},
};

use crate::ipnet::parse_ip;

/// No address file is longer: a container id, a line break and an interface name.
const MAX_FILE: usize = 4096;
/// Where an address file is written before it gets its name. Only the holder of the lock uses it.
const DRAFT: &str = ".draft";

/// Who has an address.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    pub container: &'a str,
    pub interface: &'a str,
}

impl Owner<'_> {
    fn line(&self) -> String {
        format!("{}\r\n{}", self.container, self.interface)
    }
}

/// The store of one network, locked as long as this lives.
pub struct Store {
    folder: OwnedFd,
    path: PathBuf,
    /// Closing it unlocks.
    _lock: OwnedFd,
}

impl Store {
    /// Opens and locks a network's store, and makes it if need be.
    pub fn open(path: &Path) -> io::Result<Store> {
        match Store::open_existing(path)? {
            Some(store) => Ok(store),
            None => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(path)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                Store::open_existing(path)?.ok_or(Errno::NOENT)
            }
        }
    }

    /// Opens and locks a network's store; nothing if there is none.
    pub fn open_existing(path: &Path) -> io::Result<Option<Store>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = fs::openat(&folder, "lock", flags, Mode::from_raw_mode(0o600))?;
        while let Err(errno) = fs::flock(&lock, FlockOperation::LockExclusive) {
            if errno != Errno::INTR {
                return Err(errno);
            }
        }
        Ok(Some(Store {
            folder,
            path: path.into(),
            _lock: lock,
        }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the owner the first of `candidates` that is free.
    ///
    /// If none is, those go whose file names no owner: whoever writes one holds the lock, so it is what a crash
    /// of the machine has left of one, and no DEL ever finds it.
    pub fn reserve<T>(
        &self,
        owner: Owner<'_>,
        candidates: impl Iterator<Item = (T, IpAddr)> + Clone,
    ) -> io::Result<Option<(T, IpAddr)>> {
        let found = self.reserve_free(owner, candidates.clone())?;
        if found.is_some() {
            return Ok(found);
        }
        self.retain(|container, _| !container.is_empty())?;
        self.reserve_free(owner, candidates)
    }

    fn reserve_free<T>(
        &self,
        owner: Owner<'_>,
        candidates: impl Iterator<Item = (T, IpAddr)>,
    ) -> io::Result<Option<(T, IpAddr)>> {
        self.write_new(DRAFT, owner.line().as_bytes())?;
        for (tag, addr) in candidates {
            let name = addr.to_string();
            let moved = fs::renameat_with(
                &self.folder,
                DRAFT,
                &self.folder,
                name.as_str(),
                RenameFlags::NOREPLACE,
            );
            match moved {
                Ok(()) => return Ok(Some((tag, addr))),
                Err(Errno::EXIST) => {}
                Err(errno) => {
                    self.remove(DRAFT)?;
                    return Err(errno);
                }
            }
        }
        self.remove(DRAFT)?;
        Ok(None)
    }

    /// The address handed out last from a range set. What cannot be read only loses the turn.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let content = self.read(format!("last_reserved_ip.{set}").as_str()).ok()?;
        parse_ip(std::str::from_utf8(&content).ok()?.trim())
    }

    /// Notes the address handed out last from a range set.
    ///
    /// It is written over what is there: a file system would flush a file that replaces another, and
    /// all that a crash can spoil here is the turn.
    pub fn set_last_reserved(&self, set: usize, addr: IpAddr) -> io::Result<()> {
        let name = format!("last_reserved_ip.{set}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = fs::openat(&self.folder, name, flags, Mode::from_raw_mode(0o600))?;
        let text = addr.to_string();
        let written = io::write(&file, text.as_bytes())? as u64;
        if fs::fstat(&file)?.st_size.cast_unsigned() != written {
            fs::ftruncate(&file, written)?;
        }
        Ok(())
    }

    /// Frees one address.
    pub fn free(&self, addr: IpAddr) -> io::Result<()> {
        self.remove(addr.to_string().as_str())
    }

    /// The addresses that an owner has.
    pub fn of(&self, owner: Owner<'_>) -> io::Result<Vec<IpAddr>> {
        let line = owner.line();
        let mut found = Vec::new();
        let mut unnamed = Vec::new();
        self.each(|addr, content| {
            if content == line.as_bytes() {
                found.push(addr);
            } else if content == owner.container.as_bytes() {
                // Written by a plugin so old that it did not note the interface.
                unnamed.push(addr);
            }
        })?;
        Ok(if found.is_empty() { unnamed } else { found })
    }

    /// Frees every address whose owner `keep` does not want to keep. An owner without an interface
    /// was noted by a very old plugin, one without a container by a crash of the machine.
    pub fn retain(&self, keep: impl Fn(&str, Option<&str>) -> bool) -> io::Result<()> {
        let mut stale = Vec::new();
        self.each(|addr, content| {
            let text = String::from_utf8_lossy(content);
            let (container, interface) = match text.split_once("\r\n") {
                Some((container, interface)) => (container, Some(interface)),
                None => (text.as_ref(), None),
            };
            if !keep(container, interface) {
                stale.push(addr);
            }
        })?;
        stale.into_iter().try_for_each(|addr| self.free(addr))
    }

    /// Calls `visit` with every address file: its address and its content without blanks
    /// around it.
    fn each(&self, mut visit: impl FnMut(IpAddr, &[u8])) -> io::Result<()> {
        for entry in fs::Dir::read_from(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(addr) = name.to_str().ok().and_then(parse_ip) else {
                continue;
            };
            match self.read(name) {
                Ok(content) => visit(addr, content.trim_ascii()),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn read(&self, name: impl rustix::path::Arg) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = fs::openat(&self.folder, name, flags, Mode::empty())?;
        let mut content = vec![0; MAX_FILE];
        let length = io::read(&file, &mut content[..])?;
        content.truncate(length);
        Ok(content)
    }

    /// Writes a file that is not there yet; one that a crash left is replaced, not written into.
    fn write_new(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.remove(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(&self.folder, name, flags, Mode::from_raw_mode(0o600))?;
        match io::write(&file, content) {
            Ok(written) if written == content.len() => Ok(()),
            other => {
                self.remove(name)?;
                Err(other.err().unwrap_or(Errno::NOSPC))
            }
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner<'static> = Owner {
        container: "a",
        interface: "eth0",
    };
    const B: Owner<'static> = Owner {
        container: "b",
        interface: "eth0",
    };

    fn list(addrs: &[&str]) -> Vec<((), IpAddr)> {
        addrs
            .iter()
            .map(|addr| ((), addr.parse().unwrap()))
            .collect()
    }

    #[test]
    fn an_address_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("net")).unwrap();
        let two = list(&["10.0.0.2", "fd00::2"]);
        assert_eq!(
            store.reserve(A, two.clone().into_iter()).unwrap(),
            Some(two[0])
        );
        assert_eq!(
            store.reserve(B, two.clone().into_iter()).unwrap(),
            Some(two[1])
        );
        assert_eq!(store.reserve(B, two.clone().into_iter()).unwrap(), None);
        assert_eq!(
            std::fs::read(store.path().join("10.0.0.2")).unwrap(),
            b"a\r\neth0"
        );
        assert_eq!(store.of(A).unwrap(), [two[0].1]);
        store.free(two[0].1).unwrap();
        store.free(two[0].1).unwrap();
        assert_eq!(store.of(A).unwrap(), [] as [IpAddr; 0]);
        let names: Vec<_> = std::fs::read_dir(store.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lock")
            .collect();
        assert_eq!(names, ["fd00::2"]);
    }

    #[test]
    fn the_turn_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.last_reserved(0), None);
        store
            .set_last_reserved(0, "10.0.0.7".parse().unwrap())
            .unwrap();
        store
            .set_last_reserved(0, "10.0.0.8".parse().unwrap())
            .unwrap();
        assert_eq!(store.last_reserved(0), Some("10.0.0.8".parse().unwrap()));
        std::fs::write(folder.path().join("last_reserved_ip.1"), [0xff]).unwrap();
        assert_eq!(store.last_reserved(1), None);
    }

    #[test]
    fn what_a_crash_has_emptied_is_free_when_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [("10.0.0.2", ""), ("10.0.0.3", "b\r\neth0")] {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let store = Store::open(folder.path()).unwrap();
        let three = list(&["10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        let reserve = || store.reserve(A, three.iter().copied()).unwrap();
        assert_eq!(reserve(), Some(three[2]));
        assert_eq!(reserve(), Some(three[0]));
        assert_eq!(reserve(), None);
        assert_eq!(store.of(B).unwrap(), [three[1].1]);
    }

    #[test]
    fn old_files_without_interface_belong_to_the_container() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("10.0.0.5"), "a").unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.of(A).unwrap().len(), 1);
        assert_eq!(store.of(B).unwrap().len(), 0);
    }

    #[test]
    fn what_nobody_keeps_is_freed() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("10.0.0.2", "a\r\neth0"),
            ("10.0.0.3", "a\r\neth1"),
            ("10.0.0.4", "a"),
            ("10.0.0.5", ""),
        ] {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let store = Store::open(folder.path()).unwrap();
        store
            .retain(|id, interface| id == "a" && interface.is_none_or(|name| name == "eth0"))
            .unwrap();
        let left = |name: &str| folder.path().join(name).exists();
        assert!(left("10.0.0.2") && left("10.0.0.4"));
        assert!(!left("10.0.0.3") && !left("10.0.0.5"));
    }
}
