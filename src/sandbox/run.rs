//! RunPodSandbox: a chain of phases, undone as a whole when one fails.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use carpel_wire::{Reply, RequestBody, Setup};

use super::{Live, Phase, Record, Sandbox, State, files};
use crate::cgroup::DevicePolicy;
use crate::container::processes::{Descriptors, Streams};
use crate::error::Error;
use crate::failpoint;
use crate::ids::SandboxId;
use crate::network::{self, Attachment, PodNetwork};
use crate::node::{EventKind, Node};
use crate::spec::config::{PidScope, SandboxConfig};
use crate::spec::plan;
use crate::supervisor::Supervisor;

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
            drop(existing.turn.lock().await);
            if existing.is_ready() {
                return Ok(existing.id);
            }
            if self.sandbox(&existing.id).is_some() {
                return Err(Error::FailedPrecondition(format!(
                    "sandbox {} of pod {} attempt {} exists and is not ready: stop and remove it first",
                    existing.id,
                    existing.pod(),
                    existing.config.name.attempt,
                )));
            }
        }
        let id = SandboxId::random();
        let record = Record {
            id,
            request,
            runtime_handler: config.runtime_handler.clone(),
            created_at: crate::node::now(),
            cgroup: self.cgroup_path(config.cgroup_parent.as_deref(), &id.to_string()),
            phase: Phase::Making,
            attachment: None,
        };
        let netns = self.paths.netns(&id);
        let sandbox = Arc::new(Sandbox::new(&record, config, netns, State::Making));
        self.insert_sandbox(&sandbox);
        let _turn = sandbox.turn.lock().await;
        match self.construct(&sandbox).await {
            Ok(live) => {
                sandbox.set_state(State::Ready(live.clone()));
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
        let (first, mut child) = spawned.map_err(Error::at(at("start the supervisor")))?;
        failpoint::hit("run:supervisor-spawned")?;
        timeline.note("start supervisor", start);

        let start = Instant::now();
        let set_up = self.set_up(sandbox, &first).await;
        // The process as spawned ends now: the pod's supervisor is its clone.
        if set_up.is_err() {
            let _ = child.kill();
        }
        tokio::task::spawn_blocking(move || child.wait());
        let pid = set_up?;
        failpoint::hit("run:supervisor-ready")?;
        timeline.note("namespaces", start);

        let attachment = self.connect_network(sandbox, pid).await?;
        let ips = attachment
            .as_ref()
            .map(|a| a.ips.clone())
            .unwrap_or_default();
        let start = Instant::now();
        files::write(&dir, &sandbox.config, &ips).map_err(Error::at(at("write /etc files")))?;
        let live = Live {
            supervisor: first,
            attachment,
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

    /// Has the supervisor enter its cgroup and make the pod's namespaces. Returns its pid.
    async fn set_up(&self, sandbox: &Sandbox, supervisor: &Supervisor) -> Result<u32, Error> {
        let id = &sandbox.id;
        let at = |doing: &str| format!("{doing} of sandbox {id}");
        let cgroup = self
            .cgroups
            .create(&sandbox.cgroup, None, &DevicePolicy::AllowAll)
            .map_err(Error::at(at("make the cgroup")))?;
        let join = cgroup.join().map_err(Error::at(at("open the cgroup")))?;
        let compiled = plan::compile_sandbox(&sandbox.config, &self.host)
            .map_err(Error::at(at("compile the plan")))?;
        let exits = self
            .open_exits(id)
            .map_err(Error::at(at("open the exits file")))?;

        let mut descriptors = Descriptors::open(&compiled, None, &join, &mut Streams::None)?;
        let setup = Setup {
            clone_flags: compiled.clone_flags,
            cgroup: descriptors.cgroup,
            plan: descriptors.plan,
            exits: descriptors.add(exits),
            shared_pid_namespace: sandbox.config.pid == PidScope::Pod,
        };
        let (reply, _pidfd) = supervisor
            .request(RequestBody::Setup(setup), &descriptors.borrow())
            .await
            .map_err(Error::at(at("set up the supervisor")))?;
        match reply {
            Reply::Ready { pid, .. } => Ok(pid),
            Reply::StepFailed { step, errno } => Err(Error::Internal(format!(
                "set up sandbox {id}: {}",
                plan::describe_failure(&compiled.steps, step, errno)
            ))),
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
        };
        let attachment = self
            .network
            .add(&pod, &sandbox.timeline)
            .await
            .map_err(Error::at(format!("network for pod {}", sandbox.pod())))?;
        failpoint::hit("run:network-added")?;
        sandbox.timeline.note("network", start);
        Ok(Some(attachment))
    }

    fn open_exits(&self, id: &SandboxId) -> std::io::Result<OwnedFd> {
        let mut options = std::fs::OpenOptions::new();
        options.create(true).append(true);
        Ok(options.open(self.paths.exits(id))?.into())
    }

    /// Notes when a ready sandbox loses its supervisor.
    pub(crate) fn watch_supervisor(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        supervisor: Supervisor,
    ) {
        let (node, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move {
            supervisor.gone().await;
            // Ours if this daemon started it; otherwise there is nothing to reap.
            crate::node::reap(&supervisor);
            if sandbox.leave_ready() {
                tracing::error!(sandbox.id = %sandbox.id, pod = sandbox.pod(), "supervisor died: sandbox is not ready");
                node.announce_sandbox(EventKind::Stopped, &sandbox);
            }
        });
    }
}
