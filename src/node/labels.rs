//! SELinux labels of this node's pods and containers: which are taken, and who gets which.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::Node;
use crate::error::Error;
use crate::sandbox::{Sandbox, files};
use crate::selinux::{self, Forbidden, Label, Labels, Pair, SUPER_PRIVILEGED};
use crate::spec::config::{ContainerConfig, Mount, MountSource, PidScope, SandboxConfig, Scope};

/// What a container is labelled with.
#[derive(Debug)]
pub(crate) struct ContainerLabels {
    /// `None`: what its process is known by, the policy says when it executes its program.
    pub(crate) process: Option<Label>,
    pub(crate) mount: Label,
    /// What is to be relabelled, by its place in the request.
    relabelled: Vec<(usize, PathBuf)>,
}

impl Node {
    /// The labels of a pod that is about to be made. `None` where there are none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what the kernel does not know.
    pub(crate) fn labels_of_pod(&self, config: &SandboxConfig) -> Result<Option<Labels>, Error> {
        let Some(selinux) = &self.selinux else {
            return Ok(None);
        };
        let sandboxes = self.all_sandboxes();
        let pods = sandboxes.iter().filter_map(|sandbox| {
            let labels = sandbox.selinux.as_ref()?;
            Pair::of(labels.process.level()?)
        });
        let containers = self.containers();
        let own = containers.iter().filter_map(|container| {
            let label: Label = container.source.mount_label()?.parse().ok()?;
            Pair::of(label.level()?)
        });
        let labels = selinux.of_pod(&config.selinux, &pods.chain(own).collect());
        let name = format!("{}/{}", config.name.namespace, config.name.name);
        labels.map_err(|error| refused(format_args!("sandbox {name:?}"), error))
    }

    /// The labels of a container that is about to be made. What it may not relabel is refused.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what the kernel does not know, and for paths that are not to be relabelled.
    pub(crate) fn labels_of_container(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
    ) -> Result<Option<ContainerLabels>, Error> {
        let Some(selinux) = &self.selinux else {
            return Ok(None);
        };
        let name = &config.name.name;
        let asked = &config.security.selinux;
        let labels = selinux.of_container(sandbox.selinux.as_ref(), asked);
        let labels = labels.map_err(|error| refused(format_args!("container {name:?}"), error))?;
        let Some(labels) = labels else {
            return Ok(None);
        };
        let named = asked.kind.is_some() || sandbox.config.selinux.kind.is_some();
        let process = (named || is_confined(sandbox, config)).then_some(labels.process);
        // Whom the policy lets do everything takes nothing away from others.
        let all_powerful = |label: &Label| label.kind() == SUPER_PRIVILEGED;
        let relabelled = match process.as_ref().is_some_and(all_powerful) {
            true => Vec::new(),
            false => config
                .mounts
                .iter()
                .enumerate()
                .filter_map(to_relabel)
                .collect(),
        };
        Ok(Some(ContainerLabels {
            process,
            mount: labels.mount,
            relabelled,
        }))
    }

    /// Whether what is to be relabelled may be.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the first mount that may not.
    pub(crate) fn check_relabelled(
        &self,
        labels: &ContainerLabels,
        config: &ContainerConfig,
    ) -> Result<(), Error> {
        if labels.relabelled.is_empty() {
            return Ok(());
        }
        let forbidden = self.forbidden();
        labels.relabelled.iter().try_for_each(|(index, path)| {
            let check = forbidden.check(path);
            check.map_err(|error| not_relabelled(config, *index, &error))
        })
    }

    /// Gives what a container mounts its label, and what it shares with its pod one that it may read. It may take as
    /// long as there is much of it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the mount.
    pub(crate) async fn relabel(
        &self,
        labels: &ContainerLabels,
        config: &ContainerConfig,
        sandbox: &Sandbox,
    ) -> Result<(), Error> {
        let pods = sandbox.selinux.as_ref().map(|labels| &labels.mount);
        if pods.is_some_and(|pods| pods.level() != labels.mount.level()) {
            let dir = self.paths.sandbox(&sandbox.id);
            files::label(&dir, &labels.mount.shared()).map_err(Error::at(format!(
                "label /etc files of sandbox {}",
                sandbox.id
            )))?;
        }
        let forbidden = Arc::new(self.forbidden());
        for (index, path) in &labels.relabelled {
            let (path, label) = (path.clone(), labels.mount.clone());
            let forbidden = Arc::clone(&forbidden);
            let work = move || selinux::relabel(&path, &label, &forbidden);
            let done = tokio::task::spawn_blocking(work).await;
            let done = done.map_err(Error::at("relabel"))?;
            done.map_err(|error| not_relabelled(config, *index, &error))?;
        }
        Ok(())
    }

    fn forbidden(&self) -> Forbidden {
        Forbidden::new(&[&self.paths.root, &self.paths.state])
    }
}

/// Whether a container is kept apart from the others and from the node: not one that may do everything, nor one that
/// is to see the node's processes or their memory. These are what the policy makes of them.
fn is_confined(sandbox: &Sandbox, config: &ContainerConfig) -> bool {
    let security = &config.security;
    !security.privileged && security.pid != PidScope::Node && sandbox.config.ipc != Scope::Node
}

fn to_relabel((index, mount): (usize, &Mount)) -> Option<(usize, PathBuf)> {
    match &mount.source {
        MountSource::Host(path) if mount.relabel => Some((index, path.clone())),
        _ => None,
    }
}

fn not_relabelled(config: &ContainerConfig, index: usize, error: &selinux::RelabelError) -> Error {
    let name = &config.name.name;
    let why = crate::error::chain(error);
    Error::InvalidArgument(format!(
        "container {name:?}: config.mounts[{index}].selinux_relabel: {why}"
    ))
}

fn refused(whose: fmt::Arguments<'_>, error: selinux::Error) -> Error {
    match error {
        selinux::Error::Unknown { .. } => {
            Error::InvalidArgument(format!("{whose}: config.linux.security_context.{error}"))
        }
        selinux::Error::NoContexts(_) => {
            Error::FailedPrecondition(format!("{whose}: config.linux.security_context.{error}"))
        }
        selinux::Error::Contexts { .. } => Error::FailedPrecondition(format!("{whose}: {error}")),
        selinux::Error::Full => Error::ResourceExhausted(format!("{whose}: {error}")),
        selinux::Error::Kernel(_) => Error::Internal(format!("{whose}: {error}")),
    }
}
