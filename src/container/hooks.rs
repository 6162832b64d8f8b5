//! The hooks of a container: programs that its spec wants to be run at points of its life.
//!
//! ```text
//!  daemon                                        the container's process
//!    bundle, a socket, files for the state ──▶     root file system complete, in sight of the host
//!    createRuntime (prestart) hooks        ◀──     "here I am" (the socket tells the pid)
//!                                          ──▶     createContainer hooks, leaves the host
//!                                                  privileges given up, startContainer hooks, exec
//!    poststart hooks, then the answer      ◀──
//!    … exit, poststop hooks, and only then it counts as exited
//! ```
//!
//! Each gets the container's state on its standard input, and is given a minute unless it says another time. What runs
//! before the program may fail the start; what runs after is only reported. Poststop hooks run once more if the daemon
//! dies while they run. A container without hooks passes none of this.

mod sight;

use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::FusedFuture;
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use nix::unistd::Pid;
use oci_spec::runtime::Hook;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;
use tokio::time::timeout;

use super::Container;
use crate::error::Error;
use crate::failpoint;
use crate::ids::ContainerId;
use crate::node::Node;
use crate::spec::config::UserNamespace;
use crate::spec::env::DEFAULT_PATH;
use crate::spec::hooks::{self, Point, ROOTFS};

pub(super) use sight::cover;

/// How long the container's process may take until its file system is there.
const ARRIVAL: Duration = Duration::from_secs(60);
/// What is kept of a hook's output.
const MAX_OUTPUT: usize = 4 << 10;
/// How long output is awaited of a hook that has ended.
const AFTER_EXIT: Duration = Duration::from_millis(100);

/// The ends that go to the container's process.
#[derive(Default)]
pub(crate) struct HookFds {
    pub(crate) channel: Option<OwnedFd>,
    pub(crate) creating: Option<OwnedFd>,
    pub(crate) created: Option<OwnedFd>,
    pub(crate) output: Option<OwnedFd>,
    pub(crate) host_mounts: Option<OwnedFd>,
    pub(crate) cover: Option<OwnedFd>,
}

/// The daemon's ends.
pub(super) struct Meeting {
    channel: UnixStream,
    creating: File,
    created: File,
    output: Receiver,
    /// How long all hooks together may take.
    patience: Duration,
}

/// Hooks that are under way while a container starts.
pub(super) struct UnderWay {
    meeting: tokio::task::JoinHandle<Result<(), Error>>,
    written: Written,
    reading: tokio::task::JoinHandle<()>,
}

impl Node {
    /// What the start of a container with hooks needs. `None`: it has none that run before its program.
    pub(super) fn prepare_hooks(
        &self,
        container: &Container,
        user: Option<UserNamespace>,
    ) -> Result<Option<(HookFds, Meeting)>, Error> {
        let source = &container.source;
        let spec = &source.spec;
        let Some(bundle) = &source.bundle else {
            return Ok(None);
        };
        let config = self.make_bundle(container)?;
        failpoint::hit("start:bundle")?;
        let before = [
            Point::CreateRuntime,
            Point::CreateContainer,
            Point::StartContainer,
        ];
        if before
            .iter()
            .all(|&point| hooks::of(spec, point).is_empty())
        {
            return Ok(None);
        }
        let at = |doing: &str| format!("{doing} for the hooks of container {}", container.id);
        let (mut fds, meeting) =
            meeting(patience(container)).map_err(Error::at(at("make a socket")))?;
        if let (Some(cover), Some(user)) = (&source.cover, user) {
            let mounts = sight::host_mounts();
            fds.host_mounts = Some(mounts.map_err(Error::at(at("copy the host's mounts")))?);
            let covered = sight::covered(bundle, cover, &config, user);
            fds.cover = Some(covered.map_err(Error::at(at("cover the bundle")))?);
        }
        Ok(Some((fds, meeting)))
    }

    /// The bundle as other runtimes have it: config.json, which is returned, and a folder for the root file system.
    fn make_bundle(&self, container: &Container) -> Result<Vec<u8>, Error> {
        let at = || format!("make the bundle of container {}", container.id);
        let bundle = self.paths.bundle(&container.id);
        crate::node::make_dir(&bundle).map_err(Error::at(at()))?;
        crate::node::make_dir(&bundle.join(ROOTFS)).map_err(Error::at(at()))?;
        let config = serde_json::to_vec(&container.source.spec).map_err(Error::at(at()))?;
        std::fs::write(bundle.join("config.json"), &config).map_err(Error::at(at()))?;
        Ok(config)
    }

    /// Removes what [`Node::make_bundle`] made.
    pub(super) fn delete_bundle(&self, id: &ContainerId) -> Result<(), Error> {
        let bundle = self.paths.bundle(id);
        crate::node::remove_tree(&bundle).map_err(Error::at(format_args!(
            "remove the bundle of container {id}"
        )))
    }

    /// Does the daemon's part of a start with hooks.
    pub(super) fn run_hooks(&self, container: &Container, meeting: Meeting) -> UnderWay {
        let state = State::of(self, container);
        let spec = container.source.spec.clone();
        let Meeting {
            channel,
            creating,
            created,
            output,
            patience,
        } = meeting;
        let written = Written::default();
        let collected = written.clone();
        let reading = tokio::spawn(async move {
            // Whatever becomes of the processes that have the other end.
            let reading = collected.collect(output);
            let _ = timeout(ARRIVAL + patience + AFTER_EXIT, reading).await;
        });
        let meeting = tokio::spawn(async move {
            let pid = match timeout(ARRIVAL, arrival(&channel)).await {
                Ok(Some(pid)) => pid,
                // It failed on its way, and has said why.
                Ok(None) => return Ok(()),
                // The channel closes, and it gives up.
                Err(_) => {
                    let limit = ARRIVAL.as_secs();
                    return Err(Error::Internal(format!(
                        "hooks: the container's process was not there after {limit} s"
                    )));
                }
            };
            for (mut file, status) in [(&creating, "creating"), (&created, "created")] {
                let text = state.json(status, Some(pid));
                file.write_all(text.as_bytes())
                    .map_err(Error::at("write the state for hooks"))?;
            }
            for hook in hooks::of(&spec, Point::CreateRuntime) {
                run(
                    Point::CreateRuntime,
                    hook,
                    &state.json("creating", Some(pid)),
                )
                .await?;
            }
            failpoint::hit("start:hooks")?;
            // One that has gone meanwhile says so by itself.
            let _ = channel.try_write(b"!");
            Ok(())
        });
        UnderWay {
            meeting,
            written,
            reading,
        }
    }

    /// Runs the hooks of a container whose program runs, or has ended. What fails is reported.
    pub(crate) async fn run_late_hooks(&self, container: &Container, point: Point) {
        let list = hooks::of(&container.source.spec, point);
        if list.is_empty() {
            return;
        }
        let status = if point == Point::Poststart {
            "running"
        } else {
            "stopped"
        };
        let pid = container.running().map(|running| running.pid);
        let state = State::of(self, container).json(status, pid.filter(|_| status == "running"));
        for hook in list {
            if let Err(error) = run(point, hook, &state).await {
                tracing::warn!(container.id = %container.id, %error, "hook");
            }
        }
    }
}

impl UnderWay {
    /// Ends the daemon's part. What is in the container's process ends with that.
    pub(super) fn abort(&self) {
        self.meeting.abort();
        self.reading.abort();
    }

    /// Why hooks of the daemon's failed, if they did, and what those in the container's process wrote.
    pub(super) async fn outcome(self) -> (Result<(), Error>, String) {
        let met = match self.meeting.await {
            Ok(met) => met,
            Err(error) => Err(Error::wrap("run hooks", error)),
        };
        let reader = self.reading.abort_handle();
        // Something that a hook left running may have it still.
        let _ = timeout(AFTER_EXIT, self.reading).await;
        reader.abort();
        (met, self.written.line())
    }
}

/// How long all hooks of a container's start may take together.
pub(super) fn patience(container: &Container) -> Duration {
    let seconds = hooks::POINTS
        .iter()
        .flat_map(|&point| hooks::of(&container.source.spec, point))
        .map(|hook| u64::from(hooks::seconds(hook)))
        .sum();
    Duration::from_secs(seconds)
}

fn meeting(patience: Duration) -> io::Result<(HookFds, Meeting)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    // So that the kernel says who writes, by the pid that it has here.
    setsockopt(&ours, sockopt::PassCred, &true)?;
    ours.set_nonblocking(true)?;
    let file = || memfd_create("state", MemfdFlags::CLOEXEC).map(File::from);
    let (creating, created) = (file()?, file()?);
    let (output, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let fds = HookFds {
        channel: Some(theirs.into()),
        creating: Some(creating.try_clone()?.into()),
        created: Some(created.try_clone()?.into()),
        output: Some(writer),
        ..HookFds::default()
    };
    let meeting = Meeting {
        channel: UnixStream::from_std(ours)?,
        creating,
        created,
        output: Receiver::from_owned_fd(output)?,
        patience,
    };
    Ok((fds, meeting))
}

/// Waits for the container's process: its pid. `None`: it will not come.
async fn arrival(channel: &UnixStream) -> Option<u32> {
    let sender = channel
        .async_io(Interest::READABLE, || sender(channel))
        .await;
    u32::try_from(sender.ok().flatten()?).ok()
}

/// Reads a byte: who wrote it.
fn sender(channel: &UnixStream) -> io::Result<Option<i32>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let fd = channel.as_raw_fd();
    let received = recvmsg::<()>(fd, &mut buffers, Some(&mut space), flags)?;
    let mut messages = received.cmsgs()?;
    let pid = messages.find_map(|message| match message {
        ControlMessageOwned::ScmCredentials(sender) => Some(sender.pid()),
        _ => None,
    });
    Ok(pid.filter(|_| received.bytes == 1))
}

/// The beginning of what hooks write. What has come is there, also when the end never comes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads to the end. What is beyond [`MAX_OUTPUT`] is read, so that nobody waits, and lost.
    async fn collect(&self, mut output: impl AsyncRead + Unpin) {
        let mut piece = [0; MAX_OUTPUT];
        while let Ok(count @ 1..) = output.read(&mut piece).await {
            let mut kept = self.lock();
            let room = MAX_OUTPUT - kept.len();
            kept.extend(&piece[..count.min(room)]);
        }
    }

    /// What has come, on one line.
    fn line(&self) -> String {
        one_line(&self.lock())
    }
}

fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().map(plain).collect()
}

/// The container's state, as hooks get it.
struct State(serde_json::Value);

impl State {
    fn of(node: &Node, container: &Container) -> Self {
        let spec = &container.source.spec;
        Self(json!({
            "ociVersion": spec.version(),
            "id": container.id.to_string(),
            "bundle": node.paths.bundle(&container.id),
            "annotations": spec.annotations(),
        }))
    }

    fn json(&self, status: &str, pid: Option<u32>) -> String {
        let mut state = self.0.clone();
        state["status"] = status.into();
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        state.to_string()
    }
}

/// The process group of a hook that runs, which ends with this value.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a hook in the daemon's own namespaces. It ends with the future.
async fn run(point: Point, hook: &Hook, state: &str) -> Result<(), Error> {
    let what = hooks::describe(point, hook);
    let mut command = Command::new(hook.path());
    if let Some([name, rest @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    match hook.env() {
        Some(env) => {
            command.envs(env.iter().filter_map(|variable| variable.split_once('=')));
        }
        None => {
            command.env("PATH", DEFAULT_PATH);
        }
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(Error::at(&what))?;
    let group = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .map(Pid::from_raw);
    let mut group = Group(group);
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    // A hook that does not read its state is free not to.
    let feed = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(state.as_bytes()).await;
        }
    };
    let written = Written::default();
    let collect = async {
        if let Some(stderr) = stderr {
            written.collect(stderr).await;
        }
    };
    let (mut feed, mut collect) = (pin!(feed.fuse()), pin!(collect.fuse()));
    let limit = Duration::from_secs(hooks::seconds(hook).into());
    let ended = {
        let mut waited = pin!(timeout(limit, child.wait()));
        loop {
            tokio::select! {
                ended = &mut waited => break ended,
                () = &mut feed => {}
                () = &mut collect => {}
            }
        }
    };
    if ended.is_err() {
        group.kill();
        let _ = timeout(AFTER_EXIT, child.wait()).await;
    }
    // What it left running is not ours, and the id may be another's.
    group.0 = None;
    // What it wrote is in the pipe already; what it left running may hold that open.
    if !collect.is_terminated() {
        let _ = timeout(AFTER_EXIT, collect).await;
    }
    let said = match written.line() {
        text if text.is_empty() => text,
        text => format!(": {text}"),
    };
    match ended {
        Err(_) => {
            let limit = limit.as_secs();
            Err(Error::Internal(format!(
                "{what}: killed: not done after {limit} s{said}"
            )))
        }
        Ok(Err(error)) => Err(Error::wrap(what, error)),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
            };
            Err(Error::Internal(format!("{what}: {how}{said}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, seconds: i64) -> Hook {
        let mut hook = Hook::default();
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        hook.set_path("/bin/sh".into())
            .set_args(Some(args))
            .set_timeout(Some(seconds));
        hook
    }

    #[tokio::test]
    async fn what_a_hook_wrote_is_told_though_something_else_holds_its_output() {
        for (end, told) in [
            ("exit 3", "exit status 3: the reason"),
            ("sleep 9", "not done after 1 s: the reason"),
        ] {
            // It is in a session of its own, and outlives the hook.
            let script = format!("setsid sleep 3 & echo the reason >&2; {end}");
            let ran = run(Point::Poststart, &shell(&script, 1), "{}").await;
            let error = ran.unwrap_err().to_string();
            assert!(error.ends_with(told), "{error}");
        }
    }

    #[tokio::test]
    async fn what_has_come_is_there_before_the_end() {
        let (output, mut writer) = tokio::io::duplex(64);
        let written = Written::default();
        let collected = written.clone();
        let reading = tokio::spawn(async move { collected.collect(output).await });
        let much = vec![b'x'; 2 * MAX_OUTPUT];
        // Nobody who writes waits, and the other end stays open.
        writer.write_all(&much).await.unwrap();
        tokio::task::yield_now().await;
        reading.abort();
        let _ = reading.await;
        assert_eq!(written.line().len(), MAX_OUTPUT);
    }
}
