//! StartContainer: open what the Plan wants, hand it to the supervisor.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use carpel_api::nri::Event;
use carpel_wire::{Output, PidNamespace, Reply, Start, UserStart};
use tokio::sync::futures::Notified;

use super::devices;
use super::hooks::{self, UnderWay};
use super::kept::Kept;
use super::processes::{self, Descriptors, Made, Owner, Streams};
use super::{Container, Exited, Prepared, Running, State, update};
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::failpoint;
use crate::ids::ContainerId;
use crate::node::{EventKind, Node, Op};
use crate::sandbox::Sandbox;
use crate::spec::hooks::Point;
use crate::spec::plan::{self, Compiled};
use crate::supervisor::{self, REPLY_TIMEOUT, Started, Supervisor};

impl Node {
    /// Starts a created container. One that runs already is started.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if it has exited or its sandbox is not ready. Any other error leaves
    /// the container exited with code 128 and reason StartError, as the peers do.
    pub async fn start_container(self: &Arc<Self>, id: &ContainerId) -> Result<(), Error> {
        let container = self.require_container(id)?;
        let node = Arc::clone(self);
        let work = || async move {
            let _turn = container.turn.lock().await;
            node.start_in_turn(&container).await
        };
        self.operations.join((Op::Start, id.object()), work).await
    }

    async fn start_in_turn(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), Error> {
        let mut interrupt = pin!(container.interrupt.notified());
        interrupt.as_mut().enable();
        let supervisor = self.supervisor_of(container).await?;
        let prepared = match &mut *container.lock() {
            State::Created(prepared) => Prepared {
                rootfs: prepared.rootfs.take(),
                compiled: Arc::clone(&prepared.compiled),
            },
            State::Running(_) | State::Unseen(_) => return Ok(()),
            State::Exited(_) => {
                let text = format!("container {} has exited: create a new one", container.id);
                return Err(Error::FailedPrecondition(text));
            }
            State::Removing(_) => {
                return Err(Error::NotFound {
                    kind: "container",
                    id: container.id.to_string(),
                });
            }
        };
        match self
            .launch(container, &supervisor, prepared, interrupt.as_mut())
            .await
        {
            Ok((started, kept)) => {
                let running = Running {
                    pid: started.pid,
                    started_at: started.started_at,
                    pidfd: Arc::new(started.pidfd),
                    supervisor,
                    kept: Arc::new(kept),
                };
                *container.lock() = State::Running(running.clone());
                self.adjust_started(container).await;
                // Before anyone can learn of its exit.
                self.announce_container(EventKind::Started, container);
                self.watch_container(container, running, started.exit);
                let told = self.tell_of_container(Event::PostStartContainer, container);
                if let Err(error) = told.await {
                    tracing::warn!(container.id = %container.id, %error, "start of a container");
                }
                tokio::select! {
                    () = self.run_late_hooks(container, Point::Poststart) => {}
                    () = interrupt => {}
                }
                Ok(())
            }
            Err(error) => {
                // If the answer is what failed, the process may run all the same.
                // Or it goes on by itself: the supervisor is gone, or has lost it when it had just been cloned.
                self.kill_cgroup(container).await;
                supervisor.discard(container.id.object()).await;
                self.release(container).await;
                self.run_late_hooks(container, Point::Poststop).await;
                let exited = Exited {
                    started_at: 0,
                    finished_at: crate::node::now(),
                    exit_code: 128,
                    reason: "StartError".to_owned(),
                    dropped_log_lines: 0,
                    message: error.to_string(),
                };
                self.finish(container, exited);
                self.tell_stopped(container).await;
                Err(error)
            }
        }
    }

    async fn launch(
        self: &Arc<Self>,
        container: &Arc<Container>,
        supervisor: &Supervisor,
        Prepared { rootfs, compiled }: Prepared,
        interrupt: Pin<&mut Notified<'_>>,
    ) -> Result<(Started, Kept), Error> {
        let start = Instant::now();
        let sandbox = self.sandbox_of(container)?;
        self.tell_of_container(Event::StartContainer, container)
            .await?;
        let label = container.source.mount_label();
        let rootfs = match rootfs {
            Some(rootfs) => rootfs,
            // After the daemon's death: the supervisor has confirmed that it was never started.
            None => self
                .make_rootfs(&container.id, &container.layers, &sandbox, label)
                .await?
                .into(),
        };
        failpoint::hit("start:rootfs")?;
        let volumes = &container.source.image_volumes;
        let images = self
            .make_image_volumes(&container.config, volumes, &sandbox, label)
            .await?;
        if !images.is_empty() {
            failpoint::hit("start:volumes")?;
        }
        if container.pid_namespace == PidNamespace::Pod {
            let user = sandbox.user_namespace()?;
            self.share_pids(supervisor, &sandbox, user.as_deref())
                .await?;
        }
        self.take_net_devices(container).await?;
        let user = sandbox.config.user_namespace;
        let hooks = tokio::task::block_in_place(|| self.prepare_hooks(container, user))?;
        let (hook_fds, meeting) = hooks.unzip();
        let made = Made {
            program: None,
            rootfs: Some(rootfs),
            images: images.into_iter().map(Some).collect(),
            hooks: hook_fds.unwrap_or_default(),
        };
        // In place: what is opened is sent from the same thread, without waking another.
        let (message, descriptors) =
            tokio::task::block_in_place(|| self.open_all(container, &compiled, &sandbox, made))?;
        if message.1.is_some() {
            failpoint::hit("start:user-namespace")?;
        }
        let opened = Instant::now();
        container
            .timeline
            .note_span("cgroup and mounts", start, opened - start);

        let (message, user) = message;
        let held = processes::held(&message);
        let under_way = meeting.map(|meeting| self.run_hooks(container, meeting));
        let started = match &under_way {
            None => supervisor.start(message, user, &descriptors.borrow()).await,
            Some(under_way) => {
                let fds = descriptors.borrow();
                let limit = REPLY_TIMEOUT + hooks::patience(container);
                tokio::select! {
                    started = supervisor.start_within(message, user, &fds, limit) => started,
                    () = interrupt => {
                        under_way.abort();
                        return Err(stopped(container));
                    }
                }
            }
        };
        container.timeline.note("clone to exec", opened);
        let kept = descriptors.keep(&held);
        let started = match (started, under_way) {
            (started, None) => {
                started.map_err(|error| self.refused_start(container, &compiled.steps, error))
            }
            (started, Some(under_way)) => {
                self.after_hooks(container, &compiled.steps, started, under_way)
                    .await
            }
        }?;
        failpoint::hit("start:started")?;
        Ok((started, kept))
    }

    /// What became of a start with hooks: of those that failed, the message is about them.
    async fn after_hooks(
        &self,
        container: &Container,
        steps: &[String],
        started: Result<Started, supervisor::Error>,
        under_way: UnderWay,
    ) -> Result<Started, Error> {
        let (met, output) = under_way.outcome().await;
        let name = &container.config.name.name;
        match (started, met) {
            (Ok(started), _) => Ok(started),
            (Err(_), Err(failed)) => Err(Error::Internal(format!(
                "container {name:?} ({}): {failed}",
                container.id
            ))),
            (Err(error), Ok(())) => {
                let of_hook = match &error {
                    supervisor::Error::Refused(Reply::StepFailed { step, .. }) => {
                        usize::try_from(*step)
                            .ok()
                            .and_then(|step| steps.get(step))
                            .is_some_and(|step| step.contains(" hook "))
                    }
                    _ => false,
                };
                let failed = self.refused_start(container, steps, error);
                if !of_hook {
                    return Err(failed);
                }
                let said = if output.is_empty() {
                    output
                } else {
                    format!(": {output}")
                };
                Err(Error::Internal(format!("{failed}{said}")))
            }
        }
    }

    /// As [`refused`]. One that the kernel has killed because memory ran out is told so: its limit is too low to begin.
    fn refused_start(
        &self,
        container: &Container,
        steps: &[String],
        error: supervisor::Error,
    ) -> Error {
        let died = matches!(error, supervisor::Error::Refused(Reply::Died { .. }));
        let kills = || self.cgroups.open(&container.cgroup).oom_kills();
        if !died || !kills().is_ok_and(|kills| kills > 0) {
            return refused(container, steps, error);
        }
        let (name, id) = (&container.config.name.name, container.id);
        let limit = match container.limits().resources.memory_limit {
            Some(limit) => format!("config.linux.resources.memory_limit_in_bytes: {limit}"),
            None => "the pod's memory limit".to_owned(),
        };
        Error::InvalidArgument(format!(
            "container {name:?} ({id}): {limit} is too low: the kernel killed it before its program began, because \
             memory ran out"
        ))
    }

    /// Everything that blocks: the cgroup, the mounts, the log, the streams.
    fn open_all(
        &self,
        container: &Container,
        compiled: &Compiled,
        sandbox: &Sandbox,
        made: Made,
    ) -> Result<((Start, Option<UserStart>), Descriptors), Error> {
        let config = &container.config;
        let at = |doing: &str| format!("{doing} of container {}", container.id);
        let cgroup = self.make_cgroup(container)?;
        let join = cgroup.join().map_err(Error::at(at("open the cgroup")))?;
        let owner = Owner::of(&container.user, sandbox.config.user_namespace);
        let mut streams = if config.tty {
            Streams::terminal(owner, container.source.mount_label())?
        } else {
            Streams::pipes(config.stdin, owner).map_err(Error::at(at("make the pipes")))?
        };
        let user = sandbox.user_namespace()?;
        let opened = Descriptors::open(compiled, made, &join, &mut streams, user.as_deref());
        let mut descriptors = opened.map_err(|error| named(container, error))?;
        let log = self.open_log(container)?.map(|log| descriptors.add(log));
        let (output, stdin) = match streams {
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
                ..
            } => {
                let stdout = descriptors.add(stdout);
                let stderr = descriptors.add(stderr);
                (
                    Output::Pipes {
                        stdout,
                        stderr,
                        log,
                    },
                    stdin.map(|stdin| descriptors.add(stdin)),
                )
            }
            Streams::None => (Output::None, None),
            Streams::Terminal { master, .. } => (
                Output::Terminal {
                    master: descriptors.add(master),
                    log,
                },
                None,
            ),
        };
        let message = Start {
            id: container.id.object(),
            clone_flags: compiled.clone_flags,
            pid_namespace: compiled.pid_namespace,
            target: None,
            cgroup: descriptors.cgroup,
            plan: descriptors.plan,
            output,
            stdin,
            init: true,
        };
        Ok(((message, compiled.user), descriptors))
    }

    fn make_cgroup(&self, container: &Container) -> Result<Cgroup, Error> {
        let resources = self.with_defaults(&container.limits().resources);
        let devices = devices::policy(&container.source.spec)?;
        self.cgroups
            .create(&container.cgroup, Some(&resources), &devices)
            .map_err(|error| {
                let doing = format!("make the cgroup of container {}", container.id);
                update::of_cgroup(doing, error)
            })
    }

    /// The sandbox of a container, which is there as long as it has one.
    pub(crate) fn sandbox_of(&self, container: &Container) -> Result<Arc<Sandbox>, Error> {
        self.sandbox(&container.sandbox)
            .ok_or_else(|| Error::NotFound {
                kind: "sandbox",
                id: container.sandbox.to_string(),
            })
    }

    /// The supervisor of a container's pod. While that is being replaced it waits.
    pub(crate) async fn supervisor_of(&self, container: &Container) -> Result<Supervisor, Error> {
        let sandbox = self.sandbox_of(container)?;
        let supervisor = sandbox.supervisor().await;
        supervisor.ok_or_else(|| sandbox.refuses())
    }
}

fn stopped(container: &Container) -> Error {
    Error::FailedPrecondition(format!(
        "container {:?} ({}) is stopped while its hooks run",
        container.config.name.name, container.id
    ))
}

/// Says which step of a start failed, in words.
pub(crate) fn refused(container: &Container, steps: &[String], error: supervisor::Error) -> Error {
    let supervisor::Error::Refused(reply) = error else {
        return Error::wrap(format!("start in container {}", container.id), error);
    };
    let text = |what: String| {
        format!(
            "container {:?} ({}): {what}",
            container.config.name.name, container.id
        )
    };
    match reply {
        Reply::StepFailed { step, errno } => {
            Error::InvalidArgument(text(plan::describe_failure(steps, step, errno)))
        }
        Reply::NotFound => Error::FailedPrecondition(text("it is not running".to_owned())),
        Reply::Full => {
            Error::ResourceExhausted(text("the pod has too many processes under way".to_owned()))
        }
        Reply::Died { wait_status } => Error::Internal(text(format!(
            "killed before its program began (wait status {wait_status:#x})"
        ))),
        Reply::CallFailed { call, errno } => {
            let cause = std::io::Error::from_raw_os_error(errno);
            Error::wrap(text(format!("supervisor's {call:?}")), cause)
        }
        other => Error::Internal(text(format!("supervisor answers {other:?}"))),
    }
}

fn named(container: &Container, error: Error) -> Error {
    match error {
        Error::InvalidArgument(text) => Error::InvalidArgument(format!(
            "container {:?}: {text}",
            container.config.name.name
        )),
        other => other,
    }
}

/// Whether a container has a PID namespace of its own, which dies with its first process.
pub(crate) fn has_own_pids(container: &Container) -> bool {
    container.pid_namespace == PidNamespace::New
}
