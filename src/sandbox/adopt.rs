//! A supervisor dies: another takes its place, and no container notices.
//!
//! ```text
//! gone ─▶ dead and reaped, its children are the daemon's ─▶ what it was starting is ended
//!      ─▶ spawn ─▶ Adopt each container ─▶ Setup: enter the same cgroup and namespaces ─▶ Ready again
//! ```
//!
//! All that is needed outlives a supervisor: namespaces by descriptors that are kept here, pipes, terminals
//! and logs by those that are kept with each container ([`crate::container`]), the reaper of a shared PID
//! namespace as a process of its own. Setup comes last, because it is what counts: a supervisor that has not
//! been set up reads nothing, so that the daemon may die at any moment in between, or try again.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use carpel_wire::{Reply, Setup, Succession};

use super::{Live, Sandbox, State, pids, user};
use crate::container::Adopted;
use crate::container::processes::{Descriptors, Made, Streams};
use crate::error::Error;
use crate::failpoint;
use crate::node::orphans::{self, Ending};
use crate::node::{EventKind, Node};
use crate::spec::plan::{self, Namespace};
use crate::supervisor::{Reaper, Supervisor};

/// How often the place of a dead supervisor is tried to be filled.
const ATTEMPTS: u32 = 5;

/// The namespaces of a supervisor. They live as long as this.
struct Namespaces([(Namespace, OwnedFd); 4]);

impl Namespaces {
    fn of(supervisor: &Supervisor) -> io::Result<Self> {
        let pid = supervisor.pid();
        let open = |kind: Namespace| {
            let file = File::open(format!("/proc/{pid}/ns/{}", kind.name()))?;
            Ok::<_, io::Error>((kind, file.into()))
        };
        let [network, ipc, uts, mount] = Namespace::ALL;
        let opened = Self([open(network)?, open(ipc)?, open(uts)?, open(mount)?]);
        // Or else the pid may have been another's.
        match supervisor.pidfd() {
            Some(pidfd) if !orphans::has_ended(&pidfd) => Ok(opened),
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    fn paths(&self) -> Vec<(Namespace, PathBuf)> {
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into();
        self.0.iter().map(|(kind, fd)| (*kind, path(fd))).collect()
    }
}

impl Node {
    /// Sees to it, in a task of its own, that a ready sandbox has a supervisor.
    pub(crate) fn watch_supervisor(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        supervisor: Supervisor,
    ) {
        let (node, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move { node.replace_supervisors(&sandbox, supervisor).await });
    }

    async fn replace_supervisors(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        mut supervisor: Supervisor,
    ) {
        let namespaces = Namespaces::of(&supervisor);
        loop {
            supervisor.gone().await;
            if let Some(pidfd) = supervisor.pidfd() {
                // One that only lost its connection must not read on beside another.
                orphans::end(&pidfd).await;
            }
            let _turn = sandbox.turn.lock().await;
            let live = match &*sandbox.lock() {
                State::Ready(live) if live.supervisor.is(&supervisor) => live.clone(),
                _ => return,
            };
            let user_namespace = live.user_namespace.as_deref();
            let (id, pod) = (&sandbox.id, sandbox.pod());
            let next = match &namespaces {
                Ok(namespaces) => {
                    // In memory of its own, so that the wait, as long as the pod's life, takes little.
                    let replaced =
                        self.replace_supervisor(sandbox, &supervisor, namespaces, user_namespace);
                    Box::pin(replaced).await
                }
                Err(error) => Err(Error::Internal(format!("its namespaces are gone: {error}"))),
            };
            let (next, adopted) = match next {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(sandbox.id = %id, pod, %error, "supervisor died and cannot be replaced: sandbox is not ready");
                    if sandbox.end_ready() {
                        self.announce_sandbox(EventKind::Stopped, sandbox);
                    }
                    return;
                }
            };
            let containers = adopted.len();
            tracing::warn!(sandbox.id = %id, pod, containers, "supervisor died, another goes on");
            // Who waits for the sandbox finds its containers where they belong.
            for container in adopted {
                self.go_on(container, &next);
            }
            sandbox.set_state(State::Ready(Live {
                supervisor: next.clone(),
                ..live
            }));
            supervisor = next;
        }
    }

    /// A supervisor in the place of `dead`, with what it has adopted.
    async fn replace_supervisor(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        dead: &Supervisor,
        namespaces: &Namespaces,
        user_namespace: Option<&OwnedFd>,
    ) -> Result<(Supervisor, Vec<Adopted>), Error> {
        let reaper = dead
            .reaper()
            .filter(|reaper| !orphans::has_ended(&reaper.pidfd));
        self.end_strays(&sandbox.id).await;
        self.mend_logs(&sandbox.id).await;
        let mut attempts = 1..ATTEMPTS;
        loop {
            match self
                .spawn_successor(sandbox, reaper.as_ref(), namespaces, user_namespace)
                .await
            {
                Err(error) if attempts.next().is_some() => {
                    tracing::warn!(sandbox.id = %sandbox.id, %error, "supervisor is not replaced yet");
                }
                outcome => return outcome,
            }
        }
    }

    async fn spawn_successor(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        reaper: Option<&Reaper>,
        namespaces: &Namespaces,
        user_namespace: Option<&OwnedFd>,
    ) -> Result<(Supervisor, Vec<Adopted>), Error> {
        let id = &sandbox.id;
        failpoint::hit("adopt:dead")?;
        let spawned = Supervisor::spawn(&self.binary, &self.paths.pod_state(id), id).await;
        let (supervisor, spawned) = spawned.map_err(Error::at(format!(
            "start another supervisor of sandbox {id}"
        )))?;
        let spawned = Ending::new(spawned);
        let ready = async {
            failpoint::hit("adopt:spawned")?;
            let adopted = self.adopt_containers(id, &supervisor).await?;
            failpoint::hit("adopt:handed-over")?;
            let pod = (namespaces, user_namespace);
            self.set_up_successor(sandbox, &supervisor, reaper, pod)
                .await?;
            failpoint::hit("adopt:ready")?;
            Ok(adopted)
        };
        let ready = ready.await;
        // The process as spawned ends with the setup: the pod's supervisor is its clone.
        if ready.is_ok() {
            drop(spawned);
        } else {
            spawned.end().await;
            if let Some(pidfd) = supervisor.pidfd() {
                orphans::end(&pidfd).await;
            }
        }
        ready.map(|adopted| (supervisor, adopted))
    }

    /// Has a supervisor enter the cgroup and the namespaces of the pod.
    async fn set_up_successor(
        &self,
        sandbox: &Sandbox,
        supervisor: &Supervisor,
        reaper: Option<&Reaper>,
        (namespaces, user_namespace): (&Namespaces, Option<&OwnedFd>),
    ) -> Result<(), Error> {
        let id = &sandbox.id;
        let at = |doing: &str| format!("{doing} of sandbox {id}");
        let join = self.cgroups.join_as_supervisor(&sandbox.cgroup);
        let join = join.map_err(Error::at(at("open the cgroup")))?;
        let compiled = plan::compile_succession(&namespaces.paths(), &self.host)
            .map_err(Error::at(at("compile the plan")))?;
        let exits = self.open_exits(id);
        let exits = exits.map_err(Error::at(at("open the exits file")))?;
        let reaper_pidfd = reaper.map(|reaper| reaper.pidfd.try_clone()).transpose();
        let reaper_pidfd = reaper_pidfd.map_err(Error::at(at("duplicate a descriptor")))?;
        let made = Made::default();
        let mut descriptors = Descriptors::open(&compiled, made, &join, &mut Streams::None, None)?;
        let reaper_index = reaper_pidfd.map(|pidfd| descriptors.add(pidfd));
        let setup = Setup {
            clone_flags: compiled.clone_flags,
            cgroup: descriptors.cgroup,
            plan: descriptors.plan,
            exits: descriptors.add(exits),
            shared_pid_namespace: pids::shared_from_the_start(sandbox),
            succession: Some(Succession {
                reaper: reaper.map(|reaper| reaper.pid).zip(reaper_index),
            }),
        };
        let request = user::set_up(setup, user_namespace, &mut descriptors);
        let request = request.map_err(Error::at(at("duplicate a descriptor")))?;
        let (reply, _) = supervisor
            .request(request, &descriptors.borrow())
            .await
            .map_err(Error::at(at("set up another supervisor")))?;
        match reply {
            Reply::Ready { .. } => {
                let shared = self.share_labelled_pids(supervisor, sandbox, user_namespace);
                shared.await
            }
            Reply::StepFailed { step, errno } => Err(Error::Internal(format!(
                "set up another supervisor of sandbox {id}: {}",
                plan::describe_failure(&compiled.steps, step, errno)
            ))),
            other => Err(Error::Internal(format!(
                "set up another supervisor of sandbox {id}: it answers {other:?}"
            ))),
        }
    }
}
