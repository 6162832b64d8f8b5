//! A user namespace to try things with. A process with threads cannot make one, and the doctor has threads:
//! it runs itself once more for this.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use super::super::{Outcome, SUCCESS};

/// A user namespace that is there while this is.
#[derive(Debug)]
pub struct UserNamespace {
    pub file: File,
    holder: Child,
}

impl UserNamespace {
    /// Makes one in which the first 65536 ids are those from 100000 on.
    ///
    /// # Errors
    /// This process cannot be run again, or the kernel's error.
    pub fn make() -> io::Result<Self> {
        let mut holder = Command::new("/proc/self/exe")
            .args(["doctor", "--make-user-namespace"])
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

fn end(holder: &mut Child) {
    // It ends when its input does; waiting for it leaves no zombie.
    drop(holder.stdin.take());
    let _ = holder.wait();
}

/// What the other process does: makes the namespace, says how that went (0 or the errno), and stays until its
/// input ends.
pub fn serve() -> Outcome {
    let errno = match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => 0,
        Err(errno) => errno as i32,
    };
    let mut stdout = io::stdout();
    writeln!(stdout, "{errno}")?;
    stdout.flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(SUCCESS)
}
