//! RunPodSandbox: a chain of phases, undone as a whole when one fails.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use carpel_api::nri::Event;
use carpel_wire::{Reply, Setup};

use super::{Live, Phase, Record, Sandbox, State, files, pids, user};
use crate::container::processes::{Descriptors, Made, Streams};
use crate::error::Error;
use crate::failpoint;
use crate::ids::SandboxId;
use crate::network::{self, Attachment, PodNetwork};
use crate::node::orphans::Ending;
use crate::node::{EventKind, Node};
use crate::nri::Gate;
use crate::selinux::Selinux;
use crate::spec::config::SandboxConfig;
use crate::spec::plan::{self, Compiled};
use crate::supervisor::Supervisor;

/// What a pod has beside its supervisor: a network and a user namespace of its own, if it does not share the
/// host's.
type Pod = (Option<Attachment>, Option<Arc<OwnedFd>>);

impl Node {
    /// Makes a sandbox, or returns the one of that name that is there already.
    ///
    /// # Errors
    /// Whatever broke off the construction, which leaves nothing; [`Error::FailedPrecondition`] if a
    /// sandbox of that name exists and is stopped.
    pub async fn run_sandbox(
        self: &Arc<Self>,
        config: SandboxConfig,
        request: Vec<u8>,
    ) -> Result<SandboxId, Error> {
        let node = Arc::clone(self);
        self.runs
            .join(config.name.clone(), || async move {
                node.make_sandbox(config, request).await
            })
            .await
    }

    async fn make_sandbox(
        self: Arc<Self>,
        config: SandboxConfig,
        request: Vec<u8>,
    ) -> Result<SandboxId, Error> {
        if let Some(existing) = self.sandbox_named(&config.name) {
            // A start that is being undone ends first.
            let turn = existing.turn.lock().await;
            if existing.is_ready() {
                return Ok(existing.id);
            }
            if matches!(*existing.lock(), State::Making) && self.sandbox(&existing.id).is_some() {
                // It has panicked: nobody makes it any more.
                self.undo_sandbox(&existing).await;
            }
            drop(turn);
            if self.sandbox(&existing.id).is_some() {
                return Err(Error::FailedPrecondition(format!(
                    "sandbox {} of pod {} attempt {} exists and is not ready: stop and remove it first",
                    existing.id,
                    existing.pod(),
                    existing.config.name.attempt,
                )));
            }
        }
        self.check_user_namespace(&config)?;
        let id = SandboxId::random();
        let sandbox = self.take_place(id, config, request)?;
        let _turn = sandbox.turn.lock().await;
        let constructed = match self.construct(&sandbox).await {
            Ok(live) => self.agree(&sandbox, live).await,
            Err(error) => Err(error),
        };
        match constructed {
            Ok((live, gate)) => {
                sandbox.set_state(State::Ready(live.clone()));
                drop(gate);
                self.announce_sandbox(EventKind::Created, &sandbox);
                self.announce_sandbox(EventKind::Started, &sandbox);
                self.watch_supervisor(&sandbox, live.supervisor);
                Ok(id)
            }
            Err(error) => {
                self.undo_sandbox(&sandbox).await;
                Err(error)
            }
        }
    }

    /// Asks plugins whether they agree to a pod. From then on until it is ready none is synchronized.
    async fn agree(&self, sandbox: &Sandbox, live: Live) -> Result<(Live, Gate<'_>), Error> {
        let gate = self.nri.gate().await;
        let told = self.tell_of_pod(Event::RunPodSandbox, sandbox, Some(&live));
        let Err(error) = told.await else {
            return Ok((live, gate));
        };
        for event in [Event::StopPodSandbox, Event::RemovePodSandbox] {
            let undone = self.tell_of_pod(event, sandbox, Some(&live)).await;
            if let Err(error) = undone {
                tracing::warn!(sandbox.id = %sandbox.id, %error, "a pod that was not made");
            }
        }
        Err(error)
    }

    /// Puts a sandbox into the table, with labels that no other has.
    fn take_place(
        &self,
        id: SandboxId,
        config: SandboxConfig,
        request: Vec<u8>,
    ) -> Result<Arc<Sandbox>, Error> {
        let _choosing = self.selinux.as_ref().map(Selinux::choosing);
        let record = Record {
            id,
            request,
            runtime_handler: config.runtime_handler.clone(),
            created_at: crate::node::now(),
            cgroup: self.cgroup_path(config.cgroup_parent.as_deref(), &id.to_string()),
            phase: Phase::Making,
            attachment: None,
            overhead: None,
            resources: None,
            selinux: self.labels_of_pod(&config)?,
        };
        let netns = self.paths.netns(&id);
        let sandbox = Arc::new(Sandbox::new(&record, config, netns, State::Making));
        self.insert_sandbox(&sandbox);
        Ok(sandbox)
    }

    async fn construct(&self, sandbox: &Sandbox) -> Result<Live, Error> {
        let timeline = &sandbox.timeline;
        let start = Instant::now();
        let dir = self.paths.sandbox(&sandbox.id);
        let run_dir = self.paths.pod_state(&sandbox.id);
        let at = |doing: &str| format!("{doing} of sandbox {}", sandbox.id);
        crate::node::make_dir(&dir).map_err(Error::at(at("make the folder")))?;
        self.write_sandbox(sandbox, Phase::Making)?;
        failpoint::hit("run:recorded")?;
        crate::node::make_dir(&run_dir).map_err(Error::at(at("make the state folder")))?;
        timeline.note("record", start);

        let start = Instant::now();
        let spawned = Supervisor::spawn(&self.binary, &run_dir, &sandbox.id).await;
        let (first, spawned) = spawned.map_err(Error::at(at("start the supervisor")))?;
        let spawned = Ending::new(spawned);
        timeline.note("start supervisor", start);

        let pod = self.make_pod(sandbox, &first).await;
        // The process as spawned ends with the setup: the pod's supervisor is its clone.
        match &pod {
            Ok(_) => drop(spawned),
            Err(_) => spawned.end().await,
        }
        let (attachment, user_namespace) = pod?;

        let ips = attachment
            .as_ref()
            .map(|a| a.ips.clone())
            .unwrap_or_default();
        let start = Instant::now();
        files::write(&dir, &sandbox.config, &ips).map_err(Error::at(at("write /etc files")))?;
        if let Some(labels) = &sandbox.selinux {
            files::label(&dir, &labels.mount).map_err(Error::at(at("label /etc files")))?;
        }
        let live = Live {
            supervisor: first,
            attachment,
            user_namespace,
        };
        let record = Record {
            attachment: live.attachment.clone(),
            ..sandbox.record(Phase::Ready)
        };
        self.write_record(&self.paths.sandbox_record(&sandbox.id), &record)?;
        failpoint::hit("run:ready")?;
        timeline.note("files and record", start);
        Ok(live)
    }

    /// The pod's namespaces, and then at the same time what is in them: the network, which the chain of
    /// plugins makes, and the rest, which the supervisor does.
    async fn make_pod(&self, sandbox: &Sandbox, supervisor: &Supervisor) -> Result<Pod, Error> {
        failpoint::hit("run:supervisor-spawned")?;
        let at = |doing: &str| format!("{doing} of sandbox {}", sandbox.id);
        let start = Instant::now();
        let unshare = supervisor.expect(user::unshare(&sandbox.config), &[], |reply| {
            *reply == Reply::Done
        });
        let (unshared, prepared) = tokio::join!(unshare, async { self.prepare_setup(sandbox) });
        let prepared = prepared?;
        unshared.map_err(|error| user::not_made(error, sandbox))?;
        let user_namespace = user::of(&sandbox.config, supervisor)
            .map_err(Error::at(at("open the user namespace")))?;
        if user_namespace.is_some() {
            failpoint::hit("run:user-namespace")?;
        }
        sandbox.timeline.note("cgroup and namespaces", start);

        let pid = supervisor.pid();
        let set_up = self.set_up(sandbox, supervisor, prepared, user_namespace.as_deref());
        // A sysctl may be one of the pod's interface, which must be there: with the peers, it is.
        let of_network = |key: &String| key.starts_with("net.");
        if sandbox.config.sysctls.keys().any(of_network) {
            let attachment = self.connect_network(sandbox, pid).await?;
            set_up.await?;
            return Ok((attachment, user_namespace));
        }
        // Each to its end, whatever becomes of the other: what is undone must stand still.
        let (attachment, set_up) = tokio::join!(self.connect_network(sandbox, pid), set_up);
        set_up?;
        Ok((attachment?, user_namespace))
    }

    /// All that can be done for a supervisor's setup without it.
    fn prepare_setup(&self, sandbox: &Sandbox) -> Result<(Compiled, Setup, Descriptors), Error> {
        let id = &sandbox.id;
        let at = |doing: &str| format!("{doing} of sandbox {id}");
        self.cgroups
            .create_for_supervisor(&sandbox.cgroup)
            .map_err(Error::at(at("make the cgroup")))?;
        let join = self.cgroups.join_as_supervisor(&sandbox.cgroup);
        let join = join.map_err(Error::at(at("open the cgroup")))?;
        let shared = sandbox.selinux.as_ref();
        let shared = shared.map(|labels| labels.mount.shared().to_string());
        let compiled = plan::compile_sandbox(&sandbox.config, shared.as_deref(), &self.host)
            .map_err(Error::at(at("compile the plan")))?;
        let exits = self
            .open_exits(id)
            .map_err(Error::at(at("open the exits file")))?;
        let made = Made::default();
        let mut descriptors = Descriptors::open(&compiled, made, &join, &mut Streams::None, None)?;
        let setup = Setup {
            clone_flags: compiled.clone_flags,
            cgroup: descriptors.cgroup,
            plan: descriptors.plan,
            exits: descriptors.add(exits),
            shared_pid_namespace: pids::shared_from_the_start(sandbox),
            succession: None,
        };
        Ok((compiled, setup, descriptors))
    }

    /// Has the supervisor enter its cgroup and become the pod's.
    async fn set_up(
        &self,
        sandbox: &Sandbox,
        supervisor: &Supervisor,
        (compiled, setup, mut descriptors): (Compiled, Setup, Descriptors),
        user_namespace: Option<&OwnedFd>,
    ) -> Result<(), Error> {
        let id = &sandbox.id;
        let start = Instant::now();
        let at = || format!("set up the supervisor of sandbox {id}");
        let request = user::set_up(setup, user_namespace, &mut descriptors);
        let (reply, _) = supervisor
            .request(request.map_err(Error::at(at()))?, &descriptors.borrow())
            .await
            .map_err(Error::at(at()))?;
        match reply {
            Reply::Ready { .. } => {
                self.share_labelled_pids(supervisor, sandbox, user_namespace)
                    .await?;
                failpoint::hit("run:supervisor-ready")?;
                sandbox.timeline.note("set up supervisor", start);
                Ok(())
            }
            Reply::StepFailed { step, errno } => {
                let why = plan::describe_failure(&compiled.steps, step, errno);
                let failed = usize::try_from(step)
                    .ok()
                    .and_then(|step| compiled.steps.get(step));
                let mut asked = sandbox.config.sysctls.keys();
                let sysctl = asked.find(|key| failed == Some(&plan::sysctl_step(key)));
                Err(match sysctl {
                    // Which there are, and what they may be, the kernel knows alone.
                    Some(key) => Error::InvalidArgument(format!(
                        "config.linux.sysctls[{key:?}]: {why} (sandbox {:?})",
                        sandbox.pod()
                    )),
                    None => Error::Internal(format!("set up sandbox {id}: {why}")),
                })
            }
            other => Err(Error::Internal(format!(
                "set up sandbox {id}: supervisor answers {other:?}"
            ))),
        }
    }

    /// Pins the network namespace and runs the chain's ADD. `None` with the host's network.
    async fn connect_network(
        &self,
        sandbox: &Sandbox,
        pid: u32,
    ) -> Result<Option<Attachment>, Error> {
        let Some(pin) = &sandbox.netns else {
            return Ok(None);
        };
        let at = |doing: &str| format!("{doing} of sandbox {}", sandbox.id);
        let start = Instant::now();
        let source = format!("/proc/{pid}/ns/net");
        network::netns::pin(source.as_ref(), pin)
            .map_err(Error::at(at("pin the network namespace")))?;
        failpoint::hit("run:netns-pinned")?;
        sandbox.timeline.note("pin netns", start);

        let start = Instant::now();
        let config = &sandbox.config;
        let pod = PodNetwork {
            sandbox: sandbox.id,
            name: config.name.clone(),
            netns: pin.clone(),
            port_mappings: config.port_mappings.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            dns: config.dns.clone(),
            annotations: config.annotations.clone(),
            hostname: config.hostname.clone(),
        };
        let attachment = self
            .network
            .add(&pod, &sandbox.timeline)
            .await
            .map_err(|error| {
                let doing = format!("network for pod {}", sandbox.pod());
                match error {
                    // What the request itself says.
                    network::Error::Bandwidth { .. } | network::Error::Argument { .. } => {
                        Error::InvalidArgument(format!("{doing}: {error}"))
                    }
                    error => Error::wrap(doing, error),
                }
            })?;
        failpoint::hit("run:network-added")?;
        sandbox.timeline.note("network", start);
        Ok(Some(attachment))
    }

    pub(super) fn open_exits(&self, id: &SandboxId) -> std::io::Result<OwnedFd> {
        let mut options = std::fs::OpenOptions::new();
        options.create(true).append(true);
        Ok(options.open(self.paths.exits(id))?.into())
    }
}
