//! The command line as a person and a script use it: with pipes, and on a real terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::bin_dir;
use crate::host::soon;

/// `carpel` with these arguments, for the runtime at `endpoint`.
#[must_use]
pub fn carpel(endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(bin_dir().join("carpel"));
    command
        .args(args)
        .env("CARPEL_ENDPOINT", endpoint)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    command
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Said {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Waits for a command.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn by(mut command: Command) -> Self {
        let output = command.output().expect("carpel starts");
        Self {
            status: status(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output of a command that must have succeeded.
    ///
    /// # Panics
    /// If it has not.
    #[must_use]
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{self:?}");
        self.stdout
    }

    /// Checks that a command failed with this status and this in its one error.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn failed(self, status: i32, part: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }

    /// The standard output as JSON.
    ///
    /// # Panics
    /// If the command failed or printed none.
    #[must_use]
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// The exit status as a shell has it.
fn status(status: ExitStatus) -> i32 {
    let by_signal = status.signal().map(|signal| 128 + signal);
    status.code().or(by_signal).expect("a status or a signal")
}

/// A command that goes on while the test does something else. Killed if it still runs at the end.
#[derive(Debug)]
pub struct Running {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
    master: Option<File>,
}

impl Running {
    /// Starts a command whose standard output is a pipe that is read all the time.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("carpel starts");
        let said = collect(child.stdout.take().expect("a pipe"));
        Self {
            child,
            said,
            master: None,
        }
    }

    /// Starts a command on a terminal of its own, so many columns wide.
    ///
    /// # Panics
    /// If there are no terminals or it cannot be started.
    #[must_use]
    pub fn on_terminal(command: &Command, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master: OwnedFd = openpt(flags).expect("a terminal");
        grantpt(&master).expect("a terminal");
        unlockpt(&master).expect("a terminal");
        let size = Winsize {
            ws_row: 40,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).expect("a size");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let name = name.to_str().expect("a name of ASCII").to_owned();
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name)
            .expect("the terminal");
        // It makes the terminal that of a new session, so that a Ctrl-C in it arrives.
        let mut session = Command::new("setsid");
        session
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .env("TERM", "xterm-256color");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let child = session
            .stdin(slave.try_clone().expect("a descriptor"))
            .stdout(slave.try_clone().expect("a descriptor"))
            .stderr(slave)
            .spawn()
            .expect("setsid starts");
        drop(session);
        let master = File::from(master);
        let said = collect(master.try_clone().expect("a descriptor"));
        Self {
            child,
            said,
            master: Some(master),
        }
    }

    /// What it has said so far. On a terminal both of its outputs, with "\r\n" as a terminal has it.
    ///
    /// # Panics
    /// If the reader did.
    #[must_use]
    pub fn text(&self) -> String {
        let said = self.said.lock().expect("the reader goes on");
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits until it has said something.
    ///
    /// # Panics
    /// If it does not soon.
    #[track_caller]
    pub fn wait_for(&self, part: &str) {
        let deadline = Instant::now() + soon();
        while !self.text().contains(part) {
            assert!(
                Instant::now() < deadline,
                "{part:?} does not come: {:?}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Gives its terminal another width.
    ///
    /// # Panics
    /// If it has none.
    pub fn resize(&self, columns: u16) {
        let master = self.master.as_ref().expect("a terminal");
        let size = Winsize {
            ws_row: 40,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(master, size).expect("a size");
    }

    /// Whether its terminal edits lines and echoes keys, as it does when no program has made it raw.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn is_cooked(&self) -> bool {
        let master = self.master.as_ref().expect("a terminal");
        let modes = tcgetattr(master).expect("a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Types at its terminal.
    ///
    /// # Panics
    /// If it has none.
    pub fn press(&mut self, keys: &str) {
        let master = self.master.as_mut().expect("a terminal");
        master.write_all(keys.as_bytes()).expect("a key");
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    /// Waits for its end and returns its status.
    ///
    /// # Panics
    /// If it does not end soon.
    #[track_caller]
    pub fn end(&mut self) -> i32 {
        let deadline = Instant::now() + soon();
        loop {
            if let Some(ended) = self.child.try_wait().expect("a child") {
                return status(ended);
            }
            assert!(Instant::now() < deadline, "it goes on: {:?}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads everything that comes, on a thread that ends with the other side.
fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&said);
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        // A terminal's last user leaves with EIO.
        while let Ok(read) = from.read(&mut chunk) {
            if read == 0 {
                break;
            }
            all.lock()
                .expect("the test goes on")
                .extend_from_slice(&chunk[..read]);
        }
    });
    said
}
