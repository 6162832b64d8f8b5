//! A user namespace to try things with. A process with threads cannot make one, and the daemon and the doctor have
//! threads: they run themselves once more for this.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use nix::sched::{CloneFlags, unshare};

use crate::store::rootfs::{Builder, Overlay};

/// What asks this program, alone on its command line, to be the other process.
const ARGUMENT: &str = "--make-user-namespace";

/// A user namespace that is there while this is.
#[derive(Debug)]
pub struct UserNamespace {
    file: File,
    holder: Child,
}

impl UserNamespace {
    /// Makes one in which the first 65536 ids are those from 100000 on.
    ///
    /// # Errors
    /// This process cannot be run again, or the kernel's error.
    pub fn make() -> io::Result<Self> {
        let mut holder = Command::new("/proc/self/exe")
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        match Self::open(&mut holder) {
            Ok(file) => Ok(Self { file, holder }),
            Err(error) => {
                end(&mut holder);
                Err(error)
            }
        }
    }

    /// The root file system that a container in it would have, of the folders `layer`, "upper" and "work" in
    /// `place`.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub fn overlay(&self, place: &Path, layer: &str) -> io::Result<Overlay> {
        Ok(Overlay {
            layers: vec![place.join(layer)],
            upper: place.join("upper"),
            work: place.join("work"),
            volatile: true,
            user_namespace: Some(Arc::new(OwnedFd::from(self.file.try_clone()?))),
            label: None,
        })
    }

    fn open(holder: &mut Child) -> io::Result<File> {
        let said = holder.stdout.take().map(|stdout| {
            let mut line = String::new();
            BufReader::new(stdout.take(64))
                .read_line(&mut line)
                .map(|_| line)
        });
        match said.transpose()?.as_deref().map(str::trim_end) {
            Some("0") => {}
            Some(line) => {
                let errno = line.parse().unwrap_or(libc::EIO);
                return Err(io::Error::from_raw_os_error(errno));
            }
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        let path = |name: &str| format!("/proc/{}/{name}", holder.id());
        for map in ["uid_map", "gid_map"] {
            std::fs::write(path(map), "0 100000 65536")?;
        }
        File::open(path("ns/user"))
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        end(&mut self.holder);
    }
}

/// Finds out whether pods can have user namespaces: makes one, and a root file system in it of a layer that lies
/// where the images' will.
///
/// # Errors
/// What is missing, in words.
pub async fn probe(builder: &Builder, root: &Path) -> Result<(), String> {
    let namespace = tokio::task::spawn_blocking(UserNamespace::make).await;
    let namespace = namespace.map_err(io::Error::from).flatten();
    let namespace = namespace.map_err(|error| format!("one cannot be made: {error}"))?;
    let place = Place::make(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let overlay = namespace.overlay(&place.0, "layer");
    let overlay = overlay.map_err(|error| error.to_string())?;
    let made = builder.overlay(overlay).await;
    made.map(drop).map_err(|error| {
        let why = crate::error::chain(&error);
        format!("{why} (layers in other ids need Linux 5.19 and ext4, xfs, btrfs or the like)")
    })
}

/// A folder for the probe, which goes with this.
struct Place(PathBuf);

impl Place {
    fn make(root: &Path) -> io::Result<Self> {
        let place = Self(root.join("tmp").join("user-namespace"));
        for name in ["layer", "upper", "work"] {
            fs::create_dir_all(place.0.join(name))?;
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn end(holder: &mut Child) {
    // It ends when its input does; waiting for it leaves no zombie.
    drop(holder.stdin.take());
    let _ = holder.wait();
}

/// What the other process does, if this is it: makes the namespace, says how that went (0 or the errno), and stays
/// until its input ends. To be called before there are threads.
#[must_use]
pub fn serve_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT || args.next().is_some() {
        return None;
    }
    Some(match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn serve() -> io::Result<()> {
    let errno = match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => 0,
        Err(errno) => errno as i32,
    };
    let mut stdout = io::stdout();
    writeln!(stdout, "{errno}")?;
    stdout.flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
