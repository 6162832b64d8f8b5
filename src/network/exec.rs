//! One run of one plugin: a process of its own group, JSON in, JSON out, bounded in time and in output.
//!
//! ```text
//! find ──▶ spawn ──▶ feed stdin, read stdout (1 MiB), keep stderr's tail (4 KiB) ──▶ exit ──▶ judge
//!              └── deadline, too much output, or the future dropped: SIGKILL to the group, all of it reaped
//! ```
//!
//! The daemon only ever spawns: nothing here may ask for what makes `std` fork (a `pre_exec`, another user),
//! so that each start is a vfork and an exec.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The plugins that carpel brings along.
pub const SHIPPED: &[&str] = &[
    "loopback",
    "bridge",
    "host-local",
    "portmap",
    "ptp",
    "bandwidth",
    "tuning",
    "static",
    "macvlan",
    "host-device",
    "firewall",
];
const MAX_STDOUT: usize = 1 << 20;
const MAX_STDERR: usize = 4 << 10;
/// How long output is awaited after the plugin has ended: what it wrote is in the pipe already, and
/// something that it left running may hold the pipe open for ever.
const AFTER_EXIT: Duration = Duration::from_millis(50);
/// Pauses between the tries to run a binary that is being replaced.
const BUSY: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// How long the end of killed processes is awaited.
const REAP: Duration = Duration::from_secs(2);

/// Why a plugin's run came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("not found in {}", .searched.join(", "))]
    NotFound { searched: Vec<String> },
    #[error("{}: {error}", .path.display())]
    Spawn { path: PathBuf, error: io::Error },
    /// The plugin's own words.
    #[error("{message} (code {code}){stderr}")]
    Reported {
        code: u32,
        message: String,
        stderr: Excerpt,
    },
    #[error("{}, without a CNI error{stdout}{stderr}", ended(*.status))]
    Exit {
        status: ExitStatus,
        stdout: Excerpt,
        stderr: Excerpt,
    },
    #[error("killed: not done after {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("killed: more than {MAX_STDOUT} bytes of output")]
    TooMuchOutput,
    #[error("the output is no CNI result: {why}{stdout}{stderr}")]
    Garbage {
        why: String,
        stdout: Excerpt,
        stderr: Excerpt,
    },
}

/// The codes by which a plugin says, by the CNI specification, that it will not work with what it was given:
/// version, field, environment, JSON, configuration.
const REFUSALS: [u32; 5] = [1, 2, 4, 6, 7];

impl Failure {
    /// Whether the plugin would not work with what it was given, and `other` is the same words of it.
    pub(super) fn is_same_refusal(&self, other: &Self) -> bool {
        let words = |failure: &Self| match failure {
            Self::Reported { code, message, .. } if REFUSALS.contains(code) => {
                Some((*code, message.clone()))
            }
            _ => None,
        };
        words(self).is_some_and(|said| words(other) == Some(said))
    }
}

/// Some of a plugin's output, fit for a line of text.
#[derive(Debug, Default)]
pub struct Excerpt(&'static str, String);

impl Excerpt {
    fn new(of: &'static str, bytes: &[u8]) -> Self {
        Self(of, printable(&String::from_utf8_lossy(bytes)))
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.is_empty() {
            true => Ok(()),
            false => write!(f, "; {}: {}", self.0, self.1),
        }
    }
}

/// The first 4 KiB of a text on one line.
fn printable(text: &str) -> String {
    let mut line = String::new();
    for c in text.trim().chars() {
        if line.len() >= MAX_STDERR {
            line.push('…');
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Where plugins come from.
#[derive(Debug)]
pub(super) struct Bins {
    dirs: Vec<PathBuf>,
    own: Option<PathBuf>,
    /// CNI_PATH.
    pub path: OsString,
}

/// A plugin that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    path: PathBuf,
    name: String,
}

impl Program {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Bins {
    /// # Errors
    /// If a folder's name has a ":".
    pub(super) fn new(
        dirs: Vec<PathBuf>,
        own: Option<PathBuf>,
    ) -> Result<Self, std::env::JoinPathsError> {
        let path = std::env::join_paths(&dirs)?;
        Ok(Self { dirs, own, path })
    }

    /// Finds the binary of a plugin type, which is a plain file name.
    pub(super) fn find(&self, kind: &str) -> Result<Program, Failure> {
        let name = kind.to_owned();
        if let Some(path) = self
            .dirs
            .iter()
            .map(|dir| dir.join(kind))
            .find(|path| is_executable(path))
        {
            return Ok(Program { path, name });
        }
        self.own(kind)
    }

    /// Finds carpel's own plugin of a type, whatever the folders have.
    pub(super) fn own(&self, kind: &str) -> Result<Program, Failure> {
        match &self.own {
            Some(own) if SHIPPED.contains(&kind) => Ok(Program {
                path: own.clone(),
                name: kind.to_owned(),
            }),
            _ => Err(Failure::NotFound {
                searched: self
                    .dirs
                    .iter()
                    .map(|dir| dir.display().to_string())
                    .collect(),
            }),
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// When a run has to be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    /// What was given altogether, for the text of the error.
    whole: Duration,
}

impl Deadline {
    pub(super) fn after(whole: Duration) -> Self {
        let at = Instant::now() + whole;
        Self { at, whole }
    }
}

/// Runs a plugin. What it prints comes back if it succeeds.
///
/// # Errors
/// Any [`Failure`] but `NotFound` and `Garbage`. If the future is dropped, or on an error, the plugin and
/// its children are dead.
pub(super) async fn run(
    program: &Program,
    env: &[(&str, &OsStr)],
    input: Vec<u8>,
    deadline: Deadline,
) -> Result<Vec<u8>, Failure> {
    let late = |_| Failure::TimedOut(deadline.whole);
    let mut process = timeout_at(deadline.at, spawn(program, env))
        .await
        .map_err(late)??;
    let mut stdout = Vec::with_capacity(4096);
    let mut stderr = Vec::new();
    let talk = process.talk(input, &mut stdout, &mut stderr);
    let ended = timeout_at(deadline.at, talk)
        .await
        .map_err(late)
        .and_then(|status| status);
    match ended {
        Ok(status) => judge(status, stdout, &stderr),
        Err(failure) => {
            process.kill().await;
            Err(failure)
        }
    }
}

fn judge(status: ExitStatus, stdout: Vec<u8>, stderr: &[u8]) -> Result<Vec<u8>, Failure> {
    #[derive(Deserialize)]
    struct Reported {
        code: u32,
        #[serde(default)]
        msg: String,
        #[serde(default)]
        details: String,
    }
    if status.success() {
        return Ok(stdout);
    }
    let excerpt = Excerpt::new("stderr", stderr);
    match serde_json::from_slice::<Reported>(&stdout) {
        Ok(reported) if !reported.msg.is_empty() => {
            let mut message = printable(&reported.msg);
            if !reported.details.is_empty() {
                message = format!("{message}; {}", printable(&reported.details));
            }
            Err(Failure::Reported {
                code: reported.code,
                message,
                stderr: excerpt,
            })
        }
        _ => Err(Failure::Exit {
            status,
            stdout: Excerpt::new("stdout", &stdout),
            stderr: excerpt,
        }),
    }
}

/// The failure of a plugin whose output is not what it should be.
pub(super) fn garbage(why: impl fmt::Display, stdout: &[u8]) -> Failure {
    Failure::Garbage {
        why: why.to_string(),
        stdout: Excerpt::new("stdout", &stdout[..stdout.len().min(256)]),
        stderr: Excerpt::default(),
    }
}

async fn spawn(program: &Program, env: &[(&str, &OsStr)]) -> Result<Process, Failure> {
    let mut command = Command::new(&program.path);
    command
        .arg0(&program.name)
        .env_clear()
        .envs(env.iter().copied());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut pauses = BUSY.iter();
    let error = loop {
        match command.spawn() {
            Ok(child) => match child.id().and_then(|id| i32::try_from(id).ok()) {
                Some(id) => return Ok(Process::new(child, Pid::from_raw(id))),
                None => break io::Error::other("the process has no id"),
            },
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                match pauses.next() {
                    Some(pause) => sleep(*pause).await,
                    None => break error,
                }
            }
            Err(error) => break error,
        }
    };
    let path = program.path.clone();
    Err(Failure::Spawn { path, error })
}

/// A running plugin, which does not outlive this value.
struct Process {
    /// `None`: the end was seen to.
    child: Option<Child>,
    group: Pid,
}

impl Process {
    fn new(child: Child, group: Pid) -> Self {
        let child = Some(child);
        Self { child, group }
    }

    /// Feeds the plugin, reads what it says and waits for its end.
    async fn talk(
        &mut self,
        input: Vec<u8>,
        out: &mut Vec<u8>,
        err: &mut Vec<u8>,
    ) -> Result<ExitStatus, Failure> {
        let child = self
            .child
            .as_mut()
            .expect("a plugin is talked to before its end");
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A plugin need not read its configuration: what counts is how it ends.
                let _ = stdin.write_all(&input).await;
            }
            Ok(())
        };
        let status = {
            let pipes =
                async { tokio::try_join!(feed, read_whole(stdout, out), read_tail(stderr, err)) };
            tokio::pin!(pipes);
            tokio::select! {
                talked = &mut pipes => {
                    talked?;
                    child.wait().await
                }
                status = child.wait() => {
                    if let Ok(talked) = timeout(AFTER_EXIT, pipes).await {
                        talked?;
                    }
                    status
                }
            }
        };
        // The id may belong to another process from now on.
        self.child = None;
        status.map_err(|error| Failure::Spawn {
            path: PathBuf::from("wait"),
            error,
        })
    }

    /// Kills the group and waits, not for ever, until nothing of it is left.
    async fn kill(mut self) {
        if let Some(child) = self.child.take() {
            let _ = killpg(self.group, Signal::SIGKILL);
            reap(child, self.group).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else {
            return;
        };
        let _ = killpg(self.group, Signal::SIGKILL);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(reap(child, self.group));
        }
    }
}

/// Waits for a killed plugin and for those of its children that became the daemon's (it is a subreaper).
async fn reap(mut child: Child, group: Pid) {
    let all = async {
        let _ = child.wait().await;
        let anyone = Pid::from_raw(-group.as_raw());
        loop {
            match waitpid(anyone, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => sleep(Duration::from_millis(1)).await,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    };
    let _ = timeout(REAP, all).await;
}

async fn read_whole(
    pipe: Option<impl AsyncRead + Unpin>,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    let Some(pipe) = pipe else { return Ok(()) };
    // An error of reading is an end: the result is judged by what came.
    let _ = pipe.take(MAX_STDOUT as u64 + 1).read_to_end(out).await;
    match out.len() > MAX_STDOUT {
        true => Err(Failure::TooMuchOutput),
        false => Ok(()),
    }
}

async fn read_tail(
    pipe: Option<impl AsyncRead + Unpin>,
    tail: &mut Vec<u8>,
) -> Result<(), Failure> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = [0; MAX_STDERR];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..n]);
        tail.drain(..tail.len().saturating_sub(MAX_STDERR));
    }
    Ok(())
}
