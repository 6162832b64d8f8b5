//! The folder of network configurations: which network it says, and when it may say another.
//!
//! The first file in lexical order that is a valid configuration wins; a bad one is passed over with its
//! reason. The folder may be missing, come later, go and come again, and so may the folders above it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::cache::read_bounded;
use super::conf::{Invalid, MAX_FILE, NetworkConf, PluginConf};

/// Changes come in bursts: what comes within this time is one change.
const SETTLE: Duration = Duration::from_millis(10);

/// The most folders beside the configurations that are watched.
const MAX_FOLDERS: usize = 64;

/// What the folder says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Scan {
    pub network: Option<NetworkConf>,
    /// Files passed over before the one that won, with the reason; also a folder that cannot be read.
    pub bad: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Invalid(#[from] Invalid),
    #[error("{}: {error}", .path.display())]
    Plugin { path: PathBuf, error: Box<Unread> },
}

/// Reads the folder.
pub(super) fn scan(dir: &Path) -> Scan {
    let mut scan = Scan::default();
    let paths = match files(dir, &["conf", "conflist", "json"]) {
        Ok(paths) => paths,
        Err(error) => {
            scan.bad.push(format!("{}: {error}", dir.display()));
            return scan;
        }
    };
    for path in paths {
        match read(dir, &path) {
            Ok(network) => {
                scan.network = Some(network);
                break;
            }
            Err(error) => scan.bad.push(format!("{}: {error}", path.display())),
        }
    }
    scan
}

fn read(dir: &Path, path: &Path) -> Result<NetworkConf, Unread> {
    let mut network = NetworkConf::parse(&read_bounded(path, MAX_FILE)?)?;
    if network.reads_folder {
        for path in files(&dir.join(&network.name), &["conf"])? {
            let plugin = read_plugin(&path).map_err(|error| {
                let error = Box::new(error);
                Unread::Plugin { path, error }
            })?;
            network.plugins.push(plugin);
        }
    }
    Ok(network.complete()?)
}

fn read_plugin(path: &Path) -> Result<PluginConf, Unread> {
    let bytes = read_bounded(path, MAX_FILE)?;
    let value = serde_json::from_slice(&bytes).map_err(|error| Invalid::Json(error.to_string()))?;
    Ok(PluginConf::parse(value)?)
}

/// The files of `dir` with one of the extensions, in lexical order. No folder is no files.
fn files(dir: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if extension.is_some_and(|extension| extensions.contains(&extension)) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The folders in `dir`, as far as they can be told; each may be one of a network's plugins.
fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    paths.take(MAX_FOLDERS).collect()
}

/// An inotify watch of everything on which [`scan`] depends.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: AsyncFd<OwnedFd>,
    watched: HashMap<i32, Watched>,
}

#[derive(Debug)]
enum Watched {
    /// A folder above: only the way down matters.
    Above { next: OsString },
    /// A folder of configurations.
    Files { dir: PathBuf },
}

impl Watch {
    /// Begins to watch `dir`, the folders above it and those in it. What happens from here on shows, so that a
    /// scan afterwards misses nothing.
    ///
    /// # Errors
    /// As `inotify_init1(2)` and `inotify_add_watch(2)`; a missing folder is none.
    pub(super) fn begin(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut watched = HashMap::new();
        let mut add = |path: &Path, what: Watched| {
            let gone = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
            let flags = gone | names | WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR;
            match inotify::add_watch(&inotify, path, flags) {
                Ok(id) => {
                    watched.insert(id, what);
                    Ok(())
                }
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
                Err(error) => Err(io::Error::from(error)),
            }
        };
        for (above, below) in dir.ancestors().skip(1).zip(dir.ancestors()) {
            let next = below.file_name().unwrap_or_default().to_owned();
            add(above, Watched::Above { next })?;
        }
        let dir = dir.to_owned();
        add(&dir.clone(), Watched::Files { dir: dir.clone() })?;
        for dir in folders(&dir) {
            add(&dir.clone(), Watched::Files { dir })?;
        }
        let inotify = crate::sys::async_fd(inotify)?;
        Ok(Self { inotify, watched })
    }

    /// Waits until something has happened that may matter, and until the burst is over.
    pub(super) async fn changed(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut reader = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) if self.matters(&event) => {
                        sleep(SETTLE).await;
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
        }
    }

    fn matters(&self, event: &inotify::Event<'_>) -> bool {
        let flags = event.events();
        let name = event
            .file_name()
            .map(|name| OsStr::from_bytes(name.to_bytes()));
        match (self.watched.get(&event.wd()), name) {
            // A file that is being made is complete when it is closed; a link is complete at once.
            (Some(Watched::Files { dir }), Some(name)) if flags == ReadFlags::CREATE => {
                let meta = std::fs::symlink_metadata(dir.join(name));
                meta.is_ok_and(|meta| !meta.is_file() || meta.nlink() > 1)
            }
            (Some(Watched::Above { next }), Some(name)) => {
                name == next && !flags.contains(ReadFlags::CLOSE_WRITE)
            }
            // The folder itself is gone, or events were lost.
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GOOD: &str = r#"{"cniVersion":"1.0.0","name":"NAME","plugins":[{"type":"bridge"}]}"#;

    fn name(scan: &Scan) -> Option<&str> {
        scan.network.as_ref().map(|network| network.name.as_str())
    }

    #[test]
    fn the_first_valid_file_wins_and_bad_ones_say_why() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(scan(&dir.path().join("none")), Scan::default());
        write("00-other.txt", "garbage");
        fs::create_dir(dir.path().join("01-dir.conf")).unwrap();
        write("10-bad.conflist", "garbage");
        write("20-good.conflist", &GOOD.replace("NAME", "first"));
        write("30-good.conflist", &GOOD.replace("NAME", "second"));
        nix::unistd::mkfifo(
            &dir.path().join("05-fifo.conf"),
            nix::sys::stat::Mode::S_IRWXU,
        )
        .unwrap();
        std::os::unix::fs::symlink("gone", dir.path().join("06-dangling.json")).unwrap();
        let found = scan(dir.path());
        assert_eq!(name(&found), Some("first"));
        assert_eq!(found.bad.len(), 3, "{:?}", found.bad);
        assert!(
            found.bad[0].ends_with("05-fifo.conf: not a regular file"),
            "{:?}",
            found.bad
        );
        assert!(
            found.bad[2].contains("10-bad.conflist: not JSON"),
            "{:?}",
            found.bad
        );
    }

    #[test]
    fn all_three_kinds_of_files_count_in_lexical_order() {
        let dir = tempfile::tempdir().unwrap();
        let single = r#"{"cniVersion":"0.3.1","name":"NAME","type":"bridge"}"#;
        for (file, text) in [
            ("30-c.conflist", GOOD),
            ("20-b.json", GOOD),
            ("10-a.conf", single),
        ] {
            let own = file.split('.').next().unwrap();
            fs::write(dir.path().join(file), text.replace("NAME", own)).unwrap();
            assert_eq!(name(&scan(dir.path())), Some(own));
        }
    }

    #[test]
    fn plugins_may_stand_in_a_folder_of_the_networks_name() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("10.conflist");
        fs::write(&list, GOOD.replace("NAME", "net")).unwrap();
        fs::create_dir(dir.path().join("net")).unwrap();
        fs::write(dir.path().join("net/20.conf"), r#"{"type":"second"}"#).unwrap();
        fs::write(dir.path().join("net/10.conf"), r#"{"type":"first"}"#).unwrap();
        let kinds = |scan: Scan| -> Vec<_> {
            scan.network
                .unwrap()
                .plugins
                .into_iter()
                .map(|plugin| plugin.kind)
                .collect()
        };
        assert_eq!(kinds(scan(dir.path())), ["bridge", "first", "second"]);
        fs::write(&list, r#"{"cniVersion":"1.0.0","name":"net"}"#).unwrap();
        assert_eq!(kinds(scan(dir.path())), ["first", "second"]);
        fs::write(
            &list,
            GOOD.replace("NAME", "net")
                .replacen('{', "{\"loadOnlyInlinedPlugins\":true,", 1),
        )
        .unwrap();
        assert_eq!(kinds(scan(dir.path())), ["bridge"]);
    }
}
