//! The PID namespace that a pod's containers share. Its process 1 is the reaper, which the pod's supervisor clones.

use std::os::fd::{AsFd, OwnedFd};

use carpel_wire::{FdIndex, Reply, RequestBody};

use super::Sandbox;
use crate::cgroup::Join;
use crate::container::processes::{Descriptors, Made, Streams};
use crate::error::Error;
use crate::node::{Node, orphans};
use crate::selinux::Labels;
use crate::spec::config::PidScope;
use crate::spec::plan;
use crate::supervisor::{self, Supervisor};

/// Whether a supervisor makes the namespace as it is set up. A reaper with labels is asked for by itself.
pub(super) fn shared_from_the_start(sandbox: &Sandbox) -> bool {
    sandbox.config.pid == PidScope::Pod && sandbox.selinux.is_none()
}

impl Node {
    /// Makes the namespace of a pod that is to have one and whose supervisor has just been set up without it.
    pub(super) async fn share_labelled_pids(
        &self,
        supervisor: &Supervisor,
        sandbox: &Sandbox,
        user_namespace: Option<&OwnedFd>,
    ) -> Result<(), Error> {
        if sandbox.config.pid != PidScope::Pod || shared_from_the_start(sandbox) {
            return Ok(());
        }
        self.share_pids(supervisor, sandbox, user_namespace).await
    }

    /// Sees to it that the pod has a PID namespace to be shared. It has none yet if the pod was to have one for each container
    /// and one asks for the pod's all the same (as a request without namespace options does: the peers' pods always have
    /// one), or if the reaper was killed.
    pub(crate) async fn share_pids(
        &self,
        supervisor: &Supervisor,
        sandbox: &Sandbox,
        user_namespace: Option<&OwnedFd>,
    ) -> Result<(), Error> {
        let reaper = supervisor.reaper();
        if reaper.is_some_and(|reaper| !orphans::has_ended(&reaper.pidfd)) {
            return Ok(());
        }
        if let Some(labels) = &sandbox.selinux {
            match self
                .share_pids_as(labels, supervisor, sandbox, user_namespace)
                .await
            {
                Err(Refusal::Unknown) => {
                    tracing::warn!(sandbox.id = %sandbox.id, "the pod's supervisor is too old to give its reaper a label");
                }
                Err(Refusal::Other(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
        let user = user_namespace.map(AsFd::as_fd);
        let body = RequestBody::SharePids {
            namespace: user.map(|_| FdIndex(0)),
        };
        let ready = |reply: &Reply| matches!(reply, Reply::Ready { .. });
        let shared = supervisor.expect(body, user.as_slice(), ready).await;
        shared.map(drop).map_err(Error::at(doing(sandbox)))
    }

    async fn share_pids_as(
        &self,
        labels: &Labels,
        supervisor: &Supervisor,
        sandbox: &Sandbox,
        user_namespace: Option<&OwnedFd>,
    ) -> Result<(), Refusal> {
        let compiled = plan::compile_reaper(labels, sandbox.config.user_namespace);
        let compiled = compiled.map_err(Error::at(doing(sandbox)))?;
        let program = self.binary.program().map_err(Error::at(doing(sandbox)))?;
        let made = Made {
            program: Some(program),
            ..Made::default()
        };
        let join = &Join::V1(Vec::new());
        let mut descriptors = Descriptors::open(&compiled, made, join, &mut Streams::None, None)?;
        let user = user_namespace.map(OwnedFd::try_clone).transpose();
        let user = user.map_err(Error::at("duplicate a descriptor"))?;
        let body = RequestBody::SharePidsAs {
            plan: descriptors.plan,
            namespace: user.map(|namespace| descriptors.add(namespace)),
        };
        let ready = |reply: &Reply| matches!(reply, Reply::Ready { .. });
        let shared = supervisor.expect(body, &descriptors.borrow(), ready).await;
        shared.map(drop).map_err(|error| match error {
            supervisor::Error::Refused(Reply::Malformed) => Refusal::Unknown,
            supervisor::Error::Refused(Reply::StepFailed { step, errno }) => {
                let what = plan::describe_failure(&compiled.steps, step, errno);
                Error::Internal(format!("{}: {what}", doing(sandbox))).into()
            }
            error => Error::wrap(doing(sandbox), error).into(),
        })
    }
}

/// Why there is no reaper with labels.
enum Refusal {
    /// The supervisor is an older one, from before an upgrade, which knows only reapers in its own domain.
    Unknown,
    Other(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn doing(sandbox: &Sandbox) -> String {
    format!("make the shared PID namespace of sandbox {}", sandbox.id)
}
